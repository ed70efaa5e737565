// Hand-written kernels beside which `python -m benchmarks.static` counts instructions. Plain CUDA C++ and inline PTX
// for sm_80 and later. Row strides are known at run time only, as in the emitted text; extents are multiples of the
// tiles, so nothing in a loop compares an index with an edge, except that the last copies are left out.

typedef unsigned short f16;
typedef unsigned int u32;

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void copy16(u32 to, const f16* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

__device__ __forceinline__ void load4(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void load4_transposed(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// c = a b by tiles of 128x128x32 in three stages of 16 KB: a [128][32], then b [32][128]; a warp computes 64x64.
extern "C" __global__ void __launch_bounds__(128, 1)
gemm(const f16* a, long long lda, const f16* b, long long ldb, float* c, long long ldc, int K) {
  extern __shared__ __align__(1024) unsigned char smem[];
  const int t = threadIdx.x, lane = t & 31, wm = t >> 6, wn = t >> 5 & 1;
  const u32 base = shared_address(smem);

  const int row_a = t >> 2, row_b = t >> 4;
  const u32 to_a = base + row_a * 64 + ((t & 3) ^ (row_a >> 1 & 3)) * 16;
  const u32 to_b = base + 8192 + row_b * 256 + ((t & 15) ^ (row_b & 7)) * 16;
  const f16 *from_a[4], *from_b[4];
  for (int i = 0; i < 4; ++i) {
    from_a[i] = a + (blockIdx.y * 128ll + row_a + 32 * i) * lda + (t & 3) * 8;
    from_b[i] = b + (row_b + 8 * i) * ldb + blockIdx.x * 128ll + (t & 15) * 8;
  }
  auto copy = [&](u32 stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy16(to_a + stage + i * 2048, from_a[i]);
      from_a[i] += 32;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy16(to_b + stage + i * 2048, from_b[i]);
      from_b[i] += 32 * ldb;
    }
  };

  const int row = lane & 15, half = lane >> 4;
  u32 at_a[2], at_b[4];
  for (int k = 0; k < 2; ++k)
    at_a[k] = base + (wm * 64 + row) * 64 + ((2 * k + half) ^ (row >> 1 & 3)) * 16;
  for (int j = 0; j < 4; ++j)
    at_b[j] = base + 8192 + row * 256 + ((wn * 8 + 2 * j + half) ^ (row & 7)) * 16;

  float acc[4][8][4] = {};
  copy(0);
  commit();
  if (K > 32) copy(16384);
  commit();
  u32 oldest = 0, newest = 32768;
  for (int k = 0; k < K; k += 32) {
    wait<1>();
    __syncthreads();
    if (k + 64 < K) copy(newest);
    commit();
    newest = newest == 32768 ? 0 : newest + 16384;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      u32 x[4][4], y[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load4(x[i], at_a[step] + oldest + i * 1024);
#pragma unroll
      for (int j = 0; j < 4; ++j) load4_transposed(y[j], at_b[j] + oldest + step * 4096);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) mma(acc[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
    oldest = oldest == 32768 ? 0 : oldest + 16384;
  }
  float* out = c + (blockIdx.y * 128ll + wm * 64 + (lane >> 2)) * ldc + blockIdx.x * 128 + wn * 64 + (lane & 3) * 2;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* d = acc[i / 2][j] + i % 2 * 2;
      *reinterpret_cast<float2*>(out + i * 8 * ldc + j * 8) = make_float2(d[0], d[1]);
    }
}

// o = (q k^T) v: the products of attention without its softmax. 64 rows of q to a block, 16 to a warp, 64 rows of k
// and v to an iteration, in two stages: k [64][D], then v [64][D]. The fragments of q stay in registers.
template <int D>
__device__ __forceinline__ void products(const f16* q, long long ldq, const f16* k, long long ldk, const f16* v,
                                         long long ldv, float* o, long long ldo, int L) {
  extern __shared__ __align__(1024) unsigned char smem[];
  constexpr int WIDE = D / 8, ROWS = 128 / WIDE, N = 64 / ROWS, TILE = 64 * D * 2;  // ROWS rows to a copy, N copies
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  const u32 base = shared_address(smem);
  const int row_t = t / WIDE, column = t % WIDE * 8;
  const u32 to = base + row_t * D * 2 + ((t % WIDE) ^ (row_t & 7)) * 16;
  const int row = lane & 15, half = lane >> 4;

#pragma unroll
  for (int i = 0; i < N; ++i)
    copy16(to + i * ROWS * D * 2, q + (blockIdx.x * 64ll + row_t + i * ROWS) * ldq + column);
  commit();
  wait<0>();
  __syncthreads();
  u32 x[D / 16][4];
#pragma unroll
  for (int d = 0; d < D / 16; ++d)
    load4(x[d], base + (warp * 16 + row) * D * 2 + ((2 * d + half) ^ (row & 7)) * 16);
  __syncthreads();

  const f16 *from_k[N], *from_v[N];
  for (int i = 0; i < N; ++i) {
    from_k[i] = k + (row_t + i * ROWS) * ldk + column;
    from_v[i] = v + (row_t + i * ROWS) * ldv + column;
  }
  auto copy = [&](u32 stage) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      copy16(to + stage + i * ROWS * D * 2, from_k[i]);
      from_k[i] += 64 * ldk;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      copy16(to + stage + TILE + i * ROWS * D * 2, from_v[i]);
      from_v[i] += 64 * ldv;
    }
  };
  // Lanes 0 to 7 and 16 to 23 address the first eight columns of a product with k, the others the next eight.
  const int row_k = (lane & 7) + (lane >> 4) * 8, half_k = lane >> 3 & 1;
  u32 at_k[D / 16], at_v[D / 16];
  for (int d = 0; d < D / 16; ++d) {
    at_k[d] = base + row_k * D * 2 + ((2 * d + half_k) ^ (row_k & 7)) * 16;
    at_v[d] = base + TILE + row * D * 2 + ((2 * d + half) ^ (row & 7)) * 16;
  }

  float acc[D / 8][4] = {};
  copy(0);
  commit();
  u32 stage = 0;
  for (int n = 0; n < L; n += 64) {
    wait<0>();
    __syncthreads();
    if (n + 64 < L) copy(stage ^ (2 * TILE));
    commit();
    float s[8][4] = {};
#pragma unroll
    for (int d = 0; d < D / 16; ++d)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        u32 y[4];
        load4(y, at_k[d] + stage + j * 16 * D * 2);
        mma(s[2 * j], x[d], y[0], y[1]);
        mma(s[2 * j + 1], x[d], y[2], y[3]);
      }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 p[4] = {pack(s[2 * j][0], s[2 * j][1]), pack(s[2 * j][2], s[2 * j][3]),
                        pack(s[2 * j + 1][0], s[2 * j + 1][1]), pack(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        u32 y[4];
        load4_transposed(y, at_v[d] + stage + j * 16 * D * 2);
        mma(acc[2 * d], p, y[0], y[1]);
        mma(acc[2 * d + 1], p, y[2], y[3]);
      }
    }
    stage ^= 2 * TILE;
  }
  float* out = o + (blockIdx.x * 64ll + warp * 16 + (lane >> 2)) * ldo + (lane & 3) * 2;
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    *reinterpret_cast<float2*>(out + j * 8) = make_float2(acc[j][0], acc[j][1]);
    *reinterpret_cast<float2*>(out + 8 * ldo + j * 8) = make_float2(acc[j][2], acc[j][3]);
  }
}

#define PRODUCTS(D)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(128, 1)                                                              \
  products_##D(const f16* q, long long ldq, const f16* k, long long ldk, const f16* v, long long ldv, float* o,     \
               long long ldo, int L) {                                                                              \
    products<D>(q, ldq, k, ldk, v, ldv, o, ldo, L);                                                                 \
  }
PRODUCTS(64)
PRODUCTS(128)
