"""`tile.print` of CUDA text: the interpreter's lines under the emulator, plainer ones on a device."""
from __future__ import annotations

import sys

import numpy as np
import pytest

import tilelang as tile
from tests.backends.cpu.test_print import argument, talk
from tests.backends.emulator.ptx.test_kernels import execute as by_ptx
from tests.backends.emulator.ptx.tiers import needs_nvrtc
from tests.backends.simt.barriers import barriers, needless
from tests.backends.simt.emulated import emulated
from tilelang.checking import check
from tilelang.errors import TargetError


@tile.kernel
def count(y: tile.InOut[tile.i32, "N"]):
    n = tile.grid(y.shape[0])
    tile.print("program", n, n * n)
    tile.store(y, (n,), n)


@pytest.mark.parametrize("dt", ["f32", "bf16", "f8e5m2", "i8", "i1", "u3", "codebook(1, [-0.5, 2.0])"])
def test_text_and_results_are_the_interpreters(dt: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = argument(dt)
    with tile.target("emulate:cuda:sm_80"):
        got = talk(x, by=0.25)
        text = capsys.readouterr().out
        silent = talk(x, by=0.25, PRINT=False)
    talk.reference(x, by=0.25)
    assert text == capsys.readouterr().out and text.count("program") == 6
    np.testing.assert_array_equal(np.asarray(got), np.asarray(silent))


def test_programs_print_once_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with tile.target("emulate:cuda:sm_80"):
        count(np.zeros(100, np.int32))
    assert capsys.readouterr().out.splitlines() == [f"program {n} {n * n}" for n in range(100)]


def test_what_the_output_raises_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError(text)

    with monkeypatch.context() as patch, tile.target("emulate:cuda:sm_80"):
        patch.setattr(sys, "stdout", Closed())
        with pytest.raises(BrokenPipeError, match="program 0 0"):
            count(np.zeros(3, np.int32))


def test_a_check_prints_no_lines_of_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert not check(count, "cuda:sm_80").found
    assert capsys.readouterr().out == ""


def test_no_barrier_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @tile.kernel
    def repeat(x: tile.Tensor[tile.i32, "N"]):
        v = tile.load(x, (0,), (64,))
        for i in tile.range(0, 2):
            tile.print(v + i)

    x = np.arange(64, dtype=np.int32)
    code = repeat.lower(x, target="cuda:sm_80")
    assert len(barriers(code)) == 2  # before the tile is read, and before it is written again
    assert needless(code, [([x], [x.shape], [(1,)])], monkeypatch) == []


def test_tiles_too_large_for_shared_memory_are_refused() -> None:
    @tile.kernel
    def large(x: tile.Tensor[tile.f32, "N"]):
        tile.print(tile.load(x, (0,), (1 << 16,)))

    with pytest.raises(TargetError, match="shared memory"):
        large.lower(np.zeros(1 << 16, np.float32), target="cuda:sm_80").source


@needs_nvrtc
def test_a_device_prints_numbers_in_order_and_codes_of_what_it_does_not_know(
        capsys: pytest.CaptureFixture[str]) -> None:
    @tile.kernel
    def show(x: tile.Tensor[tile.f32, "4"], by: tile.i64):
        v = tile.load(x, (0,), (4,))
        tile.print('50% of "x"\n\u2713', v, v.to(tile.f16), v.to(tile.bf16), by, v > 0)
        tile.print(tile.reshape(v.to(tile.i8), (2, 2)), v.to(tile.u4), v.to(tile.f8e4m3))

    x = np.array([1.5, -2, 0, 1 / 3], np.float32)
    emulated(show.lower(x, 1 << 40).tile, runs=by_ptx)([x, np.int64(1 << 40)])
    assert capsys.readouterr().out == (
        '50% of "x"\n\u2713 [1.5 -2 0 0.333333] [1.5 -2 0 0.333252] [1.5 -2 0 0.333984] 1099511627776 [1 0 0 1]\n'
        "[1 -2 0 0] [1 0 0 0] [#3c #c0 #0 #2b]\n")
