"""Names of targets, and what runs or lowers a kernel for each.

- "cpu": machine code through LLVM; the default.
- "reference": the NumPy interpreter.
- "shapes": nothing runs, outputs are only allocated; arguments may be torch's fake or meta tensors.
- "cuda", "hip": the GPU of NVIDIA's or AMD's the arguments are on (the first, for arguments on the host); the default
  of tensors on a GPU.
- "cuda:sm_80", "hip:gfx942" and other architectures: the same, for that architecture; needs no device to lower for.
- "emulate:cuda:sm_80", "emulate:hip:gfx942": that text on the CPU, under checks for races, bounds and initialisation.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilelang.errors import TargetError
from tilelang.ir.core import Function, Op, TensorType
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.pairs import cheapest
from tilelang.layouts import RegisterLayout

if TYPE_CHECKING:
    from tilelang.backends.simt.driver import Driver
    from tilelang.backends.simt.target import SimtTarget

EMULATE, SHAPES = "emulate:", "shapes"
GPUS = "cuda", "hip"
F32 = dtype("f32")
_last: dict[tuple[str, int], Any] = {}


def check(name: str, runs: bool = True, origin: str = "") -> str:
    """`name`, if it is a target that kernels can be lowered for, or run on where `runs`. Raises TargetError, which
    says where the name comes from: `origin`."""
    if name == "cpu" or (name in ("reference", SHAPES) and runs):
        return name
    bare = name.removeprefix(EMULATE)
    if name in GPUS:
        machine(name)
        return name
    if bare.startswith(tuple(f"{gpu}:" for gpu in GPUS)):
        _part(bare, "target").target(bare)
        return name if name.startswith(EMULATE) or not runs else machine(name)
    known = "cpu, reference, cuda" if runs else "cpu, cuda"
    raise TargetError(f"unknown target {name!r}" if runs else f"nothing is compiled for {name!r}",
                      needs=f"{known}, hip, cuda:sm_…, hip:gfx… or one of the last two behind emulate:",
                      got=name + origin, try_='tile.target("cpu")' if runs else 'target="cpu"')


def _part(name: str, part: str) -> Any:
    """A module of the backend that a GPU's target belongs to."""
    return import_module(f"tilelang.backends.{name.partition(':')[0]}.{part}")


def on_device(name: str) -> bool:
    """Whether calls on a target run on a GPU."""
    return name.partition(":")[0] in GPUS


def of_device(device: str) -> str:
    """The target of arguments on a device such as "cuda:1", which is what torch's builds for AMD call theirs too."""
    kind, torch = device.partition(":")[0], sys.modules.get("torch")
    return "hip" if kind == "cuda" and torch is not None and torch.version.hip else kind


def driver(name: str) -> Driver:
    """The driver of a GPU's target. Raises TargetError where it is not installed."""
    return _part(name, "driver").driver()  # type: ignore[no-any-return]


def machine(name: str, ordinal: int = 0) -> str:
    """The architecture that a target means on a device: "cuda" is the device's own. Raises TargetError where there is
    no such device, or it does not run code for the architecture named."""
    device = driver(name).device(ordinal)
    if name not in GPUS and not device.runs(name):
        raise TargetError(f"the device cannot run {name!r}", needs=device.target, got=name,
                          try_=f'tile.target("{name.partition(":")[0]}")')
    return device.target if name in GPUS else name


def fraction(name: str) -> Callable[[Op], int] | None:
    """How many bits behind the point the instructions of a GPU keep in the sums of a `dot`; None for targets, the
    emulator too, that keep those of the dtype they sum up in."""
    if not on_device(name):
        return None
    found: Callable[[Op], int] = _part(name, "target").target(machine(name) if name in GPUS else name).fraction
    return found


def lowered(tile: Function, name: str) -> Any:
    """The function at every level: `.tile`, `.placed`, `.thread`, `.source`, …"""
    if on_device(name):
        machine_name = machine(name) if name in GPUS else name
        return _part(name, "compile").Lowered(tile, _part(name, "target").target(machine_name))
    from tilelang.backends.cpu.compile import Lowered
    from tilelang.backends.cpu.machine import host
    return Lowered(tile, host())


def cpu_features() -> frozenset[str]:
    """What this processor has of the instructions that products ask for: "avx2", "vnni", "vbmi", "bf16"."""
    from tilelang.backends.cpu.machine import host
    return host().features


def cpu_vector_bytes() -> int:
    """Bytes of a vector register of this processor: 64 with AVX-512, 32 with AVX2."""
    from tilelang.backends.cpu.machine import host
    return host().vector_bytes


def cpu_registers() -> int:
    """How many vector registers this processor has."""
    from tilelang.backends.cpu.machine import host
    return host().registers


def _gpu(name: str) -> SimtTarget:
    """A GPU, emulated or not, whose `name` has an architecture."""
    bare = name.removeprefix(EMULATE)
    return _part(bare, "target").target(bare)  # type: ignore[no-any-return]


def operand_layouts(name: str, m: int, k: int, dt: DType, acc: DType = F32,
                    n: int = 0) -> tuple[RegisterLayout, RegisterLayout]:
    """How a warp holds the operands [m, k] and [k, n] of a `dot` of `dt` that sums in `acc`, by default with the n of
    one instruction: what a `view` makes in such a layout goes into the product as it lies. `name` has an architecture.
    Raises TargetError where that has no such product."""
    from tilelang.backends.simt.instructions import choose, plan
    gpu = _gpu(name)
    row = choose(gpu.mma, dt, dt, acc, k)
    if row is None or row.a != dt.name:
        raise TargetError(f"{gpu.name} has no product of {dt}", needs=f"matrix instructions for {dt}", got=gpu.name,
                          try_="another target")
    found = plan(row, m, n or row.n, k, 1, 1)
    assert isinstance(found.a, RegisterLayout) and isinstance(found.b, RegisterLayout)
    return found.a, found.b


def shared_bytes(name: str) -> int:
    """Shared memory of a block on a GPU, whose `name` has an architecture."""
    return _gpu(name).shared_bytes


def counts_bits(name: str) -> int:
    """How many warps of a GPU, whose `name` has an architecture, the largest of its products of bits is of; 0 where it
    has no instructions for them."""
    gpu = _gpu(name)
    return max([row.warps for row in gpu.group_mma if row.a == "u1"], default=int(gpu.counts_bits))


def order(name: str, dt: DType) -> str:
    """The order of `tilelang.ir.pairs` from which a GPU makes f16 of a type by the fewest instructions. `name` has an
    architecture."""
    gpu = _gpu(name)
    return cheapest(dt, gpu.ternary, gpu.halves)


def emulate(code: Any, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
            strides: Sequence[Sequence[int]]) -> None:
    """Runs a lowered kernel's text on the CPU under checks; `last_counters` then gives the counts. `arrays` holds the
    NumPy array or scalar of every parameter. Raises CheckError, AssertFailed."""
    from tilelang.backends.emulator.execute import execute
    from tilelang.reproduce import reproducible
    before = [a.copy() if isinstance(p.type, TensorType) and p.type.mode == "inout" else a
              for p, a in zip(code.tile.params, arrays, strict=True)]
    with reproducible(code.tile, f"{EMULATE}{code.target.name}", before):
        code = code.suited(arrays, shapes, strides)
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
