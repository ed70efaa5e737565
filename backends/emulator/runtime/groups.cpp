// Products of four warps: started by all 128 threads, done at any time before these wait for them. The operands are
// found by decoding the descriptors.
#include "state.h"

namespace emu {

constexpr int ROW = 32;  // bytes along k of one instruction

// Sums that lie in registers under way: what they will be is kept aside, the registers hold no numbers.
struct Sums {
  u8* registers[GROUP];
  u32 bytes;  // of a thread
  int products, op;
  std::vector<u8> values;  // [64, columns]
};

struct Pending {
  GroupProduct call;
  u32 number;  // of its commit group
  Sums* sums;
  bool done;
  std::vector<u8> a;  // read when it was started, where that was from registers
  std::vector<std::pair<u32, u32>> read;  // offset and bytes
};

enum Meeting { PRODUCT, COMMIT, WAIT, REGISTERS };

constexpr int ALL_REGISTERS = 1 << 16, REGISTER_UNIT = 8, MOST_REGISTERS = 256, FEWEST_REGISTERS = 24;

struct Group {
  int arrived, op, argument;
  Meeting meeting;
  Lanes waiting[GROUP / 32];
  const GroupProduct* calls[GROUP];
  u32 committed;
  int registers, wanted;  // of each thread; what it waits for, 0 where it does not
  std::vector<Pending> pending;
  std::vector<Sums*> sums;
};

static Group groups[MAX_GROUPS];

static void start_groups() {
  for (Group& g : groups) {
    for (Sums* s : g.sums) delete s;
    g = Group{};
    g.registers = std::min(ALL_REGISTERS / run.threads / REGISTER_UNIT * REGISTER_UNIT, MOST_REGISTERS);
  }
}

static int waiting_registers(int* op, std::string* why) {
  int count = 0;
  for (int i = 0; i < MAX_GROUPS; i++) {
    const Group& g = groups[i];
    if (!g.wanted) continue;
    *op = g.op;
    count += GROUP;
    *why += " (a group of " + std::to_string(g.registers) + " registers waits for " + std::to_string(g.wanted) + ", " +
            std::to_string(blocks[i * GROUP / run.stride].free_registers) + " are free)";
  }
  return count;
}

static int waiting_groups(int* op) {
  int count = 0;
  for (Group& g : groups) {
    if (g.arrived) *op = g.op;
    count += g.arrived;
  }
  return count;
}

static void check_groups_done() {
  const Group& g = groups[current->id / GROUP];
  if (!g.pending.empty())
    report("product-pending", g.pending[0].call.op, -1, "exits with %zu products never waited for", g.pending.size());
}

// ---- operands

// A descriptor, decoded: where the byte at a place of a row lies.
struct Operand {
  u32 start, leading, stride, width;

  // In the shared memory of the running thread's block.
  explicit Operand(u64 bits) {
    const u32 own = u32(current->block) * run.span;
    start = own + ((u32(bits & 0x3fff) << 4) - own) % (1 << 18);
    leading = u32(bits >> 16 & 0x3fff) << 4;
    stride = u32(bits >> 32 & 0x3fff) << 4;
    const int mode = int(bits >> 62);
    width = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16;
  }

  u32 at(u32 row, u32 byte) const {
    const u32 address = start + byte / width * leading + row / 8 * stride + row % 8 * width + byte % width;
    return address ^ (address >> 7 & (width / 16 - 1)) << 4;
  }
};

// Reads an operand as rows of 32 bytes along k.
static void read_operand(const Pending& p, u64 bits, bool transposed, int rows, int size, const Known* check, u8* out,
                         std::vector<std::pair<u32, u32>>* read) {
  const Operand o(bits);
  const int lines = transposed ? ROW / size : rows, bytes = transposed ? rows * size : ROW;
  for (int line = 0; line < lines; line++)
    for (int byte = 0; byte < bytes; byte += 16) {
      const u32 at = o.at(u32(line), u32(byte));
      if (check) {
        if (at + 16 > end_of(o.start))
          fail("bounds-shared", p.call.op, -1, "a product reads shared byte %u", at);
        check_shared(at, 16, MMA, p.call.op, *current, *check);
        read->push_back({at, 16});
        continue;
      }
      const u8* from = shared_memory + at;
      if (!transposed) memcpy(out + line * ROW + byte, from, 16);
      else
        for (int e = 0; e < 16; e += size) memcpy(out + (byte + e) / size * ROW + line * size, from + e, size);
    }
}

static int bytes_of(Form form) { return form == FORM_TF32 ? 4 : form <= FORM_BF16 ? 2 : 1; }

// Register r (of 32 bits) of a thread's part of A: row and first byte along k.
static void spread_a(const u8* registers, int thread, u8* out) {
  for (int r = 0; r < 4; r++)
    memcpy(out + (thread / 32 * 16 + thread % 32 / 4 + 8 * (r % 2)) * ROW + r / 2 * 16 + thread % 4 * 4,
           registers + 4 * r, 4);
}

// Sum i of a thread as an index into [64, columns].
static int place_of(int thread, int i, int columns) {
  const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
  return row * columns + i / 4 * 8 + thread % 4 * 2 + i % 2;
}

static void compute(Pending& p) {
  if (p.done) return;
  p.done = true;
  std::vector<u8> a(64 * ROW), b(size_t(p.call.columns) * ROW);
  if (p.call.a) a = p.a;
  else read_operand(p, p.call.memory_a, p.call.transposed_a, 64, bytes_of(p.call.form_a), nullptr, a.data(), nullptr);
  read_operand(p, p.call.memory_b, p.call.transposed_b, p.call.columns, bytes_of(p.call.form_b), nullptr, b.data(),
               nullptr);
  multiply_group(p.call, a.data(), b.data(), p.sums->values.data());
}

// ---- what the last of 128 threads does

static Sums* sums_of(Group& g) {
  const GroupProduct& first = *g.calls[0];
  const u32 bytes = u32(first.columns) * 2;
  for (Sums* s : g.sums) {
    if (s->registers[0] == first.acc && s->bytes == bytes) return s;
    const u8* mine = (const u8*)first.acc;
    if (mine < s->registers[0] + s->bytes && s->registers[0] < mine + bytes)
      report("product-pending", first.op, s->op, "adds to a part of the registers of a product under way");
  }
  Sums* s = new Sums;
  s->bytes = bytes, s->products = 0, s->op = first.op;
  s->values.resize(size_t(64) * first.columns * 4);
  for (int t = 0; t < GROUP; t++) {
    s->registers[t] = (u8*)g.calls[t]->acc;
    for (u32 i = 0; i < bytes / 4; i++)
      memcpy(&s->values[size_t(place_of(t, int(i), first.columns)) * 4], s->registers[t] + 4 * i, 4);
    memset(s->registers[t], 0xff, bytes);
  }
  g.sums.push_back(s);
  return s;
}

static void start_product(Group& g, int group) {
  const GroupProduct& first = *g.calls[0];
  Known known = current->known;  // what all of its threads know
  for (int t = 0; t < GROUP; t++) {
    known.meet(threads[group * GROUP + t].known);
    const GroupProduct& c = *g.calls[t];
    Thread& thread = threads[group * GROUP + t];
    if (c.memory_a != first.memory_a || c.memory_b != first.memory_b)
      fail("divergent-collective", c.op, -1, "threads of a group name different operands in shared memory");
    if (!thread.fenced) {
      report("missing-fence", c.op, -1, "starts a product without a register fence since it last waited for one");
      thread.fenced = true;
    }
    thread.log.push_back({0, c.op, 0, MMA, 0});
  }
  g.pending.push_back({first, g.committed, sums_of(g), false, {}, {}});
  Pending& p = g.pending.back();
  p.sums->products++;
  if (first.a) {
    p.a.resize(64 * ROW);
    for (int t = 0; t < GROUP; t++) spread_a((const u8*)g.calls[t]->a, t, p.a.data());
  } else {
    read_operand(p, first.memory_a, first.transposed_a, 64, bytes_of(first.form_a), &known, nullptr, &p.read);
  }
  read_operand(p, first.memory_b, first.transposed_b, first.columns, bytes_of(first.form_b), &known, nullptr, &p.read);
  // It may be done at any time until the wait: eager and late runs show kernels that count on one of them.
  if (run.policy == REVERSE || (run.policy == RANDOM && draw(2)))
    for (Pending& each : g.pending) compute(each);  // they follow one another
}

static void finish(Group& g, Pending& p) {
  compute(p);
  for (const auto& [offset, bytes] : p.read) end_read(offset, bytes, p.call.op);
  Sums* s = p.sums;
  if (--s->products) return;
  for (int t = 0; t < GROUP; t++)
    for (u32 i = 0; i < s->bytes / 4; i++)
      memcpy(s->registers[t] + 4 * i, &s->values[size_t(place_of(t, int(i), p.call.columns)) * 4], 4);
  for (size_t i = 0; i < g.sums.size(); i++)
    if (g.sums[i] == s) g.sums.erase(g.sums.begin() + i64(i--));
  delete s;
}

static void finish_groups(Group& g, int group) {
  size_t kept = 0;
  for (size_t i = 0; i < g.pending.size(); i++) {
    if (g.pending[i].number + u32(g.argument) < g.committed) finish(g, g.pending[i]);
    else if (kept++ != i) g.pending[kept - 1] = std::move(g.pending[i]);
  }
  g.pending.erase(g.pending.begin() + i64(kept), g.pending.end());
  for (int t = 0; t < GROUP; t++) threads[group * GROUP + t].fenced = false;
}

static void go_on(Group& g, int number) {
  for (int w = 0; w < GROUP / 32; w++) {
    set_ready(number * (GROUP / 32) + w, g.waiting[w]);
    g.waiting[w] = 0;
  }
}

// Gives a group of the running thread's block what it waits for, if there is as much.
static bool give_registers(Group& g) {
  int& left = here().free_registers;
  if (g.wanted - g.registers > left) return false;
  left -= g.wanted - g.registers;
  g.registers = g.wanted;
  g.wanted = 0;
  return true;
}

// Whether the group goes on now.
static bool change_registers(Group& g) {
  const int count = abs(g.argument);
  const bool take = g.argument > 0;
  if (count % REGISTER_UNIT || count < FEWEST_REGISTERS || count > MOST_REGISTERS ||
      (take ? count < g.registers : count > g.registers))
    fail("registers", g.op, -1, "%s %d registers for each thread, which has %d", take ? "takes" : "drops to", count,
         g.registers);
  g.wanted = count;
  if (!give_registers(g)) return false;
  const int first = current->block * run.stride / GROUP;
  for (int i = first; i < first + run.stride / GROUP; i++)
    if (groups[i].wanted && give_registers(groups[i])) go_on(groups[i], i);
  return true;
}

// Meets the other threads of the group; the last one does what is to be done.
static void meet(Meeting meeting, int op, int argument, const GroupProduct* call) {
  Thread& t = *current;
  const int number = t.id / GROUP;
  Group& g = groups[number];
  if (number_of(t) / GROUP * GROUP + GROUP > run.threads)
    fail("divergent-collective", op, -1, "needs groups of %d threads, the block has %d", GROUP, run.threads);
  if (g.arrived && (g.op != op || g.meeting != meeting || g.argument != argument))
    fail("divergent-collective", op, g.op, "is here while threads of its group wait elsewhere");
  g.meeting = meeting, g.op = op, g.argument = argument;
  g.calls[t.id % GROUP] = call;
  g.waiting[t.id % GROUP / 32] |= Lanes(1) << t.lane;
  if (++g.arrived < GROUP) {
    stop_ready();
    suspend();
    return;
  }
  g.arrived = 0;
  if (meeting == PRODUCT) start_product(g, number);
  else if (meeting == COMMIT) g.committed++;
  else if (meeting == WAIT) finish_groups(g, number);
  else if (!change_registers(g)) {
    stop_ready();
    suspend();
    return;
  }
  go_on(g, number);
  if (run.policy != FORWARD) give_way();
}

}  // namespace emu

extern "C" void emu_group_product(const GroupProduct* call) { meet(PRODUCT, call->op, 0, call); }
extern "C" void emu_group_commit(int op) { meet(COMMIT, op, 0, nullptr); }
extern "C" void emu_group_wait(int pending, int op) { meet(WAIT, op, pending, nullptr); }

extern "C" void emu_registers(int count, int take, int op) { meet(REGISTERS, op, take ? count : -count, nullptr); }

extern "C" void emu_arrived(const void* registers, int bytes, int op) {
  for (const Sums* s : groups[current->id / GROUP].sums) {
    const u8 *mine = (const u8*)registers, *other = s->registers[current->id % GROUP];
    if (mine < other + s->bytes && other < mine + bytes)
      report("product-pending", op, s->op, "uses registers of a product under way");
  }
}

extern "C" void emu_fence_registers(int) { current->fenced = true; }
extern "C" void emu_fence_memory(int) { current->fences++; }
