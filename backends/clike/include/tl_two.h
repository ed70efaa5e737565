#pragma once
// Arithmetic on registers of f32 where one instruction adds or multiplies two of them.

namespace tl {

using float2 = float __attribute__((vector_size(8)));

TL_FN float2 fma(float2 a, float2 b, float2 c) {
#if defined(__has_builtin) && __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(a, b, c);
#else
  return (float2){__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1])};
#endif
}

template <int N>
TL_FN float2 two(const vec<float, N>& v, int at) { return (float2){v[at], v[at + 1 < N ? at + 1 : at]}; }

template <int N>
TL_FN void put(vec<float, N>& v, int at, float2 x) {
  v[at] = x[0];
  if (at + 1 < N) v[at + 1] = x[1];
}

#define TL_TWO(NAME, SIGN)                                                             \
  template <int N>                                                                      \
  TL_FN vec<float, N> NAME(const vec<float, N>& x, const vec<float, N>& y) {            \
    vec<float, N> v;                                                                    \
    TL_UNROLL for (int i = 0; i < N; i += 2) put(v, i, two(x, i) SIGN two(y, i));      \
    return v;                                                                           \
  }
TL_TWO(add, +)
TL_TWO(sub, -)
TL_TWO(mul, *)
#undef TL_TWO

template <int N>
TL_FN vec<float, N> fma(const vec<float, N>& x, const vec<float, N>& y, const vec<float, N>& z) {
  vec<float, N> v;
  TL_UNROLL for (int i = 0; i < N; i += 2) put(v, i, fma(two(x, i), two(y, i), two(z, i)));
  return v;
}

}  // namespace tl
