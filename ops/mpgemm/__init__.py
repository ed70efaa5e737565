"""Products with quantised weights: every number type and decomposition from one set of kernels."""
from tilelang.ops.mpgemm.operator import mpgemm

__all__ = ["mpgemm"]
