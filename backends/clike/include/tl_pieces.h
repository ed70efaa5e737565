#pragma once
// Products of f32 by instructions of narrower floats: f32 is a sum of tf32, or of bf16, and the products of these
// pieces add up, the small ones first. Included after mma_m16n8k8_tf32 and mma_m16n8k16_bf16.

namespace tl {

// The nearest number without the low `bits`, or the largest: what is left of x then tells where x is infinite or NaN.
TL_FN float rounded(float x, int bits) {
  const u32 kept = ~0u << bits;
  const float near = tl::bits<float>((tl::bits<u32>(x) + (1u << bits >> 1)) & kept);
  const float largest = tl::bits<float>(0x7f7fffffu & kept);
  return min(max(near, -largest), largest);
}

// Two tf32 that differ from x by at most 2^-23 |x| (2^-22 beyond the largest tf32), of which instructions drop low
// bits.
struct cut_tf32 {
  static constexpr int count = 2;
  template <class V>
  static TL_FN void to(float x, float y, V* pieces, int at, int next) {
    pieces[0][at] = rounded(x, 13);
    pieces[0][next] = rounded(y, 13);
    pieces[1][at] = x - pieces[0][at];
    pieces[1][next] = y - pieces[0][next];
  }
};

// An f16 is a tf32.
struct f16_as_tf32 {
  static constexpr int count = 1;
  template <class V>
  static TL_FN void to(u16 x, u16 y, V* pieces, int at, int next) {
    pieces[0][at] = f16_to_f32(x);
    pieces[0][next] = f16_to_f32(y);
  }
};

// Three bf16 whose sum is x, for |x| from 2^-110; the second is below 2^-8 |x|, the third below 2^-17 |x|.
struct cut_bf16 {
  static constexpr int count = 3;
  template <class V>
  static TL_FN void to(float x, float y, V* pieces, int at, int next) {
    TL_UNROLL for (int p = 0; p < count; p++) {
      const u32 near = p < 2 ? finite_bf16(x, y) : bits<u32>(x) >> 16 | (bits<u32>(y) & 0xffff0000u);
      pieces[p][at] = u16(near);
      pieces[p][next] = u16(near >> 16);
      x = x - bits<float>(near << 16);
      y = y - bits<float>(near & 0xffff0000u);
    }
  }
};

struct as_bf16 {
  static constexpr int count = 1;
  template <class V>
  static TL_FN void to(u16 x, u16 y, V* pieces, int at, int next) {
    pieces[0][at] = x;
    pieces[0][next] = y;
  }
};

template <int N>
TL_FN vec<u16, N> piece_bf16(const vec<float, N>& x) {
  vec<u16, N> out;
  TL_UNROLL for (int i = 0; i < N; i += 2) {
    const u32 near = finite_bf16(x[i], i + 1 < N ? x[i + 1] : 0.0f);
    out[i] = u16(near);
    if (i + 1 < N) out[i + 1] = u16(near >> 16);
  }
  return out;
}

// A fragment of N elements in pieces that instructions take, of type T.
template <class Cut, class T, int N>
struct fragment {
  vec<T, N> pieces[Cut::count];
};

// `order` says where an element goes. A compiler that finds a fragment to be the same in every iteration of a loop
// would keep its pieces in registers: they are made where they are used.
template <class Cut, class T, int N, class Order, class A, int NA>
TL_FN fragment<Cut, T, N> cut(const vec<A, NA>& a, int at, Order order) {
  fragment<Cut, T, N> f;
  TL_UNROLL for (int e = 0; e < N; e += 2) {
    A x = a[at + e], y = a[at + e + 1];
    if constexpr (Cut::count > 1) {
      TL_HERE(x);
      TL_HERE(y);
    }
    Cut::to(x, y, f.pieces, order(e), order(e + 1));
  }
  return f;
}

// Products of pieces, the small ones first; of two f32 those below the last piece of one by the first of the other are
// left out, so that an infinity, which is a last piece, meets no piece that is zero.
#define TL_MMA_PIECES(NAME, BASE, T, NA_, NB_, A_, B_, ORDER)                                                       \
  template <class A, int N>                                                                                         \
  TL_FN fragment<A_, T, NA_> mma_##NAME##_a(const vec<A, N>& a, int at) {                                           \
    return cut<A_, T, NA_>(a, at, [](int e) { return ORDER; });                                                     \
  }                                                                                                                 \
  template <class B, int N>                                                                                         \
  TL_FN fragment<B_, T, NB_> mma_##NAME##_b(const vec<B, N>& b, int at) {                                           \
    return cut<B_, T, NB_>(b, at, [](int e) { return e; });                                                         \
  }                                                                                                                 \
  template <int N>                                                                                                  \
  TL_FN void mma_##NAME(vec<float, N>& d, int i, const fragment<A_, T, NA_>& a, const fragment<B_, T, NB_>& b,      \
                        op o) {                                                                                     \
    constexpr int most = A_::count > B_::count ? A_::count : B_::count;                                             \
    TL_UNROLL for (int s = most - 1; s >= 0; s--)                                                                   \
      TL_UNROLL for (int p = 0; p < A_::count; p++)                                                                 \
        if (s - p >= 0 && s - p < B_::count) mma_##BASE(d, i, a.pieces[p], 0, b.pieces[s - p], 0, o);               \
  }                                                                                                                 \
  template <int NA, class A, int NB, class B, int NC>                                                               \
  TL_FN void mma_##NAME(vec<float, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op o) {   \
    mma_##NAME(d, i, mma_##NAME##_a(a, j), mma_##NAME##_b(b, k), o);                                                \
  }
// Lanes hold neighbours along k as they hold those of sums, so the instruction sees k in another order.
TL_MMA_PIECES(m16n8k16_f32, m16n8k16_bf16, u16, 8, 4, cut_bf16, cut_bf16, e)
TL_MMA_PIECES(m16n8k8_f32_f16, m16n8k8_tf32, float, 4, 2, cut_tf32, f16_as_tf32, e / 2 + e % 2 * 2)
TL_MMA_PIECES(m16n8k8_f16_f32, m16n8k8_tf32, float, 4, 2, f16_as_tf32, cut_tf32, e / 2 + e % 2 * 2)
TL_MMA_PIECES(m16n8k16_f32_bf16, m16n8k16_bf16, u16, 8, 4, cut_bf16, as_bf16, e)
TL_MMA_PIECES(m16n8k16_bf16_f32, m16n8k16_bf16, u16, 8, 4, as_bf16, cut_bf16, e)
#undef TL_MMA_PIECES

}  // namespace tl
