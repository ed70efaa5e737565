"""Calls on a GPU: kernels specialised for a device, tensors on it or copied to it, and the short way for repeats."""
from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from tilelang import targets
from tilelang.args import Argument, is_torch
from tilelang.errors import ArgumentDevice
from tilelang.plan import Mismatch

if TYPE_CHECKING:
    from tilelang.backends.simt.launch import Launch, Prepared
    from tilelang.bound import Bound
    from tilelang.lang.kernel import Param

MAX_KNOWN = 4096
"""How many kinds of arguments a `Calls` remembers."""


class _Ready(NamedTuple):
    """A launch for one kind of arguments; `apart` lists pairs of tensors that must not share memory: for each its
    place in the launch's head, its first byte and its end from its pointer."""

    fire: Callable[[Prepared, Sequence[Any], int], None]
    prepared: Prepared
    ordinal: int
    apart: list[tuple[int, int, int, int, int, int]]


class Calls:
    """The native function of a plan: launches what is like an earlier call, and raises Mismatch for the rest.

    Like it are torch tensors with the shapes, strides, dtypes, devices and alignments of one earlier call, where the
    scalars of `Launch.fixed` are the same too.
    """

    def __init__(self, params: Sequence[Param]) -> None:
        self._params = params
        self._order: Any = None
        self._read: Any = None
        self._known: dict[Any, _Ready] = {}

    def __call__(self, *values: Any) -> None:
        if self._read is None:
            raise Mismatch
        head, key = self._read(*values)
        ready = self._known.get(key)
        if ready is None:
            raise Mismatch
        fire, prepared, number, apart = ready
        for a, low, high, b, start, end in apart:
            if head[a] + low < head[b] + end and head[b] + start < head[a] + high:
                raise Mismatch  # the long way copies, or says what overlaps
        try:
            fire(prepared, head, stream(number))
        except (struct.error, OverflowError):
            raise Mismatch from None

    def learn(self, bound: Bound, launch: Launch, prepared: Prepared) -> None:
        """Remembers the arguments of a call that went the long way."""
        values = [bound.tensors[p.name].array if p.kind == "tensor" else bound.scalars[p.name] for p in self._params]
        tensors = [i for i, p in enumerate(self._params) if p.kind == "tensor"]
        if bound.device == "cpu" or not all(is_torch(values[i]) for i in tensors):
            return
        if self._order != (order := (launch.head, launch.fixed)):
            self._known, self._order, self._read = {}, order, _reader(tensors, *order)
        head, key = self._read(*values)
        spans = []
        for n, i in enumerate(tensors):
            low, high = bound.tensors[self._params[i].name].span()
            spans.append((n, low - head[n], high - head[n]) if high > low else (n, 0, 0))
        written = [n for n, i in enumerate(tensors) if self._params[i].tensor.mode != "in"]
        apart = [(*spans[a], *spans[b]) for a in written for b in range(len(tensors))
                 if a != b and not (b in written and b < a)]
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = _Ready(launch.fire, prepared, launch.device.ordinal, apart)


def _reader(tensors: Sequence[int], head: Sequence[int], fixed: Sequence[int]) -> Any:
    """A function of a call's values that gives the launch's head and the key of the kind of call.

    It is written out for the parameters: loops over them would take as long as all the rest of a call.
    """
    names = [f"x{i}" for i in range(len(head) + len(fixed))]
    first = [f"(p{i} := x{i}.data_ptr())" if i in tensors else names[i] for i in head]
    kinds = [f"x{i}.shape, x{i}.stride(), x{i}.dtype, x{i}.get_device(), x{i}.is_neg(), p{i} & 15" for i in tensors]
    key = [*kinds, *(f"repr(x{i})" for i in fixed)]
    return eval(f"lambda {', '.join(names)}: (({', '.join(first)},), ({', '.join(key)},))")


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
        return Launch(targets.lowered(tile, machine), device)


def ordinal(device: str) -> int:
    """The number of a device: that of "cuda:1" is 1, of the host 0."""
    return int(device.partition(":")[2] or 0)


def run(bound: Bound, launch: Launch) -> tuple[Launch, Prepared]:
    """Runs a call, and gives what ran. Arguments on the host are copied to the device, and what is written back
    again."""
    arrays, shapes, strides = bound.memory(on_host=False)
    launch = launch.suited(arrays, shapes, strides)
    prepared = launch.prepare(arrays, shapes, strides)
    tensors = {i: bound.tensors[p.name] for i, p in enumerate(launch.tile.params) if p.name in bound.tensors}
    with ExitStack() as stack:
        if bound.device == "cpu":
            stack.enter_context(launch.device.current())
            pointers = {i: _copied(stack, launch, i, a) for i, a in tensors.items()}
        else:
            pointers = {i: a.address for i, a in tensors.items()}
        on_torch = bound.device != "cpu" and any(is_torch(a.owner) for a in tensors.values())
        head = [pointers[i] if i in pointers else arrays[i][()] for i in launch.head]
        launch.fire(prepared, head, stream(launch.device.ordinal) if on_torch else 0)
    return launch, prepared


def _copied(stack: ExitStack, launch: Launch, index: int, a: Argument) -> int:
    low, high = a.span()
    writes = launch.tile.params[index].type.writable  # type: ignore[union-attr]
    if high <= low:
        return stack.enter_context(launch.device.copied(a.address, 0, False))
    return stack.enter_context(launch.device.copied(low, high - low, writes)) + a.address - low


def check_device(name: str, bound: Bound) -> None:
    """Raises ArgumentDevice where a call on target `name` cannot reach its arguments."""
    if bound.device != "cpu" and not targets.on_device(name):
        raise ArgumentDevice(f"`{bound.kernel.name}` runs on {name!r}, its arguments are on {bound.device}",
                             loc=bound.kernel.source.loc, needs="tensors on the CPU", got=bound.device,
                             try_="move the arguments with .cpu(), or leave the target to the arguments")

