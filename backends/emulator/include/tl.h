#pragma once
// The prelude of emitted kernels for the emulator: the same names as on a GPU, every access through the runtime's
// checks. Pointers carry the buffer they came from. The text says how many lanes a warp has, unless they are 32.

#ifndef TL_WARP
#define TL_WARP 32
#endif

#define TL_FN inline  // not always: kernels take up to twice as long to compile then, and run no faster
#define TL_COPY __builtin_memcpy
#define TL_WHOLE(x)
#define TL_HERE(x)
#include "tl_abi.h"
#include "tl_common.h"
#include "tl_math.h"

namespace tl {

// ---- pointers

template <class T>
struct gptr {
  T* p;
  emu::Buffer* buffer;
  operator gptr<const T>() const { return {p, buffer}; }
  gptr operator+(i64 n) const { return {(T*)((u64)p + u64(n) * sizeof(T)), buffer}; }
};

struct arena { i64 base; };  // dynamic shared memory

template <class T>
struct sptr {
  i64 base, limit;  // bytes from the start of the cluster's shared memory, and of this buffer
};

TL_FN arena declare_shared(i64 bytes) {
  return {emu_declare_shared(bytes)};
}

template <class T>
TL_FN sptr<T> shared(arena a, i64 offset, i64 count) {
  return {a.base + offset, count * i64(sizeof(T))};
}

template <class T>
TL_FN sptr<T> block(sptr<T> s, i64 off) {
  return {s.base + off * i64(sizeof(T)), s.limit - off * i64(sizeof(T))};
}

// Part of a tensor, outside of which loads give 0 and stores are dropped.
template <class T>
struct window {
  gptr<T> from;
  i64 extent;
};

template <class T>
TL_FN window<T> window_of(gptr<T> p, i64 start, i64 extent) {
  return {p + start, extent};
}

template <class T> using srow = sptr<T>;
template <class T> TL_FN srow<T> row(sptr<T> s, i64 off) { return block(s, off); }

TL_FN int thread() { return emu_thread(); }
TL_FN i64 program() { return emu_program(); }

// ---- loads and stores

template <int BYTES>
TL_FN void one_access() {
  static_assert(BYTES == 1 || BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "one access is 1 to 16 bytes");
}

template <class T>
TL_FN void* at(gptr<T> p, i64 off, int bytes, emu::Use use, op o) {
  return emu_global(p.buffer, p.p, off, sizeof(T), bytes, use, o.id);
}

template <class T>
TL_FN void* at(sptr<T> p, i64 off, int bytes, emu::Use use, op o) {
  return emu_shared(p.base, p.limit, off, sizeof(T), bytes, use, o.id);
}

template <class T> TL_FN void idle(gptr<T>, emu::Use use, op o) { emu_idle(0, use, o.id); }
template <class T> TL_FN void idle(sptr<T>, emu::Use use, op o) { emu_idle(1, use, o.id); }

template <int N, class T, template <class> class P>
TL_FN vec<plain<T>, N> ld(P<T> p, i64 off, op o) {
  one_access<N * int(sizeof(T))>();
  vec<plain<T>, N> v;
  TL_COPY(&v, at(p, off, sizeof v, emu::LOAD, o), sizeof v);
  return v;
}

template <int N, class T, template <class> class P>
TL_FN vec<plain<T>, N> ld(P<T> p, i64 off, bool mask, op o) {
  if (mask) return ld<N>(p, off, o);
  idle(p, emu::LOAD, o);
  return {};
}

template <int N, class T, template <class> class P>
TL_FN void st(P<T> p, i64 off, const vec<T, N>& v, op o) {
  one_access<N * int(sizeof(T))>();
  TL_COPY(at(p, off, sizeof v, emu::STORE, o), &v, sizeof v);
}

template <int N, class T, template <class> class P>
TL_FN void st(P<T> p, i64 off, const vec<T, N>& v, bool mask, op o) {
  if (mask) return st<N>(p, off, v, o);
  idle(p, emu::STORE, o);
}

template <int N, class T>
TL_FN vec<plain<T>, N> ld(window<T> w, int off, bool mask, op o) {
  return ld<N>(w.from, off, mask && off >= 0 && off < w.extent, o);
}
template <int N, class T> TL_FN vec<plain<T>, N> ld(window<T> w, int off, op o) { return ld<N>(w, off, true, o); }

template <int N, class T>
TL_FN void st(window<T> w, int off, const vec<T, N>& v, bool mask, op o) {
  st<N>(w.from, off, v, mask && off >= 0 && off < w.extent, o);
}
template <int N, class T>
TL_FN void st(window<T> w, int off, const vec<T, N>& v, op o) { st<N>(w, off, v, true, o); }

}  // namespace tl

#include "tl_codes.h"

namespace tl {

// A code of W bits at any bit; the lowest bit of a byte comes first.
template <int W>
TL_FN code<W> ld_bits(gptr<const u8> p, i64 bit, bool mask, op o) {
  if (!mask) {
    emu_idle(0, emu::LOAD_BITS, o.id);
    return 0;
  }
  return read_code<W>((const u8*)emu_bits(p.buffer, p.p, bit, W, emu::LOAD_BITS, o.id), int(bit & 7));
}

template <int W>
TL_FN void st_bits(gptr<u8> p, i64 bit, code<W> x, bool mask, op o) {
  if (!mask) return emu_idle(0, emu::STORE_BITS, o.id);
  u8* q = (u8*)emu_bits(p.buffer, p.p, bit, W, emu::STORE_BITS, o.id);
  const int shift = int(bit & 7);
  for (int i = 0; i < (W + 14) / 8; ++i)
    if (shift + W > 8 * i)
      q[i] = u8((q[i] & ~byte_of<W>(all_ones<W>, i, shift)) | byte_of<W>(x & all_ones<W>, i, shift));
}

template <int N, class T, class G>
TL_FN void cp_async(sptr<T> s, i64 soff, gptr<G> g, i64 goff, bool mask, op o) {
  constexpr int bytes = N * int(sizeof(T));
  static_assert(same<T, plain<G>>::value, "one element type on both sides");
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "an async copy is 4, 8 or 16 bytes");
  emu_copy_async(s.base, s.limit, soff, g.buffer, g.p, goff, sizeof(T), bytes, mask, o.id);
}

TL_FN void cp_commit(op o) { emu_commit(o.id); }
template <int PENDING> TL_FN void cp_wait(op o) { emu_wait(PENDING, o.id); }

// Lanes fill neighbouring places of shared memory, the first lane that at `first`, which must be the same for all.
template <int N, class T, class G>
TL_FN void dma(sptr<T> s, int first, window<G> w, int off, bool mask, op o) {
  constexpr int bytes = N * int(sizeof(T));
  static_assert(bytes == 4 || bytes == 16, "a copy in order is 4 or 16 bytes a lane");
  emu::Collective c{emu::DMA, o.id, bytes, 0, 0, nullptr, nullptr, nullptr, s.base, s.limit, first * i64(sizeof(T))};
  emu_collective(&c);
  emu_copy_async(s.base, s.limit, first + thread() % TL_WARP * N, w.from.buffer, w.from.p, off, sizeof(T), bytes,
                 mask && off >= 0 && off < w.extent, o.id);
}

template <int COUNT> TL_FN void wait_operations(op o) { emu_wait_operations(COUNT, o.id); }

TL_FN int warp() { return thread() / TL_WARP; }

// ---- atomics

template <class T, template <class> class P, class F>
TL_FN T read_modify_write(P<T> p, i64 off, bool mask, op o, F change) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomics are 2, 4 or 8 bytes");
  if (!mask) {
    idle(p, emu::ATOMIC, o);
    return T(0);
  }
  void* q = at(p, off, sizeof(T), emu::ATOMIC, o);
  T old;
  TL_COPY(&old, q, sizeof old);
  const T value = change(old);
  TL_COPY(q, &value, sizeof value);
  return old;
}

template <class T, template <class> class P>
TL_FN T atomic_add(P<T> p, i64 off, plain<T> v, bool mask, op o) {
  return read_modify_write(p, off, mask, o, [=](T old) { return T(old + v); });
}

template <class T, template <class> class P>
TL_FN T atomic_max(P<T> p, i64 off, plain<T> v, bool mask, op o) {
  return read_modify_write(p, off, mask, o, [=](T old) { return max(old, v); });
}

template <class T, template <class> class P>
TL_FN T atomic_min(P<T> p, i64 off, plain<T> v, bool mask, op o) {
  return read_modify_write(p, off, mask, o, [=](T old) { return min(old, v); });
}

#define TL_HALF_ATOMIC(KIND, H, UPDATED)                                                   \
  template <class T, template <class> class P>                                             \
  TL_FN T atomic_##KIND##_##H(P<T> p, i64 off, plain<T> v, bool mask, op o) {              \
    return read_modify_write(p, off, mask, o, [=](T old) {                                 \
      const float a = H##_to_f32(old), b = H##_to_f32(v);                                  \
      return T(f32_to_##H(UPDATED));                                                       \
    });                                                                                    \
  }
TL_HALF_ATOMICS(TL_HALF_ATOMIC)
#undef TL_HALF_ATOMIC

template <class T, template <class> class P>
TL_FN T atomic_cas(P<T> p, i64 off, plain<T> expected, plain<T> desired, bool mask, op o) {
  using U = as_unsigned<T>;  // compared as bits, as the hardware does
  return read_modify_write(p, off, mask, o,
                           [=](T old) { return bits<U>(old) == bits<U>(expected) ? desired : old; });
}

// ---- threads meeting

TL_FN void barrier(op o) { emu_barrier(o.id, false); }
TL_FN int cluster_rank() { return emu_cluster_rank(); }
TL_FN void cluster_barrier(op o) { emu_cluster_barrier(o.id); }
template <class T> using rptr = sptr<T>;
template <class T> TL_FN rptr<T> peer(sptr<T> s, int rank, op o) { return {emu_peer(s.base, rank, o.id), s.limit}; }
TL_FN void wait_previous(op) { emu_wait_previous(); }
TL_FN void start_next(op) {}
TL_FN void meet(op o) { emu_barrier(o.id, true); }
template <int THREADS> TL_FN void barrier_of(op o) { emu_barrier_of(THREADS, o.id); }
template <int COUNT> TL_FN void drop_registers(op o) { emu_registers(COUNT, false, o.id); }
template <int COUNT> TL_FN void take_registers(op o) { emu_registers(COUNT, true, o.id); }
template <int LEVEL> TL_FN void priority(op) {}
template <int ACCESSES, int PRODUCTS> TL_FN void spread(op) {}

TL_FN void syncwarp(op o) {
  emu::Collective c{emu::SYNCWARP, o.id};
  emu_collective(&c);
}

template <class T>
TL_FN T shuffle(emu::ShuffleKind kind, T v, int argument, op o) {
  T result = v;
  emu::Collective c{emu::SHUFFLE, o.id, kind, argument, sizeof(T), &result, &v};
  emu_collective(&c);
  return result;
}

template <class T> TL_FN T shfl_xor(T v, int mask, op o) { return shuffle(emu::XOR, v, mask, o); }
template <class T> TL_FN T shfl(T v, int lane, op o) { return shuffle(emu::INDEX, v, lane, o); }
template <class T> TL_FN T shfl_up(T v, int delta, op o) { return shuffle(emu::UP, v, delta, o); }
template <class T> TL_FN T shfl_down(T v, int delta, op o) { return shuffle(emu::DOWN, v, delta, o); }
template <int DISTANCE, class T> TL_FN void swap_lanes(T& a, T& b, op o) { exchange<DISTANCE>(a, b, thread(), o); }

TL_FN void check(bool ok, op o) {
  if (!ok) emu_check_failed(o.id);
}

// ---- printing: thread 0 hands the bytes to Python, which knows the operation

template <class T>
struct shown {
  sptr<T> from;
  i64 count;
};
template <char FORM, class T> TL_FN shown<T> show(sptr<T> from, i64 count) { return {from, count}; }

TL_FN void print_part(op, const char*) {}
template <class T>
TL_FN void print_part(op o, const shown<T>& part) {
  emu_print_part(part.from.base, part.from.limit, part.count, sizeof(T), o.id);
}

template <class... P>
TL_FN void print(op o, const P&... parts) {
  if (thread()) return;
  (print_part(o, parts), ...);
  emu_print(o.id);
}

// ---- matrices

// Registers [at, at + bytes) of v, refused where v is shorter.
template <class T, int N>
TL_FN T* registers(vec<T, N>& v, int at, int bytes, op o) {
  const int count = bytes / int(sizeof(T));
  if (at < 0 || at + count > N) emu_bad_register(at, count, N, o.id);
  return v.v + at;
}

template <class T, int N>
TL_FN const T* registers(const vec<T, N>& v, int at, int bytes, op o) {
  return registers(const_cast<vec<T, N>&>(v), at, bytes, o);
}

template <int X, bool TRANS, class T, int K>
TL_FN void ldmatrix(vec<T, K>& r, int at, sptr<T> s, i64 off, op o) {
  static_assert(X == 1 || X == 2 || X == 4, "1, 2 or 4 matrices");
  emu::Collective c{emu::LDMATRIX, o.id, TRANS ? -X : X, 0, 0, registers(r, at, 4 * X, o), nullptr, nullptr,
                    s.base, s.limit, off * i64(sizeof(T))};
  emu_collective(&c);
}

template <class T>
TL_FN vec<plain<T>, 8 / sizeof(T)> ld_transposed(sptr<T> s, i64 off, op o) {
  static_assert(sizeof(T) <= 2, "elements of 8 or 16 bits");
  vec<plain<T>, 8 / sizeof(T)> v;
  emu::Collective c{emu::LD_TRANSPOSED, o.id, int(sizeof(T)), 0, 0, &v, nullptr, nullptr, s.base, s.limit,
                    off * i64(sizeof(T))};
  emu_collective(&c);
  return v;
}

template <int X, bool TRANS, class T, int K>
TL_FN void stmatrix(sptr<T> s, i64 off, const vec<T, K>& r, int at, op o) {
  static_assert(X == 1 || X == 2 || X == 4, "1, 2 or 4 matrices");
  emu::Collective c{emu::STMATRIX, o.id, TRANS ? -X : X, 0, 0, nullptr, registers(r, at, 4 * X, o), nullptr,
                    s.base, s.limit, off * i64(sizeof(T))};
  emu_collective(&c);
}

#define EMU_MMA(NAME, M, D, PER, A_BYTES, ...)                                                                       \
  template <class T, int NA, class A, int NB, class B, int NC>                                                       \
  TL_FN void mma_##NAME(vec<T, NA>& acc, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op o) {      \
    static_assert(sizeof(T) == sizeof(D), "the accumulator's type");                                                 \
    emu::Collective c{emu::MMA, o.id, emu::MMA_##NAME, 0, 0, registers(acc, i, M / 4 * int(sizeof(T)), o),           \
                      registers(a, j, A_BYTES, o), registers(b, k, A_BYTES * 8 / M, o)};                             \
    emu_collective(&c);                                                                                              \
  }
EMU_MMAS
#undef EMU_MMA

#define EMU_MFMA(NAME, D, M, PER, ...)                                                                               \
  template <class T, int NA, class A, int NB, class B, int NC>                                                       \
  TL_FN void mfma_##NAME(vec<T, NA>& acc, int i, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, op o) {     \
    static_assert(sizeof(T) == sizeof(D), "the accumulator's type");                                                 \
    emu::Collective c{emu::MMA, o.id, emu::MFMA_##NAME, 0, 0, registers(acc, i, M * M / 64 * int(sizeof(T)), o),     \
                      registers(a, j, PER * int(sizeof(A)), o), registers(b, k, PER * int(sizeof(B)), o)};           \
    emu_collective(&c);                                                                                              \
  }
EMU_MFMAS
#undef EMU_MFMA

template <int SHAPE, int FORMATS, int A_BYTES, int B_BYTES, class A, int NB, class B, int NC>
TL_FN void small_product(float* acc, const vec<A, NB>& a, int j, const vec<B, NC>& b, int k, int scales, op o) {
  emu::Collective c{emu::MMA, o.id, SHAPE, scales, FORMATS, acc, registers(a, j, A_BYTES, o),
                    registers(b, k, B_BYTES, o)};
  emu_collective(&c);
}

#define EMU_MFMA(M, K, A, A_BYTES, B, B_BYTES)                                                                       \
  template <int NA, class X, int NB, class Y, int NC>                                                                \
  TL_FN void mfma_##M##x##M##x##K##_##A##_##B(vec<float, NA>& acc, int i, const vec<X, NB>& a, int j,                \
                                              const vec<Y, NC>& b, int k, u8 by_a, u8 by_b, op o) {                  \
    small_product<emu::MFMA_##M##x##M##x##K, emu::SMALL_##A * 8 + emu::SMALL_##B, A_BYTES, B_BYTES>(                 \
        registers(acc, i, M * M / 16, o), a, j, b, k, by_a | by_b << 8, o);                                          \
  }                                                                                                                  \
  template <int NA, class X, int NB, class Y, int NC>                                                                \
  TL_FN void mfma_##M##x##M##x##K##_##A##_##B(vec<float, NA>& acc, int i, const vec<X, NB>& a, int j,                \
                                              const vec<Y, NC>& b, int k, op o) {                                    \
    mfma_##M##x##M##x##K##_##A##_##B(acc, i, a, j, b, k, 127, 127, o);                                               \
  }
#define EMU_BY(A, A_BYTES, B, B_BYTES) \
  EMU_MFMA(16, 128, A, A_BYTES, B, B_BYTES) EMU_MFMA(32, 64, A, A_BYTES, B, B_BYTES)
#define EMU_E4M3(B, BYTES) EMU_BY(e4m3, 32, B, BYTES)
#define EMU_E5M2(B, BYTES) EMU_BY(e5m2, 32, B, BYTES)
#define EMU_E2M3(B, BYTES) EMU_BY(e2m3, 24, B, BYTES)
#define EMU_E3M2(B, BYTES) EMU_BY(e3m2, 24, B, BYTES)
#define EMU_E2M1(B, BYTES) EMU_BY(e2m1, 16, B, BYTES)
EMU_SMALL(EMU_E4M3)
EMU_SMALL(EMU_E5M2)
EMU_SMALL(EMU_E2M3)
EMU_SMALL(EMU_E3M2)
EMU_SMALL(EMU_E2M1)
#undef EMU_E4M3
#undef EMU_E5M2
#undef EMU_E2M3
#undef EMU_E3M2
#undef EMU_E2M1
#undef EMU_BY
#undef EMU_MFMA

// ---- products of four warps

template <class T, bool TRANSPOSED>
struct matrix {
  u64 bits;
};

template <int WIDTH, int LEADING, int STRIDE, bool TRANSPOSED, class T>
TL_FN matrix<T, TRANSPOSED> operand(sptr<T> s) {
  return {descriptor<WIDTH, LEADING, STRIDE>(u32(s.base))};
}

template <class T, bool TRANSPOSED>
TL_FN u64 from(matrix<T, TRANSPOSED> m, int off) { return m.bits + (u64(off) * sizeof(T) >> 4); }

#define EMU_WGMMA(NAME, D, A, B)                                                                                     \
  template <int COLUMNS, int N, class S, bool TA, class T, bool TB>                                                  \
  TL_FN void wgmma_##NAME(vec<D, N>& d, int i, matrix<S, TA> a, int j, matrix<T, TB> b, int k, op o) {               \
    const emu::GroupProduct p{o.id, COLUMNS, emu::FORM_##A, emu::FORM_##B, registers(d, i, 2 * COLUMNS, o), nullptr, \
                              from(a, j), from(b, k), TA, TB};                                                       \
    emu_group_product(&p);                                                                                           \
  }                                                                                                                  \
  template <int COLUMNS, int N, int NA, class R, class T, bool TB>                                                   \
  TL_FN void wgmma_##NAME(vec<D, N>& d, int i, const vec<R, NA>& a, int j, matrix<T, TB> b, int k, op o) {           \
    const emu::GroupProduct p{o.id, COLUMNS, emu::FORM_##A, emu::FORM_##B, registers(d, i, 2 * COLUMNS, o),          \
                              registers(a, j, 16, o), 0, from(b, k), false, TB};                                     \
    emu_group_product(&p);                                                                                           \
  }
EMU_WGMMA(m64k16_f16, float, F16, F16)
EMU_WGMMA(m64k16_bf16, float, BF16, BF16)
EMU_WGMMA(m64k8_tf32, float, TF32, TF32)
EMU_WGMMA(m64k32_e4m3, float, E4M3, E4M3)
EMU_WGMMA(m64k32_e5m2, float, E5M2, E5M2)
EMU_WGMMA(m64k32_e4m3_e5m2, float, E4M3, E5M2)
EMU_WGMMA(m64k32_e5m2_e4m3, float, E5M2, E4M3)
EMU_WGMMA(m64k32_s8, i32, S8, S8)
EMU_WGMMA(m64k32_u8, i32, U8, U8)
EMU_WGMMA(m64k32_s8u8, i32, S8, U8)
EMU_WGMMA(m64k32_u8s8, i32, U8, S8)
EMU_WGMMA(m64k256_b1, i32, B1, B1)
#undef EMU_WGMMA

TL_FN void group_commit(op o) { emu_group_commit(o.id); }
template <int PENDING> TL_FN void group_wait(op o) { emu_group_wait(PENDING, o.id); }
template <class T, int N> TL_FN void arrived(vec<T, N>& v, op o) { emu_arrived(&v, sizeof v, o.id); }
template <class... V> TL_FN void fence_registers(op o, V&...) { emu_fence_registers(o.id); }
TL_FN void fence_memory(op o) { emu_fence_memory(o.id); }

}  // namespace tl

#include "tl_bulk.h"
#include "tl_pieces.h"

// ---- kernels

namespace emu {
template <unsigned... I> struct indices {};
template <unsigned N, unsigned... I> struct count_to : count_to<N - 1, N - 1, I...> {};
template <unsigned... I> struct count_to<0, I...> { using type = indices<I...>; };

template <class... A, unsigned... I>
void call(void (*kernel)(A...), void** args, indices<I...>) {
  kernel(*(A*)args[I]...);
}
template <class... A>
void call(void (*kernel)(A...), void** args) {
  call(kernel, args, typename count_to<sizeof...(A)>::type{});
}
template <class... A>
int signature(void (*)(A...), int* sizes) {
  const int all[] = {int(sizeof(A))..., 0};
  if (sizes)
    for (unsigned i = 0; i < sizeof...(A); i++) sizes[i] = all[i];
  return sizeof...(A);
}
}  // namespace emu

#define TL_TENSOR_MAP const tl::tensor_map
#undef TL_UNROLL
#define TL_UNROLL
#define TL_KERNEL(name, THREADS)    \
  enum { name##__limit = THREADS }; \
  static void name
#define TL_SHARED(name, BYTES) const tl::arena name = tl::declare_shared(BYTES)
#ifndef TL_CLUSTER
#define TL_CLUSTER 1
#endif
#define TL_EXPORT(name)                                                                                       \
  extern "C" {                                                                                                \
  __attribute__((visibility("default"))) void name##__entry(void** args) { emu::call(&name, args); }          \
  __attribute__((visibility("default"))) int name##__signature(int* sizes) { return emu::signature(&name, sizes); } \
  __attribute__((visibility("default"))) int name##__threads() { return name##__limit; }                      \
  __attribute__((visibility("default"))) int name##__cluster() { return TL_CLUSTER; }                         \
  __attribute__((visibility("default"))) int name##__warp() { return TL_WARP; }                               \
  }
