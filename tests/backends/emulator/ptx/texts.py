"""A kernel for each wrapper of the prelude, which writes all that the wrapper gives. None depends on the order in
which threads run."""
from __future__ import annotations

from tests.backends.cuda.wrappers import ATOMIC_TYPES, HALVES, INTEGERS, MMA, arithmetic, kernel


def memory() -> list[str]:
    """Loads, stores, async copies and bit streams of every width."""
    out = []
    for t, size in (("tl::u8", 1), ("tl::u16", 2), ("float", 4), ("tl::i64", 8), ("double", 8), ("bool", 1)):
        for n in (1, 2, 4, 8, 16):
            if n * size > 16:
                continue
            copy = f"""
  tl::cp_async<{n}>(c, t * {n}, a, (31 - t) * {n}, t < n, tl::op(1));
  tl::cp_commit(tl::op(2));
  tl::cp_async<{n}>(c, (32 + t) * {n}, a, t * {n}, true, tl::op(3));
  tl::cp_commit(tl::op(4));
  tl::cp_wait<1>(tl::op(5));
  tl::st<{n}>(b, (64 + t) * {n}, tl::ld<{n}>(c, t * {n}, tl::op(6)), tl::op(7));
  tl::cp_wait<0>(tl::op(8));
  tl::st<{n}>(b, (96 + t) * {n}, tl::ld<{n}>(c, (32 + t) * {n}, tl::op(9)), tl::op(10));
""" if n * size in (4, 8, 16) else ""
            out.append(kernel(f"memory_{t.removeprefix('tl::')}_{n}",
                              f"tl::gptr<const {t}> a, tl::gptr<{t}> b, tl::i64 n", f"""
  TL_SHARED(smem, 2048);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, 32 * {n}), c = tl::shared<{t}>(smem, 512, 64 * {n});
  const int t = tl::thread();
{copy}
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, t * {n}, tl::op(11)), tl::op(12));
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, (t + 32) * {n}, t < n, tl::op(13)), t < n, tl::op(14));
  tl::barrier(tl::op(15));
  tl::vec<{t}, {n}> v = tl::ld<{n}>(s, (31 - t) * {n}, tl::op(16));
  tl::st<{n}>(b, t * {n}, tl::ld<{n}>(s, t * {n}, t < n, tl::op(17)), tl::op(18));
  tl::st<{n}>(b, (32 + t) * {n}, v, t < n, tl::op(19));"""))
    bits = "\n".join(
        f"  tl::st_bits<{w}>(b, {w * 1024 + 3} + t * {w}, tl::ld_bits<{w}>(a, {w * 1000 + 5} + t * {w}, t < n, "
        f"tl::op({w})), t < n, tl::op({w}));"
        for w in range(1, 9)
    )
    out.append(kernel("bits", "tl::gptr<const tl::u8> a, tl::gptr<tl::u8> b, tl::i64 n",
                      f"  const int t = tl::thread();\n{bits}\n"
                      "  tl::st_bits<8>(b, 9216 + t * 8, 1000 + t, true, tl::op(9));"))
    return out


def threads() -> list[str]:
    """Atomics, shuffles and meeting points."""
    out = []
    for t, half in (*((t, "") for t in ATOMIC_TYPES), *HALVES):
        name = half[1:] or t.removeprefix("tl::")
        start = f"tl::f32_to{half}(t % 9 - 4)" if half else f"{t}(t * 5 - 70)"
        # Every thread's own cell shows what it found; cell 32 is everybody's.
        body = "\n".join(f"""  r = tl::atomic_{f}{half}({p}, {i * 33} + t, v, m && t % 3 != 0, tl::op({i}));
  tl::st<1>(o, ({i} + {4 * (p == "s")}) * 32 + t, tl::vec<{t}, 1>{{r}}, tl::op({i}));
  tl::atomic_{f}{half}({p}, {i * 33} + 32, v, m, tl::op({i}));""" for i, f in enumerate(("add", "max", "min"))
                         for p in ("a", "s"))
        out.append(kernel(f"atomic_{name}", f"tl::gptr<{t}> a, tl::gptr<{t}> o, bool m", f"""
  TL_SHARED(smem, 2048);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, 160);
  const int t = tl::thread();
  for (int i = 0; i < 5; i++) tl::st<1>(s, i * 32 + t, tl::ld<1>(a, i * 32 + t, tl::op(5)), tl::op(6));
  tl::barrier(tl::op(7));
  {t} v = {start}, r;
{body}
  r = tl::atomic_cas(a, 100 + t, {t}(t % 2), v, m, tl::op(8));
  tl::st<1>(o, 96 + t, tl::vec<{t}, 1>{{r}}, tl::op(8));
  r = tl::atomic_cas(s, 100 + t, {t}(t % 2), v, m, tl::op(9));
  tl::st<1>(o, 7 * 32 + t, tl::vec<{t}, 1>{{r}}, tl::op(9));
  tl::barrier(tl::op(10));
  for (int i = 0; i < 5; i++) tl::st<1>(o, 256 + i * 32 + t, tl::ld<1>(s, i * 32 + t, tl::op(11)), tl::op(12));"""))
    moves = (("shfl_xor", 1), ("shfl_xor", 6), ("shfl_xor", 16), ("shfl", 5), ("shfl_up", 3), ("shfl_down", 9))
    for t in (*INTEGERS, "float", "double", "bool"):
        name = t.removeprefix("tl::")
        body = "\n".join(
            f"  tl::st<1>(o, {32 * i} + t, tl::vec<{t}, 1>{{tl::{f}(v, {by}, tl::op(1))}}, tl::op(2));"
            for i, (f, by) in enumerate(moves)
        )
        out.append(kernel(f"shuffle_{name}", f"tl::gptr<const {t}> a, tl::gptr<{t}> o", f"""
  const int t = tl::thread();
  const {t} v = tl::ld<1>(a, t, tl::op(3))[0];
{body}
  {t} x = v, y = tl::ld<1>(a, 32 + t, tl::op(3))[0];
  tl::swap_lanes<4>(x, y, tl::op(1));
  tl::st<1>(o, {32 * len(moves)} + t, tl::vec<{t}, 1>{{x}}, tl::op(2));
  tl::st<1>(o, {32 * len(moves) + 32} + t, tl::vec<{t}, 1>{{y}}, tl::op(2));
  tl::syncwarp(tl::op(4));
  tl::check(t < 32, tl::op(5));"""))
    return out


def matrix(arch: int) -> list[str]:
    """Matrix instructions of a processor."""
    out = []
    for x in (1, 2, 4):
        for trans in ("false", "true"):
            for t, n in (("tl::u16", 2), ("tl::u8", 4)):
                out.append(kernel(f"rows_{x}_{trans}_{t.removeprefix('tl::')}",
                                  f"tl::gptr<const {t}> a, tl::gptr<{t}> o", f"""
  TL_SHARED(smem, 2048);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, {512 * n}), c = tl::shared<{t}>(smem, 1024, {256 * n});
  const int t = tl::thread();
  for (int i = 0; i < {4 * n}; i++) {{
    tl::st<1>(s, i * 32 + t, tl::ld<1>(a, i * 32 + t, tl::op(1)), tl::op(2));
    tl::st<1>(c, i * 32 + t, tl::ld<1>(a, i * 32 + t, tl::op(3)), tl::op(4));
  }}
  tl::barrier(tl::op(5));
  tl::vec<{t}, {n * x + 1}> r{{}};
  tl::ldmatrix<{x}, {trans}>(r, 1, s, (t ^ 5) * {4 * n}, tl::op(6));
  for (int i = 0; i < {n * x}; i++) tl::st<1>(o, i * 32 + t, tl::vec<{t}, 1>{{r[i + 1]}}, tl::op(7));
  tl::stmatrix<{x}, {trans}>(c, (t ^ 3) * {4 * n}, r, 1, tl::op(8));
  tl::barrier(tl::op(9));
  for (int i = 0; i < {4 * n}; i++)
    tl::st<1>(o, (i + {4 * n}) * 32 + t, tl::ld<1>(c, i * 32 + t, tl::op(10)), tl::op(11));"""))
    for name, (d, nd, types, na, nb, since) in MMA.items():
        ta, tb = (types.split() * 2)[:2]
        if arch >= since:
            out.append(kernel(f"mma_{name}", f"tl::gptr<{ta}> a, tl::gptr<{tb}> b, tl::gptr<{d}> o", f"""
  const int t = tl::thread();
  tl::vec<{d}, {nd + 1}> c{{}};
  tl::vec<{ta}, {na + 1}> x{{}};
  tl::vec<{tb}, {nb + 1}> y{{}};
  for (int i = 0; i < {na}; i++) x[i + 1] = tl::ld<1>(a, t * {na} + i, tl::op(1))[0];
  for (int i = 0; i < {nb}; i++) y[i + 1] = tl::ld<1>(b, t * {nb} + i, tl::op(2))[0];
  for (int i = 0; i < {nd}; i++) c[i + 1] = {d}(t - 7 * i);
  tl::mma_{name}(c, 1, x, 1, y, 1, tl::op(3));
  for (int i = 0; i < {nd}; i++) tl::st<1>(o, t * {nd} + i, tl::vec<{d}, 1>{{c[i + 1]}}, tl::op(4));"""))
    return out


def kernels(arch: int) -> dict[str, str]:
    """The text of each kernel, without the header, by name."""
    every = [*memory(), *threads(), *arithmetic(), *matrix(arch)]
    return {k.partition("(")[2].partition(",")[0]: k for k in every}


def text(arch: int) -> str:
    return '#include "tl.h"\n' + "".join(kernels(arch).values())
