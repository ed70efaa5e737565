"""A compiled kernel on a device: its machine code there, and code of the host's that launches it (`start.py`)."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilelang import cache
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.codegen import slots
from tilelang.backends.cpu.launch import Failures
from tilelang.backends.simt import start
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.driver import Device
from tilelang.errors import TargetError
from tilelang.ir.interpreter import count_programs, grid_extents


class Launch:
    """A kernel on a device. A launch allocates nothing and waits for nothing, so it may be captured in a graph.

    `entry` takes torch tensors on the device and scalars, and launches on torch's current stream; it gives False for
    arguments of which other code, or nobody, must take care. `link` makes it of machine code, and gives what else is
    there by name. `only` says which of `start.codes` this is: the first is the `root`, and makes the others when they
    are needed."""

    def __init__(self, lowered: Lowered, device: Device, link: Callable[..., tuple[Any, machine.Loaded]],
                 only: str = "", root: Launch | None = None) -> None:
        self.lowered, self.tile, self.device, self.link = lowered, lowered.tile, device, link
        self._others = dict[str, Launch]()
        driver, overlaps = device.driver, lowered.rendered.overlaps
        names = driver.names
        self.names = names.overlap if overlaps else names.launch, names.encode, names.current
        self.workers = device.multiprocessors * max(int(lowered.report["resident_blocks"]), 1)
        self.function = device.load(lowered.product[0], lowered.rendered.name, lowered.dynamic_shared)
        target = machine.host()
        text = start.text((root or self).lowered, "tl_entry", target, Failures(), only)
        code = cache.default().made(cache.key(target.key, text), lambda: machine.object_code(text, target))
        self.entry, loaded = link(code, "tl_start", "tl_device")
        self._loaded = loaded
        self._start = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 3)(loaded.address("tl_start"))
        self._place = loaded.address("tl_device")
        place = (ctypes.c_int64 * (len(start.FIELDS) + 1)).from_address(self._place)
        place[:] = [device.own, device.multiprocessors, device.ordinal, driver.address(names.current),
                    driver.address(names.set), driver.address(self.names[0]),
                    driver.address(names.encode) if lowered.rendered.maps else 0, self.function.value or 0]

    def suited(self, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
               strides: Sequence[Sequence[int]]) -> Launch:
        """The kernel for a call with these scalars, shapes and strides: this one or, compiled when first needed,
        another of `Lowered.suited`."""
        code = self.lowered.suited(arrays, shapes, strides)
        if code is self.lowered:
            return self
        only = next(name for name, other in start.codes(self.lowered).items() if other is code)
        if only not in self._others:
            self._others[only] = Launch(code, self.device, self.link, only, self)
        return self._others[only]

    def start(self, arrays: Sequence[Any], shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]],
              stream: int) -> None:
        """Launches for the addresses and scalars (NumPy's, in storage form), shapes and strides of all parameters.
        Raises TargetError."""
        places = slots(self.tile.params)
        context = np.zeros(len(places), np.int64)
        for key, at in places.items():
            if key == "workers":
                continue
            what, p, *axis = key
            if what in ("shape", "stride"):
                context[at] = (shapes if what == "shape" else strides)[p][axis[0]]
            else:
                data = np.asarray(arrays[p], np.uint64 if what == "data" else None).tobytes()
                context[at:at + 1].view(np.uint8)[:len(data)] = np.frombuffer(data, np.uint8)
        code = self._start(context.ctypes.data, self._place, stream)
        if code > 0:
            raise self.failure(code)
        if code:
            count = count_programs(self.tile, grid_extents(self.tile, arrays, shapes, self.workers))
            assert code == start.TOO_MANY, code
            widest = self.lowered.exported.widest(self.lowered.rendered.threads)
            raise TargetError(f"`{self.tile.name}` has too many programs", loc=self.tile.loc, got=str(count),
                              needs=f"at most {widest}, or a multiple of a number up to {start.MAX_GRID_Y}",
                              try_="use larger tiles")

    def failure(self, code: int) -> TargetError:
        """What the driver said, from the number of native code."""
        return self.device.driver.error(self.names[code >> start.PLACE], code & (1 << start.PLACE) - 1)
