"""AMD's f32 exponentials, as the assembly that clang makes of them."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.emulator.gcn import texts
from tests.backends.emulator.gcn.tiers import needs_clang, on_assembly, outputs

pytestmark = needs_clang
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 2.3e38, 88.8, 128, 1e-45, -1e-30, -160, 1, -1,
                    127], np.float32)
TINY = np.finfo(np.float32).tiny


def computed(name: str, x: np.ndarray) -> np.ndarray:
    body = f"  tl::st<1>(o, t, tl::vec<float, 1>{{tl::{name}(tl::ld<1>(a, t, tl::op(1))[0])}}, tl::op(2));"
    text = texts.HEADER + texts.kernel(name, "tl::gptr<const float> a, tl::gptr<float> o", body)
    found = []
    for block in x.reshape(-1, 64):
        with np.errstate(all="ignore"):
            found.append(outputs(on_assembly(text, "gfx942"), name, [block, np.zeros(64, np.float32)])[1])
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_exponentials_are_right_to_a_unit_and_special_values_exact(name: str) -> None:
    """The instruction may be off by one unit; here it is rounded. Where it lies in the binade above the result, a half
    of its own unit is a whole one."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-87, 88.7, 640), rng.standard_normal(320), rng.uniform(88.6, 88.7228, 64),
                        rng.uniform(-104, -87, 48), SPECIAL]).astype(np.float32)
    got = computed(name, x)
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
        want = exact.astype(np.float32)
    ordinary = np.isfinite(want) & (want >= TINY)
    np.testing.assert_array_equal(got[~ordinary], np.where(want < TINY, 0, want)[~ordinary])
    error = np.abs(got[ordinary].astype(np.longdouble) - exact[ordinary]) / np.spacing(want[ordinary])
    assert error.max() <= 1.25
    assert got[x == 0].tolist() == [1, 1]
