#pragma once
// Arithmetic of emulated kernels: the host's C library, called without its headers.

namespace tl {

#define EMU_MATH(NAME, BUILTIN)                                     \
  TL_FN float NAME(float x) { return __builtin_##BUILTIN##f(x); }   \
  TL_FN double NAME(double x) { return __builtin_##BUILTIN(x); }
EMU_MATH(exp, exp)
EMU_MATH(exp2, exp2)
EMU_MATH(log, log)
EMU_MATH(log2, log2)
EMU_MATH(sqrt, sqrt)
EMU_MATH(sin, sin)
EMU_MATH(cos, cos)
EMU_MATH(tanh, tanh)
EMU_MATH(erf, erf)
EMU_MATH(abs, fabs)
EMU_MATH(floor, floor)
EMU_MATH(ceil, ceil)
EMU_MATH(round, rint)
EMU_MATH(trunc, trunc)
#undef EMU_MATH

}  // namespace tl

#include "tl_derived.h"
#include "tl_two.h"

namespace tl {

TL_FN float rsqrt(float x) { return 1.0f / sqrt(x); }
TL_FN double rsqrt(double x) { return 1.0 / sqrt(x); }
TL_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TL_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

template <class T> TL_FN T max(T a, plain<T> b) { return larger(a, b); }
template <class T> TL_FN T min(T a, plain<T> b) { return smaller(a, b); }

TL_FN float f16_to_f32(u16 h) { return f16_to_f32_soft(h); }
TL_FN u16 f32_to_f16(float x) { return f32_to_f16_soft(x); }
TL_FN u16 f32_to_bf16(float x) { return f32_to_bf16_soft(x); }
TL_FN u32 finite_bf16(float low, float high) { return finite_bf16_soft(low, high); }

// The sum in f64 decides every tie as the exact one would. Where f32 lacks it, that is made odd: rounding to f16 is
// then right.
TL_FN u16 fma_half(u16 a, u16 b, u16 c) {
  const double sum = double(f16_to_f32(a)) * f16_to_f32(b) + f16_to_f32(c);
  const float near = float(sum);
  if (!(sum < near || sum > near)) return f32_to_f16(near);
  return f32_to_f16(bits<float>((bits<u32>(near) - ((sum > near) != (near > 0))) | 1));
}

TL_FN u32 fma_halves(u32 a, u32 b, u32 c) {
  return fma_half(u16(a), u16(b), u16(c)) | u32(fma_half(u16(a >> 16), u16(b >> 16), u16(c >> 16))) << 16;
}

TL_FN u32 odd_bytes(u32 x) { return x >> 8 & 0x00ff00ffu; }
// Of both 16-bit halves of a word, unsigned ones or of type H.
template <u32 F> TL_FN u32 mad_halves(u32 x, u32 added = 0) {
  return (x * F + added & 0xffffu) | ((x & 0xffff0000u) * F + added & 0xffff0000u);
}
template <class H> TL_FN u32 shift_halves(u32 x, int by) { return u16(H(x) >> by) | u32(u16(H(x >> 16) >> by)) << 16; }
TL_FN int popcount(u32 x) { return __builtin_popcount(x); }
TL_FN int popcount(u64 x) { return __builtin_popcountll(x); }

}  // namespace tl
