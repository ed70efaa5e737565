"""Maps of tensors among the arguments of a launch."""
from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.simt.fake import FakeDriver, on_device
from tilelang import errors
from tilelang.jit import Kernel


def product_fn(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"]):
    m, n = tile.grid(tile.cdiv(a.shape[0], 64), tile.cdiv(b.shape[1], 64))
    acc = tile.zeros((64, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3):
        acc += tile.dot(tile.load(a, (m * 64, k), (64, 64)), tile.load(b, (k, n * 64), (64, 64)))
    tile.store(c, (m * 64, n * 64), acc)


def operands(m: int, n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small integers, of which products are exact, and the product."""
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.integers(-3, 4, shape).astype(np.float16)) for shape in ((m, k), (k, n)))
    return a, b, a.float() @ b.float()


def test_maps_follow_addresses_and_shapes(hopper: FakeDriver) -> None:
    product = Kernel(product_fn)
    for m, n, k in ((128, 72, 200), (64, 64, 64), (128, 72, 200)):
        for seed in range(2):
            a, b, wanted = operands(m, n, k, seed)
            c = on_device(torch.zeros(m, n))
            product(on_device(a), on_device(b), c=c)
            assert torch.equal(c.as_subclass(torch.Tensor), wanted)
    assert all("TL_TENSOR_MAP" in launch.text for launch in hopper.launches)


def test_a_call_with_the_same_tensors_encodes_nothing(hopper: FakeDriver) -> None:
    a, b, _ = map(on_device, operands(64, 64, 64))
    hopper.library.fake_enter(0)
    product, c = Kernel(product_fn), on_device(torch.zeros(64, 64))
    for _ in range(3):
        product(a, b, c=c)
    before = hopper.library.fake_other_calls()
    for _ in range(3):
        product(a, b, c=c)
    assert hopper.library.fake_other_calls() == before


def test_threads_do_not_mix_their_maps(hopper: FakeDriver) -> None:
    hopper.emulate = False
    product, c = Kernel(product_fn), on_device(torch.zeros(64, 64))

    def work(seed: int) -> None:
        ours = [operands(64, 64, 64, seed + n) for n in (0, 1)]
        for _ in range(50):
            for a, b, _ in ours:
                product(on_device(a), on_device(b), c=c)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 2, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(hopper.launches) == 300
    for launch in hopper.launches:
        maps = [v for _, v in launch.args if isinstance(v, np.ndarray)]
        given = launch.numbers()
        assert len(maps) >= 2 and {int(m[0]) for m in maps} <= {given[n] for n in "abc"}
        assert {given["a"], given["b"]} <= {int(m[0]) for m in maps} and all((m[2:4] == 64).all() for m in maps)


def test_arrays_of_the_host_are_mapped_where_they_are_copied_to(hopper: FakeDriver) -> None:
    a, b, wanted = operands(64, 128, 72)
    with tile.target("cuda"):
        np.testing.assert_array_equal(Kernel(product_fn)(a.numpy(), b.numpy()), wanted.numpy())


def test_rows_apart_and_strides_that_no_map_can_say(hopper: FakeDriver) -> None:
    """Rows with gaps are mapped; rows that are all one take the kernel without maps."""
    a, b, wanted = operands(64, 64, 64)
    wide = torch.zeros(64, 128, dtype=torch.float16)
    wide[:, 64:] = a
    c = torch.zeros(64, 64)
    with tile.target("cuda"):
        Kernel(product_fn)(wide[:, 64:], b, c=c)
        assert torch.equal(c, wanted)
        Kernel(product_fn)(a[:1].expand(64, 64), b, c=c)
        assert torch.equal(c, wanted[:1].expand(64, 64))
    assert ["TL_TENSOR_MAP" in launch.text for launch in hopper.launches] == [True, False]


def test_a_map_that_the_driver_refuses_is_said(hopper: FakeDriver) -> None:
    hopper.fail("cuTensorMapEncodeTiled", 1)
    a, b, _ = operands(64, 64, 64)
    with tile.target("cuda"), pytest.raises(errors.TargetError, match="cuTensorMapEncodeTiled failed"):
        Kernel(product_fn)(a.numpy(), b.numpy())
