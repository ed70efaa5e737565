#pragma once
// How an instruction finds a matrix in shared memory (PTX ISA 8.7, section 9.7.15.5.1.2: matrix descriptor format).

namespace tl {

// Rows of WIDTH bytes begin at `address`; LEADING bytes from one panel of rows to the next, STRIDE from eight rows to
// the next eight.
template <int WIDTH, int LEADING, int STRIDE>
TL_FN constexpr u64 descriptor(u32 address) {
  static_assert(WIDTH == 128 || WIDTH == 64 || WIDTH == 32, "rows of 128, 64 or 32 bytes");
  static_assert(LEADING % 16 == 0 && STRIDE % 16 == 0 && LEADING >> 18 == 0 && STRIDE >> 18 == 0,
                "14 bits of 16 bytes");
  constexpr u64 mode = WIDTH == 128 ? 1 : WIDTH == 64 ? 2 : 3;
  const u32 low = ((address & 0x3ffff) >> 4) + (u32(LEADING >> 4) << 16);
  return (u64(STRIDE >> 4) | mode << 30) << 32 | low;
}

}  // namespace tl
