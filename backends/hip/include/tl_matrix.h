#pragma once
// Matrix instructions. The registers of a fragment follow one another in the order of the rows in `instructions.py`.

namespace tl {

using half4 = _Float16 __attribute__((ext_vector_type(4)));
using half8 = _Float16 __attribute__((ext_vector_type(8)));
using short4 = short __attribute__((ext_vector_type(4)));  // bf16, for instructions that are older than the type
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

#ifdef __gfx950__
using int2 = int __attribute__((ext_vector_type(2)));

// Of sixteen lanes each names the elements in 8 bytes and gets one of each of as many lanes.
template <class T>
TL_FN vec<plain<T>, 8 / sizeof(T)> ld_transposed(T* s, int off, op) {
  static_assert(sizeof(T) <= 2, "elements of 8 or 16 bits");
  vec<plain<T>, 8 / sizeof(T)> v;
  if constexpr (sizeof(T) == 2) {
    const short4 x = __builtin_amdgcn_ds_read_tr16_b64_v4i16((__attribute__((address_space(3))) short4*)(s + off));
    TL_COPY(&v, &x, sizeof v);
  } else {
    const int2 x = __builtin_amdgcn_ds_read_tr8_b64_v2i32((__attribute__((address_space(3))) int2*)(s + off));
    TL_COPY(&v, &x, sizeof v);
  }
  return v;
}
#endif

// D = A * B + D.
#define TL_MFMA(NAME, D, OPERAND, BUILTIN)                                                                     \
  template <class T, int NA, class A, int NB, class B, int NC>                                                 \
  TL_FN void mfma_##NAME(vec<T, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {   \
    set_operand(d, i, __builtin_amdgcn_mfma_##BUILTIN(operand<OPERAND>(a, j), operand<OPERAND>(b, k),          \
                                                      operand<D>(d, i), 0, 0, 0));                             \
  }

// The registers of each part of k are those of the smaller product.
#define TL_MFMA_TWICE(NAME, HALF, REGISTERS)                                                                   \
  template <class T, int NA, class A, int NB, class B, int NC>                                                 \
  TL_FN void mfma_##NAME(vec<T, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op o) { \
    mfma_##HALF(d, i, a, j, b, k, o);                                                                          \
    mfma_##HALF(d, i, a, j + REGISTERS, b, k + REGISTERS, o);                                                  \
  }

TL_MFMA(16x16x16_f16, float4, half4, f32_16x16x16f16)
TL_MFMA(32x32x8_f16, float16, half4, f32_32x32x8f16)
TL_MFMA(16x16x16_bf16, float4, short4, f32_16x16x16bf16_1k)
TL_MFMA(32x32x8_bf16, float16, short4, f32_32x32x8bf16_1k)
TL_MFMA(16x16x4_f32, float4, float, f32_16x16x4f32)
TL_MFMA_TWICE(16x16x8_f32, 16x16x4_f32, 1)
TL_MFMA_TWICE(16x16x16_f32, 16x16x8_f32, 2)
TL_MFMA(32x32x2_f32, float16, float, f32_32x32x2f32)
TL_MFMA(16x16x4_f64, double4, double, f64_16x16x4f64)
TL_MFMA_TWICE(16x16x8_f64, 16x16x4_f64, 1)

#ifdef __gfx950__
using bfloat8 = __bf16 __attribute__((ext_vector_type(8)));  // older compilers do not know the type
TL_MFMA(16x16x32_f16, float4, half8, f32_16x16x32_f16)
TL_MFMA(32x32x16_f16, float16, half8, f32_32x32x16_f16)
TL_MFMA(16x16x32_bf16, float4, bfloat8, f32_16x16x32_bf16)
TL_MFMA(32x32x16_bf16, float16, bfloat8, f32_32x32x16_bf16)
#else
TL_MFMA_TWICE(16x16x32_f16, 16x16x16_f16, 4)
TL_MFMA_TWICE(16x16x32_bf16, 16x16x16_bf16, 4)
TL_MFMA_TWICE(32x32x16_f16, 32x32x8_f16, 4)
TL_MFMA_TWICE(32x32x16_bf16, 32x32x8_bf16, 4)
#endif

#ifdef __gfx90a__
TL_MFMA(16x16x16_i8, int4, int, i32_16x16x16i8)
TL_MFMA_TWICE(16x16x32_i8, 16x16x16_i8, 4)
TL_MFMA(32x32x8_i8, int16, int, i32_32x32x8i8)
#else
TL_MFMA(16x16x32_i8, int4, bytes8, i32_16x16x32_i8)
TL_MFMA(32x32x16_i8, int16, bytes8, i32_32x32x16_i8)
#ifdef __gfx950__
TL_MFMA(16x16x64_i8, int4, int4, i32_16x16x64_i8)
TL_MFMA(32x32x32_i8, int16, int4, i32_32x32x32_i8)
#else
TL_MFMA_TWICE(16x16x64_i8, 16x16x32_i8, 8)
#endif

#define TL_MFMA_F8(KINDS, BUILTIN)                                       \
  TL_MFMA(16x16x32_##KINDS, float4, bytes8, f32_16x16x32_##BUILTIN)      \
  TL_MFMA_TWICE(16x16x64_##KINDS, 16x16x32_##KINDS, 8)                   \
  TL_MFMA(32x32x16_##KINDS, float16, bytes8, f32_32x32x16_##BUILTIN)
#ifdef __gfx942__
TL_MFMA(16x16x8_tf32, float4, float2, f32_16x16x8_xf32)
TL_MFMA(32x32x4_tf32, float16, float2, f32_32x32x4_xf32)
// These read other formats than the same instructions of later processors.
TL_MFMA_F8(e4m3fnuz_e4m3fnuz, fp8_fp8)
TL_MFMA_F8(e4m3fnuz_e5m2fnuz, fp8_bf8)
TL_MFMA_F8(e5m2fnuz_e4m3fnuz, bf8_fp8)
TL_MFMA_F8(e5m2fnuz_e5m2fnuz, bf8_bf8)
#else
TL_MFMA_F8(e4m3_e4m3, fp8_fp8)
TL_MFMA_F8(e4m3_e5m2, fp8_bf8)
TL_MFMA_F8(e5m2_e4m3, bf8_fp8)
TL_MFMA_F8(e5m2_e5m2, bf8_bf8)
#endif
#undef TL_MFMA_F8
#endif

#ifdef __gfx950__
using int8 = int __attribute__((ext_vector_type(8)));

// The first words of a fragment in the eight that the builtin takes whatever the type; the instruction names so many.
template <int WORDS, class T, int N>
TL_FN int8 words_of(const vec<T, N>& v, int at) {
  T x[32 / sizeof(T)] = {};
  TL_UNROLL for (int i = 0; i < WORDS * 4 / int(sizeof(T)); i++) x[i] = v[at + i];
  int8 y;
  TL_COPY(&y, x, sizeof y);
  return y;
}

// D = A * B + D, of small floats by the number of their type; then the same with A and B times powers of two, in e8m0.
#define TL_SMALL(M, K, D, A, A_TYPE, A_WORDS, B, B_TYPE, B_WORDS)                                               \
  template <class T, int NA, class X, int NB, class Y, int NC>                                                  \
  TL_FN void mfma_##M##x##M##x##K##_##A##_##B(vec<T, NA>& d, int i, const vec<X, NB>& a, int j,                 \
                                              const vec<Y, NC>& b, int k, op) {                                 \
    set_operand(d, i, __builtin_amdgcn_mfma_scale_f32_##M##x##M##x##K##_f8f6f4(                                 \
        words_of<A_WORDS>(a, j), words_of<B_WORDS>(b, k), operand<D>(d, i), A_TYPE, B_TYPE, 0, 0, 0, 0));       \
  }                                                                                                             \
  template <class T, int NA, class X, int NB, class Y, int NC>                                                  \
  TL_FN void mfma_##M##x##M##x##K##_##A##_##B(vec<T, NA>& d, int i, const vec<X, NB>& a, int j,                 \
                                              const vec<Y, NC>& b, int k, u8 by_a, u8 by_b, op) {               \
    set_operand(d, i, __builtin_amdgcn_mfma_scale_f32_##M##x##M##x##K##_f8f6f4(                                 \
        words_of<A_WORDS>(a, j), words_of<B_WORDS>(b, k), operand<D>(d, i), A_TYPE, B_TYPE, 0, by_a, 0, by_b)); \
  }
#define TL_SMALL_BY(A, A_TYPE, A_WORDS, B, B_TYPE, B_WORDS)                   \
  TL_SMALL(16, 128, float4, A, A_TYPE, A_WORDS, B, B_TYPE, B_WORDS)           \
  TL_SMALL(32, 64, float16, A, A_TYPE, A_WORDS, B, B_TYPE, B_WORDS)
#define TL_SMALL_OF(A, A_TYPE, A_WORDS)            \
  TL_SMALL_BY(A, A_TYPE, A_WORDS, e4m3, 0, 8)      \
  TL_SMALL_BY(A, A_TYPE, A_WORDS, e5m2, 1, 8)      \
  TL_SMALL_BY(A, A_TYPE, A_WORDS, e2m3, 2, 6)      \
  TL_SMALL_BY(A, A_TYPE, A_WORDS, e3m2, 3, 6)      \
  TL_SMALL_BY(A, A_TYPE, A_WORDS, e2m1, 4, 4)
TL_SMALL_OF(e4m3, 0, 8)
TL_SMALL_OF(e5m2, 1, 8)
TL_SMALL_OF(e2m3, 2, 6)
TL_SMALL_OF(e3m2, 3, 6)
TL_SMALL_OF(e2m1, 4, 4)
#undef TL_SMALL_OF
#undef TL_SMALL_BY
#undef TL_SMALL
#endif
#undef TL_MFMA_TWICE
#undef TL_MFMA

}  // namespace tl
