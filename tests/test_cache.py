"""The compile cache: atomic, private, capped, and never the reason for a failure."""
from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.ir.op_examples import example
from tilelang import cache as cache_module
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.compile import cache_key
from tilelang.cache import Cache, key
from tilelang.cli import main
from tilelang.config import read
from tilelang.errors import ConfigError


def test_keys_separate_their_parts() -> None:
    assert key("ab", "c") != key("a", "bc") and key("a") == key(b"a")


def test_what_is_stored_comes_back_and_is_private(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 1 << 20)
    name = key("x")
    assert cache.get(name) is None
    cache.put(name, b"body")
    assert cache.get(name) == b"body" and [e.path.name for e in cache.entries()] == [name]
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0
    assert next(cache.entries()).path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b[:-1] + b"?", lambda b: b""])
def test_damage_is_a_miss(tmp_path: Path, damage: object) -> None:
    cache = Cache(tmp_path / "c", 1 << 20)
    cache.put(key("x"), b"body")
    path = next(cache.entries()).path
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert cache.get(key("x")) is None and not path.exists()


def test_the_oldest_entries_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 1 << 20)
    for i in range(4):
        cache.put(key(str(i)), bytes(100))
        os.utime(next(e.path for e in cache.entries() if e.path.name == key(str(i))), (i, i))
    cache.get(key("0"))  # used now
    assert cache.prune(2 * 150) == 2
    assert {e.path.name for e in cache.entries()} == {key("0"), key("3")}


def test_a_directory_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(0o777)
    cache = Cache(tmp_path / "c", 1 << 20)
    cache.put(key("x"), b"body")
    assert cache.get(key("x")) is None and not list(cache.entries())


def test_a_directory_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 1 << 20)
    cache.put(key("x"), b"body")
    shutil.rmtree(tmp_path / "c")
    assert cache.made(key("x"), lambda: b"again") == b"again" == cache.get(key("x"))
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_an_unusable_place_only_slows_down(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "c", 1 << 20)
    cache.put(key("x"), b"body")
    assert cache.get(key("x")) is None


def test_whatever_changes_machine_code_changes_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    host, own = machine.host(), cache_key(example("add.f32"))
    assert cache_key(example("add.f32")) == own
    others = {key: cache_key(example(key)) for key in ("sub.f32", "add.f16", "load", "cast.i32.f32", "cast.i32.i8")}
    for field in fields(host):  # of the processor, whatever its features are
        old = getattr(host, field.name)
        new = (frozenset(sorted(old)[1:]) if old else frozenset({"x"})) if isinstance(old, frozenset) else \
            old + 1 if isinstance(old, int) else old + "x"
        monkeypatch.setattr(machine, "host", lambda field=field, new=new: replace(host, **{field.name: new}))
        others[field.name] = cache_key(example("add.f32"))
    monkeypatch.setattr(machine, "host", lambda: host)
    for place, name, new in ((machine.llvm, "llvm_version_info", (1, 0)), (machine.llvmlite, "__version__", "1"),
                             (cache_module, "compiler_key", lambda: "other")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, new)
            others[name] = cache_key(example("add.f32"))
    assert len({own, *others.values()}) == len(others) + 1, others


def test_the_compilers_source_is_part_of_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the passes, the operations, layouts and backends: contents, names and the version."""
    files = [tmp_path / name for name in ("ir/a.py", "passes/a.py", "layouts/a.py", "backends/cpu/a.py", "ir/b.py")]
    for f in files:
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text("x = 1")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "cache.py"))
    found = [cache_module.compiler_key.__wrapped__()]
    for f in files:
        f.write_text("x = 2")
        found.append(cache_module.compiler_key.__wrapped__())
    files[0].rename(files[0].with_name("c.py"))
    found.append(cache_module.compiler_key.__wrapped__())
    monkeypatch.setattr(cache_module, "__version__", "0")
    found.append(cache_module.compiler_key.__wrapped__())
    assert len(set(found)) == len(found) == len(files) + 3


def test_the_key_reads_the_compiler_that_runs() -> None:
    root = Path(cache_module.__file__).parent
    for part in ("ir", "passes", "layouts", "backends"):
        assert len(list(root.glob(f"{part}/**/*.py"))) > 4, part  # the links are followed


def test_many_writers_and_readers(tmp_path: Path) -> None:
    program = ("import sys; from pathlib import Path; from tilelang.cache import Cache, key\n"
               "c = Cache(Path(sys.argv[1]), 4000)\n"
               "for i in range(60):\n"
               "    c.put(key(str(i % 7)), bytes([i % 7]) * 500)\n"
               "    got = c.get(key(str(i % 7)))\n"
               "    assert got is None or got == bytes([i % 7]) * 500\n")
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", program, str(tmp_path / "c")],
                                                      capture_output=True, text=True), range(3)))
    assert [r.returncode for r in runs] == [0, 0, 0], runs[0].stderr
    assert sum(e.size for e in Cache(tmp_path / "c", 4000).entries()) <= 4000 + 3 * 600


def test_one_of_many_makes_what_all_want(tmp_path: Path) -> None:
    """Each has a cache of its own on the same folder, as processes have."""
    made = []

    def make() -> bytes:
        made.append(time.sleep(0.2))
        return b"body"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: Cache(tmp_path, 4000).made(key("x"), make), range(4)))
    assert results == [b"body"] * 4 and len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == [key("x")[:2]]  # no locks are left behind


def test_a_maker_that_fails_or_takes_too_long_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> bytes:
        raise ValueError("no code")
    cache = Cache(tmp_path, 4000)
    with pytest.raises(ValueError, match="no code"):
        cache.made(key("x"), fails)
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.1)
    with cache._alone(key("x")):
        assert Cache(tmp_path, 4000).made(key("x"), lambda: b"body") == b"body"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parent.parent / "examples" / "01_vector_add.py"
    source = file.read_text()
    name = source[source.index("def ") + 4:source.index("(", source.index("def "))]
    for level, text in (("tile", "func @"), ("thread", "thread {"), ("llvm", "define i32"), ("asm", ".text")):
        assert main(["compile", f"{file}:{name}", "--emit", level]) == 0
        assert text in capsys.readouterr().out
    assert main(["compile", f"{file}:nothing"]) == 2
    assert main(["cache", "size"]) == 0 and main(["cache", "verify"]) == 0
    assert "0 damaged" in capsys.readouterr().out


def test_bad_environment_variables_are_named() -> None:
    threads = "a number from 0 to 256"
    for name, text, needs in (("CHECK", "7", "0 or 1 or 2"), ("THREADS", "many", threads), ("THREADS", "-1", threads),
                              ("THREADS", "257", threads), ("CACHE_BYTES", "1e6", "a number of at least 0"),
                              ("CACHE_BYTES", "-5", "a number of at least 0")):
        with pytest.raises(ConfigError) as caught:
            read({f"TILELANG_{name}": text})
        assert str(caught.value) == (f"the environment variable TILELANG_{name} has an invalid value\n"
                                     f"  needs: {needs}\n  got:   {text!r}\n  try:   unset TILELANG_{name}")
    assert read({"TILELANG_THREADS": "3"}).threads == 3


def test_places_stay_where_they_are_when_the_process_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    got = read({"TILELANG_CACHE_DIR": "cache", "TILELANG_TUNING_FILE": "~/tuning", "TILELANG_DUMP": ""})
    assert (got.cache_dir, got.tuning_file, got.dump) == (f"{tmp_path}/cache", f"{tmp_path}/home/tuning", "")


def test_what_ended_processes_left_goes_with_the_oldest_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    cache.put(key("x"), b"body")
    part = next(cache.entries()).path.with_name(".part")
    for path in tmp_path / f".{key('y')}.lock", part, part.with_name(".new"):
        path.write_bytes(b"")
        if path.name != ".new":
            os.utime(path, (0, 0))
    assert cache.prune(0) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".new"]


def test_a_lock_that_is_held_stays_however_old_its_file_is(tmp_path: Path) -> None:
    """Who found the file of a process that had ended long ago kept its age: it was removed, and somebody else made the
    same entry meanwhile."""
    cache, lock = Cache(tmp_path, 1 << 20), tmp_path / f".{key('y')}.lock"
    lock.write_bytes(b"")
    os.utime(lock, (0, 0))

    def make() -> bytes:
        cache.put(key("x"), b"body")
        assert cache.prune(0) == 1
        assert lock.exists()
        return b"made"
    assert cache.made(key("y"), make) == b"made" and not lock.exists()


def test_nothing_is_left_of_an_entry_whose_writing_is_interrupted(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path, 1 << 20).put(key("x"), b"body")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  caplog: pytest.LogCaptureFixture) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tempfile.mkstemp", full)
    store = Cache(tmp_path / "c", 1 << 20)
    for name in ("aa", "bb", "cc"):
        store.put(name, b"x")
    assert len(caplog.records) == 1 and "keeps nothing new: [Errno 28]" in caplog.text
    assert not list(store.entries())
