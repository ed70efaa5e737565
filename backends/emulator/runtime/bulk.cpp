// Barriers in shared memory, and copies of blocks of tensors (TMA) that end their phases. A copy lands at any time
// between its start and the end of its phase: at once, at random, or when nobody can go on without it.
#include "state.h"

namespace emu {

struct MBarrier {
  u32 at;
  int number, arrivals, missing;  // arrivals of a phase, and how many of them are still to come
  i64 bytes;                      // still to come in this phase
  u32 phase, first;               // phases that have ended; `first` of them before it was here, as threads count them
  u32 asked, waited;              // phases up to the last with a copy; up to the last that somebody waited for
  int expect_op, copy_op;
  Known gathered, released;       // by arrivals of this phase and those before; at the end of the last phase
  std::vector<std::pair<int, int>> waiting;  // threads and their operations
  std::vector<u32> seen;                     // of each thread: how many phases it has seen end
};

struct BulkCopy {
  TensorMap map;
  int at[5], op;
  u32 to, phase;
  MBarrier* barrier;
};

static std::vector<MBarrier*> mbarriers;
static std::vector<BulkCopy> under_way;
static u32 phases_before[MAX_MBARRIERS];

static void keep_readers() {
  if (readers.empty()) readers.assign(shared_cells.cells.size() * size_t(all_warps()), 0);
}

static void start_bulk() {
  for (MBarrier* b : mbarriers) delete b;
  mbarriers.clear();
  under_way.clear();
  readers.clear();
  memset(visits, 0, sizeof visits);
  if (run.blocks > 1) keep_readers();
  memset(phases_before, 0, sizeof phases_before);
}

static MBarrier* find_mbarrier(u32 at) {
  for (MBarrier* b : mbarriers)
    if (b->at == at) return b;
  return nullptr;
}

static int waiting_bulk(int* op, int* other, std::string* why) {
  int count = 0;
  for (MBarrier* b : mbarriers) {
    if (b->waiting.empty()) continue;
    count += int(b->waiting.size());
    if (*op < 0) *op = b->waiting[0].second;
    else if (*other < 0 && b->waiting[0].second != *op) *other = b->waiting[0].second;
    *why += " (" + std::to_string(b->waiting.size()) + " at byte " + std::to_string(b->at) + " for phase " +
            std::to_string(b->phase) + ", of which " + std::to_string(b->missing) + " arrivals and " +
            std::to_string(b->bytes) + " bytes are outstanding)";
  }
  return count;
}

// ---- what threads know of each other

// Whether more than barriers of the block orders anything.
static bool knowing() { return run.blocks > 1 || !mbarriers.empty(); }

static void know_all(int first, int last) {  // after a barrier of these threads
  if (!knowing()) return;
  Known all{};
  for (int i = first; i < last; i++) all.join(threads[i].known);
  for (int w = first / run.lanes; w < last / run.lanes; w++) all.until[w] = warps[w].time++;
  for (int i = first; i < last; i++) threads[i].known = all;
}

// The lanes of a warp have met: what they did so far is one.
static void release_warp(int warp) {
  Warp& w = warps[warp];
  w.clock++;
  if (!knowing()) return;
  Known all{};
  for (Lanes m = w.all; m; m &= m - 1) all.join(threads[warp * run.lanes + lowest(m)].known);
  all.until[warp] = w.time++;
  for (Lanes m = w.all; m; m &= m - 1) threads[warp * run.lanes + lowest(m)].known = all;
}

// ---- phases

static void end_phase(MBarrier& b) {
  if (b.missing || b.bytes) return;
  b.phase++;
  b.missing = b.arrivals;
  b.released.join(b.gathered);
  b.released.until[MAX_WARPS + b.number] = b.first + b.phase;
  for (const auto& [id, op] : b.waiting)
    set_ready(threads[id].warp, warps[threads[id].warp].ready | Lanes(1) << threads[id].lane);
  b.waiting.clear();
}

static void arrive_at(MBarrier& b, const Thread& by, int op) {
  if (!b.missing)
    fail("mbarrier", op, b.expect_op,
         "arrives at the barrier at shared byte %u, which has had all %d arrivals of phase %u already", b.at,
         b.arrivals, b.phase);
  b.gathered.join(by.known);
  b.missing--;
}

// The barrier at a byte, used by this thread.
static MBarrier& mbarrier(u32 at, int op) {
  check_shared(at, 8, MBARRIER, op, *current);
  MBarrier* b = find_mbarrier(at);
  if (!b) fail("mbarrier", op, -1, "uses shared byte %u as a barrier, where none was initialised", at);
  return *b;
}

// ---- copies

static int size_of_box(const TensorMap& m) {
  int bytes = m.size;
  for (int d = 0; d < m.rank; d++) bytes *= m.boxes[d];
  return bytes;
}

// Calls f(bytes from the start of the tensor, or -1 outside of it; place in shared memory; bytes) for each piece of 16
// bytes that lies together, else for each of its elements.
template <class F>
static void walk_box(const BulkCopy& c, F f) {
  const TensorMap& m = c.map;
  const int bytes = size_of_box(m), row = m.boxes[0] * m.size, each = 16 / m.size;
  for (int linear = 0; linear < bytes; linear += 16) {
    const i64 first = i64(c.at[0]) + linear % row / m.size;
    i64 from = first * m.size;
    bool inside = true;
    int rest = linear / row;
    for (int d = 1; d < m.rank; d++) {
      const i64 index = i64(c.at[d]) + rest % m.boxes[d];
      rest /= m.boxes[d];
      inside = inside && index >= 0 && index < m.extents[d];
      from += index * m.strides[d];
    }
    u32 to = c.to + u32(linear);
    if (m.swizzle) to ^= (to >> 7 & (m.swizzle / 16 - 1)) << 4;
    if (inside && first >= 0 && first + each <= m.extents[0] && from % 16 == 0) {
      f(from, to, 16);
      continue;
    }
    for (int e = 0; e < each; e++)
      f(inside && first + e >= 0 && first + e < m.extents[0] ? from + e * m.size : -1, to + u32(e * m.size), m.size);
  }
}

static void land(const BulkCopy& c) {
  const u8* start = (const u8*)c.map.start;
  walk_box(c, [&](i64 from, u32 to, int bytes) {
    if (from >= 0) memcpy(shared_memory + to, start + from, size_t(bytes));
    else memset(shared_memory + to, 0, size_t(bytes));
  });
  MBarrier& b = *c.barrier;
  if (b.phase != c.phase)
    report("transaction", c.op, b.expect_op,
           "its bytes arrive in phase %u of the barrier at shared byte %u, but it was started in phase %u: the "
           "barrier expected fewer bytes than came", b.phase, b.at, c.phase);
  b.bytes -= size_of_box(c.map);
  end_phase(b);
}

static bool land_next() {
  if (under_way.empty()) return false;
  const size_t i = run.policy == RANDOM ? draw(under_way.size()) : 0;
  const BulkCopy c = under_way[i];
  under_way.erase(under_way.begin() + i64(i));
  land(c);
  return true;
}

static void check_bulk_done() {
  for (const MBarrier* b : mbarriers)
    if (b->asked > b->waited)
      report("async-unwaited", b->copy_op, -1, "a copy of a block whose phase nobody waited for");
}

// Both sides of a copy: `use` is BULK to shared memory, BULK_STORE from there; `other` what it does to the tensor,
// where it has not done it already: what goes to several blocks is read once.
static void check_box(const BulkCopy& c, Use use, Use other, bool done = false) {
  const TensorMap& m = c.map;
  const u32 bytes = u32(size_of_box(m)), pattern = m.swizzle ? u32(m.swizzle) * 8 : 128;
  if (c.to % pattern)
    fail("misaligned", c.op, -1, "a copy of a block %s shared byte %u, no multiple of %u", use == BULK ? "to" : "from",
         c.to, pattern);
  for (u32 i = 0; i < bytes; i += 16) check_shared(c.to + i, 16, use, c.op, *current);
  if (done) return;
  Counter& count = counters[c.op];
  i64 last = -1;
  walk_box(c, [&](i64 from, u32, int size) {
    if (from < 0) return;
    const i64 at = check_global_bounds(*m.buffer, m.start, from, 1, size, c.op);
    check_global(*m.buffer, at, u32(size), other, c.op);
    const i64 sector = (at + m.buffer->phase) >> 5;
    count.sectors += sector != last;
    last = sector;
    count.bytes += size;
  });
  count.requests++;
  count.ideal_sectors += (bytes + 31) / 32;
}

static void start_copy(BulkCopy& c, bool again) {
  const TensorMap& m = c.map;
  MBarrier& b = *c.barrier;
  const SharedCell& here = shared_cells.cells[b.at / shared_cells.granule];
  if (threads[here.writer].fences_seen <= here.fences)
    report("missing-fence", c.op, here.write_op,
           "a copy of a block uses the barrier at shared byte %u, which thread %d initialised without a memory fence "
           "before a barrier of the block", b.at, here.writer);
  check_box(c, BULK, LOAD, again);
  const u32 bytes = u32(size_of_box(m));
  for (u32 i = c.to / shared_cells.granule; i < (c.to + bytes) / shared_cells.granule; i++)
    shared_cells.cells[i].wrote = {blocks[current->block].epoch, 0, u8(MAX_WARPS + b.number), 0,
                                   b.first + c.phase + 1};
  b.asked = c.phase + 1;
  b.copy_op = c.op;
  under_way.push_back(c);
}

// What the last lane of a warp to arrive at a barrier does for all of them.
static void arrive(const Warp& w, int warp) {
  const Collective& mine = *w.calls[current->lane];
  for (Lanes m = w.all; m; m &= m - 1)
    if (w.calls[lowest(m)]->offset != mine.offset)
      fail("divergent-collective", mine.op, -1, "lanes arrive at different barriers in shared memory");
  MBarrier& b = mbarrier(u32(mine.offset), mine.op);
  release_warp(warp);
  arrive_at(b, *current, mine.op);
  end_phase(b);
}

static u32 place_of(i64 base, i64 limit, i64 number, int op) {
  check_shared_bounds(base, limit, number, 8, 8, op);
  return u32(base + number * 8);
}

static u32 place_of_box(i64 base, i64 limit, i64 offset, const TensorMap& map, int op) {
  const i64 bytes = size_of_box(map);
  if (offset < 0 || offset + bytes > limit || base + offset + bytes > end_of(base))
    fail("bounds-shared", op, -1, "a copy of %lld bytes at byte %lld of a shared buffer of %lld", (long long)bytes,
         (long long)offset, (long long)limit);
  return u32(base + offset);
}

}  // namespace emu

using namespace emu;

extern "C" void emu_mbarrier_init(long long base, long long limit, long long i, int arrivals, int op) {
  pause(MBARRIER);
  const u32 at = place_of(base, limit, i, op);
  if (find_mbarrier(at)) fail("mbarrier", op, -1, "initialises shared byte %u, which is a barrier already", at);
  if (arrivals < 1) fail("mbarrier", op, -1, "initialises a barrier of %d arrivals", arrivals);
  check_shared(at, 8, STORE, op, *current);
  keep_readers();
  u64 taken = 0;
  for (const MBarrier* b : mbarriers) taken |= u64(1) << b->number;
  const int number = ~taken ? __builtin_ctzll(~taken) : MAX_MBARRIERS;
  if (number == MAX_MBARRIERS)
    fail("mbarrier", op, -1, "the emulator has room for %d barriers in shared memory", MAX_MBARRIERS);
  MBarrier* b = new MBarrier{};
  b->at = at, b->number = number, b->arrivals = b->missing = arrivals;
  b->first = phases_before[number];
  b->expect_op = b->copy_op = -1;
  b->seen.resize(size_t(run.blocks * run.stride));
  mbarriers.push_back(b);
}

extern "C" void emu_mbarrier_drop(long long base, long long limit, long long i, int op) {
  pause(MBARRIER);
  const u32 at = place_of(base, limit, i, op);
  MBarrier& b = mbarrier(at, op);
  check_shared(at, 8, STORE, op, *current);
  if (b.asked > b.waited)
    report("async-unwaited", b.copy_op, op, "a copy of a block whose barrier is dropped before anybody waited for it");
  phases_before[b.number] = b.first + b.phase + 1;
  mbarriers.erase(std::find(mbarriers.begin(), mbarriers.end(), &b));
  delete &b;
}

extern "C" void emu_mbarrier_arrive(long long base, long long limit, long long i, int op) {
  Collective c{MBARRIER, op};
  c.offset = place_of(base, limit, i, op);
  emu_collective(&c);
}

extern "C" void emu_mbarrier_expect(long long base, long long limit, long long i, int bytes, int op) {
  pause(MBARRIER);
  current->log.push_back({0, op, 0, MBARRIER, 0});
  MBarrier& b = mbarrier(place_of(base, limit, i, op), op);
  arrive_at(b, *current, op);
  b.bytes += bytes;
  b.expect_op = op;
  end_phase(b);
}

extern "C" void emu_mbarrier_wait(long long base, long long limit, long long i, int parity, int op) {
  pause(MBARRIER);
  current->log.push_back({0, op, 0, MBARRIER, 0});
  MBarrier& b = mbarrier(place_of(base, limit, i, op), op);
  if (run.policy == RANDOM && draw(2)) land_next();
  // It means the phase after those it has seen end, or, by its parity, the last of them.
  u32& seen = b.seen[size_t(current->id)];
  if ((seen & 1) == u32(parity & 1)) {
    if (b.phase == seen) {
      b.waiting.push_back({current->id, op});
      stop_ready();
      suspend();
    }
    if (b.phase > seen + 1)
      report("mbarrier", op, b.copy_op,
             "waits for the end of phase %u of the barrier at shared byte %u, which has ended phase %u as well: "
             "nothing held it back until this thread had seen that end", seen, b.at, b.phase - 1);
    seen = b.phase;
  }
  current->known.join(b.released);
  b.waited = b.phase;
}

// To the same place in the shared memory of each block in `ranks` (0: this one), whose own barrier there counts it.
extern "C" void emu_tensor_load(long long base, long long limit, long long offset, const TensorMap* map, const int* at,
                                long long bar_base, long long bar_limit, long long i, unsigned ranks, int op) {
  pause(BULK);
  current->log.push_back({0, op, 0, BULK, 0});
  if (!ranks) ranks = 1u << current->block;
  for (u32 left = ranks; left; left &= left - 1) {
    const int rank = lowest(left);
    BulkCopy c{*map, {}, op, 0, 0, &mbarrier(place_of(emu_peer(bar_base, rank, op), bar_limit, i, op), op)};
    memcpy(c.at, at, sizeof(int) * size_t(map->rank));
    c.to = place_of_box(emu_peer(base, rank, op), limit, offset, *map, op);
    c.phase = c.barrier->phase;
    start_copy(c, left != ranks);
  }
  if (run.policy == REVERSE || (run.policy == RANDOM && draw(2))) land_next();
}
