"""Programs of a cluster and each other's shared memory: what they mean, how they are launched, what is found."""
from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.emulator.ptx.tiers import needs_nvrtc
from tests.backends.simt.fake import FakeDriver, on_device
from tilelang import errors
from tilelang.backends.cuda import nvrtc
from tilelang.jit import Kernel

TARGET = "cuda:sm_90a"


def swap_fn(x: tile.Tensor[tile.f16, "M N"], y: tile.Out[tile.f16, "M N"], READY: tile.Const = True,
            DONE: tile.Const = True):
    """Blocks of 16 x 64 change places with those of the other program of their cluster."""
    m, n = tile.grid(tile.cdiv(x.shape[0], 16), tile.cdiv(x.shape[1], 64), cluster=(1, 2))
    s = tile.shared((16, 64), tile.f16)
    tile.store(s, (0, 0), tile.load(x, (m * 16, n * 64), (16, 64)))
    other = tile.peer(s, 1 - tile.cluster_rank())
    if READY:
        tile.cluster_barrier()
    tile.store(y, (m * 16, n * 64), tile.load(other, (0, 0), (16, 64)))
    if DONE:
        tile.cluster_barrier()


def total_fn(x: tile.Tensor[tile.i32, "P Q 64"], y: tile.Out[tile.i32, "P Q 2"]):
    """Each program of a cluster of 2 x 3 x 1 adds to two sums of the first one's, which all of them read."""
    p, q, r = tile.grid(x.shape[0], x.shape[1], 1, cluster=(2, 3, 1))
    sums = tile.shared(2, tile.i32)
    tile.store(sums, 0, tile.zeros(2, tile.i32))
    first = tile.peer(sums, 0)
    tile.cluster_barrier()
    tile.atomic_add(first, tile.arange(2), tile.sum(tile.load(x, (p, q, 0), (None, None, 64))) + tile.cluster_rank())
    tile.cluster_barrier()
    tile.store(y, (p, q, 0), tile.load(first, 0, 2), (None, None, 2))
    tile.cluster_barrier()


swap, total = Kernel(swap_fn), Kernel(total_fn)
X = np.arange(32 * 256).reshape(32, 256).astype(np.float16)
SWAPPED = X.reshape(32, 2, 2, 64)[:, :, ::-1].reshape(32, 256)


@pytest.mark.parametrize("target", ["reference", f"emulate:{TARGET}"])
def test_programs_reach_each_others_memory(target: str) -> None:
    x = np.random.default_rng(0).integers(-50, 50, (4, 6, 64)).astype(np.int32)
    with tile.target(target):
        np.testing.assert_array_equal(swap(X), SWAPPED)
        y = total(x)
    sums = x.reshape(2, 2, 2, 3, 64).sum((1, 3, 4)) + 15  # and the numbers 0 to 5
    np.testing.assert_array_equal(y, np.repeat(np.repeat(sums, 2, 0), 3, 1)[..., None].repeat(2, -1))


def line(text: str) -> int:
    lines, first = inspect.getsourcelines(swap_fn)
    return next(first + i for i, x in enumerate(lines) if text in x)


@pytest.mark.parametrize(("consts", "kind", "met"), [
    ({"READY": False}, "race-raw: `ld`", "tile.load(other"),
    ({"DONE": False}, "cluster-lifetime: `ld`", "tile.load(other")])
def test_a_missing_barrier_is_named(consts: dict[str, bool], kind: str, met: str) -> None:
    with tile.target(f"emulate:{TARGET}"), pytest.raises(errors.CheckError) as caught:
        swap(X, **consts)
    assert f"{kind} at {__file__}:{line(met)}" in str(caught.value)


def test_the_interpreter_refuses_barriers_that_one_program_does_not_come_to() -> None:
    @tile.kernel
    def uneven(y: tile.InOut[tile.i32, "2"]):
        p = tile.grid(2, cluster=(2,))
        if p == 0:
            tile.cluster_barrier()
        tile.store(y, p, tile.full(1, 1, tile.i32))
    with pytest.raises(errors.CheckError, match="`cluster_barrier` waits for what no program"):
        uneven.reference(np.zeros(2, np.int32))


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_89", "hip:gfx950"])
def test_other_targets_say_that_they_have_none(target: str) -> None:
    with pytest.raises(errors.TargetError, match="does not support clusters"):
        swap.lower(X, target=target).source


@pytest.mark.parametrize("target", ["reference", f"emulate:{TARGET}"])
def test_grids_are_made_of_whole_clusters(target: str) -> None:
    with tile.target(target), pytest.raises(errors.TargetError, match=r"(?s)whole clusters.*1 x 2.*2 x 3"):
        swap(X[:, :192])


@pytest.mark.parametrize("cluster", [(2,), (3, 3), (0, 1), (1.0, 2)])
def test_clusters_that_no_gpu_has(cluster: tuple[int, ...]) -> None:
    @tile.kernel
    def wrong(y: tile.InOut[tile.i32, "2"]):
        tile.grid(2, 2, cluster=cluster)
    with pytest.raises(errors.VerifyError, match="no such clusters"):
        wrong.lower(np.zeros(2, np.int32), target=TARGET)


def test_a_grid_whose_programs_know_nothing_of_each_other_has_no_clusters() -> None:
    @tile.kernel
    def plain(x: tile.InOut[tile.i32, "N"]):
        p = tile.grid(x.shape[0], cluster=(2,))
        tile.store(x, p, tile.load(x, p, 1) + 1)
    assert "CLUSTER" not in plain.lower(np.zeros(3, np.int32), target=TARGET).source
    for target in ("cpu", "reference", f"emulate:{TARGET}"):
        with tile.target(target):
            plain(x := np.zeros(3, np.int32))
        assert (x == 1).all()


@needs_nvrtc
def test_the_instructions() -> None:
    code = swap.lower(X, target=TARGET)
    ptx = nvrtc.ptx(code.source, "sm_90a")
    assert ".reqnctapercluster 2, 1, 1" in ptx
    found = re.findall(r"mapa\.u64|barrier\.cluster\.\w+\.\w+\.aligned", ptx)
    both = ["barrier.cluster.arrive.release.aligned", "barrier.cluster.wait.acquire.aligned"]
    assert found == ["mapa.u64", *both, *both]
    assert re.findall(r"\b(UCGABAR_\w+|LD\.E[.\w]*)", code.assembly)[:3] == ["UCGABAR_ARV", "UCGABAR_WAIT", "LD.E.128"]


def test_launches_are_of_whole_clusters(hopper: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilelang.backends.cuda.driver.MAX_GRID_X", 5)
    y = Kernel(swap_fn)(on_device(torch.from_numpy(X)))
    np.testing.assert_array_equal(y.as_subclass(torch.Tensor).numpy(), SWAPPED)
    assert [launch.grid for launch in hopper.launches] == [(4, 2, 1)]
