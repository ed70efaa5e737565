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
from tilelang.ops.activation import silu
from tilelang.ops.mpgemm.gpu import below, beside, blocks
from tilelang.ops.mpgemm.gpu_bits import held

ROOT = Path(__file__).resolve().parent.parent


@tile.function
def causal(b, h, i, j):
    """A mask."""
    return j <= i


@tile.function
def tilted(s, b, h, i, j):
    """A change of scores."""
    return s + 0.5 * (i - j)


HELD = blocks("cuda:sm_80", tile.u4, 128)
CONSTANTS = {"CAUSAL": True, "GELU": True, "ACC": tile.f32, "ACT": silu, "MASK": causal, "MOD": tilted, "BITS": 4,
             "DTYPE": None, "TOP": 127.0, "ZERO": None, "MINIMUM": False, "TOKEN": True, "ROWS": 2, **below(HELD, 4)}
"""Those that are no extents of blocks."""
OWN = {"ops/mpgemm/gpu.py:product_kernel": {"DTYPE": tile.u4},
       "ops/mpgemm/gemv.py:gemv_kernel": {"DTYPE": tile.u4, "BM": 8, "GROUP": 1, **beside(HELD, 4)},
       **{f"ops/mpgemm/blocks.py:{name}": {"FORM": (1, 1, (1, 16), (1, 16), (1, 16)), "OPERAND": tile.f32}
          for name in ("blocks_kernel", "blocks_backward_kernel")},
       "ops/mpgemm/gpu_bits.py:bitplane_kernel": {"XBITS": 2, "BITS": 2, "GROUP": 2, "STAGES": 3, "BIPOLAR": True,
                                                  **held("cuda:sm_80", 256, 4, 16)},
       "ops/mpgemm/gpu_bits.py:bits_kernel": {"DTYPE": tile.i4, "COUNT": 256, "DEPTH": 256, "APART": 4},
       "ops/mpgemm/cpu.py:quantize_kernel": {"DTYPE": tile.i8},
       "ops/mpgemm/cpu.py:dot_gemv_kernel": {"DTYPE": tile.f4e2m1, "TABLES": True}}
"""Those of one kernel."""


def _namespace(path: Path) -> dict[str, object]:
    if path.is_relative_to(ROOT / "ops"):
        return vars(importlib.import_module(".".join(("tilelang", *path.relative_to(ROOT).with_suffix("").parts))))
    return runpy.run_path(str(path))


FILES = sorted([*(ROOT / "ops").rglob("[!_]*.py"), *(ROOT / "examples").glob("*.py")])
KERNELS = {f"{path.relative_to(ROOT)}:{x.name}": x for path in FILES for x in _namespace(path).values()
           if isinstance(x, Kernel) and Path(x.source.loc.file).resolve() == path}


def constant(key: str, p: Param) -> object:
    return p.default if not p.required else OWN.get(key, CONSTANTS).get(p.name, CONSTANTS.get(p.name, 16))


def test_every_kernel_is_found() -> None:
    written = sum(path.read_text().count("@tile.kernel\n") for path in FILES)
    assert len(KERNELS) == written > 0


@pytest.mark.parametrize("key", KERNELS)
def test_every_level_reads_back(key: str) -> None:
    kernel = KERNELS[key]
    units = {p.name: (False,) * (len(p.tensor.dims) - 1) + (True,) for p in kernel.params if p.kind == "tensor"}
    letters = {p.tensor.dtype for p in kernel.params if p.kind == "tensor" and isinstance(p.tensor.dtype, str)}
    types = kernel.types(dict.fromkeys(letters, tile.dtype("f16")), units)
    lowered = Lowered(kernel.trace(types, {p.name: constant(key, p) for p in kernel.params if p.kind == "const"}),
                      host())
    for fn in (lowered.tile, lowered.placed, lowered.thread):
        text = print_function(fn)
        again = parse(text)
        verify(again, fn.level)
        assert print_function(again) == text and len(list(again.walk())) == len(list(fn.walk()))
