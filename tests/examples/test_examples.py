"""Every example runs, and its own assertions hold, the tutorials' also for threads."""
from __future__ import annotations

import inspect
import re
import runpy
from functools import partial
from pathlib import Path

import pytest

import tilelang as tile
from tilelang import targets
from tilelang.config import config

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
TUTORIALS = [p for p in EXAMPLES if p.stem[0].isdigit()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(path))["main"]
    names = inspect.unwrap(main).__globals__
    if "medians" in names:  # no time is looked at here
        names["medians"] = partial(names["medians"], repeat=1)
    main()
    assert capsys.readouterr().out.strip()


def test_a_quantised_model_comes_closer_with_bits(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES[-1]))["quantised"]
    names = example.__wrapped__.__globals__
    names["medians"] = lambda *calls: [0.0] * len(calls)  # no time is looked at here
    names["SENTENCES"] = names["SENTENCES"][:1]
    names["QUERY"] = names["LONG"] = names["SENTENCES"][0]  # each other length compiles kernels of its own
    example(["u2", "u5", "u8"], 32)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["f32", "u2", "u5", "u8"] and [row[1] for row in rows[1:]] == [
        "2.56", "5.66", "8.75"]  # f16 scales and a zero point for 32 weights
    cosines = [float(row[3]) for row in rows]
    assert 1 == cosines[0] > cosines[3] > cosines[2] > cosines[1]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_say_the_same_by_threads(path: Path, capsys: pytest.CaptureFixture[str], fresh_config: None,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the errors they measure: sums are taken in another order."""
    runpy.run_path(str(path))["main"]()
    wanted = capsys.readouterr().out
    monkeypatch.setenv("TILELANG_TARGET", "emulate:cuda:sm_80")
    config.cache_clear()
    targets._last.clear()
    runpy.run_path(str(path))["main"]()
    got = capsys.readouterr().out
    assert tile.last_counters()  # it was emulated
    error = re.compile(r"\d\.\de-\d\d")
    assert error.sub("", got) == error.sub("", wanted)
    for a, b in zip(error.findall(got), error.findall(wanted), strict=True):
        assert 1 / 8 < float(a) / float(b) < 8


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 8
