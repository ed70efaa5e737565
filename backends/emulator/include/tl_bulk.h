#pragma once
// Barriers in shared memory, and copies of blocks by one thread (TMA) that they wait for: part of tl.h.

namespace tl {

using tensor_map = emu::TensorMap;

template <int WARP = 0> TL_FN bool elected(op) { return thread() == WARP * TL_WARP; }
TL_FN void mbarrier_init(sptr<u64> b, int i, int arrivals, op o) {
  emu_mbarrier_init(b.base, b.limit, i, arrivals, o.id);
}
TL_FN void mbarrier_drop(sptr<u64> b, int i, op o) { emu_mbarrier_drop(b.base, b.limit, i, o.id); }
TL_FN void mbarrier_expect(sptr<u64> b, int i, int bytes, op o) {
  emu_mbarrier_expect(b.base, b.limit, i, bytes, o.id);
}
TL_FN void mbarrier_arrive(sptr<u64> b, int i, op o) { emu_mbarrier_arrive(b.base, b.limit, i, o.id); }
TL_FN void mbarrier_arrive_at(sptr<u64> b, int i, u32 ranks, op o) {
  for (int rank = 0; ranks >> rank; rank++)
    if (ranks >> rank & 1) mbarrier_arrive(peer(b, rank, o), i, o);
}
TL_FN void mbarrier_wait(sptr<u64> b, int i, int parity, op o) {
  emu_mbarrier_wait(b.base, b.limit, i, parity, o.id);
}

template <int N, class T>
TL_FN void tensor_load(sptr<T> s, i64 off, const tensor_map& map, vec<i32, N> at, sptr<u64> b, int i, op o) {
  emu_tensor_load(s.base, s.limit, off * i64(sizeof(T)), &map, at.v, b.base, b.limit, i, 0, o.id);
}

template <int N, class T>
TL_FN void tensor_multicast(sptr<T> s, i64 off, const tensor_map& map, vec<i32, N> at, sptr<u64> b, int i, u32 ranks,
                            op o) {
  emu_tensor_load(s.base, s.limit, off * i64(sizeof(T)), &map, at.v, b.base, b.limit, i, ranks, o.id);
}

template <int N, class T>
TL_FN void tensor_store(sptr<T> s, i64 off, const tensor_map& map, vec<i32, N> at, op o) {
  emu_tensor_store(s.base, s.limit, off * i64(sizeof(T)), &map, at.v, nullptr, o.id);
}

template <int N, class T>
TL_FN void tensor_add(sptr<T> s, i64 off, const tensor_map& map, vec<i32, N> at, op o) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are 4 or 8 bytes");
  emu_tensor_store(s.base, s.limit, off * i64(sizeof(T)), &map, at.v,
                   [](void* sum, const void* by) {
                     T x, y;
                     TL_COPY(&x, sum, sizeof x);
                     TL_COPY(&y, by, sizeof y);
                     x = T(x + y);
                     TL_COPY(sum, &x, sizeof x);
                   }, o.id);
}

TL_FN void bulk_commit(op o) { emu_bulk_commit(o.id); }
template <int PENDING, bool READ> TL_FN void bulk_wait(op o) { emu_bulk_wait(PENDING, READ, o.id); }

}  // namespace tl
