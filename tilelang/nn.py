"""Drop-in modules for torch.nn's: the same constructors, parameters and state dicts, computed by `tilelang.ops`.

Needs torch. What an operator does not do (another dtype than f32, f16 and bf16, a norm over several dimensions) raises
where torch's module would compute it.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tilelang import ops


class Linear(nn.Linear):
    """torch.nn.Linear: x [..., K] @ weight [N, K].T + bias [N]."""

    def forward(self, input: Any) -> Any:
        return ops.linear(input, self.weight, self.bias)


class GELU(nn.GELU):
    """torch.nn.GELU without approximation. Raises ValueError for `approximate="tanh"`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__(approximate)
        if approximate != "none":
            raise ValueError(f"GELU is exact here: needs approximate='none', got {approximate!r}; use torch.nn.GELU")

    def forward(self, input: Any) -> Any:
        return ops.gelu(input)


class Softmax(nn.Module):
    """torch.nn.Softmax over dimension `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Any) -> Any:
        return ops.softmax(input.movedim(self.dim, -1)).movedim(-1, self.dim)


def _last(normalized_shape: Any) -> int:
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if len(shape) != 1:
        raise ValueError(f"norms are over the last dimension: needs one extent, got {shape}; flatten the dimensions")
    return int(shape[0])


class RMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm over the last dimension, with weight; eps is the smallest step of the dtype unless given."""

    def __init__(self, normalized_shape: Any, eps: float | None = None, device: Any = None, dtype: Any = None) -> None:
        super().__init__(_last(normalized_shape), eps, True, device, dtype)

    def forward(self, x: Any) -> Any:
        return ops.rms_norm(x, self.weight, torch.finfo(x.dtype).eps if self.eps is None else self.eps)


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm over the last dimension, with weight and bias."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__(_last(normalized_shape), eps, True, True, device, dtype)

    def forward(self, input: Any) -> Any:
        return ops.layer_norm(input, self.weight, self.bias, self.eps)
