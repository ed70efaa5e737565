"""Stores that pass by the caches, and prefetches of the next program's block."""
from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cpu.processors import assembly, level
from tilelang.backends.cpu import machine

HOST = machine.host()


@pytest.fixture
def tiny_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose caches hold nothing, so that every tensor is a large one."""
    monkeypatch.setattr(machine, "host", lambda: replace(HOST, cache_bytes=0))


def centre() -> tile.jit.Kernel:
    """A kernel compiled by nobody before. It reads its block twice."""
    @tile.kernel
    def kernel(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], BM: tile.Const, BN: tile.Const):
        m = tile.grid(tile.cdiv(x.shape[0], BM))
        v = tile.load(x, (m * BM, 0), (BM, BN))
        tile.store(y, (m * BM, 0), v - v.max(1, keepdims=True))
    return kernel


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("start", [0, 1, 4])  # elements from an aligned address
@pytest.mark.parametrize("shape", [(7, 64), (8, 100), (5, 208), (1, 16), (3, 5), (3, 700), (2, 1024), (2, 1055)])
@pytest.mark.parametrize("gap", [0, 16, 3])
def test_results_at_any_alignment(shape: tuple[int, int], start: int, gap: int) -> None:
    m, n = shape
    x = torch.randn(m, n)
    y = torch.full((m * (n + gap) + 64,), 7.0)
    out = y[start:].as_strided((m, n), (n + gap, 1))
    centre()(x, out, BM=2, BN=n if n < 1000 else 1056)
    torch.testing.assert_close(out, x - x.max(1, keepdim=True).values, rtol=0, atol=0)
    assert int((y == 7.0).sum()) == y.numel() - m * n, "nothing else is written"


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize("dt", [torch.bool, torch.int8, torch.float16, torch.int32, torch.float64])
def test_rows_that_begin_and_end_within_lines(dt: torch.dtype) -> None:
    @tile.kernel
    def copy(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "N"], B: tile.Const = 4096):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)))
    assert "to_line" in str(copy.lower(torch.zeros(4096, dtype=dt), torch.zeros(4096, dtype=dt)).thread)
    for start, n in ((0, 4096), (3, 4097 + 1024), (1, 100)):
        x = (torch.randn(n + 80) * 9).to(dt)
        y = torch.ones(n + 80, dtype=dt)
        copy(x[1:n + 1], y[start:n + start])
        assert torch.equal(y[start:n + start], x[1:n + 1])
        assert bool((y[:start] == 1).all()) and bool((y[n + start:] == 1).all()), "nothing else is written"


@pytest.mark.usefixtures("tiny_cache")
def test_lines_are_written_whole() -> None:
    """Blocks of half a line, and tensors that promise no neighbours, go through the caches."""
    x = torch.zeros(4, 64)
    assert "streams" in str(centre().lower(x, x.clone(), BM=1, BN=64).thread)
    assert "streams" not in str(centre().lower(x, x.clone(), BM=1, BN=40).thread)
    assert "streams" not in str(centre().lower(x, torch.zeros(64, 4).T, BM=1, BN=64).thread)


@pytest.mark.usefixtures("tiny_cache")
def test_an_output_that_is_read_does_not_stream() -> None:
    @tile.kernel
    def twice(x: tile.Tensor[tile.f32, "N"], y: tile.InOut[tile.f32, "N"], B: tile.Const = 64):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)) + tile.load(y, (n * B,), (B,)))
    x, y = torch.randn(200), torch.randn(200)
    assert "streams" not in str(twice.lower(x, y).thread)
    want = x + y
    twice(x, y)
    assert torch.equal(y, want)


@pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="looks at x86 instructions")
def test_x86_instructions() -> None:
    x = torch.zeros(4, 64)
    code = centre().lower(x, x.clone(), BM=1, BN=64).assembly
    assert "vmovntps" in code and "sfence" in code and "prefetcht1" in code


@pytest.mark.skipif(not HOST.triple.startswith("x86_64"), reason="looks at x86 instructions")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v4"])
def test_a_loop_that_streams_is_as_it_was_written(processor: str) -> None:
    """Not unrolled, and its lines are written in order: both would make memory slower."""
    @tile.kernel
    def copy(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const = 4096):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)))
    code, register = assembly(processor, copy, torch.zeros(8192), torch.zeros(8192)), level(processor).vector_bytes
    places = [int(offset or 0) for offset in re.findall(r"vmovntps\s+%\w+, (-?\d*)\(", code)]
    loop, line = places[:4], places[4:]  # the last whole lines are stored one by one
    assert loop == list(range(loop[0], loop[0] + 4 * register, register))
    assert line == list(range(line[0], line[0] + machine.LINE, register))


def test_large_output() -> None:
    """The choice at run time: more than the caches hold, written by all threads, read right after."""
    m = HOST.cache_bytes // 4096 + 64
    x = np.arange(m * 1024, dtype=np.float32).reshape(m, 1024)
    y = np.empty_like(x)
    centre()(x, y, BM=1, BN=1024)
    assert np.array_equal(y, x - x[:, -1:])


@tile.kernel
def gemv(x: tile.Tensor[tile.f32, "N"], w: tile.Tensor[tile.W, "M N"], y: tile.Out[tile.f32, "M"],
         STAGES: tile.Const):
    m = tile.grid(tile.cdiv(w.shape[0], 4))
    acc = tile.zeros((4,), tile.f32)
    for n in tile.range(0, tile.cdiv(w.shape[1], 64), stages=STAGES):
        acc = acc + (tile.load(w, (m * 4, n * 64), (4, 64)).to(tile.f32) * tile.load(x, (n * 64,), (64,))).sum(1)
    tile.store(y, (m * 4,), acc)


def test_a_loop_of_stages_asks_for_what_it_reads_later() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(300).astype(np.float32), rng.standard_normal((6, 300)).astype(np.float32)
    ahead = [str(gemv.lower(x, w, np.empty(6, np.float32), STAGES=stages).thread).count("prefetch %w")
             for stages in (1, 3)]
    rows = HOST.registers // 2 // 4  # which share x, at once: sums of four registers each
    assert ahead == [0, rows * HOST.vector_bytes // 16]  # every line of as many lanes of each row
    np.testing.assert_array_equal(gemv(x, w, STAGES=3), gemv(x, w, STAGES=1))


@pytest.mark.parametrize("name", ["u1", "u4", "f6e3m2", "u12", "u24"])
def test_packed_rows_are_asked_for(name: str) -> None:
    """By bits, of which a line has 512."""
    rng, dt = np.random.default_rng(0), tile.dtype(name)
    x = rng.standard_normal(300).astype(np.float32)
    w = tile.Packed.from_codes(rng.integers(0, 1 << min(dt.bits, 20), (6, 300), np.uint32), dt)
    thread = str(gemv.lower(x, w, np.empty(6, np.float32), STAGES=3).thread)
    asked = re.findall(r"prefetch %w, %(\w+)", thread)
    assert len(asked) > 1 and len({*asked}) == len(asked)
    lanes = [int(n) for n in re.findall(r"ld %w, .*lanes=(\d+)", thread)]
    assert len(asked) == sum(-(-n * dt.bits // 512) for n in lanes[:len(lanes) // 2])  # the other half is masked
    np.testing.assert_array_equal(gemv(x, w, STAGES=3), gemv(x, w, STAGES=1))


@tile.kernel
def pages(x: tile.Tensor[tile.f32, "C P N"], table: tile.Tensor[tile.i32, "M"], y: tile.Out[tile.f32, "N"],
          P: tile.Const, N: tile.Const):
    """Sums of pages in the table's order."""
    tile.grid()
    acc = tile.zeros((N,), tile.f32)
    for m in tile.range(0, P * table.shape[0], P, stages=2):
        acc = acc + tile.load(x, (tile.load(table, (m // P,), ()), 0, 0), (None, P, N)).sum(0)
    tile.store(y, (0,), acc)


@pytest.mark.parametrize("rows", [8, 64])
def test_the_next_page_is_asked_for(rows: int) -> None:
    """By its place in the table: a small page at once, rows of a large one behind the last of this page; with 16
    registers a large one, too, in the order of memory."""
    rng = np.random.default_rng(0)
    x, table = rng.integers(-9, 9, (7, rows, 128)).astype(np.float32), np.array([3, 0, 6, 6, 1], np.int32)
    y = np.zeros(128, np.float32)
    pages(x, table, y, P=rows, N=128)
    assert np.array_equal(y, x[table].sum((0, 1)))
    thread = str(pages.lower(x, table, y, P=rows, N=128).thread)
    near = rows == 64 and HOST.registers > 16
    assert thread.count("ld %table") > 1 and re.search(f"prefetch %x.*near={near}", thread)


@tile.kernel
def blocks_along_k(x: tile.Tensor[tile.f16, "M K"], w: tile.Tensor[tile.f16, "N K"], y: tile.Out[tile.f32, "M N"],
                   BK: tile.Const):
    acc = tile.zeros((8, 16), tile.f32)
    for k in tile.range(0, x.shape[1], BK, stages=2):
        acc = tile.dot(tile.load(x, (0, k), (8, BK)), tile.load(w, (0, k), (16, BK)).T, acc)
    tile.store(y, (0, 0), acc)


@pytest.mark.parametrize("k", [33, 70])
def test_columns_that_are_left_over_are_read_where_they_are_used(k: int) -> None:
    """A vector of the block inside was taken by the branch with masks, too: LLVM refused the code."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-9, 9, shape).astype(np.float16) for shape in ((k, 8), (16, k)))
    assert np.array_equal(blocks_along_k(x.T, w, BK=33), x.T.astype(np.float32) @ w.T.astype(np.float32))
