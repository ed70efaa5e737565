#pragma once
// The prelude of emitted kernels for NVRTC: no CUDA headers, only what the compiler knows and inline PTX.
// __CUDA_ARCH__ chooses; an instruction that a processor lacks fails to compile where a kernel uses it.

#define TL_FN __device__ __forceinline__
#define TL_COPY memcpy
#include "tl_common.h"
#include "tl_math.h"

namespace tl {

// ---- pointers

template <class T> using gptr = T*;
template <class T> using sptr = T*;

template <class T>
TL_FN T* shared(unsigned char* arena, i64 offset, i64) {
  return reinterpret_cast<T*>(arena + offset);
}

TL_FN int thread() { return threadIdx.x; }
TL_FN i64 program() { return blockIdx.x + i64(blockIdx.y) * gridDim.x; }  // y only beyond 2**31 - 1 blocks

template <class T>
TL_FN sptr<T> block(sptr<T> s, int off) { return s + off; }

// The address of an element in the shared window. 32-bit arithmetic, so that constants end in the instruction.
template <class T>
TL_FN u32 shared_address(const T* p, int off) {
  return u32(__cvta_generic_to_shared(p)) + u32(off) * u32(sizeof(T));
}

// ---- loads and stores: one instruction for each access. Offsets keep their type: those into shared memory are int.

template <int BYTES> struct word_of { using type = as_unsigned<char[BYTES]>; };
struct alignas(16) word16 { u64 low, high; };
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
TL_FN u32 ld_bits(const u8* p, i64 bit, bool mask, op) {
  static_assert(W >= 1 && W <= 8, "a code is 1 to 8 bits");
  if (!mask) return 0;
  const u8* q = p + (bit >> 3);
  const int shift = int(bit & 7);
  u32 w = q[0];
  if (shift + W > 8) w |= u32(q[1]) << 8;
  return w >> shift & ((1u << W) - 1);
}

// Clears and sets the bits of a field, in the aligned word around them. Where that word reaches past the buffer it
// keeps what is there: each of the two atomics leaves other bits alone, and a word never crosses a page.
TL_FN void merge_bits(u8* p, u32 field, u32 value) {
  const int shift = 8 * int(reinterpret_cast<u64>(p) & 3);
  u32* w = reinterpret_cast<u32*>(p - (shift >> 3));
  atomicAnd(w, ~(field << shift));
  atomicOr(w, value << shift);
}

template <int W>
TL_FN void st_bits(u8* p, i64 bit, u32 code, bool mask, op) {
  static_assert(W >= 1 && W <= 8, "a code is 1 to 8 bits");
  if (!mask) return;
  u8* q = p + (bit >> 3);
  const int shift = int(bit & 7);
  if (W == 8 && shift == 0) {
    *q = u8(code);
    return;
  }
  const u32 field = ((1u << W) - 1) << shift, value = code << shift & field;
  merge_bits(q, field & 255, value & 255);
  if (shift + W > 8) merge_bits(q + 1, field >> 8, value >> 8);
}

template <int N, class T>
TL_FN void cp_async(T* s, int soff, const T* g, i64 goff, bool mask, op o) {
  constexpr int bytes = N * int(sizeof(T));
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "an async copy is 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  const u32 to = shared_address(s, soff);
  const T* from = g + goff;
  const int read = mask ? bytes : 0;  // the rest is zeros; an address nothing is read from may be any
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(bytes), "r"(read)
                 : "memory");
#else
  st<N>(s, soff, ld<N>(g, goff, mask, o), o);
#endif
}

TL_FN void cp_commit(op) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int PENDING>
TL_FN void cp_wait(op) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- atomics

// CUDA's functions for 64 bits take `unsigned long long` and `long long`, which u64 and i64 are.
template <class T, class F>
TL_FN T compare_and_swap(T* p, F change) {
  using U = as_unsigned<T>;
  U* q = reinterpret_cast<U*>(p);
  U seen = *q;
  for (;;) {
    const U wanted = bits<U>(change(bits<T>(seen)));
    const U found = atomicCAS(q, seen, wanted);
    if (found == seen) return bits<T>(seen);
    seen = found;
  }
}

template <class T>
TL_FN T atomic_add(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  if constexpr (same<T, i64>::value)
    return i64(atomicAdd(reinterpret_cast<u64*>(p + off), u64(v)));
  else
    return atomicAdd(p + off, v);
}

template <class T>
TL_FN T atomic_max(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  if constexpr (is_float<T>)
    return compare_and_swap(p + off, [=](T old) { return max(old, v); });
  else
    return atomicMax(p + off, v);
}

template <class T>
TL_FN T atomic_min(T* p, i64 off, plain<T> v, bool mask, op) {
  if (!mask) return T(0);
  if constexpr (is_float<T>)
    return compare_and_swap(p + off, [=](T old) { return min(old, v); });
  else
    return atomicMin(p + off, v);
}

template <class T>
TL_FN T atomic_cas(T* p, i64 off, plain<T> expected, plain<T> desired, bool mask, op) {
  using U = as_unsigned<T>;
  if (!mask) return T(0);
  return bits<T>(U(atomicCAS(reinterpret_cast<U*>(p + off), bits<U>(expected), bits<U>(desired))));
}

// ---- threads meeting

TL_FN void barrier(op) { __syncthreads(); }
TL_FN void syncwarp(op) { __syncwarp(); }

// Shuffles move 4 or 8 bytes: smaller values travel in 4.
#define TL_SHUFFLE(NAME, BUILTIN)                                        \
  template <class T>                                                     \
  TL_FN T NAME(T v, int argument, op) {                                  \
    if constexpr (sizeof(T) == 8)                                        \
      return bits<T>(BUILTIN(0xffffffffu, bits<u64>(v), argument));      \
    else if constexpr (sizeof(T) == 4)                                   \
      return bits<T>(BUILTIN(0xffffffffu, bits<u32>(v), argument));      \
    else                                                                 \
      return T(BUILTIN(0xffffffffu, u32(v), argument));                  \
  }
TL_SHUFFLE(shfl_xor, __shfl_xor_sync)
TL_SHUFFLE(shfl, __shfl_sync)
TL_SHUFFLE(shfl_up, __shfl_up_sync)
TL_SHUFFLE(shfl_down, __shfl_down_sync)
#undef TL_SHUFFLE

// The assertion of CUDA's own headers: the message on standard error carries the op id where a line number would
// stand, and the launch fails with cudaErrorAssert.
TL_FN void check(bool ok, op o) {
  if (!ok) __assertfail("checked condition", "operation", u32(o.id), "tilelang", 1);
}

// ---- printing: thread 0 prints the elements one by one, a tile's in brackets. CUDA writes its lines to the process's
// standard output when the device is next waited for; those of programs that run at once may mix.

template <char FORM, class T>
struct shown {
  const T* from;
  int count;
};
template <char FORM, class T> TL_FN shown<FORM, T> show(const T* from, int count) { return {from, count}; }

template <char FORM, class T>
TL_FN void print_one(T x) {
  if constexpr (FORM == 'h') printf("%g", double(f16_to_f32(x)));
  else if constexpr (FORM == 'b') printf("%g", double(bf16_to_f32(x)));
  else if constexpr (is_float<T>) printf("%g", double(x));
  else if constexpr (FORM == 'c') printf("#%llx", u64(x));
  else if constexpr (is_signed<T>) printf("%lld", i64(x));
  else printf("%llu", u64(x));
}

template <char FORM, class T>
TL_FN void print_all(const shown<FORM, T>& part) {
  printf(part.count == 1 ? " " : " [");
  for (int i = 0; i < part.count; ++i) {
    if (i) printf(" ");
    print_one<FORM>(part.from[i]);
  }
  if (part.count != 1) printf("]");
}

template <class... P>
TL_FN void print(op, const char* text, const P&... parts) {
  if (thread()) return;
  printf("%s", text);
  (print_all(parts), ...);
  printf("\n");
}

}  // namespace tl

#include "tl_matrix.h"

#define TL_KERNEL(name, THREADS) extern "C" __global__ void __launch_bounds__(THREADS) name
#define TL_SHARED(name, BYTES) extern __shared__ __align__(1024) unsigned char name[]
#define TL_EXPORT(name)
