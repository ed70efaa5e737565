"""Kernels that begin before those before them have ended: where they wait, what the emulator says of accesses before
that, and how they are launched."""
from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.emulator.ptx.tiers import needs_nvrtc
from tests.backends.simt.fake import FakeDriver, on_device
from tests.backends.simt.overlapping import overlap_fn
from tilelang import errors
from tilelang.jit import Kernel

TARGET = "cuda:sm_90a"
overlap = Kernel(overlap_fn)
X, W = np.arange(300, dtype=np.float32), np.full(300, 2, np.float32)


@tile.kernel
def total(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "1"]):
    tile.wait_previous()
    sums = tile.zeros(64)
    for k in tile.range(0, x.shape[0], 64):
        sums += tile.load(x, k, 64)
    tile.store(y, 0, tile.sum(sums))


def calls(text: str) -> list[str]:
    """What of a text touches tensors or orders launches."""
    return re.findall(r"tl::(wait_previous|start_next|ld|st)\b", text)


def test_waits_stand_before_the_first_access_behind_their_place() -> None:
    assert calls(overlap.lower(X, W, target=TARGET).source) == ["start_next", "ld", "wait_previous", "ld", "st"]
    text = total.lower(X, target=TARGET).source
    assert calls(text)[:2] == ["wait_previous", "ld"] and text.index("tl::wait_previous") < text.index("\n  for (")


@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx950"])
def test_other_targets_run_kernels_one_after_the_other(target: str) -> None:
    assert set(calls(overlap.lower(X, W, target=target).source)) == {"ld", "st"}


@pytest.mark.parametrize("target", ["cpu", "reference", f"emulate:{TARGET}", "emulate:cuda:sm_80"])
def test_a_chain(target: str) -> None:
    with tile.target(target):
        y = overlap(overlap(X, W), W)
        assert total(y)[0] == 4 * X.sum()
    np.testing.assert_array_equal(y, 4 * X)


def test_a_load_before_the_wait_of_what_the_launch_before_writes() -> None:
    with tile.target(f"emulate:{TARGET}"):
        y = overlap(X, W)
        with pytest.raises(errors.CheckError, match=r"overlap: `ld` at .*overlapping.py:13: reads, before it waits"):
            overlap(X, y)
        y = overlap(X, W)
        overlap(X, y, EARLY=False)


def test_a_store_before_the_wait_of_what_the_launch_before_reads() -> None:
    @tile.kernel
    def clear(x: tile.InOut[tile.f32, "N"]):
        tile.store(x, tile.grid(tile.cdiv(x.shape[0], 128)) * 128, tile.zeros(128))
        tile.wait_previous()
    x = X.copy()
    with tile.target(f"emulate:{TARGET}"):
        total(x)
        with pytest.raises(errors.CheckError, match=r"overlap: `st` at .*: writes, .* what that one reads"):
            clear(x)


def test_launches_that_overlap_in_turn() -> None:
    """The third may begin while the first still runs, for the second lets it begin before it has waited."""
    with tile.target(f"emulate:{TARGET}"):
        y = overlap(X, W)
        overlap(X, W)
        with pytest.raises(errors.CheckError, match="overlap"):
            overlap(X, y)


def test_waits_are_not_nested() -> None:
    @tile.kernel
    def nested(x: tile.InOut[tile.f32, "N"]):
        if x.shape[0] > 4:
            tile.wait_previous()
    with pytest.raises(errors.UnsupportedSyntax, match="in a loop or a branch"):
        nested.lower(X, target="cpu")


@needs_nvrtc
def test_the_instructions() -> None:
    """SASS's names of griddepcontrol.launch_dependents and .wait."""
    assert re.findall("PREEXIT|ACQBULK", overlap.lower(X, W, target=TARGET).assembly) == ["PREEXIT", "ACQBULK"]


@pytest.mark.parametrize(("major", "minor", "overlapping"), [(9, 0, 3), (8, 6, 0)])
def test_launches_say_that_they_may_overlap(nvidia: FakeDriver, major: int, minor: int, overlapping: int) -> None:
    nvidia.library.fake_device(major, minor, b"")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    kernel = Kernel(overlap_fn)
    for _ in range(3):
        y = kernel(on_device(x), on_device(w))
        assert torch.equal(y.as_subclass(torch.Tensor), x * w)
    assert nvidia.library.fake_overlapping() == overlapping
    assert {(launch.grid, launch.block[1:], launch.stream) for launch in nvidia.launches} == {
        ((3, 1, 1), (1, 1), 7000)}
    if overlapping:
        nvidia.fail("cuLaunchKernelEx", 700)
        with pytest.raises(errors.TargetError, match="error 700"):
            kernel(on_device(x), on_device(w))
