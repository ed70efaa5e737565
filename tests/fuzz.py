"""A fuzz campaign: `python -m tests.fuzz SECONDS`. Stops at the first difference between the interpreter and machine
code, shrinks it, and writes a runnable reproducer."""
from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from tests.backends.cpu.native import native
from tests.strategies import functions
from tilelang.ir.core import Function
from tilelang.passes.meaning import difference

REPRODUCER = '''"""Found by the fuzzer: {found}"""
import numpy as np

from tests.backends.cpu.native import native
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference

TEXT = """
{text}"""


def test_reproducer() -> None:
    fn = parse(TEXT)
    assert difference(fn, native(fn), np.random.default_rng(0)) == ""


if __name__ == "__main__":
    test_reproducer()
'''


def check(fn: Function) -> str:
    """What is wrong with the machine code of `fn`; empty if nothing is."""
    return difference(fn, native(fn), np.random.default_rng(0))


def main(seconds: float) -> int:
    """Runs random functions for about `seconds`; 1 if one of them failed."""
    end, count, last = time.monotonic() + seconds, 0, ("", "")

    @settings(max_examples=50, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))
    @given(functions())
    def batch(fn: Function) -> None:
        nonlocal count, last
        count += 1
        try:
            found = check(fn)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
        if found:
            last = found, str(fn)
            raise AssertionError(found.split(";")[0][:40])
    while time.monotonic() < end:
        try:
            batch()
        except BaseException as error:
            if not last[0] or isinstance(error, KeyboardInterrupt):
                raise
            path = Path("fuzz_reproducer.py")
            path.write_text(REPRODUCER.format(found=last[0].replace('"', "'"), text=last[1]))
            print(f"after {count} functions: {last[0]}\n\n{last[1]}\nwritten to {path}: python -m {path.stem}")
            return 1
    print(f"{count} random functions, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
