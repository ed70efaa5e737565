"""`tile.print` in machine code: the interpreter's text, in its order, also from the disk cache of another process."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cpu.native import native
from tests.ir.op_examples import example
from tilelang.backends.cpu.compile import Lowered
from tilelang.backends.cpu.machine import host
from tilelang.passes.meaning import difference


@tile.kernel
def talk(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.f32, "M N"], by: tile.f32, B: tile.Const = 3,
         PRINT: tile.Const = True):
    m = tile.grid(tile.cdiv(x.shape[0], B))
    v = tile.load(x, (m * B, 0), (B, 9))
    w = v.to(tile.f32)
    for i in tile.range(0, 2):
        if PRINT:
            print("program", m, "\0\n\u2713", i, v.T, w > by)
        w = w * by + w.sum(1, keepdims=True)
    if m == 1:
        if PRINT:
            tile.print(by, w[0, 0])
    e = tile.exp(-w * w)
    if PRINT:
        tile.print(e)
    tile.store(y, (m * B, 0), e)


def argument(dt: str) -> Any:
    """A tensor of shape (7, 9) for `talk`."""
    wanted, rng = tile.dtype(dt), np.random.default_rng(0)
    if wanted.packed:
        return tile.Packed.from_codes(rng.integers(0, 1 << wanted.bits, (7, 9)), wanted)
    kinds = {"f8e5m2": "float8_e5m2", "bf16": "bfloat16", "i1": "bool", "i8": "int8"}
    return torch.from_numpy(rng.integers(0, 2, (7, 9))).to(getattr(torch, kinds.get(dt, "float32")))


@pytest.mark.parametrize("dt", ["f32", "bf16", "f8e5m2", "i8", "i1", "u3", "codebook(1, [-0.5, 2.0])"])
def test_text_and_results_are_the_interpreters(dt: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = argument(dt)
    got = talk(x, by=0.25)
    text = capsys.readouterr().out
    talk.reference(x, by=0.25)
    assert text == capsys.readouterr().out and text.count("program") == 6
    np.testing.assert_array_equal(np.asarray(got), np.asarray(talk(x, by=0.25, PRINT=False)))


def test_lines_stay_whole_and_in_order_on_many_threads(capsys: pytest.CaptureFixture[str]) -> None:
    @tile.kernel
    def count(y: tile.Out[tile.i32, "N"]):
        n = tile.grid(y.shape[0])
        tile.print("program", n, n * n)
        tile.store(y, (n,), n)

    before = tile.get_num_threads()
    tile.set_num_threads(4)
    try:
        assert count(torch.zeros(500, dtype=torch.int32)).tolist() == list(range(500))
    finally:
        tile.set_num_threads(before)
    assert capsys.readouterr().out.splitlines() == [f"program {n} {n * n}" for n in range(500)]


def test_code_of_another_process_prints(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, numpy as np, tilelang as tile\n"
                       "from tilelang.backends.cpu import compile\n"
                       "@tile.kernel\n"
                       "def show(x: tile.Tensor[tile.i32, 'N']):\n"
                       "    tile.print('x =', tile.load(x, (0,), (4,)))\n"
                       "if sys.argv[1:]:\n"
                       "    del compile.Lowered.object_code\n"
                       "show(np.arange(4, dtype=np.int32))\n")
    for more in ([], ["do not compile"]):
        done = subprocess.run([sys.executable, str(program), *more], capture_output=True, text=True,
                              env={**os.environ, "TILELANG_CACHE_DIR": str(tmp_path / "cache"),
                                   "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) + os.pathsep + os.getcwd()})
        assert done.stdout == "x = [0 1 2 3]\n", done.stderr


def test_a_difference_in_the_text_is_found() -> None:
    fn = example("print")
    other = fn.clone()
    next(op for op in other.walk() if op.name == "print").attrs["text"] = "it's {} {}"
    for same in (native(fn), Lowered(fn, host()).thread):
        assert difference(fn, same, np.random.default_rng(0), exact=True) == ""
    assert difference(fn, native(other), np.random.default_rng(0), exact=True).startswith("it printed")
