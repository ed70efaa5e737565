"""Random TILE functions over the op and dtype tables, with ragged blocks: what the differential fuzzer runs."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tilelang.ir import control, memory, reduction, shape
from tilelang.ir.core import Builder, Function, Op, Region, TensorType, Value
from tilelang.ir.dtypes import DType, dtype

EXTENTS = (1, 2, 3, 5, 8, 16, 17, 33)
STORED = [
    dtype(n)
    for n in "i1 u3 i4 u4 i8 u8 i16 i32 u32 i64 s2 ternary f4e2m1 f6e3m2 f8e4m3 f8e5m2 e8m0 f16 bf16 f32 f64".split()
]
COMPUTED = [d for d in STORED if d.arithmetic and d.kind != "bool"]
UNARY_FLOAT = (
    "exp",
    "exp2",
    "log",
    "log2",
    "sqrt",
    "rsqrt",
    "sin",
    "cos",
    "tanh",
    "erf",
    "sigmoid",
    "floor",
    "ceil",
    "round",
    "trunc",
)
BINARY = ("add", "sub", "mul", "min", "max")
BINARY_INTEGER = ("and", "or", "xor", "shl", "shr", "floordiv", "mod")
ATOMIC = ("i32", "u32", "i64", "u64")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
I32 = dtype("i32")


@dataclass
class Maker:
    """Grows one function; `values` are the tiles made so far. `old_values`: what atomics give may be used, though it
    depends on the order in which equal indices are served."""

    draw: Any
    old_values: bool = True
    body: Region = field(default_factory=Region)
    params: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b = Builder(self.body)

    def emit(self, name: str, *operands: Value, **attrs: Any) -> Value:
        return self.b.emit(Op.registry[name], *operands, **attrs)

    def pick(self, *kinds: str) -> Value:
        """A tile of one of the kinds; where there is none, a cast of any."""
        good = [v for v in self.values if v.dtype.kind in kinds and v.dtype.arithmetic]
        if good:
            return self.draw(st.sampled_from(good))
        target = "f32" if "float" in kinds else "i32" if "int" in kinds else "i1"
        return self.emit("cast", self.draw(st.sampled_from(self.values)), dtype=dtype(target))

    def like(self, v: Value) -> Value:
        """Another tile of the same shape and dtype: an existing one, or a constant."""
        good = [w for w in self.values if w.type == v.type]
        if self.draw(st.booleans()):
            return self.draw(st.sampled_from(good)) if good else v
        value = self.draw(st.integers(0, 3))
        return self.emit("broadcast", self.emit("const", value=value, dtype=v.dtype), shape=v.shape)

    # -- steps --------------------------------------------------------------------------------------------------------
    def unary(self) -> Value:
        return self.emit(self.draw(st.sampled_from(UNARY_FLOAT)), self.pick("float"))

    def sign(self) -> Value:
        return self.emit(self.draw(st.sampled_from(("neg", "abs"))), self.pick("float", "int"))

    def binary(self) -> Value:
        v = self.pick("float", "int", "uint")
        return self.emit(self.draw(st.sampled_from(BINARY)), v, self.like(v))

    def integer(self) -> Value:
        v = self.pick("int", "uint")
        return self.emit(self.draw(st.sampled_from(BINARY_INTEGER)), v, self.like(v))

    def bits(self) -> Value:
        return self.emit(self.draw(st.sampled_from(("not", "popcount"))), self.pick("int", "uint"))

    def select(self) -> Value:
        v = self.pick("float", "int", "uint")
        test = self.emit(self.draw(st.sampled_from(COMPARE)), v, self.like(v))
        return self.emit("where", test, v, self.like(v))

    def cast(self) -> Value:
        v = self.draw(st.sampled_from(self.values))
        return self.emit("cast", v, dtype=self.draw(st.sampled_from(STORED)))

    def reduce(self) -> Value:
        v = self.pick("float", "int", "uint")
        if not v.shape or v.dtype.bits < 32:
            return self.sign()
        kind = self.draw(st.sampled_from(("sum", "max", "min")))
        axis = self.draw(st.integers(0, len(v.shape) - 1))
        out = self.emit("reduce", v, kind=kind, axis=axis)
        kept = self.emit("reshape", out, shape=tuple(1 if i == axis else e for i, e in enumerate(v.shape)))
        return self.emit("broadcast", kept, shape=v.shape)

    def position(self) -> Value:
        v = self.pick("float", "int", "uint")
        if not v.shape:
            return v
        axis = self.draw(st.integers(0, len(v.shape) - 1))
        return self.emit("arg_reduce", v, kind=self.draw(st.sampled_from(("max", "min"))), axis=axis)

    def scan(self) -> Value:
        v = self.pick("float", "int")
        if not v.shape or v.dtype.bits < 32:
            return v
        return self.emit("scan", v, kind=self.draw(st.sampled_from(("sum", "max"))),
                         axis=self.draw(st.integers(0, len(v.shape) - 1)), reverse=self.draw(st.booleans()))

    def rearrange(self) -> Value:
        v = self.draw(st.sampled_from(self.values))
        if not v.shape:
            return v
        match self.draw(st.integers(0, 3)):
            case 0:
                return self.emit("permute", v, order=tuple(self.draw(st.permutations(range(len(v.shape))))))
            case 1:
                return self.emit("reshape", v, shape=(v.tile.size,))
            case 2:
                starts = tuple(self.draw(st.integers(0, e - 1)) for e in v.shape)
                sizes = tuple(self.draw(st.integers(1, e - s)) for e, s in zip(v.shape, starts, strict=True))
                return self.emit("slice", v, starts=starts, shape=sizes, steps=(1,) * len(sizes))
            case _:
                return self.emit("concat", v, v, axis=self.draw(st.integers(0, len(v.shape) - 1)))

    def sort(self) -> Value:
        v = self.pick("float", "int", "uint")
        if not v.shape or max(v.shape) > 17:
            return v
        op = self.b.add(reduction.Sort, v, axis=self.draw(st.integers(0, len(v.shape) - 1)),
                        descending=self.draw(st.booleans()))
        return op.results[self.draw(st.integers(0, 1))]

    def dot(self) -> Value:
        a = self.draw(st.sampled_from([v for v in self.values if len(v.shape) == 2] or self.values))
        if len(a.shape) != 2 or a.dtype.kind in ("codebook", "scale") or a.dtype.name in ("f64", "i64", "u32"):
            return a
        same = [v for v in self.values if len(v.shape) == 2 and v.dtype.kind not in ("codebook", "scale")
                and v.dtype.name not in ("f64", "i64", "u32") and v.shape[0] == a.shape[1]]
        other = self.draw(st.sampled_from(same)) if same else self.emit("permute", a, order=(1, 0))
        return self.emit("dot", a, other, dtype=dtype(reduction.dot_dtype(a.dtype, other.dtype)))

    def product(self) -> Value:
        """A matrix product over blocks of k: loads that feed a dot alone, in a loop of some stages, maybe under a
        condition, maybe transposed."""
        dt = dtype(self.draw(st.sampled_from(("f16", "bf16", "i8", "f32", "u8"))))
        m, n, k = (self.draw(st.sampled_from((8, 16, 33))) for _ in range(3))
        turned, halved = self.draw(st.booleans()), self.draw(st.booleans())
        a = self.tensor(f"a{len(self.params)}", dt, 2, "in")
        c = self.tensor(f"b{len(self.params)}", dt, 2, "in")
        acc = dtype(reduction.dot_dtype(dt, dt))
        zero, step, two = (self.emit("const", value=x, dtype=I32) for x in (0, k, 2))
        start = self.emit("broadcast", self.emit("const", value=0, dtype=acc), shape=(m, n))
        end = self.emit("dim", a, axis=1)
        i, total = Value(zero.type), Value(start.type)
        body = Builder(Region([i, total]))

        def multiply(b: Builder) -> Value:
            x = b.emit(memory.Load, a, zero, i, shape=(m, k), axes=(0, 1))
            y = b.emit(memory.Load, c, *((zero, i) if turned else (i, zero)), shape=(n, k) if turned else (k, n),
                       axes=(0, 1))
            return b.emit(reduction.Dot, x, b.emit(shape.Permute, y, order=(1, 0)) if turned else y, total, dtype=acc)
        if halved:
            then, other = Builder(Region()), Builder(Region())
            then.add(control.Yield, multiply(then))
            other.add(control.Yield, total)
            odd = body.emit(Op.registry["mod"], body.emit(Op.registry["floordiv"], i, step), two)
            new = body.add(control.If, body.emit(Op.registry["eq"], odd, zero),
                           regions=[then.region, other.region]).result
        else:
            new = multiply(body)
        body.add(control.Yield, new)
        return self.b.add(control.For, zero, end, step, start, regions=[body.region],
                          stages=self.draw(st.integers(1, 3))).result

    def loop(self) -> Value:
        """A few turns of x = f(x), with the original read inside."""
        v = self.pick("float", "int", "uint")
        i, x = Value(self.emit("const", value=0, dtype=I32).type), Value(v.type)
        inner = Builder(Region([i, x]))
        op = self.draw(st.sampled_from(("add", "min", "max")))
        inner.add(control.Yield, inner.emit(Op.registry[op], x, v))
        bounds = [self.emit("const", value=n, dtype=I32) for n in (0, self.draw(st.integers(0, 3)), 1)]
        return self.b.add(control.For, *bounds, v, regions=[inner.region]).result

    def until(self) -> Value:
        """x = f(x) while a counter is small and, for integers, some element is."""
        v = self.pick("float", "int", "uint")
        i, one, limit = (self.emit("const", value=n, dtype=I32) for n in (0, 1, self.draw(st.integers(0, 3))))
        small = self.emit("broadcast", self.emit("const", value=5, dtype=v.dtype), shape=v.shape)
        test, body = (Builder(Region([Value(i.type), Value(v.type)])) for _ in range(2))
        (count, x), (j, y) = test.region.args, body.region.args
        more = test.emit(Op.registry["lt"], count, limit)
        if v.dtype.kind != "float" and v.shape and self.draw(st.booleans()):
            flat = test.emit(shape.Reshape, test.emit(Op.registry["lt"], x, small), shape=(v.tile.size,))
            more = test.emit(Op.registry["and"], more, test.emit(reduction.Reduce, flat, kind="any", axis=0))
        test.add(control.Yield, more)
        step = body.emit(Op.registry[self.draw(st.sampled_from(("add", "min", "max")))], y, self.like(v))
        body.add(control.Yield, body.emit(Op.registry["add"], j, one), step)
        return self.b.add(control.While, i, v, regions=[test.region, body.region]).results[1]

    # -- elements anywhere --------------------------------------------------------------------------------------------
    def index(self, like: Value | None = None) -> Value:
        """An i32 tile whose elements mostly lie in a small tensor."""
        v = self.emit("cast", self.pick("int", "uint"), dtype=I32)
        if like is not None and like.shape != v.shape:
            v = self.emit("broadcast", self.emit("const", value=self.draw(st.integers(-1, 3)), dtype=I32),
                          shape=like.shape)
        if self.draw(st.booleans()):
            limit = self.emit("const", value=self.draw(st.integers(1, 9)), dtype=I32)
            v = self.emit("mod", v, self.emit("broadcast", limit, shape=v.shape))
        return v

    def mask(self, like: Value) -> list[Value]:
        """No mask, or one for the elements of `like`, an integer tile."""
        if self.draw(st.booleans()):
            return []
        return [self.emit(self.draw(st.sampled_from(COMPARE)), like, self.like(like))]

    def lookup(self) -> Value:
        table = self.draw(st.sampled_from([v for v in self.values if v.shape]))
        if len(table.shape) > 1:
            table = self.emit("reshape", table, shape=(table.tile.size,))
        return self.emit("lookup", table, self.index())

    def gather(self) -> Value:
        source = self.draw(st.sampled_from([p for p in self.params if p.type.mode == "in"]))
        first = self.index()
        indices = [first, *(self.index(first) for _ in range(source.type.rank - 1))]
        mask = self.mask(first)
        return self.emit("gather", source, *indices, *mask, masked=bool(mask), fill=self.draw(st.integers(0, 1)))

    def scatter(self) -> Value:
        """Different elements go to different places, or what is written depends on the place only."""
        v = self.draw(st.sampled_from(self.values))
        if not v.shape:
            return v
        if self.draw(st.booleans()):
            at = self.index()
            indices, v = [at], self.emit("cast", at, dtype=self.draw(st.sampled_from(STORED)))
        else:
            indices = [self.ramp(v.shape, d) for d in self.draw(st.permutations(range(len(v.shape))))]
        mask = self.mask(indices[0])
        target = self.tensor(f"s{len(self.params)}", v.dtype, len(indices), "inout")
        self.b.add(memory.Scatter, target, *indices, v, *mask, masked=bool(mask))
        return self.back(target)

    def atomic(self) -> Value:
        at = self.index()
        good = [v for v in self.values if v.shape == at.shape and v.dtype.name in ATOMIC]
        v = self.draw(st.sampled_from(good)) if good else self.emit("cast", at, dtype=dtype("i64"))
        target = self.tensor(f"t{len(self.params)}", v.dtype, 1, "inout")
        mask = self.mask(at)
        old = self.emit("atomic", target, at, v, *mask, kind=self.draw(st.sampled_from(("add", "max", "min"))),
                        masked=bool(mask))
        return old if self.old_values and self.draw(st.booleans()) else self.back(target)

    def ramp(self, extents: tuple[int, ...], dim: int) -> Value:
        """The index along `dim`, upwards or downwards, perhaps beyond an edge."""
        n, lo = extents[dim], self.draw(st.integers(-1, 1))
        line = self.emit("arange", start=lo, size=n)
        if self.draw(st.booleans()):
            top = self.emit("broadcast", self.emit("const", value=n + 1, dtype=I32), shape=(n,))
            line = self.emit("sub", top, line)
        kept = self.emit("reshape", line, shape=tuple(n if d == dim else 1 for d in range(len(extents))))
        return self.emit("broadcast", kept, shape=extents)

    def back(self, target: Value) -> Value:
        """A block of a tensor that was written before."""
        rank = target.type.rank
        return self.emit("load", target, *self.zeros(rank), shape=(self.draw(st.sampled_from(EXTENTS)),) * rank,
                         axes=tuple(range(rank)))

    STEPS = ("unary", "sign", "binary", "integer", "bits", "select", "cast", "reduce", "position", "scan", "rearrange",
             "sort", "dot", "product", "loop", "until", "lookup", "gather", "scatter", "atomic")

    # -- ends ---------------------------------------------------------------------------------------------------------
    def tensor(self, name: str, dt: DType, rank: int, mode: str) -> Value:
        dims = tuple(f"{name}{d}" for d in range(rank))
        unit = (False,) * (rank - 1) + (dt.packed or self.draw(st.booleans()),)
        param = Value(TensorType(dt, dims, mode, unit), name)
        self.params.append(param)
        return param

    def zeros(self, rank: int) -> list[Value]:
        return [self.emit("const", value=0, dtype=I32)] * rank


@st.composite
def functions(draw: Any, steps: int = 8, old_values: bool = True) -> Function:
    """A function that loads one or two tiles, computes, and stores up to three results."""
    m = Maker(draw, old_values)
    for i in range(draw(st.integers(1, 2))):
        block = tuple(draw(st.lists(st.sampled_from(EXTENTS), min_size=1, max_size=2)))
        source = m.tensor(f"x{i}", draw(st.sampled_from(STORED)), len(block), "in")
        m.values.append(m.b.emit(memory.Load, source, *m.zeros(len(block)), shape=block,
                                 axes=tuple(range(len(block)))))
    for _ in range(draw(st.integers(1, steps))):
        v = getattr(m, draw(st.sampled_from(Maker.STEPS)))()
        if v.tile.size <= 4096 and v not in m.values:
            m.values.append(v)
    results = [v for v in m.values if v.shape]
    for i in range(draw(st.integers(1, 3))):
        v = results[-1 - i % len(results)]
        out = m.tensor(f"y{i}", v.dtype, len(v.shape), "out")
        m.b.add(memory.Store, out, *m.zeros(len(v.shape)), v, axes=tuple(range(len(v.shape))))
    return Function("fuzzed", m.params, m.body)


