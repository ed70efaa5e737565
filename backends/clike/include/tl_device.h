#pragma once
// What the preludes of all GPUs share: plain pointers, accesses of one instruction each, atomics. The prelude that
// includes this has defined thread() and the hardware's atomics: fetch_add, fetch_max, fetch_min, fetch_cas, fetch_and
// and fetch_or, each of (address, operands), relaxed, with the old value as their result.

namespace tl {

// ---- pointers

template <class T> using gptr = T*;
template <class T> using sptr = T*;

template <class T>
TL_FN T* shared(unsigned char* arena, i64 offset, i64) {
  return reinterpret_cast<T*>(arena + offset);
}

template <class T>
TL_FN sptr<T> block(sptr<T> s, int off) { return s + off; }

// ---- loads and stores: one instruction for each access. Offsets keep their type: those into shared memory are int.

template <int BYTES> struct word_of { using type = as_unsigned<char[BYTES]>; };
struct alignas(8) word8 { u32 low, high; };
struct alignas(16) word16 { u64 low, high; };
template <> struct word_of<8> { using type = word8; };
template <> struct word_of<16> { using type = word16; };
template <class T, int N> using word = typename word_of<N * int(sizeof(T))>::type;

template <int N, class T, class I>
TL_FN vec<plain<T>, N> ld(T* p, I off, op) {
  using W = word<T, N>;
  const W w = *reinterpret_cast<const W*>(p + off);
  vec<plain<T>, N> v;
  TL_COPY(&v, &w, sizeof v);
  return v;
}

template <int N, class T, class I>
TL_FN vec<plain<T>, N> ld(T* p, I off, bool mask, op o) {
  if (mask) return ld<N>(p, off, o);
  return {};
}

template <int N, class T, class I>
TL_FN void st(T* p, I off, const vec<T, N>& v, op) {
  using W = word<T, N>;
  W w;
  TL_COPY(&w, &v, sizeof v);
  *reinterpret_cast<W*>(p + off) = w;
}

template <int N, class T, class I>
TL_FN void st(T* p, I off, const vec<T, N>& v, bool mask, op o) {
  if (mask) st<N>(p, off, v, o);
}

// A code of W bits at any bit; the lowest bit of a byte comes first.
template <int W>
TL_FN code<W> ld_bits(const u8* p, i64 bit, bool mask, op) {
  if (!mask) return 0;
  return read_code<W>(p + (bit >> 3), int(bit & 7));
}

// Clears and sets the bits of a field, in the aligned word around them. Where that word reaches past the buffer it
// keeps what is there: each of the two atomics leaves other bits alone, and a word never crosses a page.
TL_FN void merge_bits(u8* p, u32 field, u32 value) {
  const int shift = 8 * int(reinterpret_cast<u64>(p) & 3);
  u32* w = reinterpret_cast<u32*>(p - (shift >> 3));
  fetch_and(w, ~(field << shift));
  fetch_or(w, value << shift);
}

template <int W>
TL_FN void st_bits(u8* p, i64 bit, code<W> x, bool mask, op) {
  if (!mask) return;
  const int shift = int(bit & 7);
  TL_UNROLL for (int i = 0; i < (W + 14) / 8; ++i)
    if (shift + W > 8 * i)
      merge_bits(p + (bit >> 3) + i, byte_of<W>(all_ones<W>, i, shift), byte_of<W>(x & all_ones<W>, i, shift));
}

// ---- atomics

template <class T, class F>
TL_FN T compare_and_swap(T* p, F change) {
  using U = as_unsigned<T>;
  U* q = reinterpret_cast<U*>(p);
  U seen = *q;
  for (;;) {
    const U wanted = bits<U>(change(bits<T>(seen)));
    const U found = fetch_cas(q, seen, wanted);
    if (found == seen) return bits<T>(seen);
    seen = found;
  }
}

template <class T>
TL_FN T atomic_add(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  return fetch_add(p + off, v);
}

template <class T>
TL_FN T atomic_max(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  if constexpr (is_float<T>)
    return compare_and_swap(p + off, [=](T old) { return max(old, v); });
  else
    return fetch_max(p + off, v);
}

template <class T>
TL_FN T atomic_min(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  if constexpr (is_float<T>)
    return compare_and_swap(p + off, [=](T old) { return min(old, v); });
  else
    return fetch_min(p + off, v);
}

#define TL_HALF_ATOMIC(KIND, H, UPDATED)                                            \
  template <class T>                                                                \
  TL_FN T atomic_##KIND##_##H(T* p, i64 off, plain<T> v, bool mask, op) {           \
    if (!mask) return T(0);                                                         \
    return compare_and_swap(p + off, [=](T old) {                                   \
      const float a = H##_to_f32(old), b = H##_to_f32(v);                           \
      return f32_to_##H(UPDATED);                                                   \
    });                                                                             \
  }
TL_HALF_ATOMICS(TL_HALF_ATOMIC)
#undef TL_HALF_ATOMIC

template <class T>
TL_FN T atomic_cas(T* p, i64 off, plain<T> expected, plain<T> desired, bool mask, op) {
  using U = as_unsigned<T>;
  if (!mask) return T(0);
  return bits<T>(U(fetch_cas(reinterpret_cast<U*>(p + off), bits<U>(expected), bits<U>(desired))));
}

}  // namespace tl

#include "tl_codes.h"
