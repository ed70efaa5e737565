"""What differs on NVIDIA's GPUs from tests/backends/simt/test_launch.py."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.simt.fake import FakeDriver, on_device
from tests.backends.simt.test_launch import scale_fn
from tilelang import errors
from tilelang.backends.cuda import driver
from tilelang.jit import Kernel, _target


def big_fn(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 256))
    s = tile.shared((64, 256), tile.f32)  # 64 KB
    tile.store(s, (63, 0), tile.load(x, p * 256, 256), (None, 256))
    tile.barrier()
    tile.store(y, p * 256, tile.gather(s, (tile.full((256,), 63, tile.i32), 255 - tile.arange(256))))


def test_much_shared_memory_is_asked_for(nvidia: FakeDriver) -> None:
    x = np.arange(256, dtype=np.float32)
    with tile.target("cuda"):
        np.testing.assert_array_equal(Kernel(big_fn)(x), x[::-1])
        Kernel(scale_fn)(x.reshape(16, 16), by=1.0, add=0)
    big, small = nvidia.launches
    assert big.shared == big.shared_limit == 64 << 10 and small.shared_limit == 0


def test_each_target_launches_its_own_code(nvidia: FakeDriver) -> None:
    nvidia.emulate = False
    kernel, x, y = Kernel(scale_fn), on_device(torch.zeros(16, 32)), on_device(torch.zeros(16, 32))
    for _ in range(2):
        kernel(x, y, 1.0, 0)
        for _ in range(2):
            with tile.target("cuda:sm_80"):
                kernel(x, y, 1.0, 0)
    assert [launch.text.partition(" for ")[2][:10] for launch in nvidia.launches] == [
        "cuda:sm_86", "cuda:sm_80", "cuda:sm_80"] * 2


@pytest.mark.parametrize(("function", "code", "texts"), [
    ("cuLaunchKernel", 700, ["cuLaunchKernel failed", "CUDA_ERROR_ILLEGAL_ADDRESS: what the driver says", "check"]),
    ("cuModuleLoadData", 209, ["cuModuleLoadData failed", "error 209", "TILELANG_TARGET=cuda"]),
    ("cuMemAlloc_v2", 2, ["cuMemAlloc_v2 failed", "free memory"]),
    ("cuMemcpyDtoH_v2", 710, ["an assertion of a kernel failed"]),
])
def test_error_codes_are_said_in_words(nvidia: FakeDriver, function: str, code: int, texts: list[str]) -> None:
    nvidia.fail(function, code)
    with tile.target("cuda"), pytest.raises(errors.TargetError) as caught:
        Kernel(scale_fn)(np.ones((4, 4), np.float32), by=2.0, add=1)
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize(("capability", "runs", "not_runs"), [
    ((8, 6), ["cuda", "cuda:sm_80", "cuda:sm_86"], ["cuda:sm_89", "cuda:sm_75", "cuda:sm_90a"]),
    ((8, 7), ["cuda", "cuda:sm_86"], ["cuda:sm_89"]), ((9, 0), ["cuda", "cuda:sm_90a"], ["cuda:sm_80"]),
    ((10, 0), ["cuda", "cuda:sm_100a"], ["cuda:sm_90a"]), ((10, 3), [], ["cuda", "cuda:sm_100a"]),
    ((12, 0), ["cuda", "cuda:sm_120a"], ["cuda:sm_100a"]), ((7, 0), [], ["cuda", "cuda:sm_75"]),
])
def test_a_device_runs_its_own_generation(nvidia: FakeDriver, capability: tuple[int, int], runs: list[str],
                                          not_runs: list[str]) -> None:
    nvidia.library.fake_device(*capability, b"")
    for name in runs:
        with tile.target(name):
            Kernel(scale_fn)(np.ones((4, 4), np.float32), by=2.0, add=1)
    assert len(nvidia.launches) == len(runs) and not _target.get()
    for name in not_runs:
        with pytest.raises(errors.TargetError, match="cannot run|not supported"), tile.target(name):
            pass


def test_no_driver_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libno-such-driver.so.1")
    driver.driver.cache_clear()
    for name in ("cuda", "cuda:sm_80"):
        with pytest.raises(errors.TargetError, match="needs the NVIDIA driver") as caught, tile.target(name):
            pass
        assert "emulate:cuda:sm_80" in str(caught.value)
