"""Calls on GPUs of both kinds, against drivers without a device that run each launch in the emulator from its raw
arguments.

What a real driver and device do with the same calls is not shown here.
"""
from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.simt.fake import REGISTERS, FakeDriver, on_device
from tilelang import errors
from tilelang.backends.cuda import occupancy as cuda
from tilelang.backends.cuda.driver import MAX_GRID_X
from tilelang.backends.hip import occupancy as hip
from tilelang.backends.hip.driver import MAX_THREADS_X
from tilelang.backends.simt.start import MAX_GRID_Y
from tilelang.jit import Kernel

ARCH = {"cuda": "cuda:sm_80", "hip": "hip:gfx942"}


def scale_fn(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], by: tile.f32, add: tile.i16,
             BM: tile.Const = 16, BN: tile.Const = 32):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    v = tile.load(x, (m * BM, n * BN), (BM, BN)) * by + add.to(tile.f32)
    tile.store(y, (m * BM, n * BN), v)


def persistent_fn(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "N"]):
    for i in tile.persistent(tile.cdiv(x.shape[0], 64)):
        tile.store(y, i * 64, tile.load(x, i * 64, 64) + 1)


def counted_fn(x: tile.InOut[tile.f32, "N"], blocks: tile.i32):
    p = tile.grid(blocks)
    tile.store(x, p * 32, tile.load(x, p * 32, 32) + 1)


def unpack_fn(x: tile.Tensor[tile.u3, "M N"], y: tile.Out[tile.i32, "M N"]):
    m = tile.grid(x.shape[0])
    for n in tile.range(0, x.shape[1], 32):
        tile.store(y, (m, n), tile.load(x, (m, n), (None, 32)).to(tile.i32), (None, 32))


def negate_fn(x: tile.Tensor[tile.f8e4m3, "N"], y: tile.Out[tile.f8e4m3, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 64))
    tile.store(y, p * 64, (-tile.load(x, p * 64, 64).to(tile.f32)).to(tile.f8e4m3))


def test_host_arrays_go_to_the_device_and_back(gpu: FakeDriver) -> None:
    x = np.arange(33 * 70, dtype=np.float32).reshape(33, 70)
    kernel = Kernel(scale_fn)
    with tile.target(gpu.kind):
        y = kernel(x[:, 3:], by=2, add=-5)
    np.testing.assert_array_equal(y, x[:, 3:] * 2 - 5)
    (launch,) = gpu.launches
    assert launch.name == "scale_fn_kernel" and launch.device == 0 and launch.stream == 0
    assert launch.grid == (math.ceil(33 / 16) * math.ceil(67 / 32), 1, 1)
    given = launch.numbers()
    assert (given["x_n0"], given["x_n1"], given["x_s0"], given["x_s1"]) == (33, 67, 70, 1)
    assert (given["by"], given["add"]) == (2.0, -5) and given["x"] % 16 == x[:, 3:].ctypes.data % 16
    assert gpu.library.fake_current() == (-1 if gpu.kind == "cuda" else 0)


def test_gaps_of_an_output_keep_what_they_hold(gpu: FakeDriver) -> None:
    x, whole = np.ones((20, 40), np.float32), np.full((20, 64), 9, np.float32)
    with tile.target(gpu.kind):
        Kernel(scale_fn)(x, whole[:, 5:45], by=3.0, add=0)
    assert (whole[:, 5:45] == 3).all() and (whole[:, :5] == 9).all() and (whole[:, 45:] == 9).all()


@pytest.mark.parametrize("n", [1, 64, 1000, 64 * 100])
def test_persistent_grids_have_a_program_for_each_resident_block(gpu: FakeDriver, n: int) -> None:
    x = np.arange(n, dtype=np.int32)
    kernel = Kernel(persistent_fn)
    with tile.target(gpu.kind):
        np.testing.assert_array_equal(kernel(x), x + 1)
    (launch,) = gpu.launches
    blocks, _ = cuda.resident_blocks(86, launch.block[0], REGISTERS, 0) if gpu.kind == "cuda" else \
        hip.resident_blocks(64 << 10, launch.block[0], REGISTERS, 0)
    workers = 13 * blocks
    assert launch.numbers()["workers"] == workers and launch.grid[0] == min(workers, math.ceil(n / 64))


def test_packed_tensors_travel_as_bytes(gpu: FakeDriver) -> None:
    codes = np.random.default_rng(0).integers(0, 8, (5, 50))
    with tile.target(ARCH[gpu.kind]):
        y = Kernel(unpack_fn)(tile.Packed.from_codes(codes, tile.u3, 157))
    np.testing.assert_array_equal(y, codes)
    assert gpu.launches[0].numbers()["x_s0"] == 157


def test_nothing_is_launched_for_nothing(gpu: FakeDriver) -> None:
    with tile.target(gpu.kind):
        assert Kernel(scale_fn)(np.zeros((0, 5), np.float32), by=1.0, add=0).shape == (0, 5)
    assert not gpu.launches


@pytest.mark.parametrize("number", [0, 1])
def test_tensors_on_a_device_run_there_on_its_stream(gpu: FakeDriver, number: int) -> None:
    kernel, x = Kernel(scale_fn), torch.randn(40, 33)
    for _ in range(3):
        y = kernel(on_device(x, number), by=2.0, add=1)
        assert y.get_device() == number
        torch.testing.assert_close(torch.Tensor(y.numpy()), x * 2 + 1, rtol=0, atol=0)
    assert [(r.device, r.stream) for r in gpu.launches] == [(number, 7000 + number)] * 3
    assert gpu.launches[0].numbers()["x"] == x.data_ptr() and gpu.library.fake_loaded() == 1


def test_repeats_take_the_short_way_and_still_see_what_differs(gpu: FakeDriver,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, long_way = Kernel(scale_fn), []
    real = Kernel._call
    monkeypatch.setattr(Kernel, "_call", lambda self, *a: long_way.append(1) or real(self, *a))
    base = torch.randn(200, 300)

    def call(x: torch.Tensor, by: float = 2.0, add: Any = 1) -> int:
        before, out = len(long_way), torch.empty(x.shape)
        kernel(on_device(x), on_device(out), by, add)
        assert torch.equal(out, x * by + int(add))
        return len(long_way) - before
    assert [call(base), call(base), call(base, 3.5), call(base, 0.5, -7), call(base.clone())] == [1, 0, 0, 0, 0]
    assert [call(base[:100]), call(base[:1]), call(base)] == [0, 0, 0]  # another shape, and back
    assert [call(base[:, ::2]), call(base[:, ::2])] == [1, 0]  # strides
    assert [call(base[:, 1:]), call(base[:, 1:])] == [1, 0]  # alignment of the address
    assert [call(base, np.float32(0.1), np.int16(3)), call(base, 1e100)] == [0, 0]  # the latter is infinite in f32
    x = on_device(base)
    for bad in (2.5, 1 << 20):
        with pytest.raises(errors.ArgumentDType):
            kernel(x, on_device(torch.empty(200, 300)), 1.0, bad)
    loaded = gpu.library.fake_loaded()
    with pytest.raises(errors.ArgumentDType):
        kernel(x.double(), on_device(torch.empty(200, 300)), 1.0, 1)
    assert gpu.library.fake_loaded() == loaded <= 4
    copy = base.clone()
    kernel(x, x, 2.0, 1)  # in place: the input is read from a copy made before
    assert torch.equal(base, copy * 2 + 1)
    launch = gpu.launches[-1].numbers()
    assert launch["y"] == base.data_ptr() != launch["x"]


def test_a_repeated_call_does_nothing_but_launch(gpu: FakeDriver) -> None:
    """So that it may be captured in a graph: no memory, no copies, no synchronisation."""
    gpu.library.fake_enter(0)
    kernel, x, y = Kernel(scale_fn), on_device(torch.randn(40, 33)), on_device(torch.empty(40, 33))
    kernel(x, y, 2.0, 1)
    before = gpu.library.fake_other_calls()
    for i in range(5):
        kernel(x, y, float(i), i)
    assert before > 0 and gpu.library.fake_other_calls() == before and len(gpu.launches) == 6


def test_small_floats_take_the_short_way(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = Kernel(negate_fn), torch.randn(70).to(torch.float8_e4m3fn)
    first = kernel(on_device(x))
    monkeypatch.setattr(Kernel, "_call", None)
    for y in (first, kernel(on_device(x)), kernel(on_device(x.clone()))):
        assert y.dtype is x.dtype and torch.equal(y.view(torch.uint8) + 0,
                                                    (-x.float()).to(x.dtype).view(torch.uint8))


def test_the_grid_follows_a_scalar(gpu: FakeDriver) -> None:
    kernel, x = Kernel(counted_fn), torch.zeros(1024)
    for blocks in (1, 3, 3, 32, 1):
        kernel(on_device(x), blocks)
    assert [r.grid[0] for r in gpu.launches] == [1, 3, 3, 32, 1]
    wanted = sum((torch.arange(1024) < 32 * b).float() for b in (1, 3, 3, 32, 1))
    assert torch.equal(x, wanted)


def flagged_fn(x: tile.InOut[tile.f32, "N"], negate: tile.i1, by: tile.bf16):
    p = tile.grid(tile.cdiv(x.shape[0], 32))
    v = tile.load(x, p * 32, 32) * by.to(tile.f32)
    tile.store(x, p * 32, tile.where(negate, -v, v))


def test_scalars_that_python_cannot_write(gpu: FakeDriver) -> None:
    kernel = Kernel(flagged_fn)
    for negate, by in ((True, 1.0), (False, -0.0), (False, 0.0), (True, 1.00390625), (True, 1.0), (False, 3)):
        x = torch.ones(40)
        kernel(on_device(x), negate, by)
        wanted = torch.tensor(float(by)).bfloat16().float().item() * (-1 if negate else 1)
        assert x.tolist() == [wanted] * 40 and math.copysign(1, x[0].item()) == math.copysign(1, wanted)
    with pytest.raises(errors.ArgumentDType):
        kernel(on_device(torch.ones(40)), 7, 1.0)


def test_the_context_is_switched_only_where_another_is_current(gpu: FakeDriver) -> None:
    gpu.library.fake_enter(0)
    kernel, x = Kernel(scale_fn), torch.zeros(16, 32)
    for number in (0, 1, 0):
        kernel(on_device(x, number), by=1.0, add=1)
    assert [r.device for r in gpu.launches] == [0, 1, 0]
    assert gpu.library.fake_depth() == 1 and gpu.library.fake_current() == 0


def test_threads_do_not_mix_their_arguments(gpu: FakeDriver) -> None:
    gpu.emulate = False
    kernel = Kernel(scale_fn)
    tensors = [(torch.zeros(8 * i, 32), torch.zeros(8 * i, 32)) for i in range(1, 5)]

    def work(i: int) -> None:
        x, y = tensors[i]
        for n in range(200):
            kernel(on_device(x), on_device(y), float(i), n)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seen: dict[int, list[int]] = {i: [] for i in range(4)}
    for launch in gpu.launches:
        given = launch.numbers()
        i = int(given["by"])
        assert (given["x"], given["y"]) == tuple(t.data_ptr() for t in tensors[i])
        assert given["x_n0"] == 8 * (i + 1) and launch.grid[0] == math.ceil(8 * (i + 1) / 16)
        seen[i].append(int(given["add"]))
    assert all(numbers == list(range(200)) for numbers in seen.values())


def test_code_for_what_is_aligned_takes_nothing_else(gpu: FakeDriver) -> None:
    """And code for what is not leaves it to that, in any order."""
    gpu.emulate = False
    base = torch.zeros(4096, dtype=torch.int32)
    ways = [base[1:1001], base[2:1002], base[:1000], base[:2000:2], base[:999], base[1:2]]
    texts = []
    for order in (ways, ways[::-1]):
        kernel = Kernel(persistent_fn)
        for _ in range(2):
            for x in order:
                kernel(on_device(x), on_device(torch.zeros(len(x), dtype=torch.int32)))
        texts.append([launch.text for launch in gpu.launches[-len(ways):]])
    assert texts[0] == texts[1][::-1] and len(set(texts[0])) > 1


def test_what_the_driver_refuses_is_said_at_repeats_too(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.emulate = False
    gpu.library.fake_enter(0)
    kernel, x, y = Kernel(scale_fn), on_device(torch.ones(16, 32), 1), on_device(torch.ones(16, 32), 1)
    kernel(x, y, 1.0, 0)
    launch, question = (getattr(gpu.names, n) for n in ("launch", "current"))
    monkeypatch.setattr(Kernel, "_call", None)
    for name, code in ((launch, 700), (question, 201), (launch, 1054)):
        gpu.fail(name, code)
        with pytest.raises(errors.TargetError, match=f"{name} failed(.|\\n)*error {code}"):
            kernel(x, y, 1.0, 0)
        gpu.fail("", 0)
        assert gpu.library.fake_current() == 0 and gpu.library.fake_depth() == 1
    kernel(x, y, 1.0, 0)
    assert [launch.device for launch in gpu.launches] == [1, 1]


class CudaArray:
    """What CuPy's arrays show of themselves."""

    def __init__(self, array: Any, number: int = 0) -> None:
        self.array, self.number = array, number

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number


def test_arrays_with_the_cuda_interface(gpu: FakeDriver) -> None:
    x, y = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32), np.zeros((20, 30), np.float32)
    kernel = Kernel(scale_fn)
    kernel(CudaArray(x.T, 1), CudaArray(y, 1), 2.0, 0)
    np.testing.assert_array_equal(y, x.T * 2)
    assert gpu.launches[0].device == 1 and gpu.launches[0].stream == 0
    assert gpu.launches[0].numbers()["x_s1"] == 20
    with pytest.raises(errors.ArgumentCount, match="pass the outputs"):
        kernel(CudaArray(x), by=1.0, add=0)


@pytest.mark.parametrize("other", [on_device(torch.zeros(4, 4), 1), torch.zeros(4, 4), np.zeros((4, 4), np.float32)])
def test_tensors_on_different_devices_are_refused(gpu: FakeDriver, other: Any) -> None:
    with pytest.raises(errors.ArgumentDevice, match=r"x on cuda:0, y on (cuda:1|cpu)"):
        Kernel(scale_fn)(on_device(torch.zeros(4, 4)), other, 1.0, 0)
    assert not gpu.launches


@pytest.mark.parametrize("name", ["cpu", "reference", "emulate:cuda:sm_80"])
def test_other_targets_do_not_reach_device_memory(gpu: FakeDriver, name: str) -> None:
    with tile.target(name), pytest.raises(errors.ArgumentDevice, match="are on cuda:0"):
        Kernel(scale_fn)(on_device(torch.zeros(4, 4)), by=1.0, add=0)


def test_the_environment_chooses(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, fresh_config: None) -> None:
    monkeypatch.setenv("TILELANG_TARGET", gpu.kind)
    x = np.ones((4, 4), np.float32)
    assert (Kernel(scale_fn)(x, by=2.0, add=1) == 3).all() and len(gpu.launches) == 1


def wide_fn(x: tile.InOut[tile.f32, "N"], rows: tile.i32, columns: tile.i32):
    m, n = tile.grid(rows, columns)
    tile.store(x, (m + n) * 32, tile.load(x, (m + n) * 32, 32) + 1)


PRIME = (1 << 31) - 1


@pytest.mark.parametrize(("rows", "columns"), [
    (1, 1), (1 << 26, 1), (3, (1 << 26) - 1), (1 << 20, 1 << 20), (3000, 6 * 10**9 // 3000), ((1 << 24) - 1, 1),
    (1 << 24, 3), (MAX_GRID_Y, (1 << 26) - 1), (PRIME, 1), (MAX_GRID_Y, PRIME)])
def test_a_grid_has_exactly_its_programs(gpu: FakeDriver, rows: int, columns: int) -> None:
    gpu.emulate = False
    kernel, x = Kernel(wide_fn), on_device(torch.zeros(64))
    if gpu.kind == "hip" and PRIME in (rows, columns):  # the widest has 2^32 threads
        with pytest.raises(errors.TargetError, match="too many programs"):
            kernel(x, rows, columns)
        return
    kernel(x, rows, columns)
    (x, y, z), threads = gpu.launches[0].grid, gpu.launches[0].block[0]
    widest = MAX_GRID_X if gpu.kind == "cuda" else MAX_THREADS_X // threads
    assert x * y == rows * columns and x <= widest and 1 <= y <= MAX_GRID_Y and z == 1


def test_an_impossible_grid_is_refused(gpu: FakeDriver) -> None:
    gpu.emulate = False
    kernel, x = Kernel(wide_fn), on_device(torch.zeros(64))
    for _ in range(2):
        kernel(x, 1, 1)
        for rows, columns in ((PRIME, MAX_GRID_Y + 2), (PRIME, PRIME)):
            with pytest.raises(errors.TargetError, match="too many programs"):
                kernel(x, rows, columns)
    assert len(gpu.launches) == 2
