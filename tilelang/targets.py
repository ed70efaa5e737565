"""Names of targets, and what runs or lowers a kernel for each.

- "cpu": machine code through LLVM; the default.
- "reference": the NumPy interpreter.
- "shapes": nothing runs, outputs are only allocated; arguments may be torch's fake or meta tensors.
- "cuda": the GPU the arguments are on (the first, for arguments on the host); the default of tensors on a GPU.
- "cuda:sm_80" and other architectures: the same, for that architecture; needs no device to lower for.
- "hip:gfx942" and other architectures of AMD's: to lower for; calls do not run on AMD's GPUs yet.
- "emulate:cuda:sm_80", "emulate:hip:gfx942": that text on the CPU, under checks for races, bounds and initialisation.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilelang.errors import TargetError
from tilelang.ir.core import Function, Op

EMULATE, SHAPES = "emulate:", "shapes"
_last: dict[tuple[str, int], Any] = {}


def check(name: str, runs: bool = True) -> str:
    """`name`, if it is a target that kernels can be lowered for, or run on where `runs`. Raises TargetError."""
    if name in ("cpu", "reference") or (name == SHAPES and runs):
        return name
    if name == "cuda":
        machine(name)
        return name
    bare = name.removeprefix(EMULATE)
    if bare.startswith("cuda:"):
        from tilelang.backends.cuda.target import target as cuda
        cuda(bare)
        return name if name.startswith(EMULATE) or not runs else machine(name)
    if bare.startswith("hip:"):
        from tilelang.backends.hip.target import target as hip
        hip(bare)
        if name.startswith(EMULATE) or not runs:
            return name
        raise TargetError("calls on AMD GPUs are not supported yet", needs="a target that runs kernels", got=name,
                          try_=f'tile.target("{EMULATE}{name}")')
    raise TargetError(f"unknown target {name!r}",
                      needs="cpu, reference, cuda, cuda:sm_…, hip:gfx… or emulate: before one of the last two",
                      got=name, try_='tile.target("cpu")')


def on_device(name: str) -> bool:
    """Whether calls on a target run on a GPU."""
    return name == "cuda" or name.startswith("cuda:")


def machine(name: str, ordinal: int = 0) -> str:
    """The architecture that a target means on a device: "cuda" is the device's own. Raises TargetError where there is
    no such device, or it does not run code for the architecture named."""
    from tilelang.backends.cuda.driver import driver
    from tilelang.backends.cuda.target import runs
    device = driver().device(ordinal)
    if name != "cuda" and not runs(name, *device.capability):
        raise TargetError(f"the device cannot run {name!r}", needs=device.target, got=name,
                          try_='tile.target("cuda")')
    return device.target if name == "cuda" else name


def lowered(tile: Function, name: str) -> Any:
    """The function at every level: `.tile`, `.placed`, `.thread`, `.source`, …"""
    if on_device(name):
        from tilelang.backends.cuda.compile import Lowered as Cuda
        from tilelang.backends.cuda.target import target
        return Cuda(tile, target(machine(name) if name == "cuda" else name))
    if name.startswith("hip:"):
        from tilelang.backends.hip.compile import Lowered as Hip
        from tilelang.backends.hip.target import target as amd
        return Hip(tile, amd(name))
    from tilelang.backends.cpu.compile import Lowered
    from tilelang.backends.cpu.machine import host
    return Lowered(tile, host())


def emulate(code: Any, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
            strides: Sequence[Sequence[int]]) -> None:
    """Runs a lowered kernel's text on the CPU under checks; `last_counters` then gives the counts. `arrays` holds the
    NumPy array or scalar of every parameter. Raises CheckError, AssertFailed."""
    from tilelang.backends.emulator.execute import execute
    _last.clear()
    _last.update(by_line(execute(code.tile, code.rendered, arrays, shapes, strides), code.rendered.ops))


def by_line(counters: Mapping[int, Any], ops: Sequence[Op]) -> dict[tuple[str, int], Any]:
    """The counters of operations summed by (file, line) of the user's source; ("", 0) for what has none."""
    out: dict[tuple[str, int], Any] = {}
    for number, counter in counters.items():
        loc = ops[number].loc if number >= 0 else None
        line = (loc.file, loc.line) if loc is not None else ("", 0)
        out[line] = out[line] + counter if line in out else counter
    return out


def last_counters() -> dict[tuple[str, int], Any]:
    """What the last emulated call of this process cost, by (file, line) of the user's source: requests, bytes, global
    sectors and shared wavefronts beside the fewest possible, instructions of warps by class."""
    return dict(_last)
