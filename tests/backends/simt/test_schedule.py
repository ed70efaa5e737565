"""Schedules of pipelined loops: what they compute, what the emulator says of slips, and the machine code."""
from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from benchmarks import gcn
from tests.backends.hip.test_clang import compiles
from tests.backends.simt import kernels
from tilelang.backends.emulator.execute import execute
from tilelang.backends.hip.compile import Lowered
from tilelang.backends.simt import schedule
from tilelang.errors import CheckError, TargetError, UnsupportedSyntax

DEEP, BLOCK = 136, 32
"""Five blocks along k, the last of which is not whole."""


@tile.kernel
def product(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
            SCHEDULE: tile.Const = "pingpong", STAGES: tile.Const = 3, BM: tile.Const = 128, BK: tile.Const = BLOCK):
    """c = a @ b for 128 columns, with something done to elements of a staged operand."""
    acc = tile.zeros((BM, 128), tile.f32)
    for k in tile.range(0, a.shape[1], BK, stages=STAGES, schedule=SCHEDULE):
        acc = tile.dot(tile.load(a, (0, k), (BM, BK)), tile.load(b, (k, 0), (BK, 128)), acc)
    tile.store(c, (0, 0), acc)


@tile.kernel
def rows(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"]):
    """A product in whose loop maxima of rows go from warp to warp."""
    acc = tile.zeros((128, 128), tile.f32)
    for k in tile.range(0, a.shape[1], 32, stages=3, schedule="pingpong"):
        acc = tile.dot(tile.load(a, (0, k), (128, 32)), tile.load(b, (k, 0), (32, 128)), acc)
        acc = acc - acc.max(1)[:, None]
    tile.store(c, (0, 0), acc)


def arguments() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, shape).astype(np.float16) for shape in ((128, DEEP), (DEEP, 128))]


@cache
def lowered(way: str = "pingpong", target: str = "hip:gfx950", **consts: int) -> Lowered:
    return product.lower(*arguments(), np.zeros((128, 128), np.float32), target=target, SCHEDULE=way, **consts)


def run(text: str) -> Any:
    """The product as the emulator makes it of a text, under all orders of the threads. Raises CheckError."""
    code, (a, b), c = lowered(), arguments(), np.zeros((128, 128), np.float32)
    execute(code.tile, replace(code.rendered, text=text), [a, b, c], [a.shape, b.shape, c.shape],
            [(DEEP, 1), (128, 1), (128, 1)])
    return c


def test_warps_take_turns() -> None:
    """Sums are exact. Two loops, with masks and without, are one to the halves, and one that ends at once leaves both
    at one place."""
    source = lowered().source
    assert source.count("tl::meet(") == 6 and source.index("tl::priority<1>") < source.index("tl::mfma")
    a, b = arguments()
    np.testing.assert_array_equal(run(source), a.astype(np.float64) @ b.astype(np.float64))
    with tile.target("emulate:hip:gfx950"):
        np.testing.assert_array_equal(product(a[:, :0], b[:0]), np.zeros((128, 128)))


SLIPS = {
    "the first half does not wait": (r"if \(tl::warp\(\) / 4 == 1\) [^\n]*", ""),
    "the last meeting is left out": (r"if \(tl::warp\(\) / 4 == 0\) [^\n]*", ""),
    "the wrong half comes last": (r"tl::warp\(\) / 4 == 0", "tl::warp() / 4 == 1"),
    "no meeting before the products": (r"\n +tl::meet\([^\n]*(\n +tl::priority<1>)", r"\1"),
    "no meeting after the products": (r"(tl::priority<0>[^\n]*\n)[^\n]*\n( *tl::meet\([^\n]*)", None),
    "a group of copies too many under way": (r"(tl::wait_operations<)(\d+)>([^\n]*\n +tl::meet)", None),
    "no barrier before the loop": (r"tl::barrier\([^\n]*", ""),
    "copies one block further": (r"tl::mul\(32, 2\)", "tl::mul(32, 3)"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips(name: str) -> None:
    source = lowered().source
    pattern, instead = SLIPS[name]
    if name.startswith("no meeting after"):
        at = source.index("tl::meet(", source.index("tl::priority<0>"))
        text = source[:at] + source[source.index("\n", at):]
    elif name.startswith("a group"):
        text = re.sub(pattern, lambda m: f"{m[1]}{2 * int(m[2])}>{m[3]}", source)
    else:
        assert instead is not None
        text = re.sub(pattern, instead, source)
    assert text != source
    a, b = arguments()
    try:
        got = run(text)
    except CheckError:
        return
    assert not np.array_equal(got, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize(("consts", "wanted"), [({"STAGES": 2}, "at least 3 stages"),
                                                ({"STAGES": 1}, "1 blocks of 16384 bytes"),
                                                ({"STAGES": 3, "BK": 256}, "1 blocks of 131072 bytes")])
def test_what_takes_turns_needs(consts: dict[str, int], wanted: str) -> None:
    with pytest.raises(TargetError, match=wanted):
        _ = lowered(**consts).placed


def test_other_exchange_in_the_loop_is_refused() -> None:
    with pytest.raises(TargetError, match=r"needs: +nothing but products(.|\n)*got: +`reduce`"):
        _ = rows.lower(*arguments(), np.zeros((128, 128), np.float32), target="hip:gfx950").placed


def test_names_are_checked() -> None:
    with pytest.raises(UnsupportedSyntax, match="plain, pingpong, interleave"):
        lowered("zigzag")


@pytest.mark.parametrize("target", ["hip:gfx942", "cuda:sm_80", "cpu"])
def test_other_targets_have_one_way(target: str) -> None:
    assert "meet" not in str(lowered("pingpong", target).thread)


def test_the_compiler_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless stated: what takes turns has enough products between two meetings."""
    source = kernels.matmul.lower(*[np.zeros((256, 256), np.float16)] * 2, np.zeros((256, 256), np.float32), BM=256,
                                  BN=256, BK=32, STAGES=4, target="hip:gfx950").source
    assert "tl::meet" in source
    monkeypatch.setattr(schedule, "PRODUCTS", 33)
    other = kernels.matmul.lower(*[np.zeros((256, 256), np.float16)] * 2, np.zeros((256, 256), np.float32), BM=256,
                                 BN=256, BK=32, STAGES=3, target="hip:gfx950").source
    assert "tl::meet" not in other


def loop(code: Lowered) -> list[str]:
    return [i.split()[0] for i in gcn.main_loop(code.assembly, code.rendered.name)]


@compiles
def test_machine_code_of_turns() -> None:
    """Products and nothing else that waits stand between the priorities, two barriers around them."""
    names = [n for n in loop(lowered()) if n.startswith(("v_mfma", "ds_", "s_barrier", "s_setprio", "buffer"))]
    start = names.index("s_setprio")
    inside = names[start + 1:names.index("s_setprio", start + 1)]
    assert inside and set(inside) == {"v_mfma_f32_32x32x16_f16"} and names.count("s_barrier") == 2
    assert not any(n.startswith("v_mfma") for n in names[:start]) and lowered().report["spills"] == 0


@compiles
def test_machine_code_interleaved() -> None:
    """Reads stand among the products rather than before them."""
    def longest(way: str) -> int:
        kept = [n for n in loop(lowered(way, STAGES=2, BK=64)) if n.startswith(("v_mfma", "ds_read"))]
        return max(len(part) for part in "".join("r" if n.startswith("ds") else "." for n in kept).split("."))
    assert longest("interleave") < longest("plain")
