"""No signed integer of an emitted text overflows by C's operators: compilers for GPUs may take it that none does, and
those of the language wrap. The emulator's own flags let them wrap, so that it would not show."""
from __future__ import annotations

import subprocess
import sys

from tests.ir.op_examples import everywhere, example

COMPUTE = "add sub mul fma neg abs floordiv mod shl shr arange reduce scan dot dot4 for gather grid".split()
TRAP = ("-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error")
RUN = f"""if True:
    import sys
    import numpy as np
    from tests.backends.simt.emulated import emulated
    from tests.ir.op_examples import example
    from tilelang.backends.emulator import build
    from tilelang.passes.meaning import difference
    build.KERNEL_FLAGS = tuple(f for f in build.KERNEL_FLAGS if f != "-fwrapv") + {TRAP!r}
    for key in sys.argv[1:]:
        print(key, flush=True)
        fn = example(key)
        assert difference(fn, emulated(fn), np.random.default_rng(1), trials=2) == ""
    print("done")
"""


def test_integers_wrap_by_what_the_text_says() -> None:
    """A child dies of the first that does not."""
    keys = [key for key in everywhere() if key.split(".")[0] in COMPUTE and any(
        v.dtype.kind == "int" and v.dtype.bits >= 32 for op in example(key).walk() if op.name != "const"
        for v in op.results)]
    assert {"add.i64", "sub.i32", "mul.i64", "scan.custom", "dot.i8"} <= set(keys)
    done = subprocess.run([sys.executable, "-c", RUN, *keys], capture_output=True, text=True, timeout=600)
    last = done.stdout.split()[-1:]
    assert done.returncode == 0 and last == ["done"], (last, done.stderr[-2000:])
