#pragma once
// Programs of a cluster (PTX ISA 8.7, sections 9.7.9.23 and 9.7.13.4). For sm_90 and later.

namespace tl {

// A place in the shared memory of another block of the cluster: a generic address, as `mapa` gives it.
template <class T> using rptr = T*;

TL_FN int cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}

template <class T>
TL_FN rptr<T> peer(T* s, int rank, op) {
  rptr<T> p;
  asm("mapa.u64 %0, %1, %2;" : "=l"(p) : "l"(s), "r"(rank));
  return p;
}

// All threads of all blocks.
TL_FN void cluster_barrier(op) {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace tl
