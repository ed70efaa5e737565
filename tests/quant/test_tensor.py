"""QuantTensor: its meaning against plain loops, its parts' checks, its files."""
from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelang as tile
from tests.ir.test_numbers import define
from tilelang.errors import CheckpointError, QuantError, TileError
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.ir.packed import Packed
from tilelang.quant import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes, load, save

TYPES = [d for d in map(dtype, names()) if d.bits <= 16] + [codebook(3, [-4, -2, -1, 0, 0.5, 1, 3, 7])]


def value(code: int, dt: DType) -> float:
    """What a code means, from the definitions."""
    match dt.kind:
        case "uint" | "bool":
            return code
        case "int":
            return code - (code >> dt.bits - 1 << dt.bits)
        case "bipolar":
            return sum((1 if code >> i & 1 else -1) << i for i in range(dt.bits))
        case "ternary":
            return [-1, 0, 1, 0][code]
        case "codebook":
            return dt.table[code]
        case "scale":
            return float("nan") if code == 255 else 2.0 ** (code - 127)
    return float(define(code, dt))


def random_codes(rng: np.random.Generator, dt: DType, shape: tuple[int, ...]) -> Packed:
    return Packed.from_codes(rng.integers(0, 1 << dt.bits, shape, np.uint64), dt)


@pytest.mark.parametrize("dt", TYPES, ids=lambda d: d.name[:12])
@settings(max_examples=20)
@given(data=st.data())
def test_dequantize_is_the_formula(dt: DType, data: st.DataObject) -> None:
    n, k, bn, bk, kind = (data.draw(st.integers(1, top)) for top in (3, 9, 3, 10, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = random_codes(rng, dt, (n, k))
    assert (Packed.from_codes(codes.codes(), dt).codes() == codes.codes()).all()
    runs, grid = -(-n * k // bk), (-(-n // bn), -(-k // bk))
    scale, zero, minimum = (rng.standard_normal((1, runs) if kind == 1 else grid) for _ in range(3))
    index = rng.integers(0, grid[1], k) if kind == 2 else None
    q = QuantTensor(codes, *(Parameter(p, bk if kind == 1 else (bn, bk), index) for p in (scale, zero, minimum)))
    with np.errstate(invalid="ignore"):  # signalling NaN
        got, c = q.dequantize(), codes.codes()
    for i in range(n):
        for j in range(k):
            at = (0, (i * k + j) // bk) if kind == 1 else (i // bn, j // bk if index is None else index[j])
            with np.errstate(invalid="ignore"):
                want = scale[at] * (value(int(c[i, j]), dt) - zero[at]) + minimum[at]
            assert got[i, j] == want or np.isnan(want) and np.isnan(got[i, j]), (i, j)


def nested() -> QuantTensor:
    """Everything at once: rows in two parts, codes of vectors, quantised scales, corrections."""
    rng = np.random.default_rng(1)
    inner = QuantTensor(random_codes(rng, dtype("u6"), (3, 4)),
                        Parameter(rng.standard_normal((3, 2)).astype(np.float16), (1, 2)))
    first = QuantTensor(random_codes(rng, dtype("u3"), (3, 10)), Parameter(inner, (1, 3)),
                        Parameter(random_codes(rng, dtype("bf16"), (3, 1)), (1, 10)))
    vectors = VectorCodes((random_codes(rng, dtype("u4"), (2, 4)), random_codes(rng, dtype("u2"), (2, 5))),
                          (rng.standard_normal((16, 3)), rng.standard_normal((4, 2)).astype(np.float32)), (2, 10))
    second = QuantTensor(vectors, minimum=Parameter(rng.standard_normal((1, 10)), (2, 1)))
    return QuantTensor(RowParts((first, second), np.array([4, 0, 2, 1, 3])), permutation=rng.permutation(10),
                       corrections=(Sparse(np.array([0, 1, 1, 3, 3, 3]), np.array([2, 0, 9], np.int16),
                                           np.array([1., 2, 3])),
                                    LowRank(rng.standard_normal((5, 1)), rng.standard_normal((1, 10))),
                                    Sparse(np.array([0, 0, 0, 0, 0, 1]), np.array([9]), np.array([7.]), "replace")))


def test_parts_permutation_and_corrections() -> None:
    q = nested()
    first, second = q.codes.parts
    stored = np.concatenate([first.dequantize(), second.dequantize()])
    want = np.zeros((5, 10))
    for j, row in enumerate(q.codes.rows):
        for i, column in enumerate(q.permutation):
            want[row, column] = stored[j, i]
    want[0, 2] += 1
    want[2, 0] += 2
    want[2, 9] += 3
    want += q.corrections[1].a @ q.corrections[1].b
    want[4, 9] = 7
    np.testing.assert_array_equal(q.dequantize(), want)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [None, (6, 4)])
def test_vectors(axis: int, block: tuple[int, int] | None) -> None:
    rng, (n, k) = np.random.default_rng(0), (11, 9)
    sizes, grid = (2, 2), (1, 1) if block is None else (2, 3)
    stages = tuple(random_codes(rng, dtype("u3"), (n, -(-k // d)) if axis else (-(-n // d), k)) for d in sizes)
    full = tuple(rng.standard_normal((*grid, 8, d)) for d in sizes)
    codes = VectorCodes(stages, full if block else tuple(t[0, 0] for t in full), (n, k), axis, block)  # type: ignore
    got = QuantTensor(codes).dequantize()
    for i in range(n):
        for j in range(k):
            at = (0, 0) if block is None else (i // block[0], j // block[1])
            want = 0.0
            for d, stage, table in zip(sizes, stages, full, strict=True):
                code = int(stage.codes()[(i, j // d) if axis else (i // d, j)])
                want += table[at][code, (j if axis else i) % d]
            assert got[i, j] == want


def test_read_only_memory_becomes_torchs() -> None:
    scale = np.frombuffer(np.ones((4, 1), np.float32).tobytes(), np.float32).reshape(4, 1)
    q = QuantTensor(Packed.empty((4, 6), dtype("u4")), Parameter(scale, (1, 6)))
    assert q.torch() == q


def test_equality_is_by_content(tmp_path: Path) -> None:
    q = nested()
    assert q == nested() and q == q.torch() and q.torch().numpy() == q
    assert isinstance(q.torch().codes.parts[0].codes.buffer, torch.Tensor)
    np.testing.assert_array_equal(q.torch().dequantize(), q.dequantize())
    changed = q.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
    changed.corrections[1].a[0, 0] += 1
    assert q != changed and q != q.codes and q != "q"
    save({"a.b": q, "c": q.torch()}, tmp_path / "q.safetensors")
    again = load(tmp_path / "q.safetensors")
    assert list(again) == ["a.b", "c"] and again["a.b"] == q == again["c"]


def test_files_are_readable_by_name(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
    q = tile.quantize(w, "u3", group=16)
    save({"layer": q}, tmp_path / "q.safetensors")
    plain = safetensors.numpy.load_file(tmp_path / "q.safetensors")
    assert sorted(plain) == ["layer.codes", "layer.scale", "layer.zero"]
    np.testing.assert_array_equal(plain["layer.scale"], q.scale.values)
    assert plain["layer.codes"].tobytes() == q.codes.buffer.tobytes()


def test_other_files_are_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "plain.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name, text in (("plain", "has no quantised tensors"), ("noise", "cannot be read")):
        with pytest.raises(CheckpointError, match=text):
            load(tmp_path / f"{name}.safetensors")
    with pytest.raises(QuantError, match="`x` cannot be saved"):
        save({"x": np.zeros(3)}, tmp_path / "q.safetensors")  # type: ignore[dict-item]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    q = tile.quantize(np.ones((4, 32), np.float32), "u4", 32)
    save({"a": q}, tmp_path / "q.safetensors")
    data = (tmp_path / "q.safetensors").read_bytes()
    for old, new in ((b"Parameter", b"Parametre"), (b"[4, 32]", b"[4, 33]"), (b"u4", b"w4"), (b"block", b"blick"),
                     (b'a.zero"', b'a.zerr"'), (b"QuantTensor", b"RowParts   ")):
        assert old in data
        (tmp_path / "bad.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(CheckpointError, match="bad.safetensors (is damaged|cannot be read)"):
            load(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "bad.safetensors")
    with pytest.raises(QuantError, match="`a.scale.codes` stands for two tensors"):
        save({"a": tile.quantize(np.ones((4, 32)), "u4", 16, scale_dtype="u6"), "a.scale": q}, tmp_path / "q")


def test_copies() -> None:
    q = nested()
    assert pickle.loads(pickle.dumps(q)) == q == copy.deepcopy(q)


def test_sizes() -> None:
    q = QuantTensor(Packed.empty((8, 64), dtype("u4")), Parameter(np.ones((8, 2), np.float16), (1, 32)))
    assert q.nbytes == 8 * 32 + 8 * 2 * 2 and q.bits_per_weight == 4.5 and q.dtype is dtype("u4")
    assert repr(q) == "QuantTensor(u4 (8, 64), scale=Parameter(f16 (8, 2), block=(1, 32)))"
    assert repr(QuantTensor(Packed.empty((1, 2), codebook(8, range(256))))) == "QuantTensor(codebook(8) (1, 2))"


CODES = Packed.empty((4, 6), dtype("u4"))
ONES = np.ones((4, 2))
MISTAKES: list[tuple[str, Any]] = [
    ("`scale` has the wrong shape", lambda: QuantTensor(CODES, Parameter(ONES, (1, 2)))),
    ("`zero` has the wrong rank", lambda: QuantTensor(CODES, None, Parameter(np.ones(4), (1, 6)))),
    ("`minimum` has an impossible block", lambda: QuantTensor(CODES, minimum=Parameter(ONES, (0, 6)))),
    ("`scale` has the wrong shape", lambda: QuantTensor(CODES, Parameter(ONES, 2))),
    ("`scale` is not a Parameter", lambda: QuantTensor(CODES, ONES)),  # type: ignore[arg-type]
    ("`scale` is not a parameter", lambda: QuantTensor(CODES, Parameter("x", 2))),
    ("`scale.index` is out of range", lambda: QuantTensor(
        CODES, Parameter(ONES, (1, 3), np.array([0, 1, 2, 0, 0, 0])))),
    ("`scale.index` has the wrong shape", lambda: QuantTensor(CODES, Parameter(ONES, (1, 3), np.array([0, 1])))),
    ("`codes` is not a matrix of codes", lambda: QuantTensor(ONES)),  # type: ignore[arg-type]
    ("`codes` has the wrong rank", lambda: QuantTensor(Packed.empty((4,), dtype("u4")))),
    ("`permutation` is not a permutation", lambda: QuantTensor(CODES, permutation=np.array([0, 1, 2, 3, 4, 4]))),
    ("`corrections.0` has the wrong shapes", lambda: QuantTensor(CODES, corrections=(LowRank(ONES, ONES),))),
    ("`corrections.0.columns` is out of range", lambda: QuantTensor(CODES, corrections=(
        Sparse(np.array([0, 0, 0, 0, 1]), np.array([6]), np.ones(1)),))),
    ("`corrections.0.row_starts` is not in order", lambda: QuantTensor(CODES, corrections=(
        Sparse(np.array([0, 2, 0, 0, 1]), np.array([5]), np.ones(1)),))),
    ("`codes.stages.0` is out of range", lambda: VectorCodes(
        (Packed.from_codes(np.full((4, 3), 9), dtype("u4")),), (np.ones((9, 2)),), (4, 6))),
    ("`codes.stages.0` has the wrong shape", lambda: VectorCodes((CODES,), (np.ones((16, 2)),), (4, 6))),
    ("`codes.parts` do not agree", lambda: RowParts((
        QuantTensor(CODES), QuantTensor(Packed.empty((1, 5), dtype("u4")))))),
    ("rows have several dtypes", lambda: QuantTensor(RowParts((QuantTensor(CODES), QuantTensor(
        Packed.empty((1, 6), dtype("u3")))))).dtype),
]


@pytest.mark.parametrize(("message", "make"), MISTAKES, ids=[m for m, _ in MISTAKES])
def test_mistakes_name_the_field(message: str, make: Any) -> None:
    with pytest.raises(TileError) as error:
        make()
    assert str(error.value).startswith(message) and "needs:" in str(error.value) and "got:" in str(error.value)


@tile.kernel
def decode(c: tile.Tensor[tile.T, "N K"], y: tile.Out[tile.f32, "N K"]):
    n, k = tile.grid(tile.cdiv(c.shape[0], 16), tile.cdiv(c.shape[1], 16))
    tile.store(y, (n * 16, k * 16), tile.load(c, (n * 16, k * 16), (16, 16)).to(tile.f32))


@pytest.mark.parametrize("name", ["u4", "u8", "i8", "f8e4m3", "s8", "e8m0", "u16", "bf16", "f16", "f32", "f8e3m4"])
@pytest.mark.parametrize("memory", ["numpy", "torch"])
def test_kernels_read_codes_of_every_width(name: str, memory: str) -> None:
    dt = dtype(name)
    codes = Packed.pack(np.random.default_rng(0).standard_normal((5, 20)).cumsum(1) ** 2, dt, 24 * dt.bits)
    given = QuantTensor(codes).torch().codes if memory == "torch" else codes
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(decode(given)), codes.values())
