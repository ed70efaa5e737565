"""Steps by which a random function reads elements anywhere, and memory that it writes."""
from __future__ import annotations

from hypothesis import strategies as st

from tests.growing import ATOMIC, COMPARE, EXTENTS, I32, U32, Grower, dtypes
from tilelang.ir import memory
from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype


class MemorySteps(Grower):
    """Loads and stores mean what they do one after the other."""

    def index(self, like: Value | None = None) -> Value:
        """An i32 tile whose elements mostly lie in a small tensor."""
        v = self.emit("cast", self.pick("int", "uint"), dtype=I32)
        if like is not None and like.shape != v.shape:
            v = self.const(self.number(-1, 3), like)
        return self.emit("mod", v, self.const(self.number(1, 9), v)) if self.flag() else v

    def mask(self, like: Value) -> list[Value]:
        """No mask, or one for the elements of `like`, an integer tile."""
        return [self.emit(self.one_of(COMPARE), like, self.like(like))] if self.flag() else []

    def lookup(self) -> Value:
        table = self.ranked(self.any())
        if len(table.shape) > 1:
            table = self.emit("reshape", table, shape=(table.tile.size,))
        return self.emit("lookup", table, self.index())

    def lookup4(self) -> Value:
        table = self.load(dtype(self.one_of(("i8", "u8"))), (self.one_of((16, 32, 64, 256)),))
        return self.emit("lookup4", table, self.emit("cast", self.pick("int", "uint"), dtype=U32))

    def gather(self) -> Value:
        source = self.one_of(self.tensors())
        first = self.index()
        indices = [first, *(self.index(first) for _ in range(source.type.rank - 1))]
        mask = self.mask(first)
        return self.emit("gather", source, *indices, *mask, masked=bool(mask), fill=self.number(0, 1))

    def expand_load(self) -> Value:
        """From the beginning of rows or from elsewhere; words begin where those before end, or anywhere."""
        source = self.one_of(self.tensors())
        rank = self.number(1, source.type.rank)
        bits = self.load(U32, (*(self.one_of(EXTENTS[:5]) for _ in range(rank - 1)), self.number(1, 3)))
        count = self.emit("popcount", bits)
        before = self.emit("scan", count, kind="sum", axis=rank - 1, reverse=False)
        starts = self.emit("sub", before, count) if self.number(0, 3) else self.like(bits)
        axes = tuple(range(source.type.rank))[-rank:]
        offsets = [self.const(self.number(-1, 2)) for _ in range(source.type.rank)]
        return self.emit("expand_load", source, *offsets, bits, starts, axes=axes)

    def scatter(self) -> Value:
        """Different elements go to different places, or what is written depends on the place only."""
        v = self.ranked(self.any())
        if self.flag():
            at = self.index()
            indices, v = [at], self.emit("cast", at, dtype=self.draw(dtypes()))
        else:
            indices = [self.ramp(v.shape, d) for d in self.draw(st.permutations(range(len(v.shape))))]
        mask = self.mask(indices[0])
        target = self.tensor("s", v.dtype, len(indices), "inout")
        self.b.add(memory.Scatter, target, *indices, v, *mask, masked=bool(mask))
        return self.back(target)

    def atomic(self) -> Value:
        """Equal indices only where the order in which they are served shows in old values alone."""
        good = [v for v in self.values if v.dtype.name in ATOMIC and v.shape]
        v = self.one_of(good) if good and self.flag() else \
            self.emit("cast", self.ranked(self.pick("int", "uint")), dtype=dtype(self.one_of(ATOMIC)))
        kind = self.one_of(("add", "max", "min", "cas"))
        others = [self.like(v), v] if kind == "cas" else [v]
        apart = kind == "cas" or v.dtype.kind == "float" or self.flag()
        indices = [self.ramp(v.shape, d) for d in range(len(v.shape))] if apart else [self.index(v)]
        target = self.tensor("t", v.dtype, len(indices), "inout")
        mask = self.mask(indices[0])
        old = self.emit("atomic", target, *indices, *others, *mask, kind=kind, masked=bool(mask))
        return old if (apart or self.old_values) and self.flag() else self.back(target)

    def ramp(self, extents: tuple[int, ...], dim: int) -> Value:
        """The index along `dim`, upwards or downwards, perhaps beyond an edge."""
        n, lo = extents[dim], self.number(-1, 1)
        line = self.emit("arange", start=lo, size=n)
        if self.flag():
            line = self.emit("sub", self.const(n + 1, line), line)
        kept = self.emit("reshape", line, shape=tuple(n if d == dim else 1 for d in range(len(extents))))
        return self.emit("broadcast", kept, shape=extents)

    def back(self, target: Value) -> Value:
        """A block of a tensor that was written before."""
        rank = target.type.rank
        return self.emit("load", target, *[self.const(0)] * rank, shape=(self.one_of(EXTENTS[:6 if rank > 2 else 8]),)
                         * rank, axes=tuple(range(rank)))

    def shared(self) -> Value:
        """A tile that goes through the program's own memory: written there, or copied from a tensor."""
        copied = self.flag()
        dt = self.draw(dtypes(lambda dt: not dt.packed)) if copied else self.any().dtype
        v = self.ranked(self.one_of([v for v in self.values if v.dtype is dt] or [self.any()]))
        extents = tuple(self.one_of(EXTENTS) for _ in range(self.number(1, 2))) if copied else v.shape
        buffer = self.emit("alloc", dtype=dt if copied else v.dtype, shape=extents)
        zeros = [self.const(0)] * len(extents)
        if copied:
            source = self.tensor("c", dt, len(extents), "in")
            self.b.add(memory.CopyAsync, source, *(self.const(self.number(-1, 3)) for _ in extents), buffer,
                       axes=tuple(range(len(extents))))
            self.b.add(memory.Commit)
            self.b.add(memory.Wait)
        else:
            self.b.add(memory.Store, buffer, *zeros, v, axes=tuple(range(len(extents))))
        self.b.add(memory.Barrier)
        at = [self.const(self.number(0, 1)) for _ in extents]
        read = self.emit("load", buffer, *at, shape=extents, axes=tuple(range(len(extents))))
        self.b.add(memory.Barrier)  # before another turn of a loop writes it again
        return read

    def update(self) -> Value:
        """A block that is read, written and read again, at places that may overlap; in a grid a program stays at its
        own."""
        v = self.ranked(self.any())
        known = [p for p in self.tensors() if p.type.writable and p.type.dtype is v.dtype
                 and p.type.rank == len(v.shape)] if not self.ids else []
        offsets, axes = self.place(v.shape)
        target = self.one_of(known) if known and self.flag() else self.tensor("u", v.dtype, len(offsets), "inout")
        if len(offsets) != target.type.rank:
            offsets, axes = [self.const(0)] * target.type.rank, tuple(range(target.type.rank))
        at = self.beside(offsets)

        def place() -> list[Value]:
            return at if self.number(0, 2) else self.beside(offsets)
        fill = self.number(0, 1)
        if self.number(0, 2):
            self.values.append(self.emit("load", target, *place(), shape=v.shape, axes=axes, fill=fill))
            v = self.values[-1] if self.flag() else v
        self.b.add(memory.Store, target, *place(), self.turn(v), axes=axes)
        return self.emit("load", target, *place(), shape=v.shape, axes=axes, fill=fill)
