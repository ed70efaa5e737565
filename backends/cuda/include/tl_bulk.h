#pragma once
// Copies of whole blocks by the tensor memory accelerator (PTX ISA 8.7, sections 9.7.9.25.5 and 9.7.13.15), and the
// barriers in shared memory that tell when their bytes have arrived. For sm_90 and later.

namespace tl {

// How a tensor lies in memory, as the driver encodes it.
struct alignas(64) tensor_map {
  u64 opaque[16];
};

// True in one thread of one warp, which the compiler then knows to be alone. Whole warps ask.
template <int WARP = 0>
TL_FN bool elected(op) {
  u32 one;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(one));
  return warp() == WARP && one;
}

// The four warps give back registers of their threads, or wait until there are so many; all of the branch they are in
// has them.
template <int N> TL_FN void drop_registers(op) { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> TL_FN void take_registers(op) { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// A barrier of the first threads of the block.
template <int THREADS> TL_FN void barrier_of(op) { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

TL_FN void mbarrier_init(u64* b, int i, int arrivals, op) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b, i)), "r"(arrivals) : "memory");
}

// Its memory may hold something else from here on, another barrier too.
TL_FN void mbarrier_drop(u64* b, int i, op) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(b, i)) : "memory");
}

// The arrival of one thread, after which so many bytes are to come.
TL_FN void mbarrier_expect(u64* b, int i, int bytes, op) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b, i)), "r"(bytes)
               : "memory");
}

// One arrival of a whole warp: after what its lanes did.
TL_FN void mbarrier_arrive(u64* b, int i, op) {
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b, i)) : "memory");
}

#ifdef TL_CLUSTER
// The same at the barriers in that place of each block of the cluster whose bit of `ranks` is set, a lane for each.
// Its scope is the block, as in CUTLASS (ClusterBarrier): it follows reads of this block's memory, to which others
// then copy. A release to the cluster would also wait for stores to tensors, and empty the first-level cache.
TL_FN void mbarrier_arrive_at(u64* b, int i, u32 ranks, op) {
  __syncwarp();
  const u32 lane = threadIdx.x % 32;
  if (!(ranks >> lane & 1)) return;
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(b, i)), "r"(lane));
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
#endif

// Until the phase of that parity is over.
TL_FN void mbarrier_wait(u64* b, int i, int parity, op) {
  const u32 at = shared_address(b, i);
  u32 done;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(at), "r"(parity) : "memory");
  } while (!done);
}

// One thread starts the copy of a box of the tensor, the first element at `at`, the dimension of neighbours first.
// Where there are no clusters to speak of, naming one's memory costs registers and a word of the stack.
#if __CUDA_ARCH__ >= 1200
#define TL_OWN "shared::cta"
#else
#define TL_OWN "shared::cluster"
#endif
#define TL_TENSOR_LOAD(RANK, TO, HOW, PLACE, LAST, ...)                                                               \
  if constexpr (N == RANK)                                                                                            \
    asm volatile("cp.async.bulk.tensor." #RANK "d." TO ".global.tile.mbarrier::complete_tx::bytes" HOW                \
                 " [%0], [%1, {" PLACE "}], [%2]" LAST ";" ::"r"(shared_address(s, off)), "l"(&map),                  \
                 "r"(shared_address(b, i)), __VA_ARGS__ : "memory");
template <int N, class T>
TL_FN void tensor_load(T* s, int off, const tensor_map& map, vec<i32, N> at, u64* b, int i, op) {
  TL_TENSOR_LOAD(1, TL_OWN, "", "%3", "", "r"(at[0]))
  TL_TENSOR_LOAD(2, TL_OWN, "", "%3, %4", "", "r"(at[0]), "r"(at[1]))
  TL_TENSOR_LOAD(3, TL_OWN, "", "%3, %4, %5", "", "r"(at[0]), "r"(at[1]), "r"(at[2]))
  TL_TENSOR_LOAD(4, TL_OWN, "", "%3, %4, %5, %6", "", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))
  TL_TENSOR_LOAD(5, TL_OWN, "", "%3, %4, %5, %6, %7", "", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]))
}

#ifdef TL_CLUSTER
// To the same place in the shared memory of each block of the cluster whose bit of `ranks` is set; the barrier in the
// same place there counts the bytes.
#define TL_MULTICAST(RANK, PLACE, ...) \
  TL_TENSOR_LOAD(RANK, "shared::cluster", ".multicast::cluster", PLACE, ", %3", "h"(u16(ranks)), __VA_ARGS__)
template <int N, class T>
TL_FN void tensor_multicast(T* s, int off, const tensor_map& map, vec<i32, N> at, u64* b, int i, u32 ranks, op) {
  TL_MULTICAST(1, "%4", "r"(at[0]))
  TL_MULTICAST(2, "%4, %5", "r"(at[0]), "r"(at[1]))
  TL_MULTICAST(3, "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]))
  TL_MULTICAST(4, "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))
  TL_MULTICAST(5, "%4, %5, %6, %7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]))
}
#undef TL_MULTICAST
#endif
#undef TL_TENSOR_LOAD
#undef TL_OWN

// The same to a tensor. The thread that starts copies closes groups of them, and waits for these.
#define TL_TENSOR_STORE(RANK, START, HOW, PLACE, ...)                                                                 \
  if constexpr (N == RANK)                                                                                            \
    asm volatile(START ".async.bulk.tensor." #RANK "d.global.shared::cta" HOW ".tile.bulk_group"                      \
                 " [%1, {" PLACE "}], [%0];" ::"r"(shared_address(s, off)), "l"(&map), __VA_ARGS__ : "memory");
#define TL_TENSOR_STORES(NAME, START, HOW)                                                                            \
  template <int N, class T>                                                                                           \
  TL_FN void NAME(T* s, int off, const tensor_map& map, vec<i32, N> at, op) {                                         \
    TL_TENSOR_STORE(1, START, HOW, "%2", "r"(at[0]))                                                                  \
    TL_TENSOR_STORE(2, START, HOW, "%2, %3", "r"(at[0]), "r"(at[1]))                                                  \
    TL_TENSOR_STORE(3, START, HOW, "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]))                                  \
    TL_TENSOR_STORE(4, START, HOW, "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))                  \
    TL_TENSOR_STORE(5, START, HOW, "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]))  \
  }
TL_TENSOR_STORES(tensor_store, "cp", "")
TL_TENSOR_STORES(tensor_add, "cp.reduce", ".add")  // each element atomically, as numbers of the map's type
#undef TL_TENSOR_STORES
#undef TL_TENSOR_STORE

TL_FN void bulk_commit(op) { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most PENDING groups have not been read from shared memory, or have not been written.
template <int PENDING, bool READ>
TL_FN void bulk_wait(op) {
  if constexpr (READ) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
  else asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace tl

#define TL_TENSOR_MAP const __grid_constant__ tl::tensor_map
