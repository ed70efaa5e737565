"""Results of tuning on disk: many processes, damage, and places that cannot be written."""
from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import tilelang as tile
from tilelang.tuning.store import Best, Key, Store, Trial, from_json, to_json

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
