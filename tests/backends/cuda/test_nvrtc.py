"""The CUDA prelude compiles to machine code for every generation; needs no GPU."""
from __future__ import annotations

import pytest

from tests.backends.cuda import wrappers
from tilelang.backends.cuda import nvrtc
from tilelang.errors import TargetError

pytestmark = pytest.mark.skipif(nvrtc.find() is None, reason="nvidia-cuda-nvrtc is not installed")


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_every_wrapper_compiles(arch: str) -> None:
    text = wrappers.text(int(arch[3:].removesuffix("a")))
    compiled = nvrtc.compile(text, arch)
    assert compiled.cubin[:4] == b"\x7fELF"
    assert "warning" not in compiled.log
    assert len(compiled.report) == text.count("TL_KERNEL")
    for name, uses in compiled.report.items():
        assert uses["spill_bytes"] == 0 and uses["registers"] > 0, name
        assert uses["stack_bytes"] == 0 or name.startswith("math_"), name


def test_products_of_four_warps_compile() -> None:
    compiled = nvrtc.compile(wrappers.including(*wrappers.groups().values(), groups=True), "sm_90a")
    assert "warning" not in compiled.log and compiled.report.keys() == wrappers.groups().keys()
    assert not any(uses["spill_bytes"] or uses["stack_bytes"] for uses in compiled.report.values())


@pytest.mark.parametrize(("name", "since"), [(n, m[-1]) for n, m in wrappers.MMA.items() if m[-1] > 75])
def test_a_missing_instruction_is_named(name: str, since: int) -> None:
    older = {80: 75, 89: 80}[since]
    text = '#include "tl.h"\n' + next(k for k in wrappers.matrix(since) if f"TL_KERNEL(mma_{name}," in k)
    with pytest.raises(TargetError, match=f"mma_{wrappers.OF_PIECES.get(name, name)} needs sm_{since}"):
        nvrtc.compile(text, f"sm_{older}")


def test_an_error_shows_the_line() -> None:
    with pytest.raises(TargetError, match=r"kernel.cu\(2\): error.*\n +nonsense here;"):
        nvrtc.compile('#include "tl.h"\nnonsense here;', "sm_80")
