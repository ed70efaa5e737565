"""Barriers of kernels, each left out in turn: the emulator has to object."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tilelang.backends.emulator.execute import execute
from tilelang.errors import CheckError

BARRIER = re.compile(r"tl::barrier\(tl::op\((\d+)\)\);")


def barriers(code: Any) -> list[int]:
    """Of a kernel lowered for a GPU: which of its numbered operations are barriers."""
    return [int(number) for number in BARRIER.findall(code.rendered.text)]


def needless(code: Any, calls: Sequence[tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The barriers without which no call, (arrays, shapes, strides), has a race or reads what has not arrived."""
    # The environment says which one is left out: compiling a text for each would take nearly all of the time.
    text = BARRIER.sub(r'if (std::atoi(std::getenv("LEFT_OUT")) != \1) \g<0>', code.rendered.text)
    rendered = replace(code.rendered, text="#include <cstdlib>\n" + text)

    def objects(arrays: Any, shapes: Any, strides: Any) -> bool:
        try:
            execute(code.tile, rendered, [a.copy() for a in arrays], shapes, strides)
        except CheckError as error:
            return any(kind in f for f in error.findings for kind in ("race-", "async-pending"))
        return False

    found = []
    for number in [-1, *barriers(code)]:
        monkeypatch.setenv("LEFT_OUT", str(number))
        if not any(objects(*call) for call in calls):
            found.append(number)
    assert found[:1] == [-1]  # with all of them there is no finding
    return found[1:]
