"""The page benchmarks.md of the site: benchmarks/README.md, the record of what was measured, with a chart in the
place of each table that has ratios, and the table folded below it."""
from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

RECORD = Path(__file__).parent.parent / "benchmarks" / "README.md"
LETTER, WIDTH, STEP = 7.5, 240, 22
"""Sizes in a chart: of a letter, the width of the bars, and the height of a row."""


class Bar(NamedTuple):
    """A row of a table: what was measured, the ratio, the goal (0 where there is none), and whether it is missed."""

    label: str
    ratio: float
    goal: float
    missed: bool


def bars(table: str) -> list[Bar]:
    """The rows of a table that has ratios and goals, else none. A ratio in parentheses is another statistic."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    if not {"ratio", "goal"} <= set(head):
        return []
    at, goal = head.index("ratio"), head.index("goal")
    several = "threads" in head and len({row[head.index("threads")] for row in rows}) > 1
    out = []
    for row in rows:
        threads = row[head.index("threads")] if several else ""
        label = row[0] + (f", {threads} thread{'s' * (threads != '1')}" if several else "")
        ratio = float(row[at].split()[0])
        wanted = float((row[goal] or "0").split()[0])
        out.append(Bar(label, ratio, wanted, ratio < wanted))
    return out


def chart(rows: list[Bar]) -> str:
    """Bars on a logarithmic scale, from 1 to the ratio; a tick where the goal is."""
    values = [value for bar in rows for value in (bar.ratio, bar.goal) if value]
    left = math.ceil(LETTER * max(len(bar.label) for bar in rows))
    low, high = math.floor(math.log2(min([*values, 0.5]))), math.ceil(math.log2(max([*values, 2])))

    def x(value: float) -> float:
        return round(left + WIDTH * (math.log2(value) - low) / (high - low), 1)
    width, height = left + WIDTH + 60, STEP * len(rows) + 34
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="14">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for power in range(low, high + 1):
        at, text = x(2.0 ** power), f"{2.0 ** power:g}"
        out.append(f'<path d="M{at} 22V{height - 6}" stroke="{"#555" if power == 0 else "#ddd"}"/>'
                   f'<text x="{at}" y="15" text-anchor="middle" fill="#555">{text}</text>')
    for i, bar in enumerate(rows):
        top, (begin, end) = 26 + i * STEP, sorted((x(1), x(bar.ratio)))
        out.append(f'<text x="{left - 8}" y="{top + 11}" text-anchor="end">{escape(bar.label)}</text>'
                   f'<rect x="{begin}" y="{top}" width="{max(end - begin, 1):.1f}" height="{STEP - 6}" '
                   f'fill="{"#c8553d" if bar.missed else "#3d7fb8"}"/>'
                   f'<text x="{end + 5}" y="{top + 11}" fill="#333">{bar.ratio:g}</text>')
        if bar.goal:
            out.append(f'<path d="M{x(bar.goal)} {top - 2}v{STEP - 2}" stroke="#111" stroke-width="2"/>')
    return "\n".join([*out, "</svg>", ""])


def pages() -> dict[str, str]:
    """The page and its charts, by name."""
    charts: dict[str, str] = {}

    def with_chart(match: re.Match[str]) -> str:
        rows = bars(match[0])
        if not rows:
            return match[0]
        name = f"charts/{len(charts) + 1}.svg"
        charts[name] = chart(rows)
        table = "".join(f"    {line}\n" for line in match[0].splitlines())
        return f'![How many times as fast ours is]({name})\n\n??? quote "The numbers"\n\n{table}'
    text = re.sub(r"(?:^\|.*\n)+", with_chart, RECORD.read_text(), flags=re.M)
    return {"benchmarks.md": text.replace("# Benchmarks\n", f"# Benchmarks\n\n{INTRODUCTION}", 1), **charts}


INTRODUCTION = """\
This page is `benchmarks/README.md` with charts. A bar is how many times as fast ours is as what stands beside it, on a
logarithmic scale; the black tick is the goal, and a red bar misses it.
"""
