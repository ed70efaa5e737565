"""Checking a kernel without a device: its own GPU text in the emulator, on arguments drawn from its signature."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilelang import targets
from tilelang.args import empty_like
from tilelang.bound import Bound
from tilelang.errors import Loc
from tilelang.ir.core import Dim, Op
from tilelang.ir.dtypes import DType
from tilelang.jit import Kernel
from tilelang.lang.kernel import Param
from tilelang.passes.meaning import walked
from tilelang.reproduce import kept
from tilelang.testing import numbers, tensors

RAGGED = (149, 77, 101, 59, 131)
"""Extents that no power of two divides, another for each dimension."""


@dataclass(frozen=True)
class Place:
    """An operation of the user's kernel: its name, and where it stands."""

    name: str
    loc: Loc | None


@dataclass
class Found:
    """One kind of mistake at one place (or pair of places): how often it was met, and the first time in words."""

    kind: str
    places: tuple[Place, ...]
    message: str
    where: str
    count: int = 1

    def render(self) -> list[str]:
        """The report, with the user's lines."""
        out = [f"{self.kind}: {self.message}"]
        for n, place in enumerate(self.places):
            out += [f"  {'and' if n else 'by'} `{place.name}`", *(place.loc.render() if place.loc else [])]
        return [*out, f"  first with {self.where}; met {self.count} times"]


@dataclass
class Checked:
    """What `check` found, with a file that shows it again, and the counters by (file, line) of its first case."""

    cases: list[str] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    file: Path | None = None
    counters: dict[tuple[str, int], Any] = field(default_factory=dict)


def sizes(kernel: Kernel, fixed: Mapping[str, int], short: Collection[Dim] = ()) -> Iterator[dict[str, int]]:
    """Extents for every dimension name of tensors that are drawn: whole blocks, ragged, and nearly none; `fixed` ones
    stay.

    A dimension is long where it is one of the last two of a tensor; those before are batches. `short` ones are walked
    one by one: they have more indices than a loop has stages, and few.
    """
    specs = [p.tensor.dims for p in kernel.params if p.kind == "tensor" and not _left_out(p)]
    names = list(dict.fromkeys(d for dims in specs for d in dims if isinstance(d, str)))
    long = {d for dims in specs for d in dims[-2:]}
    line = max(map(len, specs), default=0) <= 1

    def extents(long_: Callable[[int], int], short_: int, batch: int) -> dict[str, int]:
        return {d: batch if d not in long else short_ if d in short else long_(i) for i, d in enumerate(names)} \
            | dict(fixed)
    yield extents(lambda i: 2048 if line else 192, 8, 2)
    yield extents(lambda i: (1900 if line else 0) + RAGGED[i % len(RAGGED)], 5, 3)
    yield extents(lambda i: 1 + i % 3, 1, 1)


def _left_out(p: Param) -> bool:
    """Whether it is an output that is not made unless it is given."""
    return p.optional and p.tensor.mode == "out"


def drawn(kernel: Kernel, rng: np.random.Generator, shape: Mapping[str, int], dtypes: Mapping[str, DType],
          consts: Mapping[str, Any], gaps: bool = False) -> tuple[Bound, dict[str, Any]]:
    """A call with random arguments whose dimensions have these extents, and its scalars by name."""
    inputs, scalars = tensors(kernel, rng, dtypes, shape, gaps=gaps, indices=True), numbers(kernel, rng)
    outs = {p.name: empty_like(None, tuple(shape[d] if isinstance(d, str) else d for d in p.tensor.dims), dt)
            for p in kernel.params  # no input need tell the type of an output
            if p.kind == "tensor" and p.tensor.mode == "out" and not _left_out(p)
            if (dt := dtypes.get(p.tensor.dtype) if isinstance(p.tensor.dtype, str) else p.tensor.dtype)}
    return Bound(kernel, (), {**inputs, **outs, **scalars, **consts}), scalars


def shapes_of(kernel: Kernel, consts: Mapping[str, Any], dtypes: Mapping[str, DType],
              extents: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The `sizes` for these constants, of which dimensions that are walked one by one are short: a kernel of the
    smallest tells which those are."""
    fixed = {**kernel.sized(consts), **extents}
    *_, least = sizes(kernel, fixed)
    bound, _ = drawn(kernel, np.random.default_rng(0), least, dtypes, consts)
    found = walked(bound.kernel.trace(bound.types(aligned=True), bound.consts))
    yield from sizes(kernel, fixed, [d for d, blocks in found.items() if blocks == {1}])


def check(kernel: Kernel, target: str, consts: Mapping[str, Any] | None = None,
          dtypes: Mapping[str, DType] | None = None, extents: Mapping[str, int] | None = None) -> Checked:
    """Runs the kernel's text for a target such as "cuda:sm_80" in the emulator, on random arguments of several
    shapes, the ragged ones with gaps between rows, under every order of threads. Raises what calls raise, but for
    CheckError and AssertFailed, which are findings."""
    from tilelang.backends.emulator.execute import observe
    from tilelang.backends.emulator.run import POLICIES
    name = targets.check(target, runs=False).removeprefix(targets.EMULATE)
    dtypes = dtypes or {}
    out, rng, known = Checked(), np.random.default_rng(0), dict[Any, Found]()
    for number, shape in enumerate(shapes_of(kernel, consts or {}, dtypes, extents or {})):
        bound, scalars = drawn(kernel, rng, shape, dtypes, consts or {}, gaps=number == 1)
        code = targets.lowered(bound.kernel.trace(bound.types(aligned=True), bound.consts), name)
        case = ", ".join(f"{k}={v}" for k, v in {**shape, **scalars}.items()) or "its arguments"
        out.cases.append(case)
        arrays, shapes, strides = bound.memory()
        code = code.suited(arrays, shapes, strides)
        results = observe(code.tile, code.rendered, arrays, shapes, strides)
        for policy, result in zip(POLICIES, results, strict=True):
            for f in result.findings:
                places = tuple(_place(code.rendered.ops[i]) for i in (f.op, f.other_op) if i >= 0)
                if (key := (f.kind, places)) in known:
                    known[key].count += 1
                else:
                    known[key] = Found(f.kind, places, f.message, f"{case}, threads in {policy} order")
                    out.file = out.file or kept(code.tile, targets.EMULATE + name, f"{f.kind}: {f.message}", arrays)
            if not number:
                counters = targets.by_line(result.counters, code.rendered.ops)
        out.counters = out.counters or counters
    out.found = list(known.values())
    return out


def _place(op: Op) -> Place:
    return Place(op.name, op.loc)
