"""Code of the host's that starts a kernel for a GPU: chooses machine code for a call, counts programs, makes maps of
tensors and calls the driver. Calls from Python run it, and exported libraries hold it.

A device, to this code, is `FIELDS` and then the kernel's functions on it, each in 8 bytes: `Launch` fills them in, and
`runtime/launcher.cpp`.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from llvmlite import ir

from tilelang.backends.clike.rendered import TensorMap
from tilelang.backends.cpu import compile as cpu
from tilelang.backends.cpu.codegen import counting, slots
from tilelang.backends.cpu.launch import PTR, Entry, Failures
from tilelang.backends.cpu.machine import CpuTarget
from tilelang.backends.cpu.numbers import I1, I32, I64
from tilelang.backends.simt.compile import Lowered
from tilelang.ir.cluster import cluster_of
from tilelang.ir.control import MAX_PROGRAMS, Grid
from tilelang.ir.core import Function, Region, TensorType

FIELDS = ("own", "multiprocessors", "ordinal", "current", "set", "launch", "encode")
"""What `current` gives where this device is the thread's, two numbers, and functions of the driver."""
REFUSED, NOT_WHOLE, TOO_MANY = -1, -2, -3
"""What `tl_start` gives where it starts nothing: for other code's arguments and more than `MAX_PROGRAMS`, for grids
that are not made of whole clusters, and for those that no two extents make up."""
FAILED = ("launch", "encode", "current")
PLACE = 11
"""A driver's error is the number of one of those functions, and in so many bits what it gave."""
MAX_GRID_Y = (1 << 16) - 1
_STRIDE = 16
"""Bytes of a stride of one element, which is any that a map can say."""
MAP, MAP_ALIGN = 128, 64
"""Bytes of a map of a tensor among a kernel's arguments, and what its place is a multiple of."""
_RANK = 5
_NUMBERS = 1 + 2 * _RANK
_RUNTIME = Path(__file__).parent / "runtime" / "start.ll"


def codes(lowered: Lowered) -> dict[str, Lowered]:
    """The kernel as "", and "far", the one for tensors whose blocks its windows do not reach, or that its maps cannot
    say, if it has any; "unshared", the one for grids that are not made of whole clusters, if its programs copy for
    each other."""
    out = {"": lowered}
    if lowered.choosy:
        out["far"] = lowered.without_windows
    if lowered.shares:
        out["unshared"] = lowered.unshared
    return out


def text(lowered: Lowered, entry: str, target: CpuTarget, failures: Failures, only: str | None = None) -> str:
    """LLVM IR of the tvm-ffi function `entry` for a kernel, and of `tl_start(ctx, device, stream)`, which gives 0 or
    says why not.

    Without `only` it chooses among all `codes`, on any device, which `tl_ready` gives by its number. With it there is
    one device, `tl_device`, and one code, which is the device's first."""
    needed = {op for grid in lowered.tile.body.ops if isinstance(grid, Grid) for op in (grid, *grid.leading())}
    grid = Function(lowered.tile.name, lowered.tile.params,
                    Region([], [op for op in lowered.tile.body.ops if op in needed]), "tile", lowered.tile.loc)
    module = counting(cpu.Lowered(grid, target).thread, target, cluster_of(lowered.thread, sharing=True))
    _Start(module, lowered, only).emit()
    _Launched(module, entry, lowered, target, failures, only is not None).emit()
    numbers = {name: at for at, name in enumerate(FIELDS)} | {
        f"{name}_failed": at << PLACE for at, name in enumerate(FAILED)} | {"rows": MAX_GRID_Y, "too_many": TOO_MANY}
    runtime = re.sub(r"\{(\w+)\}", lambda found: str(numbers[found[1]]), _RUNTIME.read_text(encoding="utf-8"))
    own = re.sub(r'^declare .*@"tl_(?:go|map)".*$', "", str(module), flags=re.MULTILINE)  # which the runtime defines
    return own + runtime


class _Launched(Entry):
    """Programs on the GPU where the tensors are: on any, or `alone` on the one that the code is for."""

    def __init__(self, module: ir.Module, name: str, lowered: Lowered, target: CpuTarget, failures: Failures,
                 alone: bool) -> None:
        super().__init__(module, name, lowered.tile.params, target, failures, lowered.exported.kind)
        self.alone = alone
        self.device: ir.Value | None = None

    def on(self, device: ir.Value) -> None:
        if self.device is None:
            self.device = device
        else:
            self.require(self.b.icmp_signed("==", device, self.device))

    def layout(self, ctx: ir.Value, i: int, t: TensorType, address: ir.Value,
               sizes: Sequence[tuple[ir.Value, ir.Value]], bits: int) -> tuple[ir.Value, ir.Value]:
        if self.alone and not t.dtype.packed and t.align < 16:  # what is aligned to more has other code
            b, low = self.b, address
            for (extent, stride), adjacent in zip(sizes, t.unit, strict=True):  # see `Argument.align`
                step = extent if adjacent else b.select(b.icmp_signed(">", extent, I64(1)), stride, I64(0))
                low = b.or_(low, b.mul(step, I64(bits // 8)))
            self.require(b.icmp_signed("==", b.and_(low, I64(2 * t.align - 1)), I64(t.align)))
        return super().layout(ctx, i, t, address, sizes, bits)

    def run(self, ctx: ir.Value) -> None:
        b, number = self.b, self.device or I32(0)
        if self.alone:
            place = self.module.globals["tl_device"]
            ordinal = b.load(b.gep(place, [I64(FIELDS.index("ordinal"))], source_etype=I64), typ=I64)
            self.require(b.icmp_signed("==", b.sext(number, I64), ordinal))
        else:
            place = self.call("tl_ready", PTR, number)
            self.unless(b.icmp_unsigned("!=", place, ir.Constant(PTR, None)), lambda: b.ret(I32(-1)))
        stream = self.call("TVMFFIEnvGetStream", PTR, I32(self.kind), number)
        code = b.call(self.module.globals["tl_start"], [ctx, place, stream])
        self.require(b.icmp_signed(">=", code, I64(0)) if self.alone else b.icmp_signed("!=", code, I64(REFUSED)))
        self.unless(b.icmp_signed("==", code, I64(0)), lambda: self._fail(code))
        b.ret(I32(0))

    def _fail(self, code: ir.Value) -> None:
        if self.alone:
            self.throw(self.failures.failed[0], self.letters(self.b.trunc(code, I32)))
        else:
            self.call("tl_failed", ir.VoidType(), code)
            self.b.ret(I32(-1))

    def unless(self, good: ir.Value, otherwise: Callable[[], object]) -> None:
        """Ends with what `otherwise` writes where a condition does not hold."""
        bad, fine = self.fn.append_basic_block("bad"), self.fn.append_basic_block("fine")
        self.b.cbranch(good, fine, bad)
        self.b.position_at_end(bad)
        otherwise()
        self.b.position_at_end(fine)


class _Start:
    """The function `tl_start`."""

    def __init__(self, module: ir.Module, lowered: Lowered, only: str | None) -> None:
        self.module, self.lowered, self.only = module, lowered, only
        self.codes, self.slots = codes(lowered), slots(lowered.tile.params)
        self.fn = ir.Function(module, ir.FunctionType(I64, [PTR, PTR, PTR]), "tl_start")
        self.ctx, self.device, self.stream = self.fn.args
        self.b = ir.IRBuilder(self.fn.append_basic_block("entry"))
        if only is not None:
            self.memory("tl_device", ir.ArrayType(I64, len(FIELDS) + 1))

    def emit(self) -> None:
        b = self.b
        self.put("workers", I64(1))
        self.whole = b.icmp_signed("==", self.call("tl_whole", I64, self.ctx), I64(1)) \
            if "tl_whole" in self.module.globals else I1(1)
        which = self.choice()
        found = self.codes if self.only is None else {self.only: self.codes[self.only]}
        at = {name: I64(list(self.codes).index(name)) for name in found}
        if self.only is not None:
            self.require(b.icmp_signed("==", which, at[self.only]), REFUSED)
        blocks = {name: I64(max(int(code.report["resident_blocks"]), 1)) for name, code in found.items()}
        resident = reduce(lambda rest, name: b.select(b.icmp_signed("==", which, at[name]), blocks[name], rest), found,
                          I64(1))
        self.put("workers", b.mul(resident, b.load(self.place(self.device, FIELDS.index("multiprocessors")), typ=I64)))
        total = self.call("tl_count", I64, self.ctx)
        self.require(b.icmp_signed("<=", total, I64(MAX_PROGRAMS)), REFUSED)
        self.require(b.icmp_signed("!=", total, I64(0)), 0)
        for slot, (name, code) in enumerate(found.items()):
            with b.if_then(b.icmp_signed("==", which, at[name])):
                self.launch(code, len(FIELDS) + slot, total)
        b.ret(I64(REFUSED))

    def choice(self) -> ir.Value:
        """The number of the code for a call, as `Lowered.suited` chooses."""
        out, names = I64(0), list(self.codes)
        if "unshared" in names:
            out = self.b.select(self.whole, out, I64(names.index("unshared")))
        if "far" in names:
            params = self.lowered.tile.params
            shapes, strides = ([[_Number(self.b, self.get((what, p, axis))) for axis in range(v.type.rank)]
                                if isinstance(v.type, TensorType) else [] for p, v in enumerate(params)]
                               for what in ("shape", "stride"))
            fits = _Number(self.b, I1(1)) & self.lowered.fits(shapes, strides)
            out = self.b.select(fits.value, out, I64(names.index("far")))
        return out

    def launch(self, code: Lowered, slot: int, total: ir.Value) -> None:
        """Launches and returns."""
        b, rendered = self.b, code.rendered
        self.require(self.whole if rendered.cluster > 1 else I1(1), NOT_WHOLE)
        numbers = [self.place(self.ctx, at) for at in self.slots.values()]
        places = numbers + [self.map(code, m) for m in rendered.maps]
        parameters = self.stack(ir.ArrayType(PTR, len(places)))
        for n, place in enumerate(places):
            b.store(place, self.place(parameters, n))
        widest = code.exported.widest(rendered.threads) // rendered.cluster
        b.ret(self.call("tl_go", I64, self.device, I64(slot), total, I64(rendered.cluster), I64(widest),
                        I32(rendered.threads), I32(code.dynamic_shared), I1(rendered.overlaps), self.stream,
                        parameters))

    def map(self, code: Lowered, m: TensorMap) -> ir.Value:
        """The place of the map of a tensor, made."""
        b, dt = self.b, self.lowered.tile.params[m.index].dtype
        assert code.exported.map_numbers is not None
        size = dt.storage.itemsize
        kind, permutation = code.exported.map_numbers(size, m.swizzle, m.add and dt.kind == "float")
        extents = [self.get(("shape", m.index, axis)) for axis in m.order]
        strides = [b.select(b.icmp_signed(">", n, I64(1)), b.mul(self.get(("stride", m.index, axis)), I64(size)),
                            I64(_STRIDE)) for n, axis in zip(extents, m.order, strict=True)]
        rest = [I64(0)] * (_RANK - len(m.order))
        numbers, place = self.stack(ir.ArrayType(I64, _NUMBERS)), self.stack(ir.ArrayType(I64, MAP // 8))
        for n, value in enumerate([self.get(("data", m.index)), *extents, *rest, *strides, *rest]):
            b.store(value, self.place(numbers, n))
        at = len(self.module.globals)
        kept = self.memory(f"tl_kept{at}", ir.ArrayType(I64, 1 + _NUMBERS + MAP // 8))
        boxes = self.memory(f"tl_boxes{at}", ir.ArrayType(I32, _RANK), [*m.boxes, *[1] * (_RANK - len(m.order))])
        failed = self.call("tl_map", I64, self.device, kept, place, numbers, boxes, I32(kind), I32(len(m.order)),
                           I32(permutation))
        with b.if_then(b.icmp_signed("!=", failed, I64(0)), likely=False):
            b.ret(failed)
        return place

    def require(self, good: ir.Value, otherwise: int) -> None:
        with self.b.if_then(self.b.not_(good), likely=False):
            self.b.ret(I64(otherwise))

    def call(self, name: str, returns: ir.Type, *args: ir.Value) -> ir.Value:
        fn = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(returns, [a.type for a in args]), name)
        return self.b.call(fn, args)

    def memory(self, name: str, t: ir.Type, value: Sequence[int] | None = None) -> ir.Value:
        """A global variable, of zeros where no value is given."""
        out = ir.GlobalVariable(self.module, t, name)
        out.initializer = ir.Constant(t, value)
        out.type = PTR
        return out

    def stack(self, t: ir.Type) -> ir.Value:
        with self.b.goto_entry_block():
            place = self.b.alloca(t)
        place.type, place.align = PTR, MAP_ALIGN
        return place

    def place(self, array: ir.Value, at: int) -> ir.Value:
        return self.b.gep(array, [I64(at)], source_etype=I64)

    def get(self, key: Any) -> ir.Value:
        return self.b.load(self.place(self.ctx, self.slots[key]), typ=I64)

    def put(self, key: Any, value: ir.Value) -> None:
        self.b.store(value, self.place(self.ctx, self.slots[key]))


class _Number:
    """An i64 or i1 of the code, with operators that mean what they mean on Python's int and bool."""

    def __init__(self, b: ir.IRBuilder, value: ir.Value) -> None:
        self.b, self.value = b, value

    def _with(self, make: Callable[[ir.Value, ir.Value], ir.Value], other: Any) -> _Number:
        x, y = self.value, other.value if isinstance(other, _Number) else \
            ir.Constant(I1 if isinstance(other, bool) else I64, int(other))
        if x.type != y.type:
            x, y = (self.b.zext(v, I64) if v.type == I1 else v for v in (x, y))
        return _Number(self.b, make(x, y))

    def __add__(self, other: Any) -> _Number:
        return self._with(self.b.add, other)

    def __sub__(self, other: Any) -> _Number:
        return self._with(self.b.sub, other)

    def __mul__(self, other: Any) -> _Number:
        return self._with(self.b.mul, other)

    def __and__(self, other: Any) -> _Number:
        return self._with(self.b.and_, other)

    def __or__(self, other: Any) -> _Number:
        return self._with(self.b.or_, other)

    def __rsub__(self, other: Any) -> _Number:
        return self * -1 + other

    def _compare(self, how: str, other: Any) -> _Number:
        return self._with(lambda x, y: self.b.icmp_signed(how, x, y), other)

    def __lt__(self, other: Any) -> _Number:
        return self._compare("<", other)

    def __le__(self, other: Any) -> _Number:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> _Number:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> _Number:
        return self._compare(">=", other)

    def __eq__(self, other: object) -> _Number:  # type: ignore[override]
        return self._compare("==", other)

    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__
