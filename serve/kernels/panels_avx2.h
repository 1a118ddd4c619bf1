// Products of rows and panels of bfloat16 weights with AVX2: weights are widened in registers, sums are float32.
//
// A panel is [K/2][width][2], as serve/kernels/packed.py writes it: the two weights of a pair lie side by side, so that
// a shift and a mask widen them.

#pragma once

namespace lorikeet {
constexpr int kPanelWidth = 16;
}

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lorikeet {

#define LORIKEET_AVX2 __attribute__((target("avx2,fma")))
#define LORIKEET_INLINE inline __attribute__((always_inline))

constexpr int kRowsAtOnce = 5;  // ten sums of eight columns, and what they are made of, fill the sixteen registers

struct FloatRows {  // of 2 * `pairs` inputs, widened
  const float* first;
  int64_t stride;
};

// The upper halves of `rounded`; a NaN of `values` stays one.
LORIKEET_AVX2 LORIKEET_INLINE __m128i upper_halves(__m256 values, __m256i rounded) {
  const __m256i quiet = _mm256_or_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

// Eight numbers to bfloat16, to nearest, ties to even; a NaN stays one.
LORIKEET_AVX2 LORIKEET_INLINE __m128i narrow8(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return upper_halves(values, _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff))));
}

// Eight numbers to bfloat16, away from zero where what is cut off and its dither (uint16) pass a unit.
LORIKEET_AVX2 LORIKEET_INLINE __m128i narrow8_dithered(__m256 values, __m128i dither) {
  return upper_halves(values, _mm256_add_epi32(_mm256_castps_si256(values), _mm256_cvtepu16_epi32(dither)));
}

LORIKEET_AVX2 LORIKEET_INLINE __m256 widen8(const uint16_t* values) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

LORIKEET_AVX2 inline void widen_row(const uint16_t* row, int64_t size, float* wide) {
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) _mm256_storeu_ps(wide + i, widen8(row + i));
  for (; i < size; ++i) {
    const uint32_t bits = static_cast<uint32_t>(row[i]) << 16;
    std::memcpy(wide + i, &bits, sizeof bits);
  }
}

// sums[i * kPanelWidth + c] = sum over k of rows[i][k] * panel[k][c], for the 8 * kHalves columns of a panel.
template <int kRows, int kHalves>
LORIKEET_AVX2 LORIKEET_INLINE void multiply_some(FloatRows rows, int64_t pairs, const uint16_t* panel, float* sums) {
  constexpr int kChains = kRows <= 3 ? 2 : 1;  // a product waits for the one before it
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  __m256 total[kRows][kHalves][kChains];
#pragma GCC unroll 5
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half)
      for (int chain = 0; chain < kChains; ++chain) total[i][half][chain] = _mm256_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k, panel += 16 * kHalves) {
    __m256i both[kHalves];
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half)
      both[half] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 16 * half));
    __m256 even[kHalves], odd[kHalves];
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) even[half] = _mm256_castsi256_ps(_mm256_slli_epi32(both[half], 16));
#pragma GCC unroll 5
    for (int i = 0; i < kRows; ++i) {
      const __m256 x = _mm256_broadcast_ss(rows.first + i * rows.stride + 2 * k);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) total[i][half][0] = _mm256_fmadd_ps(x, even[half], total[i][half][0]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) odd[half] = _mm256_castsi256_ps(_mm256_and_si256(both[half], upper));
#pragma GCC unroll 5
    for (int i = 0; i < kRows; ++i) {
      const __m256 x = _mm256_broadcast_ss(rows.first + i * rows.stride + 2 * k + 1);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half)
        total[i][half][kChains - 1] = _mm256_fmadd_ps(x, odd[half], total[i][half][kChains - 1]);
    }
  }
#pragma GCC unroll 5
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      __m256 sum = total[i][half][0];
      if constexpr (kChains == 2) sum = _mm256_add_ps(sum, total[i][half][1]);
      _mm256_storeu_ps(sums + i * kPanelWidth + 8 * half, sum);
    }
}

// As `multiply_some`, for up to kRowsAtOnce rows.
template <int kHalves>
LORIKEET_AVX2 inline void multiply_rows(FloatRows rows, int count, int64_t pairs, const uint16_t* panel, float* sums) {
  switch (count) {
    case 1: return multiply_some<1, kHalves>(rows, pairs, panel, sums);
    case 2: return multiply_some<2, kHalves>(rows, pairs, panel, sums);
    case 3: return multiply_some<3, kHalves>(rows, pairs, panel, sums);
    case 4: return multiply_some<4, kHalves>(rows, pairs, panel, sums);
    default: return multiply_some<kRowsAtOnce, kHalves>(rows, pairs, panel, sums);
  }
}

// Rows of a next step of at most kRowsAtOnce, so that no step is much smaller than the others.
inline int rows_of_step(int left) {
  const int steps = (left + kRowsAtOnce - 1) / kRowsAtOnce;
  return (left + steps - 1) / steps;
}

}  // namespace lorikeet
#endif
