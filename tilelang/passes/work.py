"""How much a kernel does for given shapes, counted from its TILE function: for floors, and to rank configurations.

A few programs of the grid are followed through the integers that steer them; loops whose bounds are known then count
as often as they run. Blocks count whole: what a mask switches off has its cost too, so blocks that fit the shapes
badly do more work.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.interpreter import Frame, grid_extents
from tilelang.ir.memory import READS
from tilelang.ir.reduction import DOTS

_COSTLY = {"exp": 8, "exp2": 8, "log": 8, "log2": 8, "sqrt": 4, "rsqrt": 4, "div": 4, "sin": 12, "cos": 12, "tanh": 12,
           "erf": 12, "sigmoid": 10, "pow": 16}
"""Simple operations that one of these takes, roughly."""
_FREE = {"const", "broadcast", "reshape", "permute", "slice", "arange", "concat", "bitcast", "dim", "grid"}
"""Operations that only say how elements are named."""


@dataclass(frozen=True)
class Work:
    """Totals of all `programs`; `largest` is that of one step: bytes of all tiles of the busiest loop body."""

    programs: int
    products: float
    """Operations of `dot`s, two for each multiplication."""
    simple: float
    """Operations on elements."""
    loaded: float
    """Bytes read from tensors, each as often as it is read."""
    stored: float
    largest: int


@dataclass
class _Tally:
    products: float = 0.0
    simple: float = 0.0
    loaded: float = 0.0
    stored: float = 0.0


def work(fn: Function, shapes: Sequence[Sequence[int]], scalars: Sequence[Any] = (), workers: int = 1) -> Work:
    """What `fn` does where its parameters have these shapes (`()` for scalars, whose values are in `scalars` at the
    same places, None for unknown ones). `workers` is what `num_workers` gives."""
    values = list(scalars) or [None] * len(shapes)
    given = [np.zeros((), p.dtype.storage) if v is None else v for p, v in zip(fn.params, values, strict=True)]
    extents = grid_extents(fn, given, shapes, workers)
    programs = math.prod(extents)
    tally = _Tally()
    samples = _sampled(extents) if programs else []
    for sample in samples:
        frame = Frame(sample, workers, lambda _: None)
        for p, value, shape in zip(fn.params, values, shapes, strict=True):
            if isinstance(p.type, TensorType):
                frame.values[p] = np.broadcast_to(np.zeros((), p.dtype.storage), shape)
            elif value is not None:
                frame.values[p] = np.asarray(value)
        _follow(fn.body, frame, tally, 1.0)
    share = programs / max(len(samples), 1)
    return Work(programs, tally.products * share, tally.simple * share, tally.loaded * share, tally.stored * share,
                _largest(fn.body))


def _sampled(extents: Sequence[int]) -> list[tuple[int, ...]]:
    """The first program, one in the middle and the last: along every extent at once."""
    return sorted({tuple(n * part // 2 - (part == 2) for n in extents) for part in range(3)})


def _follow(region: Region, frame: Frame, tally: _Tally, times: float) -> None:
    for op in region.ops:
        known = all(v in frame.values for v in op.operands)
        if op.name == "for":
            _loop(op, frame, tally, times)
        elif op.name == "if" and op.operands[0] in frame.values:
            _follow(op.regions[0 if bool(frame.values[op.operands[0]]) else 1], frame, tally, times)
        elif op.regions:
            share = 0.5 if op.name == "if" else 1.0  # a `while` counts once: nothing says how often it runs
            for inner in op.regions:
                _follow(inner, frame, tally, times * share)
        elif known and op.results and op.effects in ("", "control") and all(
                v.type == TileType((), v.type.dtype) for v in op.results):
            frame.run_op(op)
        else:
            _count(op, tally, times)


def _loop(op: Op, frame: Frame, tally: _Tally, times: float) -> None:
    """The body in the middle turn, as often as the loop runs."""
    body, bounds = op.regions[0], [frame.values.get(v) for v in op.operands[:3]]
    turns = 1
    if all(b is not None for b in bounds):
        lo, hi, step = (int(b) for b in bounds)  # type: ignore[arg-type]
        run = range(lo, hi, max(step, 1))
        turns = len(run)
        if turns:
            frame.values[body.args[0]] = np.asarray(run[turns // 2], op.operands[0].dtype.storage)
    if turns:
        _follow(body, frame, tally, times * turns)


def _count(op: Op, tally: _Tally, times: float) -> None:
    if op.name in DOTS:
        bits = 32 if op.name == "dot_bits" else 1
        tally.products += times * 2 * op.result.tile.size * op.operands[0].shape[-1] * bits
    elif op.name in READS and isinstance(op.operands[0].type, TensorType):
        tally.loaded += times * _bytes(op.result.type)
    elif op.name == "copy_async":
        at = next(i for i, v in enumerate(op.operands) if isinstance(v.type, BufferType))
        buffer, indexed = op.operands[at].type, len(op.operands) - at - 1
        assert isinstance(buffer, BufferType)
        tally.loaded += times * math.prod(buffer.shape[indexed:]) * buffer.dtype.bits / 8
    elif op.name in ("store", "scatter", "atomic") and isinstance(op.operands[0].type, TensorType):
        tally.stored += times * max((_bytes(v.type) for v in op.operands[1:]), default=0)
    elif op.name not in _FREE and op.results and isinstance(op.results[0].type, TileType):
        size = max([r.tile.size for r in op.results] + [v.tile.size for v in op.operands
                                                        if isinstance(v.type, TileType)])
        tally.simple += times * size * _COSTLY.get(op.name, 1)


def _bytes(t: Any) -> int:
    return t.size * t.dtype.bits // 8 if isinstance(t, TileType) else 0


def _largest(region: Region) -> int:
    """Bytes of the tiles that a region makes or carries itself; of its inner regions, the busiest."""
    made = {v: _bytes(v.type) for op in region.ops for v in op.results}
    carried: dict[Value, int] = {v: _bytes(v.type) for v in region.args}
    inner = max((_largest(r) for op in region.ops for r in op.regions), default=0)
    return max(inner, sum(made.values()) + sum(carried.values()))
