#pragma once
// What every prelude shares: types, register vectors and the arithmetic that needs no intrinsic. The prelude that
// includes this defines TL_FN, the qualifiers of a function, TL_COPY, its memcpy, and TL_WHOLE, which hides from the
// compiler how a register was made: it would compute the parts one by one. No
// standard headers: they cost more than the kernel.

#define TL_UNROLL _Pragma("unroll")

namespace tl {

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// The IR operation a call was emitted for. It disappears in code for a GPU; reports of the emulator carry it.
struct op {
  int id;
  TL_FN constexpr explicit op(int id) : id(id) {}
};

// Registers of one thread.
template <class T, int N>
struct vec {
  T v[N];
  TL_FN constexpr T& operator[](int i) { return v[i]; }
  TL_FN constexpr const T& operator[](int i) const { return v[i]; }
};

template <class T> struct plain_of { using type = T; };
template <class T> struct plain_of<const T> { using type = T; };
template <class T> using plain = typename plain_of<T>::type;  // also keeps an argument out of deduction

template <class T, class A> struct same { static constexpr bool value = false; };
template <class T> struct same<T, T> { static constexpr bool value = true; };
template <class T> constexpr bool is_float = same<T, float>::value || same<T, double>::value;

// ---- bits

template <class To, class From>
TL_FN To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
  To y;
  TL_COPY(&y, &x, sizeof y);
  return y;
}

// The bits of registers as those of another type, the lowest first.
template <class To, class T, int N>
TL_FN auto recast(const vec<T, N>& v) {
  vec<To, N * int(sizeof(T)) / int(sizeof(To))> out;
  vec<T, N> whole = v;
  TL_UNROLL for (int i = 0; i < N; ++i) TL_WHOLE(whole[i]);
  TL_COPY(&out, &whole, sizeof out);
  return out;
}

template <int BYTES> struct unsigned_of;
template <> struct unsigned_of<1> { using type = u8; };
template <> struct unsigned_of<2> { using type = u16; };
template <> struct unsigned_of<4> { using type = u32; };
template <> struct unsigned_of<8> { using type = u64; };
template <class T> using as_unsigned = typename unsigned_of<sizeof(T)>::type;

// A code of W bits in a stream of bytes, the lowest bit first: its byte i is there where shift + W > 8 * i, `shift`
// being the bit of byte 0 at which it begins.
template <int W> using code = typename unsigned_of<(W <= 32 ? 4 : 8)>::type;
template <int W> constexpr code<W> all_ones = code<W>(~code<W>(0)) >> (8 * sizeof(code<W>) - W);

template <int W>
TL_FN code<W> read_code(const u8* q, int shift) {
  code<W> x = code<W>(q[0]) >> shift;
  TL_UNROLL for (int i = 1; i < (W + 14) / 8; ++i)
    if (shift + W > 8 * i) x |= code<W>(q[i]) << (8 * i - shift);
  return x & all_ones<W>;
}

template <int W>
TL_FN u8 byte_of(code<W> x, int i, int shift) { return u8(i ? x >> (8 * i - shift) : x << shift); }

template <class T> constexpr bool is_signed = T(-1) < T(0);
template <class T> constexpr T highest = is_signed<T> ? T((as_unsigned<T>(1) << (8 * sizeof(T) - 1)) - 1) : T(~T(0));
template <class T> constexpr T lowest = T(~highest<T>);

// NVRTC 13.0 warns of a comparison with 0 where no T is below it.
template <class T>
TL_FN bool negative(T a) {
  if constexpr (is_signed<T>) return a < 0;
  return false;
}

// The index of a loop's next iteration, or its end: the sum may be no number of the type.
template <class T>
TL_FN T next(T i, plain<T> step, plain<T> end) {
  using U = as_unsigned<T>;
  const U left = U(U(end) - U(i));
  return T(U(i) + (U(step) < left ? U(step) : left));
}

// Atomic updates of numbers kept as their codes: what is there, `a`, by `b`, in f32, rounded once.
#define TL_HALF_ATOMICS(ONE)                                                        \
  ONE(add, f16, a + b) ONE(max, f16, max(a, b)) ONE(min, f16, min(a, b))            \
  ONE(add, bf16, a + b) ONE(max, bf16, max(a, b)) ONE(min, bf16, min(a, b))

// ---- integers: x // 0 == 0, x % 0 == 0, and the most negative number // -1 wraps

template <class T>
TL_FN T floordiv(T a, plain<T> b) {
  if (b == 0) return 0;
  if constexpr (is_signed<T>) {
    if (b == -1) return T(as_unsigned<T>(0) - as_unsigned<T>(a));
    const T q = T(a / b);
    return a % b != 0 && (a < 0) != (b < 0) ? T(q - 1) : q;
  } else {
    return T(a / b);
  }
}

template <class T>
TL_FN T mod(T a, plain<T> b) {
  if (b == 0) return 0;
  if constexpr (is_signed<T>) {
    if (b == -1) return 0;
    const T r = T(a % b);
    return r != 0 && (r < 0) != (b < 0) ? T(r + b) : r;
  } else {
    return T(a % b);
  }
}

// A count outside [0, bits) shifts everything out; one below 0 is a large u64.
template <class T, class C>
TL_FN T shl(T a, C count) {
  return u64(count) < 8 * sizeof(T) ? T(as_unsigned<T>(a) << count) : T(0);
}

template <class T, class C>
TL_FN T shr(T a, C count) {
  return u64(count) < 8 * sizeof(T) ? T(a >> count) : T(negative(a) ? -1 : 0);
}

template <class T> TL_FN T abs_int(T a) { return negative(a) ? T(as_unsigned<T>(0) - as_unsigned<T>(a)) : a; }

// Toward zero, clamped to the range of T; NaN gives 0.
template <class T, class F>
TL_FN T to_int(F x) {
  if (!(x == x)) return 0;
  if (x <= F(lowest<T>)) return lowest<T>;
  if (x >= F(highest<T>)) return highest<T>;
  return T(x);
}

// ---- lanes DISTANCE apart, a power of two, exchange b of the lower for a of the upper, by the prelude's shuffle

template <int DISTANCE, class T>
TL_FN void exchange(T& a, T& b, int lane, op o) {
  const bool upper = lane & DISTANCE;
  const T other = shfl_xor(upper ? a : b, DISTANCE, o);
  if (upper) a = other;
  else b = other;
}

// ---- 16-bit floats travel as their bits; software conversions, rounding half to even

TL_FN float f16_to_f32_soft(u16 h) {
  const u32 sign = u32(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
  if (exponent == 31) return bits<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return bits<float>(sign | bits<u32>(float(fraction) * 0x1p-24f));
  return bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

TL_FN u16 f32_to_f16_soft(float x) {
  const u32 u = bits<u32>(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return u16(sign | 0x7e00 | (a >> 13 & 0x3ff));
  if (a >= 0x477ff000) return u16(sign | 0x7c00);  // 65520 and above round to infinity
  if (a < 0x38800000) return u16(sign | (bits<u32>(bits<float>(a) + 0.5f) - 0x3f000000));  // multiples of 2**-24
  return u16(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}

TL_FN float bf16_to_f32(u16 h) { return bits<float>(u32(h) << 16); }

TL_FN u16 f32_to_bf16_soft(float x) {
  const u32 u = bits<u32>(x);
  u32 rounded = x != x ? 0x7fc00000 : u + 0x7fff + (u >> 16 & 1);  // no branch
  TL_WHOLE(rounded);  // pairs take the upper halves of two by one instruction
  return u16(rounded >> 16);
}

// Two in a word, the largest where it is beyond.
TL_FN u32 finite_bf16_soft(float low, float high) {
  constexpr u32 largest = 0x7f7f0000u;
  const float x[2] = {low, high};
  u32 out = 0;
  for (int i = 0; i < 2; i++) {
    const u32 b = bits<u32>(x[i]), beyond = b & 0x7fffffffu;
    const u32 near = beyond > largest && beyond <= 0x7f800000u ? (b & 0x80000000u) | largest : b;
    out |= u32(f32_to_bf16_soft(bits<float>(near))) << 16 * i;
  }
  return out;
}

}  // namespace tl

#include "tl_values.h"
#include "tl_order.h"
#include "tl_descriptor.h"
