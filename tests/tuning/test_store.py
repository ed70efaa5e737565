"""Results of tuning on disk: many processes, damage, and places that cannot be written."""
from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import tilelang as tile
from tilelang.tuning.store import Best, Key, Store, Trial, from_json, shipped, to_json

KEY = Key("module.kernel", "cpu", "a processor", "1", ("x: f32",), "{}", (("N", 64),))


def test_configurations_come_back() -> None:
    config = {"BM": 64, "ACC": tile.dtype("f32"), "FAST": True, "S": 0.5, "none": None}
    assert from_json(to_json(config)) == config


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "file.sqlite")
    assert store.best(KEY) is None and store.trials(KEY) == {} and store.results() == []
    store.put_trial(KEY, {"B": 1}, Trial("code", "invalid", "why"))
    store.put_trial(KEY, {"B": 2}, Trial("code", "timed", ms=0.5))
    store.put_best(KEY, Best({"B": 2}, 0.5, "code"))
    assert store.best(KEY) == Best({"B": 2}, 0.5, "code")
    assert store.trials(KEY) == {'{"B": 1}': Trial("code", "invalid", "why"),
                                 '{"B": 2}': Trial("code", "timed", ms=0.5)}
    store.forget(KEY)
    assert store.best(KEY) is None and store.trials(KEY) == {}


def test_many_processes_lose_nothing(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.tuning.test_store import KEY, Store, Trial
for i in range(40):
    Store(Path(sys.argv[1])).put_trial(KEY, {"B": i, "by": sys.argv[2]}, Trial("code", "timed", ms=1.0))
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "t.sqlite"), str(i)]) for i in range(3)]
    assert [p.wait(60) for p in running] == [0, 0, 0]
    assert len(Store(tmp_path / "t.sqlite").trials(KEY)) == 120


@pytest.mark.parametrize("config", ["{not json", "3", '{"B": {}}', '{"B": {"dtype": "f99x"}}', "[[1]]", None])
def test_damaged_rows_are_found_anew(tmp_path: Path, config: str | None) -> None:
    store = Store(tmp_path / "t.sqlite")
    store.put_best(KEY, Best({"B": 2}, 0.5))
    store.put_trial(KEY, {"B": 2}, Trial("code", "timed", ms=0.5))
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE best_2 SET config = ?, ms = 'soon'", [config])
        connection.execute("UPDATE trial_2 SET ms = 'soon'")
    assert store.best(KEY) is None and store.results() == [] and store.trials(KEY) == {}
    store.put_best(KEY, Best({"B": 4}, 0.25))
    assert store.best(KEY) == Best({"B": 4}, 0.25)


def test_a_file_that_stays_locked_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilelang.tuning.store._PATIENCE", 1.0)
    store = Store(tmp_path / "t.sqlite")
    store.put_best(KEY, Best({"B": 2}, 0.5))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        for _ in range(5):
            assert store.best(KEY) is None
        assert 0.9 < time.monotonic() - start < 4
        other.rollback()
    assert store.best(KEY) == Best({"B": 2}, 0.5)


def test_damage_and_unusable_places_only_lose_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = tmp_path / "t.sqlite"
    damaged.write_bytes(b"no database" * 100)
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        for store in (Store(damaged), Store(tmp_path / "file" / "t.sqlite")):
            store.put_best(KEY, Best({}, 1.0))
            assert store.best(KEY) is None and "cannot be used" in caplog.text
            caplog.clear()
    assert damaged.read_bytes() == b"no database" * 100


def test_what_goes_wrong_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)  # a directory
    for _ in range(3):
        store.put_best(KEY, Best({}, 1.0))
    assert len(caplog.records) == 1 and "none will be kept" in caplog.text
    assert "unable to open" in store.problem() and not Store(tmp_path / "t.sqlite").problem(writing=True)


def test_a_file_of_an_older_version_is_used_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with closing(sqlite3.connect(path)) as older:
        older.execute("CREATE TABLE trial (problem TEXT, config TEXT, status TEXT, why TEXT, ms REAL)")
        older.execute("CREATE TABLE best (problem TEXT PRIMARY KEY, info TEXT, config TEXT, ms REAL, made REAL)")
    store = Store(path)
    store.put_trial(KEY, {"B": 2}, Trial("code", "timed", ms=0.5))
    store.put_best(KEY, Best({"B": 2}, 0.5, "code"))
    assert store.best(KEY) == Best({"B": 2}, 0.5, "code") and store.trials(KEY)


@pytest.mark.parametrize("text", ["[1]", '{"a": 3}', "[{}]", "no json", "[" * 5000])
def test_shipped_files_that_are_something_else(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    assert shipped(path, KEY) is None and "cannot be read" in caplog.text
