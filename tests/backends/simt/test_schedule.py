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
from tilelang.ops.attention.forward import forward_kernel

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


IN_TURNS = {"gfx942": {"STAGES": 2}, "gfx950": {"STAGES": 3}}


def in_turns(arch: str) -> Lowered:
    """The product by warps that take turns."""
    return lowered("pingpong", f"hip:{arch}", **IN_TURNS[arch])


def run(text: str, arch: str = "gfx950") -> Any:
    """The product as the emulator makes it of a text, under all orders of the threads. Raises CheckError."""
    code, (a, b), c = in_turns(arch), arguments(), np.zeros((128, 128), np.float32)
    execute(code.tile, replace(code.rendered, text=text), [a, b, c], [a.shape, b.shape, c.shape],
            [(DEEP, 1), (128, 1), (128, 1)])
    return c


@pytest.mark.parametrize("arch", IN_TURNS)
def test_warps_take_turns(arch: str) -> None:
    """Sums are exact. Two loops, with masks and without, are one to the halves, and one that ends at once leaves both
    at one place."""
    source = in_turns(arch).source
    assert source.count("tl::meet(") == 6 and source.index("tl::priority<1>") < source.index("tl::mfma")
    a, b = arguments()
    np.testing.assert_array_equal(run(source, arch), a.astype(np.float64) @ b.astype(np.float64))
    with tile.target(f"emulate:hip:{arch}"):
        np.testing.assert_array_equal(product(a[:, :0], b[:0], **IN_TURNS[arch]), np.zeros((128, 128)))


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
WITHOUT_UNITS = [name for name in SLIPS if "copies" not in name]
"""Those that there are where copies go through registers."""


@pytest.mark.parametrize(("arch", "name"), [*(("gfx950", name) for name in SLIPS),
                                            *(("gfx942", name) for name in WITHOUT_UNITS)])
def test_slips(arch: str, name: str) -> None:
    source = in_turns(arch).source
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
        got = run(text, arch)
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


def test_what_takes_turns_by_way_of_registers_needs() -> None:
    with pytest.raises(TargetError, match=r"two blocks that fit(.|\n)*one of 65536 bytes"):
        _ = lowered("pingpong", "hip:gfx942", BK=128).placed


@pytest.mark.parametrize("target", ["hip:gfx90a", "cuda:sm_80", "cpu"])
def test_other_targets_have_one_way(target: str) -> None:
    assert "meet" not in str(lowered("pingpong", target).thread)


def multiplied(arch: str, m: int, n: int, k: int, stages: int) -> Lowered:
    a, b = (np.zeros((m * n, m * n), np.float16) for _ in range(2))
    return kernels.matmul.lower(a, b, np.zeros((m * n, m * n), np.float32), BM=m, BN=n, BK=k, STAGES=stages,
                                target=f"hip:{arch}")


CHOSEN = [("gfx942", 256, 256, 32, 2, "pingpong"), ("gfx950", 256, 256, 32, 4, "pingpong"),
          ("gfx950", 256, 256, 64, 2, "interleave"),  # two blocks are too few for turns
          ("gfx950", 128, 128, 64, 3, "interleave"),  # a warp for each vector unit
          ("gfx942", 128, 128, 64, 2, "plain")]  # the compiler moves reads by itself


@pytest.mark.parametrize("latency", [32, 128])
@pytest.mark.parametrize(("arch", "m", "n", "k", "stages", "way"), CHOSEN)
def test_the_compiler_chooses(arch: str, m: int, n: int, k: int, stages: int, way: str, latency: int,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts the fewest cycles; what is not known about the processor decides nothing here."""
    monkeypatch.setattr(schedule, "LATENCY", latency)
    assert re.fullmatch(rf"line \d+: {way}", multiplied(arch, m, n, k, stages).schedules)


def test_turns_hide_what_is_shorter_than_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LATENCY", 1000)
    assert "plain" in multiplied("gfx950", 256, 256, 32, 4).schedules


def test_loops_that_do_more_than_multiply_are_plain() -> None:
    q = np.zeros((1, 1, 256, 128), np.float16)
    code = forward_kernel.lower(q, q, q, q, 0.1, np.zeros((1, 1, 256), np.float32), BM=128, BN=64, BD=128, BE=128,
                                target="hip:gfx950")
    assert isinstance(code, Lowered) and re.fullmatch(r"line \d+: plain", code.schedules)


def loop(code: Lowered) -> list[str]:
    return [i.split()[0] for i in gcn.main_loop(code.assembly, code.rendered.name)]


@compiles
@pytest.mark.parametrize(("arch", "instruction"), [("gfx942", "32x32x8"), ("gfx950", "32x32x16")])
def test_machine_code_of_turns(arch: str, instruction: str) -> None:
    """Products and nothing else that waits stand between the priorities, two barriers around them. By way of registers
    blocks are stored before the next ones are loaded."""
    names = [n for n in loop(in_turns(arch)) if n.startswith(("v_mfma", "ds_", "s_barrier", "s_setprio", "buffer"))]
    start = names.index("s_setprio")
    inside = names[start + 1:names.index("s_setprio", start + 1)]
    assert inside and all(n.startswith(f"v_mfma_f32_{instruction}") for n in inside) and names.count("s_barrier") == 2
    assert not any(n.startswith("v_mfma") for n in names[:start]) and in_turns(arch).report["spills"] == 0
    stores = [i for i, n in enumerate(names) if n.startswith("ds_write")]
    assert bool(stores) == (arch == "gfx942")
    assert all(i < names.index("buffer_load_dwordx4") < start for i in stores)


@pytest.mark.parametrize("arch", IN_TURNS)
def test_interleaved(arch: str) -> None:
    """A product of one step for each of its steps along k, the reads of the next before each; sums are exact."""
    code, (a, b) = lowered("interleave", f"hip:{arch}", STAGES=2, BK=64), arguments()
    c = np.zeros((128, 128), np.float32)
    execute(code.tile, code.rendered, [a, b, c], [a.shape, b.shape, c.shape], [(DEEP, 1), (128, 1), (128, 1)])
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))
    names = [op.name for op in next(op for op in code.thread.walk() if op.name == "for").regions[0].ops]
    steps = "".join({"mma": "m", "spread": "|", "dma": "c"}.get(n, "r" if n.startswith("ld") else "") for n in names)
    assert re.search(r"r+\|(r+c*m\|)+c*m\|$", steps), steps


def waits(code: Lowered) -> list[tuple[int, bool]]:
    """Of each wait for local memory between matrix instructions: how many accesses may stay under way, and whether the
    newest of those that may not is used before anything else is waited for."""
    out, pending = list[tuple[int, bool]](), list[set[int]]()
    lines = gcn.main_loop(code.assembly, code.rendered.name)

    def registers(text: str) -> set[int]:
        found = re.findall(r"\bv(?:\[(\d+):(\d+)\]|(\d+)\b)", text)
        return {i for low, high, one in found for i in range(int(one or low), int(one or high) + 1)}
    for at, line in enumerate(lines):
        name, _, operands = line.partition(" ")
        if name.startswith("ds_"):
            pending.append(registers(operands.split(",")[0]) if name.startswith("ds_read") else set())
        elif (found := re.search(r"lgkmcnt\((\d+)\)", line)) and len(pending) > (left := int(found[1])):
            newest = pending[len(pending) - left - 1]
            pending = pending[len(pending) - left:]
            until = next((i for i, other in enumerate(lines[at + 1:], at + 1) if other.startswith("s_waitcnt")),
                         len(lines))
            used = set[int]().union(*(registers(other.partition(",")[2]) for other in lines[at + 1:until]))
            out.append((left, bool(newest & used)))
    return out


@compiles
@pytest.mark.parametrize("way", ["plain", "interleave"])
def test_waits_for_local_memory(way: str) -> None:
    """The compiler counts them: none is for more than what is used next. Interleaved, products run while reads are
    under way: of five waits at least three leave some."""
    found = waits(lowered(way, "hip:gfx950", STAGES=2, BK=64))
    assert found and all(used for _, used in found)
    assert way == "plain" or 5 * sum(left > 0 for left, _ in found) >= 3 * len(found)
