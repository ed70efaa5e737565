"""Kernels that choose their own constants."""
from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from tilelang import jit, locks, targets
from tilelang.bound import Bound
from tilelang.config import config
from tilelang.errors import TileError, TuningError
from tilelang.jit import ByName, Kernel
from tilelang.tuning import store as stores
from tilelang.tuning.jobs import Code
from tilelang.tuning.problem import Problem, problem_of
from tilelang.tuning.search import Candidate, Search
from tilelang.tuning.space import Config, configurations, derived
from tilelang.tuning.store import Best, to_json

_log = logging.getLogger("tilelang.tuning")
_KNOWN = 4096
"""How many shapes a kernel remembers its choice for."""


class Choice(NamedTuple):
    """The constants a call uses, where they come from ("tuned", "stored", "shipped" or "model"), and their time where
    that is known."""

    config: Config
    source: str
    ms: float | None = None


class Tuned(ByName):
    """A kernel marked `@tile.autotune`. Calls are those of the kernel, without the constants that are chosen; one that
    is given all the same is used as it is."""

    def __init__(self, kernel: Kernel, key: Sequence[str] | None, choices: Mapping[str, Sequence[Any]],
                 where: Callable[..., bool] | None, budget: float, results: str | Path | None,
                 compile_on: Executor | None, time_on: Executor | None) -> None:
        self.kernel, self.budget, self.results = kernel, budget, Path(results) if results is not None else None
        self.__name__, self.__doc__, self.__wrapped__ = kernel.name, kernel.__doc__, kernel.fn
        self.__module__, self.__qualname__ = kernel.fn.__module__, kernel.fn.__qualname__
        for what, given in (*choices.items(), *([] if key is None else [("key", key)])):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise TuningError(f"`{what}` of `{kernel.name}` is not a list", loc=kernel.source.loc,
                                  needs="a list", got=repr(given), try_=f"{what}=[{given!r}]")
        if not isinstance(budget, int | float) or not budget >= 0:
            raise TuningError(f"`budget` of `{kernel.name}` is no time", loc=kernel.source.loc,
                              needs="seconds, at least 0", got=repr(budget), try_="budget=60")
        self.choices = {k: list(v) for k, v in choices.items()} or derived(kernel)
        self.compile_on, self.time_on = compile_on, time_on
        kernel.bind(**dict.fromkeys(self.choices))  # raises for what is no constant
        dims = list(dict.fromkeys(d for p in kernel.params if p.kind == "tensor" for d in p.tensor.dims
                                  if isinstance(d, str)))
        self.key = dims if key is None else list(key)
        if unknown := [d for d in self.key if d not in dims]:
            raise TuningError(f"`{kernel.name}` has no dimension {unknown[0]!r}", loc=kernel.source.loc,
                              needs=", ".join(dims), got=unknown[0], try_="name its dimensions in `key`")
        self.configs = configurations(self.choices, where)
        if not self.configs:
            raise TuningError(f"`{kernel.name}` has no configuration to choose from", loc=kernel.source.loc,
                              needs="a combination of the choices" + (" that `where` holds for" if where else ""),
                              got=", ".join(f"{k}={v}" for k, v in self.choices.items()) or "no constants",
                              try_="pass choices for a constant: tile.autotune(BM=[64, 128])")
        self._read = _reader(kernel, self.key)
        self._known: dict[Any, Kernel] = {}
        self._kernels: dict[str, Kernel] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            kernel = self._known[self._read(jit.current_target(), *args, **kwargs)]
        except (KeyError, TypeError, AttributeError, IndexError):
            kernel = self._chosen(args, kwargs)
        return kernel(*args, **kwargs)

    def choice(self, *args: Any, **kwargs: Any) -> Choice:
        """What a call with these arguments uses; searches where the call would."""
        return self._choice(args, kwargs)

    def tune(self, *args: Any, **kwargs: Any) -> list[Candidate]:
        """Searches anew for these arguments, whatever is stored; gives every candidate with what became of it. Raises
        TuningError where none works, or nothing can be timed on the target."""
        problem = self._problem(args, kwargs)
        if problem.why_not:
            raise TuningError(f"`{self.kernel.name}` cannot be tuned: {problem.why_not}", loc=self.kernel.source.loc,
                              needs="cpu, or a GPU", got=problem.target, try_='tile.target("cpu")')
        stores.default().forget(problem.key)
        self._known.clear()
        return self._search(problem)[1]

    def lower(self, *args: Any, target: str = "cpu", **kwargs: Any) -> Any:
        """As of a kernel, with the constants that a call on the target would use without a search."""
        return self._settled(args, kwargs, target).lower(*args, target=target, **kwargs)

    def explain(self, *args: Any, target: str = "cpu", run: bool = False, **kwargs: Any) -> Any:
        """As of a kernel, with the constants that a call on the target would use without a search."""
        return self._settled(args, kwargs, target).explain(*args, target=target, run=run, **kwargs)

    def export(self, directory: str | Path, *args: Any, target: str = "cpu", **kwargs: Any) -> Path:
        """As of a kernel, with the constants that a call on the target would use without a search."""
        return self._settled(args, kwargs, target).export(directory, *args, target=target, **kwargs)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """As of a kernel, with the constants that a call would use without a search."""
        return self._settled(args, kwargs).reference(*args, **kwargs)

    def _settled(self, args: Sequence[Any], kwargs: Mapping[str, Any], target: str = "") -> Kernel:
        if target:  # GPUs as the emulator has them: no device is needed
            bare = targets.check(target, runs=False).removeprefix(targets.EMULATE)
            target = targets.EMULATE + bare if targets.on_device(bare) else bare
        problem = self._problem(args, kwargs, target)
        return self._kernel((self._stored(problem) or self._model(problem)).config)

    # -- choosing -----------------------------------------------------------------------------------------------------
    def _chosen(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kernel:
        """The kernel for a call, remembered for others like it."""
        kernel = self._kernel(self._choice(args, kwargs).config)
        if not _capturing():
            try:
                seen = self._read(jit.current_target(), *args, **kwargs)
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[seen] = kernel
            except (TypeError, AttributeError, IndexError):
                pass  # arguments without a shape, or constants without a hash: chosen at each call
        return kernel

    def _kernel(self, config: Config) -> Kernel:
        return self._kernels.setdefault(to_json(config), self.kernel.bind(**config))

    def _choice(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Choice:
        if jit.current_target() == targets.SHAPES:
            return Choice(self.configs[0], "model")
        problem = self._problem(args, kwargs)
        stored = self._stored(problem)
        if stored is not None:
            return stored
        if why := problem.why_not or _not_now():
            choice = self._model(problem)
            _log.info("`%s` is not tuned (%s): it runs with %s", self.kernel.name, why, choice.config)
            return choice
        store = stores.default()
        with locks.alone(store.path.with_name(f".{problem.key.hash}.lock"), 2 * self.budget):
            stored = self._stored(problem)  # by another thread or process, which searched meanwhile
            if stored is not None:
                return stored
            best, _ = self._search(problem)
        return Choice(best.config, "tuned", best.ms) if best is not None else self._model(problem)

    def _stored(self, problem: Problem) -> Choice | None:
        best, source = stores.default().best(problem.key), "stored"
        if best is None and self.results is not None:
            best, source = stores.shipped(self.results, problem.key), "shipped"
        return Choice(best.config, source, best.ms) if best is not None and self._holds(best, problem) else None

    def _holds(self, best: Best, problem: Problem) -> bool:
        """Whether a stored result is one of today's choices, and of today's function where that is known."""
        if best.config.keys() != self.choices.keys() or best.config not in problem.configs:
            return False
        return not best.code or Code.of(problem.trace(best.config), problem.target).hash == best.code

    def _model(self, problem: Problem) -> Choice:
        """The kernel's own defaults where it has all; else what the model takes to be fastest."""
        own = {p.name: p.default for p in self.kernel.params if p.name in self.choices}
        if own in problem.configs:
            return Choice(own, "model")
        ranked: list[tuple[float, int]] = []
        for i, candidate in enumerate(problem.configs):
            try:
                ranked.append((problem.estimate(candidate), i))
            except TileError:
                continue  # it is not valid for these arguments
        return Choice(problem.configs[min(ranked)[1] if ranked else 0], "model")

    def _search(self, problem: Problem) -> tuple[Best | None, list[Candidate]]:
        """The result, and every candidate; none where the budget ended before one was ready to be timed."""
        search = Search(problem, self.budget, self.compile_on, self.time_on)
        winner = search.run(stores.default())
        if winner is None and any(c.status in ("waiting", "timeout") for c in search.candidates):
            _log.warning("no configuration of `%s` was timed within %g s: it runs with one that a model chooses; "
                         "another process will search again", self.kernel.name, self.budget)
            return None, search.candidates
        if winner is None:
            reasons = {c.why: c for c in search.candidates if c.why}
            raise TuningError(f"no configuration of `{self.kernel.name}` works", loc=self.kernel.source.loc,
                              needs="one that compiles and computes what the interpreter does",
                              got="; ".join(f"{c.config}: {why}" for why, c in list(reasons.items())[:3]),
                              try_="other choices")
        best = Best(winner.config, winner.ms, winner.code.hash)
        stores.default().put_best(problem.key, best)
        return best, search.candidates

    def _problem(self, args: Sequence[Any], kwargs: Mapping[str, Any], name: str = "") -> Problem:
        """What is to be decided for a call. Constants given by name are not."""
        given = {k: v for k, v in kwargs.items() if k in self.choices}
        configs = list({to_json({**c, **given}): {**c, **given} for c in self.configs}.values())
        bound = Bound(self.kernel.bind(**configs[0]), args, kwargs)
        return problem_of(bound, configs, {k for k in self.choices if k not in given}, self.key,
                          name or jit.target_of(bound))


def _capturing() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _not_now() -> str:
    """Why nothing may be searched for at the moment; or ""."""
    if not config().tune:
        return "TILELANG_TUNE=0"
    return "a CUDA graph is being captured" if _capturing() else ""


def _reader(kernel: Kernel, key: Sequence[str]) -> Callable[..., Any]:
    """A function of the target and a call's arguments that gives what its choice depends on; it is written out,
    because a loop would take as long as the rest of the call."""
    tensors = sorted((p for p in kernel.params if p.kind == "tensor"),
                     key=lambda p: (p.optional, p.tensor.mode == "out"))
    where: dict[Any, str] = {}
    for p in tensors:
        for axis, d in enumerate(p.tensor.dims):
            where.setdefault(("dim", d), f"{p.name}.shape[{axis}]")
        where.setdefault(("dtype", p.tensor.dtype), f"{p.name}.dtype")
    parts = ["_target", *(where["dim", d] for d in key),
             *(text for (kind, x), text in where.items() if kind == "dtype" and isinstance(x, str)),
             *(f"getattr({p.name}, 'device', None)" for p in tensors[:1]),
             *(p.name for p in kernel.params if p.kind == "const")]
    names = ", ".join(f"{p.name}=None" for p in kernel.params)
    read: Callable[..., Any] = eval(f"lambda _target, {names}: ({', '.join(parts)},)")
    return read


def autotune(kernel: Kernel | None = None, /, *, key: Sequence[str] | None = None,
             where: Callable[..., bool] | None = None, budget: float = 60.0, results: str | Path | None = None,
             compile_on: Executor | None = None, time_on: Executor | None = None, **choices: Sequence[Any]) -> Any:
    """Lets a kernel choose its own constants: at the first call for new shapes, dtypes or another device, the
    configurations are compiled side by side, checked against the interpreter and timed, and the fastest is kept for
    this and all later processes.

    `choices` lists values for constants, as in `@tile.autotune(BM=[64, 128], BN=[64, 128], key=["M", "N"])` above
    `@tile.kernel`; without any they are derived from the kernel's whole-number constants. `where(**config)` says which
    combinations make sense. `key` names the dimensions a choice depends on (all where None), each rounded up to a
    power of two. A search takes about `budget` seconds. `results` is a file that `python -m tilelang tuning export`
    wrote, for a package to ship; the user's own results come first. `compile_on` and `time_on` are
    `concurrent.futures` executors for the two kinds of jobs, for example on other machines.

    With TILELANG_TUNE=0, while a CUDA graph is captured, and on targets that nothing is timed on (the interpreter,
    the emulator), nothing is searched for: the call uses what is stored, else the kernel's defaults, else the
    configuration that a model of the work takes to be fastest, and says so in the log `tilelang.tuning`. Raises
    TuningError where no configuration works, ArgumentCount for choices of what is no constant."""
    def mark(kernel: Kernel) -> Tuned:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"@tile.autotune must stand above @tile.kernel, got {kernel!r}")
        return Tuned(kernel, key, choices, where, budget, results, compile_on, time_on)
    return mark if kernel is None else mark(kernel)
