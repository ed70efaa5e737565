#pragma once
// The prelude of emitted kernels for clang's AMD target: no HIP headers, no device library, only builtins. An
// instruction that a processor lacks fails to compile where a kernel uses it.

#define TL_FN inline __attribute__((device, always_inline))
#define TL_COPY __builtin_memcpy
#define TL_WHOLE(x) asm("" : "+v"(x))
#include "tl_common.h"
#include "tl_math.h"

static_assert(TL_WARP == 64, "a wave has 64 lanes");

namespace tl {

TL_FN int thread() { return __builtin_amdgcn_workitem_id_x(); }

TL_FN i64 program() {  // y only where the threads of all work groups are too many for one dimension
  const u32 width = __builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x();
  return __builtin_amdgcn_workgroup_id_x() + i64(__builtin_amdgcn_workgroup_id_y()) * width;
}

#define TL_FETCH(NAME, BUILTIN)                                                            \
  template <class T>                                                                       \
  TL_FN T fetch_##NAME(T* p, plain<T> v) {                                                 \
    return BUILTIN(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);                      \
  }
TL_FETCH(add, __hip_atomic_fetch_add)
TL_FETCH(max, __hip_atomic_fetch_max)
TL_FETCH(min, __hip_atomic_fetch_min)
TL_FETCH(and, __hip_atomic_fetch_and)
TL_FETCH(or, __hip_atomic_fetch_or)
#undef TL_FETCH

template <class T>
TL_FN T fetch_cas(T* p, plain<T> seen, plain<T> wanted) {
  __hip_atomic_compare_exchange_strong(p, &seen, wanted, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                       __HIP_MEMORY_SCOPE_AGENT);
  return seen;
}

}  // namespace tl

#include "tl_device.h"

namespace tl {

// An address that accesses share: the compiler keeps it in its register unasked.
template <class T> using srow = sptr<T>;
template <class T> TL_FN srow<T> row(sptr<T> s, int off) { return block(s, off); }

// ---- windows: buffer instructions, which give 0 and drop what lies outside. A false mask chooses an offset there.
// By the names of the compiler's own functions: builtins for them came later than to compilers still in use.

using word2 = u32 __attribute__((ext_vector_type(2)));
using word4 = u32 __attribute__((ext_vector_type(4)));

template <int BYTES> struct buffer;
#define TL_BUFFER(BYTES, TYPE, NAME)                                                                           \
  __attribute__((device)) TYPE load_##NAME(word4, int, int, int) __asm("llvm.amdgcn.raw.buffer.load." #NAME);  \
  __attribute__((device)) void store_##NAME(TYPE, word4, int, int, int)                                        \
      __asm("llvm.amdgcn.raw.buffer.store." #NAME);                                                            \
  template <> struct buffer<BYTES> {                                                                           \
    using type = TYPE;                                                                                         \
    static TL_FN TYPE load(word4 w, int at) { return load_##NAME(w, at, 0, 0); }                               \
    static TL_FN void store(TYPE x, word4 w, int at) { store_##NAME(x, w, at, 0, 0); }                         \
  };
TL_BUFFER(1, u8, i8)
TL_BUFFER(2, u16, i16)
TL_BUFFER(4, u32, i32)
TL_BUFFER(8, word2, v2i32)
TL_BUFFER(16, word4, v4i32)
#undef TL_BUFFER

template <class T>
struct window {
  word4 words;  // address, bytes, format
};

template <class T>
TL_FN window<T> window_of(T* p, i64 start, i64 extent) {
  constexpr u32 LIMIT = 0x7fff0000, FORM = 0x27000;  // data of 32 bits, raw
  const i64 bytes = extent * i64(sizeof(T));
  const u32 records = bytes < 0 ? 0 : bytes >> 31 ? LIMIT : u32(bytes);
  const u64 from = u64(p + start);
  return {{u32(from), u32(from >> 32) & 0xffff, records, FORM}};
}

constexpr int OUTSIDE = -2147483647 - 1;

template <int N, class T>
TL_FN vec<plain<T>, N> ld(window<T> w, int off, bool mask, op) {
  const auto x = buffer<N * int(sizeof(T))>::load(w.words, mask ? off * int(sizeof(T)) : OUTSIDE);
  vec<plain<T>, N> v;
  TL_COPY(&v, &x, sizeof v);
  return v;
}
template <int N, class T> TL_FN vec<plain<T>, N> ld(window<T> w, int off, op o) { return ld<N>(w, off, true, o); }

template <int N, class T>
TL_FN void st(window<T> w, int off, const vec<T, N>& v, bool mask, op) {  // no scalar offset: see the notes on gfx940
  typename buffer<N * int(sizeof(T))>::type x;
  TL_COPY(&x, &v, sizeof x);
  buffer<N * int(sizeof(T))>::store(x, w.words, mask ? off * int(sizeof(T)) : OUTSIDE);
}
template <int N, class T> TL_FN void st(window<T> w, int off, const vec<T, N>& v, op o) { st<N>(w, off, v, true, o); }

// ---- copies

TL_FN int warp() { return __builtin_amdgcn_readfirstlane(thread() / TL_WARP); }

// From a window into neighbouring places of local memory, the first lane's at `first`. Assembly, because the compiler
// would wait for all such copies before any read of local memory; it does not count them, `wait_operations` does. What
// is loaded otherwise is waited for longer than need be.
template <int N, class T, class G>
TL_FN void dma(T* s, int first, window<G> w, int off, bool mask, op) {
  constexpr int bytes = N * int(sizeof(T));
  static_assert(bytes == 4 || bytes == 16, "a copy in order is 4 or 16 bytes a lane");
  const u32 start = u32(u64((__attribute__((address_space(3))) T*)s));
  const u32 place = __builtin_amdgcn_readfirstlane(start + first * int(sizeof(T)));
  const int at = mask ? off * int(sizeof(T)) : OUTSIDE;
#define TL_COPY_LDS(NAME)                                                                                       \
  asm volatile("s_nop 0\n\t" NAME " %1, %2, 0 offen lds" ::"{m0}"(place), "v"(at), "s"(w.words) : "memory")
  if constexpr (bytes == 4) TL_COPY_LDS("buffer_load_dword");
#ifdef __gfx950__
  if constexpr (bytes == 16) TL_COPY_LDS("buffer_load_dwordx4");
#else
  static_assert(bytes == 4, "16 bytes a lane need gfx950");
#endif
#undef TL_COPY_LDS
}

// Until at most so many accesses to global memory are under way; they end in order.
template <int COUNT>
TL_FN void wait_operations(op) {
  asm volatile("s_waitcnt vmcnt(%0)" ::"i"(COUNT) : "memory");
}

// Other copies go through registers: data is there when the copy has been made.
template <int N, class T>
TL_FN void cp_async(T* s, int soff, const T* g, i64 goff, bool mask, op o) {
  st<N>(s, soff, ld<N>(g, goff, mask, o), o);
}

TL_FN void cp_commit(op) {}
template <int PENDING> TL_FN void cp_wait(op) {}

// ---- threads meeting

TL_FN void barrier(op) {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// For warps that take turns. What multiplies and what moves data stays on its side.
TL_FN void meet(op o) {
  __builtin_amdgcn_sched_barrier(0);
  barrier(o);
  __builtin_amdgcn_sched_barrier(0);
}

template <int LEVEL>
TL_FN void priority(op) {
  __builtin_amdgcn_sched_barrier(0);
  __builtin_amdgcn_s_setprio(LEVEL);
  __builtin_amdgcn_sched_barrier(0);
}

// The scheduler is to place a product and an access to local memory, or several, by turns: what is left are products,
// which run while the last accesses are served. Schedulers before LLVM 16 (ROCm 5.5) cannot be told.
template <int ACCESSES, int PRODUCTS>
TL_FN void share() {
#if __has_builtin(__builtin_amdgcn_sched_group_barrier)
  if constexpr (ACCESSES > 0 && PRODUCTS > 0) {
    constexpr int LDS = 0x80, MFMA = 8, accesses = (ACCESSES + PRODUCTS - 1) / PRODUCTS;
    __builtin_amdgcn_sched_group_barrier(MFMA, 1, 0);
    __builtin_amdgcn_sched_group_barrier(LDS, accesses, 0);
    share<ACCESSES - accesses, PRODUCTS - 1>();
  }
#endif
}

// That, of the operations since the last such place. Nothing moves across.
template <int ACCESSES, int PRODUCTS>
TL_FN void spread(op) {
  share<ACCESSES, PRODUCTS>();
  __builtin_amdgcn_sched_barrier(0);
}

TL_FN void syncwarp(op) {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

TL_FN int lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0)); }

TL_FN u32 from_lane(u32 v, int source) { return __builtin_amdgcn_ds_bpermute(source << 2, v); }

template <int CONTROL> TL_FN u32 within_row(u32 v) { return __builtin_amdgcn_mov_dpp(v, CONTROL, 15, 15, true); }
template <int MASK> TL_FN u32 swizzled(u32 v) { return __builtin_amdgcn_ds_swizzle(v, MASK << 10 | 31); }

// The lane is known when this is compiled, and with it the one case that is left: neighbours exchange within the
// vector unit, others through the network of the local memory.
TL_FN u32 from_xor(u32 v, int mask) {
  switch (mask) {
    case 1: return within_row<0xb1>(v);
    case 2: return within_row<0x4e>(v);
    case 3: return within_row<0x1b>(v);
    case 4: return swizzled<4>(v);
    case 7: return within_row<0x141>(v);
    case 8: return within_row<0x128>(v);
    case 15: return within_row<0x140>(v);
    case 16: return swizzled<16>(v);
    default: return from_lane(v, lane() ^ mask);
  }
}

TL_FN u32 from_index(u32 v, int source) { return from_lane(v, source); }  // modulo 64
TL_FN u32 from_below(u32 v, int delta) { return from_lane(v, lane() < delta ? lane() : lane() - delta); }
TL_FN u32 from_above(u32 v, int delta) { return from_lane(v, lane() + delta > 63 ? lane() : lane() + delta); }

// Shuffles move 4 or 8 bytes: smaller values travel in 4.
#define TL_SHUFFLE(NAME, FROM)                                                                \
  template <class T>                                                                          \
  TL_FN T NAME(T v, int argument, op) {                                                       \
    if constexpr (sizeof(T) == 8)                                                             \
      return bits<T>(u64(FROM(u32(bits<u64>(v)), argument)) |                                 \
                     u64(FROM(u32(bits<u64>(v) >> 32), argument)) << 32);                     \
    else if constexpr (sizeof(T) == 4)                                                        \
      return bits<T>(FROM(bits<u32>(v), argument));                                           \
    else                                                                                      \
      return T(FROM(u32(v), argument));                                                       \
  }
TL_SHUFFLE(shfl_xor, from_xor)
TL_SHUFFLE(shfl, from_index)
TL_SHUFFLE(shfl_up, from_below)
TL_SHUFFLE(shfl_down, from_above)
#undef TL_SHUFFLE

#ifdef __gfx950__
// Halves of the wave, or neighbouring rows of 16 lanes, exchange a register within the vector unit.
template <int DISTANCE>
TL_FN word2 swapped(u32 a, u32 b) {
  if constexpr (DISTANCE == 32) {
    const auto both = __builtin_amdgcn_permlane32_swap(a, b, false, false);
    return {both[0], both[1]};
  } else {
    const auto both = __builtin_amdgcn_permlane16_swap(a, b, false, false);
    return {both[0], both[1]};
  }
}
#endif

template <int DISTANCE, class T>
TL_FN void swap_lanes(T& a, T& b, op o) {
#ifdef __gfx950__
  if constexpr (DISTANCE >= 16) {
    if constexpr (sizeof(T) == 8) {
      const word2 low = swapped<DISTANCE>(u32(bits<u64>(a)), u32(bits<u64>(b)));
      const word2 high = swapped<DISTANCE>(u32(bits<u64>(a) >> 32), u32(bits<u64>(b) >> 32));
      a = bits<T>(low[0] | u64(high[0]) << 32);
      b = bits<T>(low[1] | u64(high[1]) << 32);
    } else {
      const word2 both = swapped<DISTANCE>(bits<as_unsigned<T>>(a), bits<as_unsigned<T>>(b));
      a = bits<T>(as_unsigned<T>(both[0]));
      b = bits<T>(as_unsigned<T>(both[1]));
    }
    return;
  }
#endif
  exchange<DISTANCE>(a, b, thread(), o);
}

TL_FN void check(bool ok, op) {
  if (!ok) __builtin_trap();
}

// ---- printing needs calls to the host, which come with a library

template <class T> constexpr bool never = false;
struct shown {};
template <char FORM, class T>
TL_FN shown show(const T*, int) {
  static_assert(never<T>, "printing is not supported on AMD GPUs");
  return {};
}
template <class... P>
TL_FN void print(op, const P&...) {}

}  // namespace tl

#include "tl_matrix.h"

#define TL_KERNEL(name, THREADS)                                                                           \
  extern "C" __attribute__((global)) void __attribute__((amdgpu_flat_work_group_size(THREADS, THREADS))) name
#define TL_SHARED(name, BYTES) __attribute__((shared)) __attribute__((aligned(1024))) static unsigned char name[BYTES]
#define TL_EXPORT(name)
