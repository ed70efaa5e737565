"""Campaigns of hypothesis that end by the clock."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

Found = TypeVar("Found", bound=tuple[str, ...])


def search(seconds: float, drawn: SearchStrategy[Any], examine: Callable[[Any], Found | None]
           ) -> tuple[int, Found | None]:
    """Examines what is drawn for about `seconds`, or up to the first that fails, which is shrunk: how many there were,
    and what `examine` says of the one that failed, its message first."""
    end, count, last = time.monotonic() + seconds, 0, None

    @settings(max_examples=500, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))
    @given(drawn)
    def batch(value: Any) -> None:
        nonlocal count, last
        if time.monotonic() > end and not last:
            return  # what was found is still shrunk
        count += 1
        if found := examine(value):
            last = found
            raise AssertionError(found[0].splitlines()[0].split(";")[0][:40])
    while time.monotonic() < end:
        try:
            batch()
        except BaseException as error:
            if not last or isinstance(error, KeyboardInterrupt):
                raise
            break
    return count, last
