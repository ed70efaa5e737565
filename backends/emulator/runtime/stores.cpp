// Copies of blocks to tensors (TMA): each reads shared memory at any time between its start and the wait for its
// group, and writes the tensor at any time until a wait for that, or the end of the block.
#include "state.h"

namespace emu {

struct BulkStore {
  BulkCopy box;   // no barrier tells of it
  void (*add)(void*, const void*);  // null: it writes
  int thread;                       // that started it
  u32 group;      // of that thread's
  bool read;
  std::vector<u8> values;  // by their place in shared memory, once read
};

static std::vector<BulkStore> stores;

static void read_store(BulkStore& s) {
  if (!s.values.empty()) return;
  const u8* from = shared_memory + s.box.to;
  s.values.assign(from, from + size_of_box(s.box.map));
}

// It has been read by `reader`, whom a wait told so.
static void end_reading(BulkStore& s) {
  if (s.read) return;
  read_store(s);
  s.read = true;
  end_store(s.box.to, u32(size_of_box(s.box.map)), s.box.op);
}

static void write_store(BulkStore& s) {
  const TensorMap& m = s.box.map;
  walk_box(s.box, [&](i64 from, u32 to, int bytes) {
    if (from < 0) return;
    u8 *there = (u8*)m.start + from, *here = &s.values[to - s.box.to];
    if (!s.add) memcpy(there, here, size_t(bytes));
    else
      for (int e = 0; e < bytes; e += m.size) s.add(there + e, here + e);
    const i64 at = (u8*)m.start + from - m.buffer->start;
    for (i64 i = at / m.buffer->shadow.granule; i < (at + bytes) / m.buffer->shadow.granule; i++) {
      GlobalCell& c = m.buffer->shadow.cells[i];
      c.stores--;
      c.wrote = stamp(*current);
    }
  });
}

static void check_stores_read() {
  for (const BulkStore& s : stores)
    if (s.thread == current->id && !s.read)
      report("async-unwaited", s.box.op, -1,
             "a copy of a block to a tensor may still read shared memory when its thread exits");
}

static void finish_stores() {
  for (BulkStore& s : stores) {
    read_store(s);
    write_store(s);
  }
  stores.clear();
}

}  // namespace emu

using namespace emu;

extern "C" void emu_tensor_store(long long base, long long limit, long long offset, const TensorMap* map,
                                 const int* at, void (*add)(void*, const void*), int op) {
  pause(BULK_STORE);
  current->log.push_back({0, op, 0, BULK_STORE, 0});
  BulkStore s{{*map, {}, op, place_of_box(base, limit, offset, *map, op), 0, nullptr}, add, current->id,
              current->stores, false, {}};
  memcpy(s.box.at, at, sizeof(int) * size_t(map->rank));
  check_box(s.box, BULK_STORE, add ? ATOMIC : STORE);
  walk_box(s.box, [&](i64 from, u32, int bytes) {
    if (from < 0) return;
    Buffer& b = *map->buffer;
    const i64 first = (u8*)map->start + from - b.start;
    for (i64 i = first / b.shadow.granule; i < (first + bytes) / b.shadow.granule; i++) {
      b.shadow.cells[i].stores++;
      b.shadow.cells[i].store_op = op;
    }
  });
  if (run.policy == REVERSE || (run.policy == RANDOM && draw(2))) read_store(s);
  stores.push_back(s);
}

extern "C" void emu_bulk_commit(int op) {
  pause(BULK_STORE);
  current->stores++;
}

extern "C" void emu_bulk_wait(int pending, int read, int op) {
  pause(BULK_STORE);
  for (size_t i = 0; i < stores.size();) {
    BulkStore& s = stores[i];
    const bool over = s.thread == current->id && s.group + u32(pending) < current->stores;
    if (over) end_reading(s);
    if (over && !read) {
      write_store(s);
      stores.erase(stores.begin() + i64(i));
    } else {
      i++;
    }
  }
}
