"""The thread pool: any number of threads, more and fewer, gives the same; helpers keep off the caller's processor."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tilelang.backends.cpu import machine
from tilelang.backends.cpu.pool import Pool

PROGRAM = """
import numpy as np
import tilelang as tile

@tile.kernel
def sums(x: tile.Tensor[tile.f32, 'M N'], y: tile.Out[tile.f32, 'M'], B: tile.Const = 64):
    m = tile.grid(x.shape[0])
    v = tile.load(x, (m, 0), (B,))
    tile.store(y, (m,), tile.sort(v).sum() if B < 100 else tile.cumsum(v, 0).sum())

x = np.ones((999, 4096), np.float32)
for threads in (2, 4, 3, 8, 1, 2):
    tile.set_num_threads(threads + 4)  # these have seen no job when there are fewer again
    tile.set_num_threads(threads)
    for width in (16, 4096) * 5:  # more scratch memory, then a job that needs less
        got = sums(x[:, :width], B=width)
        assert (got == (width if width < 100 else width * (width + 1) // 2)).all(), (threads, width)
print("same")
"""


MASKS = """
import os, threading
import numpy as np
import tilelang as tile

@tile.kernel
def double(x: tile.Tensor[tile.f32, 'N'], y: tile.Out[tile.f32, 'N']):
    n = tile.grid(x.shape[0])
    tile.store(y, (n,), tile.load(x, (n,), (1,)) * 2)

x = np.arange(999, dtype=np.float32)
everywhere = os.sched_getaffinity(0)
one, other = sorted(everywhere)[:2]

def call():
    assert (double(x) == 2 * x).all()

def call_on(cpu):
    os.sched_setaffinity(0, {cpu})
    call()
    assert os.sched_getaffinity(0) == {cpu}  # nobody touches the caller's
    os.sched_setaffinity(0, everywhere)

def masks():
    helpers = [t for t in threading.enumerate() if t.name.startswith('tilelang-')]
    return [os.sched_getaffinity(t.native_id) for t in helpers]

def settled(cpu, want):  # a helper that has just been started may not have come to the first call
    for attempt in range(1000):
        call_on(cpu)
        if masks() == want:
            return True
    return False

def check():
    tile.set_num_threads(2)
    for cpu in (one, other, one, one):
        assert settled(cpu, [everywhere - {cpu}]), (cpu, masks())

check()
callers = [threading.Thread(target=lambda: [call_on(cpu) for cpu in (other, one) * 50]) for i in range(2)]
for thread in callers:
    thread.start()
for i in range(100):
    call_on(one)
for thread in callers:
    thread.join()
assert settled(one, [everywhere - {one}])

if (child := os.fork()) == 0:  # has helpers of its own
    call()
    check()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0

def helpers_only_on(cpus):  # asked for by somebody else
    for thread in threading.enumerate():
        if thread.name.startswith('tilelang-'):
            os.sched_setaffinity(thread.native_id, cpus)

count = len(everywhere)
tile.set_num_threads(count + 1)  # there is no room to keep off
assert settled(one, [everywhere] * count) and settled(other, [everywhere] * count), masks()
helpers_only_on({other})
assert settled(other, [{other}] * count) and settled(one, [{other}] * count), masks()
helpers_only_on(everywhere)
tile.set_num_threads(2)
assert settled(one, [everywhere - {one}] * count), masks()
print("apart")
"""

EXIT = """
import threading, time
import numpy as np
import tilelang as tile

@tile.kernel
def until(flag: tile.InOut[tile.i32, '1'], y: tile.Out[tile.i32, '1']):
    n = tile.grid(1)
    steps = 0
    while tile.atomic_add(flag, 0, 0) == 0:
        steps += 1
    tile.store(y, (0,), tile.full((1,), steps, tile.i32))

@tile.kernel
def shown(x: tile.Tensor[tile.i32, '1']):
    tile.print(tile.load(x, (0,), (1,)))

flag = np.zeros(1, np.int32)
waiting = threading.Thread(target=until, args=(flag,))
waiting.start()  # a call that held the lock of the interpreter would never end
time.sleep(0.1)
flag[0] = 1
waiting.join()

def call(kernel):
    while True:
        kernel(flag)

for kernel in until, until, shown:
    threading.Thread(target=call, args=(kernel,), daemon=True).start()
time.sleep(0.3)
"""


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which memory that belongs to nobody would end."""
    path = folder / "program.py"
    path.write_text(program)
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})


def test_as_many_threads_as_there_are(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(machine, "define", lambda name, address: None)  # kernels keep the pool they have
    pool, started, start = Pool(), [], threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)
    monkeypatch.setattr(threading.Thread, "start", limited)
    pool.resize(5)
    assert pool.workers == 3 and "on 3 threads instead of 5: can't start new thread" in caplog.text
    pool.resize(2)
    assert pool.workers == 2 and len(caplog.records) == 1


def test_fewer_threads_after_more(tmp_path: Path) -> None:
    done = run(PROGRAM, tmp_path)
    assert done.stdout == "same\n", (done.returncode, done.stderr)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                    reason="needs two processors and Linux")
def test_helpers_keep_off_the_callers_processor(tmp_path: Path) -> None:
    """Whoever calls, in a forked child, with more threads than processors, and with masks that somebody else set."""
    done = run(MASKS, tmp_path)
    assert done.stdout == "apart\n", (done.returncode, done.stderr)


def test_threads_in_kernels_end_with_the_interpreter(tmp_path: Path) -> None:
    """It ends those that ask for its lock then, and not the process; until then they let others have it."""
    done = run(EXIT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
