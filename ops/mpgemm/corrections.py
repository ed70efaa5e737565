"""What corrections of a quantised weight add to its product: entries of their own, and low rank."""
from __future__ import annotations

from typing import Any
from weakref import finalize

import numpy as np

import tilelang as tile
from tilelang.args import empty_like, is_torch
from tilelang.ops.matmul import matmul
from tilelang.quant import QuantTensor, Sparse
from tilelang.quant.nodes import integers_of, values_of


@tile.kernel
def sparse_kernel(x: tile.Tensor[tile.f32, "M K"], starts: tile.Tensor[tile.i32, "N1"],
                  columns: tile.Tensor[tile.i32, "Z"], values: tile.Tensor[tile.f32, "Z"],
                  y: tile.InOut[tile.f32, "M N"], BZ: tile.Const = 64):
    """y += x @ S.T for rows of S as (columns, values) from starts[n] to starts[n + 1]; a column of y for a program."""
    n = tile.grid(y.shape[1])
    begin, end = tile.load(starts, (n,), (1,)).sum(0), tile.load(starts, (n + 1,), (1,)).sum(0)
    for m in tile.range(0, x.shape[0]):
        acc = tile.zeros((BZ,), tile.f32)
        for z in tile.range(begin, end, BZ):
            inside = z + tile.arange(BZ) < end
            found = tile.gather(x, (m + tile.zeros((BZ,), tile.i32), tile.load(columns, (z,), (BZ,))), inside)
            acc = tile.fma(found, tile.load(values, (z,), (BZ,)), acc)
        tile.store(y, (m, n), tile.load(y, (m, n), (1, 1)) + acc.sum(0, keepdims=True).reshape(1, 1))


_ready: dict[int, list[tuple[Any, ...]]] = {}  # by identity, as in `pack`


def _prepared(w: QuantTensor) -> list[tuple[Any, ...]]:
    """Of each correction (starts, columns, values), in f32 and to be added, or the factors (a, b)."""
    if id(w) not in _ready:
        out: list[tuple[Any, ...]] = []
        dense = None
        for i, c in enumerate(w.corrections):
            if not isinstance(c, Sparse):
                out.append((np.ascontiguousarray(values_of(c.a), np.float32),
                            np.ascontiguousarray(values_of(c.b), np.float32)))
                continue
            starts, columns, values = integers_of(c.row_starts), integers_of(c.columns), values_of(c.values)
            if c.mode == "replace":
                dense = QuantTensor(w.codes, w.scale, w.zero, w.minimum, w.permutation, w.corrections[:i]).dequantize()
                row = np.repeat(np.arange(w.shape[0]), np.diff(starts))
                values = values - dense[row, columns]
            out.append((starts.astype(np.int32), columns.astype(np.int32), values.astype(np.float32)))
        _ready[id(w)] = out
        finalize(w, _ready.pop, id(w), None)
    return _ready[id(w)]


def added(x: Any, w: QuantTensor, transposed: bool = False) -> Any:
    """x [M, K], floats, times the corrections of `w`, transposed: f32 [M, N], where x is; with `transposed` those of
    the transposed weight: x is [M, N] and the result [M, K]."""
    x = x.float().contiguous() if is_torch(x) else np.ascontiguousarray(x, np.float32)
    y = empty_like(x, (x.shape[0], w.shape[1 if transposed else 0]), tile.f32)
    y[...] = 0
    for part in (_turned(c, w.shape[1]) for c in _prepared(w)) if transposed else _prepared(w):
        arrays = [_moved(a, x) for a in part] if is_torch(x) else part
        if len(part) == 3:
            sparse_kernel(x, *arrays, y)
        else:
            a, b = arrays
            y += matmul.fn(matmul.fn(x, b.T), a.T)
    return y


def _turned(part: tuple[Any, ...], k: int) -> tuple[Any, ...]:
    """The same of the transposed correction, of k rows."""
    if len(part) == 2:
        return part[1].T, part[0].T
    starts, columns, values = part
    order = np.argsort(columns, kind="stable")
    rows = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    return np.searchsorted(columns[order], np.arange(k + 1)).astype(np.int32), rows[order], values[order]


def _moved(array: Any, x: Any) -> Any:
    import torch
    return torch.from_numpy(array).to(x.device)
