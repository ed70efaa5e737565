"""The same facts for a terminal."""
from __future__ import annotations

from collections.abc import Iterator

from tilelang.explain.facts import Facts
from tilelang.explain.terms import chips, cost, floors, heat_source, heat_text, loop_text, place_text


def text(facts: Facts) -> str:
    """The facts without the texts of the levels, which `python -m tilelang compile --emit` prints."""
    return "\n".join(_lines(facts)) + "\n"


def _lines(facts: Facts) -> Iterator[str]:
    yield f"{facts.name} for {facts.target}"
    if facts.shapes:
        yield f"  {facts.shapes}"
    yield from (f"  {name}: {value}" for name, value, _ in chips(facts))
    yield from (f"  {what.splitlines()[0]}" for what in facts.missing)
    if facts.work is not None:
        yield "\nwork"
        yield from (f"  {name}: {value}" for name, value in floors(facts))
    for title, decisions in (("products", facts.decisions), ("changes of layout", facts.conversions)):
        if decisions:
            yield f"\n{title}"
        for d in decisions:
            yield f"  {place_text(d.place)}  {d.chosen}"
            if title != "products":
                yield from (f"      {r}" for r in d.rejected)
    if facts.loops:
        yield "\ncopies that run ahead"
    for loop in facts.loops:
        yield f"  {place_text(loop.place)}  {loop_text(loop)}"
    if facts.buffers:
        yield "\nshared memory"
    for b in facts.buffers:
        yield f"  {b.offset:>7} .. {b.offset + b.size:<7} {b.name} {b.dtype}{list(b.shape)}"
    if facts.heat:
        yield f"\nbanks of shared memory, {heat_source(facts)}"
    for h in facts.heat:
        yield f"  {h.buffer}  {heat_text(h)}"
    if facts.accesses:
        yield "\naccesses of a thread, bytes at once"
    for place, op, memory, size in facts.accesses:
        yield f"  {place_text(place)}  {op} {memory}: {size}"
    if facts.counters:
        yield "\ncosts by line"
    for place, c in sorted(facts.counters.items()):
        yield f"  {place_text(place)}  {cost(c)}"
    if facts.pictures:
        yield "\nlayouts"
    for p in facts.pictures:
        yield f"  {list(p.shape)} in {p.kind}: {p.layout}\n      {', '.join(p.values[:6])}"
