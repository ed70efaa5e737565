// Threads as fibers: who runs next, barriers, exits, and the loop over blocks.
#include <sys/mman.h>

#include "state.h"
#include "switch.h"

namespace emu {

constexpr size_t STACK = 256 << 10;
static u8* stacks;
static void* host;  // the stack of the launch loop

static u64 draw(u64 bound) {  // splitmix64
  u64 z = run.seed += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (z ^ z >> 31) % bound;
}

static int lowest(Lanes mask) { return __builtin_ctzll(mask); }
static int size(Lanes mask) { return __builtin_popcountll(mask); }

static int nth_bit(Lanes mask, u32 n) {
  while (n--) mask &= mask - 1;
  return lowest(mask);
}

static int pick(Lanes mask) {
  if (run.policy == FORWARD) return lowest(mask);
  if (run.policy == REVERSE) return 63 - __builtin_clzll(mask);
  return nth_bit(mask, u32(draw(size(mask))));
}

static void set_ready(int warp, Lanes mask) {
  warps[warp].ready = mask;
  if (mask) run.ready_warps |= u64(1) << warp;
  else run.ready_warps &= ~(u64(1) << warp);
}

// The thread to run next; null where none can. A warp goes on as long as it can, as its lanes meet often.
static Thread* next() {
  if (!run.ready_warps) return nullptr;
  const int here = current->warp;
  int w = here;
  if (run.policy == RANDOM || !warps[here].ready) {
    const u64 below = run.ready_warps & ((u64(1) << here) - 1), above = run.ready_warps & ~((u64(2) << here) - 1);
    if (run.policy == FORWARD) w = pick(above ? above : below);
    else w = pick(run.policy == REVERSE && below ? below : run.ready_warps);
  }
  return &threads[w * run.lanes + pick(warps[w].ready)];
}

static void resume(Thread* t) {
  Thread* from = current;
  if (t == from) return;
  current = t;
  emu_switch(&from->stack, t->stack);
}

[[noreturn]] static void leave() {
  Thread* from = current;
  current = nullptr;
  emu_switch(&from->stack, host);
  __builtin_unreachable();
}

[[noreturn]] static void abandon() {
  run.abandoned = true;
  leave();
}

static void stop_ready() {  // the running thread cannot go on for now
  set_ready(current->warp, warps[current->warp].ready & ~(Lanes(1) << current->lane));
}

// Nobody can go on: some wait where others never come.
[[noreturn]] static void deadlock() {
  int waiting = 0, collective = -1, group = -1, bulk = -1, other = -1, barrier = -1, at_barrier = 0, done = 0;
  for (int i = 0; i < run.blocks; i++) {
    const Block& b = blocks[i];
    if (b.at_barrier) barrier = b.barrier_op;
    if (b.at_part) barrier = b.part_op;
    at_barrier += b.at_barrier + b.at_part, done += b.done;
  }
  if (run.at_cluster && barrier < 0) barrier = run.cluster_op;
  else if (run.at_cluster) other = run.cluster_op;
  for (int w = 0; w < all_warps(); w++) {
    if (!warps[w].waiting) continue;
    waiting += size(warps[w].waiting);
    collective = warps[w].calls[lowest(warps[w].waiting)]->op;
  }
  std::string why;
  int registers = -1;
  const int for_registers = waiting_registers(&registers, &why);
  const int in_groups = waiting_groups(&group) + for_registers, in_bulk = waiting_bulk(&bulk, &other, &why);
  // First what the others may wait for, too.
  int ops[2] = {-1, -1}, n = 0;
  for (int op : {registers, bulk, other, collective, group, barrier})
    if (op >= 0 && n < 2) ops[n++] = op;
  fail("deadlock", ops[0], ops[1],
       "%d threads wait for the rest of their warp, %d for that of their group, %d at a barrier, %d in shared memory"
       "%s, %d have exited", waiting, in_groups, at_barrier + run.at_cluster, in_bulk, why.c_str(), done);
}

// Lets the lanes with long logs go on, when all others have come as far as they can.
static bool drain() {
  bool any = false;
  for (int w = 0; w < all_warps(); w++) {
    if (!warps[w].full) continue;
    flush(w, warps[w].all);
    set_ready(w, warps[w].ready | warps[w].full);
    warps[w].full = 0;
    any = true;
  }
  return any;
}

static void suspend() {
  run.streak = 0;
  Thread* t = next();
  if (!t && drain()) t = next();
  while (!t && land_next()) t = next();
  if (!t) deadlock();
  resume(t);
}

static void wait_for_others() {
  warps[current->warp].full |= Lanes(1) << current->lane;
  stop_ready();
  suspend();
}

static void give_way() {
  if (Thread* t = next()) resume(t);
}

// For a loop that waits for another thread: any thread may go on, whatever the policy prefers.
static void give_way_to_any() {
  run.streak = 0;
  const int w = nth_bit(run.ready_warps, u32(draw(size(run.ready_warps))));
  resume(&threads[w * run.lanes + nth_bit(warps[w].ready, u32(draw(size(warps[w].ready))))]);
}

static void enter() {
  run.entry(run.args);
  Thread& t = *current;
  Warp& w = warps[t.warp];
  Block& b = here();
  w.exited |= Lanes(1) << t.lane;
  b.done++;
  if (!t.copies.empty())
    report("async-unwaited", t.copies[0].op, -1, "exits with %zu async copies never waited for", t.copies.size());
  check_groups_done();
  check_stores_read();
  if (w.waiting)
    fail("divergent-collective", w.calls[lowest(w.waiting)]->op, -1,
         "exits while lanes of its warp wait for it");
  if (b.at_barrier)
    fail("divergent-barrier", b.barrier_op, -1, "exits while %d threads wait at a barrier", b.at_barrier);
  if (b.at_part && number_of(t) < b.part)
    fail("divergent-barrier", b.part_op, -1, "exits while %d threads wait at a barrier for it", b.at_part);
  if (run.at_cluster)
    fail("divergent-barrier", run.cluster_op, -1, "exits while %d threads wait at a barrier of the cluster",
         run.at_cluster);
  stop_ready();
  if (b.done == run.threads) {
    check_exit();
    if (++run.blocks_done == run.blocks) {
      check_bulk_done();
      finish_stores();
      leave();
    }
  }
  suspend();
  __builtin_unreachable();
}

static void begin_epoch(int block, bool whole) {
  blocks[block].epoch = ++run.epoch;
  if (whole) blocks[block].whole = run.epoch;
  epochs.push_back(u8(block));
}

static void start_cluster(i64 first) {
  run.first_epoch = run.epoch + 1;
  run.ready_warps = 0;
  run.blocks_done = run.at_cluster = 0;
  run.streak = 0;
  epochs.clear();
  memset(shared_memory, 0xff, size_t(run.blocks) * run.span);  // NaN in every float format
  for (int b = 0; b < run.blocks; b++) {
    blocks[b] = Block{};
    blocks[b].program = first + b;
    blocks[b].together = run.warps;
    begin_epoch(b, true);
    for (int w = 0; w < run.warps; w++) {
      const int left = run.threads - w * run.lanes;
      Warp& warp = warps[b * run.warps + w];
      warp = Warp{};
      warp.time = 1;
      warp.all = left > 0 ? ~Lanes(0) >> (MAX_LANES - (left < run.lanes ? left : run.lanes)) : 0;
      set_ready(b * run.warps + w, warp.all);
    }
    for (int i = 0; i < run.stride; i++) {
      Thread& t = threads[b * run.stride + i];
      t.id = b * run.stride + i, t.lane = i % run.lanes, t.warp = t.id / run.lanes, t.block = b;
      t.group = t.stores = t.fences = t.fences_seen = t.idle = 0;
      t.fenced = false;
      t.alone = !run.overlaps;
      t.known = Known{};
      t.copies.clear();
      t.log.clear();
      // Stacks at one distance would share the sets of the first cache: shift each.
      t.stack = first_frame(stacks + (t.id + 1) * STACK - 64 - (i % 61) * 192, enter);
    }
  }
  start_groups();
  start_bulk();
}

static void run_cluster(i64 first) {
  start_cluster(first);
  const int w = pick(run.ready_warps);
  current = &threads[w * run.lanes + pick(warps[w].ready)];
  emu_switch(&host, current->stack);
  while (run.print_op >= 0) {  // Python does not fit on the stack of a thread
    run.print(run.print_op, printed.data(), i64(printed.size()));
    printed.clear();
    run.print_op = -1;
    emu_switch(&host, current->stack);
  }
}

static void prepare_stacks() {
  if (stacks) return;
  void* p = mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
  if (p == MAP_FAILED) abort();
  stacks = (u8*)p;
  for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * STACK, 4096, PROT_NONE);  // overflow faults at once
}

}  // namespace emu

using namespace emu;

extern "C" int emu_thread() { return number_of(*current); }
extern "C" long long emu_program() { return here().program; }
extern "C" int emu_cluster_rank() { return current->block; }

extern "C" void emu_wait_previous() { current->alone = true; }

extern "C" void emu_print(int op) {
  if (!run.print) return printed.clear();
  run.print_op = op;
  emu_switch(&current->stack, host);
}

// Whole warps have met, of the threads from one to before another: what they did so far comes before what they do
// next.
static void met(int first, int last) {
  bool alone = false;
  for (int i = first; i < last; i++) alone |= threads[i].alone;
  for (int i = first; i < last; i++) threads[i].fences_seen = threads[i].fences, threads[i].alone = alone;
  know_all(first, last);
  for (int b = first / run.stride; b * run.stride < last; b++) begin_epoch(b, last % run.stride == 0);
  for (int w = first / run.lanes; w < last / run.lanes; w++) {
    flush(w, warps[w].all);
    warps[w].clock = 0;
    set_ready(w, warps[w].all);
  }
  if (run.policy != FORWARD) give_way();
}

extern "C" void emu_barrier(int op, int meet) {
  Thread& t = *current;
  Block& b = here();
  if (b.at_barrier && b.barrier_op != op && !(meet && b.meet))
    fail("divergent-barrier", op, b.barrier_op, "is at this barrier while %d threads wait at another", b.at_barrier);
  if (b.done) fail("divergent-barrier", op, -1, "waits at a barrier after %d threads have exited", b.done);
  b.barrier_op = op;
  b.meet = meet;
  t.log.push_back({0, op, 0, BARRIER, 0});
  if (++b.at_barrier < run.threads) {
    stop_ready();
    suspend();
    return;
  }
  b.at_barrier = 0;
  met(t.block * run.stride, (t.block + 1) * run.stride);
}

extern "C" void emu_barrier_of(int count, int op) {
  Thread& t = *current;
  Block& b = here();
  if (number_of(t) >= count || count > run.threads || count % run.lanes)
    fail("divergent-barrier", op, -1, "is at a barrier of the first %d threads", count);
  if (b.at_part && (b.part_op != op || b.part != count))
    fail("divergent-barrier", op, b.part_op, "is at this barrier while %d threads wait at another", b.at_part);
  const int first = t.block * run.stride, warp = first / run.lanes;
  for (int w = warp; w < warp + count / run.lanes; w++)
    if (warps[w].exited)
      fail("divergent-barrier", op, -1, "waits at a barrier after threads of warp %d have exited", w - warp);
  b.part_op = op, b.part = count;
  t.log.push_back({0, op, 0, BARRIER, 0});
  if (++b.at_part < count) {
    stop_ready();
    suspend();
    return;
  }
  b.at_part = 0;
  b.together = count / run.lanes;
  met(first, first + count);
}

extern "C" void emu_cluster_barrier(int op) {
  if (run.at_cluster && run.cluster_op != op)
    fail("divergent-barrier", op, run.cluster_op, "is at this barrier of the cluster while %d threads wait at another",
         run.at_cluster);
  for (int b = 0; b < run.blocks; b++)
    if (blocks[b].done)
      fail("divergent-barrier", op, -1, "waits at a barrier of the cluster after %d threads of block %lld have exited",
           blocks[b].done, (long long)blocks[b].program);
  run.cluster_op = op;
  current->log.push_back({0, op, 0, BARRIER, 0});
  if (++run.at_cluster < run.threads * run.blocks) {
    stop_ready();
    suspend();
    return;
  }
  run.at_cluster = 0;
  met(0, run.blocks * run.stride);
}

extern "C" long long emu_peer(long long base, int rank, int op) {
  if (rank < 0 || rank >= run.blocks)
    fail("bounds-shared", op, -1, "shared memory of block %d of a cluster of %d", rank, run.blocks);
  return base % run.span + rank * i64(run.span);
}
