#pragma once
// Arithmetic by what clang lowers to instructions. There is no mathematical library: f32 exponentials and logarithms
// are instructions with corrections, the rest rounds what `soft` computes in f64.
#include "tl_elementary.h"

namespace tl {

#define TL_MATH(NAME, BUILTIN)                                      \
  TL_FN float NAME(float x) { return __builtin_##BUILTIN##f(x); }   \
  TL_FN double NAME(double x) { return __builtin_##BUILTIN(x); }
TL_MATH(sqrt, sqrt)
TL_MATH(abs, fabs)
TL_MATH(floor, floor)
TL_MATH(ceil, ceil)
TL_MATH(round, rint)
TL_MATH(trunc, trunc)
#undef TL_MATH

namespace native {

// `v_exp_f32`, which gives 0 for what is below 2**-126.
TL_FN float exp2(float x) {
#if __has_builtin(__builtin_amdgcn_exp2f)
  return __builtin_amdgcn_exp2f(x);
#else  // older compilers make the instruction of this
  return __builtin_exp2f(x);
#endif
}

// By the compiler's own name, as there is no builtin: 0 times anything is 0.
__attribute__((device)) float mul_legacy(float, float) __asm("llvm.amdgcn.fmul.legacy");

// 2**t for t = x log2(e), and what rounding, and keeping t below 128, took from the exponent: x - t log(2). Only a
// result of 0 ignores that, which for -inf is NaN. NaN becomes the largest t, and stays in what was taken.
TL_FN float exp(float x) {
  const float t = __builtin_fminf(x * 0x1.715476p+0f, 0x1.fffffep+6f), power = exp2(t);
  const float rest = __builtin_fmaf(t, 0x1.05c610p-29f, __builtin_fmaf(-t, 0x1.62e430p-1f, x));
  return power + mul_legacy(power, rest);
}

}  // namespace native

#define TL_MATH(NAME, F32)                                  \
  TL_FN float NAME(float x) { return float(F32(x)); }       \
  TL_FN double NAME(double x) { return soft::NAME(x); }
TL_MATH(exp, native::exp)
TL_MATH(exp2, native::exp2)
TL_MATH(log, __builtin_logf)
TL_MATH(log2, __builtin_log2f)
TL_MATH(sin, soft::sin)
TL_MATH(cos, soft::cos)
TL_MATH(tanh, soft::tanh)
TL_MATH(erf, soft::erf)
#undef TL_MATH

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
#if __has_builtin(__builtin_elementwise_maximum)  // NaN wins; one instruction of gfx950
TL_FN float max(float a, float b) { return __builtin_elementwise_maximum(a, b); }
TL_FN float min(float a, float b) { return __builtin_elementwise_minimum(a, b); }
#endif

TL_FN float f16_to_f32(u16 h) { return float(bits<_Float16>(h)); }
TL_FN u16 f32_to_f16(float x) { return bits<u16>(_Float16(x)); }
using half2 = _Float16 __attribute__((ext_vector_type(2)));
// By the name of the compiler's own function: the builtin came later than to compilers still in use.
__attribute__((device)) half2 fma_v2f16(half2, half2, half2) __asm("llvm.fma.v2f16");
TL_FN u32 fma_halves(u32 a, u32 b, u32 c) {
  return bits<u32>(fma_v2f16(bits<half2>(a), bits<half2>(b), bits<half2>(c)));
}
// Opaque to the compiler, which would take a shift and a mask for each use of the bytes; 12 selects zeros.
TL_FN u32 odd_bytes(u32 x) { return __builtin_amdgcn_perm(0, x, 0x0c030c01); }
template <class H> using two_halves = H __attribute__((ext_vector_type(2)));
template <u32 F> TL_FN u32 mad_halves(u32 x) { return bits<u32>(bits<two_halves<u16>>(x) * u16(F)); }
template <u32 F> TL_FN u32 mad_halves(u32 x, u32 added) {
  if constexpr (F == 1) return bits<u32>(bits<two_halves<u16>>(x) + bits<two_halves<u16>>(added));
  u32 r;  // the compiler would make a shift and an addition of powers of two
  asm("v_pk_mad_u16 %0, %1, %2, %3" : "=v"(r) : "v"(x), "s"(F * 0x10001u), "v"(added));
  return r;
}
template <class H> TL_FN u32 shift_halves(u32 x, int by) { return bits<u32>(bits<two_halves<H>>(x) >> H(by)); }
TL_FN u16 f32_to_bf16(float x) {
#ifdef __gfx950__
  return bits<u16>(__bf16(x));
#else
  return f32_to_bf16_soft(x);
#endif
}

TL_FN int popcount(u32 x) { return __builtin_popcount(x); }
TL_FN int popcount(u64 x) { return __builtin_popcountll(x); }

}  // namespace tl
