"""The pages that are made when the site is built, and docs/numbers.md: they show what is there."""
from __future__ import annotations

import math
import re
import runpy
import types
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import ROOT, blocks, run_python
from tilelang.backends.cpu import compile as cpu
from tilelang.backends.simt import compile as simt
from tilelang.passes.pipeline import TILE_PASSES


def generator(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / f"{name}.py"))


def test_every_pass_is_explained_and_shown_at_work(tmp_path: Path) -> None:
    (page,) = generator("build_passes")["pages"]().values()
    passes = {*TILE_PASSES, *cpu.PLACED_PASSES, *cpu.THREAD_PASSES, *simt.PLACED_PASSES, *simt.THREAD_PASSES}
    sections = page.split("\n### ")[1:]
    assert sorted(section.partition("\n")[0] for section in sections) == sorted(p.__name__ for p in passes)
    for section in sections:
        assert re.search(r"^\*Requires\* \S.*^\*Ensures\* \S.*^```diff\n(?=.*^[+-]).*^```$", section, re.M | re.S)
    ((code, shown),) = blocks(page)
    module = types.ModuleType("passes")
    assert run_python(code.text, tmp_path / "passes.py", vars(module), raises=False) == "" and shown is None
    assert set(re.findall(r"^In `(\w+)` for", page, re.M)) <= vars(module).keys()


TABLE = """\
| case | threads | ours | torch | ratio | goal |
|---|---|---|---|---|---|
| a & b | 1 | 1 ms | 2 ms | 2.00 (1.80) | 1.05 |
| c | 2 | 2 ms | 1 ms | 0.50 | 0.8 below |
| d | 2 | 2 ms | 2 ms | 1.00 | |
"""


def test_charts_have_the_rows_of_their_tables() -> None:
    build = generator("build_benchmarks")
    bars = build["bars"](TABLE)
    assert [tuple(bar) for bar in bars] == [("a & b, 1 thread", 2.0, 1.05, False), ("c, 2 threads", 0.5, 0.8, True),
                                            ("d, 2 threads", 1.0, 0.0, False)]
    assert build["bars"](TABLE.replace("ratio", "share")) == []
    drawn = build["chart"](bars)
    assert "a &amp; b" in drawn
    left, unit = math.ceil(build["LETTER"] * len("a & b, 1 thread")), build["WIDTH"] / 2  # a scale from 1/2 to 2
    places = [tuple(map(float, place)) for place in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)]
    assert places == [(left + unit, unit), (left, unit), (left + unit, 1)]


def test_the_record_is_shown_whole() -> None:
    page, *charts = generator("build_benchmarks")["pages"]().values()
    record = (ROOT / "benchmarks" / "README.md").read_text()
    lines = [line.strip() for line in page.splitlines()]
    assert all(line.strip() in lines for line in record.splitlines())
    drawn = re.findall(r"^\|(?=.*\| ratio \|)(?=.*\| goal \|)", record, re.M)
    assert len(charts) == page.count("](charts/") == len(drawn) > 0


@pytest.mark.parametrize("name", ["numbers"])
def test_the_page_is_what_the_generator_gives(name: str) -> None:
    made = generator(f"generate_{name}")
    assert made["PAGE"].read_text() == made["page"](), f"docs/{name}.md is not up to date: python docs/generate.py"
