"""The f64 functions of compilers without a mathematical library, against many digits."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.backends.emulator.texts import kernel, output, run
from tilelang.backends.emulator.run import Buffer

EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": mpmath.exp, "exp2": lambda x: mpmath.mpf(2) ** x, "log": mpmath.log, "log2": lambda x: mpmath.log(x, 2),
    "sin": mpmath.sin, "cos": mpmath.cos, "tanh": mpmath.tanh, "erf": mpmath.erf}
ULP = {"exp": 1.0, "exp2": 1.0, "log": 1.25, "log2": 1.5, "sin": 2.5, "cos": 2.5, "tanh": 3.0, "erf": 2.0}
"""Largest error in units in the last place of the exact result."""


def soft(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    text = '#include "tl.h"\n#include "tl_elementary.h"\n' + kernel(
        "tl::gptr<const double> a, tl::gptr<double> o", f"""
  const tl::i64 i = p * 64 + t;
  tl::st<1>(o, i, tl::vec<double, 1>{{tl::soft::{name}(tl::ld<1>(a, i, tl::op(1))[0])}}, tl::op(2));""")
    padded = np.zeros(-(-len(x) // 64) * 64)
    padded[:len(x)] = x
    o = output(len(padded), np.float64)
    assert not run(text, [Buffer(padded), o], programs=len(padded) // 64).findings
    return o.array[:len(x)]


def points(name: str) -> np.ndarray[Any, Any]:
    """Arguments of all sizes whose results are normal numbers; those near a multiple of pi/2 are the hardest."""
    rng = np.random.default_rng(0)
    small = 10.0 ** rng.uniform(-300, 0, 100) * rng.choice([-1, 1], 100)
    if name in ("log", "log2"):
        return np.concatenate([np.exp(rng.uniform(-740, 709, 120)), rng.uniform(0.5, 2, 120)])
    if name in ("sin", "cos"):
        sizes = [rng.uniform(-s, s, 100) for s in (1.0, 100.0, 1e6, 2e6, 1e10, 1e22, 1e150, 5e307)]
        near = np.round(rng.uniform(-1e6, 1e6, 200)) * (np.pi / 2)
        return np.concatenate([small, *sizes, near, [5.319372648326541e+255, 6381956970095103.0 * 2.0 ** 797]])
    top = {"exp": 700, "exp2": 1000, "tanh": 25, "erf": 6.5}[name]
    return np.concatenate([small, rng.uniform(-top, top, 120), rng.uniform(-1, 1, 120)])


@pytest.mark.parametrize("name", EXACT)
def test_errors_are_small(name: str) -> None:
    x = points(name)
    got = soft(name, x)
    with mpmath.workprec(300):
        for v, g in zip(x, got, strict=True):
            wanted = EXACT[name](mpmath.mpf(float(v)))
            assert abs(mpmath.mpf(float(g)) - wanted) <= ULP[name] * np.spacing(abs(float(wanted))), v


@pytest.mark.parametrize(("name", "x", "wanted"), [
    ("exp", [np.inf, -np.inf, np.nan, 0, 1e300, -1e300, -745.0], [np.inf, 0, np.nan, 1, np.inf, 0, 5e-324]),
    ("exp2", [np.inf, -np.inf, np.nan, 3, 1024, -1074, -1080], [np.inf, 0, np.nan, 8, np.inf, 5e-324, 0]),
    ("log", [np.inf, -1, np.nan, 0, -0.0, 1], [np.inf, np.nan, np.nan, -np.inf, -np.inf, 0]),
    ("log2", [np.inf, -1, np.nan, 0, 8, 5e-324, 1], [np.inf, np.nan, np.nan, -np.inf, 3, -1074, 0]),
    ("sin", [np.inf, np.nan, 0, -0.0], [np.nan, np.nan, 0, -0.0]),
    ("cos", [-np.inf, np.nan, 0, -0.0], [np.nan, np.nan, 1, 1]),
    ("tanh", [np.inf, -np.inf, np.nan, -0.0], [1, -1, np.nan, -0.0]),
    ("erf", [np.inf, -np.inf, np.nan, -0.0], [1, -1, np.nan, -0.0])])
def test_special_values(name: str, x: list[float], wanted: list[float]) -> None:
    got = soft(name, np.array(x))
    np.testing.assert_array_equal(got, wanted)
    assert (np.signbit(got) == np.signbit(wanted))[~np.isnan(wanted)].all()
