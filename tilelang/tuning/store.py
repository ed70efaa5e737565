"""What tuning has found, in one SQLite file per user: safe under many processes, kept as it is measured."""
from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tilelang import cache
from tilelang.config import config
from tilelang.ir.dtypes import DType, dtype

_log = logging.getLogger("tilelang.tuning")
_TABLES = """
CREATE TABLE IF NOT EXISTS trial_2 (problem TEXT, config TEXT, code TEXT, status TEXT, why TEXT, ms REAL,
                                  PRIMARY KEY (problem, config));
CREATE TABLE IF NOT EXISTS best_2 (problem TEXT PRIMARY KEY, info TEXT, config TEXT, ms REAL, code TEXT, made REAL);
"""
"""The names end with another number when columns change: versions of this package share the file."""

_PATIENCE = 30.0
"""Seconds for which another process may keep the file locked; who has waited in vain once does not again."""


@dataclass(frozen=True)
class Key:
    """What a result holds for: `bucket` maps each key dimension to the power of two its extent is at most."""

    kernel: str
    target: str
    device: str
    version: str
    types: tuple[str, ...]
    consts: str
    bucket: tuple[tuple[str, int], ...]

    @property
    def hash(self) -> str:
        return cache.key(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Best:
    """A stored result; `code` tells the TILE function that was timed from others."""

    config: dict[str, Any]
    ms: float
    code: str = ""


@dataclass(frozen=True)
class Trial:
    """One configuration: `status` is "timed", or why it was not: "invalid", "spills" or "wrong"; `code` tells the TILE
    function this is about from others."""

    code: str
    status: str
    why: str = ""
    ms: float | None = None


def to_json(config: Mapping[str, Any]) -> str:
    """A configuration as text; dtypes are marked."""
    return json.dumps(config, sort_keys=True, default=lambda x: {"dtype": x.name} if isinstance(x, DType) else repr(x))


def from_json(text: str) -> dict[str, Any]:
    """The inverse of `to_json`. Raises ValueError for other text."""
    try:
        return {k: dtype(v["dtype"]) if isinstance(v, dict) else v for k, v in json.loads(text).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a configuration: {text[:80]}") from error


class Store:
    """One file. No method raises because of the disk: what cannot be stored is measured again another time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned: set[str] = set()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # its owner's alone
        connection = sqlite3.connect(self.path, timeout=0.1 if self._warned else _PATIENCE)
        try:
            with connection:
                connection.executescript(_TABLES)
                yield connection
        finally:
            connection.close()

    def _run(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            with self._open() as connection:
                return connection.execute(sql, tuple(values)).fetchall()
        except (sqlite3.Error, OSError) as error:
            if str(error) not in self._warned:  # once
                self._warned.add(str(error))
                _log.warning("results of tuning in %s cannot be used, and none will be kept: %s", self.path, error)
            return []

    def problem(self, writing: bool = False) -> str:
        """Why the file cannot be read, or written; "" where it can."""
        try:
            with self._open() as connection:
                connection.execute("SELECT count(*) FROM best_2").fetchall()
                if writing:
                    connection.execute("INSERT INTO trial_2 (problem, config) VALUES ('', '')")
                    connection.rollback()
        except (sqlite3.Error, OSError) as error:
            return str(error)
        return ""

    def best(self, problem: Key) -> Best | None:
        """The result for a problem."""
        for text, ms, code in self._run("SELECT config, ms, code FROM best_2 WHERE problem = ?", [problem.hash]):
            with suppress(ValueError, TypeError):  # damaged: found anew, and replaced
                return Best(from_json(text), float(ms), code)
        return None

    def put_best(self, problem: Key, best: Best) -> None:
        """Keeps a result in place of an earlier one."""
        self._run("INSERT OR REPLACE INTO best_2 VALUES (?, ?, ?, ?, ?, ?)", [
            problem.hash, json.dumps(asdict(problem)), to_json(best.config), best.ms, best.code, time.time()])

    def trials(self, problem: Key) -> dict[str, Trial]:
        """What is known of a problem's configurations (as text)."""
        rows = self._run("SELECT config, code, status, why, ms FROM trial_2 WHERE problem = ?", [problem.hash])
        return {config: Trial(code, status, why, ms) for config, code, status, why, ms in rows
                if ms is None or isinstance(ms, float)}

    def put_trial(self, problem: Key, config: Mapping[str, Any], trial: Trial) -> None:
        """Keeps what has been learnt of a configuration."""
        self._run("INSERT OR REPLACE INTO trial_2 VALUES (?, ?, ?, ?, ?, ?)",
                  [problem.hash, to_json(config), trial.code, trial.status, trial.why, trial.ms])

    def forget(self, problem: Key) -> None:
        """Removes a problem's result and trials."""
        for table in ("best_2", "trial_2"):
            self._run(f"DELETE FROM {table} WHERE problem = ?", [problem.hash])

    def results(self) -> list[dict[str, Any]]:
        """All results: the fields of `Key`, and config, ms and when it was made (seconds since 1970)."""
        out: list[dict[str, Any]] = []
        for info, text, ms, made in self._run("SELECT info, config, ms, made FROM best_2 ORDER BY made"):
            with suppress(ValueError, TypeError):  # damaged
                out.append({**json.loads(info), "config": json.loads(text), "ms": float(ms), "made": float(made)})
        return out

    def clear(self) -> int:
        """Removes everything; gives how many results there were."""
        count = len(self.results())
        for table in ("best_2", "trial_2"):
            self._run(f"DELETE FROM {table}")
        return count

    def export(self, path: Path) -> int:
        """Writes all results into a file that a package can ship; gives how many."""
        found = self.results()
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return len(found)


def shipped(path: Path, problem: Key) -> Best | None:
    """The result for a problem in an exported file: of any version of the compiler, since it is only a choice."""
    wanted = {k: v for k, v in json.loads(json.dumps(asdict(problem))).items() if k != "version"}
    for row in _read(path):
        if all(row.get(k) == v for k, v in wanted.items()):
            with suppress(ValueError, TypeError):
                return Best(from_json(json.dumps(row["config"])), float(row["ms"]))
    return None


@lru_cache(maxsize=16)
def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not all(isinstance(r, dict) and {"config", "ms"} <= r.keys() for r in rows):
            raise ValueError("it was not written by `python -m tilelang tuning export`")
        return rows
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("results of tuning in %s cannot be read: %s", path, error)
        return []


@lru_cache(maxsize=1)
def default() -> Store:
    """The user's file."""
    if config().tuning_file:
        return Store(Path(config().tuning_file))
    from platformdirs import user_data_dir
    return Store(Path(user_data_dir("tilelang-compiler")) / "tuning.sqlite")
