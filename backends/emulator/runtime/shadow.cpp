// What happened to each cell of memory: who wrote and read it last, whether it holds a value, what is under way.
#include "state.h"

namespace emu {

// A cell stands for `granule` bytes; the granule shrinks when a smaller access first comes, so that kernels which
// move wide vectors pay for few cells.
template <class Cell>
struct Cells {
  std::vector<Cell> cells;
  u32 granule;

  void reset(i64 bytes, u32 start, Cell fill) {
    granule = start;
    cells.assign((bytes + start - 1) / start, fill);
  }

  void refine(u32 bytes) {
    if (bytes >= granule) return;
    const u32 parts = granule / bytes;
    std::vector<Cell> fine(cells.size() * parts);
    for (size_t i = 0; i < fine.size(); i++) fine[i] = cells[i / parts];
    cells.swap(fine);
    granule = bytes;
  }
};

// ---- shared memory

// When and by whom. `lane` MANY stands for several lanes of one warp, `warp` MANY for several warps; from MAX_WARPS on
// it is a barrier in shared memory that tells of a copy, and `time` the phase at whose end it does.
struct Stamp {
  u32 epoch;
  u16 clock;
  u8 warp, lane;
  u32 time;
};
constexpr u8 MANY = 0xff;

struct SharedCell {
  Stamp wrote, read;
  int write_op, read_op, copy_op, product_op, store_op;
  u16 writer;     // thread that wrote last
  u16 products;   // reading it, under way
  u16 stores;     // copies of blocks to tensors that may still read it
  u32 fences;     // of memory that the writer had made
  bool atomic, pending, bulk;  // bulk: written by a copy of a block
};

static Cells<SharedCell> shared_cells;
// For each cell and warp, where there are barriers in shared memory: how far it had come when it read last, 0 where it
// did not since the last barrier of the block.
static std::vector<u32> readers;

static Stamp stamp(const Thread& t) {
  return {blocks[t.block].epoch, u16(warps[t.warp].clock), u8(t.warp), u8(t.lane), warps[t.warp].time};
}

static bool of_one_block(u32 epoch, u32 other) {
  return run.blocks == 1 || epochs[epoch - run.first_epoch] == epochs[other - run.first_epoch];
}

// Whether barriers of a block's first warps order it, too. What several warps did without a barrier, such did.
static bool together(const Stamp& s) { return s.warp == MANY || s.warp % run.warps < here().together; }

// Whether something comes before what `now` does, of which `known` tells what else comes before it. Barriers order all
// threads that come to them, syncwarp orders the lanes of a warp; only its own barrier tells of a copy.
static bool ordered(const Stamp& before, const Stamp& now, const Known& known) {
  if (before.epoch < run.first_epoch) return true;
  const bool copy = before.warp >= MAX_WARPS && before.warp != MANY;
  if (!copy && before.epoch != now.epoch && of_one_block(before.epoch, now.epoch) &&
      (before.epoch < here().whole || (together(before) && together(now))))
    return true;
  if (before.warp != MANY && known.until[before.warp] >= before.time) return true;
  return !copy && before.warp == now.warp && before.warp != MANY &&
         (before.clock != now.clock || (before.lane == now.lane && now.lane != MANY));
}

static void note_read(size_t cell, int warp) {
  if (readers.empty()) return;
  u32* row = &readers[cell * size_t(all_warps())];
  const u32 read = shared_cells.cells[cell].read.epoch;
  if (run.blocks > 1 ? read < run.first_epoch : read < blocks[0].whole) memset(row, 0, all_warps() * sizeof(u32));
  row[warp] = warps[warp].time;
}

static bool reads_ordered(size_t cell, const Stamp& now, const Known& known) {
  const Stamp& read = shared_cells.cells[cell].read;
  if (!readers.empty() && (run.blocks > 1 || !together(now))) {  // what others read, and what this warp did
    for (int w = 0; w < all_warps(); w++)
      if (w != now.warp && read.epoch >= run.first_epoch && readers[cell * size_t(all_warps()) + w] > known.until[w])
        return false;
    return read.warp == MANY || read.warp != now.warp || ordered(read, now, known);
  }
  if (read.warp != MANY || readers.empty() || read.epoch != now.epoch) return ordered(read, now, known);
  for (int w = 0; w < run.warps; w++)
    if (readers[cell * run.warps + w] > known.until[w]) return false;
  return true;
}

static Stamp join(const Stamp& a, Stamp b) {
  if (a.epoch != b.epoch) return b;
  if (a.warp != b.warp) b.warp = b.lane = MANY;
  else if (a.clock == b.clock && a.lane != b.lane) b.lane = MANY;
  return b;
}

static std::string name(const Stamp& s) {
  if (s.warp == MANY) return "several warps";
  if (s.lane == MANY) return "several threads of warp " + std::to_string(s.warp);
  return "thread " + std::to_string(s.warp * run.lanes + s.lane);
}

static void refine_shared(u32 bytes) {
  const size_t before = shared_cells.cells.size();
  shared_cells.refine(bytes);
  if (readers.empty() || shared_cells.cells.size() == before) return;
  const size_t row = size_t(all_warps());
  std::vector<u32> fine(shared_cells.cells.size() * row);
  const size_t parts = shared_cells.cells.size() / before;
  for (size_t i = 0; i < shared_cells.cells.size(); i++)
    memcpy(&fine[i * row], &readers[i / parts * row], row * sizeof(u32));
  readers.swap(fine);
}

// Of each block, by warps of others: when and by what its shared memory was last accessed.
struct Visit {
  u32 time;
  int op;
};
static Visit visits[MAX_BLOCKS][MAX_WARPS];

// A block's shared memory is there from when it has begun, which one knows who has met it, until it exits.
static void visit(int block, int op, const Thread& by, const Known& known) {
  u32 met = 0;
  for (int w = block * run.warps; w < (block + 1) * run.warps; w++) met |= known.until[w];
  if (!met)
    report("cluster-lifetime", op, -1, "accesses shared memory of block %lld, which may not have started: no barrier "
           "with it came before", (long long)blocks[block].program);
  else if (blocks[block].done == run.threads)
    report("cluster-lifetime", op, -1, "accesses shared memory of block %lld, which has exited",
           (long long)blocks[block].program);
  visits[block][by.warp] = {warps[by.warp].time, op};
}

// When the last thread of a block exits.
static void check_exit() {
  if (run.blocks == 1) return;
  const int block = current->block;
  Known all{};
  for (int i = block * run.stride; i < (block + 1) * run.stride; i++) all.join(threads[i].known);
  for (int w = 0; w < all_warps(); w++)
    if (visits[block][w].time > all.until[w])
      report("cluster-lifetime", visits[block][w].op, -1,
             "accesses shared memory of block %lld, which may have exited: it waits for nothing after the access",
             (long long)here().program);
}

static void check_shared(u32 offset, u32 bytes, Use use, int op, const Thread& by, const Known& known) {
  const bool loads = use == LOAD || use == LDMATRIX || use == LD_TRANSPOSED || use == MMA || use == MBARRIER ||
                     use == BULK_STORE;
  const bool writes = !loads, reads = loads || use == ATOMIC;
  Stamp now = stamp(by);
  if (use == MMA) now.warp = MANY;  // any warp of the group may read it
  // What a lane names is handed to, or comes from, several lanes.
  if (use == LDMATRIX || use == STMATRIX || use == LD_TRANSPOSED || use == MMA) now.lane = MANY;
  if (run.blocks > 1 && int(offset / run.span) != by.block) visit(int(offset / run.span), op, by, known);
  refine_shared(bytes);
  const u32 end = (offset + bytes) / shared_cells.granule;
  for (u32 i = offset / shared_cells.granule; i < end; i++) {
    SharedCell& c = shared_cells.cells[i];
    const u32 at = i * shared_cells.granule;
    const bool atomics = use == ATOMIC && c.atomic, written = c.wrote.epoch >= run.first_epoch;
    if (c.pending && run.first_epoch <= c.wrote.epoch)
      report("async-pending", op, c.copy_op, "%s shared byte %u while the async copy of %s is under way",
             writes ? "writes" : "reads", at, name(c.wrote).c_str());
    else if (written && c.bulk && !ordered(c.wrote, now, known))
      report("async-pending", op, c.copy_op,
             "%s shared byte %u while a copy of a block to it may be under way: its phase was not waited for",
             writes ? "writes" : "reads", at);
    else if (written && !atomics && !ordered(c.wrote, now, known))
      report(reads ? "race-raw" : "race-waw", op, c.write_op,
             "%s shared byte %u, which %s wrote with no barrier between", reads ? "reads" : "writes", at,
             name(c.wrote).c_str());
    else if (reads && !written)
      report("uninitialised-shared", op, -1, "reads shared byte %u, which holds no value", at);
    else if ((use == MMA || use == BULK || use == BULK_STORE) && written && !c.bulk &&
             threads[c.writer].fences_seen <= c.fences)
      report("missing-fence", op, c.write_op,
             "a %s shared byte %u, which thread %d wrote without a memory fence before a barrier",
             use == MMA ? "product reads" : use == BULK ? "copy of a block writes" : "copy of a block reads", at,
             c.writer);
    if (use == MMA) c.products++, c.product_op = op;
    if (use == BULK_STORE) c.stores++, c.store_op = op;
    if (writes) {
      if (c.products)
        report("product-pending", op, c.product_op, "writes shared byte %u, which a product under way reads", at);
      else if (c.stores)
        report("async-pending", op, c.store_op,
               "writes shared byte %u, which a copy of a block to a tensor may still read", at);
      else if (!atomics && !reads_ordered(i, now, known))
        report("race-war", op, c.read_op, "writes shared byte %u, which %s read with no barrier between", at,
               name(c.read).c_str());
      c.wrote = atomics ? join(c.wrote, now) : now;
      c.write_op = op;
      c.writer = u16(by.id), c.fences = by.fences;
      c.atomic = use == ATOMIC;
      c.pending = use == COPY_ASYNC;
      c.bulk = use == BULK;
      if (c.pending || c.bulk) c.copy_op = op;
    } else {
      note_read(i, by.warp);
      c.read = join(c.read, now);
      c.read_op = op;
    }
  }
}

static void check_shared(u32 offset, u32 bytes, Use use, int op, const Thread& by) {
  check_shared(offset, bytes, use, op, by, by.known);
}

// A product of this thread's group no longer reads these bytes.
static void end_read(u32 offset, u32 bytes, int op) {
  Stamp now = stamp(*current);
  now.warp = now.lane = MANY;
  for (u32 i = offset / shared_cells.granule; i < (offset + bytes) / shared_cells.granule; i++) {
    SharedCell& c = shared_cells.cells[i];
    c.products--;
    for (int w = 0; w < GROUP / 32; w++) note_read(i, current->id / GROUP * (GROUP / 32) + w);
    c.read = join(c.read, now);
    c.read_op = op;
  }
}

static void check_shared_bounds(i64 base, i64 limit, i64 offset, int size, int bytes, int op) {
  i64 start;
  if (__builtin_mul_overflow(offset, i64(size), &start) || start < 0 || start > limit - bytes ||
      base + start > end_of(base) - bytes)
    fail("bounds-shared", op, -1, "element %lld (%d bytes) of a shared buffer of %lld elements", (long long)offset,
         bytes, (long long)(limit / size));
  if ((base + start) % bytes)
    fail("misaligned", op, -1, "an access of %d bytes at shared byte %lld", bytes, (long long)(base + start));
}

// A copy of a block to a tensor has read these bytes, as this thread knows.
static void end_store(u32 offset, u32 bytes, int op) {
  for (u32 i = offset / shared_cells.granule; i < (offset + bytes) / shared_cells.granule; i++) {
    SharedCell& c = shared_cells.cells[i];
    c.stores--;
    note_read(i, current->warp);
    c.read = join(c.read, stamp(*current));
    c.read_op = op;
  }
}

// ---- asynchronous copies

static void land(const Copy& copy) {
  if (copy.from) memcpy(shared_memory + copy.offset, copy.from, copy.bytes);
  else memset(shared_memory + copy.offset, 0, copy.bytes);
}

static void complete(const Copy& copy) {
  land(copy);
  for (u32 i = copy.offset / shared_cells.granule; i < (copy.offset + copy.bytes) / shared_cells.granule; i++) {
    SharedCell& c = shared_cells.cells[i];
    c.pending = false;
    c.wrote = stamp(*current);
    c.write_op = copy.op;
    c.writer = u16(current->id), c.fences = current->fences;
  }
}

// ---- global memory

struct GlobalCell {
  u32 writer, reader;  // blocks + 1; EVERY for several
  Stamp wrote, read;
  int write_op, read_op, store_op;
  u16 stores;  // copies of blocks to it that nobody has waited for
  u8 use;  // of the last write
  bool initialised;
};
constexpr u32 EVERY = ~0u;

struct Buffer {
  u8* start;
  i64 bytes, phase;  // phase: bytes from an address aligned like an allocation of the device
  int index;
  Cells<GlobalCell> shadow;
};

static std::string name_of_blocks(u32 who) {
  return who == EVERY ? "other blocks" : "another block (" + std::to_string(who - 1) + ")";
}

static bool atomic_pair(u8 a, u8 b) {  // bit fields are written by atomics, so that neighbours survive
  if (a == ATOMIC || b == ATOMIC) return a == b;
  return (a == LOAD_BITS || a == STORE_BITS) && (b == LOAD_BITS || b == STORE_BITS);
}

// What is touched while the launches before may still run: neighbours by one operation are one record.
struct Early {
  const u8* start;
  i64 bytes;
  int op, writes;
};
static std::vector<Early> early;

static void note_early(const u8* start, i64 bytes, int op, bool writes) {
  for (size_t i = early.size(); i-- > 0 && i + 8 > early.size();) {
    Early& e = early[i];
    if (e.op != op || e.writes != int(writes) || start > e.start + e.bytes || start < e.start) continue;
    e.bytes = std::max(e.bytes, i64(start - e.start) + bytes);
    return;
  }
  early.push_back({start, bytes, op, int(writes)});
}

static void check_global(Buffer& b, i64 at, u32 bytes, Use use, int op) {
  const bool writes = use == STORE || use == ATOMIC || use == STORE_BITS;
  const bool reads = use != STORE && use != STORE_BITS;
  if (!current->alone) note_early(b.start + at, bytes, op, writes);
  const u32 me = u32(here().program) + 1;
  const Stamp now = stamp(*current);
  b.shadow.refine(bytes);
  for (i64 i = at / b.shadow.granule; i < (at + bytes) / b.shadow.granule; i++) {
    GlobalCell& c = b.shadow.cells[i];
    const i64 byte = i * b.shadow.granule;
    const bool benign = atomic_pair(c.use, use);
    if (c.stores && !benign)
      report("async-pending", op, c.store_op,
             "%s byte %lld of argument %d, to which a copy of a block may be under way", writes ? "writes" : "reads",
             (long long)byte, b.index);
    else if (reads && !c.initialised)
      report("uninitialised-global", op, -1, "reads byte %lld of argument %d, which holds no value", (long long)byte,
             b.index);
    if (c.writer && c.writer != me && !benign)
      report("race-global", op, c.write_op, "%s byte %lld of argument %d, which %s wrote",
             writes ? "writes" : "reads", (long long)byte, b.index, name_of_blocks(c.writer).c_str());
    else if (reads && !benign && !ordered(c.wrote, now, current->known))  // storing one value twice does no harm
      report("race-global", op, c.write_op, "reads byte %lld of argument %d, which %s wrote with no barrier between",
             (long long)byte, b.index, name(c.wrote).c_str());
    if (writes) {
      if (c.reader && c.reader != me && !(benign && c.writer))
        report("race-global", op, c.read_op, "writes byte %lld of argument %d, which %s read", (long long)byte,
               b.index, name_of_blocks(c.reader).c_str());
      else if (!benign && !ordered(c.read, now, current->known))
        report("race-global", op, c.read_op, "writes byte %lld of argument %d, which %s read with no barrier between",
               (long long)byte, b.index, name(c.read).c_str());
      c.writer = benign && c.writer && c.writer != me ? EVERY : me;
      c.wrote = benign ? join(c.wrote, now) : now;
      c.write_op = op;
      c.use = use;
      c.initialised = true;
    } else {
      c.reader = c.reader && c.reader != me ? EVERY : me;
      c.read = join(c.read, now);
      c.read_op = op;
    }
  }
}

// The offset of an access in bytes from the start of the buffer.
static i64 check_global_bounds(const Buffer& b, const void* base, i64 offset, int size, int bytes, int op) {
  const i64 origin = i64((const u8*)base - b.start);
  i64 start;
  if (__builtin_mul_overflow(offset, i64(size), &start) || __builtin_add_overflow(start, origin, &start) ||
      start < 0 || start > b.bytes - bytes)
    fail("bounds-global", op, -1, "element %lld (%d bytes) of argument %d, whose memory ends after %lld bytes",
         (long long)offset, bytes, b.index, (long long)(b.bytes - origin));
  if ((start + b.phase) % bytes)
    fail("misaligned", op, -1, "an access of %d bytes at byte %lld of argument %d", bytes,
         (long long)(start + b.phase), b.index);
  return start;
}

static void pause(Use use) {  // other threads may run between any two accesses
  if (run.patience && !--run.patience) abandon();
  if (current->log.size() >= LOG) wait_for_others();
  if (run.policy == RANDOM && draw(16) == 0) give_way();
  if (use == ATOMIC && ++run.streak > 1000) give_way_to_any();
}

// A loop that waits for a program that does not run finds in the same places what was there before, without end.
static void check_progress(const u8* p, int bytes, Use use, int op) {
  u64 value = 0;
  memcpy(&value, p, size_t(std::min(bytes, 8)));
  Found& f = last_found[u64(p) / 4 % PLACES];
  Thread& t = *current;
  if (f.p != p || f.value != value) f = {p, value}, run.news++;
  if (t.news != run.news) t.news = run.news, t.idle = 0;
  if (use == ATOMIC && ++t.idle > 1u << 18)
    fail("deadlock", op, -1, "atomics without end: a loop waits for what never comes (programs run in any order)");
}

}  // namespace emu

extern "C" void* emu_global(Buffer* b, const void* base, long long offset, int size, int bytes, Use use, int op) {
  pause(use);
  const i64 at = check_global_bounds(*b, base, offset, size, bytes, op);
  current->log.push_back({at + b->phase + (i64(b->index) << 48), op, u16(bytes), u8(use), 0});
  check_global(*b, at, bytes, use, op);
  check_progress(b->start + at, bytes, use, op);
  return b->start + at;
}

extern "C" void* emu_bits(Buffer* b, const void* base, long long bit, int width, Use use, int op) {
  pause(use);
  const int bytes = (int(bit & 7) + width + 7) / 8;
  i64 at = 0;
  for (int i = bytes - 1; i >= 0; i--) at = check_global_bounds(*b, base, (bit >> 3) + i, 1, 1, op);
  current->log.push_back({at + b->phase + (i64(b->index) << 48), op, u16(bytes), u8(use), 0});
  for (int i = 0; i < bytes; i++) check_global(*b, at + i, 1, use, op);
  check_progress(b->start + at, bytes, use, op);
  return b->start + at;
}

extern "C" void* emu_shared(long long base, long long limit, long long offset, int size, int bytes, Use use, int op) {
  pause(use);
  check_shared_bounds(base, limit, offset, size, bytes, op);
  const i64 at = base + offset * size;
  current->log.push_back({at, op, u16(bytes), u8(use), 1});
  check_shared(u32(at), bytes, use, op, *current);
  if (use == ATOMIC) check_progress(shared_memory + at, bytes, use, op);
  return shared_memory + at;
}

extern "C" void emu_idle(int shared, Use use, int op) {
  pause(LOAD);
  current->log.push_back({0, op, 0, u8(use), u8(shared)});
}

extern "C" void emu_copy_async(long long base, long long limit, long long offset, Buffer* b, const void* from,
                               long long from_offset, int size, int bytes, int mask, int op) {
  pause(COPY_ASYNC);
  check_shared_bounds(base, limit, offset, size, bytes, op);
  Copy copy{u32(base + offset * size), u32(bytes), current->group, nullptr, op};
  i64 at = 0;
  if (mask) {
    at = check_global_bounds(*b, from, from_offset, size, bytes, op);
    check_global(*b, at, bytes, LOAD, op);
    copy.from = b->start + at;
  }
  current->log.push_back({at + b->phase + (i64(b->index) << 48), op, u16(mask ? bytes : 0), COPY_ASYNC, 0});
  current->log.push_back({i64(copy.offset), op, u16(bytes), COPY_ASYNC, 1});
  check_shared(copy.offset, bytes, COPY_ASYNC, op, *current);
  current->copies.push_back(copy);
  // Data may land at any time until the wait: eager and late runs show kernels that count on one of them.
  if (run.policy == REVERSE || (run.policy == RANDOM && draw(2))) land(copy);
}

extern "C" void emu_commit(int) { current->group++; }

extern "C" void emu_wait(int pending, int) {
  Thread& t = *current;
  size_t kept = 0;
  for (const Copy& copy : t.copies) {
    if (copy.group + pending < t.group) complete(copy);
    else t.copies[kept++] = copy;
  }
  t.copies.resize(kept);
}

extern "C" void emu_wait_operations(int count, int) {
  std::vector<Copy>& copies = current->copies;
  const size_t done = copies.size() - std::min(copies.size(), size_t(count));
  for (size_t i = 0; i < done; i++) complete(copies[i]);
  copies.erase(copies.begin(), copies.begin() + i64(done));
}

extern "C" long long emu_declare_shared(long long bytes) {
  if (bytes > i64(run.shared_bytes))
    fail("bounds-shared", -1, -1, "the kernel needs %lld bytes of shared memory, the launch gave %u", bytes,
         run.shared_bytes);
  return current->block * i64(run.span);
}

extern "C" void emu_check_failed(int op) { fail("assertion", op, -1, "a checked condition is false"); }

extern "C" void emu_print_part(long long base, long long limit, long long count, int size, int op) {
  for (i64 i = 0; i < count; i++) {
    check_shared_bounds(base, limit, i, size, size, op);
    check_shared(u32(base + i * size), size, LOAD, op, *current);
  }
  printed.insert(printed.end(), shared_memory + base, shared_memory + base + count * size);
}

extern "C" void emu_bad_register(int at, int count, int length, int op) {
  fail("bounds-register", op, -1, "registers %d to %d of a vector of %d", at, at + count - 1, length);
}
