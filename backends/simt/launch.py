"""Launching a compiled kernel: the driver's argument buffer, prepared once and overwritten where calls differ."""
from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.driver import MAP, MAP_ALIGN, Device
from tilelang.errors import TargetError
from tilelang.ir.core import Function, TensorType, Value
from tilelang.ir.interpreter import count_programs, grid_extents

MAX_GRID_Y = (1 << 16) - 1
SLOT = 8
"""Bytes of the buffer that each parameter takes; a parameter lies in the first of them."""
_FORMATS = {"i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q", "u64": "Q",
            "f16": "e", "f32": "f", "f64": "d"}


KNOWN_MAPS = 1024
"""How many maps a `Launch` remembers."""


class Prepared(NamedTuple):
    """What calls with the same shapes share: the end of the argument buffer, the grid, and for each map of a tensor
    its extents and its strides in bytes."""

    tail: bytes
    grid: tuple[int, int]
    maps: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


class Launch:
    """A kernel on a device. A launch allocates nothing and waits for nothing, so it may be captured in a graph.

    The arguments lie in one buffer, in this order: what every call brings, the pointers and scalars (`head` lists
    their parameters); then what is as `prepare` found it: shapes, strides, the number of workers, and the scalars
    that are `fixed`: those the grid follows from, and those of a dtype that Python cannot write. Maps of tensors lie
    in another, and are made anew where an address or `Prepared` differs from the call before.
    """

    def __init__(self, lowered: Lowered, device: Device) -> None:
        rendered, params = lowered.rendered, lowered.tile.params
        self.lowered, self.tile, self.device, self.rendered = lowered, lowered.tile, device, rendered
        self._others = dict[int, Launch]()
        self.function = device.load(lowered.product[0], rendered.name, lowered.dynamic_shared)
        self.dynamic_shared, self.widest = lowered.dynamic_shared, device.widest(rendered.threads)
        self.workers = device.multiprocessors * max(int(lowered.report["resident_blocks"]), 1)
        tensors = [i for i, p in enumerate(params) if isinstance(p.type, TensorType)]
        needed = behind_grid(self.tile)
        self.fixed = [i for i, p in enumerate(params) if i not in tensors
                      and (p in needed or p.dtype.name not in _FORMATS)]
        self.head = [*tensors, *(i for i in range(len(params)) if i not in tensors and i not in self.fixed)]
        forms = ["Q" if i in tensors else _FORMATS[params[i].dtype.name] for i in self.head]
        self._pack = struct.Struct("<" + "".join(f"{f}{SLOT - struct.calcsize('<' + f)}x" for f in forms)).pack_into
        parameters = [p for p in rendered.parameters if p.kind != "map"]
        self._tail = [p for p in parameters if p.kind != "data" and p.index not in self.head
                      or p.kind in ("shape", "stride", "workers")]
        count = len(parameters)
        self._buffer = (ctypes.c_uint64 * count)()
        self._rest = memoryview(self._buffer).cast("B")[SLOT * len(self.head):]
        start, at = ctypes.addressof(self._buffer), {p: len(self.head) + n for n, p in enumerate(self._tail)}
        places = [start + SLOT * (at[p] if p in at else self.head.index(p.index)) for p in parameters]
        self._map_memory = ctypes.create_string_buffer(MAP * len(rendered.maps) + MAP_ALIGN)
        first = -(-ctypes.addressof(self._map_memory) // MAP_ALIGN) * MAP_ALIGN
        self._map_places = [first + MAP * i for i in range(len(rendered.maps))]
        places += self._map_places
        self._params = (ctypes.c_void_p * len(places))(*places)
        self.fire = self._fire()

    def suited(self, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
               strides: Sequence[Sequence[int]]) -> Launch:
        """The kernel for a call with these scalars, shapes and strides: this one or, compiled when first needed,
        another of `Lowered.suited`."""
        code = self.lowered.suited(arrays, shapes, strides)
        if code is self.lowered:
            return self
        if id(code) not in self._others:
            self._others[id(code)] = Launch(code, self.device)
        return self._others[id(code)]

    def prepare(self, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
                strides: Sequence[Sequence[int]]) -> Prepared:
        """For the scalars (in storage form, as arguments of `grid_extents`), shapes and strides of all parameters."""
        tail = b""
        for p in self._tail:
            if p.kind == "value":
                data = np.asarray(arrays[p.index]).tobytes()
            else:
                data = struct.pack("<q", self.workers if p.kind == "workers" else
                                   (shapes if p.kind == "shape" else strides)[p.index][p.axis])
            tail += data.ljust(SLOT, b"\0")
        extents = grid_extents(self.tile, arrays, shapes, self.workers)
        sizes = [self.tile.params[m.index].dtype.storage.itemsize for m in self.rendered.maps]
        maps = tuple((tuple(shapes[m.index][d] for d in m.order), tuple(strides[m.index][d] * size for d in m.order))
                     for m, size in zip(self.rendered.maps, sizes, strict=True))
        cluster = self.rendered.cluster
        x, y = _split(count_programs(self.tile, extents) // cluster, self.widest // cluster, self.tile)
        return Prepared(tail, (cluster * x, y), maps)

    def _mapper(self) -> Callable[[Prepared, Sequence[Any]], None]:
        """Puts the maps of a call where the driver takes them from."""
        known: dict[tuple[Any, ...], bytes] = {}
        rows = [(m, self.head.index(m.index), self.tile.params[m.index].dtype.storage.itemsize, place)
                for m, place in zip(self.rendered.maps, self._map_places, strict=True)]
        last: list[Any] = [None] * len(rows)

        def put(prepared: Prepared, head: Sequence[Any]) -> None:
            for i, (m, at, size, place) in enumerate(rows):
                key = (i, prepared.maps[i], head[at])
                if key == last[i]:
                    continue
                if key not in known:
                    if len(known) >= KNOWN_MAPS:
                        known.clear()
                    floats = m.add and self.tile.params[m.index].dtype.kind == "float"
                    known[key] = self.device.tensor_map(head[at], size, *prepared.maps[i], m.boxes, m.swizzle, floats)
                ctypes.memmove(place, known[key], MAP)
                last[i] = key
        return put

    def _fire(self) -> Callable[[Prepared, Sequence[Any], int], None]:
        """`fire(prepared, head, stream)` launches with the addresses and numbers of `self.head`. It raises
        struct.error or OverflowError, before anything has run, for a number that its dtype must first convert.

        A closure: its names are found faster than attributes, of which a call would look up twenty.
        """
        device, names, library = self.device, self.device.driver.names, self.device.driver.library
        get_current, launch_kernel = getattr(library, names.current), getattr(library, names.launch)
        current, own, where, last_stream = device.cell(), device.own, ctypes.c_void_p(), 0  # one object for all calls
        current_at, lock = ctypes.byref(current), threading.Lock()  # the driver has copied the buffer when it returns
        pack, buffer, rest, params, function = self._pack, self._buffer, self._rest, self._params, self.function
        threads, shared_bytes = self.rendered.threads, self.dynamic_shared
        last: Prepared | None = None
        put_maps = self._mapper() if self.rendered.maps else None

        def start_plain(x: int, y: int) -> int:
            return int(launch_kernel(function, x, y, 1, threads, 1, 1, shared_bytes, where, params, None))
        start = device.overlapping(function, threads, shared_bytes, where, params) if self.rendered.overlaps else \
            start_plain

        def fire(prepared: Prepared, head: Sequence[Any], stream: int) -> None:
            nonlocal last, last_stream
            x, y = prepared.grid
            if not x:
                return
            with lock:
                pack(buffer, 0, *head)
                if prepared is not last:
                    rest[:] = prepared.tail
                    last = prepared
                if put_maps is not None:
                    put_maps(prepared, head)
                if stream != last_stream:
                    where.value = last_stream = stream
                get_current(current_at)
                if current.value == own:
                    code = start(x, y)
                else:
                    with device.current():
                        code = start(x, y)
            if code:
                raise device.driver.error(names.launch, code)
        return fire


def _split(programs: int, widest: int, fn: Function) -> tuple[int, int]:
    """The grid's two extents: their product is the number of programs."""
    y = max(-(-programs // widest), 1)
    while programs % y and y <= MAX_GRID_Y:
        y += 1
    if y > MAX_GRID_Y:
        raise TargetError(f"`{fn.name}` has too many programs", loc=fn.loc, needs=f"at most {widest}, or a "
                          f"multiple of a number up to {MAX_GRID_Y}", got=str(programs), try_="use larger tiles")
    return programs // y, y


def behind_grid(fn: Function) -> set[Value]:
    """What the number of programs depends on."""
    found: set[Value] = set()
    pending = [v for op in fn.body.ops if op.name == "grid" for v in op.operands]
    while pending:
        v = pending.pop()
        if v not in found:
            found.add(v)
            pending += v.owner.operands if v.owner is not None else []
    return found
