#pragma once
// What an emulated kernel asks of the runtime library. A call that finds a mistake which makes going on
// meaningless (an access out of bounds, a divergent barrier) does not return: the launch is abandoned.

namespace emu {

struct Buffer;  // the memory behind a global pointer, with its shadow

// How an access uses memory; also the class its instruction is counted under.
enum Use { LOAD, STORE, ATOMIC, LOAD_BITS, STORE_BITS, COPY_ASYNC, LDMATRIX, STMATRIX, LD_TRANSPOSED, MMA, SHUFFLE,
           SYNCWARP, BARRIER, DMA, MBARRIER, BULK, BULK_STORE, USES };

// NVIDIA's products: name, rows, type of the accumulator, elements in a register of A and of B, bytes a lane holds
// of A, what two elements add to a sum, their formats.
#define EMU_MMAS                                              \
  EMU_MMA(m16n8k16_f16, 16, float, 2, 16, Times, f16, f16)    \
  EMU_MMA(m16n8k16_bf16, 16, float, 2, 16, Times, bf16, bf16) \
  EMU_MMA(m16n8k8_f16, 16, float, 2, 8, Times, f16, f16)      \
  EMU_MMA(m16n8k8_tf32, 16, float, 1, 16, Times, tf32, tf32)  \
  EMU_MMA(m16n8k32_s8, 16, u32, 4, 16, Times, s8, s8)         \
  EMU_MMA(m16n8k32_u8, 16, u32, 4, 16, Times, u8, u8)         \
  EMU_MMA(m16n8k32_su8, 16, u32, 4, 16, Times, s8, u8)        \
  EMU_MMA(m16n8k32_us8, 16, u32, 4, 16, Times, u8, s8)        \
  EMU_MMA(m16n8k32_e4m3, 16, float, 4, 16, Times, e4m3, e4m3) \
  EMU_MMA(m16n8k32_e5m2, 16, float, 4, 16, Times, e5m2, e5m2) \
  EMU_MMA(m16n8k64_s4, 16, u32, 8, 16, Times, s4, s4)         \
  EMU_MMA(m16n8k64_u4, 16, u32, 8, 16, Times, u4, u4)         \
  EMU_MMA(m16n8k256_b1_and, 16, u32, 32, 16, And, bit, bit)   \
  EMU_MMA(m16n8k128_b1_and, 16, u32, 32, 8, And, bit, bit)    \
  EMU_MMA(m16n8k256_b1_xor, 16, u32, 32, 16, Xor, bit, bit)   \
  EMU_MMA(m8n8k16_s8, 8, u32, 4, 4, Times, s8, s8)            \
  EMU_MMA(m8n8k16_u8, 8, u32, 4, 4, Times, u8, u8)            \
  EMU_MMA(m8n8k16_su8, 8, u32, 4, 4, Times, s8, u8)           \
  EMU_MMA(m8n8k16_us8, 8, u32, 4, 4, Times, u8, s8)           \
  EMU_MMA(m8n8k32_s4, 8, u32, 8, 4, Times, s4, s4)            \
  EMU_MMA(m8n8k32_u4, 8, u32, 8, 4, Times, u4, u4)            \
  EMU_MMA(m8n8k32_su4, 8, u32, 8, 4, Times, s4, u4)           \
  EMU_MMA(m8n8k32_us4, 8, u32, 8, 4, Times, u4, s4)           \
  EMU_MMA(m8n8k4_f64, 8, double, 1, 8, Times, f64, f64)

// AMD's products: name, type of the accumulator, rows and columns, elements a lane holds of A and of B, their formats.
#define EMU_MFMAS                                              \
  EMU_MFMA(16x16x16_f16, float, 16, 4, f16, f16)               \
  EMU_MFMA(16x16x32_f16, float, 16, 8, f16, f16)               \
  EMU_MFMA(32x32x8_f16, float, 32, 4, f16, f16)                \
  EMU_MFMA(32x32x16_f16, float, 32, 8, f16, f16)               \
  EMU_MFMA(16x16x16_bf16, float, 16, 4, bf16, bf16)            \
  EMU_MFMA(16x16x32_bf16, float, 16, 8, bf16, bf16)            \
  EMU_MFMA(32x32x8_bf16, float, 32, 4, bf16, bf16)             \
  EMU_MFMA(32x32x16_bf16, float, 32, 8, bf16, bf16)            \
  EMU_MFMA(16x16x8_tf32, float, 16, 2, tf32, tf32)             \
  EMU_MFMA(32x32x4_tf32, float, 32, 2, tf32, tf32)             \
  EMU_MFMA(16x16x4_f32, float, 16, 1, f32, f32)                \
  EMU_MFMA(16x16x16_f32, float, 16, 4, f32, f32)               \
  EMU_MFMA(32x32x2_f32, float, 32, 1, f32, f32)                \
  EMU_MFMA(16x16x4_f64, double, 16, 1, f64, f64)               \
  EMU_MFMA(16x16x8_f64, double, 16, 2, f64, f64)               \
  EMU_MFMA(16x16x16_i8, u32, 16, 4, s8, s8)                    \
  EMU_MFMA(16x16x32_i8, u32, 16, 8, s8, s8)                    \
  EMU_MFMA(16x16x64_i8, u32, 16, 16, s8, s8)                   \
  EMU_MFMA(32x32x8_i8, u32, 32, 4, s8, s8)                     \
  EMU_MFMA(32x32x16_i8, u32, 32, 8, s8, s8)                    \
  EMU_MFMA(32x32x32_i8, u32, 32, 16, s8, s8)                   \
  EMU_MFMA_F8(e4m3, e4m3)                                      \
  EMU_MFMA_F8(e4m3, e5m2)                                      \
  EMU_MFMA_F8(e5m2, e4m3)                                      \
  EMU_MFMA_F8(e5m2, e5m2)                                      \
  EMU_MFMA_F8(e4m3fnuz, e4m3fnuz)                              \
  EMU_MFMA_F8(e4m3fnuz, e5m2fnuz)                              \
  EMU_MFMA_F8(e5m2fnuz, e4m3fnuz)                              \
  EMU_MFMA_F8(e5m2fnuz, e5m2fnuz)
#define EMU_MFMA_F8(A, B)                           \
  EMU_MFMA(16x16x32_##A##_##B, float, 16, 8, A, B)  \
  EMU_MFMA(16x16x64_##A##_##B, float, 16, 16, A, B) \
  EMU_MFMA(32x32x16_##A##_##B, float, 32, 8, A, B)

// AMD's products of small floats, which may be scaled: their formats, in the order of the processors' numbers for
// them, and the bytes that a lane holds of 32.
#define EMU_SMALL(OF) OF(e4m3, 32) OF(e5m2, 32) OF(e2m3, 24) OF(e3m2, 24) OF(e2m1, 16)
enum Small { SMALL_e4m3, SMALL_e5m2, SMALL_e2m3, SMALL_e3m2, SMALL_e2m1 };

enum Shape {
#define EMU_MMA(NAME, ...) MMA_##NAME,
             EMU_MMAS
#undef EMU_MMA
             MFMA_FIRST,
#define EMU_MFMA(NAME, ...) MFMA_##NAME,
             EMU_MFMAS
#undef EMU_MFMA
             MFMA_16x16x128, MFMA_32x32x64,
             SHAPES };

// One lane's part in a product of four warps: `form` numbers `Form`; A is in memory where `a` is null.
enum Form { FORM_F16, FORM_BF16, FORM_TF32, FORM_E4M3, FORM_E5M2, FORM_S8, FORM_U8, FORM_B1 };
struct GroupProduct {
  int op, columns;
  Form form_a, form_b;
  void* acc;
  const void* a;
  unsigned long long memory_a, memory_b;  // descriptors
  bool transposed_a, transposed_b;        // rows run along the other dimension than k
};

enum ShuffleKind { XOR, INDEX, UP, DOWN };

// How a tensor lies in memory, and the boxes that are copied of it: dimensions with neighbours first, strides in
// bytes. Rows of `swizzle` bytes (0: any) have their pieces of 16 bytes permuted.
struct TensorMap {
  const void* start;
  Buffer* buffer;
  long long extents[5], strides[5];
  int boxes[5], rank, size, swizzle;
};

// One lane's part in an instruction of the whole warp. `detail` is the ShuffleKind, the Shape, the number of matrices
// (negative: transposed), or the size of elements that are transposed; lanes must agree on it.
struct Collective {
  Use use;
  int op;
  int detail;
  int argument;             // shuffle: lane or distance; products of small floats: their scales, A's in the low byte
  int bytes;                // shuffle: size of the value; products of small floats: the formats, A's first, 8 apart
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
long long emu_declare_shared(long long bytes);  // where it begins
// The address to access. `base` is the pointer the kernel holds, `offset` counts elements of `size` bytes.
void* emu_global(emu::Buffer* buffer, const void* base, long long offset, int size, int bytes, emu::Use use, int op);
void* emu_bits(emu::Buffer* buffer, const void* base, long long bit, int width, emu::Use use, int op);
void* emu_shared(long long base, long long limit, long long offset, int size, int bytes, emu::Use use, int op);
void emu_idle(int shared, emu::Use use, int op);  // a lane whose mask is off
void emu_copy_async(long long base, long long limit, long long offset, emu::Buffer* buffer, const void* from,
                    long long from_offset, int size, int bytes, int mask, int op);
void emu_commit(int op);
void emu_wait(int pending, int op);
void emu_wait_operations(int count, int op);  // until at most so many copies of the thread are under way
void emu_barrier(int op, int meet);  // `meet`: others may be at another one that says so
int emu_cluster_rank();
void emu_cluster_barrier(int op);
long long emu_peer(long long base, int rank, int op);  // the same place in the shared memory of another block
void emu_wait_previous();
void emu_barrier_of(int threads, int op);  // of the first threads of the block
void emu_registers(int count, int take, int op);  // a group of four warps gives back registers, or takes more
void emu_collective(emu::Collective* call);
void emu_group_product(const emu::GroupProduct* call);
void emu_group_commit(int op);
void emu_group_wait(int pending, int op);
void emu_arrived(const void* registers, int bytes, int op);
void emu_fence_registers(int op);
void emu_fence_memory(int op);
// Barriers in shared memory are named by their byte there.
void emu_mbarrier_init(long long base, long long limit, long long offset, int arrivals, int op);
void emu_mbarrier_drop(long long base, long long limit, long long offset, int op);
void emu_mbarrier_arrive(long long base, long long limit, long long offset, int op);  // with the rest of the warp
void emu_mbarrier_expect(long long base, long long limit, long long offset, int bytes, int op);
void emu_mbarrier_wait(long long base, long long limit, long long offset, int parity, int op);
void emu_tensor_load(long long base, long long limit, long long offset, const emu::TensorMap* map, const int* at,
                     long long bar_base, long long bar_limit, long long bar_offset, unsigned ranks,
                     int op);
// `add` adds one element to another; null where they are written.
void emu_tensor_store(long long base, long long limit, long long offset, const emu::TensorMap* map, const int* at,
                      void (*add)(void*, const void*), int op);
void emu_bulk_commit(int op);
void emu_bulk_wait(int pending, int read, int op);  // until the last groups have been read, or written
void emu_check_failed(int op);
void emu_print_part(long long base, long long limit, long long count, int size, int op);
void emu_print(int op);  // hands over the parts so far
void emu_bad_register(int at, int count, int length, int op);
}
#pragma GCC visibility pop
