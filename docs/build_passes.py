"""The page passes.md of the site: what each pass requires and ensures, from the passes' own docstrings, with what it
makes of a small kernel."""
from __future__ import annotations

import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import tilelang as tile
from tilelang.backends.cpu import compile as cpu
from tilelang.backends.cpu.machine import CpuTarget
from tilelang.backends.cuda.target import target as cuda
from tilelang.backends.hip.target import target as hip
from tilelang.backends.simt import compile as simt
from tilelang.ir.core import Function
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.passes.driver import Pass, run_passes
from tilelang.passes.pipeline import TILE_PASSES

MOST, WIDEST, RUN = 40, 116, {"+": 27, "-": 10}
"""Lines of a comparison that are shown, characters of a line, and lines one after the other that were all added, or
all removed."""


@tile.kernel
def twice(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 128))
    tile.store(y, n * 128, tile.load(x, n * 128, 128) * 2)


@tile.kernel
def best(x: tile.Tensor[tile.f16, "M N"], y: tile.Out[tile.f16, "M N"], at: tile.Out[tile.i32, "M"]):
    m, i = tile.grid(tile.cdiv(x.shape[0], 16)), tile.arange(16)
    row = tile.where(i[None, :] <= i[:, None], tile.load(x, (m * 16, 0), (16, 16)).to(tile.f32), 0.0)
    tile.store(at, m * 16, tile.argmax(row, 1))
    tile.store(y, (m * 16, 0), (row / row.sum(1, keepdims=True)).to(tile.f16))


@tile.kernel
def product(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
            BM: tile.Const = 64, BK: tile.Const = 32, SCHEDULE: tile.Const = ""):
    m = tile.grid(tile.cdiv(a.shape[0], BM))
    acc = tile.zeros((BM, 64))
    for k in tile.range(0, a.shape[1], BK, stages=2, schedule=SCHEDULE):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, 0), (BK, 64)))
    tile.store(c, (m * BM, 0), acc)


@tile.kernel
def behind(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f16, "M N"]):
    tile.wait_previous()
    m = tile.grid(tile.cdiv(a.shape[0], 64))
    acc = tile.zeros((64, 64))
    for k in tile.range(0, a.shape[1], 64, stages=2, schedule="producer"):
        acc += tile.dot(tile.load(a, (m * 64, k), (64, 64)), tile.load(b, (k, 0), (64, 64)))
    tile.store(c, (m * 64, 0), acc.to(tile.f16))


@tile.kernel
def again(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"]):
    m = tile.grid(tile.cdiv(a.shape[0], 128))
    total, acc = tile.zeros((128, 128)), tile.zeros((128, 128))
    for _ in tile.range(4):
        for k in tile.range(0, a.shape[1], 32, stages=2):
            acc += tile.dot(tile.load(a, (m * 128, k), (128, 32)), tile.load(b, (k, 0), (32, 128)))
        total = 0.5 * total + acc
    tile.store(c, (m * 128, 0), total)


class Case(NamedTuple):
    """A kernel and what compiles it."""

    fn: Function
    target: Any
    placed: Sequence[Pass]
    thread: Sequence[Pass]


def cases() -> list[Case]:
    """The kernels that passes are shown on; a pass is shown where it changes the least, but something."""
    a, b = np.zeros((256, 256), np.float16), np.zeros((256, 64), np.float16)

    def traced(kernel: tile.Kernel, *arguments: Any, **constants: Any) -> Function:
        return kernel.lower(*arguments, target="cuda:sm_80", **constants).tile
    least, plain, small = traced(twice, a[0].astype(np.float32)), traced(best, a), traced(product, a, b)
    unaligned = product.lower(a, b).tile  # as if nothing were known of addresses
    mixed = traced(product, a, b, BM=256, BK=64, SCHEDULE="interleave")
    early, repeated = traced(behind, a, b), traced(again, a, b)
    turned = traced(product, a, np.asfortranarray(b))
    host = CpuTarget("cpu", "", "", "", "", 64, 32, frozenset(), 32 << 20)  # AVX-512
    on_gpu = simt.PLACED_PASSES, simt.THREAD_PASSES
    return [*(Case(fn, host, cpu.PLACED_PASSES, cpu.THREAD_PASSES) for fn in (least, plain)),
            *(Case(fn, cuda("cuda:sm_80"), *on_gpu) for fn in (least, plain, small, unaligned, turned, repeated)),
            *(Case(fn, machine, *on_gpu) for fn, machine in
              ((small, cuda("cuda:sm_90a")), (early, cuda("cuda:sm_90a")), (small, hip("hip:gfx942")),
               (small, hip("hip:gfx950")), (mixed, hip("hip:gfx950"))))]


class Named:
    """Gives values without a name one that none has had before: a comparison of texts then shows what changed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, fn: Function) -> None:
        for op in fn.walk():
            for v in (*op.results, *(a for region in op.regions for a in region.args)):
                if not v.name:
                    v.name, self.count = f"v{self.count}", self.count + 1


def steps(case: Case) -> Iterator[tuple[Pass, str, str]]:
    """Each pass with the text before and after it."""
    fn, named = case.fn.clone(), Named()
    named(fn)
    for step in (*TILE_PASSES, *case.placed, *case.thread):
        before = print_function(fn)
        fn = run_passes(fn, case.target, (step,), check=0, dump="")
        named(fn)
        yield step, before, print_function(fn)


def comparison(before: str, after: str) -> str:
    """What changed, with a line before and after it; of many lines one after the other the first. Values without a
    name are numbered as they occur."""
    changed = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm=""))[3:]
    lines: list[str] = []
    for sign, run in itertools.groupby(changed, lambda line: line[0]):
        some = ["  …"] if sign == "@" else list(map(_short, run))
        most = RUN.get(sign, 2)
        lines += some if len(some) <= most + 1 else [*some[:most], f"{sign} … {len(some) - most} more"]
    numbers: dict[str, str] = {}
    text = "\n".join([*lines[:MOST], *(["  …"] if len(lines) > MOST else [])])
    return re.sub(r"%v\d+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), text)


def _short(line: str) -> str:
    """A line without its longest layouts and tables."""
    if len(line) > WIDEST:
        line = re.sub(r"(?<=[@=]<)[^<>]{24,}(?=>)", "…", re.sub(r"=\(\(.*?\)\)(?=[,}])", "=(…)", line))
    return line[:WIDEST - 1] + "…" if len(line) > WIDEST else line


def documentation(step: Pass) -> dict[str, str]:
    """Parts of the docstring of a pass, or of its module where that has them: "" is the summary."""
    own, module = inspect.getdoc(step) or "", inspect.getdoc(inspect.getmodule(step)) or ""
    text = own if "\nensures:" in own else module
    parts = re.split(r"^(requires|ensures|example):", text.partition(": ")[2], flags=re.M)
    out = {"": parts[0].strip()}
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        out[name] = part.partition("\n\n")[0] if name != "example" else part
    return out


def section(step: Pass, seen: tuple[int, Case, str] | None) -> str:
    """What the page says of a pass: its own example, or what was seen of it."""
    said = documentation(step)
    file = inspect.getsourcefile(step) or ""
    place = re.search(r"(tilelang/passes|backends/\w+)/\w+\.py$", file)
    assert place is not None
    out = [f"### {step.__name__}\n", f"`{place[0]}`: {said['']}\n",
           f"*Requires* {said['requires'].strip()}\n",
           "*Ensures* " + said["ensures"].strip().replace("\n- ", "\n\n- ", 1) + "\n"]
    example, becomes, result = said["example"].partition("\nbecomes")
    if becomes:
        code = re.match(r".*?\n((?:    .*\n?)+)", result)
        assert code is not None
        before = print_function(parse(textwrap.dedent(example)))  # with the attributes that the docstring leaves out
        out.append(f"```diff\n{_whole(before, textwrap.dedent(code[1]))}\n```\n")
    else:
        assert seen is not None, f"no kernel shows {step.__name__}"
        _, case, difference = seen
        out.append(f"In `{case.fn.name}` for {case.target.name}:\n\n```diff\n{difference}\n```\n")
    return "\n".join(out)


def _whole(before: str, after: str) -> str:
    lines = difflib.ndiff(before.strip().splitlines(), after.strip().splitlines())
    return "\n".join(f"{line[0]}{line[2:]}" for line in lines if line[0] != "?")


def pages() -> dict[str, str]:
    """The page, by its name."""
    shown: dict[Pass, tuple[int, Case, str]] = {}
    for case in cases():
        for step, before, after in steps(case):
            length = len(list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)))
            if length and (step not in shown or length < shown[step][0]):
                shown[step] = length, case, comparison(before, after)
    out = [INTRODUCTION]
    done: set[Pass] = set()
    for title, passes in (("TILE, for every target", TILE_PASSES),
                          ("The CPU", (*cpu.PLACED_PASSES, *cpu.THREAD_PASSES)), ("GPUs: PLACED", simt.PLACED_PASSES),
                          ("GPUs: THREAD", simt.THREAD_PASSES)):
        order = ", ".join(f"[{p.__name__}](#{_anchor(p)})" for p in passes)
        out.append(f"## {title}\n\n{order}.\n")
        out += [section(p, shown.get(p)) for p in dict.fromkeys(passes) if p not in done]
        done |= set(passes)
    return {"passes.md": "\n".join(out)}


def _anchor(step: Pass) -> str:
    twice = step.__name__ in ("place", "lower") and "simt" in step.__module__
    return step.__name__ + ("_1" if twice else "")


INTRODUCTION = f'''\
# The passes

A pass is a function from a function of the IR to another. A target's pipeline is a tuple of them, run by
`tilelang/passes/driver.py`; with `TILELANG_CHECK=1` the driver verifies after each, with 2 it also compares what the
function computes, and `TILELANG_DUMP=directory` writes the text after each. [Design](design.md) says what the levels
are.

Each pass is shown at work: on the example of its docstring, or on one of these kernels, where `…` stands for what is
left out. `-` is before, `+` after.

```python
import tilelang as tile

{inspect.getsource(twice.__wrapped__)}
{inspect.getsource(best.__wrapped__)}
{inspect.getsource(product.__wrapped__)}
{inspect.getsource(behind.__wrapped__)}
{inspect.getsource(again.__wrapped__)}```
'''
