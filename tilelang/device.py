"""Calls on a GPU the long way: kernels specialised for a device, tensors on it or copied to it."""
from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tilelang import native, targets
from tilelang.args import Argument, is_torch
from tilelang.errors import ArgumentDevice

if TYPE_CHECKING:
    from tilelang.backends.simt.launch import Launch
    from tilelang.bound import Bound


def stream(ordinal: int) -> int:
    """torch's current stream on a device."""
    torch = sys.modules["torch"]
    try:  # what torch's own compiler uses: the public way makes an object at each call
        return torch._C._cuda_getCurrentRawStream(ordinal)  # type: ignore[no-any-return]
    except AttributeError:
        return torch.cuda.current_stream(ordinal).cuda_stream  # type: ignore[no-any-return]


def load(bound: Bound, name: str) -> Launch:
    """The kernel compiled for these types and constants, on the device the arguments are on (the first, where they
    are on the host) for target `name`."""
    from tilelang.backends.simt.launch import Launch
    from tilelang.reproduce import reproducible
    device = targets.driver(name).device(ordinal(bound.device))
    machine = targets.machine(name, device.ordinal)
    tile = bound.kernel.trace(bound.types(aligned=True), bound.consts)
    with reproducible(tile, f"{targets.EMULATE}{machine}"):  # which also shows it where there is no device
        return Launch(targets.lowered(tile, machine), device, native.function)


def ordinal(device: str) -> int:
    """The number of a device: that of "cuda:1" is 1, of the host 0."""
    return int(device.partition(":")[2] or 0)


def run(bound: Bound, launch: Launch) -> Launch:
    """Runs a call, and gives what ran. Arguments on the host are copied to the device, and what is written back
    again."""
    arrays, shapes, strides = bound.memory(on_host=False)
    launch = launch.suited(arrays, shapes, strides)
    tensors = {i: bound.tensors[p.name] for i, p in enumerate(launch.tile.params) if p.name in bound.tensors}
    with ExitStack() as stack:
        if bound.device == "cpu":
            stack.enter_context(launch.device.current())
        for i, a in tensors.items():
            arrays[i] = _copied(stack, launch, i, a) if bound.device == "cpu" else a.address
        on_torch = bound.device != "cpu" and any(is_torch(a.owner) for a in tensors.values())
        launch.start(arrays, shapes, strides, stream(launch.device.ordinal) if on_torch else 0)
    return launch


def _copied(stack: ExitStack, launch: Launch, index: int, a: Argument) -> int:
    low, high = a.span()
    writes = launch.tile.params[index].type.writable  # type: ignore[union-attr]
    if high <= low:
        return stack.enter_context(launch.device.copied(a.address, 0, False))
    return stack.enter_context(launch.device.copied(low, high - low, writes)) + a.address - low


def check_device(name: str, bound: Bound) -> None:
    """Raises ArgumentDevice where a call on target `name` cannot reach its arguments."""
    if bound.device != "cpu" and not targets.on_device(name):
        raise ArgumentDevice(f"`{bound.kernel.name}` runs on {name!r}, but its arguments are on {bound.device}",
                             loc=bound.kernel.source.loc, needs="tensors on the CPU", got=bound.device,
                             try_="move the arguments with .cpu(), or leave the target to the arguments")

