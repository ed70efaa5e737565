#pragma once
// The prelude of emitted kernels for NVRTC: no CUDA headers, only what the compiler knows and inline PTX.
// __CUDA_ARCH__ chooses; an instruction that a processor lacks fails to compile where a kernel uses it.

#define TL_FN __device__ __forceinline__
#define TL_COPY memcpy
#define TL_WHOLE(x) asm("" : "+r"(x))
#define TL_HERE(x) asm volatile("" : "+f"(x))
#include "tl_common.h"
#include "tl_math.h"

namespace tl {

TL_FN int thread() { return threadIdx.x; }
TL_FN int warp() { return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0); }  // known to be one for all lanes
TL_FN i64 program() { return blockIdx.x + i64(blockIdx.y) * gridDim.x; }  // y only beyond 2**31 - 1 blocks

// CUDA's functions for 64 bits take `unsigned long long` and `long long`, which u64 and i64 are.
template <class T> TL_FN T fetch_add(T* p, plain<T> v) { return atomicAdd(p, v); }
TL_FN i64 fetch_add(i64* p, i64 v) { return i64(atomicAdd(reinterpret_cast<u64*>(p), u64(v))); }
template <class T> TL_FN T fetch_max(T* p, plain<T> v) { return atomicMax(p, v); }
template <class T> TL_FN T fetch_min(T* p, plain<T> v) { return atomicMin(p, v); }
template <class T> TL_FN T fetch_cas(T* p, plain<T> seen, plain<T> wanted) { return atomicCAS(p, seen, wanted); }
TL_FN u32 fetch_and(u32* p, u32 v) { return atomicAnd(p, v); }
TL_FN u32 fetch_or(u32* p, u32 v) { return atomicOr(p, v); }

}  // namespace tl

#include "tl_device.h"

namespace tl {

// The address of an element in the shared window. 32-bit arithmetic, so that constants end in the instruction.
template <class T>
TL_FN u32 shared_address(const T* p, int off) {
  return u32(__cvta_generic_to_shared(p)) + u32(off) * u32(sizeof(T));
}

// An address in the shared window that stays in its register: the compiler neither splits it nor computes it again.
template <class T>
struct srow {
  u32 address;
};

template <class T>
TL_FN srow<T> row(T* s, int off) {
  srow<T> r{shared_address(s, off)};
  asm("" : "+r"(r.address));
  return r;
}

template <class T> TL_FN u32 shared_address(srow<T> p, int off) { return p.address + u32(off) * u32(sizeof(T)); }

template <int N, class T, class... MASK>
TL_FN vec<plain<T>, N> ld(srow<T> p, int off, MASK... mask_and_op) {
  return ld<N>(static_cast<const T*>(__cvta_shared_to_generic(shared_address(p, off))), 0, mask_and_op...);
}

template <int N, class S, class T>
TL_FN void cp_async(S s, int soff, const T* g, i64 goff, bool mask, op o) {
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

// ---- threads meeting

TL_FN void barrier(op) { __syncthreads(); }
TL_FN void syncwarp(op) { __syncwarp(); }
// Of sm_90 and later: what the thread wrote to shared memory comes before what copies and products do there.
TL_FN void fence_memory(op) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Of sm_90 and later: until the kernels before this one have ended; and the next one may begin.
TL_FN void wait_previous(op) { asm volatile("griddepcontrol.wait;" ::: "memory"); }
TL_FN void start_next(op) { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

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
template <int DISTANCE, class T> TL_FN void swap_lanes(T& a, T& b, op o) { exchange<DISTANCE>(a, b, thread(), o); }

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

TL_FN void print_all(const char* text) { printf("%s", text); }

template <char FORM, class T>
TL_FN void print_all(const shown<FORM, T>& part) {
  if (part.count != 1) printf("[");
  for (int i = 0; i < part.count; ++i) {
    if (i) printf(" ");
    print_one<FORM>(part.from[i]);
  }
  if (part.count != 1) printf("]");
}

template <class... P>
TL_FN void print(op, const P&... parts) {
  if (thread()) return;
  (print_all(parts), ...);
  printf("\n");
}

}  // namespace tl

#include "tl_matrix.h"
#ifdef TL_GROUPS  // it is long
#include "tl_wgmma.h"
#endif
#ifdef TL_BULK
#include "tl_bulk.h"
#endif
#ifdef TL_CLUSTER
#include "tl_cluster.h"
#endif

#if defined TL_ALONE || defined TL_ROLES  // whose registers are told only from a bound of blocks
#define TL_BOUNDS(THREADS) __launch_bounds__(THREADS, 1)
#elif defined TL_BLOCKS
#define TL_BOUNDS(THREADS) __launch_bounds__(THREADS, TL_BLOCKS)
#else
#define TL_BOUNDS(THREADS) __launch_bounds__(THREADS)
#endif
#ifdef TL_CLUSTER
#define TL_CLUSTERS __cluster_dims__(TL_CLUSTER, 1, 1)
#else
#define TL_CLUSTERS
#endif
#define TL_KERNEL(name, THREADS) extern "C" __global__ void TL_CLUSTERS TL_BOUNDS(THREADS) name
#define TL_SHARED(name, BYTES) extern __shared__ __align__(1024) unsigned char name[]
#define TL_EXPORT(name)
