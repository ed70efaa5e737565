"""Softmax attention."""
from tilelang.ops.attention.api import attention, attention_backward
from tilelang.ops.attention.reference import reference
from tilelang.ops.attention.varlen import attention_varlen, attention_varlen_backward

__all__ = ["attention", "attention_backward", "attention_varlen", "attention_varlen_backward", "reference"]
