"""One question to decide: the configurations of a kernel for the arguments of a call on a target."""
from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tilelang import cache, device, jit, targets
from tilelang.bound import Bound
from tilelang.ir.core import Function
from tilelang.passes.work import work
from tilelang.tuning.space import Config, estimate
from tilelang.tuning.store import Key, to_json


@dataclass(frozen=True)
class Problem:
    """`target` has its architecture; `why_not` says why nothing can be timed there, or nothing."""

    bound: Bound
    configs: list[Config]
    target: str
    key: Key
    why_not: str

    def trace(self, config: Config) -> Function:
        """The TILE function of a configuration. Raises what tracing raises."""
        types = self.bound.types(aligned=self.target != "cpu")
        return self.bound.kernel.trace(types, {**self.bound.consts, **config})

    def estimate(self, config: Config, tile: Function | None = None) -> float:
        """The model's time, in units of its own."""
        _, shapes, _ = self.bound.memory(on_host=False)
        scalars = [self.bound.scalar(p) if p.kind == "scalar" else None for p in self.bound.kernel.params
                   if p.kind != "const"]
        return estimate(work(tile or self.trace(config), shapes, scalars, jit.get_num_threads()), self.target)


def problem_of(bound: Bound, configs: Sequence[Config], choices: Collection[str], dims: Sequence[str],
               name: str) -> Problem:
    """The problem of a call on target `name` whose constants `choices` are open, and depend on the extents `dims`."""
    bare, number = name.removeprefix(targets.EMULATE), device.ordinal(bound.device)
    if targets.on_device(bare):
        target = targets.machine(bare, number) if name == bare else bare
        where = _device_name(target, number) if name == bare else ""
    else:
        from tilelang.backends.cpu.machine import host
        target, where = "cpu", f"{host().cpu}, {jit.get_num_threads()} threads"
    types = tuple(f"{n}: {a.dtype}, unit {list(a.unit)}" for n, a in sorted(bound.tensors.items()))
    given = to_json({k: v for k, v in bound.consts.items() if k not in choices})
    bucket = tuple((d, 1 << max(bound.dims[d][0] - 1, 0).bit_length()) for d in dims if d in bound.dims)
    fn = bound.kernel.fn
    key = Key(f"{fn.__module__}.{fn.__qualname__}", target, where, cache.compiler_key(), types, given, bucket)
    timed = name == "cpu" or (targets.on_device(name) and name == bare)
    return Problem(bound, list(configs), target, key, "" if timed else f"nothing is timed on {name}")


def _device_name(target: str, number: int) -> str:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name(number)) if torch is not None and torch.cuda.is_available() else target
