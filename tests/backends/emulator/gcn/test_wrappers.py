"""Every wrapper of AMD's prelude, as the assembly that clang makes of it, does what the emulator's does."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.emulator.gcn import texts
from tests.backends.emulator.gcn.tiers import arguments, needs_clang, on_assembly, on_cpu, outputs

pytestmark = needs_clang
ARCHS = ("gfx90a", "gfx942", "gfx950")
COMMON, OWN = texts.common(), {arch: texts.own(arch) for arch in ARCHS}


def compare(arch: str, kernels: dict[str, str], name: str) -> None:
    text = texts.HEADER + "".join(kernels.values())
    args = arguments(name, text, np.random.default_rng(1))
    for got, want in zip(outputs(on_assembly(text, arch), name, args), outputs(on_cpu(text), name, args), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("arch", ARCHS)
def test_wrapper(arch: str, name: str) -> None:
    compare(arch, COMMON, name)


@pytest.mark.parametrize(("arch", "name"), [(arch, name) for arch in ARCHS for name in OWN[arch]])
def test_wrapper_of_a_processor(arch: str, name: str) -> None:
    compare(arch, OWN[arch], name)
