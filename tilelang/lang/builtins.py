"""The functions of `tile.*` in one namespace, and those that are also methods of a tile."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilelang.lang import derivative, math, memory, shaping

PUBLIC: dict[str, Callable[..., Any]] = {
    name: fn for module in (math, shaping, memory, derivative) for name, fn in vars(module).items()
    if callable(fn) and not name.startswith("_") and not isinstance(fn, type)
    and getattr(fn, "__module__", "") == module.__name__}

METHODS: dict[str, Callable[..., Any]] = {name: PUBLIC[name] for name in (
    "abs all any argmax argmin argsort bitcast ceil clamp cos cumprod cumsum erf exp exp2 expand_dims floor isnan log "
    "log2 max min popcount prod round rsqrt sigmoid sin sort sqrt squeeze sum tanh topk transpose trunc view"
).split()}
