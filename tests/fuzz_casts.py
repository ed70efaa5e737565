"""Casts of any type to any other, at random: `python -m tests.fuzz_casts SECONDS`. Every pattern of the source (of at
most 16 bits) by machine code or emulated text; stops at the first difference."""
from __future__ import annotations

import sys
import time

import numpy as np

from tests.backends.cpu.native import native
from tests.backends.simt.emulated import GPUS, emulated
from tests.casting import EVERY, check


def main(seconds: float) -> int:
    """Runs for about `seconds`; 1 if a cast is wrong."""
    rng, end, count = np.random.default_rng(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        src = EVERY[rng.integers(len(EVERY))]
        dsts = [EVERY[i] for i in rng.choice(len(EVERY), 6, replace=False)]
        target = ("cpu", *GPUS)[rng.integers(1 + len(GPUS))] if rng.random() < 0.5 else "cpu"
        try:
            check([(src, dst) for dst in dsts], native if target == "cpu" else lambda fn, t=target: emulated(fn, t),
                  None if target == "cpu" else 512)
        except AssertionError as error:
            print(f"after {count} casts, {target}: {error}")
            return 1
        count += len(dsts)
    print(f"{count} casts between random types, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
