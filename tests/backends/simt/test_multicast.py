"""Blocks that programs of a cluster copy for each other: which these are, what comes of it, and what the emulator says
of mistakes in it."""
from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilelang as tile
from benchmarks import sass
from tests.backends.simt import kernels
from tests.backends.simt.fake import FakeDriver, on_device
from tests.backends.simt.test_bulk import written
from tests.backends.simt.test_group_products import findings
from tilelang.backends.cuda import nvrtc
from tilelang.backends.simt import bulk
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.group_products import panels
from tilelang.backends.simt.pipeline import pipeline
from tilelang.backends.simt.place import place
from tilelang.backends.simt.separate import separate
from tilelang.ir.cluster import Sharers
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.jit import Kernel
from tilelang.layouts import shared
from tilelang.passes.driver import run_passes
from tilelang.passes.pipeline import TILE_PASSES

TARGET = "cuda:sm_90a"
CONSTS = {"BM": 64, "BN": 64, "BK": 64, "STAGES": 3}


def matrices(m: int, n: int, k: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, k), (k, n))]


# -- what they compute ------------------------------------------------------------------------------------------------
CASES = [  # extents of the matrices, the cluster, rows of a block, how it runs, how many programs get each block
    ((120, 64, 328), (2, 1), 64, "", {2}), ((64, 104, 72), (1, 2), 64, "", {2}),
    ((120, 104, 200), (2, 2), 64, "", {2}), ((250, 64, 136), (4, 1), 64, "", {4}),
    ((250, 64, 328), (2, 1), 128, "producer", {2}),
    ((136, 72, 456), (2, 2), 128, "producer", {2}), ((64, 184, 72), (1, 3), 64, "", set()),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: Any) -> None:
    """Nothing is shared where a block of 64 rows is to be divided by three."""
    extents, cluster, rows, schedule, shares = case
    a, b = matrices(*extents)
    consts = {**CONSTS, "BM": rows, "SCHEDULE": schedule, "CLUSTER": cluster}
    code = kernels.matmul.lower(a, b, target=TARGET, **consts)
    assert {int(n) for n in re.findall(r"multicast to (\d) programs", code.copies)} == shares
    assert code.rendered.cluster == (prod(cluster) if shares else 1)
    assert ("not divided by 3 programs" in code.copies) == (not shares)
    with tile.target(f"emulate:{TARGET}"):
        c = kernels.matmul(a, b, **consts)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize("schedule", ["", "producer"])
def test_keys_and_values_of_attention(schedule: str) -> None:
    """Blocks of queries have keys and values in common; what is exchanged before the loop lies elsewhere."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float16) for n in (256, 136, 136))
    consts = {"BM": 128, "BN": 64, "BD": 64, "STAGES": 2, "SCHEDULE": schedule, "CLUSTER": (2,)}
    code = kernels.attention.lower(q, k, v, target=TARGET, **consts)
    assert code.copies.count("TMA multicast to 2 programs, 2 stages") == 2 and bool(code.roles) == bool(schedule)
    with tile.target(f"emulate:{TARGET}"):
        o = kernels.attention(q, k, v, **consts)
        want = kernels.attention(q, k, v, **{**consts, "CLUSTER": ()})
    np.testing.assert_array_equal(o, want)


@tile.kernel
def halves(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"]):
    """c = a @ b."""
    m, n = tile.grid(tile.cdiv(a.shape[0], 128), tile.cdiv(b.shape[1], 64), cluster=(2, 1))
    acc = tile.zeros((128, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3, schedule="producer"):
        acc += tile.dot(tile.load(a, (m * 128, k), (128, 64)), tile.load(b, (k, n * 64), (64, 64)))
    tile.store(c, (m * 128, n * 64), acc.to(tile.f16))


def test_all_warps_end_together_behind_the_last_wait() -> None:
    """The thread that copies results waits at the end, too; producers did not come to the barrier of the cluster."""
    a, b = matrices(200, 64, 72)
    assert all(text in halves.lower(a, b, target=TARGET).copies for text in ("multicast", "TMA store"))
    with tile.target(f"emulate:{TARGET}"):
        c = halves(a, b)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


@tile.kernel
def persistent(a: tile.Tensor[tile.f16, "B M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "B M N"],
               SCHEDULE: tile.Const = "producer"):
    """c = a @ b, matrix after matrix by two programs, one for each half of the rows."""
    m = tile.grid(2, cluster=(2,))
    for i in tile.range(a.shape[0]):
        acc = tile.zeros((128, 64), tile.f32)
        for k in tile.range(0, a.shape[2], 64, stages=3, schedule=SCHEDULE):
            acc += tile.dot(tile.load(a, (i, m * 128, k), (None, 128, 64)), tile.load(b, (k, 0), (64, 64)))
        tile.store(c, (i, m * 128, 0), acc.to(tile.f16), (None, 128, 64))


@pytest.mark.parametrize("schedule", ["producer", "plain"])
def test_rings_in_loops(schedule: str) -> None:
    """Producers carry the place in the ring on; where there are none, each program copies for itself."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-2, 3, shape).astype(np.float16) for shape in ((3, 250, 136), (136, 64)))
    code = persistent.lower(a, b, SCHEDULE=schedule, target=TARGET)
    assert ("multicast" if schedule == "producer" else "another loop is around it") in code.copies
    with tile.target(f"emulate:{TARGET}"):
        c = persistent(a, b, SCHEDULE=schedule)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_every_level_means_the_same_and_reads_back() -> None:
    code, _ = ring()
    run_passes(code.tile, code.target, (*TILE_PASSES, separate, place, pipeline), check=2, dump="")
    for text in map(print_function, (code.placed, code.thread)):
        assert print_function(parse(text)) == text


# -- which programs ---------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), st.data())
def test_who_shares_with_whom(cluster: tuple[int, ...], data: Any) -> None:
    along = tuple(sorted(data.draw(st.sets(st.sampled_from(range(len(cluster))), min_size=1))))
    op, places = Sharers([], {"cluster": cluster, "along": along}), list(np.ndindex(*cluster))
    for rank, mine in enumerate(places):
        others = [r for r, p in enumerate(places) if all(x == y for d, (x, y) in enumerate(zip(mine, p, strict=True))
                                                         if d not in along)]
        assert op.of(rank) == (others.index(rank), sum(1 << r for r in others))


@pytest.mark.parametrize(("cluster", "along"), [((2, 2), (0,)), ((2, 2), (1,)), ((2, 1), (0,)), ((2, 1, 3), (0, 2)),
                                                ((2, 2, 2), (0, 2)), ((2, 3), (0,)), ((2, 2, 2), (1,))])
def test_the_text_of_who_shares_with_whom(cluster: tuple[int, ...], along: tuple[int, ...]) -> None:
    """What C computes of the number, by Python's operators on what is not negative."""
    from tilelang.backends.clike.render import _Renderer
    from tilelang.ir.core import Function, Region
    op = Sharers([], {"cluster": cluster, "along": along})
    renderer = _Renderer(Function("f", [], Region([], [op]), "thread"), None)
    texts: list[str] = []
    renderer.define = lambda value, text: texts.append(text)  # type: ignore[method-assign]
    renderer._sharers(op)
    for rank in range(prod(cluster)):
        got = tuple(eval(t.replace("tl::cluster_rank()", str(rank)).replace("/", "//")) for t in texts)
        assert got == op.of(rank)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([32, 64, 128]), st.integers(1, 4), st.integers(1, 16),
       st.booleans(), st.sampled_from([2, 3, 4, 8]))
def test_parts_make_up_a_block(size: int, width: int, columns: int, groups: int, turned: bool, count: int) -> None:
    layout = panels(8 * groups, columns * width // size, size, width // size)
    assert layout is not None
    layout = layout.permute((1, 0)) if turned else layout
    found = bulk.boxes(layout, size)
    assert isinstance(found, bulk.Boxes)
    parts = bulk.parts(found, count, size)
    if parts is None:
        assert len(found.starts) % count and (found.extents[-1] % (8 * count))
        return
    whole = bulk.Boxes(found.order, parts.boxes.extents, found.swizzle, tuple(
        (tuple(x + i * d for x, d in zip(index, parts.index, strict=True)), at + i * parts.place)
        for i in range(count) for index, at in parts.boxes.starts))
    np.testing.assert_array_equal(written(whole, size, layout.shape), layout.table())
    assert all(at * size % whole.align == 0 for _, at in whole.starts)


def test_neighbours_alone_are_not_divided() -> None:
    found = bulk.boxes(shared((64,)), 2)
    assert isinstance(found, bulk.Boxes) and bulk.parts(found, 2, 2) is None


# -- where it applies -------------------------------------------------------------------------------------------------
@tile.kernel
def varied(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
           HOW: tile.Const = ""):
    """c = a @ b, in ways that keep programs from sharing b."""
    rows = tile.num_workers() if HOW == "workers" else tile.cdiv(a.shape[0], 64)
    m, n = tile.grid(rows, tile.cdiv(b.shape[1], 64), cluster=(2, 1))
    acc = tile.zeros((64, 64), tile.f32)
    column = n if HOW != "program" else tile.cluster_rank()
    for k in tile.range(0, tile.minimum(a.shape[1], 64 * m + 64) if HOW == "length" else a.shape[1], 64, stages=3):
        acc += tile.dot(tile.load(a, (m * 64, k), (64, 64)), tile.load(b, (k, column * 64), (64, 64)))
    tile.store(c, (m * 64, n * 64), acc)


REASONS = {"": "TMA multicast to 2 programs", "length": "may read different blocks",
           "program": "may read different blocks", "workers": "depends on the device"}


@pytest.mark.parametrize("how", REASONS)
def test_where_it_does_not_apply_the_report_says_why(how: str) -> None:
    a, b = matrices(128, 64, 128)
    code = varied.lower(a, b, HOW=how, target=TARGET)
    assert REASONS[how] in code.copies and ("tl::tensor_multicast" in code.source) == (not how)


@pytest.mark.parametrize(("arch", "cluster"), [("sm_80", 1), ("sm_89", 1), ("sm_90a", 2), ("sm_100a", 2),
                                               ("sm_120a", 1)])
def test_processors(arch: str, cluster: int) -> None:
    """Who has no multicast, or a slow one, runs the same kernel without."""
    a, b = matrices(128, 64, 200)
    assert kernels.matmul.lower(a, b, target=f"cuda:{arch}", **CONSTS, CLUSTER=(2, 1)).rendered.cluster == cluster


def test_grids_of_other_than_whole_clusters_share_nothing() -> None:
    a, b = matrices(192, 64, 200)
    consts = {**CONSTS, "CLUSTER": (2, 1)}
    code = kernels.matmul.lower(a, b, target=TARGET, **consts)
    shapes = [a.shape, b.shape, (192, 64)]
    strides = [(200, 1), (64, 1), (64, 1)]
    other = code.suited([a, b, None], shapes, strides)
    assert other is code.unshared and "tensor_load" in other.source and "TL_CLUSTER" not in other.source
    assert code.suited([a, b, None], [(256, 200), *shapes[1:]], strides) is code
    with tile.target(f"emulate:{TARGET}"):
        c = kernels.matmul(a, b, **consts)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_launches(hopper: FakeDriver) -> None:
    """One kernel for whole clusters, another for other grids, in turns."""
    kernel = Kernel(kernels.matmul.source.fn)
    for m in (128, 192, 250, 192):
        a, b = matrices(m, 64, 72)
        c = kernel(on_device(torch.from_numpy(a)), on_device(torch.from_numpy(b)), **CONSTS, CLUSTER=(2, 1))
        np.testing.assert_array_equal(c.as_subclass(torch.Tensor).numpy(), a.astype(np.float64) @ b.astype(np.float64))
    assert [launch.grid for launch in hopper.launches] == [(2, 1, 1), (3, 1, 1), (4, 1, 1), (3, 1, 1)]


@pytest.mark.skipif(nvrtc.find() is None or sass.find() is None, reason="NVRTC or nvdisasm is not installed")
def test_machine_code() -> None:
    """Sharing adds to the main loop of a product what finds the barriers of others, and no fence."""
    a, b = matrices(256, 512, 512)
    consts = {"BM": 128, "BN": 256, "BK": 64, "STAGES": 4}
    loops = []
    for cluster in ((1, 1), (2, 1)):
        code = kernels.matmul.lower(a, b, target=TARGET, **consts, CLUSTER=cluster)
        assert code.report["registers"] == 168 and code.report["spills"] == 0
        text = sass.disassemble(code.cubin)
        assert ("UTMALDG.2D.MULTICAST" in text) == ("UCGABAR_WAIT" in text) == (cluster == (2, 1))
        assert {found[1] for found in re.finditer(r"USETMAXREG.* (0x\w+) ;", text)} == {"0x18", "0xf0"}
        loops.append(sass.classes(sass.main_loop(text, code.rendered.name)))
    assert loops[1]["HGMMA"] == 4 and not {"UTMALDG", "BAR", "MEMBAR", "CCTL"} & loops[1].keys()
    assert sum(loops[1].values()) <= sum(loops[0].values()) + 6


# -- mistakes ---------------------------------------------------------------------------------------------------------
def ring() -> tuple[Lowered, list[Any]]:
    """A product by two programs, who have the right operand in common, and its arguments."""
    a, b = matrices(128, 64, 448)
    c = np.zeros((128, 64), np.float32)
    return kernels.matmul.lower(a, b, c, target=TARGET, **CONSTS, CLUSTER=(2, 1)), [a, b, c]


def specialised() -> tuple[Lowered, list[Any]]:
    """One whose blocks come by warps that only copy."""
    a, b = matrices(256, 64, 448)
    c = np.zeros((256, 64), np.float32)
    consts = {**CONSTS, "BM": 128, "SCHEDULE": "producer", "CLUSTER": (2, 1)}
    return kernels.matmul.lower(a, b, c, target=TARGET, **consts), [a, b, c]


OWN = "(1 << tl::cluster_rank())"
MISTAKES = {  # what becomes of a line: what the emulator calls that, and the operation that it names
    "others do not learn that a block is given back": (
        r"(tl::mbarrier_arrive_at\(barriers, x\d+, )x\d+", rf"\1{OWN}", "deadlock", "mbarrier_wait"),
    "only this program's warps are counted": (
        r"(tl::mbarrier_init\(barriers, [345], \d+)", r"\1 / 2", "mbarrier", "mbarrier_"),
    "others do not get their part": (
        r"(tl::tensor_multicast\(.*, )x\d+, tl::op", rf"\1{OWN}, tl::op", "deadlock", "mbarrier_wait"),
    "a program that the cluster does not have": (
        r"(tl::tensor_multicast\(.*, )x\d+, tl::op", r"\g<1>7, tl::op", "bounds-shared", "tensor_load"),
    "bytes of others are not expected": (
        r"(tl::mbarrier_expect\(barriers, \w+, )(\d+)", r"\1\2 - 4096", "transaction", "tensor_load"),
    "everybody copies the same part": (
        r"= tl::cluster_rank\(\);", "= 0;", "uninitialised-shared", "group_mma"),
    "no wait for empty blocks": (
        r"tl::mbarrier_wait\(barriers, x.*", "", "race-war|mbarrier", "tensor_load|mbarrier_expect"),
    "a copy before all have begun": (
        r"tl::cluster_barrier(?=[\s\S]*tl::cluster_barrier)", "tl::barrier", "cluster-lifetime", "tensor_load"),
    "a program ends before others are done with its barriers": (
        r"tl::cluster_barrier\(tl::op\(\d+\)\);(?![\s\S]*tl::cluster_barrier)", "", "cluster-lifetime",
        "mbarrier_arrive"),
}


@pytest.mark.parametrize(("name", "made"), [*((name, ring) for name in MISTAKES), *((name, specialised) for name in (
    "others do not learn that a block is given back", "no wait for empty blocks",
    "a program ends before others are done with its barriers"))])
def test_a_mistake_is_named_by_line(name: str, made: Any) -> None:
    pattern, instead, kind, op = MISTAKES[name]
    code, arrays = made()
    text = code.rendered.text
    broken = re.sub(pattern, instead, text)
    assert broken != text
    found = findings(code, broken, arrays)
    named = [code.rendered.ops[f.op] for f in found if re.fullmatch(kind, f.kind)]
    assert any(re.match(op, o.name) and o.loc is not None and o.loc.file == kernels.__file__ for o in named), found


@pytest.mark.parametrize("made", [ring, specialised])
def test_the_kernels_themselves_are_right(made: Any) -> None:
    code, arrays = made()
    assert code.rendered.cluster == 2 and not findings(code, code.rendered.text, arrays)
