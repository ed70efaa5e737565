"""A fuzz campaign: `python -m tests.fuzz [SECONDS [part of a target]]`. Stops at the first difference between the
interpreter, machine code and emulated GPU text under all checks, shrinks it, and writes a runnable reproducer. With a
target, such as `hip`, text is for those GPUs alone that have it in their names."""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.backends.cpu.native import native
from tests.backends.simt.emulated import GPUS, emulated
from tests.search import search
from tests.strategies import functions
from tilelang.ir.core import Function
from tilelang.passes.cse import cse
from tilelang.passes.dce import dce
from tilelang.passes.driver import run_passes
from tilelang.passes.fold import fold
from tilelang.passes.licm import licm
from tilelang.passes.meaning import difference

REPRODUCER = '''"""Found by the fuzzer: {found}"""
from tests.fuzz import check
from tilelang.ir.parser import parse

TEXT = """
{text}"""


def test_reproducer() -> None:
    assert check(parse(TEXT), "{target}") == ""


if __name__ == "__main__":
    test_reproducer()
'''


EXACT = (fold, cse, licm, dce)
"""Passes that keep every bit."""


def check(fn: Function, target: str = "cpu") -> str:
    """What is wrong with the code of `fn` for a target, or with what "passes" make of it; empty if nothing is."""
    if target == "passes":
        return difference(fn, run_passes(fn, None, EXACT, check=1), np.random.default_rng(0), exact=True, wild=True)
    code: Callable[[list[Any]], None] = native(fn) if target == "cpu" else emulated(fn, target)
    return difference(fn, code, np.random.default_rng(0), trials=4 if target == "cpu" else 3, wild=True)


def main(seconds: float, pattern: str = "") -> int:
    """Runs random functions for about `seconds`, on the CPU and on targets whose names contain `pattern`; 1 if one of
    them failed, 2 if there is no such target."""
    targets = [target for target in GPUS if pattern in target]
    if not targets:
        print(f"no target has {pattern!r} in its name: {', '.join(GPUS)}", file=sys.stderr)
        return 2

    def examine(fn: Function) -> tuple[str, str, str] | None:
        number, gpu = divmod(len(str(fn)), 2)  # the same when it is shrunk
        for target in ("passes", "cpu", *([targets[number % len(targets)]] if gpu else [])):
            try:
                found = check(fn, target)
            except Exception as error:
                found = f"{type(error).__name__}: {error}".splitlines()[0]
            if found:
                return f"{target}: {found}", str(fn), target
        return None
    count, failed = search(seconds, functions(old_values=False), examine)
    if failed:
        found, text, target = failed
        path = Path("fuzz_reproducer.py")
        path.write_text(REPRODUCER.format(found=found.replace('"', "'"), text=text, target=target), encoding="utf-8")
        print(f"after {count} functions: {found}\n\n{text}\nwritten to {path}: python -m {path.stem}")
        return 1
    print(f"{count} random functions, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, *sys.argv[2:3]))
