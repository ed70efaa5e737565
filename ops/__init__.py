"""The library: kernels written in the language, each beside its NumPy reference."""
from tilelang.ops.activation import gelu
from tilelang.ops.attention import (
    append_kv,
    attention,
    attention_backward,
    attention_decode,
    attention_varlen,
    attention_varlen_backward,
    block_mask,
    compress_kv,
    dynamic_mask_attention,
    lowrank_attention,
    mla_decode,
    quantize_kv,
    register_mods,
    rotate,
)
from tilelang.ops.based import based, based_state, based_step
from tilelang.ops.conv import causal_conv1d
from tilelang.ops.cross_entropy import cross_entropy, linear_cross_entropy
from tilelang.ops.glu import glu
from tilelang.ops.grouped import grouped_matmul
from tilelang.ops.linear import linear
from tilelang.ops.lla import lla, lla_decode, lla_varlen
from tilelang.ops.matmul import matmul
from tilelang.ops.mpgemm import mpgemm
from tilelang.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tilelang.ops.selective_scan import selective_scan, selective_scan_step
from tilelang.ops.softmax import softmax

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "append_kv",
    "attention",
    "attention_backward",
    "attention_decode",
    "attention_varlen",
    "attention_varlen_backward",
    "based",
    "based_state",
    "based_step",
    "block_mask",
    "causal_conv1d",
    "compress_kv",
    "cross_entropy",
    "dynamic_mask_attention",
    "gelu",
    "glu",
    "grouped_matmul",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "lla",
    "lla_decode",
    "lla_varlen",
    "lowrank_attention",
    "matmul",
    "mla_decode",
    "mpgemm",
    "quantize_kv",
    "register_mods",
    "rms_norm",
    "rotate",
    "selective_scan",
    "selective_scan_step",
    "softmax",
]
