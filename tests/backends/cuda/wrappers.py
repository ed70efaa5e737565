"""A kernel for each wrapper of the prelude."""
from __future__ import annotations

INTEGERS = ("tl::i8", "tl::i16", "tl::i32", "tl::i64", "tl::u8", "tl::u16", "tl::u32", "tl::u64")
ATOMIC_TYPES = ("tl::i32", "tl::u32", "tl::i64", "tl::u64", "float", "double")
HALVES = ("tl::u16", "_f16"), ("tl::u16", "_bf16")
"""Types of codes, with what the names of their atomic operations end in."""
SHUFFLES = ("shfl_xor", "shfl", "shfl_up", "shfl_down")
UNARY = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "sigmoid", "abs", "floor", "ceil",
         "round")
MMA = {  # name: accumulators, type (one for each where they differ) and length of A and of B, first processor
    "m16n8k16_f16": ("float", 4, "tl::u16", 8, 4, 75), "m16n8k8_f16": ("float", 4, "tl::u16", 4, 2, 75),
    "m16n8k16_bf16": ("float", 4, "tl::u16", 8, 4, 80), "m16n8k8_tf32": ("float", 4, "float", 4, 2, 80),
    "m16n8k32_s8": ("tl::i32", 4, "tl::u8", 16, 8, 80), "m16n8k32_u8": ("tl::i32", 4, "tl::u8", 16, 8, 80),
    "m16n8k32_su8": ("tl::i32", 4, "tl::u8", 16, 8, 80), "m16n8k32_us8": ("tl::i32", 4, "tl::u8", 16, 8, 80),
    "m16n8k64_s4": ("tl::i32", 4, "tl::u32", 4, 2, 80), "m16n8k64_u4": ("tl::i32", 4, "tl::u8", 16, 8, 80),
    "m16n8k128_b1_and": ("tl::i32", 4, "tl::u32", 2, 1, 80),
    "m16n8k256_b1_and": ("tl::i32", 4, "tl::u32", 4, 2, 80), "m16n8k256_b1_xor": ("tl::i32", 4, "tl::u32", 4, 2, 80),
    "m16n8k32_e4m3": ("float", 4, "tl::u8", 16, 8, 89), "m16n8k32_e5m2": ("float", 4, "tl::u8", 16, 8, 89),
    "m8n8k4_f64": ("double", 2, "double", 1, 1, 80), "m16n8k16_f32": ("float", 4, "float", 8, 4, 80),
    "m16n8k8_f32_f16": ("float", 4, "float tl::u16", 4, 2, 80),
    "m16n8k8_f16_f32": ("float", 4, "tl::u16 float", 4, 2, 80),
    "m16n8k16_f32_bf16": ("float", 4, "float tl::u16", 8, 4, 80),
    "m16n8k16_bf16_f32": ("float", 4, "tl::u16 float", 8, 4, 80),
    **{f"m8n8k16_{signs}8": ("tl::i32", 2, "tl::u8", 4, 4, 75) for signs in ("s", "u", "su", "us")},
    **{f"m8n8k32_{signs}4": ("tl::i32", 2, "tl::u32", 1, 1, 75) for signs in ("s", "u", "su", "us")},
}

OF_PIECES = {name: "m16n8k8_tf32" if "k8" in name else "m16n8k16_bf16"
             for name in MMA if "_f32" in name}
"""The instruction that multiplies pieces of f32."""


def kernel(name: str, params: str, body: str, threads: int = 32) -> str:
    return f"TL_KERNEL({name}, {threads})({params}) {{\n{body}\n}}\nTL_EXPORT({name})\n"


def memory() -> list[str]:
    """Loads, stores, async copies and bit streams of every width."""
    out = []
    for t, size in (("tl::u8", 1), ("tl::u16", 2), ("float", 4), ("tl::i64", 8), ("double", 8), ("bool", 1)):
        for n in (1, 2, 4, 8, 16):
            if n * size > 16:
                continue
            copy = f"tl::cp_async<{n}>(s, t * {n}, a, t * {n}, t < n, tl::op(1));" if n * size in (4, 8, 16) else ""
            params = f"tl::gptr<const {t}> a, tl::gptr<{t}> b, tl::i64 n"
            out.append(kernel(f"memory_{t.removeprefix('tl::')}_{n}", params, f"""
  TL_SHARED(smem, 512);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, 32 * {n});
  const int t = tl::thread();
  {copy}
  tl::cp_commit(tl::op(2));
  tl::cp_wait<0>(tl::op(3));
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, t * {n}, tl::op(4)), tl::op(5));
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, t * {n}, t < n, tl::op(6)), t < n, tl::op(7));
  tl::barrier(tl::op(8));
  tl::vec<{t}, {n}> v = tl::ld<{n}>(s, (31 - t) * {n}, tl::op(9));
  tl::st<{n}>(b, t * {n}, tl::ld<{n}>(s, t * {n}, t < n, tl::op(10)), tl::op(11));
  tl::st<{n}>(b, t * {n}, v, t < n, tl::op(12));"""))
    bits = "\n".join(f"""  x = tl::ld_bits<{w}>(a, t * {w}, t < n, tl::op({w}));
  tl::st_bits<{w}>(b, t * {w}, x, t < n, tl::op({w}));""" for w in range(1, 9))
    bits += "".join(f"\n  x = tl::ld_codes<{w}, 32, 4>(a, 0, t < n, tl::op(9))[31];\n"
                    f"  tl::st_bits<{w}>(b, t, x, t < n, tl::op(9));" for w in range(1, 8))
    out.append(kernel("bits", "tl::gptr<const tl::u8> a, tl::gptr<tl::u8> b, tl::i64 n",
                      f"  const int t = tl::thread();\n  tl::u32 x;\n{bits}"))
    return out


def copy(t: str, n: int) -> str:
    """An async copy of `n` elements in each lane; the last lanes are masked and fill with zeros."""
    return kernel(f"copy_{n}", f"tl::gptr<const {t}> a, tl::gptr<{t}> o", f"""
  TL_SHARED(smem, 1024);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 512, 32 * {n});
  const int t = tl::thread();
  tl::cp_async<{n}>(s, (31 - t) * {n}, a, (t ^ 3) * {n}, t < 23, tl::op(1));
  tl::cp_commit(tl::op(2));
  tl::cp_wait<0>(tl::op(3));
  tl::barrier(tl::op(4));
  tl::st<{n}>(o, t * {n}, tl::ld<{n}>(s, t * {n}, tl::op(5)), tl::op(6));""")


def shuffle(t: str) -> str:
    """Every shuffle of one value."""
    body = "".join(f"""
  y = tl::{f}(x, {n}, tl::op(2));
  tl::st<1>(o, {32 * i} + tl::thread(), tl::vec<{t}, 1>{{y}}, tl::op(3));"""
                   for i, (f, n) in enumerate(zip(SHUFFLES, (5, 9, 3, 4), strict=True)))
    return kernel(f"shuffles_{t.removeprefix('tl::')}", f"tl::gptr<const {t}> a, tl::gptr<{t}> o",
                  f"  {t} y, x = tl::ld<1>(a, tl::thread(), tl::op(1))[0];{body}")


def threads() -> list[str]:
    """Atomics, shuffles and meeting points."""
    out = []
    for t in ATOMIC_TYPES:
        name = t.removeprefix("tl::")
        body = "\n".join(f"  r = tl::atomic_{f}({p}, 0, v, m, tl::op(1)); out[t] = r;" for f in ("add", "max", "min")
                         for p in ("a", "s"))
        out.append(kernel(f"atomic_{name}", f"tl::gptr<{t}> a, tl::gptr<{t}> o, bool m", f"""
  TL_SHARED(smem, 64);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, 1);
  const int t = tl::thread();
  {t} v = {t}(t), r;
{body.replace('out[t] = r;', 'v = v + r;')}
  r = tl::atomic_cas(a, 0, v, r, m, tl::op(2));
  r = tl::atomic_cas(s, 0, v, r, m, tl::op(3));
  tl::st<1>(o, t, tl::vec<{t}, 1>{{r}}, tl::op(4));"""))
    for t in (*INTEGERS, "float", "double", "bool"):
        name = t.removeprefix("tl::")
        body = "\n".join(f"  v = {t}(v + tl::{f}(v, 1, tl::op(1)));" for f in SHUFFLES)
        body += "".join(f"\n  tl::swap_lanes<{by}>(v, w, tl::op(1));" for by in (1, 16))
        out.append(kernel(f"shuffle_{name}", f"tl::gptr<{t}> o", f"""
  {t} v = {t}(tl::thread()), w = v;
{body}
  tl::syncwarp(tl::op(2));
  tl::check(v == w, tl::op(3));
  tl::st<1>(o, tl::thread(), tl::vec<{t}, 1>{{v}}, tl::op(4));"""))
    return out


def arithmetic() -> list[str]:
    """Scalar functions."""
    out = []
    for t in ("float", "double"):
        body = "\n".join(f"  x = tl::{f}(x);" for f in UNARY)
        convert = "\n".join(f"  x += {t}(tl::to_int<{i}>(x));" for i in INTEGERS)
        half = "x += tl::f16_to_f32(tl::f32_to_f16(x)) + tl::bf16_to_f32(tl::f32_to_bf16(x));" if t == "float" else ""
        out.append(kernel(f"math_{t}", f"tl::gptr<{t}> a", f"""
  {t} x = tl::ld<1>(a, tl::thread(), tl::op(1))[0];
{body}
{convert}
  x = tl::fma(x, x, tl::min(x, tl::max(x, {t}(2))));
  {half}
  x += {t}(tl::bits<tl::{'u32' if t == 'float' else 'u64'}>(x));
  tl::st<1>(a, tl::thread(), tl::vec<{t}, 1>{{x}}, tl::op(2));"""))
    for t in INTEGERS:
        halves = "x = tl::fma_halves(x, y, x) + tl::odd_bytes(x) + tl::mad_halves<6>(x, y)" \
            " + tl::mad_halves<258>(x) + tl::shift_halves<tl::i16>(x, 3);" if t == "tl::u32" else ""
        count = "x += tl::popcount(x);" if t in ("tl::u32", "tl::u64") else ""
        out.append(kernel(f"math_{t.removeprefix('tl::')}", f"tl::gptr<{t}> a, {t} y", f"""
  {t} x = tl::ld<1>(a, tl::thread(), tl::op(1))[0];
  x = {t}(tl::floordiv(x, y) + tl::mod(x, y) + tl::shl(x, y) + tl::shr(x, y));
  x = tl::min(tl::max(tl::abs(x), y), {t}(3));
  {count}
  {halves}
  tl::st<1>(a, tl::thread(), tl::vec<{t}, 1>{{x}}, tl::op(2));"""))
    return out


def rows(x: int, trans: bool, t: str) -> str:
    """Loads 8x8 matrices from rows in the order given, writes the fragments to `f`, and stores the matrices to `o`."""
    n, flag = 16 // int(t[5:]), str(trans).lower()  # elements in 16 bits
    return kernel(f"rows_{x}_{flag}_{t[4:]}", f"tl::gptr<const {t}> a, tl::gptr<const tl::i32> order, "
                  f"tl::gptr<{t}> o, tl::gptr<{t}> f", f"""
  TL_SHARED(smem, 1024);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, {256 * n}), d = tl::shared<{t}>(smem, 512, {256 * n});
  const int t = tl::thread();
  tl::st<{8 * n}>(s, t * {8 * n}, tl::ld<{8 * n}>(a, t * {8 * n}, tl::op(1)), tl::op(2));
  tl::st<{8 * n}>(d, t * {8 * n}, tl::vec<{t}, {8 * n}>{{}}, tl::op(3));
  tl::barrier(tl::op(4));
  tl::vec<{t}, {2 * n * x + 1}> r{{}};
  tl::ldmatrix<{x}, {flag}>(r, 1, s, tl::ld<1>(order, t, tl::op(5))[0] * {8 * n}, tl::op(6));
  TL_UNROLL for (int i = 0; i < {2 * n * x}; i++)
    tl::st<1>(f, t * {2 * n * x} + i, tl::vec<{t}, 1>{{r[i + 1]}}, tl::op(7));
  tl::stmatrix<{x}, {flag}>(d, t * {8 * n}, r, 1, tl::op(8));
  tl::barrier(tl::op(9));
  tl::st<{8 * n}>(o, t * {8 * n}, tl::ld<{8 * n}>(d, t * {8 * n}, tl::op(10)), tl::op(11));""")


def mma(name: str) -> str:
    """One product: each lane's registers of A, B and C follow one another."""
    d, nd, types, na, nb, _ = MMA[name]
    ta, tb = (types.split() * 2)[:2]
    return kernel(f"mma_{name}", f"tl::gptr<const {ta}> a, tl::gptr<const {tb}> b, tl::gptr<{d}> c", f"""
  const int t = tl::thread();
  tl::vec<{ta}, {na + 1}> x{{}};
  tl::vec<{tb}, {nb + 3}> y{{}};
  tl::vec<{d}, {nd + 2}> z{{}};
  TL_UNROLL for (int i = 0; i < {na}; i++) x[i + 1] = tl::ld<1>(a, t * {na} + i, tl::op(1))[0];
  TL_UNROLL for (int i = 0; i < {nb}; i++) y[i + 3] = tl::ld<1>(b, t * {nb} + i, tl::op(2))[0];
  TL_UNROLL for (int i = 0; i < {nd}; i++) z[i + 2] = tl::ld<1>(c, t * {nd} + i, tl::op(3))[0];
  tl::mma_{name}(z, 2, x, 1, y, 3, tl::op(4));
  TL_UNROLL for (int i = 0; i < {nd}; i++) tl::st<1>(c, t * {nd} + i, tl::vec<{d}, 1>{{z[i + 2]}}, tl::op(5));""")


WGMMA = {  # name: type of the sums, elements of 16 bits or less as they are stored, bytes of one
    "m64k16_f16": ("float", "tl::u16"), "m64k16_bf16": ("float", "tl::u16"), "m64k8_tf32": ("float", "float"),
    **{f"m64k32_{t}": ("float", "tl::u8") for t in ("e4m3", "e5m2", "e4m3_e5m2", "e5m2_e4m3")},
    **{f"m64k32_{t}": ("tl::i32", "tl::u8") for t in ("s8", "u8", "s8u8", "u8s8")},
    "m64k256_b1": ("tl::i32", "tl::u32"),
}


def wgmma(name: str, columns: int, a: str = "memory", across: str = "", width: int = 128) -> str:
    """One product of four warps with A in registers or memory; operands named in `across` have rows along the other
    dimension than k. `n` times 2 kB of memory hold `a` as it comes; their descriptors say what of it they are."""
    d, t = WGMMA[name]
    size = {"tl::u16": 2, "float": 4, "tl::u32": 4, "tl::u8": 1}[t]
    e, sums = 16 // size, columns // 2
    walk = {side: f"{width}, {2048 if side in across else width}, {8 * width}, {str(side in across).lower()}"
            for side in "ab"}
    left = f"tl::operand<{walk['a']}>(s), {2 * e}" if a == "memory" else "x, 1"
    return kernel("_".join(map(str, filter(None, ("wgmma", name, columns, a, across, width)))),
                  f"tl::gptr<const {t}> a, tl::gptr<{d}> c, tl::i64 n", f"""
  TL_SHARED(smem, 65536);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, {65536 // size});
  const tl::sptr<{t}> r = tl::shared<{t}>(smem, 16384, {49152 // size});
  const int t = tl::thread();
  for (int i = 0; i < n; i++)
    tl::st<{e}>(s, (i * 128 + t) * {e}, tl::ld<{e}>(a, (i * 128 + t) * {e}, tl::op(1)), tl::op(2));
  tl::vec<{t}, {e + 1}> x{{}};
  TL_UNROLL for (int i = 0; i < {e}; i++) x[i + 1] = tl::ld<1>(a, t * {e} + i, tl::op(3))[0];
  tl::vec<{d}, {sums + 2}> z{{}};
  TL_UNROLL for (int i = 0; i < {sums}; i++) z[i + 2] = tl::ld<1>(c, t * {sums} + i, tl::op(4))[0];
  tl::fence_memory(tl::op(5));
  tl::barrier(tl::op(6));
  tl::fence_registers(tl::op(7));
  tl::wgmma_{name}<{columns}>(z, 2, {left}, tl::operand<{walk['b']}>(r), {4 * e}, tl::op(8));
  tl::group_commit(tl::op(9));
  tl::group_wait<0>(tl::op(10));
  tl::arrived(z, tl::op(10));
  TL_UNROLL for (int i = 0; i < {sums}; i++)
    tl::st<1>(c, t * {sums} + i, tl::vec<{d}, 1>{{z[i + 2]}}, tl::op(11));""", 128)


def groups() -> dict[str, str]:
    """Products of four warps by name: every type with A in either place, every number of columns, order and width."""
    widths = (8, 16, 32, 64, 96, 128, 192, 256)
    every = [(name, widths[(3 * i + j) % len(widths)], a) for i, name in enumerate(WGMMA)
             for j, a in enumerate(("memory", "registers"))]
    orders = [("m64k16_bf16", 64, "memory", across, width)
              for across, width in (("a", 64), ("a", 128), ("b", 32), ("ab", 64), ("", 32), ("", 64))]
    texts = [wgmma(*e) for e in (*every, *orders, ("m64k16_f16", 64, "registers", "b"))]
    return {t.partition("(")[2].partition(",")[0]: t for t in texts}


def matrix(arch: int) -> list[str]:
    """Matrix instructions of a processor."""
    moves = [rows(x, trans, t) for x in (1, 2, 4) for trans in (False, True) for t in ("tl::u16", "tl::u8")]
    return moves + [mma(name) for name, (*_, since) in MMA.items() if arch >= since]


def including(*kernels: str, groups: bool = False) -> str:
    return "#define TL_GROUPS\n" * groups + '#include "tl.h"\n' + "".join(kernels)


def text(arch: int) -> str:
    return including(*memory(), *threads(), *arithmetic(), *matrix(arch))
