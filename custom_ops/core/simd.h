// Vectors of the instruction set this file is compiled for, and the few functions on them that the
// compiler has no name for. Included by cpu_isa.cpp alone, inside the namespace of its instruction set, so
// that no inline function of one set is ever linked into another. No standard library here for the same reason.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef int64_t PairVec __attribute__((vector_size(4 * kLanes)));  // each lane two floats
typedef float Vec4 __attribute__((vector_size(16)));
typedef float VecUnaligned __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef float Vec4Unaligned __attribute__((vector_size(16), aligned(4)));

#define TFINV_INLINE inline __attribute__((always_inline))

TFINV_INLINE Vec Broadcast(float value) { return value - Vec{}; }
TFINV_INLINE Vec Load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
TFINV_INLINE void Store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
TFINV_INLINE Vec LoadUnaligned(const float* from) { return *reinterpret_cast<const VecUnaligned*>(from); }
TFINV_INLINE void StoreUnaligned(float* to, Vec value) { *reinterpret_cast<VecUnaligned*>(to) = value; }
// Of NaN and a number, the second.
#if defined(__AVX2__) && !defined(__AVX512F__)
TFINV_INLINE Vec Max(Vec a, Vec b) { return __builtin_ia32_maxps256(a, b); }  // gcc 12 compares and blends
TFINV_INLINE Vec Min(Vec a, Vec b) { return __builtin_ia32_minps256(a, b); }
#else
TFINV_INLINE Vec Max(Vec a, Vec b) { return a > b ? a : b; }
TFINV_INLINE Vec Min(Vec a, Vec b) { return a < b ? a : b; }
#endif
// Two neighbouring floats, again and again: one load, as for one float.
TFINV_INLINE Vec BroadcastPair(const float* from) {
  int64_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return (Vec)(pair + PairVec{});
}
TFINV_INLINE IntVec Bits(Vec value) { return (IntVec)value; }
TFINV_INLINE Vec FromBits(IntVec bits) { return (Vec)bits; }

// e^x for x up to 88.3, 0 below -87.3 (no subnormal results), NaN of NaN. x log2(e) = n + f with n the nearest
// integer; 2^f is its Taylor polynomial. Relative error below 2e-7 + 2e-8 |x|.
TFINV_INLINE Vec Exp(Vec given) {
  const IntVec exists = given > -87.3f;
  const Vec x = Max(given, Broadcast(-87.3f));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float rounder = 12582912.0f, log2e = 1.44269504f;
  const Vec shifted = x * log2e + rounder;
  const Vec f = x * log2e - (shifted - rounder);
  Vec p = f * 1.54035304e-4f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  const Vec power = (Vec)((Bits(p) + (Bits(shifted) << 23)) & exists);
  return given == given ? power : given;
}

// Natural logarithm of a positive, normal x: x = 2^n m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172. Absolute error below 1e-7 in log m. Infinity and NaN stay what they are.
TFINV_INLINE Vec Log(Vec x) {
  const IntVec bits = Bits(x);
  const IntVec exponent = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt(1/2)
  const Vec m = FromBits(bits - (exponent << 23));
  const Vec n = __builtin_convertvector(exponent, Vec);
  const Vec s = (m - 1.0f) / (m + 1.0f);
  const Vec z = s * s;
  Vec p = z * (2.0f / 9.0f) + (2.0f / 7.0f);
  p = p * z + (2.0f / 5.0f);
  p = p * z + (2.0f / 3.0f);
  const Vec log = (n * 0.693359375f + 2.0f * s) + (s * z * p - n * 2.12194440e-4f);
  return x < __builtin_inff() ? log : x;
}

// In a register from here on: gcc loads a value again for each product it is in, and loads are scarcer.
TFINV_INLINE Vec Held(Vec value) {
#if defined(__AVX2__)
  asm("" : "+x"(value));
#endif
  return value;
}

// The largest square that is transposed in registers; what is larger is made of these.
constexpr int kSquare = kLanes < 8 ? kLanes : 8;
typedef float SquareRow __attribute__((vector_size(4 * kSquare)));
typedef float SquareRowUnaligned __attribute__((vector_size(4 * kSquare), aligned(4)));

// rows[r][c] becomes rows[c][r].
TFINV_INLINE void TransposeSquare(SquareRow (&rows)[kSquare]) {
#if defined(__AVX2__)
  SquareRow turned[8];
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    const SquareRow* r = rows + half;
    const SquareRow a = __builtin_shufflevector(r[0], r[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const SquareRow b = __builtin_shufflevector(r[0], r[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const SquareRow c = __builtin_shufflevector(r[2], r[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const SquareRow d = __builtin_shufflevector(r[2], r[3], 2, 10, 3, 11, 6, 14, 7, 15);
    turned[half] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    turned[half + 1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    turned[half + 2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    turned[half + 3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) {
    rows[row] = __builtin_shufflevector(turned[row], turned[row + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[row + 4] = __builtin_shufflevector(turned[row], turned[row + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#else
  for (int row = 1; row < kSquare; ++row)
    for (int lane = 0; lane < row; ++lane) {
      const float kept = rows[row][lane];
      rows[row][lane] = rows[lane][row];
      rows[lane][row] = kept;
    }
#endif
}

#if defined(__AVX512F__)
// The same of eight rows of eight pairs of floats.
TFINV_INLINE void TransposePairs(Vec (&rows)[8]) {
  PairVec turned[8];
#pragma GCC unroll 4
  for (int row = 0; row < 8; row += 2) {
    const PairVec a = (PairVec)rows[row], b = (PairVec)rows[row + 1];
    turned[row] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    turned[row + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
#pragma GCC unroll 4
  for (int at = 0; at < 4; ++at) {
    const int row = at / 2 * 4 + at % 2;
    const PairVec a = turned[row], b = turned[row + 2];
    turned[row] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    turned[row + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) {
    const PairVec a = turned[row], b = turned[row + 4];
    rows[row] = (Vec)__builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    rows[row + 4] = (Vec)__builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#endif

// Neighbouring lanes of a, then of b, added within each group of four lanes.
TFINV_INLINE Vec AddPairs(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// The sums over all lanes of a, b, c and d.
TFINV_INLINE Vec4 SumLanes(Vec a, Vec b, Vec c, Vec d) {
  const Vec quads = AddPairs(AddPairs(a, b), AddPairs(c, d));
#if defined(__AVX512F__)
  return (__builtin_shufflevector(quads, quads, 0, 1, 2, 3) + __builtin_shufflevector(quads, quads, 4, 5, 6, 7)) +
         (__builtin_shufflevector(quads, quads, 8, 9, 10, 11) +
          __builtin_shufflevector(quads, quads, 12, 13, 14, 15));
#elif defined(__AVX2__)
  return __builtin_shufflevector(quads, quads, 0, 1, 2, 3) + __builtin_shufflevector(quads, quads, 4, 5, 6, 7);
#else
  return quads;
#endif
}

TFINV_INLINE float SumLanes(Vec a) { return SumLanes(a, Vec{}, Vec{}, Vec{})[0]; }
