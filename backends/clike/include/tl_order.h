#pragma once
// Which program of a grid a block of threads runs. Every order runs each program once.

namespace tl {

// a / b of a program's number. 32 bits divide much faster than 64, and are nearly always enough.
TL_FN i64 quotient(i64 a, i32 b) { return u64(a) >> 32 ? a / b : i64(u32(a) / u32(b)); }

// The row-major number of the program that runs as number `program` of `total`, in a grid whose last two extents are
// `rows` and `columns`.
//
// DIES chips take programs in turn, each with a cache of its own: of every DIES * RUN programs, RUN neighbours go to
// one chip, fewer in a grid without so many. What is left at the end stays as it is. GROUP rows at a time are walked
// column by column, so that programs that run at once share rows and columns. Of grids that 32 bits do not count, the
// order is row-major.
template <int GROUP, int DIES, int RUN>
TL_FN i64 ordered(i64 program, i64 total, i32 rows, i32 columns) {
  if (total >> 31) return program;
  u32 p = u32(program);
  if constexpr (DIES > 1) {
    const u32 share = u32(total) / DIES, each = share < RUN ? share : RUN, turn = DIES * each;
    if (each && p < u32(total) / turn * turn) p = p / turn * turn + p % DIES * each + p % turn / DIES;
  }
  if constexpr (GROUP > 1) {
    const u32 plane = u32(rows) * u32(columns), first = p / plane * plane, q = p - first;
    const u32 band = u32(GROUP < rows ? GROUP : rows) * u32(columns);  // programs of GROUP rows
    const u32 top = q / band * GROUP, left = u32(rows) - top, height = left < GROUP ? left : GROUP;
    p = first + (top + q % band % height) * u32(columns) + q % band / height;
  }
  return p;
}

}  // namespace tl
