"""Hooks around launches, ranges for profilers, and what torch's profiler shows."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import config, errors, hooks
from tilelang.hooks import Launch


@tile.kernel
def scaled(x: tile.Tensor[tile.f32, "M N"], by: tile.f32, y: tile.Out[tile.f32, "M N"],
           bias: tile.Tensor[tile.f32, "N"] = None, B: tile.Const = 16):
    m = tile.grid(x.shape[0])
    for n in tile.range(0, x.shape[1], B):
        v = tile.load(x, (m, n), (B,)) * by
        tile.store(y, (m, n), v if bias is None else v + tile.load(bias, n, (B,)))


X = np.ones((3, 20), np.float32)


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    assert not hooks.active
    yield
    assert not hooks.active


def test_hooks_are_told_of_every_launch() -> None:
    told: list[tuple[str, Launch]] = []
    with hooks.add(lambda launch: told.append(("before", launch)), lambda launch: told.append(("after", launch))):
        for _ in range(2):
            scaled(X, 2.0)
        with tile.target("reference"):
            scaled(x=X, by=2.0, bias=X[0], B=8)
        with tile.target("shapes"):
            scaled(X, 2.0)  # runs nothing
        scaled(torch.empty(3, 20, device="meta"), 2.0)  # nor does this
    scaled(X, 2.0)
    plain = Launch("scaled", "cpu", {"x": (3, 20)}, {"B": 16, "bias": None})
    other = Launch("scaled", "reference", {"x": (3, 20), "bias": (20,)}, {"B": 8})
    assert told == [(when, launch) for launch in (plain, plain, other) for when in ("before", "after")]
    assert str(other) == "scaled(x: [3, 20], bias: [20])"


def test_hooks_nest_and_end_where_a_call_fails() -> None:
    told: list[str] = []
    outer = hooks.add(lambda launch: told.append("outer"), lambda launch: told.append("outer ends"))
    inner = hooks.add(lambda launch: told.append("inner"), lambda launch: told.append("inner ends"))
    with pytest.raises(errors.ArgumentRank):
        scaled(X[0], 2.0)
    assert told == ["outer", "inner", "inner ends", "outer ends"]
    inner.remove()
    inner.remove()

    def refuse(launch: Launch) -> None:
        raise RuntimeError("not now")
    with pytest.raises(RuntimeError, match="not now"), hooks.add(refuse, lambda launch: told.append("never")):
        scaled(X, 2.0)
    assert told[4:] == ["outer", "outer ends"]
    outer.remove()


def test_a_tuned_kernel_tells_what_it_has_chosen() -> None:
    told: list[Launch] = []
    tuned = tile.autotune(scaled, B=[8, 32], key=["N"])
    with hooks.add(told.append), tile.target("reference"):  # where nothing is searched for
        tuned(X, 2.0)
        assert [launch.consts["B"] for launch in told] == [tuned.choice(X, 2.0).config["B"]]


@pytest.mark.parametrize("warm", [False, True])
def test_torch_profiler_shows_names_and_shapes(warm: bool) -> None:
    kernel, x, bias = tile.Kernel(scaled.fn), torch.ones(3, 20), torch.ones(20)
    if warm:
        kernel(x, 2.0, bias=bias)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        kernel(x, 2.0, bias=bias)
        scaled(X, 2.0)
    found = [e.input_shapes for e in profile.events() if e.name == "tile::scaled"]
    assert found == [[[3, 20], [20]], []]  # the shapes of torch's tensors
    kernel(x, 2.0, bias=bias)  # and nothing is recorded behind it
    assert len([e for e in profile.events() if e.name == "tile::scaled"]) == 2


LIBRARY = """
#include <stdio.h>
int PREFIXRangePushA(const char* text) { printf("[%s ", text); fflush(stdout); return 0; }
int PREFIXRangePop(void) { printf("]\\n"); fflush(stdout); return 0; }
"""
PROGRAM = """
import sys
sys.modules["nvtx"] = None
import numpy as np
import tilelang as tile

@tile.kernel
def negate(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    tile.store(y, (0,), -tile.load(x, (0,), (16,)))

for _ in range(2):
    negate(np.ones(16, np.float32))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(("kind", "name"), [("nvtx", "libnvToolsExt.so.1"), ("roctx", "lib/libroctx64.so")])
def test_ranges_of_both_makers(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], check=True, text=True,
                   input=LIBRARY.replace("PREFIX", kind))
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "TILELANG_RANGES": kind, "LD_LIBRARY_PATH": str(tmp_path), "ROCM_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120,
                          env=env)
    assert done.stdout == "[negate(x: [16]) ]\n" * 2, done.stderr


def test_the_package_nvtx_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    fake = SimpleNamespace(push_range=told.append, pop_range=lambda: told.append(""))
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    push, pop = hooks._ranges("nvtx")
    push("a")
    pop()
    assert told == ["a", ""]


def test_ranges_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(errors.TargetError, match="TILELANG_RANGES=nvtx was not found(.|\n)*pip install nvtx"):
        hooks._ranges("nvtx")
    with pytest.raises(errors.ConfigError, match="TILELANG_RANGES(.|\n)*needs: nvtx or roctx\n  got:   'itt'"):
        config.read({"TILELANG_RANGES": "itt"})
