"""Products with quantised weights: every number type and decomposition from one set of kernels."""
from tilelang.ops.mpgemm.api import mpgemm

__all__ = ["mpgemm"]
