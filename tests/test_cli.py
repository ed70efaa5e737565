"""The command line with what users get wrong: a message and status 2, no traceback of ours."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilelang import cache, doctor
from tilelang.cli import main
from tilelang.tuning import store

FILE = """
import helper_beside
import tilelang as tile

@tile.autotune(BM=[8, 16], BN=[32])
@tile.kernel
def tuned(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const = 64):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    tile.store(y, (m * BM, n * BN), tile.load(x, (m * BM, n * BN), (BM, BN)) * helper_beside.TWO)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "helper_beside.py").write_text("TWO = 2\n")
    (tmp_path / "good.py").write_text(FILE)
    (tmp_path / "wrong.py").write_text("def broken(:\n")
    (tmp_path / "raises.py").write_text("def f():\n    raise KeyError('mine')\nf()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("helper_beside", "good", "wrong", "raises", "linecache of tilelang"):
        sys.modules.pop(name, None)


def test_a_tuned_kernel_stands_beside_its_modules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "good.py:tuned"]) == 0
    assert "{shape=(8, 64)" in capsys.readouterr().out
    assert main(["explain", "good.py:tuned", "--set", "BM=4"]) == 0


@pytest.mark.parametrize(("request_", "said"), [
    ("compile good.py:tuned --set BM", "--set BM gives no value"),
    ("compile good.py:tuned --set BM=many", "--set BM=many: unknown dtype 'many'"),
    ("compile good.py:tuned --set T=f99", "--set T=f99: unknown dtype 'f99'"),
    ("explain good.py:tuned --set M=-1", "an extent: an integer of at least 0"),
    ("explain good.py:tuned --target reference", "nothing is compiled for 'reference'"),
    ("explain good.py:tuned -o nowhere/page.html", "No such file or directory: 'nowhere/page.html'"),
    ("compile wrong.py:k", "wrong.py cannot be imported"), ("compile raises.py:k", "KeyError: 'mine'"),
    ("compile good.py:TWO", "good.py:TWO is not a kernel\n  needs: good.py:tuned"),
    ("compile .:k", ". cannot be read"),
    ("check good.py:tuned --target cpu", "cpu has no text that the emulator runs"),
    ("check good.py:tuned --set M=4000000000000", "Unable to allocate"),
    ("reduce good.py", "good.py is not a reproducer"), ("reduce wrong.py", "is not a reproducer: SyntaxError"),
    ("reduce none.py", "No such file"), ("reduce .", ". is not a reproducer"),
])
def test_mistakes(folder: Path, request_: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(request_.split()) == 2
    shown = capsys.readouterr()
    assert said in shown.err and "tilelang/cli.py" not in shown.err and not shown.out


def test_no_module_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.modules["linecache"]
    (folder / "linecache.py").write_text(FILE)
    assert main(["compile", "linecache.py:tuned"]) == 0 and sys.modules["linecache"] is before


def test_places_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "damaged").write_bytes(b"no database" * 100)
    monkeypatch.setattr(store, "default", lambda: store.Store(folder / "damaged"))
    monkeypatch.setattr(cache, "default", lambda: cache.Cache(folder / "good.py", 1 << 20))
    for request_ in (["tuning", "list"], ["tuning", "clear"], ["tuning", "export", "x"], ["cache", "size"],
                     ["cache", "verify"], ["cache", "clear"]):
        assert main(request_) == 2 and "cannot be used" in capsys.readouterr().err
    assert main(["tuning", "path"]) == main(["cache", "path"]) == 0
    monkeypatch.setattr(doctor, "_CHECKS", [c for c in doctor._CHECKS if c[1] in (doctor._cache, doctor._tuning)])
    assert [found.state for found in doctor.examine()] == ["broken", "broken"]


def test_results_go_where_they_can(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(store, "default", lambda: store.Store(folder / "new.sqlite"))
    assert main(["tuning", "export", "nowhere/x.json"]) == 2 and "nowhere/x.json" in capsys.readouterr().err


def test_letters_that_a_terminal_lacks(folder: Path) -> None:
    (folder / "good.py").write_text(FILE.replace("tuned", "größe"))
    done = subprocess.run([sys.executable, "-m", "tilelang", "compile", "good.py:größe"], capture_output=True,
                          timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and rb"func @gr\xf6\xdfe(" in done.stdout
