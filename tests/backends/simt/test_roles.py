"""Kernels in which some warps copy blocks and the others do the rest: what they compute, which loops get them, and
what the emulator says of mistakes in them."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from benchmarks import sass
from tests.backends.simt import kernels
from tests.backends.simt.test_group_products import findings
from tilelang.backends.cuda import nvrtc
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.pipeline import pipeline
from tilelang.backends.simt.place import place
from tilelang.backends.simt.roles import MOST, budgets
from tilelang.backends.simt.separate import separate
from tilelang.errors import TargetError, VerifyError
from tilelang.ir.parser import parse
from tilelang.ir.roles import REGISTERS, Roles
from tilelang.ir.text import print_function
from tilelang.passes.driver import run_passes
from tilelang.passes.pipeline import TILE_PASSES

TARGET = "cuda:sm_90a"
STATED = {"BM": 128, "BN": 64, "BK": 64, "STAGES": 3, "SCHEDULE": "producer"}


def matrices(m: int, n: int, k: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, k), (k, n))]


# -- what they compute ------------------------------------------------------------------------------------------------
CASES = [  # extents of the matrices and of blocks, stages, groups of consumers
    (128, 64, 448, 64, 64, 64, 3, 1), (200, 136, 72, 128, 128, 64, 2, 2), (128, 64, 328, 128, 64, 32, 4, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: tuple[int, ...]) -> None:
    *extents, groups = case
    a, b = matrices(*extents[:3])
    consts = {**dict(zip(("BM", "BN", "BK", "STAGES"), extents[3:], strict=True)), "SCHEDULE": "producer"}
    code = kernels.matmul.lower(a, b, target=TARGET, **consts)
    assert f"{4 * groups}{' of 240 registers' if groups > 1 else ''} do the rest" in code.roles
    assert code.rendered.threads == 128 * (groups + 1)
    with tile.target(f"emulate:{TARGET}"):
        c = kernels.matmul(a, b, **consts)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_keys_and_values_of_attention() -> None:
    """Queries pass through shared memory while blocks of keys are copied already, and tiles meet between warps."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float16) for n in (128, 200, 200))
    consts = {"BM": 128, "BN": 64, "BD": 64, "STAGES": 2, "SCHEDULE": "producer"}
    assert "8 of 240 registers do the rest" in kernels.attention.lower(q, k, v, target=TARGET, **consts).roles
    with tile.target(f"emulate:{TARGET}"):
        o = kernels.attention(q, k, v, **consts)
    s = q.astype(np.float64) @ k.T.astype(np.float64)
    p = np.exp(s - s.max(1, keepdims=True))
    np.testing.assert_allclose(o, p @ v.astype(np.float64) / p.sum(1, keepdims=True), atol=4e-3)


@tile.kernel
def persistent(a: tile.Tensor[tile.f16, "B M K"], b: tile.Tensor[tile.f16, "B K N"], c: tile.Out[tile.f16, "B M N"]):
    """c = a @ b, matrix after matrix by one program."""
    for i in tile.range(a.shape[0]):
        acc = tile.zeros((128, 64), tile.f32)
        for k in tile.range(0, a.shape[2], 64, stages=3, schedule="producer"):
            acc += tile.dot(tile.load(a, (i, 0, k), (None, 128, 64)), tile.load(b, (i, k, 0), (None, 64, 64)))
        tile.store(c, (i, 0, 0), acc.to(tile.f16), (None, 128, 64))


@pytest.mark.parametrize("k", [72, 328])
def test_producers_run_ahead_into_the_next_iteration_of_a_loop_around(k: int) -> None:
    """Barriers are made once, and both roles know where the ring stands."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((3, 128, k), (3, k, 64)))
    code = persistent.lower(a, b, target=TARGET)
    assert code.roles and "drop" not in str(code.placed)
    with tile.target(f"emulate:{TARGET}"):
        c = persistent(a, b)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_every_level_means_the_same_and_reads_back() -> None:
    a, b = (np.zeros(shape, np.float16) for shape in ((2, 128, 72), (2, 72, 64)))
    for code in (ring()[0], persistent.lower(a, b, target=TARGET)):
        run_passes(code.tile, code.target, (*TILE_PASSES, separate, place, pipeline), check=2, dump="")
        for text in map(print_function, (code.placed, code.thread)):
            assert print_function(parse(text)) == text


# -- which loops get them ---------------------------------------------------------------------------------------------
@tile.kernel
def picked(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], order: tile.Tensor[tile.i32, "S"],
           c: tile.Out[tile.f32, "M N"], HOW: tile.Const, SCHEDULE: tile.Const = ""):
    """c = a @ b, where blocks of k come in an order that is known to all, or not."""
    m, n = tile.grid(a.shape[0] // 128, b.shape[1] // 256)
    first = tile.load(order, (m,), ())
    if HOW == "read":
        start = first
    elif HOW == "computed":
        start = tile.sum(tile.load(order, (0,), (32,)))
    acc = tile.zeros((128, 256), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=4, schedule=SCHEDULE):
        acc += tile.dot(tile.load(a, (m * 128, k + start), (128, 64)), tile.load(b, (k + start, n * 256), (64, 256)))
    tile.store(c, (m * 128, n * 256), acc)


def placed(how: str, schedule: str = "") -> Lowered:
    a, b = matrices(128, 256, 128)
    code: Lowered = picked.lower(a, b, np.zeros(32, np.int32), target=TARGET, HOW=how, SCHEDULE=schedule)
    return code


def test_a_block_alone_on_its_multiprocessor_gets_producers() -> None:
    """Elements of tensors that nothing writes are known to all warps."""
    code = placed("read")
    assert code.roles and "TMA, 4 stages;" in code.copies + ";"
    a, b = matrices(128, 64, 128)
    others = kernels.matmul.lower(a, b, target=TARGET, **{**STATED, "SCHEDULE": ""})
    assert not others.roles and "several blocks" in others.copies
    assert not kernels.matmul.lower(a, b, target=TARGET, **{**STATED, "BN": 256, "SCHEDULE": "plain"}).roles


@tile.kernel
def twice(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"]):
    """c = 2 a @ b, by two loops one after the other."""
    m, n = tile.grid(tile.cdiv(a.shape[0], 128), tile.cdiv(b.shape[1], 128))
    acc = tile.zeros((128, 128), tile.f32)
    for _ in (0, 1):
        for k in tile.range(0, a.shape[1], 64, stages=4):
            acc += tile.dot(tile.load(a, (m * 128, k), (128, 64)), tile.load(b, (k, n * 128), (64, 128)))
    tile.store(c, (m * 128, n * 128), acc)


def test_blocks_of_later_loops_may_have_no_room_from_the_beginning() -> None:
    """What producers fill lives from there on; blocks of other loops may follow one another."""
    a, b = matrices(128, 128, 200)
    code = twice.lower(a, b, target=TARGET)
    assert code.roles and "no room" in code.copies
    with tile.target(f"emulate:{TARGET}"):
        c = twice(a, b)
    np.testing.assert_array_equal(c, 2 * (a.astype(np.float64) @ b.astype(np.float64)))


def test_where_they_do_not_apply_the_report_says_why() -> None:
    code = placed("computed")
    assert not code.roles and "its blocks depend on `reduce` of line" in code.copies
    with pytest.raises(TargetError, match="cannot run as 'producer'") as error:
        _ = placed("computed", "producer").placed
    assert "which only consumers know" in str(error.value)


def test_kernels_without_maps_have_no_roles() -> None:
    code, _ = ring()
    assert code.roles and not code.without_windows.roles


@pytest.mark.parametrize("groups", range(1, MOST + 1))
def test_budgets_fit_into_a_multiprocessor(groups: int) -> None:
    counts = budgets(groups)
    assert Roles([], {"consumers": 4 * groups, "producers": 4, "registers": counts}).attrs["registers"] == counts
    begin = REGISTERS // (128 * (groups + 1))
    assert not counts or begin < 255 and counts[0] + groups * counts[1] <= (groups + 1) * (begin // 8 * 8)
    assert bool(counts) == (groups > 1)


@pytest.mark.parametrize("attrs", [
    {"consumers": 8, "producers": 1}, {"consumers": 8, "producers": 4, "registers": (24, 256)},
    {"consumers": 8, "producers": 4, "registers": (20, 240)}, {"consumers": 8, "producers": 4, "registers": (24,)},
], ids=str)
def test_impossible_roles_are_refused(attrs: dict[str, Any]) -> None:
    with pytest.raises(VerifyError, match="cannot have them"):
        Roles([], attrs)


@pytest.mark.skipif(nvrtc.find() is None or sass.find() is None, reason="NVRTC or nvdisasm is not installed")
def test_machine_code_has_the_registers_asked_for() -> None:
    """The assembler ignores the request where it does not know how many a block begins with."""
    code, _ = ring()
    assert code.report["registers"] == 168 and code.report["spills"] == 0  # type: ignore[attr-defined]
    text = sass.disassemble(code.cubin)  # type: ignore[attr-defined]
    assert {found[1] for found in re.finditer(r"USETMAXREG.* (0x\w+) ;", text)} == {"0x18", "0xf0"}
    loop = sass.classes(sass.main_loop(text, code.rendered.name))
    assert loop["HGMMA"] == 4 and loop["SYNCS"] == 2 and not {"UTMALDG", "BAR", "ELECT", "R2UR"} & loop.keys()
    assert sum(loop.values()) <= 56


# -- mistakes ---------------------------------------------------------------------------------------------------------
def ring() -> tuple[Lowered, list[Any]]:
    """A product whose operands come by a ring of three blocks, and its arguments."""
    a, b = matrices(128, 64, 448)
    c = np.zeros((128, 64), np.float32)
    return kernels.matmul.lower(a, b, c, target=TARGET, **STATED), [a, b, c]


def exchanged() -> tuple[Lowered, list[Any]]:
    """One whose consumers meet at barriers: weights of a softmax are exchanged."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float16) for n in (128, 128, 128))
    o = np.zeros((128, 64), np.float32)
    return kernels.attention.lower(q, k, v, o, BM=128, BN=64, BD=64, STAGES=2, SCHEDULE="producer",
                                   target=TARGET), [q, k, v, o]


MISTAKES = {  # of which kernel, what becomes of a line: what the emulator calls that, and the operation that it names
    "no wait for full blocks": (ring, r"tl::mbarrier_wait\(barriers, stage_1,.*", "", "async-pending", "group_mma"),
    "no wait for empty blocks": (ring, r"tl::mbarrier_wait\(barriers, x.*", "", "mbarrier", "mbarrier_expect"),
    "the wrong phase of full": (ring, r"(tl::mbarrier_wait\(barriers, stage_1, )parity_1", r"\1(parity_1 ^ 1)",
                                "async-pending", "group_mma"),
    "the wrong phase of empty": (ring, r"(tl::mbarrier_wait\(barriers, x\d+, )(x\d+)", r"\1(\2 ^ 1)", "deadlock",
                                 "mbarrier_wait"),
    "nobody gives blocks back": (ring, r"tl::mbarrier_arrive\(.*", "", "deadlock", "mbarrier_wait"),
    "blocks given back too early": (ring, r"tl::group_wait<1>\(.*", "", "product-pending", "tensor_load"),
    "bytes that never come": (ring, r"(tl::mbarrier_expect\(barriers, stage, )\d+", r"\g<1>50000", "deadlock",
                              "mbarrier_wait"),
    "no fence after barriers were made": (ring, r"tl::fence_memory\(.*", "", "missing-fence", "tensor_load"),
    "registers that nobody gives back": (ring, r"tl::drop_registers.*", "", "deadlock", "roles"),
    "more registers than there are": (ring, r"take_registers<240>", "take_registers<248>", "deadlock", "roles"),
    "a number of registers that is none": (ring, r"drop_registers<24>", "drop_registers<20>", "registers", "roles"),
    "a barrier of all threads": (exchanged, r"tl::barrier_of<256>", "tl::barrier", "divergent-barrier", "barrier_of"),
    "no barrier of the consumers": (exchanged, r"tl::barrier_of<256>\(.*", "", "race-raw", ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_line(name: str) -> None:
    made, pattern, instead, kind, op = MISTAKES[name]
    code, arrays = made()
    text = code.rendered.text
    broken = re.sub(pattern, instead, text)
    assert broken != text
    found = findings(code, broken, arrays)
    named = [code.rendered.ops[f.op] for f in found if f.kind == kind]
    assert any(op in ("", o.name) and o.loc is not None and o.loc.file == kernels.__file__ for o in named), found


@pytest.mark.parametrize("made", [ring, exchanged])
def test_the_kernels_themselves_are_right(made: Any) -> None:
    code, arrays = made()
    assert not findings(code, code.rendered.text, arrays)
