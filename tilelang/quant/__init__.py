"""Quantised matrices: what they mean, how to make them, and the formats of other projects."""
from __future__ import annotations

from tilelang.quant.files import load, save
from tilelang.quant.formats.awq import from_awq, to_awq
from tilelang.quant.formats.bitnet import from_bitnet, from_i2s, to_bitnet, to_i2s
from tilelang.quant.formats.bitsandbytes import FP4, NF4, from_bitsandbytes, to_bitsandbytes
from tilelang.quant.formats.gguf import from_gguf, load_gguf, to_gguf
from tilelang.quant.formats.gptq import from_gptq, to_gptq
from tilelang.quant.formats.hqq import from_hqq, to_hqq
from tilelang.quant.formats.marlin import from_marlin, to_marlin
from tilelang.quant.formats.microscaling import from_mx, from_nvfp4, quantize_mx, to_mx, to_nvfp4
from tilelang.quant.rounding import quantize
from tilelang.quant.tensor import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes

__all__ = ["FP4", "NF4", "LowRank", "Parameter", "QuantTensor", "RowParts", "Sparse", "VectorCodes", "from_awq",
           "from_bitnet", "from_bitsandbytes", "from_gguf", "from_gptq", "from_hqq", "from_i2s", "from_marlin",
           "from_mx", "from_nvfp4", "load", "load_gguf", "quantize", "quantize_mx", "save", "to_awq", "to_bitnet",
           "to_bitsandbytes", "to_gguf", "to_gptq", "to_hqq", "to_i2s", "to_marlin", "to_mx", "to_nvfp4"]
