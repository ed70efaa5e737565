"""A kernel for each wrapper of AMD's prelude that moves values between lanes, to and from memory, or multiplies; for a
wave of 64."""
from __future__ import annotations

from tests.backends.cuda.wrappers import HALVES
from tests.backends.cuda.wrappers import kernel as text_of
from tests.backends.hip.test_clang import product
from tilelang.backends.hip.target import target

HEADER = '#define TL_WARP 64\n#include "tl.h"\n'
MASKS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63)


def kernel(name: str, params: str, body: str) -> str:
    return text_of(name, params, f"  const int t = tl::thread();\n{body}", 64)


def shuffles() -> list[str]:
    """Every shuffle of one value of each type, and every exchange that is an instruction of its own."""
    out = []
    for t in ("tl::i8", "tl::u16", "tl::u32", "tl::i64", "double"):
        moves = [("shfl_xor", str(m)) for m in (1, 8, 16, 32)] + [("shfl", "(t * 7 + 3) % 64"), ("shfl", "61"),
                                                                   ("shfl_up", "5"), ("shfl_down", "9")]
        if t == "tl::u32":
            moves += [("shfl_xor", str(m)) for m in MASKS]
        body = "".join(f"  tl::st<1>(o, {64 * i} + t, tl::vec<{t}, 1>{{tl::{f}(v, {by}, tl::op(1))}}, tl::op(2));\n"
                       for i, (f, by) in enumerate(moves))
        out.append(kernel(f"shuffle_{t.removeprefix('tl::')}", f"tl::gptr<const {t}> a, tl::gptr<{t}> o",
                          f"  const {t} v = tl::ld<1>(a, t, tl::op(3))[0];\n{body}"))
        body = "".join(f"""  tl::swap_lanes<{by}>(x, y, tl::op(1));
  tl::st<1>(o, {128 * i} + t, tl::vec<{t}, 1>{{x}}, tl::op(2));
  tl::st<1>(o, {128 * i + 64} + t, tl::vec<{t}, 1>{{y}}, tl::op(2));\n""" for i, by in enumerate((32, 16, 8, 1)))
        out.append(kernel(f"swap_{t.removeprefix('tl::')}", f"tl::gptr<const {t}> a, tl::gptr<{t}> o",
                          f"  {t} x = tl::ld<1>(a, t, tl::op(3))[0], y = tl::ld<1>(a, 64 + t, tl::op(4))[0];\n{body}"))
    return out


def memory() -> list[str]:
    """Loads and stores of every width, plain, masked, and through windows."""
    out = []
    for t, size in (("tl::u8", 1), ("tl::u16", 2), ("float", 4), ("tl::i64", 8)):
        for n in (1, 2, 4, 8, 16):
            if n * size > 16:
                continue
            out.append(kernel(f"memory_{t.removeprefix('tl::')}_{n}",
                              f"tl::gptr<const {t}> a, tl::gptr<{t}> o, tl::i64 n", f"""
  TL_SHARED(smem, 2048);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 512, 64 * {n});
  tl::st<{n}>(s, (63 - t) * {n}, tl::ld<{n}>(a, t * {n}, t < n, tl::op(1)), tl::op(2));
  tl::barrier(tl::op(3));
  tl::st<{n}>(o, t * {n}, tl::ld<{n}>(s, t * {n}, tl::op(4)), tl::op(5));
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, (t + 64) * {n}, tl::op(6)), t < n, tl::op(7));
  tl::barrier(tl::op(8));
  tl::st<{n}>(o, (64 + t) * {n}, tl::ld<{n}>(s, (t ^ 1) * {n}, t % 3 != 0, tl::op(9)), t < n + 7, tl::op(10));"""))
            out.append(kernel(f"window_{t.removeprefix('tl::')}_{n}",
                              f"tl::gptr<const {t}> a, tl::gptr<{t}> o, tl::i64 n", f"""
  const auto w = tl::window_of(a, 16, n * {n});
  const auto x = tl::window_of(o, {64 * n}, n * {n});
  tl::st<{n}>(o, t * {n}, tl::ld<{n}>(w, (t - 5) * {n}, tl::op(1)), tl::op(2));
  tl::st<{n}>(x, (t - 2) * {n}, tl::ld<{n}>(w, t * {n}, t % 5 != 0, tl::op(3)), t != 7, tl::op(4));"""))
    bits = "\n".join(f"  tl::st_bits<{w}>(o, {w * 256} + t * {w}, tl::ld_bits<{w}>(a, {w * 100 + 5} + t * {w}, t < n, "
                     f"tl::op({w})), t < n, tl::op({w}));" for w in range(1, 9))
    codes = "\n".join(f"""  {{
    const auto v = tl::ld_codes<{w}, {n}, {size}>(a, tl::i64(t % 4 * {n * w}), t % 5 != 0, tl::op({w}));
    TL_UNROLL for (int i = 0; i < 4; i++)
      tl::st<1>(o, i * 320 + {at} + t, tl::vec<tl::u8, 1>{{tl::u8(v[i * {n - 1} / 3])}}, tl::op({w}));
  }}""" for at, (w, n, size) in zip(range(0, 320, 64), ((4, 32, 16), (6, 32, 8), (3, 8, 1), (7, 16, 2), (4, 8, 4)),
                                    strict=True))
    return [*out, kernel("bits", "tl::gptr<const tl::u8> a, tl::gptr<tl::u8> o, tl::i64 n", bits),
            kernel("codes", "tl::gptr<const tl::u8> a, tl::gptr<tl::u8> o", codes)]


def atomics() -> list[str]:
    """Every atomic: a lane's own element tells what it found, the last is everybody's."""
    out = []
    for t, half in (("tl::i32", ""), ("tl::u64", ""), ("float", ""), ("double", ""), *HALVES):
        name = half[1:] or t.removeprefix("tl::")
        start = f"tl::f32_to{half}(t % 9 - 4)" if half else f"{t}(t * 5 - 70)"
        body = "\n".join(f"""  r = tl::atomic_{f}{half}({p}, {i * 65} + t, v, m && t % 3 != 0, tl::op({i}));
  tl::st<1>(o, {64 * (i + 4 * (p == "s"))} + t, tl::vec<{t}, 1>{{r}}, tl::op({i}));
  tl::atomic_{f}{half}({p}, {i * 65} + 64, v, m, tl::op({i}));""" for i, f in enumerate(("add", "max", "min"))
                         for p in ("a", "s"))
        out.append(kernel(f"atomic_{name}", f"tl::gptr<{t}> a, tl::gptr<{t}> o, bool m", f"""
  TL_SHARED(smem, 2560);
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 0, 320);
  for (int i = 0; i < 5; i++) tl::st<1>(s, i * 64 + t, tl::ld<1>(a, i * 64 + t, tl::op(5)), tl::op(6));
  tl::barrier(tl::op(7));
  {t} v = {start}, r;
{body}
  r = tl::atomic_cas(a, 200 + t, {t}(t % 2), v, m, tl::op(8));
  tl::st<1>(o, 192 + t, tl::vec<{t}, 1>{{r}}, tl::op(8));
  r = tl::atomic_cas(s, 200 + t, {t}(t % 2), v, m, tl::op(9));
  tl::st<1>(o, 448 + t, tl::vec<{t}, 1>{{r}}, tl::op(9));
  tl::barrier(tl::op(10));
  for (int i = 0; i < 5; i++) tl::st<1>(o, 512 + i * 64 + t, tl::ld<1>(s, i * 64 + t, tl::op(11)), tl::op(12));"""))
    return out


def copies(arch: str) -> list[str]:
    """Copies from windows into local memory, and what has come after each wait."""
    widths = [n for n in (1, 4) if 4 * n <= target(f"hip:{arch}").dma]
    return [kernel(f"dma_{n}", "tl::gptr<const float> a, tl::gptr<float> o, tl::i64 n", f"""
  TL_SHARED(smem, 4096);
  const tl::sptr<float> s = tl::shared<float>(smem, 1024, 128 * {n});
  const auto w = tl::window_of(a, 4, n * {n});
  tl::dma<{n}>(s, 0, w, (63 - t) * {n}, t % 9 != 0, tl::op(1));
  tl::dma<{n}>(s, 64 * {n}, w, (t ^ 3) * {n}, true, tl::op(2));
  tl::wait_operations<1>(tl::op(3));
  tl::barrier(tl::op(4));
  tl::st<{n}>(o, t * {n}, tl::ld<{n}>(s, t * {n}, tl::op(5)), tl::op(6));
  tl::wait_operations<0>(tl::op(7));
  tl::barrier(tl::op(8));
  tl::st<{n}>(o, (64 + t) * {n}, tl::ld<{n}>(s, (64 + t) * {n}, tl::op(9)), tl::op(10));""") for n in widths]


def transposed(arch: str) -> list[str]:
    """Loads that transpose, of rows in another order."""
    if not target(f"hip:{arch}").transposed_loads:
        return []
    return [kernel(f"transposed_{t}", f"tl::gptr<const tl::{t}> a, tl::gptr<tl::{t}> o", f"""
  TL_SHARED(smem, 1024);
  const tl::sptr<tl::{t}> s = tl::shared<tl::{t}>(smem, 512, 64 * {n});
  tl::st<{n}>(s, t * {n}, tl::ld<{n}>(a, t * {n}, tl::op(1)), tl::op(2));
  tl::barrier(tl::op(3));
  tl::st<{n}>(o, t * {n}, tl::ld_transposed(s, (t * 5 + 3) % 64 * {n}, tl::op(4)), tl::op(5));""")
            for t, n in (("u8", 8), ("u16", 4))]


def named(texts: list[str]) -> dict[str, str]:
    """Texts of kernels by their names."""
    return {k.partition("(")[2].partition(",")[0]: k for k in texts}


def common() -> dict[str, str]:
    """The kernels that are the same for every processor, without the header."""
    return named([*shuffles(), *memory(), *atomics()])


def own(arch: str) -> dict[str, str]:
    """Those that one processor has."""
    return named([*copies(arch), *transposed(arch), *(product(row) for row in target(f"hip:{arch}").mma)])
