#pragma once
// The state of one launch. One launch runs at a time in a process (the Python side holds a lock), so it is global.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "../include/tl_abi.h"

namespace emu {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int64_t i64;
typedef uint64_t u64;

constexpr size_t LOG = 8192;  // records of a lane before it lets the others catch up
constexpr int MAX_LANES = 64, MAX_THREADS = 2048, MAX_WARPS = MAX_THREADS / 32, MAX_BLOCKS = 8;  // of a cluster

typedef u64 Lanes;  // a set of lanes of one warp


enum Policy { FORWARD, REVERSE, RANDOM };

// One memory request of one lane, kept until its warp meets: `address` is an offset whose lowest bits are those the
// access would have on a device. bytes == 0: the lane's mask was off.
struct Record {
  i64 address;
  int op;
  u16 bytes;
  u8 use, shared;
  bool operator==(const Record& r) const { return op == r.op && use == r.use && shared == r.shared; }
};

struct Copy {  // an asynchronous copy under way
  u32 offset, bytes, group;
  const void* from;  // null: fill with zeros
  int op;
};

constexpr int MAX_MBARRIERS = 64, ACTORS = MAX_WARPS + MAX_MBARRIERS;

// What of others a thread comes after, beyond what barriers of the block order: of each warp how far it had come when
// it released what it did, of each barrier in shared memory how many phases it has ended.
struct Known {
  u32 until[ACTORS];

  void join(const Known& other) {
    for (int i = 0; i < ACTORS; i++) until[i] = until[i] > other.until[i] ? until[i] : other.until[i];
  }
  void meet(const Known& other) {
    for (int i = 0; i < ACTORS; i++) until[i] = until[i] < other.until[i] ? until[i] : other.until[i];
  }
};

// Threads and warps are numbered throughout the cluster, each block's from a multiple of `run.stride` and `run.warps`.
struct Thread {
  int id, lane, warp, block;
  void* stack;
  u32 group;  // async copies committed so far
  u32 stores;  // the same of copies of blocks to tensors
  u64 news;    // of the launch, when it last looked,
  u32 idle;    // and its atomics since
  u32 fences, fences_seen;  // of memory: made by this thread, and at the last barrier
  bool fenced;              // registers, since it last waited for products
  bool alone;               // the launches before have ended, as far as it knows
  Known known;
  std::vector<Copy> copies;
  std::vector<Record> log;
};

struct Warp {
  Lanes all, ready, waiting, exited;
  Lanes full;  // those that wait because they logged much more than the others
  u32 clock;  // counts syncwarp since the last barrier
  u32 time;   // counts what it released to others, from 1
  const Collective* calls[MAX_LANES];
};

constexpr int MAX_BANKS = 64;

// How shared memory serves a request: the phase in which each lane is served, and the banks of 4 bytes.
struct Banks {
  int count, phases;
  u8 phase[MAX_LANES];
};

struct Machine {
  int lanes;          // of a whole warp
  Banks banks[2][3];  // of loads and of stores, of up to 4, 8 and 16 bytes a lane
};

// One of the blocks that are resident together.
struct Block {
  i64 program;
  u32 epoch;  // ends at its barriers
  u32 whole;  // that of the last barrier of all its threads; those that end later ones are of its first warps
  int together;  // how many these are
  int at_barrier, barrier_op, meet, done;
  int at_part, part_op, part;  // threads at a barrier of the first threads, and how many it is of
  int free_registers;          // of a thread of any group: given back by one, taken by no other
};

constexpr int PLACES = 1024;

struct Found {  // what an access found at a place
  const u8* p;
  u64 value;
};

constexpr int GROUP = 128, MAX_GROUPS = MAX_THREADS / GROUP;  // threads that multiply together

struct Launch {
  const Machine* machine;
  void (*entry)(void**);
  void** args;
  int blocks;                          // of a cluster
  int threads, warps, stride, lanes;   // of a block; `lanes` of a whole warp
  u32 shared_bytes, span;              // of a block; from one block's shared memory to the next one's
  Policy policy;
  u64 seed;
  u32 first_epoch, epoch;  // the last that has begun; those from first_epoch on are of this cluster
  u64 ready_warps;
  int blocks_done, at_cluster, cluster_op;
  u32 streak;  // atomics since a thread last gave way
  u64 news;    // accesses that found what was not there before
  u32 patience;  // accesses until a launch with findings is given up, as mistakes may make a loop endless; 0: none yet
  bool abandoned, overlaps;  // launches before may not have ended when it begins
  void (*print)(int op, const void* bytes, i64 count);  // null: what kernels print is dropped
  int print_op = -1;                                    // whose bytes wait in `printed` for the host
};

static Launch run;
static Found last_found[PLACES];
static Block blocks[MAX_BLOCKS];
static std::vector<u8> epochs;  // of the cluster: whose each is
static Thread threads[MAX_THREADS];
static Warp warps[MAX_WARPS];
static Thread* current;
static u8* shared_memory;
static std::vector<u8> printed;

static Block& here() { return blocks[current->block]; }
static int all_warps() { return run.blocks * run.warps; }
// A thread's number in its block.
static int number_of(const Thread& t) { return t.id % run.stride; }
// The end of the shared memory of the block in which a byte lies.
static i64 end_of(i64 byte) {
  const i64 block = byte / run.span;
  return (block < run.blocks ? block : run.blocks - 1) * run.span + run.shared_bytes;
}

// ---- reports.cpp
static void report(const char* kind, int op, int other, const char* format, ...) __attribute__((format(printf, 4, 5)));
[[noreturn]] static void fail(const char* kind, int op, int other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
// ---- fibers.cpp
static u64 draw(u64 bound);
[[noreturn]] static void abandon();
static void give_way();
static void give_way_to_any();
static void wait_for_others();
// ---- counters.cpp
static void flush(int warp, Lanes mask);
// ---- shadow.cpp
static void check_shared(u32 offset, u32 bytes, Use use, int op, const Thread& by, const Known& known);
static void check_shared(u32 offset, u32 bytes, Use use, int op, const Thread& by);
static void check_exit();
static void end_read(u32 offset, u32 bytes, int op);
static i64 check_global_bounds(const Buffer& b, const void* base, i64 offset, int size, int bytes, int op);
static void check_global(Buffer& b, i64 at, u32 bytes, Use use, int op);
// ---- groups.cpp
static void start_groups();
static int waiting_groups(int* op);
static int waiting_registers(int* op, std::string* why);
static void check_groups_done();
// ---- bulk.cpp
static void start_bulk();
static bool land_next();
static int waiting_bulk(int* op, int* other, std::string* why);
static void check_bulk_done();
static void know_all(int first, int last);
static void release_warp(int warp);
static void arrive(const Warp& w, int warp);
// ---- stores.cpp
static void check_stores_read();
static void finish_stores();
// ---- matrix.cpp
static int lanes_of(Shape shape);
static void multiply_group(const GroupProduct& p, const u8* a, const u8* b, u8* sums);
static void multiply(const Collective* const* lanes, Shape shape);

}  // namespace emu
