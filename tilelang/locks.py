"""What one thread does at a time, and what one process.

A forked child has only the thread that forked: what another one was holding would stay locked there for ever, and what
it was changing half changed. So forks wait until nobody else holds a lock of threads. Locks of files are the system's
own, which a process that ends lets go."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
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
    """Nobody else is in here for the same file, which is there only meanwhile: no thread, and no process of this
    machine. Where that cannot be had within some seconds, or the disk has no locks, others are: gives why, else ""."""
    file, why = None, ""
    try:
        file = _locked(path, seconds)
    except OSError as error:
        why = str(error)
    try:
        yield why
    finally:
        if file is not None:
            import fcntl
            with suppress(OSError):
                path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have the file open, too
            file.close()


def discard(path: Path) -> None:
    """Removes a lock's file that an ended process has left; one that somebody holds stays, however old it is."""
    with alone(path, 0):
        pass


def _locked(path: Path, seconds: float) -> FileIO:
    """An object and not a number: wherever Ctrl-C comes, what nobody has any more is closed."""
    import fcntl
    end = time.monotonic() + seconds
    while True:
        file = FileIO(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:  # nobody has removed it since it was opened
                return file
        except BlockingIOError:
            pass
        except OSError:  # this disk has no locks, so that the file says nothing
            file.close()
            with suppress(OSError):
                path.unlink()
            raise
        file.close()
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has been locked for {seconds:g} s")
        time.sleep(_POLL)
