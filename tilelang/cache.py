"""The compile cache on disk: atomic, safe under many processes, readable by its owner only, capped in size."""
from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tilelang import locks
from tilelang.version import __version__

_MAGIC = b"tilelang1"
_PATIENCE = 60.0
"""Seconds for which a process waits for what another one makes."""
_DAY = 86400.0
_log = logging.getLogger("tilelang.cache")


def key(*parts: str | bytes) -> str:
    """A hash of everything given; parts cannot run into each other."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


@lru_cache(maxsize=1)
def compiler_key() -> str:
    """A hash of the compiler's own source: another compiler makes other code."""
    root = Path(__file__).parent
    files = sorted(f for part in ("ir", "passes", "layouts", "backends") for f in root.glob(f"{part}/**/*.py"))
    return key(__version__, *(part for f in files for part in (str(f.relative_to(root)), f.read_bytes())))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    size: int
    used: float


class Cache:
    """Bytes under hexadecimal keys. No method raises because of the disk: a cache that fails is only slower."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._usable: bool | None = None
        self._warned: set[int | None] = set()

    def usable(self) -> bool:
        """Whether the directory belongs to this user alone."""
        if self._usable is None:
            self._usable = self._prepare()
        return self._usable

    def _prepare(self) -> bool:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = self.directory.stat()
            if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o022):
                _log.warning("cache %s is not used: others may write to it; try chmod 700", self.directory)
                return False
            return True
        except OSError as error:
            _log.warning("cache %s is not used: %s", self.directory, error)
            return False

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name

    def get(self, name: str) -> bytes | None:
        """The stored bytes; None where there are none or they are damaged (then they are removed)."""
        if not self.usable():
            return None
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = data[len(_MAGIC) + 32:]
        if data[:len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != data[len(_MAGIC):len(_MAGIC) + 32]:
            _log.warning("cache entry %s is damaged and was removed", path)
            _remove(path)
            return None
        try:
            os.utime(path)  # the age that eviction goes by
        except OSError:
            pass
        return body

    def put(self, name: str, body: bytes) -> None:
        """Stores bytes: written aside, then renamed, so that no reader sees half of them."""
        if self._usable and not self.directory.exists():  # somebody has removed it
            self._usable = None
        if not self.usable():
            return
        path = self._path(name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(_MAGIC + hashlib.sha256(body).digest() + body)
                os.replace(temporary, path)
            except BaseException:  # Ctrl-C, too
                _remove(Path(temporary))
                raise
        except OSError as error:
            if error.errno not in self._warned:  # once: where one entry fails the next will, too
                self._warned.add(error.errno)
                _log.warning("cache %s keeps nothing new: %s", self.directory, error)
            return
        self.prune(self.max_bytes)

    def made(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The stored bytes; where there are none, those that `make` gives, which are stored. Of processes and threads
        that ask for the same at once one makes it, and the others wait."""
        body = self.get(name)
        if body is None:
            with self._alone(name):
                body = self.get(name)
                if body is None:
                    body = make()
                    self.put(name, body)
        return body

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else is in here for the same name; where the disk has no locks, or it takes too long, others are."""
        if not self.usable():
            yield
            return
        with locks.alone(self.directory / f".{name}.lock", _PATIENCE) as why:
            if why:
                _log.info("nobody is waited for: %s", why)
            yield

    def entries(self) -> Iterator[Entry]:
        """Every entry, in no order."""
        if not self.directory.is_dir():
            return
        for path in self.directory.glob("[0-9a-f][0-9a-f]/[0-9a-f]*"):
            try:
                info = path.stat()
            except OSError:
                continue
            yield Entry(path, info.st_size, info.st_mtime)

    def _leftovers(self) -> Iterator[Path]:
        """Entries written in part that nobody has touched for a day."""
        for path in self.directory.glob("[0-9a-f][0-9a-f]/.*"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _DAY:
                    yield path

    def prune(self, max_bytes: int) -> int:
        """Drops the entries used longest ago until the rest fits, and what processes that were ended have left; gives
        how many entries were dropped."""
        entries = sorted(self.entries(), key=lambda e: e.used)
        total, dropped = sum(e.size for e in entries), 0
        if total <= max_bytes:
            return 0
        with locks.alone(self.directory / ".lock", 5) as why:
            if why:
                _log.warning("cache %s was not pruned: %s", self.directory, why)
                return 0
            for entry in entries:
                if total <= max_bytes:
                    break
                _remove(entry.path)
                total, dropped = total - entry.size, dropped + 1
            for path in self._leftovers():
                _remove(path)
            for path in self.directory.glob(".*.lock"):
                locks.discard(path)
        return dropped

    def verify(self) -> list[Path]:
        """Removes damaged entries; gives their paths."""
        return [e.path for e in list(self.entries()) if self.get(e.path.name) is None]


def default() -> Cache:
    """The user's cache."""
    from tilelang.config import config
    return _cache(config().cache_dir, config().cache_bytes)


@lru_cache(maxsize=1)
def _cache(directory: str, max_bytes: int) -> Cache:
    if directory:
        return Cache(Path(directory), max_bytes)
    from platformdirs import user_cache_dir
    return Cache(Path(user_cache_dir("tilelang-compiler")), max_bytes)
