"""What fuzzers of calls share: cases that follow from a seed, tensors in any memory, and campaigns that end by the
clock and drop from a case that failed what it does not need."""
from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import tilelang as tile
from tests.backends.simt.emulated import GPUS

EMULATED = tuple(f"emulate:{target}" for target in GPUS)
"""GPUs: seconds for each case, so drawn seldom, and small."""
LONGEST = 60
"""Seconds that a case of a GPU may take, or twice what the longest took: none is begun later than that before the
end."""
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
RANKS = {"heads last": 3, "transposed": 2, "every other": 1, "offset": 1, "gaps": 2, "one batch": 1, "one head": 2}
"""Memory in which a tensor of so many dimensions or more may be."""
STRIDES = tuple(RANKS)
DISTINCT = STRIDES[:5]
"""Where elements are their own."""
U = 2.0 ** -24


@dataclass(frozen=True)
class Case:
    """A call of one kind; what else there is to choose follows from the seed and a name."""

    kind: str
    sizes: tuple[int, ...]
    options: tuple[str, ...]
    dtype: str
    target: str
    threads: int
    seed: int

    def pick(self, name: str, choices: Any) -> Any:
        return random.Random(f"{self.seed} {name}").choice(choices)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        return torch.randn(shape, generator=generator)

    def lengths(self, name: str, longest: int) -> list[int]:
        """Of each sequence, with 0, 1 and the longest among them."""
        rng = random.Random(f"{self.seed} {name}")
        return [rng.choice((0, 1, longest, rng.randint(0, longest))) if longest else 0 for _ in range(self.sizes[0])]


def placed(x: torch.Tensor, how: str) -> torch.Tensor:
    """x in memory of another order, or, of "one …", the first of a dimension for all."""
    if how == "heads last":
        return x.swapaxes(1, 2).contiguous().swapaxes(1, 2)
    if how == "transposed":
        return x.swapaxes(-1, -2).contiguous().swapaxes(-1, -2)
    if how in ("one batch", "one head"):
        dim = int(how == "one head")
        return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape)
    if how == "every other":
        view = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)[..., ::2]
    elif how == "gaps":
        view = x.new_full((*x.shape[:-2], 2 * x.shape[-2] + 1, x.shape[-1] + 3), torch.nan)[..., 1::2, 2:-1]
    elif how == "offset":
        view = x.new_full((x.numel() + 5,), torch.nan)[3:3 + x.numel()].view(x.shape)
    else:
        return x
    return view.copy_(x)


def located(case: Case, name: str, x: torch.Tensor) -> torch.Tensor:
    """x in some memory."""
    return placed(x, case.pick(f"strides {name}", ("", *[how for how, rank in RANKS.items() if x.ndim >= rank])))


Check = Callable[[Case], str]
"""What is wrong with a case; "" where all is well."""


def within(case: Case, examined: Check) -> str:
    """`examined` on the case's target, by its threads."""
    before = tile.get_num_threads()
    tile.set_num_threads(case.threads)
    try:
        with tile.target(case.target):
            return examined(case)
    finally:
        tile.set_num_threads(before)


def verdict(check: Check, case: Case) -> str:
    """`check`, with an exception as what is wrong."""
    try:
        return check(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def simplified(check: Check, case: Case, found: str) -> tuple[Case, str]:
    """The case with as few options, sequences and threads as it fails with."""
    for change in [lambda c, n=n: replace(c, options=tuple(x for x in c.options if x != n)) for n in case.options] + [
            lambda c: replace(c, threads=1), lambda c: replace(c, dtype="f32"),
            *(lambda c, n=n: replace(c, sizes=(*c.sizes[:n], 1, *c.sizes[n + 1:])) for n in range(3))]:
        smaller = change(case)
        if smaller != case and (also := verdict(check, smaller)):
            case, found = smaller, also
    return case, found


def campaign(seconds: float, draw: Callable[[random.Random, float], Case], check: Check) -> int:
    """Random cases for about `seconds`; 1 if one of them failed, which is printed."""
    rng, end, done, longest = random.Random(), time.monotonic() + seconds, 0, float(LONGEST)
    while (now := time.monotonic()) < end:
        case = draw(rng, 0.02 if end - now > longest else 0.0)
        if found := verdict(check, case):
            case, found = simplified(check, case, found)
            print(f"after {done} cases: {found}\ncheck({case})")
            return 1
        done += 1
        longest = max(longest, 2 * (time.monotonic() - now)) if case.target in EMULATED else longest
    print(f"{done} random cases, no difference")
    return 0
