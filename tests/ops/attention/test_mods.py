"""Functions of attention as parts of saved programs: the names that PyTorch knows them by."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tilelang as tile
from tilelang import ops
from tilelang.ops.attention.mods import name_of

MODULE = """
import torch
import tilelang as tile
from tilelang import ops

SPAN = {span}

@tile.function
def half(x):
    return x * 0.5

@tile.function
def near(s, b, h, i, j):
    return s - half(tile.abs(i - j).to(tile.f32))

@tile.function
def window(b, h, i, j):
    return (i - j < SPAN) & (j <= i)

class Model(torch.nn.Module):
    def forward(self, q):
        return ops.attention(q, q, q, score_mod=near, mask_mod=window)
"""
SAVE = """
import sys
from its_module import *
q = torch.linspace(-1, 1, 640).reshape(1, 2, 20, 16)
torch.export.save(torch.export.export(Model(), (q,)), sys.argv[1])
torch.save(Model()(q), sys.argv[1] + ".result")
"""
LOAD = """
import sys
from its_module import *
ops.register_mods(near, window)
program = torch.export.load(sys.argv[1]).module()
q = torch.linspace(-1, 1, 640).reshape(1, 2, 20, 16)
assert torch.equal(program(q), torch.load(sys.argv[1] + ".result"))
"""


def test_a_program_is_saved_and_loaded_by_another_process(tmp_path: Path) -> None:
    """Where a value around the functions is another one, it is another operator's, which is not known."""
    root = str(Path(tile.__file__).parents[1])

    def run(text: str, span: int) -> str:
        (tmp_path / "its_module.py").write_text(MODULE.format(span=span))
        program = f"import sys; sys.path[:0] = [{root!r}, {str(tmp_path)!r}]\n{text}"
        done = subprocess.run([sys.executable, "-B", "-c", program, str(tmp_path / "saved.pt2")], text=True,
                              capture_output=True, timeout=120)
        return done.stderr if done.returncode else ""
    assert not run(SAVE, 5)
    assert not run(LOAD, 5)
    assert "attention_near_window" in run(LOAD, 6)


def _shifted(by: int) -> Callable[..., Any]:
    @tile.function
    def shifted(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + by
    return shifted


def test_functions_that_mean_something_else_have_other_names() -> None:
    one, other, two = _shifted(1), _shifted(1), _shifted(2)
    names = {name_of(mod, None) for mod in (one, other, two)}
    assert len(names) == 3  # what one finds around it may change, and the other's not
    assert name_of(one, None) == name_of(one, None) and name_of(None, None) == ""
    assert name_of(one, None) != name_of(None, one)
    q = torch.randn(1, 1, 8, 16)
    for mod in (one, other, two):
        torch.testing.assert_close(ops.attention(q, q, q, score_mod=mod), ops.attention(q, q, q))


STEP = 1.0


def test_a_value_that_changes_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @tile.function
    def stepped(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + j.to(tile.f32) * STEP
    before, q = name_of(stepped, None), torch.randn(1, 1, 8, 16)
    first = ops.attention(q, q, q, score_mod=stepped)
    monkeypatch.setattr(sys.modules[__name__], "STEP", 3.0)
    assert name_of(stepped, None) != before
    assert not torch.allclose(ops.attention(q, q, q, score_mod=stepped), first)
    monkeypatch.setattr(sys.modules[__name__], "STEP", 1.0)
    assert name_of(stepped, None) == before
