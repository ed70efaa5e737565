"""Random kernels that manage shared memory themselves: `python -m tests.fuzz_rings SECONDS`. Right ones must give the
interpreter's results without a finding; of mistaken ones the emulator must find what a model does (`rings.py`)."""
from __future__ import annotations

import sys
import time
from random import Random

import numpy as np

from tests import rings
from tests.backends.simt.emulated import GPUS, emulated
from tests.fuzz import check
from tilelang.errors import CheckError
from tilelang.passes.meaning import random_inputs
from tilelang.targets import lowered

ASYNCHRONOUS = ("cuda:sm_80", "cuda:sm_90a")
"""Targets whose waits let no more than they say be unfinished, nor less."""


def misjudged(wrong: rings.Program, target: str) -> str:
    """What is wrong with the emulator's verdict on a program with a mistake; empty if nothing is. Code may order what
    the program does not: by copies that are made at once, and by barriers for the compiler's own memory."""
    fn = rings.function(wrong)
    args = random_inputs(fn, np.random.default_rng(0))
    count = wrong.count if wrong.count is not None else args[0].shape[1] % (rings.MOST + 1)
    lack, steps = rings.lack(wrong, [count]), list(rings.all_steps(wrong.steps))
    try:
        emulated(fn, target)(args)
    except CheckError as error:
        unnamed = [f for f in error.findings if rings.FILE not in f]
        return f"no line is named: {unnamed[0]}" if unnamed else "" if lack else f"not so: {error.findings[0]}"
    ring = lack.before.ring if lack and lack.before else None
    crossing = all(s.how in rings.CROSSING for s in steps if s.name == "read" and ring in (None, s.ring))
    copies = {s.line for s in steps if s.name == "copy"}
    ordered = any(op.name == "alloc" and op.attrs["managed"] or op.name == "st" and op.loc and op.loc.line in copies
                  for op in lowered(fn, target).thread.walk())
    return f"not found, with {count} blocks: {lack}" if lack and crossing and not ordered else ""


def examine(seed: int, target: str) -> str:
    """What is wrong with what becomes of a program; empty if nothing is."""
    random = Random(seed)
    program = rings.draw_program(random)
    if program is None:
        return ""
    steps = [s for s in rings.all_steps(program.steps) if s.name in rings.CHANGED]
    wrong = rings.mistaken(program, random.choice(steps))
    return check(rings.function(program), target) or (misjudged(wrong, target) if target in ASYNCHRONOUS else "")


def main(seconds: float, first: int) -> int:
    """Runs for about `seconds` from a seed on; 1 if a program fails."""
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end:
        target = ("cpu", *ASYNCHRONOUS, *GPUS)[seed % (1 + len(ASYNCHRONOUS) + len(GPUS))]
        if found := examine(seed, target):
            print(f"{target}: {found}: python -m {__spec__.name} {seconds} {seed}\n{rings.draw_program(Random(seed))}")
            return 1
        seed += 1
    print(f"{seed - first} kernels with rings, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60,
                  int(sys.argv[2]) if len(sys.argv) > 2 else Random().randrange(1 << 30)))
