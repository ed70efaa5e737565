#pragma once
// Scalar arithmetic as the IR defines it, where C's differs: integers wrap, widths need not be those of C types.

namespace tl {

// c + the four products of the bytes of a and b, modulo 2**32; T and U tell whether bytes are signed.
template <class T, class U>
TL_FN i32 dot4(T a, U b, i32 c) {
  u32 sum = u32(c);
  for (int shift = 24; shift >= 0; shift -= 8) sum += u32(T(u32(a) << shift) >> 24) * u32(U(u32(b) << shift) >> 24);
  return i32(sum);
}


template <class T> TL_FN T inf() { return T(bits<float>(0x7f800000u)); }
template <class T> TL_FN T nan() { return T(bits<float>(0x7fc00000u)); }

template <class T, int N>
TL_FN vec<T, N> full(plain<T> x) {
  vec<T, N> v;
  TL_UNROLL for (int i = 0; i < N; ++i) v[i] = x;
  return v;
}

template <class T> TL_FN T add(T a, plain<T> b) { return T(as_unsigned<T>(a) + as_unsigned<T>(b)); }
template <class T> TL_FN T sub(T a, plain<T> b) { return T(as_unsigned<T>(a) - as_unsigned<T>(b)); }
template <class T> TL_FN T neg(T a) { return T(as_unsigned<T>(0) - as_unsigned<T>(a)); }

// Unsigned arithmetic below 32 bits would be promoted to int, where the product of two u16 overflows.
template <class T>
TL_FN T mul(T a, plain<T> b) {
  using wide = typename unsigned_of<sizeof(T) < 4 ? 4 : sizeof(T)>::type;
  return T(wide(a) * wide(b));
}

// The low BITS bits of x as a value of a BITS wide integer kept in T.
template <class T, int BITS, class A>
TL_FN T wrap(A x) {
  if constexpr (BITS == 8 * sizeof(T)) return T(x);
  const as_unsigned<T> low = as_unsigned<T>(x) & as_unsigned<T>((as_unsigned<T>(1) << (BITS % (8 * sizeof(T)))) - 1);
  if constexpr (!is_signed<T>) return T(low);
  constexpr as_unsigned<T> sign = as_unsigned<T>(1) << ((BITS - 1) % (8 * sizeof(T)));
  return T((low ^ sign) - sign);
}

// A count outside [0, BITS) gives 0, or the sign.
template <int BITS, class T>
TL_FN T shl(T a, plain<T> n) { return n >= 0 && n < BITS ? T(as_unsigned<T>(a) << n) : T(0); }
template <int BITS, class T>
TL_FN T shr(T a, plain<T> n) { return n >= 0 && n < BITS ? T(a >> n) : a < 0 ? T(-1) : T(0); }

// Truncates and saturates to [low, high]; NaN gives 0.
template <class T, class F>
TL_FN T to_int(F x, plain<T> low, plain<T> high) {
  return x != x ? T(0) : x <= F(low) ? low : x >= F(high) ? high : T(x);
}

}  // namespace tl
