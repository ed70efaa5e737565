"""AMD targets."""
from __future__ import annotations

from functools import cache

from tilelang.backends.hip.instructions import CDNA2, CDNA3, CDNA4, ROWS
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.layouts import Banks, Ports, in_order

SHARED_BYTES = {CDNA2: 64 << 10, CDNA3: 64 << 10, CDNA4: 160 << 10}
"""Local memory (LDS) of a work group (the instruction set manuals, section "LDS")."""
PROCESSORS = {f"gfx{arch:x}": arch for arch in SHARED_BYTES}
"""What their names say."""
_KNOWN = ", ".join(f"hip:{name}" for name in PROCESSORS)


def _phases(*lanes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The phases of the first 32 lanes, given by the first of each run of four, and the same 32 lanes on."""
    first = [tuple(start + i for start in phase for i in range(4)) for phase in lanes]
    return tuple(tuple(lane + half for lane in phase) for half in (0, 32) for phase in first)


STORES = in_order(32, 64, 32), in_order(32, 64, 16), in_order(32, 64, 8)
"""AMD's Composable Kernel, "Understanding AMD GPU LDS and Bank Conflicts", which speaks of MI300; that MI200 and MI350
store alike is an assumption."""
_WIDE = Banks(32, 4, _phases((0, 20), (4, 16), (8, 28), (12, 24)))
_WIDE_CDNA4 = Banks(64, 4, _phases((0, 12, 20, 24), (4, 8, 16, 28)))
PORTS = Ports((in_order(32, 64, 32), in_order(32, 64, 16), _WIDE), STORES)
PORTS_CDNA4 = Ports((in_order(64, 64, 64), in_order(64, 64, 32), _WIDE_CDNA4), STORES)
"""Loads of 16 bytes on CDNA3: the same page. CDNA4: as measured for HipKittens (arXiv 2511.08083); that loads which
transpose are served like others of 8 bytes is an assumption. So is CDNA2, which is taken to be like CDNA3: no table of
its phases was found. An assumption that is wrong costs time, never results."""

DIES = {CDNA3: (8, 38), CDNA4: (8, 64)}
"""Accelerator chips (XCDs) of MI300X and MI355X that take work groups in turn, each with a second-level cache of its
own (AMD's "CDNA3" and "CDNA4" white papers), and how many neighbours should follow one another on one of them: 38 are
its compute units, 64 is what HipKittens measured to be best. `python -m benchmarks.order` counts what that saves."""


MULTIPLIED = {CDNA2: 128 * 16, CDNA3: 256 * 16, CDNA4: 512 * 16}
"""Products of f16 that a vector unit makes in a cycle (the data sheets of MI250X, MI300X and MI355X: dense f16, by
clock, compute units and their four vector units), by bits: those of f8 are twice as many. Of f32 and f64 there are
fewer than this says, so their loops count as shorter than they are."""


@cache
def target(name: str) -> SimtTarget:
    """The target of a name such as "hip:gfx942". Raises TargetError."""
    arch = PROCESSORS.get(name.removeprefix("hip:"))
    if arch is None:
        raise TargetError(f"unknown target {name!r}", needs=_KNOWN, got=name, try_='tile.target("emulate:hip:gfx942")')
    rows = tuple(r for r in ROWS if r.archs[0] <= arch <= r.archs[1])
    casts = frozenset({("f16", "f32"), ("f32", "f16"), ("bf16", "f32"), ("f32", "bf16")})
    later = arch >= CDNA4  # others copy 4 bytes at a time: asked for, not chosen (`dma.py`)
    return SimtTarget(name, arch, 64, SHARED_BYTES[arch], PORTS_CDNA4 if later else PORTS, rows, async_copy=later,
                      ldmatrix=False, native_casts=casts, transposed_loads=later, windows=True, dma=16 if later else 4,
                      turns=8 if arch >= CDNA3 else 0, multiplied=MULTIPLIED[arch], two_f32=True, ternary=later,
                      halves=True, swaps=frozenset((16, 32)) if later else frozenset(), dies=DIES.get(arch, (1, 1)),
                      subnormals=arch > CDNA2)  # PyTorch's "Numerical accuracy": products of MI200 flush them


def for_device(arch: str) -> str:
    """The target whose machine code a processor such as "gfx942" runs. Raises TargetError."""
    if arch not in PROCESSORS:
        raise TargetError(f"{arch} is not supported", needs=_KNOWN, got=f"a device of {arch}",
                          try_='tile.target("cpu")')
    return f"hip:{arch}"
