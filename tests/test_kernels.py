"""Every kernel of the library and of the examples, at every level of the IR."""
from __future__ import annotations

import importlib
import runpy
from pathlib import Path

import pytest

import tilelang as tile
from tilelang.backends.cpu.compile import Lowered
from tilelang.backends.cpu.machine import host
from tilelang.ir.parser import parse
from tilelang.ir.specs import verify
from tilelang.ir.text import print_function
from tilelang.jit import Kernel
from tilelang.lang.kernel import Param

ROOT = Path(__file__).parent.parent
CONSTANTS = {"CAUSAL": True, "GELU": True, "ACC": tile.dtype("f32")}
"""Those that are no extents of blocks."""


def _namespace(path: Path) -> dict[str, object]:
    return vars(importlib.import_module(f"tilelang.ops.{path.stem}")) if path.parent.name == "ops" else \
        runpy.run_path(str(path))


FILES = sorted([*(ROOT / "ops").glob("[!_]*.py"), *(ROOT / "examples").glob("*.py")])
KERNELS = {f"{path.stem}.{x.name}": x for path in FILES for x in _namespace(path).values() if isinstance(x, Kernel)}


def constant(p: Param) -> object:
    return p.default if not p.required else CONSTANTS.get(p.name, 16)


def test_every_file_has_a_kernel() -> None:
    assert {key.split(".")[0] for key in KERNELS} == {path.stem for path in FILES} - {"common"}


@pytest.mark.parametrize("key", KERNELS)
def test_every_level_reads_back(key: str) -> None:
    kernel = KERNELS[key]
    units = {p.name: (False,) * (len(p.tensor.dims) - 1) + (True,) for p in kernel.params if p.kind == "tensor"}
    types = kernel.types(dict.fromkeys("TU", tile.dtype("f16")), units)
    lowered = Lowered(kernel.trace(types, {p.name: constant(p) for p in kernel.params if p.kind == "const"}), host())
    for fn in (lowered.tile, lowered.placed, lowered.thread):
        text = print_function(fn)
        again = parse(text)
        verify(again, fn.level)
        assert print_function(again) == text and len(list(again.walk())) == len(list(fn.walk()))
