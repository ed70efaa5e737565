"""Runs a lowered kernel's text in the emulator on the arguments of a call."""
from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from tilelang.backends.clike.rendered import Rendered
from tilelang.backends.emulator.run import (
    POLICIES,
    Buffer,
    Counter,
    Finding,
    Output,
    Policy,
    Result,
    TensorMap,
    Touched,
    load,
)
from tilelang.errors import CheckError
from tilelang.ir.control import assertion_failed, printed
from tilelang.ir.core import BufferType, Function, Op, TensorType
from tilelang.ir.interpreter import count_programs, grid_extents

WORKERS = 2
"""Programs that a persistent grid is told to have."""
OVERLAPPING = 4
"""Launches before one that overlaps them that are remembered."""
_before: list[tuple[Touched, ...]] = []  # of the last launch; before it, those that it did not wait for to begin


def observe(fn: Function, rendered: Rendered, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
            strides: Sequence[Sequence[int]], policies: Sequence[Policy] = POLICIES,
            output: Output | None = None) -> Iterator[Result]:
    """Launches `rendered`, the text of TILE function `fn`, once under each policy.

    `arrays` are the tensors (NumPy; bytes of packed ones) and scalars; each run starts from the same contents and the
    last run's are kept. `output` gets what the first run prints.
    """
    global _before
    program = load(rendered.text)
    earlier = _before if rendered.overlaps else []
    programs = count_programs(fn, grid_extents(fn, arrays, shapes, WORKERS))
    outputs = [i for i, p in enumerate(fn.params) if isinstance(p.type, TensorType) and p.type.writable]
    before = {i: arrays[i].copy() for i in outputs}
    for number, policy in enumerate(policies):
        for i, old in before.items():
            arrays[i][...] = old
        args = arguments(fn, rendered, arrays, shapes, strides)
        result = program.launch(
            rendered.name, args, programs=programs, threads=rendered.threads, shared_bytes=rendered.shared_bytes,
            policy=policy, ports=rendered.ports, output=None if number else output,
            before=[t for launch in earlier for t in launch] if rendered.overlaps else None,
        ) if programs else Result([], {}, True)
        _before = [*earlier, result.touched][-OVERLAPPING:]
        yield replace(result, findings=[replace(f, message=_named(f.message, fn, rendered)) for f in result.findings])


def _named(message: str, fn: Function, rendered: Rendered) -> str:
    """What the emulator says, with the names of tensors for the numbers of the text's arguments."""
    return re.sub(r"\bargument (\d+)", lambda m: f"`{fn.params[rendered.parameters[int(m[1])].index].name}`", message)


def execute(fn: Function, rendered: Rendered, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
            strides: Sequence[Sequence[int]], policies: Sequence[Policy] = POLICIES) -> dict[int, Counter]:
    """Runs as `observe` does, and prints; gives the counters by operation. Raises CheckError with every finding of
    the first policy that has any, AssertFailed for an assertion of the user."""
    counters: dict[int, Counter] = {}
    for result in observe(fn, rendered, arrays, shapes, strides, policies, partial(_print, rendered.ops)):
        if result.findings:
            _report(result.findings, rendered.ops)
        counters = result.counters
    return counters


def _print(ops: Sequence[Op], number: int, raw: bytes) -> None:
    """Writes what the interpreter would for operation `number`, whose operands' bytes are `raw`."""
    values = []
    for v in ops[number].operands:
        assert isinstance(v.type, BufferType)
        size = prod(v.type.shape) * v.dtype.storage.itemsize
        values.append((np.frombuffer(raw[:size], v.dtype.storage).reshape(v.type.shape), v.dtype))
        raw = raw[size:]
    sys.stdout.write(printed(ops[number].attrs["text"], values) + "\n")  # one call: lines stay whole


def arguments(fn: Function, rendered: Rendered, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
              strides: Sequence[Sequence[int]]) -> list[Any]:
    """What the rendered kernel takes for the arguments of a call."""
    args: list[Any] = []
    for p in rendered.parameters:
        if p.kind == "data":
            t = fn.params[p.index].type
            assert isinstance(t, TensorType)
            args.append(Buffer(arrays[p.index], initialised=t.mode != "out" or t.dtype.packed))
        elif p.kind == "map":
            m = rendered.maps[p.index]
            array = arrays[m.index]
            at = next(i for i, q in enumerate(rendered.parameters) if q.kind == "data" and q.index == m.index)
            args.append(TensorMap(at, tuple(shapes[m.index][d] for d in m.order),
                                  tuple(strides[m.index][d] * array.itemsize for d in m.order), m.boxes,
                                  m.swizzle))
        elif p.kind in ("shape", "stride"):
            args.append(np.int64((shapes if p.kind == "shape" else strides)[p.index][p.axis]))
        else:
            args.append(np.int32(WORKERS) if p.kind == "workers" else np.asarray(arrays[p.index])[()])
    return args


def _report(findings: Sequence[Finding], ops: Sequence[Op]) -> None:
    """Raises what the findings amount to."""
    def place(number: int) -> str:
        op = ops[number]
        return f"`{op.name}`" + (f" at {op.loc.file}:{op.loc.line}" if op.loc else "")
    lines = []
    for f in findings:
        if f.kind == "assertion":
            raise assertion_failed(ops[f.op])
        other = f" and {place(f.other_op)}" if f.other_op >= 0 else ""
        lines.append(f"{f.kind}: {place(f.op)}{other}: {f.message}" if f.op >= 0 else f"{f.kind}: {f.message}")
    raise CheckError(lines)
