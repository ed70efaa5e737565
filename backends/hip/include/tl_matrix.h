#pragma once
// Matrix instructions. The registers of a fragment follow one another in the order of the rows in `instructions.py`.

namespace tl {

using half4 = _Float16 __attribute__((ext_vector_type(4)));
using half8 = _Float16 __attribute__((ext_vector_type(8)));
using short4 = short __attribute__((ext_vector_type(4)));  // bf16, for instructions that are older than the type
using bfloat8 = __bf16 __attribute__((ext_vector_type(8)));
using int4 = int __attribute__((ext_vector_type(4)));
using int16 = int __attribute__((ext_vector_type(16)));
using float4 = float __attribute__((ext_vector_type(4)));
using float16 = float __attribute__((ext_vector_type(16)));
using double4 = double __attribute__((ext_vector_type(4)));
using bytes8 = long;

// The registers that start at `at` as an operand of a builtin.
template <class To, class T, int N>
TL_FN To operand(const vec<T, N>& v, int at) {
  constexpr int count = int(sizeof(To) / sizeof(T));
  T x[count];
  TL_UNROLL for (int i = 0; i < count; i++) x[i] = v[at + i];
  To y;
  TL_COPY(&y, x, sizeof y);
  return y;
}

template <class From, class T, int N>
TL_FN void set_operand(vec<T, N>& v, int at, From x) {
  TL_UNROLL for (int i = 0; i < int(sizeof(From) / sizeof(T)); i++) v[at + i] = x[i];
}

// D = A * B + D.
#define TL_MFMA(NAME, D, OPERAND, BUILTIN)                                                                     \
  template <class T, int NA, class A, int NB, class B, int NC>                                                 \
  TL_FN void mfma_##NAME(vec<T, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {   \
    set_operand(d, i, __builtin_amdgcn_mfma_##BUILTIN(operand<OPERAND>(a, j), operand<OPERAND>(b, k),          \
                                                      operand<D>(d, i), 0, 0, 0));                             \
  }

TL_MFMA(16x16x16_f16, float4, half4, f32_16x16x16f16)
TL_MFMA(32x32x8_f16, float16, half4, f32_32x32x8f16)
TL_MFMA(16x16x16_bf16, float4, short4, f32_16x16x16bf16_1k)
TL_MFMA(32x32x8_bf16, float16, short4, f32_32x32x8bf16_1k)
TL_MFMA(16x16x4_f32, float4, float, f32_16x16x4f32)
TL_MFMA(32x32x2_f32, float16, float, f32_32x32x2f32)
TL_MFMA(16x16x4_f64, double4, double, f64_16x16x4f64)

#ifdef __gfx90a__
TL_MFMA(16x16x16_i8, int4, int, i32_16x16x16i8)
TL_MFMA(32x32x8_i8, int16, int, i32_32x32x8i8)
#else
TL_MFMA(16x16x32_i8, int4, bytes8, i32_16x16x32_i8)
TL_MFMA(32x32x16_i8, int16, bytes8, i32_32x32x16_i8)

// The same instructions read other formats on gfx942 than on later processors.
#ifdef __gfx942__
#define TL_F8(A, B) A##fnuz_##B##fnuz
#else
#define TL_F8(A, B) A##_##B
#endif
#define TL_MFMA_F8(KINDS, BUILTIN)                                     \
  TL_MFMA_F8_NAMED(16x16x32_, KINDS, float4, f32_16x16x32_##BUILTIN)   \
  TL_MFMA_F8_NAMED(32x32x16_, KINDS, float16, f32_32x32x16_##BUILTIN)
#define TL_MFMA_F8_NAMED(SHAPE, KINDS, D, BUILTIN) TL_MFMA_JOINED(SHAPE, KINDS, D, BUILTIN)
#define TL_MFMA_JOINED(SHAPE, KINDS, D, BUILTIN) TL_MFMA(SHAPE##KINDS, D, bytes8, BUILTIN)
TL_MFMA_F8(TL_F8(e4m3, e4m3), fp8_fp8)
TL_MFMA_F8(TL_F8(e4m3, e5m2), fp8_bf8)
TL_MFMA_F8(TL_F8(e5m2, e4m3), bf8_fp8)
TL_MFMA_F8(TL_F8(e5m2, e5m2), bf8_bf8)
#undef TL_MFMA_JOINED
#undef TL_MFMA_F8_NAMED
#undef TL_MFMA_F8
#undef TL_F8
#endif

#ifdef __gfx950__
TL_MFMA(16x16x32_f16, float4, half8, f32_16x16x32_f16)
TL_MFMA(32x32x16_f16, float16, half8, f32_32x32x16_f16)
TL_MFMA(16x16x32_bf16, float4, bfloat8, f32_16x16x32_bf16)
TL_MFMA(32x32x16_bf16, float16, bfloat8, f32_32x32x16_bf16)
#endif
#undef TL_MFMA

}  // namespace tl
