"""`mpgemm` on a GPU: by f16, by f8, or by bits where those were asked for or are cheaper."""
from __future__ import annotations

from typing import Any

import tilelang as tile
from tilelang.errors import TargetError
from tilelang.jit import architecture
from tilelang.ops.mpgemm import gpu, gpu_bits
from tilelang.ops.mpgemm.plan import QUANTISED
from tilelang.quant import QuantTensor


def product(x: Any, w: QuantTensor, y: Any, x_dtype: str | None, token: bool, decomposition: str | None, device: str,
            **after: Any) -> None:
    """The product of x [M, K] and w into y [M, N]; `after`: what the kernels add."""
    target, as_is = architecture(x), decomposition == "f8_mma"
    by_bits = None
    if decomposition == "bitplane_popc" or decomposition is None and x_dtype in QUANTISED:
        by_bits = gpu_bits.chosen(w, target, x_dtype, x.shape[0], decomposition is not None)
    if as_is:
        _both_f8(x_dtype, w)
    elif x_dtype is not None and by_bits is None:
        _fits_f16(tile.dtype(x_dtype))
    if not x.shape[0]:
        return
    if by_bits is not None:
        assert x_dtype is not None
        held = gpu_bits.planes(w, target, device)
        gpu_bits.product(x, held, y, target, by_bits, tile.dtype(x_dtype), token, **after)
    else:
        gpu.product(x, gpu.tiles(w, target, device, as_is), y, x_dtype=x_dtype, token=token,
                    decomposition=None if as_is else decomposition, **after)


def _both_f8(x_dtype: str | None, w: QuantTensor) -> None:
    of = str(w.codes.dtype) if isinstance(w.codes, tile.Packed) else type(w.codes).__name__
    if x_dtype not in ("f8e4m3", "f8e5m2") or of != x_dtype:
        raise TargetError('"f8_mma" multiplies f8 by f8 of the same type', needs="x_dtype and codes f8e4m3 or f8e5m2",
                          got=f"x_dtype {x_dtype} and codes {of}", try_='x_dtype="f8e4m3" with such weights')


def _fits_f16(x: tile.DType) -> None:
    if not (x.kind == "int" and x.bits <= 8 or x.kind == "float" and x.bits <= 8 and x.exponent_bits <= 5):
        raise TargetError("`mpgemm` on a GPU multiplies activations as f16", got=str(x),
                          needs="i2 to i8, or floats of at most 8 bits and 5 of exponent",
                          try_='x_dtype="i8", or x on the CPU')
