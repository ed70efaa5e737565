#pragma once
// Neighbouring codes below 8 bits from memory; included after `ld`.

namespace tl {

// N codes of W bits that begin at a byte whose address is a multiple of CHUNK, as many bytes as an access takes.
template <int W, int N, int CHUNK, class P>
TL_FN vec<code<W>, N> ld_codes(P p, i64 bit, bool mask, op o) {
  constexpr int BYTES = N * W / 8;
  static_assert(N * W % 8 == 0 && BYTES % CHUNK == 0, "whole accesses");
  u32 words[(BYTES + 7) / 4] = {};
  TL_UNROLL for (int i = 0; i < BYTES / CHUNK; i++) {
    const vec<u8, CHUNK> part = ld<CHUNK>(p, (bit >> 3) + i * CHUNK, mask, o);
    TL_COPY((u8*)words + i * CHUNK, &part, CHUNK);
  }
  vec<code<W>, N> v;
  TL_UNROLL for (int i = 0; i < N; i++) {
    const int word = i * W / 32, shift = i * W % 32;
    const u32 low = words[word] >> shift;
    v[i] = (shift + W > 32 ? low | words[word + 1] << (32 - shift) : low) & all_ones<W>;
  }
  return v;
}

}  // namespace tl
