"""The fuzzer for users finds what is wrong, and only that."""
from __future__ import annotations

import subprocess
import sys
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import tilelang as tile
from tests.backends.simt.kernels import matmul
from tilelang import targets
from tilelang.args import numpy_dtype
from tilelang.bound import Bound
from tilelang.ir import codec
from tilelang.ir.interpreter import run
from tilelang.ops.softmax import reference, softmax_kernel
from tilelang.passes.meaning import explained, noise
from tilelang.testing import fuzz


@tile.kernel
def good(x: tile.Tensor[tile.T, "M N"], w: tile.Tensor[tile.u4, "N"], y: tile.Out[tile.T, "M N"], by: tile.f32,
         BM: tile.Const = 4, BN: tile.Const = 16):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    v = tile.load(x, (m * BM, n * BN), (BM, BN)).to(tile.f32)
    tile.store(y, (m * BM, n * BN), (v * by + tile.load(w, (n * BN,), (BN,)).to(tile.f32)).to(y.dtype))


@tile.kernel
def drops_the_tail(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(x.shape[0] // 8 + 1)
    v = tile.load(x, (n * 8,), (8,))
    tile.store(y, (n * 8,), tile.where(n * 8 + tile.arange(8) < 16, v, 0.0))


@tile.kernel
def adds_chosen(index: tile.Tensor[tile.i32, "M"], x: tile.Tensor[tile.f32, "N"], y: tile.InOut[tile.f32, "M"]):
    m = tile.grid(tile.cdiv(index.shape[0], 8)) * 8
    chosen = tile.gather(x, (tile.load(index, (m,), (8,)),))
    tile.store(y, (m,), tile.load(y, (m,), (8,)) + chosen)


def test_compiling_may_take_longer_than_a_deadline() -> None:
    """Hypothesis' default profile allows an example 200 ms, which the first call with new constants may exceed."""
    settings.register_profile("hasty", settings.get_profile(settings.get_current_profile_name()), deadline=1)
    settings.load_profile("hasty")
    fuzz(drops_the_tail, lambda x: np.where(np.arange(len(x)) < 16, x, 0), extents={"N": [3, 16]})


@pytest.mark.parametrize("number", [1, 2])
def test_what_one_test_sets_is_not_for_the_next(number: int) -> None:
    """A page of the documentation asks for five examples, in which a dropped tail may not be found."""
    assert settings.get_current_profile_name() == "tilelang" and settings().max_examples == 100
    settings.register_profile("five", max_examples=5)
    settings.load_profile("five")


def test_a_right_kernel_passes() -> None:
    fuzz(good, lambda x, w, by: x * by + w, consts={"BM": [1, 4, 5]},
         dtypes={"T": [tile.f32, tile.f16, tile.bf16, tile.f8e4m3]})


def test_softmax_passes() -> None:
    def rows(x: Any) -> Any:
        return reference(x) if x.size else np.zeros(x.shape)
    fuzz(softmax_kernel, rows, consts={"BM": [1, 3], "BN": [128]}, dtypes={"T": [tile.f32, tile.bf16]})


def test_a_dropped_tail_is_found_and_shrunk() -> None:
    with pytest.raises(AssertionError, match=r"`drops_the_tail`: y\[16\] is 0.0") as caught:
        fuzz(drops_the_tail, lambda x: x)
    program = str(caught.value).partition("To repeat it:\n")[2]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, (program, run.stderr)
    numbers = [float(x) for x in run.stdout.strip("[]\n").split()]
    assert len(numbers) == 33 and all(numbers[:16]) and not any(numbers[16:])  # the smallest extent that fails


INDEX = {"index": lambda rng, extents: rng.integers(0, extents["N"], extents["M"])}


def test_tensors_hold_what_is_drawn_for_them_and_written_ones_are_compared() -> None:
    extents = {"M": [0, 1, 9], "N": [1, 5]}
    fuzz(adds_chosen, lambda index, x, y: y + x[index], extents=extents, values=INDEX)
    with pytest.raises(AssertionError, match=r"`adds_chosen`: y\[0\] is ") as caught:
        fuzz(adds_chosen, lambda index, x, y: y - x[index], extents=extents, values=INDEX)
    space: dict[str, Any] = {}
    exec(str(caught.value).partition("To repeat it:\n")[2].rpartition("\n")[0], space)
    assert space["index"].tolist() == [0]
    found = float(str(caught.value).split("y[0] is ")[1].split(",")[0])
    assert found == space["y"][0] + space["x"][0]  # what the kernel was called with, not what it left


@pytest.mark.parametrize(("options", "message"), [
    ({"values": {"indices": INDEX["index"]}}, r"values of `adds_chosen`: there is no \['indices'\], only \['index'"),
    ({"extents": {"K": [1]}}, r"extents of `adds_chosen`: there is no \['K'\], only \['M', 'N'\]"),
    ({"values": {"index": lambda rng, extents: [0, 0]}, "extents": {"M": [3]}},
     r"values of `adds_chosen.index` are \[2\], the tensor is \[3\]"),
    ({"values": INDEX, "extents": {"M": [3], "N": [2]}}, "gives 2 arrays, the kernel writes y"),
])
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuzz(adds_chosen, lambda index, x, y: (y, y), **options)


def tensor_core(a: Any, b: Any, fraction: int) -> Any:
    """a @ b as tensor cores are understood to sum up: 32 products at a time and the sum so far, all cut to as many
    bits behind the point as the largest of them keeps."""
    total = np.zeros((len(a), b.shape[1]))
    for k in range(0, a.shape[1], 32):
        terms = np.concatenate([total[:, None], a[:, k:k + 32, None] * b[None, k:k + 32]], 1)
        step = 2.0 ** (np.floor(np.log2(np.abs(terms).max(1))) - fraction)
        total = np.trunc(terms / step[:, None]).sum(1) * step
    return total.astype(np.float32)


@pytest.mark.parametrize("target", ["cuda:sm_89", "cuda:sm_90a"])
def test_bounds_on_a_gpu_know_how_it_sums_f8(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of 13 bits of fraction are explained by the bound for the machine, and not by that of f32."""
    monkeypatch.setattr(targets, "machine", lambda name, ordinal=0: name)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((16, 512)) for _ in range(2))
    x, y = (codec.encode(v, tile.f8e4m3) for v in (a, b.T))
    arguments = {"a": x.view(numpy_dtype(tile.f8e4m3)), "b": y.view(numpy_dtype(tile.f8e4m3))}
    bound = Bound(matmul, (), {**arguments, "BM": 16, "BN": 16, "BK": 32})
    fn = matmul.trace(bound.types(), bound.consts)
    before = [bound.tensors[p.name].storage().copy() for p in matmul.params if p.kind == "tensor"]
    centre = [v.copy() for v in before]
    run(fn, centre)
    got = tensor_core(codec.decode(x, tile.f8e4m3).astype(float), codec.decode(y, tile.f8e4m3).astype(float), 13)
    for fraction, right in ((targets.fraction(target), True), (targets.fraction("emulate:" + target), False)):
        samples = [s[-1] for s in islice(noise(fn, before, rng, fraction), 6)]
        assert explained(centre[-1], got, samples, tile.f32).all() == right


def test_other_sums_keep_the_bits_of_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "machine", lambda name, ordinal=0: name)
    for target, dt in (("cuda:sm_90a", tile.f16), ("cuda:sm_80", tile.f8e4m3), ("hip:gfx950", tile.f8e4m3)):
        a = np.zeros((16, 32), dt.storage).view(numpy_dtype(dt))
        bound = Bound(matmul, (), {"a": a, "b": a.T.copy(), "BM": 16, "BN": 16, "BK": 32})
        fraction = targets.fraction(target)
        assert fraction is not None
        assert [fraction(op) for op in matmul.trace(bound.types(), bound.consts).walk() if op.name == "dot"] == [23]
