"""Processes for jobs: results, errors, and jobs that hang, print or die."""
from __future__ import annotations

import os
import time
from concurrent.futures import as_completed

import pytest

from tilelang.tuning.processes import Inline, Processes


def test_jobs_give_results_and_errors() -> None:
    with Processes(2) as pool:
        squares = [pool.submit(pow, i, 2) for i in range(6)]
        assert sorted(f.result() for f in as_completed(squares)) == [0, 1, 4, 9, 16, 25]
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(os.getpgrp).result() != os.getpgrp()  # which Ctrl-C goes to
        pool.submit(print, "not an answer", flush=True).result()
        with pytest.raises(RuntimeError, match="ZeroDivisionError: "):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(RuntimeError, match="ended with status 3"):
            pool.submit(os._exit, 3).result()
        assert pool.submit(pow, 3, 2).result() == 9


def test_a_job_that_hangs_is_stopped() -> None:
    with Processes(1, seconds=4.0) as pool:
        with pytest.raises(TimeoutError, match="took more than 4 s"):
            pool.submit(time.sleep, 60).result()
        assert pool.submit(pow, 3, 2).result() == 9


def test_inline() -> None:
    assert Inline().submit(pow, 3, 2).result() == 9
    with pytest.raises(ZeroDivisionError):
        Inline().submit(divmod, 1, 0).result()
