// LoRA for a batch of mixed adapters on a CPU: y[rows of adapter i] += x[rows] * A_i^T * B_i^T, for every slice of a layer.
// For DoRA, y is first multiplied by a factor per column, and a constant per column is added (adapters/dora.py).
//
// y is bfloat16. Rounding the sum to nearest would drop every change of less than half a unit in the last place, and the
// effect of a weakly trained adapter consists of such changes. The sum is therefore rounded with a dither: the
// probability of each neighbour is proportional to its closeness, which makes the result unbiased (M. P. Connolly, N. J.
// Higham and T. Mary, "Stochastic Rounding and Its Probabilistic Backward Error Analysis", 2021). The dither is a
// function of y's bits and column, so results are reproducible.
//
// Tokens are grouped by adapter, each weight is read once a block of 16 tokens, in bfloat16; sums are float32. The
// weights stay where their adapter lies in memory: a layer's table holds their addresses, so that to activate an
// adapter is to write addresses. See serve/kernels/packed.py for the layout of the weights and for the table.

#include "panels_avx2.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using bf16 = uint16_t;

constexpr int kBlock = 16;       // tokens a block; also the rows of an AMX tile
constexpr int kPanel = 16;       // columns a panel
constexpr int kColumnsAPart = 192;  // of one slice of y where blocks are few; whole panels
constexpr int64_t kBlocksEnough = 32;  // to keep all threads busy with whole blocks
constexpr int64_t kSerialBelow = 1 << 16;  // multiply-adds that are not worth waking a thread for

// ---------------------------------------------------------------------------------------------------------------
// Products of a block of rows and panels of weights, for each instruction set.

struct Panel {  // of an A: `width` (8 or 16) of its rows, whose products begin at `column` of a token's hidden row
  const bf16* weights;
  int width;
  int64_t column;
};

// hidden[i][panel.column + c] = sum over k of rows[i][k] * panel.weights[k][c], for every panel; 2 * `pairs` inputs.
using Shrink = void (*)(const bf16* const* rows, int count, int64_t pairs, const Panel* panels, int num_panels,
                        bf16* hidden, int64_t hidden_stride);
// targets[i][c] += sum over k of rows[i][k] * panels[k][c], over all `columns`: as many panels of 16 as they need.
using Expand = void (*)(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                        bf16* const* targets);

struct Rescale {  // per column of DoRA; a null `shift` is zeros
  const float* scale;
  const float* shift;
};

// targets[i][c] = targets[i][c] * scale[c] + shift[c] + the sum that `Expand` adds.
using ExpandRescaled = void (*)(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                                bf16* const* targets, Rescale rescale);

struct Instructions {
  const char* name;
  Shrink shrink;
  Expand expand;
  ExpandRescaled expand_rescaled;
};

inline float widen(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// The upper half of a float32 number after `added` is added to its bits; a NaN stays a NaN.
inline bf16 upper_half(uint32_t bits, uint32_t added) {
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<bf16>(is_nan ? (bits >> 16) | 0x40 : (bits + added) >> 16);
}

inline bf16 narrow(float value) {  // to nearest, ties to even
  const auto bits = std::bit_cast<uint32_t>(value);
  return upper_half(bits, 0x7fffu + ((bits >> 16) & 1u));
}

// Dither of a value that was `before`, in column c of its panel: `kOfValue * before + kOfColumn[c]`, modulo 2**16. The
// factors, 2**16 divided by powers of the plastic number, spread pairs of numbers evenly (M. Roberts, "The Unreasonable
// Effectiveness of Quasirandom Sequences", 2018).
constexpr uint16_t kOfValue = 49471;
constexpr std::array<uint16_t, 2 * kPanel> kOfColumn = [] {  // twice: a line has two panels
  std::array<uint16_t, 2 * kPanel> dither{};
  for (int c = 0; c < 2 * kPanel; ++c) dither[c] = static_cast<uint16_t>(37345 * (c % kPanel));
  return dither;
}();

inline bf16 narrow_dithered(float value, bf16 before, int c) {
  return upper_half(std::bit_cast<uint32_t>(value), static_cast<uint16_t>(uint32_t{kOfValue} * before + kOfColumn[c]));
}

#define INLINE inline __attribute__((always_inline))

template <int kWidth>
INLINE void multiply_row(const bf16* row, int64_t pairs, const bf16* panel, float* sums) {
  float total[kWidth] = {};
  for (int64_t k = 0; k < pairs; ++k, panel += 2 * kWidth) {
    const float first = widen(row[2 * k]), second = widen(row[2 * k + 1]);
    uint32_t both[kWidth];
    std::memcpy(both, panel, sizeof both);
    for (int c = 0; c < kWidth; ++c) {
      total[c] += first * std::bit_cast<float>(both[c] << 16);
      total[c] += second * std::bit_cast<float>(both[c] & 0xffff0000u);
    }
  }
  std::memcpy(sums, total, sizeof total);
}

void shrink_portable(const bf16* const* rows, int count, int64_t pairs, const Panel* panels, int num_panels,
                     bf16* hidden, int64_t hidden_stride) {
  for (int p = 0; p < num_panels; ++p) {
    const Panel& panel = panels[p];
    for (int i = 0; i < count; ++i) {
      float sums[kPanel];
      if (panel.width == kPanel) {
        multiply_row<kPanel>(rows[i], pairs, panel.weights, sums);
      } else {
        multiply_row<kPanel / 2>(rows[i], pairs, panel.weights, sums);
      }
      bf16* target = hidden + i * hidden_stride + panel.column;
      for (int c = 0; c < panel.width; ++c) target[c] = narrow(sums[c]);
    }
  }
}

INLINE float rescaled(float value, Rescale rescale, int64_t column) {
  return value * rescale.scale[column] + (rescale.shift ? rescale.shift[column] : 0.0f);
}

template <bool kRescaled>
INLINE void expand_each(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                        bf16* const* targets, Rescale rescale) {
  for (int64_t column = 0; column < columns; column += kPanel, panels += 2 * kPanel * pairs) {
    const int width = static_cast<int>(std::min<int64_t>(kPanel, columns - column));
    for (int i = 0; i < count; ++i) {
      float sums[kPanel];
      multiply_row<kPanel>(rows[i], pairs, panels, sums);
      for (int c = 0; c < width; ++c) {
        bf16& target = targets[i][column + c];
        float before = widen(target);
        if constexpr (kRescaled) before = rescaled(before, rescale, column + c);
        target = narrow_dithered(before + sums[c], target, c);
      }
    }
  }
}

void expand_portable(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                     bf16* const* targets) {
  expand_each<false>(rows, count, pairs, panels, columns, targets, {});
}

void expand_rescaled_portable(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                              bf16* const* targets, Rescale rescale) {
  expand_each<true>(rows, count, pairs, panels, columns, targets, rescale);
}

#if defined(__x86_64__)
// Rows as float32, one after the other; they stay until the calling thread asks again.
LORIKEET_AVX2 lorikeet::FloatRows widened(const bf16* const* rows, int count, int64_t size) {
  static thread_local std::vector<float> wide;
  wide.resize(count * size);
  for (int i = 0; i < count; ++i) lorikeet::widen_row(rows[i], size, wide.data() + i * size);
  return {wide.data(), size};
}

// sums = rows * panel
LORIKEET_AVX2 void multiply_block(lorikeet::FloatRows rows, int count, int64_t pairs, const Panel& panel, float* sums) {
  for (int first = 0; first < count;) {
    const int step = lorikeet::rows_of_step(count - first);
    const lorikeet::FloatRows some{rows.first + first * rows.stride, rows.stride};
    if (panel.width == kPanel) {
      lorikeet::multiply_rows<2>(some, step, pairs, panel.weights, sums + first * kPanel);
    } else {
      lorikeet::multiply_rows<1>(some, step, pairs, panel.weights, sums + first * kPanel);
    }
    first += step;
  }
}

LORIKEET_AVX2 void shrink_avx2(const bf16* const* rows, int count, int64_t pairs, const Panel* panels, int num_panels,
                               bf16* hidden, int64_t hidden_stride) {
  const lorikeet::FloatRows wide = widened(rows, count, 2 * pairs);
  alignas(32) float sums[kBlock * kPanel];
  for (int p = 0; p < num_panels; ++p) {
    multiply_block(wide, count, pairs, panels[p], sums);
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < panels[p].width; c += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(hidden + i * hidden_stride + panels[p].column + c),
                         lorikeet::narrow8(_mm256_load_ps(sums + i * kPanel + c)));
  }
}

LORIKEET_AVX2 LORIKEET_INLINE __m256 rescaled8(__m256 values, Rescale rescale, int64_t column) {
  const __m256 shift = rescale.shift ? _mm256_loadu_ps(rescale.shift + column) : _mm256_setzero_ps();
  return _mm256_fmadd_ps(values, _mm256_loadu_ps(rescale.scale + column), shift);
}

// Of eight columns from `c` of a panel on.
LORIKEET_AVX2 INLINE __m128i dither8(__m128i before, int c) {
  const __m128i of_column = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kOfColumn.data() + c));
  return _mm_add_epi16(_mm_mullo_epi16(before, _mm_set1_epi16(static_cast<int16_t>(kOfValue))), of_column);
}

template <bool kRescaled>
LORIKEET_AVX2 INLINE void expand_eights(const bf16* const* rows, int count, int64_t pairs, const bf16* panels,
                                        int64_t columns, bf16* const* targets, Rescale rescale) {
  const lorikeet::FloatRows wide = widened(rows, count, 2 * pairs);
  alignas(32) float sums[kBlock * kPanel];
  for (int64_t column = 0; column < columns; column += kPanel, panels += 2 * kPanel * pairs) {
    multiply_block(wide, count, pairs, {panels, kPanel, 0}, sums);
    const int width = static_cast<int>(std::min<int64_t>(kPanel, columns - column));
    for (int i = 0; i < count; ++i) {
      bf16* target = targets[i] + column;
      int c = 0;
      for (; c + 8 <= width; c += 8) {
        __m256 before = lorikeet::widen8(target + c);
        if constexpr (kRescaled) before = rescaled8(before, rescale, column + c);
        const __m256 sum = _mm256_add_ps(before, _mm256_load_ps(sums + i * kPanel + c));
        __m128i* const eight = reinterpret_cast<__m128i*>(target + c);
        _mm_storeu_si128(eight, lorikeet::narrow8_dithered(sum, dither8(_mm_loadu_si128(eight), c)));
      }
      for (; c < width; ++c) {
        float before = widen(target[c]);
        if constexpr (kRescaled) before = rescaled(before, rescale, column + c);
        target[c] = narrow_dithered(before + sums[i * kPanel + c], target[c], c);
      }
    }
  }
}

LORIKEET_AVX2 void expand_avx2(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                               bf16* const* targets) {
  expand_eights<false>(rows, count, pairs, panels, columns, targets, {});
}

LORIKEET_AVX2 void expand_rescaled_avx2(const bf16* const* rows, int count, int64_t pairs, const bf16* panels,
                                        int64_t columns, bf16* const* targets, Rescale rescale) {
  expand_eights<true>(rows, count, pairs, panels, columns, targets, rescale);
}

#define AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

AVX512_BF16 inline __mmask16 first_columns(int64_t width) { return static_cast<__mmask16>((1u << width) - 1u); }

AVX512_BF16 inline __m512bh broadcast_pair(const bf16* row, int64_t pair) {
  int32_t both;
  std::memcpy(&both, row + 2 * pair, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

AVX512_BF16 inline __m512 widen16(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

AVX512_BF16 inline void narrow_columns(bf16* target, __mmask16 columns, __m512 values) {
  _mm256_mask_storeu_epi16(target, columns, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// 16 numbers to bfloat16, with their dither; a NaN stays one.
AVX512_BF16 inline __m256i narrow16_dithered(__m512 values, __m256i dither) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_cvtepu16_epi32(dither));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
}

// Of the 16 columns of a panel.
AVX512_BF16 inline __m256i dither16(__m256i before) {
  const __m256i of_column = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOfColumn.data()));
  return _mm256_add_epi16(_mm256_mullo_epi16(before, _mm256_set1_epi16(static_cast<int16_t>(kOfValue))), of_column);
}

AVX512_BF16 inline void add_to(bf16* target, __mmask16 columns, __m512 sums) {
  const __m256i before = _mm256_maskz_loadu_epi16(columns, target);
  const __m256i sum = narrow16_dithered(_mm512_add_ps(widen16(before), sums), dither16(before));
  _mm256_mask_storeu_epi16(target, columns, sum);
}

// Scale and shift of the columns from `column` on.
AVX512_BF16 inline void add_to_rescaled(bf16* target, __mmask16 columns, __m512 sums, Rescale rescale, int64_t column) {
  const __m512 scale = _mm512_maskz_loadu_ps(columns, rescale.scale + column);
  if (rescale.shift) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(columns, rescale.shift + column));
  const __m256i before = _mm256_maskz_loadu_epi16(columns, target);
  const __m256i sum = narrow16_dithered(_mm512_fmadd_ps(widen16(before), scale, sums), dither16(before));
  _mm256_mask_storeu_epi16(target, columns, sum);
}

// 32 columns are a cache line of y.
constexpr int64_t kLine = 32;

// 32 columns, two panels, plus their sums, narrowed.
AVX512_BF16 INLINE __m512i add_line(__m512i before, const float* sums) {
  const __m512i of_column = _mm512_loadu_si512(kOfColumn.data());
  const __m512i of_value = _mm512_mullo_epi16(before, _mm512_set1_epi16(static_cast<int16_t>(kOfValue)));
  const __m512i dither = _mm512_add_epi16(of_value, of_column);
  const __m512 low = widen16(_mm512_castsi512_si256(before)), high = widen16(_mm512_extracti64x4_epi64(before, 1));
  const __m256i first =
      narrow16_dithered(_mm512_add_ps(low, _mm512_load_ps(sums)), _mm512_castsi512_si256(dither));
  const __m256i second =
      narrow16_dithered(_mm512_add_ps(high, _mm512_load_ps(sums + kPanel)), _mm512_extracti64x4_epi64(dither, 1));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// targets[i][column + c] += sums[i][c] for a line of each row. All rows are read before the first is written: rows a
// multiple of 4 KiB apart look to the processor as if one's load had to wait for the other's store.
template <int kRows>
AVX512_BF16 INLINE void add_lines(bf16* const* targets, int64_t column, const float* sums, int64_t stride) {
  __m512i lines[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) lines[i] = _mm512_loadu_si512(targets[i] + column);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) _mm512_storeu_si512(targets[i] + column, add_line(lines[i], sums + i * stride));
}

// total[i] = products of rows[i] and one panel.
template <int kRows>
AVX512_BF16 INLINE void multiply_rows(const bf16* const* rows, int64_t pairs, const bf16* panel, int width,
                                      __m512* total) {
  // Several sums a row where rows are few: a product waits for the one before it.
  constexpr int kChains = kRows <= 4 ? 4 : (kRows <= 8 ? 2 : 1);
  const __mmask16 columns = first_columns(width);
  __m512 chains[kRows][kChains];
  for (int i = 0; i < kRows; ++i)
    for (int chain = 0; chain < kChains; ++chain) chains[i][chain] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      if (k + chain >= pairs) break;
      const __m512bh weights =
          reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi32(columns, panel + 2 * width * (k + chain)));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        chains[i][chain] = _mm512_dpbf16_ps(chains[i][chain], broadcast_pair(rows[i], k + chain), weights);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    total[i] = chains[i][0];
    for (int chain = 1; chain < kChains; ++chain) total[i] = _mm512_add_ps(total[i], chains[i][chain]);
  }
}

AVX512_BF16 inline void store_narrowed(bf16* target, int width, __m512 sums) {
  narrow_columns(target, first_columns(width), sums);
}

template <int kRows>
AVX512_BF16 void shrink_rows(const bf16* const* rows, int64_t pairs, const Panel& panel, bf16* hidden,
                             int64_t hidden_stride) {
  __m512 total[kRows];
  multiply_rows<kRows>(rows, pairs, panel.weights, panel.width, total);
  for (int i = 0; i < kRows; ++i) store_narrowed(hidden + i * hidden_stride + panel.column, panel.width, total[i]);
}

template <int kRows, bool kRescaled>
AVX512_BF16 void expand_rows(const bf16* const* rows, int64_t pairs, const bf16* panels, int64_t columns,
                             bf16* const* targets, Rescale rescale) {
  for (int64_t column = 0; column < columns; column += kPanel, panels += 2 * kPanel * pairs) {
    __m512 total[kRows];
    multiply_rows<kRows>(rows, pairs, panels, kPanel, total);
    const __mmask16 width = first_columns(std::min<int64_t>(kPanel, columns - column));
    for (int i = 0; i < kRows; ++i) {
      if constexpr (kRescaled) {
        add_to_rescaled(targets[i] + column, width, total[i], rescale, column);
      } else {
        add_to(targets[i] + column, width, total[i]);
      }
    }
  }
}

// Calls work.operator()<n>(first row) for parts of 16, 8, 4, 2 and 1 rows.
template <typename Work>
void in_parts(int count, const Work& work) {
  int first = 0;
  for (; count - first >= 16; first += 16) work.template operator()<16>(first);
  if (count - first >= 8) work.template operator()<8>(first), first += 8;
  if (count - first >= 4) work.template operator()<4>(first), first += 4;
  if (count - first >= 2) work.template operator()<2>(first), first += 2;
  if (count - first >= 1) work.template operator()<1>(first);
}

void shrink_avx512(const bf16* const* rows, int count, int64_t pairs, const Panel* panels, int num_panels,
                   bf16* hidden, int64_t hidden_stride) {
  for (int p = 0; p < num_panels; ++p)
    in_parts(count, [&]<int kRows>(int first) {
      shrink_rows<kRows>(rows + first, pairs, panels[p], hidden + first * hidden_stride, hidden_stride);
    });
}

void expand_avx512(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                   bf16* const* targets) {
  in_parts(count, [&]<int kRows>(int first) {
    expand_rows<kRows, false>(rows + first, pairs, panels, columns, targets + first, {});
  });
}

void expand_rescaled_avx512(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                            bf16* const* targets, Rescale rescale) {
  in_parts(count, [&]<int kRows>(int first) {
    expand_rows<kRows, true>(rows + first, pairs, panels, columns, targets + first, rescale);
  });
}

#if defined(__GNUC__) && !defined(__clang__)
#define WITH_AMX 1
#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))

constexpr int kFewestRows = 4;   // for fewer, AVX-512 is as fast
constexpr int kFewestPairs = 4;  // a tile row of 16 bytes

// Bytes between rows that lie at equal distances; 0 where they do not.
int64_t row_distance(const bf16* const* rows, int count) {
  const int64_t distance = rows[1] - rows[0];
  for (int i = 2; i < count; ++i)
    if (rows[i] - rows[i - 1] != distance) return 0;
  return distance * static_cast<int64_t>(sizeof(bf16));
}

// Pairs of inputs a tile takes, so that no smaller tile is left over; 0 where there is no such number.
int64_t pairs_of_a_tile(int64_t pairs) {
  for (int64_t size = std::min<int64_t>(16, pairs); size >= kFewestPairs; --size)
    if (pairs % size == 0) return size;
  return 0;
}

// Tiles 0 to 3: sums; 4, 5: weights; 6: rows.
constexpr int kSums = 4;

AMX void shape_tiles(int rows, int64_t pairs, int width) {
  struct alignas(64) {  // Intel's manual, LDTILECFG
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_a_row[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int tile = 0; tile < 7; ++tile) {
    shape.rows[tile] = static_cast<uint8_t>(tile < kSums || tile == 6 ? rows : pairs);
    shape.bytes_a_row[tile] = static_cast<uint16_t>(tile == 6 ? 4 * pairs : 4 * width);
  }
  _tile_loadconfig(&shape);
}

struct Strided {  // rows at equal distances
  const bf16* first;
  int64_t distance;  // bytes
};

// sums[0] = rows * panel; the inputs are dealt out to four sums, for a product waits 52 cycles for the one before it.
AMX INLINE void multiply_panel(Strided rows, int64_t pairs, int64_t step, const Panel& panel, float* sums) {
  constexpr int kRow = kPanel * sizeof(float);
  const auto multiply = [&](int64_t k) AMX {
    _tile_loadd(6, rows.first + 2 * k, rows.distance);
    _tile_loadd(4, panel.weights + 2 * panel.width * k, 4 * panel.width);
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  int64_t k = 0;
  for (; k + 4 * step <= pairs; k += 4 * step) {
    multiply(k);
    _tile_dpbf16ps(0, 6, 4);
    multiply(k + step);
    _tile_dpbf16ps(1, 6, 4);
    multiply(k + 2 * step);
    _tile_dpbf16ps(2, 6, 4);
    multiply(k + 3 * step);
    _tile_dpbf16ps(3, 6, 4);
  }
  for (; k < pairs; k += step) {
    multiply(k);
    _tile_dpbf16ps(0, 6, 4);
  }
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kBlock * kPanel, kRow);
  _tile_stored(2, sums + 2 * kBlock * kPanel, kRow);
  _tile_stored(3, sums + 3 * kBlock * kPanel, kRow);
}

AMX void shrink_amx(const bf16* const* rows, int count, int64_t pairs, const Panel* panels, int num_panels,
                    bf16* hidden, int64_t hidden_stride) {
  const int64_t distance = count >= kFewestRows ? row_distance(rows, count) : 0, step = pairs_of_a_tile(pairs);
  if (!distance || !step) return shrink_avx512(rows, count, pairs, panels, num_panels, hidden, hidden_stride);
  alignas(64) float sums[kSums][kBlock][kPanel];
  for (int p = 0; p < num_panels; ++p) {
    const Panel& panel = panels[p];
    if (p == 0 || panel.width != panels[p - 1].width) shape_tiles(count, step, panel.width);
    multiply_panel({rows[0], distance}, pairs, step, panel, sums[0][0]);
    for (int i = 0; i < count; ++i) {
      const __m512 even = _mm512_add_ps(_mm512_load_ps(sums[0][i]), _mm512_load_ps(sums[2][i]));
      const __m512 odd = _mm512_add_ps(_mm512_load_ps(sums[1][i]), _mm512_load_ps(sums[3][i]));
      store_narrowed(hidden + i * hidden_stride + panel.column, panel.width, _mm512_add_ps(even, odd));
    }
  }
  _tile_release();
}

constexpr int64_t kColumns = kSums * kPanel;  // of y at once: two lines

// sums = rows * four panels
AMX INLINE void multiply_panels(Strided rows, int64_t pairs, int64_t step, const bf16* panels, float* sums) {
  constexpr int64_t kRow = kPanel * sizeof(float), kStride = kColumns * sizeof(float);
  const int64_t panel_size = 2 * kPanel * pairs;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < pairs; k += step) {
    const bf16* weights = panels + 2 * kPanel * k;
    if (step < pairs) _tile_loadd(6, rows.first + 2 * k, rows.distance);
    _tile_loadd(4, weights, kRow);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, weights + panel_size, kRow);
    _tile_dpbf16ps(1, 6, 5);
    _tile_loadd(4, weights + 2 * panel_size, kRow);
    _tile_dpbf16ps(2, 6, 4);
    _tile_loadd(5, weights + 3 * panel_size, kRow);
    _tile_dpbf16ps(3, 6, 5);
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + kPanel, kStride);
  _tile_stored(2, sums + 2 * kPanel, kStride);
  _tile_stored(3, sums + 3 * kPanel, kStride);
}

AMX INLINE void add_sums(bf16* const* targets, int count, int64_t column, const float* sums) {
  if (count == kBlock) {
    for (int64_t c = 0; c < kColumns; c += kLine) add_lines<kBlock>(targets, column + c, sums + c, kColumns);
    return;
  }
  for (int i = 0; i < count; ++i)
    for (int64_t c = 0; c < kColumns; c += kLine) add_lines<1>(targets + i, column + c, sums + i * kColumns + c, 0);
}

AMX void expand_amx(const bf16* const* rows, int count, int64_t pairs, const bf16* panels, int64_t columns,
                    bf16* const* targets) {
  const int64_t distance = count >= kFewestRows ? row_distance(rows, count) : 0, step = pairs_of_a_tile(pairs);
  const int64_t whole = columns / kColumns * kColumns;
  if (!distance || !step || !whole) return expand_avx512(rows, count, pairs, panels, columns, targets);
  // Sums are added to their targets one step late: a load must not wait for the tile store before it.
  alignas(64) float sums[2][kBlock * kColumns];
  shape_tiles(count, step, kPanel);
  if (step == pairs) _tile_loadd(6, rows[0], distance);
  for (int64_t column = 0; column < whole; column += kColumns) {
    const int64_t turn = column / kColumns % 2;
    multiply_panels({rows[0], distance}, pairs, step, panels + 2 * column * pairs, sums[turn]);
    if (column) add_sums(targets, count, column - kColumns, sums[1 - turn]);
  }
  _tile_release();
  add_sums(targets, count, whole - kColumns, sums[(whole / kColumns - 1) % 2]);
  if (whole == columns) return;
  bf16* rest[kBlock];
  for (int i = 0; i < count; ++i) rest[i] = targets[i] + whole;
  expand_avx512(rows, count, pairs, panels + 2 * whole * pairs, columns - whole, rest);
}

bool may_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux: arch/x86/include/uapi/asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
#endif

const std::vector<Instructions>& instruction_sets() {
  static const std::vector<Instructions> sets = [] {
    std::vector<Instructions> found{{"portable", shrink_portable, expand_portable, expand_rescaled_portable}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back({"avx2", shrink_avx2, expand_avx2, expand_rescaled_avx2});
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      found.push_back({"avx512_bf16", shrink_avx512, expand_avx512, expand_rescaled_avx512});
#if defined(WITH_AMX)
      if (__builtin_cpu_supports("amx-bf16") && may_use_amx())
        found.push_back({"amx_bf16", shrink_amx, expand_amx, expand_rescaled_avx512});
#endif
    }
#endif
    return found;
  }();
  return sets;
}

const Instructions* chosen = &instruction_sets().back();

// ---------------------------------------------------------------------------------------------------------------
// The work of one layer.

struct Weights {  // one slice of one adapter; see serve/kernels/packed.py
  const bf16* a;
  const bf16* b;
  int64_t rank;  // padded to a multiple of 8; 0: the adapter leaves this slice alone
  Rescale rescale;  // no `scale`: plain LoRA
};

constexpr int64_t kEntry = 5;  // numbers of a slice in the table

class Layer {
 public:
  Layer(const at::Tensor& table, at::IntArrayRef widths)
      : entries_(table.const_data_ptr<int64_t>()), slots_(table.size(0)), widths_(widths) {}

  int64_t slots() const { return slots_; }
  int64_t slices() const { return static_cast<int64_t>(widths_.size()); }
  int64_t width(int64_t slice) const { return widths_[slice]; }
  Weights weights(int64_t slot, int64_t slice) const {
    const int64_t* entry = entries_ + kEntry * (slot * slices() + slice);
    return {reinterpret_cast<const bf16*>(entry[0]), reinterpret_cast<const bf16*>(entry[1]), entry[2],
            {reinterpret_cast<const float*>(entry[3]), reinterpret_cast<const float*>(entry[4])}};
  }
  int64_t total_rank(int64_t slot) const {
    int64_t sum = 0;
    for (int64_t slice = 0; slice < slices(); ++slice) sum += weights(slot, slice).rank;
    return sum;
  }

 private:
  const int64_t* entries_;
  int64_t slots_;
  at::IntArrayRef widths_;
};

struct Block {  // up to kBlock tokens of one adapter: places [first, first + count) of the order
  int64_t slot, first;
  int count;
  size_t panels_end = 0, parts_end = 0;  // of the plan's lists; they begin where those of the block before end
};

struct Part {  // columns [first, last) of one slice, which begins at `column` of y, for one block
  int32_t block, slice, hidden, first, last;
  int64_t column;
};

// Buffers of the calling thread, kept from call to call.
struct Plan {
  std::vector<int64_t> order, starts;
  std::vector<Block> blocks;
  std::vector<Panel> panels;
  std::vector<int32_t> panel_blocks;
  std::vector<Part> parts;
  std::vector<bf16> hidden;
  int64_t hidden_stride = 0, multiply_adds = 0;
};

void group_tokens(Plan& plan, const int64_t* slots, int64_t num_tokens, const Layer& layer) {
  plan.starts.assign(layer.slots() + 1, 0);
  int64_t used = 0;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t slot = slots[token];
    if (slot < 0) continue;
    TORCH_CHECK(slot < layer.slots(), "adapter slot ", slot, " of ", layer.slots());
    ++plan.starts[slot + 1];
    ++used;
  }
  for (int64_t slot = 0; slot < layer.slots(); ++slot) plan.starts[slot + 1] += plan.starts[slot];
  plan.order.resize(used);
  for (int64_t token = 0; token < num_tokens; ++token)
    if (slots[token] >= 0) plan.order[plan.starts[slots[token]]++] = token;
  // Each start is now the next one's: the end of its own group.
  plan.blocks.clear();
  plan.hidden_stride = plan.multiply_adds = 0;
  int64_t first = 0;
  for (int64_t slot = 0; slot < layer.slots(); ++slot) {
    const int64_t end = plan.starts[slot], rank = layer.total_rank(slot);
    if (first == end || rank == 0) {
      first = end;
      continue;
    }
    plan.hidden_stride = std::max(plan.hidden_stride, rank);
    for (; first < end; first += kBlock)
      plan.blocks.push_back({slot, first, static_cast<int>(std::min<int64_t>(kBlock, end - first))});
    first = end;
  }
}

// Are blocks enough to keep all threads busy, each does all of its block at once: x and y then pass the cache once.
bool is_by_block(const Plan& plan) { return static_cast<int64_t>(plan.blocks.size()) >= kBlocksEnough; }

void list_work(Plan& plan, const Layer& layer, int64_t input_size) {
  const bool is_whole = is_by_block(plan);
  plan.panels.clear();
  plan.panel_blocks.clear();
  plan.parts.clear();
  for (size_t b = 0; b < plan.blocks.size(); ++b) {
    Block& block = plan.blocks[b];
    int64_t hidden = 0, column = 0;
    for (int64_t s = 0; s < layer.slices(); ++s) {
      const Weights weights = layer.weights(block.slot, s);
      for (int64_t first = 0; first < weights.rank; first += kPanel) {
        const int width = static_cast<int>(std::min<int64_t>(kPanel, weights.rank - first));
        plan.panels.push_back({weights.a + first * input_size, width, hidden + first});
        plan.panel_blocks.push_back(static_cast<int32_t>(b));
      }
      const int64_t columns = is_whole ? layer.width(s) : kColumnsAPart;
      for (int64_t first = 0; weights.rank && first < layer.width(s); first += columns)
        plan.parts.push_back({static_cast<int32_t>(b), static_cast<int32_t>(s), static_cast<int32_t>(hidden),
                              static_cast<int32_t>(first),
                              static_cast<int32_t>(std::min<int64_t>(layer.width(s), first + columns)), column});
      plan.multiply_adds += block.count * weights.rank * (input_size + layer.width(s));
      hidden += weights.rank;
      column += layer.width(s);
    }
    block.panels_end = plan.panels.size();
    block.parts_end = plan.parts.size();
  }
  plan.hidden.resize(plan.order.size() * plan.hidden_stride);
}

// hidden = x * A^T, of panels [first, last) of one block
void shrink(Plan& plan, const Block& block, size_t first, size_t last, const bf16* x, int64_t input_size) {
  const bf16* rows[kBlock];
  for (int i = 0; i < block.count; ++i) rows[i] = x + plan.order[block.first + i] * input_size;
  chosen->shrink(rows, block.count, input_size / 2, plan.panels.data() + first, static_cast<int>(last - first),
                 plan.hidden.data() + block.first * plan.hidden_stride, plan.hidden_stride);
}

// y += hidden * B^T, for DoRA after y * scale + shift
void expand(Plan& plan, const Layer& layer, const Part& part, bf16* y, int64_t output_stride) {
  const Block& block = plan.blocks[part.block];
  const Weights weights = layer.weights(block.slot, part.slice);
  const bf16* rows[kBlock];
  bf16* targets[kBlock];
  for (int i = 0; i < block.count; ++i) {
    rows[i] = plan.hidden.data() + (block.first + i) * plan.hidden_stride + part.hidden;
    targets[i] = y + plan.order[block.first + i] * output_stride + part.column + part.first;
  }
  const bf16* panels = weights.b + part.first * weights.rank;
  const int64_t pairs = weights.rank / 2, columns = part.last - part.first;
  Rescale rescale = weights.rescale;
  if (!rescale.scale) return chosen->expand(rows, block.count, pairs, panels, columns, targets);
  rescale.scale += part.first;
  if (rescale.shift) rescale.shift += part.first;
  chosen->expand_rescaled(rows, block.count, pairs, panels, columns, targets, rescale);
}

// Calls work(i) for each i below `size`, each thread for its share.
template <typename Work>
void share(int threads, size_t size, const Work& work) {
  const auto do_share = [&](int64_t thread) {
    const size_t first = size * thread / threads, last = size * (thread + 1) / threads;
    for (size_t i = first; i < last; ++i) work(i);
  };
  if (threads == 1) return do_share(0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) do_share(thread);
  });
}

void add_lora(at::Tensor& y, const at::Tensor& x, const at::Tensor& table, const at::Tensor& slots,
              at::IntArrayRef widths) {
  TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && y.size(0) == x.size(0), "y and x are (tokens, features)");
  TORCH_CHECK(y.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kBFloat16, "y and x are bfloat16");
  TORCH_CHECK(y.stride(1) == 1 && x.is_contiguous() && x.size(1) % 2 == 0, "rows are dense, x has even features");
  TORCH_CHECK(slots.scalar_type() == at::kLong && slots.is_contiguous() && slots.size(0) >= x.size(0),
              "slots are int64, one a token");
  TORCH_CHECK(table.scalar_type() == at::kLong && table.is_contiguous() && table.dim() == 3 &&
                  table.size(1) == static_cast<int64_t>(widths.size()) && table.size(2) == kEntry,
              "the table is int64 (slots, slices, 5)");
  int64_t columns = 0;
  for (const int64_t width : widths) columns += width;
  TORCH_CHECK(columns <= y.size(1), "the slices are wider than y");

  static thread_local Plan own;
  Plan& plan = own;
  const Layer layer(table, widths);
  group_tokens(plan, slots.const_data_ptr<int64_t>(), x.size(0), layer);
  if (plan.blocks.empty()) return;
  const int64_t input_size = x.size(1), output_stride = y.stride(0);
  list_work(plan, layer, input_size);

  const bf16* inputs = static_cast<const bf16*>(x.const_data_ptr());
  bf16* outputs = static_cast<bf16*>(y.mutable_data_ptr());
  const int threads = plan.multiply_adds < kSerialBelow ? 1 : at::get_num_threads();
  const auto do_part = [&](size_t p) { expand(plan, layer, plan.parts[p], outputs, output_stride); };
  if (is_by_block(plan)) {
    share(threads, plan.blocks.size(), [&](size_t b) {
      const Block& block = plan.blocks[b];
      const Block start = b ? plan.blocks[b - 1] : Block{};
      shrink(plan, block, start.panels_end, block.panels_end, inputs, input_size);
      for (size_t p = start.parts_end; p < block.parts_end; ++p) do_part(p);
    });
    return;
  }
  share(threads, plan.panels.size(), [&](size_t p) {
    shrink(plan, plan.blocks[plan.panel_blocks[p]], p, p + 1, inputs, input_size);
  });
  share(threads, plan.parts.size(), do_part);
}

// What this CPU can do, best last.
std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const Instructions& set : instruction_sets()) names.emplace_back(set.name);
  return names;
}

void use(const std::string& name) {
  for (const Instructions& set : instruction_sets()) {
    if (name == set.name) {
      chosen = &set;
      return;
    }
  }
  TORCH_CHECK(false, "this CPU has no instruction set ", name);
}

}  // namespace

TORCH_LIBRARY(lorikeet, library) {
  library.def("add_lora(Tensor(a!) y, Tensor x, Tensor table, Tensor slots, int[] widths) -> ()");
  library.def("instruction_sets() -> str[]", available);
  library.def("use_instruction_set(str name) -> ()", [](std::string name) { use(name); });
}

TORCH_LIBRARY_IMPL(lorikeet, CPU, library) { library.impl("add_lora", add_lora); }
