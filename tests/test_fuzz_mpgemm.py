"""The fuzzer of quantised products draws everything: each type of weights with each decomposition on each target."""
from __future__ import annotations

import random
from itertools import product

from tests.cases import EMULATED
from tests.fuzz_mpgemm import ACTIVATIONS, HOSTS, TYPES, decompositions, draw, types
from tilelang.ops.mpgemm.checks import GPU
from tilelang.ops.mpgemm.on_cpu import WHOLE
from tilelang.ops.mpgemm.plan import DECOMPOSITIONS, QUANTISED

ALL = {(dtype, how, target) for target in (*HOSTS, *EMULATED) for how in decompositions(target)
       for dtype in types(target, how)}
EXACT = ("int_dot", "bitplane_popc", "lut_weight")
"""Decompositions of whole numbers alone."""


def test_every_type_decomposition_and_target_is_drawn() -> None:
    """With activations that the decomposition takes."""
    rng, missing = random.Random(0), set(ALL)
    assert {how for _, how, _ in ALL} == {*DECOMPOSITIONS, *GPU} and set(EXACT) < set(WHOLE)
    assert set(product(TYPES, DECOMPOSITIONS, HOSTS)) < ALL
    for _ in range(200_000):
        case = draw(rng, 0.5)
        assert (case.dtype, case.how, case.target) in ALL
        if case.how not in EXACT or case.x_dtype in QUANTISED:
            missing.discard((case.dtype, case.how, case.target))
        if not missing:
            break
    assert not missing
    assert {draw(rng).x_dtype for _ in range(2000)} >= set(ACTIVATIONS)
