"""The words and numbers that page and terminal share."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tilelang.explain.banks import Heat
from tilelang.explain.facts import Facts, Loop, Place

PEAKS = {
    "cuda:sm_75": ("T4", 320, 65), "cuda:sm_80": ("A100 SXM 80 GB", 2039, 312), "cuda:sm_86": ("A10", 600, 125),
    "cuda:sm_89": ("L40S", 864, 362), "cuda:sm_90a": ("H100 SXM", 3350, 989),
    "cuda:sm_100a": ("B200", 8000, 2250), "cuda:sm_120a": ("RTX 5090", 1792, 210),
    "hip:gfx90a": ("MI250X, one die", 1638, 191), "hip:gfx942": ("MI300X", 5300, 1307),
    "hip:gfx950": ("MI355X", 8000, 2517)}
"""A device of each architecture: GB/s of its memory, and TFLOP/s of dense f16 products, by its maker's data sheet."""


def place_text(place: Place | None) -> str:
    """file:line, without the folders."""
    return f"{place[0].replace(chr(92), '/').rpartition('/')[2]}:{place[1]}" if place else "the compiler's own"


def cost(c: Any) -> str:
    """One line about a counter."""
    classes = ", ".join(f"{n} {name}" for name, n in c.instructions.items())
    return f"{classes}; sectors {c.sectors} of {c.ideal_sectors}, wavefronts {c.wavefronts} of {c.ideal_wavefronts}"


def loop_text(loop: Loop) -> str:
    """What a loop copies, and when, and how it moves data beside its products."""
    way = f"; schedule {loop.schedule}" if loop.schedule else ""
    return f"{loop.copies} copies a turn, {loop.ahead} {'turn' if loop.ahead == 1 else 'turns'} ahead{way}"


def heat_source(facts: Facts) -> str:
    """Where the counts of banks come from."""
    return "counted by the emulator, in all programs" if facts.counters else \
        "derived from the code (each access once, by all threads of the first program; --run counts them)"


def heat_text(h: Heat) -> str:
    """One line about the banks that an access uses."""
    low, high, total, waits = min(h.words), max(h.words), sum(h.words), sum(h.waits)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    wait = f"{waits:,} of {total:,} wait" if waits else "none waits"
    what = f"{place_text(h.place)} {'stores' if h.stores else 'loads'}"
    return f"{what}: {each} words in each of {len(h.words)} banks, {wait}"


def chips(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(name, value, "good", "bad" or "") of the report's entries."""
    for key, value in facts.report.items():
        text = f"{value:.0%}" if key == "occupancy" else f"{value:,}" if isinstance(value, int) else str(value)
        state = ("bad" if value else "good") if key in ("spills", "stack_bytes", "serialized") else ""
        yield key.replace("_", " "), text, state


def floors(facts: Facts) -> Iterable[tuple[str, str]]:
    """The work beside the least there could be, and the time that takes on a device of the architecture."""
    w = facts.work
    assert w is not None
    moved = w.loaded + w.stored
    yield "programs", f"{w.programs:,}"
    yield "bytes of all arguments, each once", f"{facts.least_bytes:,}"
    yield "bytes read and written by programs", \
        f"{moved:,.0f} ({moved / max(facts.least_bytes, 1):.1f} times; caches serve the rest)"
    yield "operations of products", f"{w.products:,.0f}"
    yield "operations on elements, roughly", f"{w.simple:,.0f}"
    if w.products:
        yield "operations of products for each byte of the arguments", f"{w.products / max(facts.least_bytes, 1):.1f}"
    if facts.target in PEAKS:
        name, bandwidth, tera = PEAKS[facts.target]
        memory, products = facts.least_bytes / bandwidth / 1e3, w.products / tera / 1e6
        yield f"floor on {name} ({bandwidth} GB/s, {tera} TFLOP/s f16)", \
            f"{max(memory, products):.3g} us: memory {memory:.3g}, products {products:.3g}"
