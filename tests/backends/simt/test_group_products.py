"""Products of groups of warps: what they compute, where they apply, and what the emulator says of mistakes in them."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tilelang as tile
from benchmarks import sass
from tests.backends.simt import kernels
from tests.backends.simt.emulated import emulated
from tilelang import targets
from tilelang.backends.clike.rendered import Rendered
from tilelang.backends.cuda import nvrtc
from tilelang.backends.cuda.instructions import GROUP_ROWS
from tilelang.backends.emulator.execute import arguments
from tilelang.backends.emulator.run import POLICIES, Finding, load
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.group_products import descriptor, grid_of_groups, group_plans, panels
from tilelang.backends.simt.instructions import GroupRow, in_words
from tilelang.backends.simt.pipeline import pipeline
from tilelang.backends.simt.place import place
from tilelang.backends.simt.separate import separate
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.passes.driver import run_passes
from tilelang.passes.meaning import difference
from tilelang.passes.pipeline import TILE_PASSES

TARGET = "cuda:sm_90a"
ROWS = [in_words(row) if row.a == "u1" else row for row in GROUP_ROWS if not row.pieces]
PARAMS = "%x: tensor<in {a} align 1, {xs}>, %y: tensor<in {b} align 1, {ys}>, %z: tensor<out {acc} align 1, M, N:1>"
TEXT = "func @product(" + PARAMS + """) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=({x0}, {x1}), axes=(0, 1), fill=0}} : {a}[{x0}, {x1}]
  {px}
  %3 = load %y, %0, %0 {{shape=({y0}, {y1}), axes=(0, 1), fill=0}} : {b}[{y0}, {y1}]
  {py}
  %5 = {op}instruction='{name}', fallback=''}} : {acc}[{m}, {n}]
  store %z, %0, %0, %5 {{axes=(0, 1)}}
}}
"""


def product(row: GroupRow, m: int, n: int, k: int, left: str, right: str) -> Any:
    """A `dot`, or of words `dot_bits`, whose operands lie in memory as "mk" or "km", "kn" or "nk"."""
    size = {"m": m, "n": n, "k": k}
    (x0, x1), (y0, y1) = ([size[d] for d in side] for side in (left, right))
    xs, ys = (f"{side[0].upper()}, {side[1].upper()}:1" for side in (left, right))
    px = f"%2 = permute %1 {{order=(1, 0)}} : {row.a}[{m}, {k}]" if left == "km" else ""
    py = f"%4 = permute %3 {{order=(1, 0)}} : {row.b}[{k}, {n}]" if right == "nk" else ""
    operands = f"{'%2' if px else '%1'}, {'%4' if py else '%3'}"
    op = f"dot_bits {operands} {{" if row.a == "u32" else f"dot {operands} {{dtype={row.acc}, bias=0, "
    return parse(TEXT.format(a=row.a, b=row.b, acc=row.acc, xs=xs, ys=ys, x0=x0, x1=x1, y0=y0, y1=y1, px=px, py=py,
                             op=op, name=row.name, m=m, n=n))


def cases() -> list[tuple[GroupRow, tuple[int, int, int], str, str]]:
    """Every row with k in memory's rows, and where it can the other orders, each with another width of panels."""
    out = [(row, (64, 16 + 8 * (i % 2), 2 * row.k), "mk", "nk") for i, row in enumerate(ROWS)]
    half = next(row for row in ROWS if row.name == "wgmma_m64k16_bf16")
    shapes = [(64, 64, 16), (128, 32, 32), (64, 16, 48), (64, 192, 64)]
    orders = [("mk", "kn"), ("km", "nk"), ("km", "kn"), ("km", "kn")]
    return out + [(half, shape, *order) for shape, order in zip(shapes, orders, strict=True)]


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c[0].name}-{c[1]}-{c[2]}-{c[3]}")
def test_product(case: tuple[GroupRow, tuple[int, int, int], str, str]) -> None:
    row, (m, n, k), left, right = case
    fn = product(row, m, n, k, left, right)
    assert f"tl::{row.name}<" in targets.lowered(fn, TARGET).source
    assert difference(fn, emulated(fn, TARGET), np.random.default_rng(0), trials=1) == ""


@tile.kernel
def pieces_of(a: tile.Tensor[tile.f32, "M K"], b: tile.Tensor[tile.bf16, "K N"], c: tile.Out[tile.f32, "M N"],
              M: tile.Const, N: tile.Const, K: tile.Const, ROUNDS: tile.Const):
    """c = 2 ROUNDS a @ b."""
    left, total = 2.0 * tile.load(a, (0, 0), (M, K)), tile.zeros((M, N), tile.f32)
    for k in tile.range(0, ROUNDS * K, K, stages=2):
        total = tile.dot(left, tile.load(b, (k % K, 0), (K, N)), total)
    tile.store(c, (0, 0), total)


def test_numbers_in_registers_are_cut_into_pieces() -> None:
    """Once, before the loop that they go into. Their products are as exact as those of f32: pieces add up to them."""
    M, N, K = 64, 32, 16
    a, b = kernels.normal(M, K), kernels.normal(K, N, dtype=ml_dtypes.bfloat16)
    a[3, 2], a[5, 1], a[6] = np.inf, 1.699e38, np.nan
    out = np.empty((M, N), np.float32)
    code = pieces_of.lower(a, b, out, target=TARGET, M=M, N=N, K=K, ROUNDS=3)
    loop = next(op for op in code.placed.walk() if op.name == "for")
    assert code.products.count("wgmma_m64k16_bf16") == 3 and "mma_m16" not in code.products
    assert sum(op.name == "piece" for op in code.placed.walk()) == 2
    assert not any(op.name == "piece" for op in loop.regions[0].walk())
    with tile.target("emulate:" + TARGET):
        pieces_of(a, b, out, M=M, N=N, K=K, ROUNDS=3)
    with np.errstate(all="ignore"):
        exact, size = 6 * (a.astype(float) @ b.astype(float)), 6 * (abs(a.astype(float)) @ abs(b.astype(float)))
    assert np.isnan(out[6]).all() and np.isinf(out[3]).all() and (np.sign(out[3]) == np.sign(exact[3])).all()
    sure = [i for i in range(M) if i not in (3, 5, 6)]
    # 48 numbers in three pieces: 144 sums, in f32
    assert (abs(out[sure] - exact[sure]) <= 144 * 2.0 ** -24 * size[sure]).all()


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_plans_cover_the_tile(row: GroupRow) -> None:
    for warps, m, n in ((4, 64, 8), (4, 128, 96), (8, 128, 256), (16, 256, 128)):
        ways, objection = group_plans(row, m, n, 2 * row.k, warps, (None, 0))
        assert ways and not objection
        for p in ways:
            gm, gn, columns = grid_of_groups(p.acc, row)
            assert p.acc.shape == (m, n) and p.acc.num_threads == 32 * warps and (gm, gn) == (p.wm, p.wn)
            assert n % (gn * columns) == 0 and columns in row.columns


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_panels_permute_each_element_once(size: int, width: int) -> None:
    place = panels(16, 3 * width // size, size, width // size)
    assert place is not None and place.injective() and place.size == 16 * 3 * width // size
    found = descriptor(place, size, 1)
    assert (found.width, found.stride, found.transposed) == (width, 8 * width, False)
    assert descriptor(place, size, 0).transposed


REFUSED = {
    "no multiples of 64": ({"BM": 32, "BN": 32, "BK": 32}, np.float16, "32 rows and 32 steps"),
    "order of 8-bit numbers": ({"BM": 128, "BN": 128, "BK": 32}, np.int8, "operands of i8 are contiguous along k"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_it_does_not_apply_the_report_says_why(name: str) -> None:
    consts, dtype, why = REFUSED[name]
    a = np.zeros((128, 128), dtype)
    kernel = kernels.matmul if dtype == np.float16 else bytes_product
    code = kernel.lower(a, a, np.zeros((128, 128), np.float32 if dtype == np.float16 else np.int32), target=TARGET,
                        **consts)
    assert "mma_m16n8" in code.products and why in code.products
    assert "tl::wgmma" not in code.source


@tile.kernel
def bytes_product(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], c: tile.Out[tile.i32, "M N"],
                  BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32):
    """c = a @ b"""
    tile.store(c, (0, 0), tile.dot(tile.load(a, (0, 0), (BM, BK)), tile.load(b, (0, 0), (BK, BN))))


@tile.kernel
def common_bits(a: tile.Tensor[tile.u32, "M W"], b: tile.Tensor[tile.u32, "N W"], c: tile.Out[tile.i32, "M N"],
                BM: tile.Const = 64, BN: tile.Const = 32, BK: tile.Const = 32):
    """How many bits rows of a and of b have in common."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[0], BN))
    acc = tile.zeros((BM, BN), tile.i32)
    for k in tile.range(0, a.shape[1], BK, stages=3):
        acc = tile.dot_bits(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (n * BN, k), (BN, BK)).T, acc)
    tile.store(c, (m * BM, n * BN), acc)


def test_words_of_bits_go_from_tensors_into_products() -> None:
    """By TMA, without bank conflicts or anything in registers but sums."""
    a, b = (np.random.default_rng(i).integers(0, 1 << 32, (n, 40), dtype=np.uint32) for i, n in enumerate((70, 50)))
    c = np.empty((70, 50), np.int32)
    with tile.target(f"emulate:{TARGET}"):
        common_bits(a, b, c)
    np.testing.assert_array_equal(c, np.bitwise_count(a[:, None] & b).sum(-1, dtype=np.int32))
    counters = tile.last_counters().values()
    assert sum(x.wavefronts for x in counters) == sum(x.ideal_wavefronts for x in counters)
    code = common_bits.lower(a, b, c, target=TARGET)
    assert "wgmma_m64k256_b1" in code.products and "TMA, 3 stages" in code.copies
    if nvrtc.find() is not None and sass.find() is not None:
        loop = sass.classes(sass.main_loop(code.assembly, code.rendered.name))
        assert loop["BGMMA"] == 4 and not {"LDS", "STS", "LDSM", "POPC"} & loop.keys()
        assert code.report["spills"] == 0 and code.report["stack_bytes"] == 0


@tile.kernel
def twice(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "N K"], c: tile.Out[tile.f32, "M K"],
          BM: tile.Const = 64, BN: tile.Const = 64, BK: tile.Const = 64):
    """(a b^T) b: two products read one block, each along another dimension."""
    acc = tile.zeros((BM, BK), tile.f32)
    left = tile.load(a, (0, 0), (BM, BK))
    for n in tile.range(0, b.shape[0], BN, stages=2):
        block = tile.load(b, (n, 0), (BN, BK))
        acc = tile.dot(tile.dot(left, block.T).to(tile.f16), block, acc)
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("extents", [(64, 64, 64), (64, 32, 128), (128, 64, 32)])
def test_two_products_of_one_block(extents: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    m, n, k = extents
    a, b = (rng.integers(-1, 2, shape).astype(np.float16) for shape in ((m, k), (3 * n, k)))
    c = np.empty((m, k), np.float32)
    consts = dict(zip(("BM", "BN", "BK"), extents, strict=True))
    code = twice.lower(a, b, c, target=TARGET, **consts)
    assert code.products.count("wgmma") == 2
    with tile.target(f"emulate:{TARGET}"):
        twice(a, b, c=c, **consts)
    exact = a.astype(np.float64) @ b.T.astype(np.float64)  # small integers: f16 holds them
    np.testing.assert_array_equal(c, exact @ b.astype(np.float64))


# -- asynchrony -------------------------------------------------------------------------------------------------------
def pipelined() -> tuple[Lowered, list[Any]]:
    """A product whose copies, by all threads, run ahead in a ring of three blocks, and its arguments."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((64, 320), (320, 64)))
    c = np.zeros((64, 64), np.float32)
    return kernels.matmul.lower(a, b, c, BM=64, BN=64, BK=64, STAGES=3, target=TARGET).without_windows, [a, b, c]


def findings(code: Lowered, text: str, arrays: list[Any]) -> list[Finding]:
    """What the emulator says of a text of one program, or one cluster, under all policies."""
    rendered: Rendered = code.rendered
    shapes, strides = [x.shape for x in arrays], [tuple(s // x.itemsize for s in x.strides) for x in arrays]
    out = []
    for policy in POLICIES:
        args = arguments(code.tile, rendered, [x.copy() for x in arrays], shapes, strides)
        out += load(text).launch(rendered.name, args, programs=rendered.cluster, threads=rendered.threads,
                                 shared_bytes=rendered.shared_bytes, policy=policy).findings
    return out


MISTAKES = {  # what is left out of the text: what the emulator calls that, and the operation that it names
    "tl::group_wait<": ("product-pending", "wait"),
    "tl::fence_memory(": ("missing-fence", "group_mma"),
    "tl::fence_registers(": ("missing-fence", "group_mma"),
    "tl::group_commit(": ("product-pending", "wait"),
    "tl::barrier(": ("race-raw", "group_mma"),
    "tl::cp_wait<": ("async-pending", "group_mma"),
}


@pytest.mark.parametrize("missing", MISTAKES)
def test_a_mistake_is_named_by_line(missing: str) -> None:
    code, arrays = pipelined()
    text = code.rendered.text
    assert not findings(code, text, arrays)
    broken = "\n".join(line for line in text.splitlines() if missing not in line)
    assert broken.count("\n") < text.count("\n")
    found = findings(code, broken, arrays)
    kind, name = MISTAKES[missing]
    named = [code.rendered.ops[f.op] for f in found if f.kind == kind]
    assert any(op.name == name and op.loc is not None and op.loc.file == kernels.__file__ for op in named), found


def test_operands_that_are_written_over_while_products_read_them() -> None:
    """A ring one block short: the copy for later goes where the product under way reads."""
    code, arrays = pipelined()
    lines = code.rendered.text.splitlines()
    start = next(i for i, line in enumerate(lines) if "tl::group_wait<" in line)
    moved = [line for line in lines if "tl::group_wait<" not in line and "tl::arrived(" not in line]
    assert start and "product-pending" in {f.kind for f in findings(code, "\n".join(moved), arrays)}


def test_every_level_means_the_same_and_reads_back() -> None:
    """Operands that stay in shared memory, and copies into a ring, run in the interpreter, too."""
    code, _ = pipelined()
    run_passes(code.tile, code.target, (*TILE_PASSES, separate, place, pipeline), check=2, dump="")
    for text in map(print_function, (code.placed, code.thread)):
        assert print_function(parse(text)) == text


def test_sums_stay_under_way_from_one_iteration_to_the_next() -> None:
    code, _ = pipelined()
    body = next(op for op in code.thread.walk() if op.name == "for").regions[0].ops
    names = [op.name if op.name != "wait" else f"wait {op.attrs['products']}" for op in body]
    product_at = names.index("group_mma")
    assert "wait True" not in names[product_at:] and names.index("wait True") < names.index("barrier")
    assert "st_async" in names[product_at:] and "st_async" not in names[:product_at]  # copies start beside it
