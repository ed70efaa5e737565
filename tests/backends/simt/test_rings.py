"""A few kernels of `python -m tests.fuzz_rings`."""
from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests import rings
from tests.fuzz_rings import examine, misjudged
from tests.rings import Program, Ring, Step

READ = Program((Ring("f16", (32, 64), 3, 2, (0, 0), True),), (
    Step("copy"), Step("commit"), Step("copy", block=1, place=1), Step("commit"),
    Step("for", body=(Step("read", how="gather"), Step("copy", block=2, place=2), Step("commit")))), 5)


@pytest.mark.parametrize(("seed", "target"), [(2, "cuda:sm_80"), (4, "hip:gfx950")])
def test_random_rings(seed: int, target: str) -> None:
    assert examine(seed, target) == ""


def needed() -> tuple[Program, Sequence[Step]]:
    """The program with what it lacks, and its loop."""
    program = rings.repaired(READ)
    assert program is not None and rings.lack(program) is None
    return program, next(s.body for s in program.steps if s.name == "for")


def test_what_a_ring_needs_is_what_the_tutorial_writes() -> None:
    """One wait and one barrier, which serves the copy, too."""
    program, body = needed()
    assert [s.name for s in body] == ["wait", "barrier", "read", "copy", "commit"] and body[0].pending == 1
    assert program.steps[-1].name == "wait"


@pytest.mark.parametrize("changed", [0, 1])
def test_a_mistake_in_it_is_found(changed: int) -> None:
    program, body = needed()
    wrong = rings.mistaken(program, body[changed])
    assert rings.lack(wrong) and misjudged(wrong, "cuda:sm_80") == ""
