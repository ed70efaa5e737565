"""GPUs whose drivers are stand-ins (`simt/fake.py`)."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.simt.fake import COMPILER, FakeDriver, fake_gpu


def _faked(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    with fake_gpu(kind, folder, patch) as fake:
        yield fake


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    yield from _faked("cuda", tmp_path, monkeypatch)


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    yield from _faked("hip", tmp_path, monkeypatch)


@pytest.fixture(params=["cuda", "hip"])
def gpu(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    yield from _faked(request.param, tmp_path, monkeypatch)


@pytest.fixture
def hopper(nvidia: FakeDriver) -> FakeDriver:
    """NVIDIA's of compute capability 9.0."""
    nvidia.library.fake_device(9, 0, b"")
    return nvidia
