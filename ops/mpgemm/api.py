"""Products with quantised weights: y = act(x @ W.T + bias) + residual, where W never lies in memory as floats."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import finalize

import numpy as np

import tilelang as tile
from tilelang.args import allocator, empty_like
from tilelang.errors import TargetError
from tilelang.jit import current_target
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
    made = _products.get(id(w))
    if made is None:
        made = _products[id(w)] = {}
        finalize(w, _products.pop, id(w), None)
    call = (_kind(x), bias is not None and _kind(bias), residual is not None and _kind(residual), activation,
            out_dtype, x_dtype, x_group, decomposition, current_target())
    product = made.get(call)
    if product is None:
        if len(made) >= MANY:
            made.clear()
        product = made[call] = _prepared(x, w, bias, activation, residual, out_dtype, x_dtype, x_group, decomposition)
    return product(x, w, bias, residual)


_products: dict[int, dict[Any, Callable[..., Any]]] = {}
"""What runs a product, by the identity of its weight, as in `pack`, and what else the way depends on."""
MANY = 64
"""Kinds of calls that are remembered of a weight: rows of x are one of them."""


def _kind(tensor: Any) -> tuple[Any, ...]:
    """What checks and plans ask of a tensor."""
    return (type(tensor), getattr(tensor, "dtype", None), getattr(tensor, "shape", None),
            getattr(tensor, "device", None))


def _prepared(x: Any, w: QuantTensor, bias: Any, activation: str | None, residual: Any, out_dtype: Any,
              x_dtype: str | None, x_group: str, decomposition: str | None) -> Callable[..., Any]:
    """What computes y of such x, w, bias and residual; it keeps none of them."""
    check(x, w.shape, bias, residual, activation, out_dtype)
    x_dtype, token = check_options(x_dtype, x_group, decomposition), x_group == "token"
    if isinstance(w.codes, RowParts):
        return partial(_parts, out_dtype=out_dtype, activation=activation, x_dtype=x_dtype, x_group=x_group,
                       decomposition=decomposition)
    (n, k), shape = w.shape, tuple(x.shape[:-1])
    m = math.prod(shape)
    dt = dtype_named(x.dtype)
    empty = allocator(x, (*shape, n), dt if out_dtype is None else dtype_named(out_dtype))
    matrix = len(shape) == 1
    after = [name for name, there in (("bias", bias is not None), ("residual", residual is not None),
                                      ("added", bool(w.corrections))) if there]
    run = _run(x, w, m, dt, after, activation, x_dtype, token, decomposition)

    def product(x: Any, w: QuantTensor, bias: Any, residual: Any) -> Any:
        y = empty(x)
        flat = x if matrix else x.reshape(m, k)
        others = [] if bias is None else [bias]
        if residual is not None:
            others.append(residual if matrix else residual.reshape(m, n))
        if w.corrections:
            others.append(added(flat, w))
        run(flat, w, y if matrix else y.reshape(m, n), *others)
        return y
    return product


def _run(x: Any, w: QuantTensor, m: int, dt: tile.DType, after: list[str], activation: str | None,
         x_dtype: str | None, token: bool, decomposition: str | None) -> Callable[..., None]:
    """What computes y [m, N] of x [m, K], `w` and what `after` names."""
    device = str(getattr(x, "device", "cpu"))
    if tile.on_gpu(x) and (decomposition in GPU or decomposition is None and repackable(w)):
        def on_a_gpu(x: Any, w: QuantTensor, y: Any, *others: Any) -> None:
            on_gpu.product(x, w, y, x_dtype, token, decomposition, device, activation=activation,
                           **dict(zip(after, others, strict=True)))
        return on_a_gpu
    if device != "cpu" and decomposition not in (None, BLOCKS):
        raise TargetError("`mpgemm` on a GPU does not have this decomposition", needs=", ".join((*GPU, BLOCKS)),
                          got=str(decomposition), try_="leave it out, or put x on the CPU")
    if decomposition in GPU and decomposition not in DECOMPOSITIONS:
        raise TargetError(f"`{decomposition}` is a decomposition for GPUs", got=decomposition,
                          needs=f"one of {', '.join(DECOMPOSITIONS)}", try_="leave it out, or put x on a GPU")
    chosen = plan(x_dtype or dt, w, m, decomposition)
    if not m:
        return lambda *_: None
    if chosen.decomposition != BLOCKS:
        run = on_cpu.product(chosen, panels(w), m, activation, x_dtype, token, after)
        return lambda x, w, y, *others: run(x, y, *others)

    def in_blocks(x: Any, w: QuantTensor, y: Any, *others: Any) -> None:
        stored = x if w.permutation is None else x[:, w.permutation]
        if x_dtype is not None:
            stored = on_cpu.rounded(stored, w, tile.dtype(x_dtype), token)
        blocks.product(stored, w, y, ACT=activation, **dict(zip(after, others, strict=True)))
    return in_blocks


def _parts(x: Any, w: QuantTensor, bias: Any, residual: Any, out_dtype: Any, **how: Any) -> Any:
    """The product with each kind of rows, put in its place."""
    assert isinstance(w.codes, RowParts)
    if w.parameters() or w.permutation is not None or w.corrections:
        raise TargetError("`mpgemm` cannot scale or correct rows of several kinds together", needs="only `codes`",
                          got=str(w), try_="give each part its own parameters and corrections")
    y = empty_like(x, (*x.shape[:-1], w.shape[0]), dtype_named(x.dtype if out_dtype is None else out_dtype))
    stored = np.arange(w.shape[0]) if w.codes.rows is None else np.asarray(w.codes.rows)
    start = 0
    for part in w.codes.parts:
        at = stored[start:start + part.shape[0]]
        y[..., at] = mpgemm(x, part, None if bias is None else bias[at], out_dtype=out_dtype,
                            residual=None if residual is None else residual[..., at], **how)
        start += part.shape[0]
    return y
