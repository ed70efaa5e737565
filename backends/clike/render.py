"""THREAD to C-family text: the kernel that CUDA, HIP and the emulator compile.

The text includes one header, `tl.h`, and uses nothing but its `tl::` functions and TL_ macros. Every operation that
touches memory or other threads carries its number, `tl::op(n)`; `Rendered.ops` tells which operation that is.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilelang.backends.clike.bulk import Bulk
from tilelang.backends.clike.expressions import (
    c_string,
    c_type,
    literal,
    memory_type,
    print_form,
    unary_or_infix,
    wrap,
)
from tilelang.backends.clike.matrix import Matrix
from tilelang.backends.clike.programs import Programs
from tilelang.backends.clike.rendered import Rendered, c_name, parameters
from tilelang.backends.simt.facts import chunk
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir.cluster import cluster_of, uses
from tilelang.ir.control import overruns, pieces
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, Value
from tilelang.ir.interpreter import Frame


def render(fn: Function, title: str, shared_bytes: int, target: SimtTarget) -> Rendered:
    """The text of a THREAD function. Raises TargetError for an operation without a form."""
    return _Renderer(fn, target).run(title, shared_bytes)


class _Renderer(Bulk, Matrix, Programs):
    # -- the function -------------------------------------------------------------------------------------------------
    def run(self, title: str, shared_bytes: int) -> Rendered:
        threads = next(op.attrs["count"] for op in self.fn.body.ops if op.name == "thread_id")
        threads += sum(op.attrs["producers"] for op in self.fn.body.ops if op.name == "roles") * self.target.warp
        args = []
        for p in parameters(self.fn, self.maps):
            if p.kind == "workers":
                args.append("tl::i32 workers")
                continue
            if p.kind == "map":
                args.append(f"TL_TENSOR_MAP {self.map_name(self.maps[p.index])}")
                continue
            v = self.fn.params[p.index]
            name = self.name(v)
            if p.kind == "data":
                assert isinstance(v.type, TensorType)
                const = "" if v.type.writable else "const "
                args.append(f"tl::gptr<{const}{memory_type(v)}> {name}")
            elif p.kind == "value":
                args.append(f"{c_type(v.dtype)} {name}")
            else:
                args.append(f"tl::i64 {name}_{'n' if p.kind == 'shape' else 's'}{p.axis}")
        name = f"{c_name(self.fn.name)}_kernel"
        self.region(self.fn.body)
        groups = ["#define TL_GROUPS"] if any(op.name == "group_mma" for op in self.fn.walk()) else []
        groups += ["#define TL_BULK"] if self.maps else []
        cluster = math.prod(cluster_of(self.fn, sharing=True))
        groups += [f"#define TL_CLUSTER {cluster}"] if uses(self.fn) or cluster > 1 else []
        groups += ["#define TL_ROLES"] if any(op.name == "roles" for op in self.fn.body.ops) else []
        head = [f"// {title}", f"#define TL_WARP {self.target.warp}", *groups, '#include "tl.h"', "",
                f"TL_KERNEL({name}, {threads})({wrap(args)}) {{"]
        if shared_bytes:
            head.append(f"  TL_SHARED(smem, {shared_bytes});")
        text = "\n".join([*head, *self.lines, "}", f"TL_EXPORT({name})", ""])
        overlaps = any(op.name == "wait_previous" for op in self.fn.body.ops)
        return Rendered(text, name, threads, shared_bytes, parameters(self.fn, self.maps), tuple(self.ops),
                        self.target.ports, self.maps, overlaps, cluster)

    def region(self, region: Region) -> None:
        for op in region.ops:
            if op.name == "yield":
                continue
            if op.loc is not None and op.loc != self.loc and op.name not in ("const", "const_tile", "alloc"):
                source = op.loc.source_line().strip()
                if self.loc is None or (op.loc.file, op.loc.line) != (self.loc.file, self.loc.line):
                    self.line(f"// {op.loc.file.rsplit('/', 1)[-1]}:{op.loc.line}  {source}".rstrip("\\"))
                self.loc = op.loc
            rule = getattr(self, f"_{op.name}", None)
            if rule is not None:
                rule(op)
            elif isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast):
                self._elementwise(op)
            else:
                raise TargetError(f"`{op.name}` has no form in C text", loc=op.loc, needs="a lowered operation",
                                  got=op.name, try_="report this: a pass should have rewritten it")

    def _elementwise(self, op: Op) -> None:
        if not op.result.shape:
            self.define(op.result, unary_or_infix(op, [self.scalar(v) for v in op.operands]))
            return
        if self.target.two_f32 and op.result.dtype.name == "f32" and op.name in ("add", "sub", "mul", "fma"):
            self.define(op.result, f"tl::{op.name}({', '.join(map(self.vector, op.operands))})")
            return
        name = self.declare(op.result)
        value = unary_or_infix(op, [self.lane(v, "i") for v in op.operands])
        each = self.each_too if self.target.registers else self.each
        each(op.result.shape[0], f"{name}[i] = {value};")

    # -- values -------------------------------------------------------------------------------------------------------
    def _const(self, op: Op) -> None:
        """Constants stand where they are used."""

    def _const_tile(self, op: Op) -> None:
        values = op.eval(Frame((), 1, print))
        items = ", ".join(literal(v, op.result.dtype) for v in values)
        self.define(op.result, f"{{{items}}}")

    def _arange(self, op: Op) -> None:
        name, start = self.declare(op.result), op.attrs["start"]
        self.each(op.result.shape[0], f"{name}[i] = i + {start};" if start else f"{name}[i] = i;")

    def _broadcast(self, op: Op) -> None:
        """Used lane by lane, never stored."""

    def _extract(self, op: Op) -> None:
        self.define(op.result, self.lane(op.operands[0], str(op.attrs["lane"])))

    def _take(self, op: Op) -> None:
        items = ", ".join(self.lane(op.operands[0], str(i)) for i in op.attrs["lanes"])
        self.define(op.result, f"{{{items}}}")

    def _recast(self, op: Op) -> None:
        v = op.operands[0]
        self.define(op.result, f"tl::recast<{c_type(op.result.dtype)}>({self.vector(v)})")

    def _piece(self, op: Op) -> None:
        self.define(op.result, f"tl::piece_{op.result.dtype.name}({self.vector(op.operands[0])})")

    def _fma_halves(self, op: Op) -> None:
        args = ", ".join(self.lane(v, "i") for v in op.operands)
        self.each(op.result.shape[0], f"{self.declare(op.result)}[i] = tl::fma_halves({args});")

    def _mad_halves(self, op: Op) -> None:
        args = ", ".join(self.lane(v, "i") for v in op.operands)
        self.each(op.result.shape[0], f"{self.declare(op.result)}[i] = tl::mad_halves<{op.attrs['factor']}>({args});")

    def _shift_halves(self, op: Op) -> None:
        word, how = self.lane(op.operands[0], "i"), "tl::i16" if op.attrs["signed"] else "tl::u16"
        self.each(op.result.shape[0],
                  f"{self.declare(op.result)}[i] = tl::shift_halves<{how}>({word}, {op.attrs['by']});")

    def _odd_bytes(self, op: Op) -> None:
        word = self.lane(op.operands[0], "i")
        self.each(op.result.shape[0], f"{self.declare(op.result)}[i] = tl::odd_bytes({word});")

    def _slice(self, op: Op) -> None:
        (start,), (n,), (step,) = op.attrs["starts"], op.attrs["shape"], op.attrs["steps"]
        items = ", ".join(self.lane(op.operands[0], str(start + i * step)) for i in range(n))
        self.define(op.result, f"{{{items}}}")

    def _concat(self, op: Op) -> None:
        items = ", ".join(self.lane(v, str(i)) for v in op.operands for i in range(v.shape[0]))
        self.define(op.result, f"{{{items}}}")

    def _reduce(self, op: Op) -> None:
        (x,), kind = op.operands, op.attrs["kind"]
        join = {"all": "&", "any": "|"}[kind]
        self.define(op.result, f" {join} ".join(self.lane(x, str(i)) for i in range(x.shape[0])))

    def _thread_id(self, op: Op) -> None:
        self.define(op.result, "tl::thread()")

    def _num_workers(self, op: Op) -> None:
        self.define(op.result, "workers")

    def _dim(self, op: Op) -> None:
        memory, axis = op.operands[0], op.attrs["axis"]
        text = str(memory.type.shape[axis]) if isinstance(memory.type, BufferType) else \
            f"(tl::i32){self.name(memory)}_n{axis}"
        self.define(op.result, text)

    def _stride(self, op: Op) -> None:
        self.define(op.result, f"{self.name(op.operands[0])}_s{op.attrs['axis']}")

    # -- memory -------------------------------------------------------------------------------------------------------
    def _alloc(self, op: Op) -> None:
        t, layout = memory_type(op.result), op.attrs["layout"]
        size = layout.size if layout is not None else math.prod(op.attrs["shape"])
        self.line(f"const tl::sptr<{t}> {self.name(op.result)} = tl::shared<{t}>(smem, {op.attrs['offset']}, {size});")

    def _block(self, op: Op) -> None:
        memory, offset = op.operands
        assert isinstance(memory.type, BufferType)
        kind, make = ("srow", "row") if op.attrs["kept"] else \
            ("rptr" if memory.type.space == "cluster" else "sptr", "block")
        self.line(f"const tl::{kind}<{memory_type(memory)}> {self.name(op.result)} = "
                  f"tl::{make}({self.name(memory)}, (int){self.scalar(offset)});")

    def _window(self, op: Op) -> None:
        memory, start, extent = op.operands
        self.line(f"const auto {self.name(op.result)} = "
                  f"tl::window_of({self.name(memory)}, {self.scalar(start)}, {self.scalar(extent)});")

    def _ld(self, op: Op) -> None:
        memory, offset, *mask = op.operands
        lanes, dt = op.attrs["lanes"], op.result.dtype
        extra = "".join(f", {self.scalar(m)}" for m in mask)
        where = f"{self.address(memory, offset)}{extra}, {self.number(op)}"
        if isinstance(memory.type, TensorType) and dt.packed:
            where = f"{self.address(memory, offset)}{extra or ', true'}, {self.number(op)}"
            self.ops.pop()
            if lanes is None:
                self.define(op.result, self._code(f"tl::ld_bits<{dt.bits}>({where})", dt))
                return
            codes, out = self.fresh("codes"), self.declare(op.result)
            self.line(f"const auto {codes} = tl::ld_codes<{dt.bits}, {lanes}, {chunk(memory.type, lanes)}>({where});")
            self.each(lanes, f"{out}[i] = {self._code(f'{codes}[i]', dt)};")
        elif lanes is None:
            value = f"tl::ld<1>({where})[0]"
            self.define(op.result, f"{value} != 0" if dt.kind == "bool" else value)
        elif dt.kind == "bool":
            raw = f"{self.name(op.result)}_raw"
            self.line(f"const tl::vec<tl::u8, {lanes}> {raw} = tl::ld<{lanes}>({where});")
            self.each(lanes, f"{self.declare(op.result)}[i] = {raw}[i] != 0;")
        else:
            self.define(op.result, f"tl::ld<{lanes}>({where})")

    def _code(self, bits: str, dt: Any) -> str:
        return f"tl::wrap<{c_type(dt)}, {dt.bits}>({bits})"

    def _st(self, op: Op) -> None:
        memory, offset, value, *mask = op.operands
        extra = "".join(f", {self.scalar(m)}" for m in mask)
        dt, n = value.dtype, value.shape[0] if value.shape else 1
        t = memory_type(memory)
        if isinstance(memory.type, TensorType) and dt.packed:
            for i in range(n):
                at = self.scalar(offset) + (f" + {i * dt.bits}" if i else "")
                code = f"(tl::code<{dt.bits}>){self.lane(value, str(i))}"
                self.line(f"tl::st_bits<{dt.bits}>({self.name(memory)}, {at}, {code}"
                          f"{extra or ', true'}, {self.number(op)});")
            return
        items = ", ".join(f"({t}){self.lane(value, str(i))}" if dt.kind == "bool" else self.lane(value, str(i))
                          for i in range(n))
        whole = self.vector(value) if value.shape and dt.kind != "bool" else f"tl::vec<{t}, {n}>{{{items}}}"
        self.line(f"tl::st<{n}>({self.address(memory, offset)}, {whole}{extra}, {self.number(op)});")

    def _atomic_rmw(self, op: Op) -> None:
        memory, offset, *args = op.operands
        values = ", ".join(map(self.scalar, args)) + ("" if op.attrs["masked"] else ", true")
        dt, kind = op.result.dtype, op.attrs["kind"]
        name = f"{kind}_{dt.name}" if dt.kind == "float" and dt.bits == 16 and kind != "cas" else kind
        self.define(op.result, f"tl::atomic_{name}({self.address(memory, offset)}, {values}, {self.number(op)})")

    def _st_async(self, op: Op) -> None:
        buffer, at, tensor, offset, *mask = op.operands
        extra = self.scalar(mask[0]) if mask else "true"
        self.line(f"tl::cp_async<{op.attrs['lanes']}>({self.address(buffer, at)}, {self.address(tensor, offset)}, "
                  f"{extra}, {self.number(op)});")

    def _commit(self, op: Op) -> None:
        self.line(f"tl::{'group' if op.attrs['products'] else 'cp'}_commit({self.number(op)});")

    def _warp(self, op: Op) -> None:
        self.define(op.result, "tl::warp()")

    def _dma(self, op: Op) -> None:
        buffer, first, window, offset, *mask = op.operands
        extra = f"{self.scalar(mask[0])}, " if mask else "true, "
        self.line(f"tl::dma<{op.attrs['lanes']}>({self.address(buffer, first)}, {self.address(window, offset)}, "
                  f"{extra}{self.number(op)});")

    def _wait(self, op: Op) -> None:
        number, count = self.number(op), op.attrs["operations"]
        name = "wait_operations" if count is not None else "group_wait" if op.attrs["products"] else "cp_wait"
        self.line(f"tl::{name}<{op.attrs['pending'] if count is None else count}>({number});")
        for v in op.operands:
            self.line(f"tl::arrived({self.name(v)}, {number});")

    def _fence(self, op: Op) -> None:
        for v, result in zip(op.operands, op.results, strict=True):
            self.line(f"{self.type(result)} {self.name(result)} = {self.vector(v)};")
        registers = "".join(f", {self.name(v)}" for v in op.results)
        self.line(f"tl::fence_{op.attrs['kind']}({self.number(op)}{registers});")

    def _barrier(self, op: Op) -> None:
        self.line(f"tl::{op.name}({self.number(op)});")
    _cluster_barrier = _wait_previous = _start_next = _barrier

    def _meet(self, op: Op) -> None:
        half, warps = op.attrs["half"], op.attrs["warps"]
        which = f"if (tl::warp() / {warps // 2} == {half}) " if half is not None else ""
        self.line(f"{which}tl::meet({self.number(op)});")

    def _advice(self, op: Op) -> None:
        self.line(f"tl::{op.name}<{', '.join(map(str, op.attrs.values()))}>({self.number(op)});")
    _priority = _spread = _advice

    def _print_shared(self, op: Op) -> None:
        first, *texts = map(c_string, pieces(op.attrs["text"]))
        parts = [self.number(op), first]
        for v, text in zip(op.operands, texts, strict=True):
            assert isinstance(v.type, BufferType)
            parts += [f"tl::show<'{print_form(v.dtype)}'>({self.name(v)}, {math.prod(v.type.shape)})", text]
        self.line(f"tl::print({', '.join(parts)});")

    # -- warps --------------------------------------------------------------------------------------------------------
    def _shuffle(self, op: Op) -> None:
        v, number = op.operands[0], self.number(op)
        name, lane = ("shfl_xor", str(op.attrs["by"])) if op.attrs["kind"] == "xor" else \
            ("shfl", self.scalar(op.operands[1]))
        if not v.shape:
            self.define(op.result, f"tl::{name}({self.scalar(v)}, {lane}, {number})")
            return
        out = self.declare(op.result)
        self.each(v.shape[0], f"{out}[i] = tl::{name}({self.lane(v, 'i')}, {lane}, {number});")

    def _swap(self, op: Op) -> None:
        names = []
        for v, r in zip(op.operands, op.results, strict=True):
            self.line(f"{self.type(r)} {self.name(r)} = {self.value(v)};")
            names.append(self.name(r) + ("[i]" if v.shape else ""))
        swap = f"tl::swap_lanes<{op.attrs['by']}>({', '.join(names)}, {self.number(op)});"
        if op.operands[0].shape:
            self.each(op.operands[0].shape[0], swap)
        else:
            self.line(swap)

    # -- control ------------------------------------------------------------------------------------------------------
    def _assert(self, op: Op) -> None:
        self.line(f"tl::check({self.scalar(op.operands[0])}, {self.number(op)});")

    def carry(self, args: Sequence[Value], inits: Sequence[Value]) -> None:
        for a, v in zip(args, inits, strict=True):
            self.line(f"{self.type(a)} {self.name(a)} = {self.value(v)};")

    def assign(self, targets: Sequence[Value], values: Sequence[Value]) -> None:
        """All at once: a target that another value still needs is read first."""
        moves = [(t, v) for t, v in zip(targets, values, strict=True)
                 if t is not v and (v not in self.names or self.names[v] != self.names[t])]
        late = {}
        for _, v in moves:
            if v not in late and any(self.names.get(v) == self.names[t] for t, _ in moves):
                late[v] = f"{self.name(v)}_old"
                self.line(f"const {self.type(v)} {late[v]} = {self.name(v)};")
        for t, v in moves:
            text = late.get(v) or self.value(v)
            self.line(f"{self.name(t)} = {text};")

    def _for(self, op: Op) -> None:
        index, *args = op.regions[0].args
        lo, hi, step = (self.scalar(v) for v in op.operands[:3])
        self.carry(args, op.operands[3:])
        i = self.name(index)
        following = f"{i} = tl::next({i}, {step}, {hi})" if overruns(op) else f"{i} += {step}"
        self.line(f"for ({c_type(index.dtype)} {i} = {lo}; {i} < {hi}; {following}) {{")
        self.nested(op.regions[0])
        self.assign(args, op.regions[0].yields)
        self.close()
        for r, a in zip(op.results, args, strict=True):
            self.names[r] = self.names[a]

    def _while(self, op: Op) -> None:
        test, body = op.regions
        self.carry(test.args, op.operands)
        for a, b in zip(test.args, body.args, strict=True):
            self.names[b] = self.names[a]
        self.line("while (true) {")
        self.nested(test)
        self.line(f"if (!{self.scalar(test.yields[0])}) break;")
        self.region(body)
        self.assign(test.args, body.yields)
        self.close()
        for r, a in zip(op.results, test.args, strict=True):
            self.names[r] = self.names[a]

    def _if(self, op: Op) -> None:
        for r in op.results:
            self.declare(r)
        self.line(f"if ({self.scalar(op.operands[0])}) {{")
        for n, region in enumerate(op.regions):
            if n and not (region.ops[:-1] or op.results):
                break
            if n:
                self.indent = self.indent[:-2]
                self.line("} else {")
            self.nested(region)
            self.assign(op.results, region.yields)
        self.close()
