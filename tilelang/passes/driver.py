"""Runs a pipeline of passes, and checks each of them.

A pass is a function `name(fn, target) -> fn` in a file of its own. It owns the function it is given: it may change it
in place. Its docstring states what it requires and ensures.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilelang.config import config
from tilelang.errors import ConfigError, Loc, VerifyError
from tilelang.ir.core import Function
from tilelang.ir.specs import verify
from tilelang.ir.text import print_function
from tilelang.passes.meaning import difference

Pass = Callable[[Function, Any], Function]


def exact(step: Pass) -> Pass:
    """Declares that a pass keeps every result to the bit, floats included (NaN for NaN)."""
    step.exact = True  # type: ignore[attr-defined]
    return step


def run_passes(fn: Function, target: Any, pipeline: Sequence[Pass], check: int | None = None,
               dump: str | None = None) -> Function:
    """The function after all passes of `pipeline`, in order; `fn` itself is not changed.

    `check` (TILELANG_CHECK where None): 1 verifies the function before the first and after each pass; 2 also runs it
    before and after each pass on random inputs, but for the code of single threads, which the emulator runs. Both
    raise VerifyError naming the pass and the user's line. `dump` (TILELANG_DUMP where None) is a directory that
    receives the text after each pass, as `<function>/<number>_<pass>.tile`.
    """
    check = config().check if check is None else check
    dump = config().dump if dump is None else dump
    name, fn = fn.name, fn.clone()
    if check:
        verify(fn)
    _dump(fn, dump, name, 0, "input")
    for number, step in enumerate(pipeline, 1):
        before = fn.clone() if check >= 2 else fn
        label = step.__name__
        try:
            fn = step(fn, target)
        except Exception as error:
            error.add_note(f"in pass `{label}` on `{name}`")
            raise
        _dump(fn, dump, name, number, label)
        if check:
            verify(fn, pass_name=label)
        if check >= 2 and not _of_one_thread(fn):
            _compare(before, fn, label, getattr(step, "exact", False))
    return fn


def _of_one_thread(fn: Function) -> bool:
    """Whether this is the code of one of many threads, which only the emulator can run."""
    return any(op.name == "thread_id" for op in fn.body.ops)


def _compare(before: Function, after: Function, label: str, exactly: bool) -> None:
    # A fixed seed: a failure must show again when the user runs the same thing with TILELANG_DUMP.
    found = difference(before, after, np.random.default_rng(0), exactly)
    if found:
        raise VerifyError(f"`{before.name}` changed its meaning", pass_name=label, loc=_place(before, found),
                          needs="the same results" + (" to the bit" if exactly else ""), got=found,
                          try_="set TILELANG_DUMP to a directory and compare the text before and after the pass")


def _place(fn: Function, found: str) -> Loc | None:
    """The last line that writes the tensor that differs, or the function's own."""
    name = found[1:].split("[")[0]
    return next((op.loc for op in reversed(list(fn.walk())) if op.effects == "write" and op.operands[0].name == name),
                fn.loc)


def _dump(fn: Function, directory: str, name: str, number: int, label: str) -> None:
    if directory:
        path = Path(directory) / name / f"{number:02}_{label}.tile"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(print_function(fn, locs=True), encoding="utf-8")
        except OSError as error:
            raise ConfigError("the IR after a pass cannot be written", needs="a directory that files can be made in",
                              got=str(error), try_="unset TILELANG_DUMP, or set it to another directory") from None
