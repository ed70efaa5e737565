"""Kernels that choose their constants: what is searched, what is kept, and what happens where nothing can be timed."""
from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import errors
from tilelang.cli import main
from tilelang.tuning import jobs, search, store, tuned
from tilelang.tuning.processes import Inline


@tile.kernel
def scaled(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], by: tile.f32 = 2.0,
           BM: tile.Const = 4, BN: tile.Const = 64):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    tile.store(y, (m * BM, n * BN), tile.load(x, (m * BM, n * BN), (BM, BN)) * by)


def marked(**options: Any) -> tuned.Tuned:
    return tile.autotune(BM=[1, 4], BN=[16, 64], budget=20, compile_on=Inline(), **options)(scaled)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[store.Store]:
    """A file of results of its own for each test."""
    kept = store.Store(tmp_path / "tuning.sqlite")
    monkeypatch.setattr(store, "default", lambda: kept)
    yield kept


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many configurations each search was about."""
    seen: list[int] = []
    run = search.Search.run
    monkeypatch.setattr(search.Search, "run", lambda self, kept: (seen.append(len(self.candidates)),
                                                                  run(self, kept))[1])
    return seen


def test_threads_wait_for_the_first_ones_search(searches: list[int]) -> None:
    fast, x = marked(), torch.randn(33, 100)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(y, x * 2) for y in threads.map(lambda i: fast(x), range(4)))
    assert searches == [4]


def test_the_first_call_searches_and_the_others_do_not(searches: list[int], results: store.Store) -> None:
    fast, x = marked(), torch.randn(33, 100)
    for _ in range(3):
        assert torch.equal(fast(x), x * 2)
    assert torch.equal(fast(x, by=3.0), x * 3) and torch.equal(fast(x=x), x * 2)
    assert torch.equal(fast(torch.ones(40, 128)), torch.full((40, 128), 2.0))  # of the same powers of two
    assert searches == [4]
    assert torch.equal(marked()(x), x * 2) and searches == [4]  # as another process would find it
    fast(x.double())
    fast(torch.ones(300, 100))
    assert searches == [4, 4, 4]
    rows = results.results()
    assert [r["bucket"] for r in rows] == [[["M", 64], ["N", 128]]] * 2 + [[["M", 512], ["N", 128]]]
    assert all(r["config"]["BM"] in (1, 4) and r["ms"] > 0 for r in rows)


def test_the_arguments_are_not_written_while_searching() -> None:
    @tile.kernel
    def more(x: tile.InOut[tile.f32, "N"], B: tile.Const = 8):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(x, (n * B,), tile.load(x, (n * B,), (B,)) + 1.0)
    x = torch.zeros(100)
    tile.autotune(more, B=[8, 32], compile_on=Inline())(x)
    assert torch.equal(x, torch.ones(100))


def test_every_candidate_says_what_became_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @tile.kernel
    def padded(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const = 8):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)) + tile.zeros((8 if B < 100 else 9,), tile.f32)[:1])
    checked = jobs.checked
    monkeypatch.setattr(jobs, "checked", lambda code: "it is off" if "f32[16]" in code.text else checked(code))
    made = jobs.compiled
    monkeypatch.setattr(jobs, "compiled", lambda code: jobs.Compiled({"spills": 8}) if "f32[32]" in code.text
                        else made(code))
    fast = tile.autotune(padded, B=[0, 8, 16, 32, 1 << 20], compile_on=Inline())
    became = {c.config["B"]: c for c in fast.tune(torch.ones(100))}
    assert {b: c.status for b, c in became.items()} == {0: "invalid", 8: "timed", 16: "wrong", 32: "spills",
                                                        1 << 20: "pruned"}
    assert str(became[0]).startswith("Candidate(config={'B': 0}, estimate=inf, status='invalid', why='")
    assert len(str(became[8])) < 300  # no text of the kernel
    assert became[16].why == "it is off" and became[8].times and "8 bytes" in became[32].why


def test_a_search_goes_on_where_it_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    tried = jobs.tried

    def until_the_third(code: jobs.Code, *args: Any) -> Any:
        if len(timed) == 2:
            raise KeyboardInterrupt
        timed.append(code.text)
        return tried(code, *args)
    x = torch.ones(33, 100)
    monkeypatch.setattr(jobs, "tried", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        marked()(x)
    problem = marked()._problem((x,), {})
    kept = store.default().trials(problem.key)
    assert [t.status for t in kept.values()] == ["timed", "timed"]
    monkeypatch.setattr(jobs, "tried", tried)
    again = search.Search(problem, 20, Inline())
    assert again.run(store.default()) is not None
    first = {store.to_json(c.config): c.times[0] for c in again.candidates if c.times}
    assert {config: first[config] for config in kept} == {config: t.ms for config, t in kept.items()}
    assert torch.equal(marked()(x), x * 2)


def version(by: float) -> tile.Kernel:
    """A kernel of one name, as its author changes it."""
    @tile.kernel
    def changed(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const = 8):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)) * by)
    return changed


def test_what_was_wrong_with_a_kernel_is_forgotten_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(100)
    checked = jobs.checked
    monkeypatch.setattr(jobs, "checked", lambda code: "it is off")
    for _ in range(2):
        with pytest.raises(errors.TuningError, match="no configuration of `changed` works\n(.|\n)*it is off"):
            tile.autotune(version(1.0), B=[8, 16], compile_on=Inline())(x)
    monkeypatch.setattr(jobs, "checked", checked)
    with pytest.raises(errors.TuningError, match="it is off"):  # of the same function it is still known
        tile.autotune(version(1.0), B=[8, 16], compile_on=Inline())(x)
    assert torch.equal(tile.autotune(version(2.0), B=[8, 16], compile_on=Inline())(x), x * 2)


def test_what_may_go_well_another_time_is_not_stored(monkeypatch: pytest.MonkeyPatch, results: store.Store) -> None:
    def lost(*args: Any) -> Any:
        raise ConnectionError("the machine is gone")
    x, tried = torch.ones(33, 100), jobs.tried
    monkeypatch.setattr(jobs, "tried", lost)
    with pytest.raises(errors.TuningError, match="ConnectionError: the machine is gone"):
        marked()(x)
    monkeypatch.setattr(jobs, "tried", tried)
    assert torch.equal(marked()(x), x * 2)


def test_an_error_while_times_are_taken_is_that_error(results: store.Store) -> None:
    with pytest.raises(OSError, match="a disk"), search._alone(results, 1.0):
        raise OSError("a disk")


def test_without_a_search_the_defaults_or_the_model_decide(searches: list[int], monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(33, 100)
    monkeypatch.setattr(tuned, "_not_now", lambda: "a CUDA graph is being captured")
    with caplog.at_level(logging.INFO, "tilelang.tuning"):
        assert marked().choice(x) == tuned.Choice({"BM": 4, "BN": 64}, "model")
    assert "is not tuned (a CUDA graph is being captured): it runs with {'BM': 4, 'BN': 64}" in caplog.text
    assert torch.equal(marked()(x), x * 2)

    @tile.kernel
    def bare(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const):
        n = tile.grid(tile.cdiv(x.shape[0], B))
        tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)))
    assert tile.autotune(bare, B=[1, 1 << 20, 128]).choice(torch.ones(250)).config == {"B": 128}
    assert not searches


def test_nothing_is_timed_in_the_interpreter_and_the_emulator(searches: list[int]) -> None:
    x = np.ones((3, 20), np.float32)
    for name in ("reference", "emulate:cuda:sm_80", "shapes"):
        with tile.target(name):
            assert marked()(x).shape == (3, 20)
            if name == "reference":
                with pytest.raises(errors.TuningError, match="cannot be tuned: nothing is timed on reference"):
                    marked().tune(x)
    assert "tile" in marked().lower(x, target="cuda:sm_80").source and not searches
    assert np.array_equal(marked().reference(x), x * 2)
    assert "scaled for cuda:sm_80" in str(marked().explain(x, target="cuda:sm_80"))


def test_constants_that_are_given_are_used(searches: list[int]) -> None:
    x = torch.ones(33, 100)
    assert torch.equal(marked()(x, BN=32), x * 2) and searches == [2]
    assert marked().choice(x, BN=32).config["BN"] == 32 and searches == [2]


def test_a_changed_kernel_is_tuned_again(searches: list[int], results: store.Store) -> None:
    x = torch.ones(33, 100)
    marked()(x)
    problem = marked()._problem((x,), {}).key
    best = results.best(problem)
    assert best is not None
    results.put_best(problem, store.Best(best.config, best.ms, "another function"))
    marked()(x)
    results.put_best(problem, store.Best({"BM": 5, "BN": 16}, best.ms, best.code))  # no longer a choice
    marked()(x)
    assert searches == [4, 4, 4]


def test_shipped_results(searches: list[int], results: store.Store, tmp_path: Path,
                         capsys: pytest.CaptureFixture[str]) -> None:
    x, file = torch.ones(33, 100), tmp_path / "shipped.json"
    marked()(x)
    assert main(["tuning", "export", str(file)]) == 0 and main(["tuning", "list"]) == 0
    assert re.search(r"1 results written.*\n.*scaled  cpu .* M<=64, N<=128: BM=\d, BN=\d+ ", capsys.readouterr().out)
    rows = json.loads(file.read_text())
    rows[0]["version"] = "of another compiler"
    file.write_text(json.dumps(rows))
    assert main(["tuning", "clear"]) == 0 and not results.results()
    assert marked(results=file).choice(x).source == "shipped" and searches == [4]
    file.write_text("{")
    store._read.cache_clear()
    assert torch.equal(marked(results=file)(x), x * 2) and searches == [4, 4]


def test_jobs_on_a_dask_cluster(results: store.Store) -> None:
    """Its workers are processes of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own
        from distributed import Client, LocalCluster
        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, \
                Client(cluster) as client:
            executor = client.get_executor()
            fast = tile.autotune(BM=[1, 4], compile_on=executor, time_on=executor)(scaled)
            assert torch.equal(fast(torch.ones(5, 5)), torch.full((5, 5), 2.0))
    assert len(results.results()) == 1


def test_a_new_process_uses_what_is_stored(tmp_path: Path) -> None:
    """A script without a guard around its calls, whose search compiles in other processes."""
    script = tmp_path / "script.py"
    script.write_text("""
import numpy as np, tilelang as tile

@tile.autotune(B=[8, 64], key=["N"])
@tile.kernel
def twice(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const = 8):
    n = tile.grid(tile.cdiv(x.shape[0], B))
    tile.store(y, (n * B,), tile.load(x, (n * B,), (B,)) * 2.0)

x = np.ones(100, np.float32)
assert (twice(x) == 2).all()
print("called")
""")
    env = {**os.environ, "TILELANG_TUNING_FILE": str(tmp_path / "t.sqlite"), "TILELANG_CACHE_DIR": str(tmp_path / "c")}
    for _ in range(2):
        run = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0 and not run.stderr and run.stdout == "called\n", run.stderr
    assert len(store.Store(tmp_path / "t.sqlite").results()) == 1
    assert (tmp_path / "t.sqlite").stat().st_mode & 0o077 == 0


def test_mistakes() -> None:
    with pytest.raises(errors.ArgumentCount, match="has no constant 'BX'"):
        tile.autotune(BX=[1])(scaled)
    with pytest.raises(errors.TuningError, match="has no dimension 'Q'"):
        tile.autotune(BM=[1], key=["Q"])(scaled)
    with pytest.raises(errors.TuningError, match="no configuration to choose from"):
        tile.autotune(BM=[1], where=lambda BM: False)(scaled)
    with pytest.raises(TypeError, match="must stand above @tile.kernel"):
        tile.autotune(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(errors.TuningError, match=r"no configuration of `scaled` works\n(.|\n)*BM': 0"):
        tile.autotune(BM=[0], compile_on=Inline())(scaled)(torch.ones(3, 3))
    with pytest.raises(errors.ArgumentRank):
        marked()(torch.ones(3))


@pytest.mark.parametrize("there", [True, False])
def test_a_bar_on_terminals_where_rich_is_installed(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    terminal = SimpleNamespace(isatty=lambda: True, write=written.append, flush=lambda: None, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    if not there:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with search.progress("tuning f") as show:
        show("timing", 1, 2)
    assert ("timing" in "".join(written)) == there


def test_a_budget_that_ends_too_early_is_no_error(results: store.Store, caplog: pytest.LogCaptureFixture) -> None:
    class Never(Inline):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()
    x = np.ones((4, 16), np.float32)
    late = tile.autotune(BM=[1, 4], BN=[16, 64], budget=0.1, compile_on=Never())(scaled)
    assert (late(x) == 2).all() and "was timed within 0.1 s" in caplog.text
    assert not results.results() and late.choice(x).source == "model"


@pytest.mark.parametrize("choices", [{"BM": 4}, {"BM": "48"}, {"BM": [4], "key": "M"}])
def test_choices_are_lists(choices: dict[str, Any]) -> None:
    with pytest.raises(errors.TuningError, match="is not a list"):
        tile.autotune(scaled, **choices)


@pytest.mark.parametrize("budget", [-1, float("nan"), "60", None])
def test_a_budget_is_a_time(budget: Any) -> None:
    with pytest.raises(errors.TuningError, match="`budget` of `scaled` is no time"):
        tile.autotune(scaled, BM=[8], budget=budget)


TUNED = tile.autotune(BM=[1, 4])(scaled)


def test_tuned_kernels_are_copied_as_functions_are() -> None:
    assert copy.deepcopy(TUNED) is TUNED
