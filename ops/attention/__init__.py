"""Softmax attention."""
from tilelang.ops.attention.api import attention_backward
from tilelang.ops.attention.blockmask import BlockMask, block_mask
from tilelang.ops.attention.cache import append_kv, quantize_kv, rotate
from tilelang.ops.attention.decode import mla_decode
from tilelang.ops.attention.dynamic import dynamic_mask_attention
from tilelang.ops.attention.lowrank import lowrank_attention
from tilelang.ops.attention.operator import attention, attention_decode, attention_varlen, register_mods
from tilelang.ops.attention.reference import reference
from tilelang.ops.attention.sparse import compress_kv
from tilelang.ops.attention.varlen import attention_varlen_backward

__all__ = ["BlockMask", "append_kv", "attention", "attention_backward", "attention_decode", "attention_varlen",
           "attention_varlen_backward", "block_mask", "compress_kv", "dynamic_mask_attention", "lowrank_attention",
           "mla_decode", "quantize_kv", "reference", "register_mods", "rotate"]
