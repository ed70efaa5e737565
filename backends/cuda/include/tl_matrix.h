#pragma once
// Matrix instructions. Elements of fragments are in the order of the PTX manual, packed here into 32-bit registers.

namespace tl {

// The 32-bit register that starts at element `at`.
template <class T, int N>
TL_FN u32 reg(const vec<T, N>& v, int at) {
  if constexpr (sizeof(T) == 4) return bits<u32>(v[at]);
  else if constexpr (sizeof(T) == 2) return u32(u16(v[at])) | u32(u16(v[at + 1])) << 16;
  else return u32(u8(v[at])) | u32(u8(v[at + 1])) << 8 | u32(u8(v[at + 2])) << 16 | u32(u8(v[at + 3])) << 24;
}

template <class T, int N>
TL_FN void set_reg(vec<T, N>& v, int at, u32 r) {
  constexpr int parts = 4 / int(sizeof(T));
  TL_UNROLL for (int i = 0; i < parts; i++) v[at + i] = bits<T>(as_unsigned<T>(r >> (i * (32 / parts) & 31)));
}

// ---- rows of 8x8 matrices of 16-bit elements

#define TL_LDMATRIX(LIST, ADDRESS, FORM, ...)                                                                    \
  do {                                                                                                           \
    if constexpr (TRANS)                                                                                         \
      asm volatile("ldmatrix.sync.aligned.m8n8." FORM ".trans.shared.b16 " LIST ", [" ADDRESS "];" : __VA_ARGS__ \
                   : "r"(row) : "memory");                                                                       \
    else                                                                                                         \
      asm volatile("ldmatrix.sync.aligned.m8n8." FORM ".shared.b16 " LIST ", [" ADDRESS "];" : __VA_ARGS__       \
                   : "r"(row) : "memory");                                                                       \
  } while (0)

template <int X, bool TRANS, class S, class T, int K>
TL_FN void ldmatrix(vec<T, K>& r, int at, S s, int off, op) {
  static_assert(X == 1 || X == 2 || X == 4, "1, 2 or 4 matrices");
  constexpr int step = 4 / int(sizeof(T));
  const u32 row = shared_address(s, off);
  u32 w[4];
  if constexpr (X == 1) TL_LDMATRIX("{%0}", "%1", "x1", "=r"(w[0]));
  if constexpr (X == 2) TL_LDMATRIX("{%0, %1}", "%2", "x2", "=r"(w[0]), "=r"(w[1]));
  if constexpr (X == 4)
    TL_LDMATRIX("{%0, %1, %2, %3}", "%4", "x4", "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]));
  TL_UNROLL for (int i = 0; i < X; i++) set_reg(r, at + i * step, w[i]);
}
#undef TL_LDMATRIX

#define TL_STMATRIX(LIST, FORM, ...)                                                                          \
  do {                                                                                                        \
    if constexpr (TRANS)                                                                                      \
      asm volatile("stmatrix.sync.aligned.m8n8." FORM ".trans.shared.b16 [%0], " LIST ";" ::"r"(row),         \
                   __VA_ARGS__ : "memory");                                                                   \
    else                                                                                                      \
      asm volatile("stmatrix.sync.aligned.m8n8." FORM ".shared.b16 [%0], " LIST ";" ::"r"(row), __VA_ARGS__   \
                   : "memory");                                                                               \
  } while (0)

template <int X, bool TRANS, class S, class T, int K>
TL_FN void stmatrix(S s, int off, const vec<T, K>& r, int at, op) {
  static_assert(X == 1 || X == 2 || X == 4, "1, 2 or 4 matrices");
  constexpr int step = 4 / int(sizeof(T));
  u32 w[4];
  TL_UNROLL for (int i = 0; i < X; i++) w[i] = reg(r, at + i * step);
  const u32 row = shared_address(s, off);
#if __CUDA_ARCH__ >= 900
  if constexpr (X == 1) TL_STMATRIX("{%1}", "x1", "r"(w[0]));
  if constexpr (X == 2) TL_STMATRIX("{%1, %2}", "x2", "r"(w[0]), "r"(w[1]));
  if constexpr (X == 4) TL_STMATRIX("{%1, %2, %3, %4}", "x4", "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]));
#else
  // Each lane stores its own elements at the rows that other lanes name.
  const u32 lane = threadIdx.x & 31;
  TL_UNROLL for (int i = 0; i < X; i++) {
    if constexpr (TRANS) {
      const u32 a = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3)) + 2 * (lane >> 2);
      const u32 b = __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane & 3) + 1) + 2 * (lane >> 2);
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(a), "h"(u16(w[i])) : "memory");
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(b), "h"(u16(w[i] >> 16)) : "memory");
    } else {
      const u32 a = __shfl_sync(0xffffffffu, row, 8 * i + (lane >> 2)) + 4 * (lane & 3);
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(w[i]) : "memory");
    }
  }
#endif
}
#undef TL_STMATRIX

// ---- products

template <class T> constexpr bool never = false;

// D = A * B + D with four 32-bit accumulators, four registers of A and two of B; D_IN is "f" or "r".
#define TL_MMA(NAME, SINCE, D, D_OUT, INSTRUCTION)                                                              \
  template <int NA, class A, int NB, class B, int NC>                                                           \
  TL_FN void mma_##NAME(vec<D, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {     \
    static_assert(__CUDA_ARCH__ >= SINCE || never<A>, "mma_" #NAME " needs sm_" #SINCE " or later");            \
    constexpr int ea = 4 / int(sizeof(A)), eb = 4 / int(sizeof(B));                                             \
    if constexpr (__CUDA_ARCH__ >= SINCE)                                                                       \
      asm volatile("mma.sync.aligned." INSTRUCTION " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "            \
                   "{%0, %1, %2, %3};"                                                                          \
                   : D_OUT(d[i]), D_OUT(d[i + 1]), D_OUT(d[i + 2]), D_OUT(d[i + 3])                             \
                   : "r"(reg(a, j)), "r"(reg(a, j + ea)), "r"(reg(a, j + 2 * ea)), "r"(reg(a, j + 3 * ea)),     \
                     "r"(reg(b, k)), "r"(reg(b, k + eb)));                                                      \
  }

TL_MMA(m16n8k16_bf16, 800, float, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32")
TL_MMA(m16n8k8_tf32, 800, float, "+f", "m16n8k8.row.col.f32.tf32.tf32.f32")
TL_MMA(m16n8k32_s8, 800, i32, "+r", "m16n8k32.row.col.s32.s8.s8.s32")
TL_MMA(m16n8k32_u8, 800, i32, "+r", "m16n8k32.row.col.s32.u8.u8.s32")
TL_MMA(m16n8k32_su8, 800, i32, "+r", "m16n8k32.row.col.s32.s8.u8.s32")
TL_MMA(m16n8k32_us8, 800, i32, "+r", "m16n8k32.row.col.s32.u8.s8.s32")
TL_MMA(m16n8k64_s4, 800, i32, "+r", "m16n8k64.row.col.s32.s4.s4.s32")
TL_MMA(m16n8k64_u4, 800, i32, "+r", "m16n8k64.row.col.s32.u4.u4.s32")
TL_MMA(m16n8k256_b1_and, 800, i32, "+r", "m16n8k256.row.col.s32.b1.b1.s32.and.popc")
TL_MMA(m16n8k256_b1_xor, 800, i32, "+r", "m16n8k256.row.col.s32.b1.b1.s32.xor.popc")
TL_MMA(m16n8k32_e4m3, 890, float, "+f", "m16n8k32.row.col.f32.e4m3.e4m3.f32")
TL_MMA(m16n8k32_e5m2, 890, float, "+f", "m16n8k32.row.col.f32.e5m2.e5m2.f32")
#undef TL_MMA

template <int NA, class A, int NB, class B, int NC>
TL_FN void mma_m16n8k8_f16(vec<float, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
               : "r"(reg(a, j)), "r"(reg(a, j + 4 / int(sizeof(A)))), "r"(reg(b, k)));
}

template <int NA, class A, int NB, class B, int NC>
TL_FN void mma_m16n8k128_b1_and(vec<i32, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {
  static_assert(__CUDA_ARCH__ >= 800 || never<A>, "mma_m16n8k128_b1_and needs sm_80 or later");
  if constexpr (__CUDA_ARCH__ >= 800)
    asm volatile("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
                 : "r"(reg(a, j)), "r"(reg(a, j + 4 / int(sizeof(A)))), "r"(reg(b, k)));
}

template <int NA, class A, int NB, class B, int NC>
TL_FN void mma_m16n8k16_f16(vec<float, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op o) {
  constexpr int ea = 4 / int(sizeof(A)), eb = 4 / int(sizeof(B));
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
               : "r"(reg(a, j)), "r"(reg(a, j + ea)), "r"(reg(a, j + 2 * ea)), "r"(reg(a, j + 3 * ea)),
                 "r"(reg(b, k)), "r"(reg(b, k + eb)));
#else
  mma_m16n8k8_f16(d, i, a, j, b, k, o);  // the registers of each half of k are those of the smaller product
  mma_m16n8k8_f16(d, i, a, j + 2 * ea, b, k + eb, o);
#endif
}

// The same of 8 by 8 elements: two accumulators, one register of A and one of B.
#define TL_SMALL_MMA(NAME, INSTRUCTION)                                                                         \
  template <int NA, class A, int NB, class B, int NC>                                                           \
  TL_FN void mma_##NAME(vec<i32, NA>& d, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op) {   \
    asm volatile("mma.sync.aligned." INSTRUCTION " {%0, %1}, {%2}, {%3}, {%0, %1};"                             \
                 : "+r"(d[i]), "+r"(d[i + 1])                                                                   \
                 : "r"(reg(a, j)), "r"(reg(b, k)));                                                             \
  }
TL_SMALL_MMA(m8n8k16_s8, "m8n8k16.row.col.s32.s8.s8.s32")
TL_SMALL_MMA(m8n8k16_u8, "m8n8k16.row.col.s32.u8.u8.s32")
TL_SMALL_MMA(m8n8k16_su8, "m8n8k16.row.col.s32.s8.u8.s32")
TL_SMALL_MMA(m8n8k16_us8, "m8n8k16.row.col.s32.u8.s8.s32")
TL_SMALL_MMA(m8n8k32_s4, "m8n8k32.row.col.s32.s4.s4.s32")
TL_SMALL_MMA(m8n8k32_u4, "m8n8k32.row.col.s32.u4.u4.s32")
TL_SMALL_MMA(m8n8k32_su4, "m8n8k32.row.col.s32.s4.u4.s32")
TL_SMALL_MMA(m8n8k32_us4, "m8n8k32.row.col.s32.u4.s4.s32")
#undef TL_SMALL_MMA

template <int NA, int NB, int NC>
TL_FN void mma_m8n8k4_f64(vec<double, NA>& d, int i, const vec<double, NB>& a, int j, const vec<double, NC>& b, int k,
                          op) {
  static_assert(__CUDA_ARCH__ >= 800 || NA < 0, "mma_m8n8k4_f64 needs sm_80 or later");
  if constexpr (__CUDA_ARCH__ >= 800)
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(d[i]), "+d"(d[i + 1])
                 : "d"(a[j]), "d"(b[k]));
}

}  // namespace tl

#include "tl_pieces.h"
