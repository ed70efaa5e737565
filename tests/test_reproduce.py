"""Reproducers: what the compiler gets wrong leaves a file that shows it again, and gets smaller."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors, reproduce
from tilelang.backends.cpu.compile import Lowered
from tilelang.checking import check
from tilelang.cli import main
from tilelang.ir.parser import parse
from tilelang.ops.matmul import matmul_kernel

TEXT = str(matmul_kernel.trace(matmul_kernel.types({"T": tile.f32, "U": tile.f32}),
                               {"BM": 8, "BN": 8, "BK": 4, "ACC": tile.f32}))


@tile.kernel
def roots(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const = 8):
    n = tile.grid(tile.cdiv(x.shape[0], B))
    tile.store(y, (n * B,), tile.sqrt(tile.abs(tile.load(x, (n * B,), (B,)))) + 1.0)


@tile.kernel
def unsynchronised(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 256)) * 256
    s = tile.shared((256,), tile.f32)
    tile.store(s, 0, tile.load(x, n, 256))
    tile.store(y, n, tile.gather(s, (255 - tile.arange(256),)))


def test_a_mistake_inside_the_compiler_leaves_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Lowered) -> bytes:
        raise KeyError("something inside")
    monkeypatch.setattr(Lowered, "object_code", property(broken))
    with pytest.raises(KeyError, match="something inside") as error:
        roots(np.ones(12, np.float32), B=4)
    (note,) = error.value.__notes__
    path = Path(note.split("written to ")[1].split("; please")[0])
    text, target, _ = reproduce.load(path)
    assert target == "cpu" and "sqrt" in text and "KeyError: " in path.read_text(encoding="utf-8")
    assert reproduce.kind(reproduce.failure(text, target)) == "KeyError"


def test_mistakes_of_the_user_leave_none() -> None:
    with pytest.raises(errors.TargetError) as error, reproduce.reproducible(parse(TEXT), "cpu"):
        raise errors.TargetError("too much shared memory")
    assert not hasattr(error.value, "__notes__")


def test_findings_of_the_checkers_leave_a_file() -> None:
    x = np.ones(512, np.float32)
    with pytest.raises(errors.CheckError) as error, tile.target("emulate:cuda:sm_80"):
        unsynchronised(x)
    (note,) = error.value.__notes__
    text, target, inputs = reproduce.load(note.removeprefix("What shows it again was written to "))
    assert target == "emulate:cuda:sm_80" and "alloc" in text
    assert np.array_equal(reproduce.unpacked(inputs)[0], x)
    found = reproduce.failure(text, target, inputs)
    assert reproduce.kind(found) == "uninitialised-shared" and "(inputs x: [512], y: [512])" in found


@tile.kernel
def not_waited_for(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 64)) * 64
    s = tile.shared(64, tile.f32)
    tile.copy_async(x, s, n)
    tile.commit()
    tile.store(y, n, tile.load(s, 0, 64))


def test_what_the_interpreter_rejects_too_is_shown_again() -> None:
    checked = check(not_waited_for, "cuda:sm_80", extents={"N": 128})
    assert checked.file is not None
    assert reproduce.failure(*reproduce.load(checked.file)).startswith("CheckError: uninitialised-shared")
    assert main(["reduce", str(checked.file)]) == 0
    text, _, _ = reproduce.load(checked.file)
    assert "load %s" in text and "copy_async" not in text  # which is no part of that finding


def test_inputs_come_back_as_they_were() -> None:
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for x in (a, a.transpose(2, 0, 1), a[:, ::2, 1:], a[:0]):
        fn = any_order.trace(any_order.types({}), {})
        given = [x, np.full_like(x, 3.0), np.float32(2.5)]
        back = reproduce.unpacked(reproduce.packed(fn, given))
        assert np.array_equal(back[0], x) and not back[1].any() and back[2] == 2.5 and back[2].shape == ()
        assert [np.argsort(b.strides).tolist() for b in back[:2]] == [np.argsort(x.strides).tolist()] * 2 or not x.size
    assert reproduce.packed(fn, [np.random.default_rng(0).random((1 << 17, 1, 1)), a, 1.0]) == ""


@tile.kernel
def any_order(x: tile.Tensor[tile.f32, "A B C"], y: tile.Out[tile.f32, "A B C"], by: tile.f32):
    tile.store(y, (0, 0, 0), tile.load(x, (0, 0, 0), (1, 1, 1)) * by)


def test_the_file_shows_what_it_is_about(tmp_path: Path) -> None:
    path = reproduce.write(parse(TEXT), "cpu", 'a """quoted""" \\ text', tmp_path / "case.py")
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "nothing is wrong any more\n"), run.stderr
    assert main(["reduce", str(path)]) == 1
    (tmp_path / "other.py").write_text("x = 1")
    with pytest.raises(ValueError, match="is not a reproducer"):
        reproduce.load(tmp_path / "other.py")


def test_reduction_keeps_what_matters() -> None:
    """Of a product in blocks, only the product is left that fails: it gets constants."""
    def fails(fn: Any) -> bool:
        return any(op.name == "dot" for op in fn.walk())
    sizes: list[str] = []
    small = reproduce.reduce(parse(TEXT), fails, sizes.append)
    names = [op.name for op in small.walk()]
    assert "dot" in names and "store" in names and "load" not in names, names
    assert len(names) < 24 and len(sizes) >= 1 and parse(str(small))


def test_a_mismatch_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    """The machine code is made from text in which one operation is another."""
    code = Lowered.object_code.func  # type: ignore[attr-defined]

    def wrong(self: Lowered) -> bytes:
        return code(Lowered(parse(str(self.tile).replace("sqrt", "neg")), self.target))
    monkeypatch.setattr(Lowered, "object_code", property(wrong))
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path / "cache"))
    tile_ = roots.trace(roots.types({}), {"B": 2})
    path = reproduce.write(tile_, "cpu", "wrong", tmp_path / "case.py")
    assert main(["reduce", str(path)]) == 0
    text, _, _ = reproduce.load(path)
    assert "sqrt" in text and "abs" not in text and " add " not in text.replace("add %", "", 1), text
    assert "was" in capsys.readouterr().out
