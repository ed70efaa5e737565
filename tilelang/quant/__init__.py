"""Quantised matrices: what they mean, how to make them, and the formats of other projects."""
from __future__ import annotations

from tilelang.quant.files import load, save
from tilelang.quant.formats.gguf import from_gguf, load_gguf, to_gguf
from tilelang.quant.rounding import quantize
from tilelang.quant.tensor import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes

__all__ = ["LowRank", "Parameter", "QuantTensor", "RowParts", "Sparse", "VectorCodes", "from_gguf", "load",
           "load_gguf", "quantize", "save", "to_gguf"]
