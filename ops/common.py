"""What the wrappers of several kernels need."""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import tilelang as tile


def block(extent: int, largest: int, multiple: int = 16) -> int:
    """A block extent for a dimension: itself rounded up to `multiple`, at most `largest`. Rounding keeps the number
    of compiled variants small."""
    return max(min(-(-extent // multiple) * multiple, largest), 1)


def even(extent: int, largest: int, multiple: int) -> int:
    """The block extent that covers a dimension by as few equal blocks as can be, of at most `largest`."""
    count = max(-(-extent // largest), 1)
    return block(-(-extent // count), largest, multiple)


def rowwise(extent: int, largest: int) -> dict[str, int]:
    """Block extents for rows of `extent` elements, at most `largest` of them at once: blocks of 2048 or more."""
    wide = block(extent, largest, 64)
    return {"BM": max(1, 2048 // wide), "BN": wide}


def rows(x: Any) -> Any:
    """[..., N] as [M, N]; a view where the memory allows it."""
    return x if len(x.shape) == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def check_floats(name: str, x: Any, rank: int = 1) -> None:
    """Raises ValueError for the first tensor of an operator unless it is of f32, f16 or bf16, and has `rank`
    dimensions or more: others would be computed in f32 as well, and lose digits."""
    dt = dtype_of(x)
    if dt.name not in ("f32", "f16", "bf16"):
        raise ValueError(f"{name} takes f32, f16 or bf16, got {dt}: convert it, to f32 for example")
    if len(x.shape) < rank:
        raise ValueError(f"{name} takes {rank} dimensions or more, got {list(x.shape)}")


def scale_of(width: int, scale: float | None) -> float:
    """What products of queries and keys of a width are multiplied by: `scale`, or 1 / sqrt(width). Raises ValueError
    where there is nothing to multiply."""
    if width == 0:
        raise ValueError("queries and keys have no elements: D must be at least 1, got 0")
    return 1.0 / math.sqrt(width) if scale is None else scale


def dtype_of(x: Any) -> tile.DType:
    """The dtype of a torch or NumPy array."""
    return dtype(x.dtype)


@lru_cache(maxsize=256)
def dtype(external: Any) -> tile.DType:
    """A dtype of torch or NumPy."""
    return tile.dtype(str(external).removeprefix("torch."))
