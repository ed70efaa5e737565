"""What the order of a grid's programs is worth: `python -m benchmarks.order` counts the blocks of A and B that a
product reads into caches while one program runs on each multiprocessor. Needs a C++ compiler, and no GPU."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.backends.simt.order import Kind, order
from tilelang.backends.cuda.target import target as cuda
from tilelang.backends.hip.target import target as hip

GROUP = 8
GRIDS = ((16, 16), (32, 32), (36, 36), (64, 64), (54, 54), (30, 45), (16, 128))
"""Rows and columns of blocks."""


class Machine(NamedTuple):
    """A GPU, and the order its text asks for with `group=8`."""

    name: str
    multiprocessors: int
    kind: Kind

    def read(self, grid: tuple[int, int], kind: Kind, dies: int) -> float:
        """How many rows of A's blocks and columns of B's a cache reads, in the mean over its waves; each of `dies`
        chips, which take programs in turn, has one."""
        numbers, columns = order(1, *grid, kind), grid[1]
        starts = range(0, len(numbers), self.multiprocessors)
        waves = [numbers[start:start + self.multiprocessors][die::dies] for start in starts for die in range(dies)]
        return float(np.mean([len(np.unique(w // columns)) + len(np.unique(w % columns)) for w in waves if len(w)]))


MACHINES = (Machine("H100, sm_90a", 132, (GROUP, *cuda("cuda:sm_90a").dies)),
            Machine("MI300X, gfx942", 304, (GROUP, *hip("hip:gfx942").dies)),
            Machine("MI355X, gfx950", 256, (GROUP, *hip("hip:gfx950").dies)))


def main() -> None:
    """Prints the table."""
    print(f"| GPU | a cache for | {' | '.join(f'{r} x {c}' for r, c in GRIDS)} |\n|{'---|' * (len(GRIDS) + 2)}")
    for machine in MACHINES:
        for dies in sorted({1, machine.kind[1]}):
            cells = [f"{machine.read(grid, (1, 1, 1), dies):.0f} → {machine.read(grid, machine.kind, dies):.0f}"
                     for grid in GRIDS]
            print(f"| {machine.name} | {'all' if dies == 1 else 'each chip'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
