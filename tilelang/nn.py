"""Drop-in modules for torch.nn's: the same constructors, parameters and state dicts, computed by `tilelang.ops`.

Needs torch. What an operator does not do (another dtype than f32, f16 and bf16, a norm over several dimensions) raises
where torch's module would compute it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from tilelang import ops
from tilelang.errors import QuantError
from tilelang.ir.dtypes import DType
from tilelang.ir.packed import Packed
from tilelang.ops.mpgemm import checks, operator
from tilelang.quant import QuantTensor, quantize
from tilelang.quant.nodes import to_torch
from tilelang.quant.structure import flatten, unflatten


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


class QuantLinear(nn.Module):
    """x [..., K] @ weight [N, K].T + bias [N] with a quantised weight, by `ops.mpgemm`; x has a gradient, the weight
    and the bias are not trained.

    The weight's arrays are buffers (`weight_codes`, `weight_scale`, ...), and what they mean, as text in bytes, is
    one more (`weight_description`): a state dict holds tensors only, and one of another composition is refused. Moving
    the module to another floating dtype casts the bias alone. `x_dtype`, `x_group` and `decomposition` are those of
    `ops.mpgemm`. The first call repacks the weight; written buffers are repacked again."""

    def __init__(self, weight: QuantTensor, bias: Any = None, *, x_dtype: str | None = None, x_group: str = "token",
                 decomposition: str | None = None) -> None:
        super().__init__()
        checks.check_weight(None, weight)
        self.out_features, self.in_features = weight.shape
        if bias is not None and (not torch.is_tensor(bias) or bias.shape != (self.out_features,)):
            raise ValueError(f"bias must be a tensor [{self.out_features}], got "
                             f"{list(bias.shape) if torch.is_tensor(bias) else type(bias).__name__}")
        self.x_dtype, self.x_group = checks.check_options(x_dtype, x_group, decomposition), x_group
        self.decomposition = decomposition
        self.description, memory = flatten(weight.map(_tensor))
        self._names = ["weight_" + path.replace(".", "_") for path, _ in memory]
        for name, (_, tensor) in zip(self._names, memory, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("weight_description", torch.tensor(list(self.description.encode()), dtype=torch.uint8))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: DType | str = "u4", group: int | None = 128, **how: Any) -> Self:
        """`linear`, its weight rounded by `tilelang.quantize(weight, dtype, group, ...)`; `x_dtype`, `x_group` and
        `decomposition` in `how` are the module's. Raises QuantError."""
        own = {name: how.pop(name) for name in ("x_dtype", "x_group", "decomposition") if name in how}
        return cls(quantize(linear.weight.detach(), dtype, group, **how), linear.bias, **own)

    @property
    def weight(self) -> QuantTensor:
        """The weight, over the module's buffers."""
        tensor: QuantTensor = unflatten(self.description, self._memory())
        return tensor

    def forward(self, input: Any) -> Any:
        return operator.applied(input, self._memory(), self.description, (self.out_features, self.in_features),
                                self.bias, x_dtype=self.x_dtype, x_group=self.x_group,
                                decomposition=self.decomposition)

    def extra_repr(self) -> str:
        weight = self.weight
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"weight={weight}, {weight.bits_per_weight:.2f} bits")

    def _memory(self) -> list[Any]:
        return [getattr(self, name) for name in self._names]

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        def moved(tensor: Any) -> Any:
            if tensor is self.bias:
                return fn(tensor)
            raw = fn(tensor.view(torch.uint8))  # moved, but no number becomes another
            return raw.view(tensor.dtype) if raw.dtype is torch.uint8 else tensor.to(raw.device)
        return super()._apply(moved, recurse)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        found = state.get(f"{prefix}weight_description")
        if found is not None and bytes(found.tolist()) != self.description.encode():
            errors = rest[-1]
            errors.append(f"`{prefix}weight` is composed otherwise: needs {self.description}, got "
                          f"{bytes(found.tolist()).decode(errors='replace')}; quantise with the options of the file")
            return
        super()._load_from_state_dict(state, prefix, *rest)


def _tensor(leaf: Any) -> Any:
    """A leaf in torch's memory, where it is if it lies there in one piece."""
    if isinstance(leaf, Packed):
        return Packed(_tensor(leaf.buffer), leaf.dtype, leaf.shape, leaf.row_bits)
    return leaf.contiguous() if isinstance(leaf, torch.Tensor) else to_torch(leaf, "cpu")


def quantize_(model: nn.Module, dtype: DType | str = "u4", group: int | None = 128, *,
              filter: Callable[[str, nn.Linear], bool] | None = None, **how: Any) -> nn.Module:
    """Puts a `QuantLinear` in the place of every nn.Linear (and `Linear` of this module, but no other subclass, whose
    owners may want the weight itself) for which `filter(name, module)` is true, all of them without one; `how` goes to
    `QuantLinear.from_linear`. A module that stands in several places is quantised once. Changes `model` and gives it
    back, or its replacement where it is a Linear itself. Raises ValueError where nothing is to be quantised, and
    QuantError with the module's name where a weight cannot be."""
    made: dict[nn.Module, QuantLinear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) not in (nn.Linear, Linear) or filter is not None and not filter(name, module):
            continue
        if module not in made:
            try:
                made[module] = QuantLinear.from_linear(module, dtype, group, **how).train(module.training)
            except QuantError as error:
                place = name and f"`{name}`: "
                raise QuantError(place + error.message, needs=error.needs, got=error.got,
                                 try_=error.try_ or place and "leave it out with filter=...") from error
        if not name:
            return made[module]
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, made[module])
    if not made:
        raise ValueError("nothing to quantise: needs an nn.Linear that `filter` accepts, got a model with "
                         f"{sum(isinstance(m, nn.Linear) for m in model.modules())} of them")
    return model
