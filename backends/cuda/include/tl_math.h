#pragma once
// Arithmetic by the functions that NVRTC knows without headers.

namespace tl {

#define TL_MATH(NAME, FUNCTION)                        \
  TL_FN float NAME(float x) { return ::FUNCTION##f(x); } \
  TL_FN double NAME(double x) { return ::FUNCTION(x); }
TL_MATH(exp, exp)
TL_MATH(log, log)
TL_MATH(log2, log2)
TL_MATH(sqrt, sqrt)
TL_MATH(rsqrt, rsqrt)
TL_MATH(sin, sin)
TL_MATH(cos, cos)
TL_MATH(tanh, tanh)
TL_MATH(erf, erf)
TL_MATH(abs, fabs)
TL_MATH(floor, floor)
TL_MATH(ceil, ceil)
TL_MATH(round, rint)
TL_MATH(trunc, trunc)
#undef TL_MATH

// One instruction instead of four: 0 for what is below 2**-126 (PTX ISA 8.7, section 9.7.3: ex2).
TL_FN float exp2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
TL_FN double exp2(double x) { return ::exp2(x); }

}  // namespace tl

#include "tl_derived.h"

namespace tl {

TL_FN float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
TL_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }

template <class T>
TL_FN T max(T a, plain<T> b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (same<T, float>::value) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
  }
#endif
  return larger(a, b);
}

template <class T>
TL_FN T min(T a, plain<T> b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (same<T, float>::value) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
  }
#endif
  return smaller(a, b);
}

TL_FN float f16_to_f32(u16 h) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
}

TL_FN u16 f32_to_f16(float x) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}

TL_FN u32 fma_halves(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// Opaque to the compiler, which would take a shift and a mask for each use of the bytes.
TL_FN u32 odd_bytes(u32 x) {
  u32 r;
  asm("prmt.b32 %0, %1, 0, 0x4341;" : "=r"(r) : "r"(x));
  return r;
}

// Of both 16-bit halves of a word, unsigned ones or of type H.
template <u32 F> TL_FN u32 mad_halves(u32 x, u32 added = 0) {
  return (x * F + added & 0xffffu) | ((x & 0xffff0000u) * F + added & 0xffff0000u);
}
template <class H> TL_FN u32 shift_halves(u32 x, int by) { return u16(H(x) >> by) | u32(u16(H(x >> 16) >> by)) << 16; }

TL_FN u16 f32_to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
#else
  return f32_to_bf16_soft(x);
#endif
}

TL_FN u32 finite_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
  u32 r;
  asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return finite_bf16_soft(low, high);
#endif
}

TL_FN int popcount(u32 x) { return __popc(x); }
TL_FN int popcount(u64 x) { return __popcll(x); }

}  // namespace tl
