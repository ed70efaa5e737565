"""Every test verifies the IR after each pass, and compiles into a cache of its own run, which workers share."""
from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("tilelang", deadline=None, derandomize=True)  # `make fuzz` draws new ones
settings.load_profile("tilelang")
os.environ.setdefault("TILELANG_CHECK", "1")
for library in ("OMP", "OPENBLAS", "MKL"):  # workers have the processors; more threads only wait for each other
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
gc.set_threshold(50_000, 20, 20)  # a tenth of the time of compiling is looking for garbage in what modules hold
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if not _worker:  # who starts workers hands its cache on to them, and removes it
    _run = tempfile.TemporaryDirectory(prefix="tilelang-test-")
    os.environ["TILELANG_CACHE_DIR"] = os.path.join(_run.name, "cache")
os.environ["TILELANG_TUNING_FILE"] = os.path.join(os.path.dirname(os.environ["TILELANG_CACHE_DIR"]),
                                                  f"tuning{_worker}.sqlite")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which everything was skipped has shown nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A failure must show again: torch draws the same numbers in every run."""
    import torch
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_profile() -> Iterator[None]:
    """What a test, or a page of the documentation, sets of hypothesis is not for those after it."""
    before = settings.get_current_profile_name()
    yield
    settings.load_profile(before)


@pytest.fixture
def fresh_config() -> Iterator[None]:
    """Lets a test change the environment: the configuration is read again before and after."""
    from tilelang.config import config
    config.cache_clear()
    yield
    config.cache_clear()
