"""C expressions of scalar operations: one lane of an elementwise operation."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ir.core import BufferType, Op, TensorType, Value
from tilelang.ir.dtypes import DType

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^",
          "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}


def c_type(dt: DType) -> str:
    """The type of a value in a register: numbers the machine has as themselves, others as their code."""
    if dt.kind == "bool":
        return "bool"
    if dt.name in ("f32", "f64"):
        return {"f32": "float", "f64": "double"}[dt.name]
    bits = 8 * dt.storage.itemsize
    return f"tl::{'i' if dt.kind == 'int' else 'u'}{bits}"


def literal(value: Any, dt: DType) -> str:
    """A constant: `value` as the interpreter has it (a number, or a code)."""
    if dt.kind == "bool":
        return "true" if value else "false"
    if dt.name in ("f32", "f64"):
        x, suffix = float(value), "f" if dt.name == "f32" else ""
        if math.isnan(x):
            return f"tl::nan<{c_type(dt)}>()"
        if math.isinf(x):
            return f"{'-' if x < 0 else ''}tl::inf<{c_type(dt)}>()"
        return f"{x!r}{suffix}"
    x = int(value) if dt.kind in ("int", "uint") else int(codec.to_bits(np.asarray(value), dt))
    bits = 8 * dt.storage.itemsize
    if bits == 64:
        return f"({x + 1}ll - 1)" if x == -(1 << 63) else f"{x}{'ll' if dt.kind == 'int' else 'ull'}"
    if x == -(1 << 31):
        return "(-2147483647 - 1)"
    return str(x) if dt.kind == "int" or bits < 32 else f"{x}u"


def c_string(text: str) -> str:
    """A string literal. Octal escapes take three digits, so that what follows is not read as part of them."""
    plain = {c: chr(c) for c in range(32, 127) if chr(c) not in '"\\?'}
    return '"' + "".join(plain.get(c) or f"\\{c:03o}" for c in text.encode()) + '"'


def print_form(dt: DType) -> str:
    """How a device without Python prints elements: n numbers, h f16, b bf16, c codes."""
    return {"f16": "h", "bf16": "b"}.get(dt.name) or ("n" if dt.name in ("f32", "f64") or dt.kind in (
        "int", "uint", "bool") else "c")


def unary_or_infix(op: Op, args: list[str]) -> str:
    """The value of `op` on the given operands."""
    dt, out = op.operands[0].dtype, op.result.dtype
    name = op.name
    if name == "where":
        return f"{args[0]} ? {args[1]} : {args[2]}"
    if name == "cast":
        return _cast(args[0], dt, out)
    if name == "bitcast":
        return _bitcast(args[0], dt, out)
    if name in _COMPARE:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if dt.kind == "float":
        if dt.name not in ("f32", "f64"):
            raise _missing(op, dt)
        return _floating(name, args)
    return _wrapped(_integer(op, name, args, dt), out)


def _missing(op: Op, dt: DType) -> TargetError:
    return TargetError(f"`{op.name}` of {dt} has no form in C text", loc=op.loc, needs="f32 or f64", got=str(dt),
                       try_="report this: a pass should have widened it")


def _floating(name: str, args: list[str]) -> str:
    if name in _INFIX:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name == "neg":
        return f"-{args[0]}"
    if name == "floordiv":
        return f"tl::floor({args[0]} / {args[1]})"
    if name == "mod":
        return f"{args[0]} - {args[1]} * tl::floor({args[0]} / {args[1]})"
    return f"tl::{name}({', '.join(args)})"


def _integer(op: Op, name: str, args: list[str], dt: DType) -> str:
    if dt.kind == "bool":
        if name in ("min", "max"):
            return f"{args[0]} {'&' if name == 'min' else '|'} {args[1]}"
        if name in ("shl", "shr"):
            return f"{args[0]} & !{args[1]}"
        return args[0] if name == "popcount" else f"!{args[0]}" if name == "not" else \
            f"{args[0]} {_INFIX[name]} {args[1]}"
    if name in ("add", "sub", "mul"):
        narrow = dt.kind == "int" or dt.storage.itemsize < 4
        return f"tl::{name}({args[0]}, {args[1]})" if narrow else f"{args[0]} {_INFIX[name]} {args[1]}"
    if name in _INFIX:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name == "not":
        return f"~{args[0]}"
    if name in ("shl", "shr"):
        count = op.operands[1].owner
        if count is not None and count.name == "const" and 0 <= int(count.attrs["value"]) < dt.bits:
            return f"{args[0]} {'<<' if name == 'shl' else '>>'} {int(count.attrs['value'])}"
        return f"tl::{name}<{dt.bits}>({args[0]}, {args[1]})"
    if name == "popcount":
        bits = 8 * dt.storage.itemsize
        mask = f" & {(1 << dt.bits) - 1}u" + ("ll" if bits == 64 else "") if dt.bits < max(bits, 32) else ""
        return f"tl::popcount((tl::u{max(bits, 32)}){args[0]}{mask})"
    if name == "fma":
        return f"tl::add(tl::mul({args[0]}, {args[1]}), {args[2]})"
    return f"tl::{name}({', '.join(args)})"


def _wrapped(text: str, dt: DType) -> str:
    """An integer brought back to its width, and to its C type after promotion to int."""
    bits = 8 * dt.storage.itemsize
    if dt.kind == "bool" or bits == 64 and dt.bits == 64:
        return text
    if dt.bits < bits:
        return f"tl::wrap<{c_type(dt)}, {dt.bits}>({text})"
    return f"({c_type(dt)})({text})" if bits < 32 else text


def _cast(x: str, src: DType, dst: DType) -> str:
    integers = ("int", "uint", "bool")
    if src.kind in integers and dst.kind in integers:
        if dst.kind == "bool":
            return f"{x} != 0"
        bits = 8 * dst.storage.itemsize
        return f"tl::wrap<{c_type(dst)}, {dst.bits}>({x})" if dst.bits < bits else f"({c_type(dst)}){x}"
    if dst.kind in ("int", "uint") and src.name in ("f32", "f64"):
        if dst.native:
            return f"tl::to_int<{c_type(dst)}>({x})"
        return f"tl::to_int<{c_type(dst)}>({x}, {literal(dst.min, dst)}, {literal(dst.max, dst)})"
    if dst.name in ("f32", "f64") and (src.kind in integers or src.name in ("f32", "f64")):
        return f"({c_type(dst)}){x}"
    if dst.kind == "bool" and src.kind == "float":
        return f"{x} != 0"
    return f"tl::{src.name}_to_{dst.name}({x})"


def _bitcast(x: str, src: DType, dst: DType) -> str:
    a, b = c_type(src), c_type(dst)
    if a == b:
        return x
    whole = src.bits == 8 * src.storage.itemsize
    if whole:
        return f"tl::bits<{b}>({x})"
    return f"tl::wrap<{b}, {dst.bits}>({x})"


RESERVED = set("""
smem workers tl i NULL linux unix alignas alignof and and_eq asm atomic auto bitand bitor bool break case catch char
char8_t char16_t char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
constinit continue decltype default delete do double dynamic_cast else enum explicit export extern false float for
friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
public register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast struct
switch template this thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using
virtual void volatile wchar_t while xor xor_eq
""".split())
"""What the emitted code says itself, macros that compilers bring, and the keywords of C23 and C++20."""


def memory_type(v: Value) -> str:
    """The element type of a tensor or buffer in memory: booleans take a byte, sub-byte tensors are byte streams."""
    assert isinstance(v.type, TensorType | BufferType)
    dt = v.dtype
    if dt.kind == "bool" or isinstance(v.type, TensorType) and dt.packed:
        return "tl::u8"
    return c_type(dt)


def wrap(args: Sequence[str]) -> str:
    """Parameters, several to a line."""
    lines, current = [], ""
    for a in args:
        if len(current) + len(a) > 100:
            lines.append(current)
            current = ""
        current += (", " if current else "") + a
    return ",\n    ".join([*lines, current])
