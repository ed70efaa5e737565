"""What can be said of products with quantised weights on a GPU without one: `python -m benchmarks.static_weights [part
of a type's name]` prints, for every type, what NVRTC and clang made of the kernel of `ops.mpgemm` and what the
emulator counted. Needs nvidia-cuda-nvrtc, nvidia-cuda-nvdisasm and ziglang."""
from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

import numpy as np

import tilelang as tile
from benchmarks import gcn, sass
from benchmarks.static import Goal, counted
from tilelang import targets
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.ir.packed import Packed
from tilelang.ir.pairs import representable
from tilelang.ops.mpgemm.gemv import gemv_kernel
from tilelang.ops.mpgemm.gpu import below, beside, product_kernel, tiles
from tilelang.quant import Parameter, QuantTensor

TARGETS = ("cuda:sm_80", "cuda:sm_90a", "hip:gfx942")
TYPES = (*(f"u{b}" for b in range(1, 9)), *(f"i{b}" for b in range(2, 9)), "ternary",
         *(f"f{b}e{e}m{b - 1 - e}" for b in range(3, 9) for e in range(1, min(b, 6))))
GROUP = 128
FORMS = {"dequant_mma": 16, "dequant_gemv": 1}
"""Rows of x by decomposition."""


def weight(name: str, n: int, k: int) -> QuantTensor:
    """Random codes that are finite in f16, and a scale for each row's group."""
    dt, rng = tile.dtype(name), np.random.default_rng(0)
    known = np.flatnonzero(representable(dt))
    return QuantTensor(Packed.from_codes(known[rng.integers(0, len(known), (n, k))], dt),
                       Parameter(rng.uniform(0.5, 2, (n, k // GROUP)).astype(np.float16), (1, GROUP)))


@dataclass(frozen=True)
class Instruction:
    """The registers that one writes, and those of each operand that it reads."""

    text: str
    writes: frozenset[str]
    reads: tuple[frozenset[str], ...]

    @property
    def product(self) -> bool:
        return bool(re.match(r"(@!?U?P\d+ +)?(HG?|QG)MMA|v_mfma", self.text))

    @property
    def load(self) -> bool:
        return bool(re.match(r"(@!?U?P\d+ +)?(LDS|LDG|LDSM|LDL|LDC)\b|ds_read|global_load|buffer_load", self.text))


def nvidia(text: str) -> Instruction:
    """A line of nvdisasm's. Registers after the first of a vector are not written there."""
    op, _, rest = re.sub(r"^@!?U?P\w+ +", "", text).partition(" ")
    width = next((n for form, n in ((r"\.128\b|\.M88\.4|HMMA", 4), (r"\.64\b|\.M88\.2|\.WIDE", 2))
                  if re.search(form, op)), 1)
    named = [[int(n) for n in re.findall(r"\bR(\d+)\b", part)] for part in rest.split(",")]
    sizes = {"HMMA": (4, 2, 4), "HGMMA": (4,), "QGMMA": (4,)}.get(op.split(".")[0], (1,) * len(named))
    return Instruction(text, frozenset(f"R{n + i}" for n in named[0] for i in range(width)), tuple(
        frozenset(f"R{n + i}" for n in part for i in range(size))
        for part, size in zip(named[1:], sizes, strict=False)))


def amd(text: str) -> Instruction:
    """A line of clang's."""
    _, _, rest = text.partition(" ")
    parts = [frozenset(f"{kind}{n}" for kind, first, last, one in re.findall(
        r"\b([va])(?:\[(\d+):(\d+)\]|(\d+))", part) for n in range(int(first or one), int(last or one) + 1))
        for part in re.split(r",(?![^\[]*\])", rest)]
    return Instruction(text, parts[0], tuple(parts[1:]))


def made_on_the_way(loop: Sequence[Instruction]) -> list[str]:
    """The instructions of a loop between what it loads and the operands of its products; x is loaded as it is."""
    found: set[int] = set()
    needed: set[str] = set()
    for _ in range(3):  # what an iteration leaves for the next one is met in the second round
        for i, x in reversed(list(enumerate(loop))):
            if x.product:
                needed |= frozenset().union(*x.reads[:2])
            elif x.writes & needed and not x.text.startswith(("ds_write", "global_store", "STS", "STG")):
                needed -= x.writes
                if not x.load:
                    found.add(i)
                    needed |= frozenset().union(*x.reads)
    return [loop[i].text for i in sorted(found)]


@dataclass(frozen=True)
class Measured:
    """One row; `casts` are instructions for each weight, `words` the widths of loads of the weights in bytes."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    casts: float
    words: str
    wavefronts: float


def goal(dt: tile.DType) -> float:
    """How many instructions a weight may take."""
    return 0.6 if dt.bits in (2, 4) and dt.kind in ("int", "uint") else 1.2


COLUMNS = {
    "registers": Goal("registers", str),
    "spill_bytes": Goal("spilled bytes", str, lambda v: v == 0),
    "shared_bytes": Goal("shared bytes", str),
    "casts": Goal("cast instructions / weight", "{:.3f}".format),
    "words": Goal("bytes of a load of weights", str, lambda v: v == "16"),
    "wavefronts": Goal("wavefronts / ideal", "{:.2f}".format, lambda v: v == 1),
}


def measure(name: str, target: str, decomposition: str = "dequant_mma", rows: int = 16) -> Measured:
    """Repacks, lowers, compiles and emulates a product of x with so many rows."""
    gemv, warps = decomposition == "dequant_gemv", 4
    blocks = tiles(weight(name, 64, GROUP), target).blocks
    how, height = (beside(blocks, warps), 1) if gemv else (below(blocks, warps), warps)
    w = tiles(weight(name, height * blocks.codes.shape[0], 4 * warps * GROUP if gemv else 4 * GROUP), target)
    n, k = w.shape
    x, y = np.ones((rows, k), np.float16), np.empty((rows, n), np.float32)
    sums = np.ones((len(w.words), rows), np.float32) if w.shift is not None else None
    kernel, bm = (gemv_kernel, blocks.x.shape[1]) if gemv else (product_kernel, rows)
    code = kernel.lower(x, w.words, w.scale, y, DTYPE=w.dtype, **how, BM=bm, GROUP=w.group, STAGES=3, shift=w.shift,
                        sums=sums, target=target)
    report, amds = code.report, target.startswith("hip")
    lines = gcn.main_loop(code.assembly, code.rendered.name) if amds else \
        sass.main_loop(code.assembly, code.rendered.name)
    loop = [(amd if amds else nvidia)(line) for line in lines]
    if not any(i.product for i in loop):
        raise ValueError(f"no main loop of {name} on {target}")
    weights = {code.thread.params[1], *(op.result for op in code.thread.walk() if op.name == "window"
                                        and op.operands[0] is code.thread.params[1])}
    loaded = {4 if op.name == "tensor_load" else op.attrs["lanes"] or 1 for op in code.thread.walk()
              if op.name in ("ld", "st_async", "dma", "tensor_load") and weights & set(op.operands)}
    shape = [a for a in (x, w.words, w.scale, y, w.shift, sums) if a is not None]
    return Measured(report["registers"], report["spills"] + report["stack_bytes"], report["shared_bytes"],
                    len(made_on_the_way(loop)) / blocks.codes.local_size,
                    ", ".join(str(4 * n) for n in sorted(loaded)), counted(tuple(shape), code)[1])


def missed(name: str, row: Measured) -> Iterator[str]:
    """The goals a row does not meet."""
    for f in fields(row):
        column, value = COLUMNS[f.name], getattr(row, f.name)
        if column.holds and not column.holds(value):
            yield f"{column.name} {column.show(value)}"
    if row.casts > goal(tile.dtype(name)):
        yield f"cast instructions {row.casts:.3f} above {goal(tile.dtype(name))}"


def main(pattern: str = "") -> None:
    """Prints the table, then the rows that miss a goal."""
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}, nvdisasm {sass.version()}, clang of ziglang "
          f"{clang.version()}, {datetime.date.today()}; x f16, groups of {GROUP}, 3 stages\n")
    names = [f.name for f in fields(Measured)]
    head = ("weights", "target", "decomposition", *(COLUMNS[n].name for n in names))
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    notes = []
    for name, target, (form, rows) in product(TYPES, TARGETS, FORMS.items()):
        if pattern in name:
            row = measure(name, targets.check(target, runs=False), form, rows)
            print(f"| {name} | {target} | {form} | {' | '.join(COLUMNS[n].show(getattr(row, n)) for n in names)} |",
                  flush=True)
            notes += [f"- {name} by {form} on {target}: {m}" for m in missed(name, row)]
    print("\n" + ("\n".join(notes) if notes else "Every goal is held."))


if __name__ == "__main__":
    main(*sys.argv[1:2])
