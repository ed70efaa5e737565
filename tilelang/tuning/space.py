"""Which configurations of a kernel's constants to try, and in what order: by a model of their cost."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilelang import targets
from tilelang.jit import Kernel, get_num_threads
from tilelang.lang.kernel import Param
from tilelang.passes.work import Work

Config = dict[str, Any]
_FACTORS = (0.25, 0.5, 1, 2, 4)
_SIZES = (16, 32, 64, 128, 256)
_CACHE = 512 << 10
"""Bytes of tiles that a CPU core keeps near."""


def derived(kernel: Kernel) -> dict[str, list[Any]]:
    """Choices for every whole number among a kernel's constants: around its default, else sizes that blocks have.
    Numbers of stages and other small ones vary by one."""
    out: dict[str, list[Any]] = {}
    for p in kernel.params:
        number = p.required or (type(p.default) is int and p.default > 0)
        if p.kind == "const" and number and p.name not in kernel.dims:
            out[p.name] = list(_SIZES) if p.required else _around(p)
    return out


def _around(p: Param) -> list[int]:
    if p.default < 8:
        return sorted({max(p.default - 1, 1), p.default, p.default + 1})
    return sorted({max(int(p.default * f), 1) for f in _FACTORS})


def configurations(choices: Mapping[str, Sequence[Any]], where: Callable[..., bool] | None) -> list[Config]:
    """All combinations for which `where(**config)` holds."""
    names = list(choices)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices.values())]
    return [c for c in every if where is None or where(**c)]


@dataclass(frozen=True)
class _Core:
    """What one processor of a target does in a unit of time, roughly: only the order of estimates counts."""

    count: int
    products: float
    simple: float
    bytes: float
    near: int


def estimate(work: Work, target: str) -> float:
    """Time units of a kernel, from its counted work: the slowest of products, operations and memory, spread over
    processors in whole programs; blocks that do not fit near a CPU core cost memory again."""
    core = _Core(108, 2048, 128, 32, 192 << 10) if targets.on_device(target) else \
        _Core(get_num_threads(), 64, 16, 16, _CACHE)
    if not work.programs:
        return 0.0
    rounds = -(-work.programs // core.count)
    share = rounds / work.programs
    moved = (work.loaded + work.stored) * (1 + max(0.0, work.largest / core.near - 1))
    return share * (work.products / core.products + work.simple / core.simple + moved / core.bytes) + rounds * 500
