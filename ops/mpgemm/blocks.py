"""Products that make blocks of W[n, k] = scale (value - zero) + minimum where they are used, as operands of `dot`: for
every kind of codes and parameters, x @ W.T and its gradient dy @ W, on a CPU and on GPUs.

Nothing is repacked: codes are read as they are stored, vectors of a codebook (VPTQ, arXiv 2409.17066; AQLM, arXiv
2401.06118) are looked up in memory.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np

import tilelang as tile
from tilelang.ir.packed import Packed
from tilelang.ops.activation import finished
from tilelang.ops.common import dtype_of
from tilelang.ops.matmul import blocks
from tilelang.quant import Parameter, QuantTensor, VectorCodes
from tilelang.quant.nodes import integers_of, to_torch, values_of


@tile.function
def looked_up(stages, tables, rows, columns, VECTOR, COUNT):
    """Sums of entries: `stages` [S, …] has the codes of vectors of VECTOR = (extent, axis), `tables`
    [S, blocks of n, blocks of k, entries, extent] one table for each block of COUNT = (S, bn, bk)."""
    extent, axis = VECTOR
    total = tile.zeros(rows.shape, tile.f32)
    for s in tile.static_range(COUNT[0]):
        stage = tile.full(rows.shape, s, tile.i32)
        vector = (rows // extent, columns) if axis == 0 else (rows, columns // extent)
        code = tile.gather(stages, (stage, *vector)).to(tile.i32)
        total = total + tile.gather(tables, (stage, rows // COUNT[1], columns // COUNT[2], code,
                                             (columns if axis else rows) % extent))
    return total


@tile.function
def parameter_block(values, index, n, k, rows, columns, BN, BK, BLOCK, K):
    """A parameter's entries for the elements at `rows` and `columns`, as `Parameter` defines them; BLOCK is an extent
    (bn, bk), or a number of elements of the flattened matrix (`values` is then [entries, 1])."""
    if isinstance(BLOCK, int):
        return tile.gather(values, ((rows * K + columns) // BLOCK, tile.zeros(rows.shape, tile.i32)))
    if index is None and BLOCK[0] == 1 and BLOCK[1] % BK == 0:
        return tile.broadcast_to(tile.load(values, (n, k // BLOCK[1]), (BN, 1)), (BN, BK))
    if index is None:
        group = columns // BLOCK[1]
    else:
        group = tile.broadcast_to(tile.load(index, (k,), (BK,))[None, :], (BN, BK))
    return tile.gather(values, (rows // BLOCK[0], group))


@tile.function
def weight_block(codes, stages, tables, scale, zero, minimum, indices, n, k, K, BN, BK, FORM):
    """The block [BN, BK] of W at (n, k), in f32."""
    rows = tile.broadcast_to((n + tile.arange(BN))[:, None], (BN, BK))
    columns = tile.broadcast_to((k + tile.arange(BK))[None, :], (BN, BK))
    if codes is not None:
        w = tile.load(codes, (n, k), (BN, BK)).to(tile.f32)
    else:
        w = looked_up(stages, tables, rows, columns, FORM[0], FORM[1])
    if zero is not None:
        w = w - parameter_block(zero, indices[1], n, k, rows, columns, BN, BK, FORM[3], K)
    if scale is not None:
        w = w * parameter_block(scale, indices[0], n, k, rows, columns, BN, BK, FORM[2], K)
    if minimum is not None:
        w = w + parameter_block(minimum, indices[2], n, k, rows, columns, BN, BK, FORM[4], K)
    return w


@tile.kernel
def blocks_kernel(
    x: tile.Tensor[tile.T, "M K"], y: tile.Out[tile.Y, "M N"],
    codes: tile.Tensor[tile.C, "N K"] = None, stages: tile.Tensor[tile.D, "S A B"] = None,
    tables: tile.Tensor[tile.f32, "S R C E V"] = None,
    scale: tile.Tensor[tile.f32, "SR SC"] = None, zero: tile.Tensor[tile.f32, "ZR ZC"] = None,
    minimum: tile.Tensor[tile.f32, "LR LC"] = None, scale_index: tile.Tensor[tile.i32, "K"] = None,
    zero_index: tile.Tensor[tile.i32, "K"] = None, minimum_index: tile.Tensor[tile.i32, "K"] = None,
    bias: tile.Tensor[tile.P, "N"] = None, residual: tile.Tensor[tile.Q, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BM: tile.Const, BN: tile.Const, BK: tile.Const, FORM: tile.Const, OPERAND: tile.Const, ACT: tile.Const,
):
    """A block of act(x @ W.T + added + bias) + residual for each program; what is multiplied is OPERAND, sums f32."""
    (M, K), N = x.shape, y.shape[1]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK):
        w = weight_block(codes, stages, tables, scale, zero, minimum, (scale_index, zero_index, minimum_index),
                         n * BN, k, K, BN, BK, FORM)
        acc += tile.dot(tile.load(x, (m * BM, k), (BM, BK)).to(OPERAND), w.to(OPERAND).T)
    out = finished(acc, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
    tile.store(y, (m * BM, n * BN), out.to(y.dtype))


@tile.kernel
def blocks_backward_kernel(
    dy: tile.Tensor[tile.T, "M N"], dx: tile.Out[tile.Y, "M K"],
    codes: tile.Tensor[tile.C, "N K"] = None, stages: tile.Tensor[tile.D, "S A B"] = None,
    tables: tile.Tensor[tile.f32, "S R C E V"] = None,
    scale: tile.Tensor[tile.f32, "SR SC"] = None, zero: tile.Tensor[tile.f32, "ZR ZC"] = None,
    minimum: tile.Tensor[tile.f32, "LR LC"] = None, scale_index: tile.Tensor[tile.i32, "K"] = None,
    zero_index: tile.Tensor[tile.i32, "K"] = None, minimum_index: tile.Tensor[tile.i32, "K"] = None,
    added: tile.Tensor[tile.f32, "M K"] = None, *,
    BM: tile.Const, BN: tile.Const, BK: tile.Const, FORM: tile.Const, OPERAND: tile.Const,
):
    """A block of dy @ W + added for each program, from the same blocks of W."""
    (M, N), K = dy.shape, dx.shape[1]
    m, k = tile.grid(tile.cdiv(M, BM), tile.cdiv(K, BK))
    acc = tile.zeros((BM, BK), tile.f32)
    for n in tile.range(0, N, BN):
        w = weight_block(codes, stages, tables, scale, zero, minimum, (scale_index, zero_index, minimum_index),
                         n, k * BK, K, BN, BK, FORM)
        acc += tile.dot(tile.load(dy, (m * BM, n), (BM, BN)).to(OPERAND), w.to(OPERAND))
    out = acc if added is None else acc + tile.load(added, (m * BM, k * BK), (BM, BK))
    tile.store(dx, (m * BM, k * BK), out.to(dx.dtype))


@dataclass(frozen=True, eq=False)
class Source:
    """What blocks of a weight are made of, where x is: the tensors of the kernels by name, and FORM. `group`: columns
    that share every parameter in each row, or 0."""

    tensors: dict[str, Any]
    form: tuple[Any, ...]
    group: int


_sources: dict[tuple[int, str], Source] = {}  # by identity, as in `pack`


def source(w: QuantTensor, device: str = "cpu") -> Source:
    """`w` as kernels read it; kept as long as `w` lives. Corrections and the permutation are not part of it."""
    key = id(w), device
    if key not in _sources:
        _sources[key] = _read(w, device)
        finalize(w, _sources.pop, key, None)
    return _sources[key]


def _read(w: QuantTensor, device: str) -> Source:
    tensors: dict[str, Any] = {}
    vector, count = (1, 1), (1, 1, 1)
    if isinstance(w.codes, VectorCodes):
        tensors["stages"], tensors["tables"], vector, count = _vectors(w.codes)
    else:
        assert isinstance(w.codes, Packed)
        tensors["codes"] = w.codes
    form: list[Any] = [vector, count]
    lengths: set[int] = set()
    for name in ("scale", "zero", "minimum"):
        p: Parameter | None = getattr(w, name)
        form.append(1 if p is None else p.block)
        if p is None:
            continue
        values = p.dense().astype(np.float32)
        tensors[name] = values.reshape(-1, 1) if isinstance(p.block, int) else values
        if p.index is not None:
            tensors[f"{name}_index"] = integers_of(p.index).astype(np.int32)
        lengths.add(0 if isinstance(p.block, int) or p.block[0] != 1 or p.index is not None else p.block[1])
    if device != "cpu":
        tensors = {name: to_torch(a, device) for name, a in tensors.items()}
    return Source(tensors, tuple(form), int(np.gcd.reduce(sorted(lengths))) if lengths and 0 not in lengths else 0)


def _vectors(codes: VectorCodes) -> tuple[Any, Any, tuple[int, int], tuple[int, int, int]]:
    """(codes of all stages, tables of all stages, VECTOR, COUNT) of stages whose vectors are equally long."""
    tables = [values_of(t).astype(np.float32) for t in codes.tables]
    tables = [t if t.ndim == 4 else t[None, None] for t in tables]
    entries = max(t.shape[2] for t in tables)
    stacked = np.stack([np.pad(t, ((0, 0), (0, 0), (0, entries - t.shape[2]), (0, 0))) for t in tables])
    stages = np.stack([s.codes() for s in codes.stages])
    stages = stages.astype(np.uint8 if entries <= 256 else np.uint16 if entries <= 65536 else np.int32)
    return stages, stacked, (stacked.shape[-1], codes.axis), (len(tables), *(codes.block or codes.shape))


def _sizes(m: int, s: Source, n: int, k: int, gpu: bool) -> dict[str, int]:
    """BM, BN and BK; BK divides the groups where it can, so that a parameter is one number for a row of a block."""
    bm, bn, bk = blocks(m, n, k, gpu=gpu)
    if s.group:
        bk = next((b for b in range(bk, 7, -8) if s.group % b == 0), bk)
    return {"BM": bm, "BN": bn, "BK": bk}


def _operand(x: Any) -> tile.DType:
    """What is multiplied: halves on a GPU where x is, f32 elsewhere."""
    dt = dtype_of(x)
    return dt if tile.on_gpu(x) and dt.bits == 16 else tile.f32


def product(x: Any, w: QuantTensor, y: Any, **after: Any) -> None:
    """act(x [M, K] @ W.T + added + bias) + residual into y [M, N]; columns of x in the order in which W's codes are
    stored. On a GPU weights are rounded to x's dtype where that has 16 bits."""
    s = source(w, str(getattr(x, "device", "cpu")))
    blocks_kernel(x, y, **s.tensors, **after, FORM=s.form, OPERAND=_operand(x),
                  **_sizes(x.shape[0], s, *w.shape, gpu=tile.on_gpu(x)))


def backward(dy: Any, w: QuantTensor, dx: Any, added: Any = None) -> None:
    """dy [M, N] @ W + added into dx [M, K]; columns in the order in which W's codes are stored."""
    s = source(w, str(getattr(dy, "device", "cpu")))
    blocks_backward_kernel(dy, dx, **s.tensors, added=added, FORM=s.form, OPERAND=_operand(dy),
                           **_sizes(dy.shape[0], s, *w.shape, gpu=tile.on_gpu(dy)))
