#pragma once
// What an emulated kernel asks of the runtime library. A call that finds a mistake which makes going on
// meaningless (an access out of bounds, a divergent barrier) does not return: the launch is abandoned.

namespace emu {

struct Buffer;  // the memory behind a global pointer, with its shadow

// How an access uses memory; also the class its instruction is counted under.
enum Use { LOAD, STORE, ATOMIC, LOAD_BITS, STORE_BITS, COPY_ASYNC, LDMATRIX, STMATRIX, MMA, SHUFFLE, SYNCWARP, BARRIER,
           USES };

enum Shape { F16_K16, BF16_K16, F16_K8, S8, U8, S8U8, U8S8, TF32, E4M3, E5M2, F64, B1_AND, B1_XOR, S4, U4, SHAPES };

enum ShuffleKind { XOR, INDEX, UP, DOWN };

// One lane's part in an instruction of the whole warp. `detail` is the ShuffleKind, the Shape, or the number of
// matrices (negative: transposed); lanes must agree on it.
struct Collective {
  Use use;
  int op;
  int detail;
  int argument;             // shuffle: lane or distance
  int bytes;                // shuffle: size of the value
  void* out;                // registers written
  const void* a;            // registers read
  const void* b;
  long long base, limit, offset;  // ldmatrix, stmatrix: the shared buffer and this lane's row, in bytes
};

}  // namespace emu

#pragma GCC visibility push(default)
extern "C" {
int emu_thread();
long long emu_program();
void emu_declare_shared(long long bytes);
// The address to access. `base` is the pointer the kernel holds, `offset` counts elements of `size` bytes.
void* emu_global(emu::Buffer* buffer, const void* base, long long offset, int size, int bytes, emu::Use use, int op);
void* emu_bits(emu::Buffer* buffer, const void* base, long long bit, int width, emu::Use use, int op);
void* emu_shared(long long base, long long limit, long long offset, int size, int bytes, emu::Use use, int op);
void emu_idle(int shared, emu::Use use, int op);  // a lane whose mask is off
void emu_copy_async(long long base, long long limit, long long offset, emu::Buffer* buffer, const void* from,
                    long long from_offset, int size, int bytes, int mask, int op);
void emu_commit(int op);
void emu_wait(int pending, int op);
void emu_barrier(int op);
void emu_collective(emu::Collective* call);
void emu_check_failed(int op);
void emu_print_part(long long base, long long limit, long long count, int size, int op);
void emu_print(int op);  // hands over the parts so far
void emu_bad_register(int at, int count, int length, int op);
}
#pragma GCC visibility pop
