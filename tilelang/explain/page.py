"""One self-contained HTML page of a kernel's facts: no network, works at any width and by keyboard."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tilelang.explain.facts import Decision, Facts, Place
from tilelang.explain.terms import PEAKS, chips, cost, floors, heat_source, heat_text, loop_text, place_text
from tilelang.passes.work import Work

_HERE = Path(__file__).parent


def page(facts: Facts) -> str:
    """The page."""
    places: dict[Place, int] = {}
    for file, lines in facts.sources:
        for number, _ in lines:
            places[file, number] = len(places)
    data = json.dumps(_data(facts, places), separators=(",", ":")).replace("<", "\\u003c")
    body = "\n".join([*_head(facts), *_sections(facts)])
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(facts.name)} for {escape(facts.target)}</title>",
        f"<style>{(_HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>", body,
        f'<script type="application/json" id="data">{data}</script>',
        f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script></body></html>", ""])


def _data(facts: Facts, places: dict[Place, int]) -> dict[str, Any]:
    def number(p: Place | None) -> int:
        return places.get(p, -1) if p is not None else -1
    spent = {number(p): sum(c.instructions.values()) for p, c in facts.counters.items()}
    most = max(spent.values(), default=1) or 1
    return {
        "sources": [[file, [[n, text, number((file, n))] for n, text in lines]] for file, lines in facts.sources],
        "levels": [{"title": x.title, "lines": [[y.text, number(y.place)] for y in x.lines]} for x in facts.levels],
        "first": next((i for i, x in enumerate(facts.levels) if x.title == "PLACED"), 0),
        "heated": bool(spent), "heat": {n: v / most for n, v in spent.items()},
        "costs": {number(p): cost(c) for p, c in facts.counters.items()},
        "pictures": [{"layout": p.layout, "kind": p.kind, "cells": p.cells} for p in facts.pictures],
    }


def _head(facts: Facts) -> Iterable[str]:
    yield f"<header><h1><code>{escape(facts.name)}</code> for {escape(facts.target)}</h1>"
    if facts.shapes:
        yield f'<p class="soft">called with {escape(facts.shapes)}</p>'
    yield '<ul class="chips">'
    for name, value, state in chips(facts):
        yield f'<li class="{state}">{escape(name)}<b>{escape(value)}</b></li>'
    yield "</ul>"
    yield from (f'<p class="soft">{escape(text.splitlines()[0])}</p>' for text in facts.missing)
    yield """</header><main><div class="panes">
<section class="pane" aria-label="your source"><div class="bar"><span>your source</span></div>
<div class="code" id="source" tabindex="0"></div></section>
<section class="pane" aria-label="levels of the compiler"><div class="bar" id="tabs" role="tablist"></div>
<div class="code" id="level" tabindex="0"></div></section></div>
<p class="soft">Lines that belong together light up under the pointer; a click, or the arrow keys in a pane, brings
the other pane there.</p>"""


def _sections(facts: Facts) -> Iterable[str]:
    for section in (_work, _costs, _products, _conversions, _loops, _buffers, _banks, _accesses, _layouts):
        yield from section(facts)
    yield "</main>"


def _work(facts: Facts) -> Iterable[str]:
    if facts.work is None:
        return
    yield "<h2>What must be done, and what is done</h2>"
    yield from _table(("", ""), floors(facts))
    if facts.target in PEAKS and facts.work.products:
        yield f'<div class="scroll">{_roofline(facts, facts.work)}</div>'


def _costs(facts: Facts) -> Iterable[str]:
    if not facts.counters:
        return
    yield "<h2>What each line costs</h2>"
    yield ('<p class="soft">Counted by the emulator for the shapes above: exact, but no times. Sectors have 32 '
           "bytes; wavefronts beyond the fewest possible are bank conflicts.</p>")
    costs = [(place_text(p), str(c.bytes), f"{c.sectors}/{c.ideal_sectors}", f"{c.wavefronts}/{c.ideal_wavefronts}",
              str(c.mma), str(sum(c.instructions.values()))) for p, c in sorted(facts.counters.items())]
    yield from _table(("line", "bytes", "sectors/ideal", "wavefronts/ideal", "MMA", "instructions"), costs, 1)


def _products(facts: Facts) -> Iterable[str]:
    if facts.decisions:
        yield "<h2>Products</h2>"
    for d in facts.decisions:
        yield from _choice(d, f"<code>{escape(d.chosen)}</code>")


def _conversions(facts: Facts) -> Iterable[str]:
    if facts.conversions:
        yield "<h2>Changes of layout</h2>"
    for d in facts.conversions:
        yield from _choice(d, escape(d.chosen))


def _choice(d: Decision, chosen: str) -> Iterable[str]:
    """What was chosen at a place; what was not is unfolded below."""
    yield (f"<details><summary>{escape(place_text(d.place))}: {chosen}</summary><ul>" +
           "".join(f"<li><code>{escape(r)}</code></li>" for r in d.rejected) + "</ul></details>")


def _loops(facts: Facts) -> Iterable[str]:
    if facts.loops:
        yield "<h2>Copies that run ahead</h2>"
    for loop in facts.loops:
        yield (f"<p>{escape(place_text(loop.place))}: {loop_text(loop)}; each turn waits until all but "
               f"{loop.pending} of their groups have landed.</p>")
        yield f'<div class="scroll">{_timeline(loop.ahead)}</div>'


def _buffers(facts: Facts) -> Iterable[str]:
    if not facts.buffers:
        return
    yield "<h2>Shared memory</h2>"
    yield f'<div class="scroll">{_memory(facts)}</div>'
    rows = [(b.name, f"{b.dtype}{list(b.shape)}", str(b.offset), str(b.size)) for b in facts.buffers]
    yield from _table(("buffer", "type", "offset", "bytes"), rows, 2)


def _accesses(facts: Facts) -> Iterable[str]:
    if not facts.accesses:
        return
    yield "<h2>Accesses of a thread</h2>"
    rows = [(place_text(p), op, memory, str(size)) for p, op, memory, size in facts.accesses]
    yield from _table(("line", "operation", "memory", "bytes at once"), rows, 3)


def _layouts(facts: Facts) -> Iterable[str]:
    if not facts.pictures:
        return
    yield "<h2>Layouts</h2>"
    colour = "bank" if any(p.kind == "shared memory" for p in facts.pictures) else "line of the cache"
    yield ('<p class="soft">Of the first rows and columns: <code>thread:register</code>, or for memory the '
           f"element's place, coloured by its {colour}.</p>")
    for i, p in enumerate(facts.pictures):
        yield (f'<details data-picture="{i}"><summary>{list(p.shape)} in {p.kind}: <code>{escape(p.layout)}</code>'
               f'</summary><p class="soft">{escape(", ".join(p.values[:12]))}</p></details>')


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 99) -> Iterable[str]:
    """A table whose columns from `numbers` on are numbers."""
    yield '<div class="scroll"><table>'
    if any(head):
        yield "<tr>" + "".join(f'<th{" class=num" if i >= numbers else ""}>{escape(h)}</th>'
                               for i, h in enumerate(head)) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f'<td{" class=num" if i >= numbers else ""}><code>{escape(x)}</code></td>'
                               for i, x in enumerate(row)) + "</tr>"
    yield "</table></div>"


def _memory(facts: Facts) -> str:
    """Bytes downwards, the order of operations to the right: buffers that share bytes do not overlap in time."""
    end = max(b.end for b in facts.buffers) or 1
    total = max(b.offset + b.size for b in facts.buffers)
    width, height = 900, max(180, min(420, total // 160))
    out = [f'<svg viewBox="0 0 {width + 90} {height + 30}" width="{width + 90}" height="{height + 30}" role="img" '
           'aria-label="shared memory over time">']
    for part in range(5):
        y = height * part / 4
        out.append(f'<line class="axis" x1="80" x2="{width + 80}" y1="{y}" y2="{y}"/>'
                   f'<text class="soft" x="74" y="{y + (10 if not part else 4)}" text-anchor="end">'
                   f"{total * part // 4}</text>")
    for i, b in enumerate(facts.buffers):
        x, w = 80 + width * b.start / end, max(width * (b.end - b.start) / end, 3)
        y, h = height * b.offset / total, max(height * b.size / total, 2)
        label = f"{escape(b.name)} {b.dtype}{list(b.shape)}" if h > 14 else ""
        at = f'x="{x + w - 6:.1f}" text-anchor="end"' if x + 7 * len(label) > 80 + width else f'x="{x + 6:.1f}"'
        out.append(f'<g><title>{escape(b.name)}: bytes {b.offset} to {b.offset + b.size}</title>'
                   f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="3" '
                   f'fill="hsl({i * 137 % 360} 60% 60% / .45)" stroke="hsl({i * 137 % 360} 60% 40%)"/>'
                   f'<text {at} y="{y + 15:.1f}">{label}</text></g>')
    out.append(f'<text class="soft" x="80" y="{height + 20}">first operation</text><text class="soft" '
               f'x="{width + 80}" y="{height + 20}" text-anchor="end">last</text></svg>')
    return "".join(out)


def _banks(facts: Facts) -> Iterable[str]:
    """A row of banks for each line's accesses to a buffer: the more words, the darker; on top what waited."""
    if not facts.heat:
        return
    yield (f'<h3>Banks</h3><p class="soft">Words of four bytes that each bank gives or takes, '
           f"{escape(heat_source(facts))}. Bank 0 is on the left; the darker, the more; from below, in the other "
           "colour, the part that waits for another word of the same bank. Not in it are copies of blocks by one "
           "thread and products of several warps.</p>")
    most = max(max(h.words) for h in facts.heat) or 1
    for h in facts.heat:
        cells = "".join(f'<i style="--w:{words / most:.2f};--q:{waits / max(words, 1):.2f}" '
                        f'title="bank {bank}: {words:,} words, {waits:,} wait"></i>'
                        for bank, (words, waits) in enumerate(zip(h.words, h.waits, strict=True)))
        label = f"<code>{escape(h.buffer)}</code> {escape(heat_text(h))}"
        yield (f'<figure class="banks"><figcaption>{label}</figcaption><div role="img" aria-label="'
               f'{escape(h.buffer)}, {escape(heat_text(h))}" style="--n:{len(h.words)}">{cells}</div></figure>')


def _roofline(facts: Facts, work: Work) -> str:
    """What a device of the architecture could reach for so many operations of products by byte (Williams, Waterman and
    Patterson, 2009), with the kernel where each argument moves once, and where caches serve nothing."""
    name, bandwidth, tera = PEAKS[facts.target]
    width, height, low, high = 620, 200, -2, 14  # powers of two of operations by byte
    ridge = math.log2(1e3 * tera / bandwidth)

    def x(power: float) -> float:
        return 60 + width * (min(max(power, low), high) - low) / (high - low)

    def y(power: float) -> float:  # the roof over a place: half a step down for each power of two below the ridge
        return 30 + height * (ridge - min(power, ridge)) / (high - low)
    base = height + 50
    out = [f'<svg viewBox="0 0 {width + 90} {base + 40}" width="{width + 90}" height="{base + 40}" role="img" '
           f'aria-label="roofline of {escape(name)}"><path class="axis" fill="none" stroke-width="2" '
           f'd="M{x(low):.1f} {y(low):.1f} L{x(ridge):.1f} {y(ridge):.1f} L{x(high):.1f} {y(high):.1f}"/>'
           f'<text x="{x(high):.1f}" y="{y(high) - 8:.1f}" text-anchor="end">{escape(name)}: {tera} TFLOP/s f16</text>'
           f'<text x="{x(low) + 6:.1f}" y="{y(low) + 18:.1f}">{bandwidth} GB/s</text>']
    for tick in range(low, high + 1, 4):
        out.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="30" y2="{base}"/><text class="soft" '
                   f'x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">{2.0 ** tick:g}</text>')
    out.append(f'<text class="soft" x="{x(low):.1f}" y="{base + 32}">operations of products by byte</text>')
    for row, (label, size) in enumerate((("each byte once", facts.least_bytes),
                                         ("no caches", work.loaded + work.stored))):
        power = math.log2(work.products / max(size, 1))
        reach = min(tera, bandwidth / 1e3 * 2.0 ** power)
        out.append(f'<circle cx="{x(power):.1f}" cy="{y(power):.1f}" r="5" fill="hsl(20 80% 50%)"><title>{label}: '
                   f'{2.0 ** power:.3g} operations by byte, at most {reach:.3g} TFLOP/s</title></circle>'
                   f'<text x="{x(power) + 8:.1f}" y="{y(power) + 14 + 16 * row:.1f}">{label}: {reach:.3g} TFLOP/s'
                   "</text>")
    return "".join([*out, "</svg>"])


def _timeline(ahead: int, turns: int = 6) -> str:
    """When the copies for each turn start and must have landed, and when its products run."""
    unit, row, left = 110, 22, 90
    steps = ahead + turns
    width, height = left + unit * steps + 10, row * (turns + 2) + 14
    out = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="pipeline">']
    for s in range(steps):
        label = "before" if s < ahead else f"turn {s - ahead}"
        x = left + s * unit
        out.append(f'<line class="axis" x1="{x}" x2="{x}" y1="0" y2="{row * (turns + 1)}"/>'
                   f'<text class="soft" x="{x + 4}" y="{row * (turns + 2)}">{label}</text>')
    for turn in range(turns):
        y = turn * row + 3
        start, runs = left + turn * unit + 8, left + (turn + ahead) * unit
        out.append(f'<text class="soft" x="{left - 8}" y="{y + 13}" text-anchor="end">for turn {turn}</text>'
                   f'<rect x="{start}" y="{y}" width="{runs - start}" height="{row - 6}" rx="3" '
                   f'fill="hsl(210 60% 60% / .4)"/><text x="{start + 5}" y="{y + 12}">copies</text>'
                   f'<rect x="{runs}" y="{y}" width="{unit - 6}" height="{row - 6}" rx="3" '
                   f'fill="hsl(20 80% 60% / .55)"/><text x="{runs + 5}" y="{y + 12}">compute</text>')
    return "".join([*out, "</svg>"])
