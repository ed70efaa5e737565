"""Softmax attention."""
from tilelang.ops.attention.api import attention, attention_backward
from tilelang.ops.attention.reference import reference

__all__ = ["attention", "attention_backward", "reference"]
