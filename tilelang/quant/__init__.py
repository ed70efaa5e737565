"""Quantised matrices: what they mean, how to make them, and the formats of other projects."""
from __future__ import annotations

from tilelang.quant.files import load, save
from tilelang.quant.formats.awq import from_awq, to_awq
from tilelang.quant.formats.gguf import from_gguf, load_gguf, to_gguf
from tilelang.quant.formats.gptq import from_gptq, to_gptq
from tilelang.quant.formats.marlin import from_marlin, to_marlin
from tilelang.quant.rounding import quantize
from tilelang.quant.tensor import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes

__all__ = ["LowRank", "Parameter", "QuantTensor", "RowParts", "Sparse", "VectorCodes", "from_awq", "from_gguf",
           "from_gptq", "from_marlin", "load", "load_gguf", "quantize", "save", "to_awq", "to_gguf", "to_gptq",
           "to_marlin"]
