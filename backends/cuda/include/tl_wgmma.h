#pragma once
// Products of four warps (wgmma): B comes from shared memory, A from there or from registers. For sm_90a only.

namespace tl {

// A matrix in shared memory: the two halves of its descriptor.
template <class T, bool TRANSPOSED>
struct matrix {
  u32 low, high;
};

template <int WIDTH, int LEADING, int STRIDE, bool TRANSPOSED, class T>
TL_FN matrix<T, TRANSPOSED> operand(T* p) {
  const u64 bits = descriptor<WIDTH, LEADING, STRIDE>(shared_address(p, 0));
  return {u32(bits), u32(bits >> 32)};
}

// The descriptor of what begins `off` elements on, a whole number of 16 bytes.
template <class T, bool TRANSPOSED>
TL_FN u64 from(matrix<T, TRANSPOSED> m, int off) {
  return u64(m.high) << 32 | (m.low + (u32(off) * u32(sizeof(T)) >> 4));
}

// What a vector holds is computed before this: statements stay in order only by what they name. The assembler asks for
// it, or fences again, and in branches that threads may not take alike lets each product wait for the one before.
template <class T, int N>
TL_FN void computed(vec<T, N>& v) {
#ifdef TL_LATE_SUMS
  if constexpr (same<T, float>::value) return;
#endif
  TL_UNROLL for (int i = 0; i < N; i += 4 / int(sizeof(T))) {
    u32 r = reg(v, i);
    asm volatile("" : "+r"(r)::"memory");
    set_reg(v, i, r);
  }
}

template <class... V>
TL_FN void fence_registers(op, V&... registers) {
  (computed(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

TL_FN void group_commit(op) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
TL_FN void group_wait(op) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Nothing uses a sum before this.
template <int N>
TL_FN void arrived(vec<float, N>& v, op) {
  TL_UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+f"(v[i])::"memory");
}
template <int N>
TL_FN void arrived(vec<i32, N>& v, op) {
  TL_UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+r"(v[i])::"memory");
}

// The registers of a sum, as text and as operands.
#define TL_D4 "%0, %1, %2, %3"
#define TL_D8 TL_D4 \
  ", %4, %5, %6, %7"
#define TL_D16 TL_D8 \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TL_D32 TL_D16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TL_D48 TL_D32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TL_D64 TL_D48 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TL_D96 TL_D64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TL_D128 TL_D96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TL_S4(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define TL_S8(C, i) TL_S4(C, i), TL_S4(C, i + 4)
#define TL_S16(C, i) TL_S8(C, i), TL_S8(C, i + 8)
#define TL_S32(C, i) TL_S16(C, i), TL_S16(C, i + 16)
#define TL_S48(C, i) TL_S32(C, i), TL_S16(C, i + 32)
#define TL_S64(C, i) TL_S32(C, i), TL_S32(C, i + 32)
#define TL_S96(C, i) TL_S64(C, i), TL_S32(C, i + 64)
#define TL_S128(C, i) TL_S64(C, i), TL_S64(C, i + 64)

// What follows the descriptors, whether A is in memory (2) or not (1): signs, and whether rows run along another
// dimension than k; X and Y are the numbers of the last operands.
#define TL_HALF2(X, Y) ", 1, 1, %" X ", %" Y
#define TL_HALF1(X) ", 1, 1, %" X
#define TL_FLOAT2(X, Y) ", 1, 1"
#define TL_FLOAT1(X) ", 1, 1"
#define TL_INT2(X, Y) ""
#define TL_INT1(X) ""

#define TL_WGMMA_OF(N, COUNT, O1, O2, O3, O4, O5, O6, TYPES, C, TAIL)                                                \
  if constexpr (COLUMNS == N && IN_MEMORY)                                                                           \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N TYPES " {"               \
                 TL_D##COUNT "}, %" O1 ", %" O2 ", p" TL_##TAIL##2(O3, O4) ";}"                                      \
                 : TL_S##COUNT(C, i) : "l"(from(a, j)), "l"(from(b, k)), "n"(ta), "n"(int(TB)) : "memory");          \
  if constexpr (COLUMNS == N && !IN_MEMORY)                                                                          \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N TYPES " {"               \
                 TL_D##COUNT "}, {%" O1 ", %" O2 ", %" O3 ", %" O4 "}, %" O5 ", p" TL_##TAIL##1(O6) ";}"             \
                 : TL_S##COUNT(C, i) : "r"(reg(a, j)), "r"(reg(a, j + e)), "r"(reg(a, j + 2 * e)),                   \
                   "r"(reg(a, j + 3 * e)), "l"(from(b, k)), "n"(int(TB)) : "memory");

template <class A> constexpr bool in_memory = false;
template <class T, bool TA> constexpr bool in_memory<matrix<T, TA>> = true;
template <class A> constexpr int per_register = 0;  // elements
template <class T, int N> constexpr int per_register<vec<T, N>> = 4 / int(sizeof(T));
template <class A> constexpr int transposed = 0;
template <class T, bool TA> constexpr int transposed<matrix<T, TA>> = TA;

#define TL_WGMMA(NAME, D, C, TYPES, TAIL)                                                                            \
  template <int COLUMNS, int N, class A, class B, bool TB>                                                           \
  TL_FN void wgmma_##NAME(vec<D, N>& d, int i, const A& a, int j, matrix<B, TB> b, int k, op) {                      \
    constexpr bool IN_MEMORY = in_memory<A>;                                                                         \
    constexpr int e = per_register<A>, ta = transposed<A>;                                                           \
    TL_WGMMA_OF(8, 4, "4", "5", "6", "7", "8", "9", TYPES, C, TAIL)                                                  \
    TL_WGMMA_OF(16, 8, "8", "9", "10", "11", "12", "13", TYPES, C, TAIL)                                             \
    TL_WGMMA_OF(32, 16, "16", "17", "18", "19", "20", "21", TYPES, C, TAIL)                                          \
    TL_WGMMA_OF(64, 32, "32", "33", "34", "35", "36", "37", TYPES, C, TAIL)                                          \
    TL_WGMMA_OF(96, 48, "48", "49", "50", "51", "52", "53", TYPES, C, TAIL)                                          \
    TL_WGMMA_OF(128, 64, "64", "65", "66", "67", "68", "69", TYPES, C, TAIL)                                         \
    TL_WGMMA_OF(192, 96, "96", "97", "98", "99", "100", "101", TYPES, C, TAIL)                                       \
    TL_WGMMA_OF(256, 128, "128", "129", "130", "131", "132", "133", TYPES, C, TAIL)                                  \
  }

TL_WGMMA(m64k16_f16, float, "+f", "k16.f32.f16.f16", HALF)
TL_WGMMA(m64k16_bf16, float, "+f", "k16.f32.bf16.bf16", HALF)
TL_WGMMA(m64k8_tf32, float, "+f", "k8.f32.tf32.tf32", FLOAT)
TL_WGMMA(m64k32_e4m3, float, "+f", "k32.f32.e4m3.e4m3", FLOAT)
TL_WGMMA(m64k32_e5m2, float, "+f", "k32.f32.e5m2.e5m2", FLOAT)
TL_WGMMA(m64k32_e4m3_e5m2, float, "+f", "k32.f32.e4m3.e5m2", FLOAT)
TL_WGMMA(m64k32_e5m2_e4m3, float, "+f", "k32.f32.e5m2.e4m3", FLOAT)
TL_WGMMA(m64k32_s8, i32, "+r", "k32.s32.s8.s8", INT)
TL_WGMMA(m64k32_u8, i32, "+r", "k32.s32.u8.u8", INT)
TL_WGMMA(m64k32_s8u8, i32, "+r", "k32.s32.s8.u8", INT)
TL_WGMMA(m64k32_u8s8, i32, "+r", "k32.s32.u8.s8", INT)
TL_WGMMA(m64k256_b1, i32, "+r", "k256.s32.b1.b1.and.popc", INT)
#undef TL_WGMMA
#undef TL_WGMMA_OF

}  // namespace tl
