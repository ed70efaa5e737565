"""Finding the fastest configuration: prune by the model, compile side by side, check, then halve by time."""
from __future__ import annotations

import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tilelang import locks
from tilelang.args import Argument
from tilelang.errors import TileError
from tilelang.ir.parser import parse
from tilelang.reproduce import kept
from tilelang.tuning import jobs
from tilelang.tuning.jobs import Code
from tilelang.tuning.problem import Problem
from tilelang.tuning.processes import Inline, Processes
from tilelang.tuning.space import Config
from tilelang.tuning.store import Store, Trial, to_json

_log = logging.getLogger("tilelang.tuning")
_HOPELESS = 8.0
"""Configurations that the model takes to be this many times slower than its best are not compiled."""
_COMPILING = 0.6
"""The share of the budget after which compiling ends and timing begins."""
_SLOW = 3.0
"""A configuration whose first call takes this many times the best so far is called once."""
_LAST = 8
"""Candidates in the last round."""


@dataclass
class Candidate:
    """One configuration on its way: its function, the model's estimate, and what became of it."""

    config: Config
    code: Code = field(init=False, repr=False)  # of those that trace
    estimate: float = math.inf
    status: str = "waiting"
    why: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    correct: bool | None = None

    @property
    def ms(self) -> float:
        return min(self.times, default=math.inf)


class Search:
    """One search. `compile_on` and `time_on` are executors: this machine's processes, and this process, where None."""

    def __init__(self, problem: Problem, budget: float, compile_on: Executor | None = None,
                 time_on: Executor | None = None) -> None:
        self.problem, self.kernel = problem, problem.bound.kernel
        self.candidates = [Candidate(c) for c in problem.configs]
        self.budget, self.compile_on, self.time_on = budget, compile_on, time_on

    def run(self, store: Store) -> Candidate | None:
        """The fastest candidate; None where none works. What is learnt is stored as it is learnt."""
        self._store = store
        self._end = time.monotonic() + self.budget
        with progress(f"tuning {self.kernel.name}") as self._show:
            self._trace()
            self._compile()
            with _alone(store, self.budget) if self.time_on is None else nullcontext():
                return self._race()

    # -- the steps ----------------------------------------------------------------------------------------------------
    def _trace(self) -> None:
        """TILE functions, their estimates, and what earlier searches know."""
        known = self._store.trials(self.problem.key)
        for c in self.candidates:
            try:
                tile = self.problem.trace(c.config)
                c.code, c.estimate = Code.of(tile, self.problem.target), self.problem.estimate(c.config, tile)
            except TileError as error:
                c.status, c.why = "invalid", str(error).splitlines()[0]
                continue
            old = known.get(to_json(c.config))
            if old is not None and old.code == c.code.hash:  # of an earlier search that was cut off
                if old.status != "timed":
                    c.status, c.why = old.status, old.why
                elif old.ms is not None:
                    c.times = [old.ms]
        best = min((c.estimate for c in self.candidates), default=math.inf)
        for c in self.candidates:
            if c.status == "waiting" and c.estimate > _HOPELESS * best:
                c.status, c.why = "pruned", f"the model expects {c.estimate / best:.0f} times the best"

    def _compile(self) -> None:
        """All candidates left, the promising ones first, for a share of the budget; reports with spills drop out."""
        waiting = sorted((c for c in self.candidates if c.status == "waiting"), key=lambda c: c.estimate)
        executor = self.compile_on or Processes(_processors())
        futures: dict[Future[jobs.Compiled], Candidate] = {executor.submit(jobs.compiled, c.code): c for c in waiting}
        try:
            left = max(self._end - time.monotonic(), 0.0) - (1 - _COMPILING) * self.budget
            for done, future in enumerate(as_completed(futures, timeout=max(left, 1.0))):
                self._compiled(futures[future], future)
                self._show("compiling", done + 1, len(futures))
        except TimeoutError:
            _log.info("tuning %s: %d of %d configurations are compiled when their time ends", self.kernel.name,
                      sum(c.status == "compiled" for c in waiting), len(waiting))
        finally:
            for future in futures:
                future.cancel()
            if self.compile_on is None:
                executor.shutdown(wait=False, cancel_futures=True)
        clean = [c for c in waiting if c.status == "compiled" and not c.report.get("spills")]
        for c in waiting:
            if c.status == "compiled" and clean and c not in clean:
                c.status, c.why = "spills", f"{c.report['spills']} bytes of registers spilled"

    def _compiled(self, c: Candidate, future: Future[jobs.Compiled]) -> None:
        try:
            out = future.result()
        except Exception as error:  # another time it may go well: not stored
            c.status = "timeout" if isinstance(error, TimeoutError) else "invalid"
            c.why = f"{type(error).__name__}: {error}"
            return
        if out.error:
            c.status, c.why = "invalid", out.error.splitlines()[0]
            return self._keep(c)
        out.keep()
        c.status, c.report = "compiled", out.report

    def _race(self) -> Candidate | None:
        """Halving (Jamieson and Talwalkar, 2016): everybody runs a little, the best quarter twice as often, until few
        are left. Who enters the last round, and so who wins, computes what the interpreter does."""
        executor = self.time_on or Inline()
        alive = [c for c in self.candidates if c.status == "compiled"]
        args, runs = self._arguments(), 2
        last = False
        while True:
            best = min((c.ms for c in alive), default=math.inf)
            for done, c in enumerate(alive):
                if len(c.times) < runs and (time.monotonic() < self._end or not done):
                    self._time(executor, c, args, runs, _SLOW * best)
                    best = min(best, c.ms)
                self._show("timing", done + 1, len(alive))
            alive = sorted((c for c in alive if c.times), key=lambda c: c.ms)
            if last or time.monotonic() > self._end:
                return next((c for c in alive if self._correct(executor, c)), None)
            last = len(alive) <= 4 * _LAST
            alive = list(islice((c for c in alive if self._correct(executor, c)), _LAST)) if last else \
                alive[:len(alive) // 4]
            runs *= 2

    def _correct(self, executor: Executor, c: Candidate) -> bool:
        if c.correct is None:
            try:
                wrong = executor.submit(jobs.checked, c.code).result()
            except Exception as error:  # of the executor: not stored
                c.correct, c.status, c.why = False, "invalid", f"{type(error).__name__}: {error}"
                return False
            c.correct = not wrong
            if wrong:
                c.status, c.why = "wrong", wrong.splitlines()[0]
                self._keep(c)
                path = kept(parse(c.code.text), c.code.target, wrong)
                _log.error("tuning %s: %s computes something else than the interpreter: %s; what shows it again was "
                           "written to %s", self.kernel.name, c.config, wrong, path)
        return c.correct

    def _time(self, executor: Executor, c: Candidate, args: Sequence[Any], runs: int, enough: float) -> None:
        try:
            c.times += executor.submit(jobs.tried, c.code, args, runs, enough).result()
        except Exception as error:  # of these arguments, or of the executor: not stored
            c.status, c.why = "invalid", f"{type(error).__name__}: {error}".splitlines()[0]
            return
        c.status = "timed"
        self._keep(c)

    # -- what they need -----------------------------------------------------------------------------------------------
    def _keep(self, c: Candidate) -> None:
        """Stores what will be true of this function again."""
        self._store.put_trial(self.problem.key, c.config,
                              Trial(c.code.hash, c.status, c.why, c.ms if c.times else None))

    def _arguments(self) -> list[Any]:
        """The call's arguments, with copies of what the kernel writes."""
        out: list[Any] = []
        for p in self.problem.bound.kernel.params:
            if p.kind == "tensor":
                a = self.problem.bound.tensors[p.name]
                out.append(a.array if p.tensor.mode == "in" else _copy(a))
            elif p.kind == "scalar":
                out.append(self.problem.bound.scalars[p.name])
        return out


def _copy(a: Argument) -> Any:
    if a.kind == "packed":
        from copy import copy
        packed = copy(a.array)
        packed.buffer = packed.buffer.clone() if hasattr(packed.buffer, "clone") else packed.buffer.copy()
        return packed
    return a.array.clone() if a.kind == "torch" else a.array.copy()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _alone(store: Store, seconds: float) -> Iterator[None]:
    """Waits while another process of this user takes times."""
    with locks.alone(store.path.with_suffix(".lock"), seconds) as why:
        if why:
            _log.warning("times may be off, another process may be timing kernels too: %s", why)
        yield


@contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the terminal; nothing in pipes, and without the package rich."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(task, description=f"{title}: {what}", completed=done, total=total)
