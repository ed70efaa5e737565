// Matrix instructions: NVIDIA's from the fragments of the PTX manual, AMD's from those of the CDNA manuals.
#include "state.h"

#define TL_FN inline
#define TL_COPY memcpy
#define TL_WHOLE(x)
#include "../../clike/include/tl_common.h"

namespace emu {

constexpr int ROWS = 16, COLUMNS = 8;

static float f16_table[1 << 16], fp8_table[4][256];

// 8-bit floats by their definition: `mantissa` bits of fraction; e4m3 has no infinity and NaN only at all ones. Those
// called fnuz have neither infinity nor -0, whose code is NaN, and one more in the bias.
static float decode_fp8(int code, int mantissa, bool fnuz) {
  const int bias = (mantissa == 3 ? 7 : 15) + fnuz;
  const int exponent = (code & 127) >> mantissa, fraction = code & ((1 << mantissa) - 1);
  float value = exponent ? __builtin_ldexpf(float(fraction + (1 << mantissa)), exponent - bias - mantissa)
                         : __builtin_ldexpf(float(fraction), 1 - bias - mantissa);
  if (fnuz) return code == 128 ? __builtin_nanf("") : code & 128 ? -value : value;
  if (mantissa == 3 && (code & 127) == 127) value = __builtin_nanf("");
  if (mantissa == 2 && exponent == 31) value = fraction ? __builtin_nanf("") : __builtin_inff();
  return code & 128 ? -value : value;
}

static void prepare_tables() {
  for (int i = 0; i < 1 << 16; i++) f16_table[i] = tl::f16_to_f32_soft(u16(i));
  for (int f = 0; f < 4; f++)
    for (int i = 0; i < 256; i++) fp8_table[f][i] = decode_fp8(i, f % 2 ? 2 : 3, f / 2);
}

// Element `e` of the registers of a lane.
static float as_f16(const u8* r, int e) { return f16_table[((const u16*)r)[e]]; }
static float as_bf16(const u8* r, int e) { return tl::bf16_to_f32(((const u16*)r)[e]); }
static float as_tf32(const u8* r, int e) { return tl::bits<float>(((const u32*)r)[e] & 0xffffe000); }  // drops 13 bits
static float as_e4m3(const u8* r, int e) { return fp8_table[0][r[e]]; }
static float as_e5m2(const u8* r, int e) { return fp8_table[1][r[e]]; }
static float as_e4m3fnuz(const u8* r, int e) { return fp8_table[2][r[e]]; }
static float as_e5m2fnuz(const u8* r, int e) { return fp8_table[3][r[e]]; }
static float as_f32(const u8* r, int e) { return ((const float*)r)[e]; }
static double as_f64(const u8* r, int e) { return ((const double*)r)[e]; }
static u32 as_s8(const u8* r, int e) { return u32(int8_t(r[e])); }
static u32 as_u8(const u8* r, int e) { return r[e]; }
static u32 as_u4(const u8* r, int e) { return r[e / 2] >> (4 * (e % 2)) & 15; }
static u32 as_s4(const u8* r, int e) { return u32(int(as_u4(r, e) ^ 8) - 8); }
static u32 as_bit(const u8* r, int e) { return r[e / 8] >> (e % 8) & 1; }

// A sum and what two elements add to it.
struct Times {
  template <class T> static T apply(T c, T a, T b) { return c + a * b; }
  static double apply(double c, double a, double b) { return __builtin_fma(a, b, c); }
};
struct And {
  static u32 apply(u32 c, u32 a, u32 b) { return c + (a & b); }
};
struct Xor {
  static u32 apply(u32 c, u32 a, u32 b) { return c + (a ^ b); }
};

// One product of NVIDIA's, m16n8 with PER elements in a register and A in REGISTERS of them: lane l is row group l / 4
// and column group l % 4; register r of A is in the upper or lower eight rows by its lowest bit, in the left or right
// half of k by the next. Integers wrap, floats add up in order of k.
template <class T, int PER, int REGISTERS, class Combine, auto decode_a, auto decode_b>
static void m16n8(const Collective* const* lanes) {
  constexpr int LANES = 32;
  constexpr int K = 2 * PER * REGISTERS;
  T a[ROWS][K], b[K][COLUMNS], c[ROWS][COLUMNS];
  for (int l = 0; l < LANES; l++) {
    const int group = l / 4, t = l % 4;
    for (int e = 0; e < REGISTERS * PER; e++) {
      const int r = e / PER;
      a[group + 8 * (r % 2)][r / 2 * 4 * PER + t * PER + e % PER] = decode_a((const u8*)lanes[l]->a, e);
    }
    for (int e = 0; e < REGISTERS / 2 * PER; e++)
      b[e / PER * 4 * PER + t * PER + e % PER][group] = decode_b((const u8*)lanes[l]->b, e);
    for (int i = 0; i < 4; i++) c[group + 8 * (i / 2)][2 * t + i % 2] = ((const T*)lanes[l]->out)[i];
  }
  for (int i = 0; i < ROWS; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < COLUMNS; j++) c[i][j] = Combine::apply(c[i][j], a[i][k], b[k][j]);
  for (int l = 0; l < LANES; l++)
    for (int i = 0; i < 4; i++) ((T*)lanes[l]->out)[i] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}

// The same of 8 by 8 elements: one register of PER elements of A and of B.
template <class T, int PER, class Combine, auto decode_a, auto decode_b>
static void m8n8(const Collective* const* lanes) {
  constexpr int LANES = 32, K = 4 * PER;
  T a[8][K], b[K][8], c[8][8];
  for (int l = 0; l < LANES; l++) {
    for (int e = 0; e < PER; e++) {
      a[l / 4][l % 4 * PER + e] = decode_a((const u8*)lanes[l]->a, e);
      b[l % 4 * PER + e][l / 4] = decode_b((const u8*)lanes[l]->b, e);
    }
    for (int i = 0; i < 2; i++) c[l / 4][2 * (l % 4) + i] = ((const T*)lanes[l]->out)[i];
  }
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < 8; j++) c[i][j] = Combine::apply(c[i][j], a[i][k], b[k][j]);
  for (int l = 0; l < LANES; l++)
    for (int i = 0; i < 2; i++) ((T*)lanes[l]->out)[i] = c[l / 4][2 * (l % 4) + i];
}

template <int M, class T, int PER, int REGISTERS, class Combine, auto decode_a, auto decode_b>
static void mma(const Collective* const* lanes) {
  if constexpr (M == 16) m16n8<T, PER, REGISTERS, Combine, decode_a, decode_b>(lanes);
  else m8n8<T, PER, Combine, decode_a, decode_b>(lanes);
}

// One product of AMD's, M x M: lane l holds PER neighbours along k of row (of B: column) l % M, and of the result
// column l % M, whose rows come in runs of GROUP.
template <class T, int M, int PER, int GROUP, auto decode_a, auto decode_b>
static void mfma(const Collective* const* lanes) {
  constexpr int LANES = 64, PARTS = LANES / M, K = PARTS * PER, HELD = M / PARTS;
  T a[M][K], b[K][M], c[M][M];
  const auto row = [](int l, int r) { return (r / GROUP * PARTS + l / M) * GROUP + r % GROUP; };
  for (int l = 0; l < LANES; l++) {
    for (int e = 0; e < PER; e++) {
      a[l % M][l / M * PER + e] = decode_a((const u8*)lanes[l]->a, e);
      b[l / M * PER + e][l % M] = decode_b((const u8*)lanes[l]->b, e);
    }
    for (int r = 0; r < HELD; r++) c[row(l, r)][l % M] = ((const T*)lanes[l]->out)[r];
  }
  for (int i = 0; i < M; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < M; j++) c[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < HELD; r++) ((T*)lanes[l]->out)[r] = c[row(l, r)][l % M];
}

// Element e of 32 small floats of a format, packed where it has fewer than 8 bits.
static float small_float(const u8* r, int e, int format) {
  constexpr int BITS[] = {8, 8, 6, 6, 4}, MANTISSA[] = {3, 2, 3, 2, 1};
  if (BITS[format] == 8) return fp8_table[format][r[e]];
  const int bits = BITS[format], mantissa = MANTISSA[format], at = e * bits, bias = (1 << (bits - mantissa - 2)) - 1;
  const int word = r[at / 8] | (at % 8 + bits > 8 ? r[at / 8 + 1] << 8 : 0), code = word >> at % 8 & ((1 << bits) - 1);
  const int exponent = (code & ((1 << (bits - 1)) - 1)) >> mantissa, fraction = code & ((1 << mantissa) - 1);
  const float value = exponent ? __builtin_ldexpf(float(fraction + (1 << mantissa)), exponent - bias - mantissa)
                               : __builtin_ldexpf(float(fraction), 1 - bias - mantissa);
  return code >> (bits - 1) ? -value : value;
}

static float e8m0(int code) { return code == 255 ? __builtin_nanf("") : __builtin_ldexpf(1.0f, code - 127); }

// One product of AMD's of small floats: lane l holds 32 elements of row (of B: column) l % M, neighbours along k, but
// of 8 bits two runs of 16 from either half of k; and the scale of that row's block l / M of 32 along k.
template <int M>
static void small_mfma(const Collective* const* lanes) {
  constexpr int LANES = 64, PARTS = LANES / M, K = PARTS * 32, HELD = M / PARTS;
  static float a[M][K], b[M][K];
  float scale_a[M][PARTS], scale_b[M][PARTS];
  const int formats = lanes[0]->bytes;
  const auto place = [](int l, int e, int format) {
    const int run = format < 2 ? 16 : 32;
    return (e / run * PARTS + l / M) * run + e % run;
  };
  for (int l = 0; l < LANES; l++) {
    scale_a[l % M][l / M] = e8m0(lanes[l]->argument & 255);
    scale_b[l % M][l / M] = e8m0(lanes[l]->argument >> 8);
    for (int e = 0; e < 32; e++) {
      a[l % M][place(l, e, formats / 8)] = small_float((const u8*)lanes[l]->a, e, formats / 8);
      b[l % M][place(l, e, formats % 8)] = small_float((const u8*)lanes[l]->b, e, formats % 8);
    }
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < HELD; r++) {
      const int row = (r / 4 * PARTS + l / M) * 4 + r % 4, column = l % M;
      float sum = ((const float*)lanes[l]->out)[r];
      for (int k = 0; k < K; k++)
        sum += a[row][k] * scale_a[row][k / 32] * (b[column][k] * scale_b[column][k / 32]);
      ((float*)lanes[l]->out)[r] = sum;
    }
}

// Adds the product of A [64, K] and B [COLUMNS, K], rows of 32 bytes, to sums [64, COLUMNS].
template <class T, auto decode_a, auto decode_b>
static void m64(const GroupProduct& p, const u8* a, const u8* b, T* sums, int elements) {
  T x[32], y[32][256];
  for (int n = 0; n < p.columns; n++)
    for (int k = 0; k < elements; k++) y[k][n] = decode_b(b + n * 32, k);
  for (int m = 0; m < 64; m++) {
    for (int k = 0; k < elements; k++) x[k] = decode_a(a + m * 32, k);
    for (int k = 0; k < elements; k++)
      for (int n = 0; n < p.columns; n++) sums[m * p.columns + n] += x[k] * y[k][n];
  }
}

// The same of bits.
static void m64_bits(const GroupProduct& p, const u8* a, const u8* b, u32* sums) {
  const u32 *x = (const u32*)a, *y = (const u32*)b;
  for (int m = 0; m < 64; m++)
    for (int n = 0; n < p.columns; n++)
      for (int w = 0; w < 8; w++) sums[m * p.columns + n] += u32(__builtin_popcount(x[m * 8 + w] & y[n * 8 + w]));
}

static void multiply_group(const GroupProduct& p, const u8* a, const u8* b, u8* sums) {
  float* f = (float*)sums;
  u32* i = (u32*)sums;
  const bool first = p.form_a == p.form_b;
  switch (p.form_a) {
    case FORM_F16: return m64<float, as_f16, as_f16>(p, a, b, f, 16);
    case FORM_BF16: return m64<float, as_bf16, as_bf16>(p, a, b, f, 16);
    case FORM_TF32: return m64<float, as_tf32, as_tf32>(p, a, b, f, 8);
    case FORM_E4M3:
      return first ? m64<float, as_e4m3, as_e4m3>(p, a, b, f, 32) : m64<float, as_e4m3, as_e5m2>(p, a, b, f, 32);
    case FORM_E5M2:
      return first ? m64<float, as_e5m2, as_e5m2>(p, a, b, f, 32) : m64<float, as_e5m2, as_e4m3>(p, a, b, f, 32);
    case FORM_S8: return first ? m64<u32, as_s8, as_s8>(p, a, b, i, 32) : m64<u32, as_s8, as_u8>(p, a, b, i, 32);
    case FORM_U8: return first ? m64<u32, as_u8, as_u8>(p, a, b, i, 32) : m64<u32, as_u8, as_s8>(p, a, b, i, 32);
    case FORM_B1: return m64_bits(p, a, b, i);
  }
}

static int lanes_of(Shape shape) { return shape < MFMA_FIRST ? 32 : 64; }

static void multiply(const Collective* const* l, Shape shape) {
  switch (shape) {
#define EMU_MMA(NAME, M, D, PER, A_BYTES, COMBINE, A, B) \
    case MMA_##NAME: return mma<M, D, PER, A_BYTES / 4, COMBINE, as_##A, as_##B>(l);
    EMU_MMAS
#undef EMU_MMA
#define EMU_MFMA(NAME, D, M, PER, A, B) \
    case MFMA_##NAME: return mfma<D, M, PER, sizeof(D) == 8 ? 1 : 4, as_##A, as_##B>(l);
    EMU_MFMAS
#undef EMU_MFMA
    case MFMA_16x16x128: return small_mfma<16>(l);
    case MFMA_32x32x64: return small_mfma<32>(l);
    case MFMA_FIRST:
    case SHAPES: break;
  }
}

}  // namespace emu
