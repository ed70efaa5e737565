"""What one thread does at a time, and what one process.

A forked child has only the thread that forked: what another one was holding would stay locked there for ever, and what
it was changing half changed. So forks wait until nobody else holds a lock of threads. Locks of files are the system's
own, which a process that ends lets go."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

compiling = threading.RLock()
"""A kernel is compiled or loaded. (llvmlite has one context of LLVM's for all threads.)"""
registering = threading.RLock()
"""An operator is made known to torch."""
emulating = threading.Lock()
"""A launch runs in the emulator, whose runtime holds one."""
_ALL = compiling, registering, emulating  # who takes several takes them in this order
_POLL = 0.02
"""Seconds between attempts to lock a file."""


def _before() -> None:
    for lock in _ALL:
        lock.acquire()


def _after() -> None:
    for lock in reversed(_ALL):
        lock.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)


@contextmanager
def alone(path: Path, seconds: float) -> Iterator[str]:
    """Nobody else is in here for the same file: no thread, and no process of this machine. Where that cannot be had
    within some seconds, or the disk has no locks, others are: gives why, else ""."""
    handle, why = -1, ""
    try:
        handle = _locked(path, seconds)
    except OSError as error:
        why = str(error)
    try:
        yield why
    finally:
        if not why:
            import fcntl
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may have the file open, too
            os.close(handle)


def _locked(path: Path, seconds: float) -> int:
    import fcntl
    end = time.monotonic() + seconds
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:  # nobody has removed it since it was opened
                held, handle = handle, -1
                return held
        except BlockingIOError:
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has been locked for {seconds:g} s")
        time.sleep(_POLL)
