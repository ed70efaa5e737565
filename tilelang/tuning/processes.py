"""An executor of other processes that import only this package.

`concurrent.futures.ProcessPoolExecutor` imports the user's script again in each process, or forks one that has
threads. Jobs here are functions of this package and plain data, so neither is needed; and one that hangs is stopped.
"""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any


class Processes(Executor):
    """At most `workers` processes; each job has `seconds`, or its future raises TimeoutError."""

    def __init__(self, workers: int, seconds: float = 60.0) -> None:
        self._threads = ThreadPoolExecutor(workers, "tilelang-jobs")
        self._own, self._seconds = threading.local(), seconds
        self._started: list[subprocess.Popen[bytes]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            process = self._own.process = self._start()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()
        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            pickle.dump((fn, args, kwargs), process.stdin)
            process.stdin.flush()
            good, value = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            process.kill()
            status = process.wait()
            if late.is_set():
                raise TimeoutError(f"took more than {self._seconds:g} s") from None
            raise RuntimeError(f"the process of a job ended with status {status}") from error
        finally:
            timer.cancel()
        if not good:
            raise value
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(p for p in sys.path if p)
        process = subprocess.Popen([sys.executable, "-m", "tilelang.tuning.worker"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths},
                                   process_group=0)  # Ctrl-C is this process's, which ends the others
        self._started.append(process)
        return process

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(False, cancel_futures=cancel_futures)
        if not wait:  # what runs is stopped
            for process in self._started:
                process.kill()
        self._threads.shutdown(True)
        for process in self._started:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass
            process.wait()


class Inline(Executor):
    """Runs a job where it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
