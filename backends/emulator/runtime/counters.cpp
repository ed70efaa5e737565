// Counters of each op: what a warp's requests would cost. The accesses of the lanes are matched when the warp meets.
#include <algorithm>

#include "state.h"

namespace emu {

struct Counter {
  i64 requests, bytes, sectors, ideal_sectors, wavefronts, ideal_wavefronts;
  i64 instructions[USES + 3];  // of whole warps; then loads, stores and atomics of shared memory
  i64 words[MAX_BANKS], waits[MAX_BANKS];  // that each bank gave or took; those of them behind another of its phase
};

static std::map<int, Counter> counters;

// The distinct values among those of the lanes.
static int distinct(i64* values, int n) {
  if (!std::is_sorted(values, values + n)) std::sort(values, values + n);
  return int(std::unique(values, values + n) - values);
}

static void count_global(Counter& c, const Record* const* lanes) {
  i64 sectors[2 * MAX_LANES];
  int n = 0, bytes = 0;
  for (int l = 0; l < run.lanes; l++) {
    if (!lanes[l] || !lanes[l]->bytes) continue;
    const i64 first = lanes[l]->address >> 5, last = (lanes[l]->address + lanes[l]->bytes - 1) >> 5;
    sectors[n++] = first;
    if (last != first) sectors[n++] = last;
    bytes += lanes[l]->bytes;
  }
  n = distinct(sectors, n);
  c.bytes += bytes;
  c.sectors += n;
  c.ideal_sectors += std::min(n, (bytes + 31) / 32);  // lanes that read one address need one sector
}

// A request is served in phases, each of some of the lanes; every bank of 4 bytes gives one word at a time.
static void count_shared(Counter& c, const Record* const* lanes, int bytes, bool store) {
  const Banks& banks = run.machine->banks[store][bytes <= 4 ? 0 : bytes == 8 ? 1 : 2];
  for (int phase = 0; phase < banks.phases; phase++) {
    i64 words[4 * MAX_LANES];
    int n = 0, used[MAX_BANKS] = {0}, most = 0;
    for (int l = 0; l < run.lanes; l++) {
      if (banks.phase[l] != phase || !lanes[l] || !lanes[l]->bytes) continue;
      c.bytes += lanes[l]->bytes;
      for (int b = 0; b < lanes[l]->bytes; b += 4) words[n++] = (lanes[l]->address + b) >> 2;
    }
    n = distinct(words, n);
    for (int i = 0; i < n; i++) {
      const i64 bank = words[i] % banks.count;
      c.words[bank]++;
      c.waits[bank] += used[bank] > 0;
      most = std::max(most, ++used[bank]);
    }
    c.wavefronts += most;
    c.ideal_wavefronts += n > 0;
  }
}

// One instruction of a warp; null where a lane does not take part.
static void count(const Record* const* lanes, const Record& r) {
  Counter& c = counters[r.op];
  if (!(r.use == COPY_ASYNC && r.shared))  // a copy is one instruction with two sides
    c.instructions[r.shared && r.use <= ATOMIC ? USES + r.use : r.use]++;
  int bytes = 0;
  for (int l = 0; l < run.lanes; l++)
    if (lanes[l]) bytes = std::max(bytes, int(lanes[l]->bytes));
  if (!bytes) return;
  if (!(r.use == COPY_ASYNC && r.shared)) c.requests++;
  const bool store = r.use != LOAD && r.use != LDMATRIX && r.use != LD_TRANSPOSED;
  if (r.shared && r.use == COPY_ASYNC) {
    const i64 before = c.bytes;
    count_shared(c, lanes, bytes, store);
    c.bytes = before;
  } else if (r.shared) {
    count_shared(c, lanes, bytes, store);
  } else {
    count_global(c, lanes);
  }
}

// Counts what the lanes did since they last met. Lanes that went the same way match one by one; otherwise the k-th
// access of an op by one lane goes with the k-th by the others.
static void flush(int warp, Lanes mask) {
  Thread* lane = &threads[warp * run.lanes];
  const std::vector<Record>& first = lane[0].log;
  bool same = true;
  for (Lanes m = mask; m && same; m &= m - 1) {
    const std::vector<Record>& log = lane[lowest(m)].log;
    same = log.size() == first.size() && std::equal(log.begin(), log.end(), first.begin());
  }
  const Record* lanes[MAX_LANES] = {};
  if (same) {
    for (size_t i = 0; i < first.size(); i++) {
      for (Lanes m = mask; m; m &= m - 1) lanes[lowest(m)] = &lane[lowest(m)].log[i];
      count(lanes, first[i]);
    }
  } else {
    using Key = std::tuple<int, int, int, int>;  // op, use, shared, occurrence
    std::vector<std::tuple<Key, int, const Record*>> all;
    for (Lanes m = mask; m; m &= m - 1) {
      std::map<std::tuple<int, int, int>, int> seen;
      for (const Record& r : lane[lowest(m)].log)
        all.push_back({Key{r.op, r.use, r.shared, seen[{r.op, r.use, r.shared}]++}, lowest(m), &r});
    }
    std::sort(all.begin(), all.end());
    for (size_t i = 0; i < all.size();) {
      const Key key = std::get<0>(all[i]);
      const Record& r = *std::get<2>(all[i]);
      memset(lanes, 0, sizeof lanes);
      for (; i < all.size() && std::get<0>(all[i]) == key; i++) lanes[std::get<1>(all[i])] = std::get<2>(all[i]);
      count(lanes, r);
    }
  }
  for (Lanes m = mask; m; m &= m - 1) lane[lowest(m)].log.clear();
}

}  // namespace emu
