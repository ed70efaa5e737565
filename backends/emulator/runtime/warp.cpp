// Instructions of a whole warp: the last lane to arrive does the work of all.
#include "state.h"

namespace emu {

static void shuffle(const Warp& w) {
  for (int l = 0; l < run.lanes; l++) {
    if (!(w.all >> l & 1)) continue;
    const Collective& c = *w.calls[l];
    int from = l;
    if (c.detail == XOR) from = l ^ c.argument;
    else if (c.detail == INDEX) from = c.argument & (run.lanes - 1);
    else from = c.detail == UP ? l - c.argument : l + c.argument;
    if (from < 0 || from >= run.lanes || !(w.all >> from & 1)) from = l;
    memcpy(c.out, w.calls[from]->a, c.bytes);
  }
}

// The bytes of shared memory that a lane names in an instruction of its whole warp.
static u8* named(const Collective& c, Thread& t, int bytes) {
  const i64 at = c.base + c.offset;
  current = &t;  // whom reports name
  if (c.offset < 0 || c.offset + bytes > c.limit || at + bytes > end_of(c.base))
    fail("bounds-shared", c.op, -1, "lane %d names %d bytes at byte %lld of a buffer of %lld", t.lane, bytes, c.offset,
         c.limit);
  if (at % bytes) fail("misaligned", c.op, -1, "lane %d names %d bytes at shared byte %lld", t.lane, bytes,
                       (long long)at);
  t.log.push_back({at, c.op, u16(bytes), u8(c.use), 1});
  check_shared(u32(at), u32(bytes), c.use, c.op, t);
  return shared_memory + at;
}

// The 16-byte rows of up to four 8x8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8.
static void matrices(const Warp& w, int warp) {
  constexpr int LANES = 32;
  const Collective& first = *w.calls[0];
  const bool transposed = first.detail < 0, load = first.use == LDMATRIX;
  const int count = transposed ? -first.detail : first.detail;
  u16* rows[LANES];
  Thread* last = current;
  for (int l = 0; l < 8 * count; l++) {
    const Collective& c = *w.calls[l];
    Thread& t = threads[warp * LANES + l];
    rows[l] = (u16*)named(c, t, 16);
  }
  current = last;
  for (int l = 8 * count; l < LANES; l++)
    threads[warp * LANES + l].log.push_back({0, first.op, 0, u8(first.use), 1});
  for (int l = 0; l < LANES; l++) {
    u16* out = (u16*)w.calls[l]->out;
    const u16* in = (const u16*)w.calls[l]->a;
    for (int e = 0; e < 2 * count; e++) {
      int row = l / 4, column = 2 * (l % 4) + e % 2;
      if (transposed) std::swap(row, column);
      u16& cell = rows[e / 2 * 8 + row][column];
      if (load) memcpy(out + e, &cell, 2);
      else memcpy(&cell, in + e, 2);
    }
  }
}

// Of sixteen lanes each names EACH elements in 8 bytes; lane l gets those at place l % EACH of lanes l / EACH +
// 16 / EACH n.
template <class T>
static void transposed(const Warp& w, int warp) {
  constexpr int EACH = 8 / sizeof(T);
  T seen[MAX_LANES][EACH];
  Thread* last = current;
  for (int l = 0; l < run.lanes; l++) memcpy(seen[l], named(*w.calls[l], threads[warp * run.lanes + l], 8), 8);
  current = last;
  for (int l = 0; l < run.lanes; l++)
    for (int n = 0; n < EACH; n++)
      ((T*)w.calls[l]->out)[n] = seen[l / 16 * 16 + l % 16 / EACH + 16 / EACH * n][l % EACH];
}

// The lanes of a copy that fills neighbouring places agree on the first; what they copy they say next.
static void in_order(const Warp& w) {
  const Collective& first = *w.calls[lowest(w.all)];
  for (Lanes m = w.all; m; m &= m - 1) {
    const Collective& c = *w.calls[lowest(m)];
    if (c.base != first.base || c.offset != first.offset)
      fail("divergent-collective", c.op, -1, "lanes name bytes %lld and %lld as the place of the first lane",
           first.offset, c.offset);
  }
}

static void perform(const Warp& w, int warp) {
  const Collective& first = *w.calls[0];
  const bool amd = first.use == LD_TRANSPOSED || first.use == DMA;
  const int needs = first.use == MMA ? lanes_of(Shape(first.detail)) : amd ? 64 : 32;
  if (first.use != SHUFFLE && first.use != SYNCWARP && first.use != MBARRIER && size(w.all) != needs)
    fail("divergent-collective", first.op, -1, "a matrix instruction needs %d lanes, its warp has %d", needs,
         size(w.all));
  if (first.use == LDMATRIX || first.use == STMATRIX) return matrices(w, warp);
  if (first.use == LD_TRANSPOSED) return first.detail == 1 ? transposed<u8>(w, warp) : transposed<u16>(w, warp);
  if (first.use == DMA) return in_order(w);
  for (int l = 0; l < run.lanes; l++)
    if (w.all >> l & 1) threads[warp * run.lanes + l].log.push_back({0, first.op, 0, u8(first.use), 0});
  if (first.use == SYNCWARP) release_warp(warp);
  else if (first.use == MBARRIER) arrive(w, warp);
  else if (first.use == SHUFFLE) shuffle(w);
  else multiply(w.calls, Shape(first.detail));
}

}  // namespace emu

extern "C" void emu_collective(Collective* call) {
  Thread& t = *current;
  Warp& w = warps[t.warp];
  if (w.waiting) {
    const Collective& other = *w.calls[lowest(w.waiting)];
    if (other.op != call->op || other.use != call->use || other.detail != call->detail)
      fail("divergent-collective", call->op, other.op,
           "is at this collective while lanes of its warp wait at another");
  }
  if (w.exited)
    fail("divergent-collective", call->op, -1, "waits for lane %d, which has exited", lowest(w.exited));
  w.calls[t.lane] = call;
  w.waiting |= Lanes(1) << t.lane;
  if (w.waiting != w.all) {
    stop_ready();
    suspend();
    return;
  }
  perform(w, t.warp);
  flush(t.warp, w.all);
  w.waiting = 0;
  set_ready(t.warp, w.all);
  if (run.policy != FORWARD) give_way();
}
