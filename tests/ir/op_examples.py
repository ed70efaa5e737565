"""A small runnable function for every operation: what the printer, the verifier, the interpreter and every backend
must agree on. `EXAMPLES` maps `op` or `op.variant` to text; `example(key)` parses it."""
from __future__ import annotations

import re

from tilelang.ir.cluster import uses
from tilelang.ir.core import Function
from tilelang.ir.parser import parse


def everywhere() -> list[str]:
    """The examples of level TILE that every target compiles: those without clusters of programs."""
    return [key for key in EXAMPLES if example(key).level == "tile" and not uses(example(key))]


def example(key: str) -> Function:
    """A new function for `key`; it holds the operation `key.split(".")[0]`."""
    return parse(EXAMPLES[key])


def _shape(tile: str) -> tuple[str, list[int]]:
    match = re.fullmatch(r"(\w+(?:\(.*\))?)(?:\[([\d, ]+)\])?", tile)
    assert match is not None, tile
    return match[1], [int(e) for e in match[2].split(",")] if match[2] else []


def tiles(name: str, body: str, inputs: dict[str, str], outputs: dict[str, str], level: str = "tile") -> str:
    """A function that loads `inputs` (each %name: dtype[shape], scalars are parameters), runs `body`, and stores
    `outputs`; the extents of the tensors are free, so blocks may stick out."""
    params, loads, stores = [], [], []
    for value, tile in inputs.items():
        dt, shape = _shape(tile)
        if not shape:
            params.append(f"%{value}: {dt}")
            continue
        dims = [f"{value}{d}" for d in range(len(shape))]
        params.append(f"%{value}_in: tensor<in {dt}, {', '.join(dims)}:1>")
        loads.append(f"%{value} = load %{value}_in{', %zero' * len(shape)} {{shape={tuple(shape)}, "
                     f"axes={tuple(range(len(shape)))}, fill=0}} : {tile}")
    for value, tile in outputs.items():
        dt, shape = _shape(tile)
        dims = [f"{value}{d}" for d in range(len(shape))] or ["1"]
        params.append(f"%{value}_out: tensor<out {dt}, {', '.join(dims)}:1>")
        stores.append(f"store %{value}_out{', %zero' * len(dims)}, %{value} {{axes={tuple(range(len(shape)))}}}")
    lines = ["%zero = const {value=0, dtype=i32} : i32", *loads, *body.strip().splitlines(), *stores]
    return f"func @{name}({', '.join(params)}) {level} {{\n" + "\n".join(lines) + "\n}\n"


def _elementwise(op: str, dt: str, arity: int, out: str | None = None, attrs: str = "", shape: str = "[4, 8]") -> str:
    names = "abc"[:arity]
    result = f"{out or dt}{shape}"
    return tiles(op, f"%r = {op} {', '.join('%' + n for n in names)}{attrs} : {result}",
                  {n: f"{dt}{shape}" for n in names}, {"r": result})


EXAMPLES: dict[str, str] = {}
for _op in "add sub mul min max floordiv mod".split():
    for _dt in "f32 f16 bf16 f64 i32 i8 u8 u4 i64".split():
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 2)
for _op in ("neg", "abs"):
    for _dt in ("f32", "f16", "i32", "i8"):
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 1)
for _dt in "f32 f16 bf16 f64".split():
    EXAMPLES[f"div.{_dt}"] = _elementwise("div", _dt, 2)
    EXAMPLES[f"fma.{_dt}"] = _elementwise("fma", _dt, 3)
    for _op in "exp exp2 log log2 sqrt rsqrt sin cos tanh erf sigmoid floor ceil round trunc".split():
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 1)
EXAMPLES["fma.i32"] = _elementwise("fma", "i32", 3)
for _a, _b in (("u32", "i32"), ("i32", "u32"), ("i32", "i32"), ("u32", "u32")):
    EXAMPLES[f"dot4.{_a}{_b}"] = tiles("dot4", "%r = dot4 %a, %b, %c : i32[3, 37]", {
        "a": f"{_a}[3, 37]", "b": f"{_b}[3, 37]", "c": "i32[3, 37]"}, {"r": "i32[3, 37]"})
EXAMPLES["dot2"] = tiles("dot2", "%r = dot2 %a, %b, %c : f32[3, 37]", {
    "a": "u32[3, 37]", "b": "u32[3, 37]", "c": "f32[3, 37]"}, {"r": "f32[3, 37]"})
for _dt in "i1 i32 u8 i64".split():
    for _op in ("and", "or", "xor"):
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 2)
    EXAMPLES[f"not.{_dt}"] = _elementwise("not", _dt, 1)
for _dt in "i32 u8 i64 i16".split():
    EXAMPLES[f"popcount.{_dt}"] = _elementwise("popcount", _dt, 1)
    for _op in ("shl", "shr"):
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 2)
for _op in "eq ne lt le gt ge".split():
    for _dt in "f32 bf16 i32 u8 i1".split():
        EXAMPLES[f"{_op}.{_dt}"] = _elementwise(_op, _dt, 2, "i1")
for _from, _to in (("f32", "f16"), ("f32", "bf16"), ("f16", "f32"), ("i32", "f32"), ("f32", "i8"), ("i32", "i8"),
                   ("u4", "f16"), ("f32", "f8e4m3"), ("f8e5m2", "f32"), ("f4e2m1", "f32"), ("s3", "i32"),
                   ("ternary", "i8"), ("e8m0", "f32"), ("codebook(2, [-1.0, -0.25, 0.25, 1.0])", "f32"),
                   ("i32", "i1"), ("i1", "i32"), ("f64", "f32"), ("i32", "i64")):
    EXAMPLES[f"cast.{_from}.{_to}"] = tiles(
        "cast", f"%r = cast %a {{dtype={_to}}} : {_to}[4, 8]", {"a": f"{_from}[4, 8]"}, {"r": f"{_to}[4, 8]"})
for _from, _to in (("f32", "i32"), ("u16", "bf16"), ("f8e4m3", "u8"), ("i1", "s1"), ("s1", "i1"), ("i4", "f4e2m1")):
    EXAMPLES[f"bitcast.{_from}.{_to}"] = _elementwise("bitcast", _from, 1, _to, f" {{dtype={_to}}}")

_F = {"a": "f32[4, 8]"}
EXAMPLES |= {
    "where": tiles("where", "%r = where %c, %a, %b : f32[4, 8]",
                   {"c": "i1[4, 8]", "a": "f32[4, 8]", "b": "f32[4, 8]"}, {"r": "f32[4, 8]"}),
    "philox": tiles("philox", "%p, %q, %r, %s = philox %seed, %a : u32[8], u32[8], u32[8], u32[8]",
                    {"seed": "u64", "a": "u32[8]"}, {"p": "u32[8]", "q": "u32[8]", "r": "u32[8]", "s": "u32[8]"}),
    # -- shape -------------------------------------------------------------------------------------------------------
    "const": tiles("const", "%r = const {value=-2.5, dtype=f16} : f16", {}, {"r": "f16"}),
    "const.nan": tiles("const", "%r = const {value=nan, dtype=f32} : f32", {}, {"r": "f32"}),
    "const.zero": tiles("const", "%r = const {value=-0.0, dtype=f32} : f32", {}, {"r": "f32"}),
    "const.codebook": tiles("const", "%r = const {value=0.25, dtype=codebook(1, [0.25, 4.0])} : "
                            "codebook(1, [0.25, 4.0])", {}, {"r": "codebook(1, [0.25, 4.0])"}),
    "const_tile": tiles("const_tile", "%r = const_tile {values=(1.0, -inf, 1e-05, 3), dtype=f32} : f32[4]", {},
                        {"r": "f32[4]"}),
    "arange": tiles("arange", "%r = arange {start=-3, size=8} : i32[8]", {}, {"r": "i32[8]"}),
    "broadcast": tiles("broadcast", "%r = broadcast %a {shape=(3, 4, 8)} : f32[3, 4, 8]", {"a": "f32[4, 1]"},
                       {"r": "f32[3, 4, 8]"}),
    "broadcast.scalar": tiles("broadcast", "%r = broadcast %a {shape=(8,)} : f32[8]", {"a": "f32"}, {"r": "f32[8]"}),
    "reshape": tiles("reshape", "%r = reshape %a {shape=(2, 16)} : f32[2, 16]", _F, {"r": "f32[2, 16]"}),
    "reshape.unit": tiles("reshape", "%r = reshape %a {shape=(4, 1, 8)} : f32[4, 1, 8]", _F, {"r": "f32[4, 1, 8]"}),
    "permute": tiles("permute", "%r = permute %a {order=(2, 0, 1)} : f32[5, 3, 4]", {"a": "f32[3, 4, 5]"},
                     {"r": "f32[5, 3, 4]"}),
    "concat": tiles("concat", "%r = concat %a, %b {axis=1} : f32[4, 11]", {"a": "f32[4, 8]", "b": "f32[4, 3]"},
                    {"r": "f32[4, 11]"}),
    "slice": tiles("slice", "%r = slice %a {starts=(3, 1), shape=(4, 3), steps=(-1, 2)} : f32[4, 3]", _F,
                   {"r": "f32[4, 3]"}),
    "lookup": tiles("lookup", "%r = lookup %t, %i : f32[8]", {"t": "f32[16]", "i": "i32[8]"}, {"r": "f32[8]"}),
    **{f"lookup4.{t}{n}": tiles("lookup4", "%r = lookup4 %t, %i : %D[4, 8]".replace("%D", d), {
        "t": f"{t}[{n}]", "i": "u32[4, 8]"}, {"r": f"{d}[4, 8]"})
       for t, n, d in (("i8", 16, "i32"), ("u8", 32, "u32"), ("i8", 64, "i32"), ("i8", 128, "i32"),
                       ("u8", 256, "u32"))},
    "view": tiles("view", "%r = view %a {dtype=u4, source=<spatial(4).local(2)>, layout=<spatial(4).local(4)>} : "
                   "u4[16]", {"a": "u8[8]"}, {"r": "u4[16]"}),
    # -- reductions --------------------------------------------------------------------------------------------------
    "reduce": tiles("reduce", "%r = reduce %a {kind='sum', axis=0} : f32[8]", _F, {"r": "f32[8]"}),
    "reduce.max": tiles("reduce", "%r = reduce %a {kind='max', axis=1} : f16[4]", {"a": "f16[4, 8]"}, {"r": "f16[4]"}),
    "reduce.prod": tiles("reduce", "%r = reduce %a {kind='prod', axis=1} : i8[4]", {"a": "i8[4, 8]"}, {"r": "i8[4]"}),
    "reduce.all": tiles("reduce", "%r = reduce %a {kind='all', axis=0} : i1", {"a": "i1[8]"}, {"r": "i1"}),
    "reduce.custom": tiles("reduce", """
%r, %s = reduce %a, %b {kind='custom', axis=1} : f32[4], i32[4] (%a1: f32, %b1: i32, %a2: f32, %b2: i32) {
  %less = lt %a1, %a2 : i1
  %m = where %less, %a2, %a1 : f32
  %n = where %less, %b2, %b1 : i32
  yield %m, %n
}""", {"a": "f32[4, 8]", "b": "i32[4, 8]"}, {"r": "f32[4]", "s": "i32[4]"}),
    "arg_reduce": tiles("arg_reduce", "%r = arg_reduce %a {kind='max', axis=1} : i32[4]", _F, {"r": "i32[4]"}),
    "arg_reduce.min": tiles("arg_reduce", "%r = arg_reduce %a {kind='min', axis=0} : i32[8]", {"a": "i8[4, 8]"},
                            {"r": "i32[8]"}),
    "scan": tiles("scan", "%r = scan %a {kind='sum', axis=1, reverse=True} : f32[4, 8]", _F, {"r": "f32[4, 8]"}),
    "scan.max": tiles("scan", "%r = scan %a {kind='max', axis=0, reverse=False} : i32[4, 8]", {"a": "i32[4, 8]"},
                      {"r": "i32[4, 8]"}),
    "scan.custom": tiles("scan", """
%r = scan %a {kind='custom', axis=1, reverse=False} : i32[4, 8] (%p: i32, %q: i32) {
  %m = add %p, %q : i32
  yield %m
}""", {"a": "i32[4, 8]"}, {"r": "i32[4, 8]"}),
    "sort": tiles("sort", "%r, %s = sort %a {axis=1, descending=False} : f32[4, 8], i32[4, 8]", _F,
                   {"r": "f32[4, 8]", "s": "i32[4, 8]"}),
    "sort.descending": tiles("sort", "%r, %s = sort %a {axis=0, descending=True} : i8[8], i32[8]", {"a": "i8[8]"},
                             {"r": "i8[8]", "s": "i32[8]"}),
    "sort_keys": tiles("sort_keys", "%r = sort_keys %a {axis=0} : u8[8, 3]", {"a": "u8[8, 3]"}, {"r": "u8[8, 3]"}),
    "dot": tiles("dot", "%r = dot %a, %b, %c {dtype=f32} : f32[4, 3]",
                  {"a": "f16[4, 8]", "b": "f16[8, 3]", "c": "f32[4, 3]"}, {"r": "f32[4, 3]"}),
    "dot.batched": tiles("dot", "%r = dot %a, %b {dtype=f32} : f32[2, 4, 3]",
                         {"a": "f32[2, 4, 8]", "b": "f32[2, 8, 3]"}, {"r": "f32[2, 4, 3]"}),
    "dot.i8": tiles("dot", "%r = dot %a, %b {dtype=i32} : i32[4, 3]", {"a": "i8[4, 8]", "b": "u4[8, 3]"},
                    {"r": "i32[4, 3]"}),
    "dot_scaled": tiles("dot_scaled", "%r = dot_scaled %a, %b, %s, %t, %c : f32[4, 3]", {
        "a": "f8e4m3[4, 64]", "b": "f4e2m1[64, 3]", "s": "e8m0[4, 2]", "t": "e8m0[2, 3]", "c": "f32[4, 3]"},
        {"r": "f32[4, 3]"}),
    "dot_bits": tiles("dot_bits", "%r = dot_bits %a, %b, %c : i32[4, 3]",
                      {"a": "u32[4, 2]", "b": "u32[2, 3]", "c": "i32[4, 3]"}, {"r": "i32[4, 3]"}),
    "dot_bits.batched": tiles("dot_bits", "%r = dot_bits %a, %b : i32[2, 4, 3]",
                              {"a": "u32[2, 4, 2]", "b": "u32[2, 2, 3]"}, {"r": "i32[2, 4, 3]"}),
    # -- memory ------------------------------------------------------------------------------------------------------
    "dim": tiles("dim", "%r = dim %a_in {axis=1} : i32", _F, {"r": "i32"}),
    "load": """
func @load(%x: tensor<in f32, A, B, C:1>, %y: tensor<out f32, M, N:1>, %i: i32, %j: i32) tile {
  %zero = const {value=0, dtype=i32} : i32
  %t = load %x, %i, %j, %i {shape=(3, 5), axes=(0, 2), fill=-1.5} : f32[3, 5]
  store %y, %zero, %zero, %t {axes=(0, 1)}
}""",
    "store": """
func @store(%x: tensor<in i32, N:1>, %y: tensor<inout i32, M, N:1>, %i: i32) tile {
  %n = dim %x {axis=0} : i32
  %back = sub %n, %i : i32
  %t = load %x, %i {shape=(6,), axes=(0,), fill=0} : i32[6]
  store %y, %i, %back, %t {axes=(1,)}
}""",
    "gather": """
func @gather(%x: tensor<in f32, M, N:1>, %i: tensor<in i32, K:1>, %j: tensor<in i32, K:1>, %m: tensor<in i1, K:1>, """
    """%y: tensor<out f32, K:1>) tile {
  %zero = const {value=0, dtype=i32} : i32
  %a = load %i, %zero {shape=(8,), axes=(0,), fill=-1} : i32[8]
  %b = load %j, %zero {shape=(8,), axes=(0,), fill=-1} : i32[8]
  %c = load %m, %zero {shape=(8,), axes=(0,), fill=0} : i1[8]
  %p = gather %x, %a, %b, %c {masked=True, fill=7} : f32[8]
  %q = gather %x, %a, %b {masked=False, fill=0} : f32[8]
  %r = add %p, %q : f32[8]
  store %y, %zero, %r {axes=(0,)}
}""",
    "expand_load": """
func @expand_load(%x: tensor<in f32, M, N:1>, %w: tensor<in u32, K, L:1>, %y: tensor<out f32, K, C:1>, %i: i32) tile {
  %zero = const {value=0, dtype=i32} : i32
  %one = const {value=1, dtype=i32} : i32
  %b = load %w, %zero, %zero {shape=(5, 3), axes=(0, 1), fill=0} : u32[5, 3]
  %c = popcount %b : u32[5, 3]
  %s = scan %c {kind='sum', axis=1, reverse=False} : u32[5, 3]
  %d = sub %s, %c : u32[5, 3]
  %p = expand_load %x, %i, %one, %b, %d {axes=(0, 1)} : f32[5, 96]
  %q = expand_load %x, %one, %i, %b, %b {axes=(0, 1)} : f32[5, 96]
  %r = add %p, %q : f32[5, 96]
  store %y, %zero, %zero, %r {axes=(0, 1)}
}""",
    "scatter": """
func @scatter(%x: tensor<in f32, K:1>, %m: tensor<in i1, K:1>, %y: tensor<inout f32, N:1>, %shift: i32) tile {
  %zero = const {value=0, dtype=i32} : i32
  %a = load %x, %zero {shape=(8,), axes=(0,), fill=0} : f32[8]
  %c = load %m, %zero {shape=(8,), axes=(0,), fill=0} : i1[8]
  %i = arange {start=0, size=8} : i32[8]
  %s = broadcast %shift {shape=(8,)} : i32[8]
  %j = sub %s, %i : i32[8]
  scatter %y, %j, %a, %c {masked=True}
}""",
    "atomic": """
func @atomic(%x: tensor<in i32, K:1>, %i: tensor<in i32, K:1>, %y: tensor<inout i32, N:1>) tile {
  %zero = const {value=0, dtype=i32} : i32
  %a = load %x, %zero {shape=(8,), axes=(0,), fill=0} : i32[8]
  %j = load %i, %zero {shape=(8,), axes=(0,), fill=-1} : i32[8]
  %old = atomic %y, %j, %a {kind='add', masked=False} : i32[8]
  %older = atomic %y, %j, %a {kind='max', masked=False} : i32[8]
}""",
    "atomic.cas": """
func @atomic(%y: tensor<inout i32, N:1>, %z: tensor<out i32, 1:1>, %i: i32, %from: i32, %to: i32) tile {
  %zero = const {value=0, dtype=i32} : i32
  %yes = eq %zero, %zero : i1
  %old = atomic %y, %i, %from, %to, %yes {kind='cas', masked=True} : i32
  store %z, %zero, %old {axes=()}
}""",
    "alloc": """
func @alloc(%x: tensor<in f32, M, N:1>, %y: tensor<out f32, M, N:1>) tile {
  %zero = const {value=0, dtype=i32} : i32
  %one = const {value=1, dtype=i32} : i32
  %s = alloc {dtype=f32, shape=(4, 8), space='shared', layout=None} : buffer<shared f32, 4, 8>
  %a = load %x, %zero, %zero {shape=(4, 8), axes=(0, 1), fill=0} : f32[4, 8]
  store %s, %zero, %zero, %a {axes=(0, 1)}
  barrier
  %b = load %s, %one, %zero {shape=(4, 8), axes=(0, 1), fill=9} : f32[4, 8]
  store %y, %zero, %zero, %b {axes=(0, 1)}
}""",
    "copy_async": """
func @copy_async(%x: tensor<in f32, M, N:1>, %y: tensor<out f32, M, N:1>) tile {
  %zero = const {value=0, dtype=i32} : i32
  %s = alloc {dtype=f32, shape=(4, 8), space='shared', layout=<shared([4, 8], [8, 1])>} : """
    """buffer<shared f32, 4, 8>@<shared([4, 8], [8, 1])>
  copy_async %x, %zero, %zero, %s {axes=(0, 1)}
  commit
  wait {pending=0}
  barrier
  %b = load %s, %zero, %zero {shape=(4, 8), axes=(0, 1), fill=0} : f32[4, 8]
  store %y, %zero, %zero, %b {axes=(0, 1)}
}""",
    # -- control -----------------------------------------------------------------------------------------------------
    "grid": """
func @grid(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) tile {
  %n = dim %x {axis=0} : i32
  %b = const {value=4, dtype=i32} : i32
  %c = const {value=3, dtype=i32} : i32
  %up = add %n, %c : i32
  %count = floordiv %up, %b : i32
  %i, %j = grid %count, %b : i32, i32
  %at = mul %i, %b : i32
  %lane = add %at, %j : i32
  %t = load %x, %lane {shape=(), axes=(), fill=0} : f32
  %r = exp %t : f32
  store %y, %lane, %r {axes=()}
}""",
    "peer": """
func @peer(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) tile {
  %two = const {value=2, dtype=i32} : i32
  %one = const {value=1, dtype=i32} : i32
  %zero = const {value=0, dtype=i32} : i32
  %i = grid %two {group=1, cluster=(2,)} : i32
  %r = cluster_rank : i32
  %other = sub %one, %r : i32
  %s = alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>
  %p = peer %s, %other : buffer<cluster f32, 4>
  %a = load %x, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]
  store %s, %zero, %a {axes=(0,)}
  cluster_barrier
  %b = load %p, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]
  cluster_barrier
  %at = add %i, %zero : i32
  %t = reduce %b {kind='sum', axis=0} : f32
  store %y, %at, %t {axes=()}
}""",
    "wait_previous": """
func @wait_previous(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) tile {
  %n = dim %x {axis=0} : i32
  %i = grid %n : i32
  start_next
  wait_previous
  %t = load %x, %i {shape=(), axes=(), fill=0} : f32
  store %y, %i, %t {axes=()}
}""",
    "num_workers": tiles("num_workers", "%r = num_workers : i32", {}, {"r": "i32"}),
    "for": tiles("for", """
%lo = const {value=1, dtype=i32} : i32
%two = const {value=2, dtype=i32} : i32
%r, %s = for %lo, %n, %two, %a, %zero {stages=2} : f32[4, 8], i32 (%i: i32, %acc: f32[4, 8], %sum: i32) {
  %next = mul %acc, %b : f32[4, 8]
  %total = add %sum, %i : i32
  yield %next, %total
}""", {"a": "f32[4, 8]", "b": "f32[4, 8]", "n": "i32"}, {"r": "f32[4, 8]", "s": "i32"}),
    "while": tiles("while", """
%one = const {value=1, dtype=i32} : i32
%r = while %zero : i32 (%i: i32) {
  %more = lt %i, %n : i1
  yield %more
} (%j: i32) {
  %next = add %j, %one : i32
  yield %next
}""", {"n": "i32"}, {"r": "i32"}),
    "if": tiles("if", """
%c = gt %n, %zero : i1
%r = if %c : f32[4, 8] () {
  %double = add %a, %a : f32[4, 8]
  yield %double
} () {
  yield %a
}""", {"a": "f32[4, 8]", "n": "i32"}, {"r": "f32[4, 8]"}),
    "print": tiles("print", "print %a, %zero {text='it\\'s \"a\": {}, {}'}", {"a": "i32[4]"}, {}),
    "assert": tiles("assert", "%ok = eq %a, %a : i1[4]\nassert %ok {message='a equals itself'}", {"a": "i32[4]"}, {}),
    # -- placed ------------------------------------------------------------------------------------------------------
    "nest": tiles("nest", """
%r, %s = nest {shape=(4, 8)} : f32[4, 8], f32[4] () {
  %e = exp %a : f32[4, 8]
  %t = reduce %e {kind='sum', axis=1} : f32[4]
  yield %e, %t
}""", _F, {"r": "f32[4, 8]", "s": "f32[4]"}, "placed"),
    "convert_layout": tiles("convert_layout", "%r = convert_layout %a {layout=<local(2, 2).column_spatial(2, 4)>} : "
                            "f32[4, 8]@<local(2, 2).column_spatial(2, 4)>", _F, {"r": "f32[4, 8]"}, "placed"),
    # -- thread ------------------------------------------------------------------------------------------------------
    "stride": """
func @stride(%x: tensor<in f32, 4, 8:1>, %y: tensor<out f32, 4:1>) thread {
  %s = stride %x {axis=0} : i64
  %zero = const {value=0, dtype=i64} : i64
  %two = const {value=2, dtype=i64} : i64
  %at = mul %s, %two : i64
  %v = ld %x, %at {lanes=4} : f32[4]
  st %y, %zero, %v {stream=False}
}""",
    "ld": """
func @ld(%x: tensor<in f32, 8:1>, %y: tensor<out f32, 8:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %four = const {value=4, dtype=i64} : i64
  %v = ld %x, %four {lanes=4} : f32[4]
  %s = ld %x, %zero {lanes=None} : f32
  %b = broadcast %s {shape=(4,)} : f32[4]
  %lane = arange {start=2, size=4} : i32[4]
  %c4 = const {value=4, dtype=i32} : i32
  %limit = broadcast %c4 {shape=(4,)} : i32[4]
  %mask = lt %lane, %limit : i1[4]
  %w = ld %x, %zero, %mask {lanes=4} : f32[4]
  %p = add %v, %b : f32[4]
  %q = add %p, %w : f32[4]
  st %y, %zero, %q {stream=True}
  st %y, %four, %q, %mask {stream=False}
}""",
    "ld_gather": """
func @ld_gather(%x: tensor<in i32, 16:1>, %y: tensor<inout i32, 16:1>) thread {
  %lane = arange {start=0, size=4} : i32[4]
  %wide = cast %lane {dtype=i64} : i64[4]
  %three = const {value=3, dtype=i64} : i64
  %by = broadcast %three {shape=(4,)} : i64[4]
  %at = mul %wide, %by : i64[4]
  %v = ld_gather %x, %at : i32[4]
  %odd = popcount %lane : i32[4]
  %mask = gt %odd, %lane : i1[4]
  %w = ld_gather %x, %at, %mask : i32[4]
  st_scatter %y, %at, %v
  st_scatter %y, %wide, %w, %mask
}""",
    "atomic_rmw": """
func @atomic_rmw(%y: tensor<inout i32, 8:1>, %v: i32) thread {
  %zero = const {value=0, dtype=i64} : i64
  %one = const {value=1, dtype=i64} : i64
  %old = atomic_rmw %y, %one, %v {kind='add'} : i32
  %older = atomic_rmw %y, %zero, %old {kind='max'} : i32
  %oldest = atomic_rmw %y, %one, %older, %v {kind='cas'} : i32
}""",
    "transpose.groups": """
func @pairs(%x: tensor<in bf16, 12:1>, %y: tensor<out bf16, 12:1>) thread {
  %c0 = const {value=0, dtype=i64} : i64
  %c6 = const {value=6, dtype=i64} : i64
  %a = ld %x, %c0 {lanes=6} : bf16[6]
  %b = ld %x, %c6 {lanes=6} : bf16[6]
  %p, %q, %r = transpose %a, %b {group=2} : bf16[4], bf16[4], bf16[4]
  %s = interleave %p, %q, %r : bf16[12]
  st %y, %c0, %s {stream=False}
}""",
    "transpose": """
func @transpose(%x: tensor<in f32, 12:1>, %y: tensor<out f32, 12:1>) thread {
  %c0 = const {value=0, dtype=i64} : i64
  %c2 = const {value=2, dtype=i64} : i64
  %c3 = const {value=3, dtype=i64} : i64
  %c4 = const {value=4, dtype=i64} : i64
  %a = ld %x, %c0 {lanes=2} : f32[2]
  %b = ld %x, %c2 {lanes=2} : f32[2]
  %c = ld %x, %c4 {lanes=2} : f32[2]
  %p, %q = transpose %a, %b, %c : f32[3], f32[3]
  %r = lanes %p, %q {lanes=(5, 1, 3)} : f32[3]
  st %y, %c0, %p {stream=False}
  st %y, %c3, %r {stream=False}
}""",
    "reduce_each": """
func @reduce_each(%x: tensor<in f32, 16:1>, %y: tensor<out f32, 4:1>) thread {
  %c0 = const {value=0, dtype=i64} : i64
  %c4 = const {value=4, dtype=i64} : i64
  %c8 = const {value=8, dtype=i64} : i64
  %c12 = const {value=12, dtype=i64} : i64
  %a = ld %x, %c0 {lanes=4} : f32[4]
  %b = ld %x, %c4 {lanes=4} : f32[4]
  %c = ld %x, %c8 {lanes=4} : f32[4]
  %d = ld %x, %c12 {lanes=4} : f32[4]
  %e = reduce_each %a, %b, %c, %d {kind='sum'} : f32[4]
  st %y, %c0, %e {stream=False}
}""",
    "extract": """
func @extract(%x: tensor<in f16, 8:1>, %y: tensor<out f16, 8:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %v = ld %x, %zero {lanes=8} : f16[8]
  %s = extract %v {lane=5} : f16
  %pair = slice %v {starts=(2,), shape=(2,), steps=(1,)} : f16[2]
  %four = repeat %pair {times=2} : f16[4]
  %eight = interleave %four, %four : f16[8]
  st %y, %zero, %eight {stream=False}
  st %y, %zero, %s {stream=False}
}""",
    "streams": """
func @streams(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %far = streams %y, %zero {lines=False} : i1
  %first = to_line %y, %zero : i64
  %v = ld %x, %first {lanes=1} : f32[1]
  if %far () {
    prefetch %x, %zero
    st %y, %zero, %v {stream=False}
    yield
  } () {
    st %y, %zero, %v {stream=False}
    yield
  }
}""",
    "lane_lookup": """
func @lane_lookup(%a: tensor<in u32, 20:1>, %t: tensor<in f32, 4:1>, %y: tensor<inout f32, 20:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %i = ld %a, %zero {lanes=20} : u32[20]
  %three = const {value=3, dtype=u32} : u32
  %mask = broadcast %three {shape=(20,)} : u32[20]
  %safe = and %i, %mask : u32[20]
  %table = ld %t, %zero {lanes=4} : f32[4]
  %r = lane_lookup %table, %safe : f32[20]
  st %y, %zero, %r
}
""",
    "table_entry": """
func @table_entry(%a: tensor<in u32, 20:1>, %y: tensor<inout f32, 20:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %i = ld %a, %zero {lanes=20} : u32[20]
  %three = const {value=3, dtype=u32} : u32
  %mask = broadcast %three {shape=(20,)} : u32[20]
  %safe = and %i, %mask : u32[20]
  %r = table_entry %safe {values=(0.0, -1.5, 2.0, 7.0)} : f32[20]
  st %y, %zero, %r
}
""",
    "sharers": """
func @sharers(%y: tensor<out i32, 6:1>, %z: tensor<out i32, 6:1>) thread {
  %six = const {value=6, dtype=i32} : i32
  %i = grid %six {group=1, cluster=(2,)} : i32
  %part, %ranks = sharers {cluster=(2,), along=(0,)} : i32, i32
  %at = cast %i {dtype=i64} : i64
  st %y, %at, %part {stream=False}
  st %z, %at, %ranks {stream=False}
}""",
    "dot_groups": """
func @dot_groups(%a: tensor<in u8, 16:1>, %b: tensor<in i8, 16:1>, %y: tensor<inout i32, 4:1>) thread {
  %zero = const {value=0, dtype=i64} : i64
  %p = ld %a, %zero {lanes=16} : u8[16]
  %q = ld %b, %zero {lanes=16} : i8[16]
  %acc = ld %y, %zero {lanes=4} : i32[4]
  %r = dot_groups %acc, %p, %q : i32[4]
  st %y, %zero, %r {stream=False}
}""",
}
for _host, _ops in (("alloc", "barrier"), ("copy_async", "commit wait"), ("for", "yield"), ("ld", "st"),
                    ("ld_gather", "st_scatter"), ("extract", "interleave repeat"), ("transpose", "lanes"), ("streams",
                    "prefetch to_line"), ("wait_previous", "start_next"), ("peer", "cluster_rank cluster_barrier")):
    EXAMPLES.update({_op: EXAMPLES[_host] for _op in _ops.split()})
EXAMPLES = {key: text.lstrip("\n") for key, text in EXAMPLES.items()}


def covered() -> set[str]:
    """The operations that occur in an example of their own name."""
    return {op.name for key in EXAMPLES for op in example(key).walk() if op.name == key.split(".")[0]}
