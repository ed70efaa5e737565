"""Local Linear Attention."""
from tilelang.ops.lla.api import lla, lla_varlen
from tilelang.ops.lla.decode import lla_decode

__all__ = ["lla", "lla_decode", "lla_varlen"]
