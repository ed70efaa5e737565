"""Building and launching: the cache, processes at once, and messages about wrong use."""
from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.backends.cuda import wrappers
from tests.backends.emulator.texts import kernel, output, values
from tilelang.backends import host
from tilelang.backends.emulator import build
from tilelang.backends.emulator.run import Buffer, load
from tilelang.errors import TargetError

COPY = kernel("tl::gptr<const float> a, tl::gptr<float> o, tl::i64 n, float scale", """
  const tl::i64 i = p * 64 + t;
  tl::st<1>(o, i, tl::vec<float, 1>{tl::ld<1>(a, i, i < n, tl::op(1))[0] * scale}, i < n, tl::op(2));""")


def test_every_wrapper_compiles() -> None:
    program = load(wrappers.text(90))
    a, b = values(32 * 4), output(32 * 4)
    assert not program.launch("memory_float_4", [a, b, 32], threads=32, shared_bytes=512).findings
    np.testing.assert_array_equal(a.array.reshape(32, 4)[::-1], b.array.reshape(32, 4))


@pytest.mark.usefixtures("fresh_config")
def test_a_second_build_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path))
    first = build.kernel(COPY)
    assert first.parent.parent == tmp_path
    stamp = first.stat().st_ino
    assert build.kernel(COPY) == first and first.stat().st_ino == stamp
    assert build.kernel(COPY + "\n") != first
    assert build.kernel("// k for another target\n" + COPY) == first
    shutil.rmtree(first.parent)  # by somebody, while the process runs
    assert build.kernel(COPY) == first and first.exists()
    assert not list(first.parent.glob(".build-*"))


def test_libraries_used_longest_ago_are_pruned(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"kernel-{i}.so").write_bytes(bytes(100))
        os.utime(tmp_path / f"kernel-{i}.so", (i, i))
    build._prune(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernel-3.so", "kernel-4.so"]


def test_kernels_are_unloaded() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("emulator/kernel-")

    program = load(COPY)
    loaded = mapped()
    del program
    gc.collect()
    assert mapped() < loaded


def test_processes_may_build_at_once(tmp_path: Path) -> None:
    code = "from tilelang.backends.emulator import build\n" \
        "build.RUNTIME_FLAGS = [f for f in build.RUNTIME_FLAGS if f != '-O3']\n" \
        f"from tilelang.backends.emulator.run import load\nload({COPY!r})"  # what is built does not run
    root = Path(__file__).parents[3]
    env = {"TILELANG_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE) for _ in range(3)]
    assert [p.communicate()[1] for p in running] == [b""] * 3
    assert len(list((tmp_path / "emulator").glob("*.so"))) == 2


def test_scalars_keep_their_type() -> None:
    a, o = values(100), output(100)
    result = load(COPY).launch("k", [a, o, 100, np.float32(2)], programs=2, threads=64)
    assert result.completed and not result.findings
    np.testing.assert_array_equal(o.array, a.array * 2)


def test_arrays_of_any_strides() -> None:
    a = np.arange(64, dtype=np.float32)[::-1]
    text = kernel("tl::gptr<const float> a, tl::gptr<float> o",
                  "  tl::st<1>(o, t, tl::ld<1>(a, -t, tl::op(1)), tl::op(2));")
    o = output(64)
    assert not load(text).launch("k", [Buffer(a), o], threads=64).findings
    np.testing.assert_array_equal(o.array, a)


def test_wrong_launches_are_refused() -> None:
    program = load(COPY)
    args = [values(64), output(64), 64, np.float32(1)]
    with pytest.raises(TargetError, match="exports no kernel `q`"):
        program.launch("q", args, threads=64)
    with pytest.raises(TargetError, match="cannot run with 65 threads"):
        program.launch("k", args, threads=65)
    with pytest.raises(TargetError, match="takes 4 arguments"):
        program.launch("k", args[:3], threads=64)
    with pytest.raises(TargetError, match="argument 3 .* wrong size"):
        program.launch("k", [*args[:3], 1.0], threads=64)


def test_broken_text_shows_what_the_compiler_says() -> None:
    with pytest.raises(TargetError, match="nonsense"):
        load('#include "tl.h"\nnonsense;')


@pytest.fixture
def fresh_compiler() -> object:
    host.compiler.cache_clear()
    yield
    host.compiler.cache_clear()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_missing_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TargetError, match="CXX was not found"):
        host.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="a C\\+\\+ compiler is needed"):
        host.compiler()
