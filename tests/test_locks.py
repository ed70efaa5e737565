"""Locks: forks wait for compiling threads, and one file's lock has one holder."""
from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tilelang import locks

FORKS = """
import os, signal, sys, threading, time
import numpy as np
import tilelang as tile
from tilelang import locks

@tile.kernel
def plus(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], by: tile.Const):
    n = tile.grid(x.shape[0])
    tile.store(y, (n,), tile.load(x, (n,), (1,)) + by)

x = np.zeros(99, np.float32)
tile.set_num_threads(2)
stop = False

def compile():
    by = 100
    while not stop:
        by += 1
        plus(x, by=by)
        for lock in locks.registering, locks.emulating:  # as others hold them
            with lock:
                time.sleep(0.05)

threads = [threading.Thread(target=compile, daemon=True) for i in range(2)]
for thread in threads:
    thread.start()
for by in range(4):
    time.sleep(0.05)
    if (child := os.fork()) == 0:
        signal.alarm(60)  # ends a child that waits for ever
        assert (plus(x, by=by) == by).all() and (plus(x, by=by) == by).all()
        with locks.registering, locks.emulating:
            os._exit(0)
    print(os.waitpid(child, 0)[1])
stop = True
for thread in threads:
    thread.join()
"""


def test_a_fork_waits_for_threads_that_compile(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text(FORKS, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", str(tmp_path / "forks.py")],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert (done.stdout, done.stderr) == ("0\n" * 4, "")


def test_a_file_has_one_holder_and_the_next_comes_after_it(tmp_path: Path) -> None:
    """Though each removes the file."""
    path, inside, seen = tmp_path / "lock", [], []

    def enter() -> None:
        for _ in range(10):
            with locks.alone(path, 60) as why:
                inside.append(None)
                seen.append((why, len(inside)))
                time.sleep(0.001)
                inside.pop()
    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [("", 1)] * 40 and not path.exists()


def test_who_waits_too_long_is_told_and_goes_on(tmp_path: Path) -> None:
    with locks.alone(tmp_path / "lock", 1) as first, locks.alone(tmp_path / "lock", 0) as second:
        assert (first, second) == ("", f"{tmp_path / 'lock'} has been locked for 0 s")
    with locks.alone(tmp_path / "lock", 0) as again:
        assert again == ""
    with locks.alone(tmp_path / "nowhere" / "lock", 1) as why:
        assert "No such file" in why


def test_a_disk_without_locks_keeps_no_files_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr("fcntl.flock", none)
    with locks.alone(tmp_path / "lock", 0) as why:
        assert why == "[Errno 37] No locks available" and not (tmp_path / "lock").exists()


def test_a_lock_is_let_go_whatever_happens(tmp_path: Path) -> None:
    """An error inside is not one of locking, and a child that has the file open does not keep the lock."""
    with pytest.raises(OSError, match="inside"), locks.alone(tmp_path / "lock", 0):
        raise OSError("inside")
    with locks.alone(tmp_path / "lock", 0) as why:
        assert why == ""
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with locks.alone(tmp_path / "lock", 0) as why:
        assert why == ""
    sleeper.communicate(b"\n")
