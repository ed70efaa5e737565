"""Products with quantised weights: y = act(x @ W.T + bias) + residual, where W never lies in memory as floats."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.errors import TargetError
from tilelang.ops.common import rows
from tilelang.ops.mpgemm import blocks, on_cpu, on_gpu
from tilelang.ops.mpgemm.checks import GPU, check, check_options, check_weight, dtype_named
from tilelang.ops.mpgemm.corrections import added
from tilelang.ops.mpgemm.pack import panels, repackable
from tilelang.ops.mpgemm.plan import BLOCKS, DECOMPOSITIONS, plan
from tilelang.quant import QuantTensor, RowParts


def mpgemm(x: Any, w: QuantTensor, bias: Any = None, activation: str | None = None, residual: Any = None,
           out_dtype: Any = None, x_dtype: str | None = None, x_group: str = "token",
           decomposition: str | None = None) -> Any:
    """act(x [..., K] @ w [N, K].T + bias [N]) + residual [..., N].

    `x` is f32, f16 or bf16. Without `x_dtype` its values are multiplied in f32. With `x_dtype` ("i2" to "i8", bipolar
    "s1" to "s7", floats of 3 to 8 bits such as "f8e4m3") it is quantised on the way in: q = x / s rounded, with
    s = max |x| / (the largest q) of each token, or of each group of the weight's columns where `x_group` is "group";
    "s1" takes the mean of |x| instead. Decompositions of integers ("int_dot", "bitplane_popc", "lut_act_i8",
    "lut_weight") sum integer q times codes exactly within a group; others, which the model may take to be faster, in
    f32. Corrections of `w` still multiply x itself. `activation` is None, "gelu", "relu" or "silu". The result has
    `out_dtype`, by default that of x.

    `decomposition` overrides the choice of `tilelang.ops.mpgemm.plan.plan`. The first product with a weight repacks
    it, except for "dequant_dot"; the repacked weight is kept as long as `w` lives, and made anew where torch's tensors
    were written; NumPy's arrays must stay as they are. "dequant_dot" runs everywhere and is the only one for vectors
    of a codebook and for codes of more than 8 bits; it multiplies in f32, or on a GPU in f16 or bf16 where x has that
    type.

    On a GPU the decompositions are those of `tilelang.ops.mpgemm.gpu_plan`: weights become f16 in registers (entries
    of codebooks are rounded to it), and x becomes f16 with a scale for each row (f32 x becomes two f16).
    "bitplane_popc" multiplies bit planes of integers, exactly; it is chosen for bipolar x, and where it is cheap
    (sm_80 to sm_90a). "f8_mma", which must be named, multiplies x and W of the same f8 type as they are (sm_89,
    sm_90a, gfx950): the sum of a group has as few bits as these instructions keep, sums of groups are f32.

    Under autograd x, bias and residual have gradients: dx = dz @ w in the same blocks as "dequant_dot", where
    quantised x counts as x itself. The weight has none.

    Raises TypeError for arguments of another kind, ValueError for those that do not fit, TargetError for compositions
    without a kernel."""
    check_weight(x, w)
    check(x, w.shape, bias, residual, activation, out_dtype)
    x_dtype = check_options(x_dtype, x_group, decomposition)
    flat, n = rows(x), w.shape[0]
    device = str(getattr(x, "device", "cpu"))
    if isinstance(w.codes, RowParts):
        return _parts(x, w, bias, residual, y_dtype=out_dtype, activation=activation, x_dtype=x_dtype,
                      x_group=x_group, decomposition=decomposition)
    dt = dtype_named(x.dtype)
    out = dt if out_dtype is None else dtype_named(out_dtype)
    y = empty_like(x, (flat.shape[0], n), out)
    if residual is not None:
        residual = rows(residual)
    if tile.on_gpu(x) and (decomposition in GPU or decomposition is None and repackable(w)):
        on_gpu.product(flat, w, y, x_dtype, x_group == "token", decomposition, device, bias=bias, residual=residual,
                       activation=activation, added=added(flat, w) if w.corrections else None)
        return y.reshape(*x.shape[:-1], n)
    if device != "cpu" and decomposition not in (None, BLOCKS):
        raise TargetError("`mpgemm` on a GPU does not have this decomposition", needs=", ".join((*GPU, BLOCKS)),
                          got=str(decomposition), try_="leave it out, or put x on the CPU")
    if decomposition in GPU and decomposition not in DECOMPOSITIONS:
        raise TargetError(f"`{decomposition}` is a decomposition for GPUs", got=decomposition,
                          needs=f"one of {', '.join(DECOMPOSITIONS)}", try_="leave it out, or put x on a GPU")
    chosen = plan(x_dtype or dt, w, flat.shape[0], decomposition)
    if not flat.shape[0]:
        return y.reshape(*x.shape[:-1], n)
    after = {"bias": bias, "residual": residual, "added": added(flat, w) if w.corrections else None}
    if chosen.decomposition == BLOCKS:
        stored = flat if w.permutation is None else flat[:, w.permutation]
        if x_dtype is not None:
            stored = on_cpu.rounded(stored, w, tile.dtype(x_dtype), x_group == "token")
        blocks.product(stored, w, y, ACT=activation, **after)
    else:
        on_cpu.product(chosen, flat, panels(w), y, activation, x_dtype, x_group == "token", **after)
    return y.reshape(*x.shape[:-1], n)


def _parts(x: Any, w: QuantTensor, bias: Any, residual: Any, y_dtype: Any, **how: Any) -> Any:
    """The product with each kind of rows, put in its place."""
    assert isinstance(w.codes, RowParts)
    if w.parameters() or w.permutation is not None or w.corrections:
        raise TargetError("`mpgemm` cannot scale or correct rows of several kinds together", needs="only `codes`",
                          got=str(w), try_="give each part its own parameters and corrections")
    y = empty_like(x, (*x.shape[:-1], w.shape[0]), dtype_named(x.dtype) if y_dtype is None else dtype_named(y_dtype))
    stored = np.arange(w.shape[0]) if w.codes.rows is None else np.asarray(w.codes.rows)
    start = 0
    for part in w.codes.parts:
        at = stored[start:start + part.shape[0]]
        y[..., at] = mpgemm(x, part, None if bias is None else bias[at], how["activation"],
                            None if residual is None else residual[..., at], y_dtype, how["x_dtype"], how["x_group"],
                            how["decomposition"])
        start += part.shape[0]
    return y
