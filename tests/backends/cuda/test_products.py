"""Machine code, its report and its assembly, without a GPU; what may change machine code changes its cache key."""
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tilelang as tile
from tilelang import cache
from tilelang.backends.cuda import nvrtc, products
from tilelang.backends.cuda.compile import Lowered
from tilelang.backends.cuda.occupancy import MULTIPROCESSORS, REGISTERS, resident_blocks
from tilelang.backends.cuda.target import SHARED_BYTES
from tilelang.errors import TargetError
from tilelang.ops.matmul import matmul_kernel

compiles = pytest.mark.skipif(nvrtc.find() is None, reason="nvidia-cuda-nvrtc is not installed")


def _matmul(arch: str = "sm_80") -> Lowered:
    a = np.zeros((64, 64), np.float16)
    return matmul_kernel.lower(a, a, a.copy(), BM=64, BN=64, BK=32, ACC=tile.f32, target=f"cuda:{arch}")


@compiles
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_machine_code_says_what_it_uses(arch: str) -> None:
    lowered = _matmul(arch)
    assert lowered.cubin[:4] == b"\x7fELF"
    report = lowered.report
    assert 0 < report["registers"] <= 255 and report["spills"] == report["stack_bytes"] == 0
    assert report["shared_bytes"] == lowered.rendered.shared_bytes and report["threads"] == lowered.rendered.threads
    held = report["resident_blocks"]
    assert held >= 1 and held * report["threads"] * report["registers"] <= REGISTERS
    m = MULTIPROCESSORS[lowered.target.arch]
    assert held * (report["shared_bytes"] + m.reserved) <= m.shared_bytes
    assert report["occupancy"] == held * report["threads"] / 32 / m.warps <= 1


@compiles
@pytest.mark.skipif(products.nvdisasm() is None, reason="nvidia-cuda-nvdisasm is not installed")
def test_assembly_shows_the_matrix_instructions() -> None:
    text = _matmul().assembly
    warps = _matmul().rendered.threads // 32
    # One step over k, in the loop of whole blocks and in that of the rest.
    assert text.count("HMMA.16816") * warps == 2 * 64 * 64 * 32 // (16 * 8 * 16)


def test_a_missing_disassembler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "nvdisasm", lambda: None)
    with pytest.raises(TargetError, match="pip install nvidia-cuda-nvdisasm"):
        products.assembly(b"")


def test_machine_code_is_compiled_once_for_all_that_can_change_it(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def compile(text: str, arch: str, blocks: int = 0) -> nvrtc.Compiled:
        calls.append((text, arch))
        return nvrtc.Compiled(f"{len(calls)}\n".encode(), "", {"k": {"registers": len(calls)}})
    version, include = [(13, 0)], tmp_path / "include"
    include.mkdir()
    (include / "tl.h").write_text("old")
    store = cache.Cache(tmp_path / "cache", 1 << 20)
    for name, value in (("compile", compile), ("version", lambda: version[0]), ("INCLUDE", include),
                        ("find", lambda: None)):
        monkeypatch.setattr(nvrtc, name, value)
    monkeypatch.setattr(cache, "default", lambda: store)

    def made(text: str = "a", arch: str = "sm_80") -> int:
        products._compiler.cache_clear()  # another process
        p = products.product(text, "k", arch)
        assert p.cubin == f"{p.uses['registers']}\n".encode()
        return p.uses["registers"]
    try:
        assert [made(), made(), made("b"), made(arch="sm_90"), made(arch="sm_90a"), made()] == [1, 1, 2, 3, 4, 1]
        version[0] = (13, 1)
        assert [made(), made()] == [5, 5]
        (include / "tl.h").write_text("new")
        assert [made(), made()] == [6, 6]
        (include / "more.h").write_text("")
        assert made() == 7 == len(calls)
    finally:
        products._compiler.cache_clear()


def test_a_second_block_is_asked_for_where_few_registers_keep_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of 256 threads fit with 128 registers. What spills for it is not taken, nor tried with far more."""
    lowered = _matmul()
    lowered.rendered = replace(lowered.rendered, threads=256)
    asked: list[int] = []

    def held(shared: int, one: tuple[int, int], two: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        def product(text: str, kernel: str, arch: str, blocks: int = 0) -> products.Product:
            asked.append(blocks)
            registers, spills = two if blocks else one
            return products.Product(b"", {"registers": registers, "spill_bytes": spills, "stack_bytes": 0,
                                          "shared_bytes": shared, "serialized": 0})
        monkeypatch.setattr("tilelang.backends.cuda.compile.product", product)
        lowered.__dict__.pop("product", None)
        asked.clear()
        return lowered.report["registers"], lowered.report["resident_blocks"]
    assert held(0, (156, 0), (128, 0)) == (128, 2) and asked == [0, 2]
    assert held(0, (156, 0), (128, 4)) == (156, 1) and asked == [0, 2]
    assert held(0, (156, 0), (130, 0)) == (156, 1) and asked == [0, 2]
    for other in ((90 << 10, (156, 0)), (0, (168, 0)), (0, (128, 0)), (0, (130, 8))):
        held(*other)
        assert asked == [0], other


@pytest.mark.parametrize(("arch", "threads", "registers", "shared", "blocks", "limit"), [
    (80, 256, 32, 0, 8, "warps"), (80, 256, 33, 0, 6, "registers"), (80, 256, 128, 0, 2, "registers"),
    (80, 256, 129, 0, 1, "registers"), (80, 32, 16, 0, 32, "blocks"), (86, 32, 16, 0, 16, "blocks"),
    (80, 128, 32, 163 << 10, 1, "shared memory"), (90, 128, 32, 48 << 10, 4, "shared memory"),
    (75, 128, 32, 32 << 10, 2, "shared memory"), (89, 768, 40, 0, 2, "warps"), (80, 1024, 64, 0, 1, "registers"),
    (80, 1024, 65, 0, 0, "registers"),
])
def test_resident_blocks(arch: int, threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    assert resident_blocks(arch, threads, registers, shared) == (blocks, limit)


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_more_of_anything_never_lets_more_blocks_in(arch: int) -> None:
    assert MULTIPROCESSORS[arch].shared_bytes - MULTIPROCESSORS[arch].reserved == SHARED_BYTES[arch]
    for grow in (lambda n: (32 * n, 64, 1024), lambda n: (128, 8 * n, 0), lambda n: (64, 32, n * 7000)):
        counts = [resident_blocks(arch, *grow(n))[0] for n in range(1, 33)]
        assert all(a >= b for a, b in pairwise(counts)) and counts[0] > 0
