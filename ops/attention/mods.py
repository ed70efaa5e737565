"""The names that PyTorch knows attention with a `score_mod` or `mask_mod` by: the same in every process."""
from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

import tilelang as tile
from tilelang import cache, locks
from tilelang.errors import TileError
from tilelang.jit import Kernel
from tilelang.lang.emitter import any_changed
from tilelang.lang.expressions import Function


@tile.kernel
def _with_mods(s: tile.InOut[tile.f32, "M N"], b: tile.i32, h: tile.i32, MOD: tile.Const, MASK: tile.Const):
    m, n = tile.grid(tile.cdiv(s.shape[0], 16), tile.cdiv(s.shape[1], 32))
    i, j = (m * 16 + tile.arange(16))[:, None], (n * 32 + tile.arange(32))[None, :]
    x = tile.load(s, (m * 16, n * 32), (16, 32))
    if MOD is not None:
        x = MOD(x, b, h, i, j)
    if MASK is not None:
        x = tile.where(MASK(b, h, i, j), x, 0.0)
    tile.store(s, (m * 16, n * 32), x)


@dataclass(frozen=True)
class _Named:
    """The functions (kept, and so their identities), a kernel traced with them, and their name."""

    mods: tuple[Any, Any]
    kernel: Kernel
    name: str


_known: dict[tuple[int, int], _Named] = {}
_owners: dict[str, tuple[Any, Any]] = {}


def name_of(score_mod: Any, mask_mod: Any) -> str:
    """What follows the name of an operator: nothing without functions. Else their names and a hash of what they mean
    today: of their text, and of their operations on a block, in which the values around them are constants. Where
    such a value may change, other functions of the same name and meaning go by their identity too, and so do those
    that cannot be traced."""
    if score_mod is None and mask_mod is None:
        return ""
    key = id(score_mod), id(mask_mod)
    known = _known.get(key)
    if known is None or any_changed(known.kernel.captured.values()):
        with locks.registering:
            known = _known[key] = _named((score_mod, mask_mod))
    return known.name


def _named(mods: tuple[Any, Any]) -> _Named:
    kernel = _with_mods.bind(MOD=mods[0], MASK=mods[1])
    try:
        texts = [ast.unparse(mod.source.tree) if isinstance(mod, Function) else repr(mod) for mod in mods]
        meaning = cache.key(*texts, str(kernel.trace(kernel.types({}), {"MOD": mods[0], "MASK": mods[1]})))[:16]
    except TileError:  # what is wrong the call will say
        meaning = ""
    words = [re.sub(r"\W", "_", getattr(mod, "__name__", ""), flags=re.ASCII) for mod in mods]
    name = "_".join(["", *words, meaning])
    owner = _owners.setdefault(name, mods)
    alone = all(a is b for a, b in zip(owner, mods, strict=True))
    if not meaning or not alone and kernel.captured:
        name += f"_{id(mods[0]):x}_{id(mods[1]):x}"
    return _Named(mods, kernel, name)
