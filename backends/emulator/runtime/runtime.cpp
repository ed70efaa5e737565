// The runtime library, one translation unit so that the checks inline, and what Python calls.
#include "fibers.cpp"
#include "shadow.cpp"
#include "counters.cpp"
#include "warp.cpp"
#include "matrix.cpp"
#include "groups.cpp"
#include "bulk.cpp"
#include "stores.cpp"
#include "reports.cpp"

static i64 block_at(i64 i, i64 programs, std::vector<i64>& shuffled) {
  if (run.policy == FORWARD) return i;
  if (run.policy == REVERSE) return programs - 1 - i;
  std::swap(shuffled[i], shuffled[i + i64(draw(u64(programs - i)))]);
  return shuffled[i];
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Buffer* emu_buffer(void* start, i64 bytes, i64 phase, int index, int initialised) {
  Buffer* b = new Buffer{(u8*)start, bytes, phase, index, {}};
  GlobalCell cell{};
  cell.initialised = initialised;
  b->shadow.reset(bytes, 16, cell);
  return b;
}

// Of each byte of a buffer, whether a launch read it (1) or wrote it (2).
EXPORT void emu_touched(const Buffer* b, u8* out) {
  const i64 step = b->shadow.granule;
  for (i64 i = 0; i < b->bytes; i += step) {
    const GlobalCell& c = b->shadow.cells[size_t(i / step)];
    memset(out + i, (c.reader ? 1 : 0) | (c.writer ? 2 : 0), size_t(std::min(step, b->bytes - i)));
  }
}

EXPORT void emu_free(Buffer* b) { delete b; }

// 0 when every block ran to its end, 1 when a mistake ended the launch.
EXPORT int emu_launch(void (*entry)(void**), void** args, i64 programs, int cluster, int count, u32 shared_bytes,
                      int policy, u64 seed, const Machine* machine, int overlaps,
                      void (*print)(int, const void*, i64)) {
  current = nullptr;
  early.clear();
  stores.clear();
  clear_findings();
  counters.clear();
  prepare_stacks();
  if (!f16_table[1]) prepare_tables();
  run = Launch{};
  run.entry = entry, run.args = args, run.policy = Policy(policy), run.seed = seed;
  run.print = print, run.overlaps = overlaps;
  printed.clear();
  run.machine = machine, run.lanes = machine->lanes;
  run.blocks = cluster;
  // Of several blocks, each one's threads begin with a whole group.
  const int unit = cluster > 1 ? GROUP : run.lanes;
  run.threads = count, run.stride = (count + unit - 1) / unit * unit, run.warps = run.stride / run.lanes;
  run.shared_bytes = shared_bytes, run.span = (shared_bytes + 1024) & ~u32(1023);
  const size_t shared = size_t(cluster) * run.span;
  free(shared_memory);
  shared_memory = (u8*)aligned_alloc(1024, shared);
  shared_cells.reset(i64(shared), 16, SharedCell{});
  const i64 clusters = programs / cluster;
  std::vector<i64> shuffled(run.policy == RANDOM ? clusters : 0);
  for (size_t i = 0; i < shuffled.size(); i++) shuffled[i] = i64(i);
  for (i64 i = 0; i < clusters && !run.abandoned; i++) {
    run_cluster(cluster * block_at(i, clusters, shuffled));
    for (int w = 0; w < all_warps(); w++) flush(w, warps[w].all);
  }
  return run.abandoned;
}

EXPORT int emu_early_count() { return int(early.size()); }
EXPORT const Early* emu_early(int i) { return &early[i]; }
EXPORT int emu_finding_count() { return int(findings.size()); }
EXPORT const Finding* emu_finding(int i) { return &findings[i]; }
EXPORT int emu_counter_count() { return int(counters.size()); }
EXPORT const Counter* emu_counter(int i, int* op) {
  auto it = counters.begin();
  std::advance(it, i);
  *op = it->first;
  return &it->second;
}
