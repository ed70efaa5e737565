#pragma once
// Elementary functions of f64 by arithmetic alone, for compilers that have no mathematical library: errors of a few
// units in the last place over the whole range. f32 functions may round their results.

namespace tl {
namespace soft {

// c[0] + c[1] x + ..., by Horner's rule.
template <int N>
TL_FN double poly(double x, const double (&c)[N]) {
  double y = c[N - 1];
  TL_UNROLL for (int i = N - 2; i >= 0; --i) y = __builtin_fma(y, x, c[i]);
  return y;
}

// x 2**n for n between -2000 and 2000, in two factors that are normal numbers.
TL_FN double scale(double x, int n) {
  const int half = n / 2;
  return x * bits<double>(u64(half + 1023) << 52) * bits<double>(u64(n - half + 1023) << 52);
}

TL_FN double clamp(double x, double limit) { return x < -limit ? -limit : x > limit ? limit : x; }  // NaN stays
TL_FN int integer(double x) { return x == x ? int(x) : 0; }

// exp(r) - 1 for |r| <= ln(2) / 2: Taylor's series.
TL_FN double expm1_reduced(double r) {
  constexpr double c[] = {1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                          1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  return __builtin_fma(r * r, poly(r, c), r);
}

TL_FN double exp(double x) {
  x = clamp(x, 800);
  const double n = __builtin_rint(x * 0x1.71547652b82fep+0);
  const double r = __builtin_fma(-n, 0x1.abc9e3b39803fp-56, __builtin_fma(-n, 0x1.62e42fefa39efp-1, x));
  return scale(1 + expm1_reduced(r), integer(n));
}

TL_FN double exp2(double x) {
  x = clamp(x, 1200);
  const double n = __builtin_rint(x), f = x - n, r = f * 0x1.62e42fefa39efp-1;
  const double rest = __builtin_fma(f, 0x1.62e42fefa39efp-1, -r) + f * 0x1.abc9e3b39803fp-56;
  return scale(1 + (expm1_reduced(r) + rest), integer(n));
}

struct split {
  double log;  // of the significand, which lies between sqrt(1/2) and sqrt(2)
  double exponent;
};

// For positive finite x: the series of log((1 + s) / (1 - s)) = log(1 + f).
TL_FN split log_parts(double x) {
  int n = 0;
  if (x < 0x1p-1022) x *= 0x1p54, n = -54;
  u64 u = bits<u64>(x);
  n += int(u >> 52) - 1023;
  u = (u & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  if (u > 0x3ff6a09e667f3bcdull) u -= 1ull << 52, n++;
  const double f = bits<double>(u) - 1, s = f / (2 + f), z = s * s, half = 0.5 * f * f;
  constexpr double c[] = {2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19,
                          2.0 / 21, 2.0 / 23};
  return {f - (half - s * (half + z * poly(z, c))), double(n)};
}

// The logarithm of a number that has no finite one.
TL_FN double log_special(double x) { return x == 0 ? -__builtin_inf() : x < 0 ? __builtin_nan("") : x; }
TL_FN bool log_regular(double x) { return x > 0 && x < __builtin_inf(); }

TL_FN double log(double x) {
  if (!log_regular(x)) return log_special(x);
  const split p = log_parts(x);
  return __builtin_fma(p.exponent, 0x1.62e42fee00000p-1, __builtin_fma(p.exponent, 0x1.a39ef35793c76p-33, p.log));
}

TL_FN double log2(double x) {
  if (!log_regular(x)) return log_special(x);
  const split p = log_parts(x);
  return p.exponent + __builtin_fma(p.log, 0x1.71547652b82fep+0, p.log * 0x1.777d0ffda0d24p-56);
}

// ---- angles

struct angle {
  double r, rest;  // between -pi/4 and pi/4, and what rounding took from it
  int quarter;     // how many times pi/2 were taken off, modulo 4
};

// |x| >= 2**20: multiplies by the bits of 2/pi that matter (Payne and Hanek).
TL_FN angle reduce_large(double x) {
  static constexpr u64 table[] = {
      0xa2f9836e4e441529ull, 0xfc2757d1f534ddc0ull, 0xdb6295993c439041ull, 0xfe5163abdebbc561ull,
      0xb7246e3a424dd2e0ull, 0x06492eea09d1921cull, 0xfe1deb1cb129a73eull, 0xe88235f52ebb4484ull,
      0xe99c7026b45f7e41ull, 0x3991d639835339f4ull, 0x9c845f8bbdf9283bull, 0x1ff897ffde05980full,
      0xef2f118b5a0a6d1full, 0x6d367ecf27cb09b7ull, 0x4f463f669e5fea2dull, 0x7527bac7ebe5f17bull,
      0x3d0739f78a5292eaull, 0x6bfb5fb11f8d5d08ull, 0x56033046fc7b6babull, 0xf0cfbc209af4361dull};
  const u64 u = bits<u64>(x), m = (u & 0xfffffffffffffull) | 1ull << 52;
  const int s = int(u >> 52 & 2047) - 1023 - 52;         // |x| = m 2**s
  const int first = s < 66 ? 0 : (s - 2) / 64;           // words before it only add multiples of 4
  // m times the next four words; below its last 256 - (s - 64 first) bits stand the whole quarters.
  u64 p[5];
  unsigned __int128 carry = 0;
  TL_UNROLL for (int i = 3; i >= 0; --i) {
    carry += (unsigned __int128)m * table[first + i];
    p[3 - i] = u64(carry);
    carry >>= 64;
  }
  p[4] = u64(carry);
  const int shift = 256 - (s - 64 * first) - 126, b = shift & 63;
  const bool high = shift >= 128;
  const u64 w0 = high ? p[2] : p[1], w1 = high ? p[3] : p[2], w2 = high ? p[4] : p[3];
  const u64 low = b ? w0 >> b | w1 << (64 - b) : w0, top = b ? w1 >> b | w2 << (64 - b) : w1;
  const u64 quarter = (top + (1ull << 61)) >> 62;        // the fraction has 126 bits: 62 of `top`, all of `low`
  u64 h = top - (quarter << 62), l = low;
  const bool below = h >> 63;
  if (below) h = ~h + (l == 0), l = 0 - l;
  double r = (double(h) * 0x1p64 + double(l)) * 0x1p-126 * 0x1.921fb54442d18p+0;
  if (below) r = -r;
  return x < 0 ? angle{-r, 0, int(0 - quarter & 3)} : angle{r, 0, int(quarter & 3)};
}

TL_FN angle reduce(double x) {
  if (__builtin_fabs(x) >= 0x1p20) return reduce_large(x);
  const double n = __builtin_rint(x * 0x1.45f306dc9c883p-1), t = __builtin_fma(-n, 0x1.921fb54442d18p+0, x);
  const double w = n * 0x1.1a62633145c07p-54, r = t - w;
  const double rest = t - r - w - __builtin_fma(n, 0x1.1a62633145c07p-54, -w) + n * 0x1.f1976b7ed8fbcp-110;
  return {r, rest, integer(n) & 3};
}

// sin, or cos where `odd`, of the angle without its quarters: Taylor's series.
TL_FN double sin_or_cos(const angle& a, bool odd) {
  constexpr double s[] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800,
                          -1.0 / 1307674368000, 1.0 / 355687428096000};
  constexpr double c[] = {1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200,
                          1.0 / 20922789888000, -1.0 / 6402373705728000};
  const double z = a.r * a.r;
  if (!odd) return a.r + __builtin_fma(z * a.r, poly(z, s), a.rest * (1 - 0.5 * z));
  const double half = 0.5 * z, w = 1 - half;
  return w + ((1 - w) - half + (z * z * poly(z, c) - a.r * a.rest));
}

TL_FN double turned(double x, int quarters) {
  if (!(__builtin_fabs(x) < __builtin_inf())) return __builtin_nan("");
  const angle a = reduce(x);
  const double y = sin_or_cos(a, (a.quarter + quarters) & 1);
  return (a.quarter + quarters) & 2 ? -y : y;
}

TL_FN double sin(double x) { return x == 0 ? x : turned(x, 0); }
TL_FN double cos(double x) { return turned(x, 1); }

// ---- others

TL_FN double tanh(double x) {
  const double a = __builtin_fabs(x);
  double y;
  if (a < 0.17) {
    const double e = expm1_reduced(2 * a);
    y = e / (e + 2);
  } else {
    const double e = exp(2 * (a > 30 ? 30 : a));
    y = (e - 1) / (e + 1);
  }
  return x != x ? x : __builtin_copysign(y, x);
}

TL_FN double erf(double x) {
  const double a = __builtin_fabs(x), z = a * a;
  if (a <= 1) {  // Taylor's series times 2 / sqrt(pi)
    constexpr double k = 0x1.20dd750429b6dp+0;
    constexpr double c[] = {-k / 3, k / 10, -k / 42, k / 216, -k / 1320, k / 9360, -k / 75600, k / 685440,
                            -k / 6894720, k / 76204800, -k / 918086400, k / 11975040000, -k / 168129561600,
                            k / 2528170444800, -k / 40537905408000, k / 690452066304000, -k / 12449059983360000,
                            k / 236887827111936000};
    return __builtin_copysign(__builtin_fma(x, z * poly(z, c), k * x), x);
  }
  if (!(a < 6)) return x != x ? x : __builtin_copysign(1.0, x);
  // 1 - exp(-x**2) P((x - 2.4) / (x + 2.4)), a minimax fit between 0.95 and 6.1.
  constexpr double c[] = {
      0x1.bf7c43b86e7a2p-3, -0x1.872d68a71dfa2p-2, 0x1.017dbaafb4965p-2, -0x1.e233f781e4c92p-4, 0x1.0c0d0be587c0bp-5,
      -0x1.651296b24c0b9p-11, -0x1.85c9a4d31fe62p-9, 0x1.f79c6ef34992ep-12, 0x1.69820f3775f37p-12,
      -0x1.2cf03dd988db7p-14, -0x1.d52cbedf0b8c4p-15, 0x1.ce54b722d7241p-18, 0x1.6922749edd3a9p-17,
      0x1.1dc4ee60e5599p-21, -0x1.0a71d2aac5cc2p-19, -0x1.e433156158c16p-22, 0x1.18c532ea8435bp-22};
  return __builtin_copysign(1 - exp(-z) * poly((a - 2.4) / (a + 2.4), c), x);
}

}  // namespace soft
}  // namespace tl
