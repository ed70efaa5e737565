"""GGUF blocks against the package `gguf`: values and bytes to the bit."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quants

import tilelang as tile
from tilelang.errors import CheckpointError, QuantError
from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant import QuantTensor
from tilelang.quant.formats.gguf import FORMATS, from_gguf, load_gguf, to_gguf

CODES = {"Q4_0": "i4", "Q4_1": "u4", "Q5_0": "i5", "Q5_1": "u5", "Q8_0": "i8", "Q2_K": "u2", "Q3_K": "i3",
         "Q4_K": "u4", "Q5_K": "u5", "Q6_K": "i6", "TQ1_0": "ternary", "TQ2_0": "ternary", "MXFP4": "f4e2m1",
         "NVFP4": "f4e2m1"}
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]  # those that `gguf` can quantise


def random_bytes(format: str, rows: int, blocks: int) -> Any:
    """Any bits, of which the f16 are finite."""
    rng = np.random.default_rng(len(format))
    record = FORMATS[format].record
    if format == "TQ1_0":
        codes = {"codes": rng.integers(0, 3, (rows * blocks, 256)),
                 "scale": rng.integers(0, 1 << 15, (rows * blocks, 1))}
    else:
        codes = record.unpack(rng.integers(0, 256, (rows * blocks, record.size)).astype(np.uint8))
    for name, field in record.fields.items():
        if field.dtype.name in ("f16", "e8m0"):  # e8m0's last code is NaN in OCP's definition, a number in ggml's
            codes[name] = codes[name] & ~np.int64(0x4000 if field.dtype.name == "f16" else 0x80)
    if format == "TQ2_0":
        codes["codes"] = codes["codes"] % 3
    if format == "NVFP4":
        codes["scale"] = codes["scale"] % 0x7F
    return record.pack(codes).reshape(rows, -1)


@pytest.mark.parametrize("format", FORMATS)
def test_every_bit_means_what_ggml_says(format: str) -> None:
    rows, blocks = 3, 40
    data = random_bytes(format, rows, blocks)
    q = from_gguf(data, format, (rows, blocks * FORMATS[format].block))
    # All products are exact in f32, of the sums there is one: the same number rounded once.
    want = quants.dequantize(data, Type[format])
    np.testing.assert_array_equal(q.dequantize().astype(np.float32), want)
    np.testing.assert_array_equal(to_gguf(q, format), data)
    assert q.bits_per_weight == 8 * FORMATS[format].record.size / FORMATS[format].block or format == "TQ1_0"
    assert format.startswith("IQ4") or q.dtype is dtype(CODES[format])
    assert gguf.GGML_QUANT_SIZES[Type[format]] == (FORMATS[format].block, FORMATS[format].record.size)


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"TQ1_0"}))
def test_no_bit_is_lost(format: str) -> None:
    """Infinities and NaN included."""
    f = FORMATS[format]
    data = np.random.default_rng(0).integers(0, 256, (2, 3 * f.record.size)).astype(np.uint8)
    if format in ("TQ2_0", "NVFP4"):
        data[:] &= 0x55
    np.testing.assert_array_equal(to_gguf(from_gguf(data, format, (2, 3 * f.block)), format), data)
    assert sum(field.at.size for field in f.record.fields.values()) == 8 * f.record.size


@pytest.mark.parametrize("format", WRITTEN)
def test_quantised_by_ggml(format: str) -> None:
    w = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)
    data = quants.quantize(w, Type[format])
    q = from_gguf(data, format, w.shape)
    np.testing.assert_array_equal(to_gguf(q, format), data)
    np.testing.assert_array_equal(q.dequantize().astype(np.float32), quants.dequantize(data, Type[format]))


@pytest.mark.parametrize(("format", "name", "group", "scale"), [
    ("Q4_0", "i4", 32, "f16"), ("Q5_0", "i5", 32, "f16"), ("Q8_0", "i8", 32, "f16"), ("TQ2_0", "ternary", 256, "f16"),
    ("TQ1_0", "ternary", 256, "f16"), ("MXFP4", "f4e2m1", 32, "e8m0")])
def test_our_quantisation_is_readable_by_ggml(format: str, name: str, group: int, scale: str) -> None:
    q = tile.quantize(np.random.default_rng(1).standard_normal((4, 512)), name, group, scale_dtype=scale)
    got = quants.dequantize(to_gguf(q, format), Type[format])
    np.testing.assert_array_equal(got, q.dequantize().astype(np.float32))


def write(path: Path, tensors: dict[str, tuple[Any, str | None]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (data, format) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=None if format is None else Type[format])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files(tmp_path: Path) -> None:
    q4, q6 = random_bytes("Q4_K", 6, 2), random_bytes("Q6_K", 4, 1)
    norm, half = np.arange(5, dtype=np.float32), np.arange(6, dtype=np.float16).reshape(2, 3)
    write(tmp_path / "m.gguf", {"a.weight": (q4, "Q4_K"), "experts": (q6.reshape(2, 2, -1), "Q6_K"),
                                "norm": (norm, None), "half": (half, None)})
    got = dict(load_gguf(tmp_path / "m.gguf"))
    assert list(got) == ["a.weight", "experts", "norm", "half"]
    assert got["a.weight"] == from_gguf(q4, "Q4_K", (6, 512)) and got["experts"].shape == (4, 256)
    np.testing.assert_array_equal(to_gguf(got["experts"], "Q6_K"), q6)
    np.testing.assert_array_equal(got["norm"], norm)
    np.testing.assert_array_equal(got["half"], half)


def test_files_that_are_not(tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf", {"a.weight": (random_bytes("Q4_K", 6, 2), "Q4_K")})
    whole = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-700])
    (tmp_path / "noise.gguf").write_bytes(b"noise, and more of it")
    for name in ("cut", "noise"):
        with pytest.raises(CheckpointError, match=f"{name}.gguf cannot be read"):
            list(load_gguf(tmp_path / f"{name}.gguf"))
    write(tmp_path / "iq.gguf", {"b.weight": (np.zeros((1, 66), np.uint8), "IQ2_XXS")})
    with pytest.raises(CheckpointError, match="`b.weight` has an unknown format"):
        list(load_gguf(tmp_path / "iq.gguf"))


@pytest.mark.parametrize(("message", "data", "format", "shape"), [
    ("`w` has the wrong number of bytes", np.zeros(143, np.uint8), "Q4_K", (1, 256)),
    ("`w` has the wrong shape", np.zeros(144, np.uint8), "Q4_K", (1, 255)),
    ("`w` has an unknown format", np.zeros(144, np.uint8), "Q9_K", (1, 256)),
    ("`w` has an invalid code", np.full(66, 255, np.uint8), "TQ2_0", (1, 256)),
    ("`w` has an invalid code", np.full(36, 255, np.uint8), "NVFP4", (1, 64)),
])
def test_broken_tensors(message: str, data: Any, format: str, shape: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        from_gguf(data, format, shape, "w")
    assert str(error.value).startswith(message) and "needs:" in str(error.value)


W = np.random.default_rng(0).standard_normal((2, 256))


@pytest.mark.parametrize(("field", "q", "format"), [
    ("format", tile.quantize(W, "u4", 32), "Q9"), ("zero", tile.quantize(W, "u4", 32), "Q4_0"),
    ("codes", tile.quantize(W, "i5", 32), "Q4_0"), ("scale", tile.quantize(W, "i4", 64), "Q4_0"),
    ("scale", tile.quantize(W, "i4", 32, scale_dtype="f32"), "Q4_0"),
    ("zero", tile.quantize(W, "u4", 32, True), "Q4_1"), ("scale", tile.quantize(W, "u4", 32).codes, "Q4_1"),
    ("codes", tile.quantize(W[:, :48], "i4", 32), "Q4_0"), ("scale", tile.quantize(W, "i6", 16), "Q6_K"),
])
def test_what_a_format_cannot_hold(field: str, q: Any, format: str) -> None:
    with pytest.raises(QuantError, match=f"whose `[a-z, ]*{field}.*cannot be written as {format}"):
        to_gguf(QuantTensor(q) if isinstance(q, Packed) else q, format)


@pytest.mark.parametrize("shape", [(), (-2, -256), (0, 256), (2.0, 256)])
def test_impossible_shapes(shape: Any) -> None:
    raw = to_gguf(tile.quantize(W, "i4", 32), "Q4_0")
    with pytest.raises(CheckpointError, match="impossible shape"):
        from_gguf(raw, "Q4_0", shape)
    with pytest.raises(CheckpointError, match="no tensor of bytes"):
        from_gguf(None, "Q4_0", (2, 256))
