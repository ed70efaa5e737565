"""The library: kernels written in the language, each beside its NumPy reference."""
from tilelang.ops.activation import gelu
from tilelang.ops.attention import attention, attention_backward, attention_varlen, attention_varlen_backward
from tilelang.ops.linear import linear
from tilelang.ops.lla import lla, lla_decode, lla_varlen
from tilelang.ops.matmul import matmul
from tilelang.ops.mpgemm import mpgemm
from tilelang.ops.norm import add_rms_norm, layer_norm, rms_norm
from tilelang.ops.softmax import softmax

__all__ = ["add_rms_norm", "attention", "attention_backward", "attention_varlen", "attention_varlen_backward", "gelu",
           "layer_norm", "linear", "lla", "lla_decode", "lla_varlen", "matmul", "mpgemm", "rms_norm", "softmax"]
