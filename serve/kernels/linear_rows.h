// Rows times panels of weights with AVX-512. linear.cpp includes this once for each kernel, in a namespace that has
// `Input` (of x), `kMostRows`, `add_products` (of one pair of inputs), and in TARGET the attribute that lets the compiler
// use its instructions.
//
// One sum for each output, whatever the number of rows: a row's product is the same bits in any batch.

// Sixteen numbers to bfloat16, to nearest, ties to even; a NaN stays one.
TARGET INLINE __m256i narrow16(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

TARGET INLINE void store(__m512 sums, const float* bias, int64_t width, bf16* target) {
  const __mmask16 columns = static_cast<__mmask16>((1u << width) - 1u);
  if (bias) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(columns, bias));
  _mm256_mask_storeu_epi16(target, columns, narrow16(sums));
}

// kRows rows from `row` times kPanels panels from `panel`.
template <int kRows, int kPanels>
TARGET void multiply_some(const Block& block, int64_t row, int64_t panel) {
  const Input* x = static_cast<const Input*>(block.x) + row * block.inputs;
  const int64_t panel_stride = kPanelWidth * block.inputs;
  const bf16* weights = block.weight + panel * panel_stride;
  __m512 sums[kRows][kPanels];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[i][p] = _mm512_setzero_ps();
  for (int64_t k = 0; k < block.inputs; k += 2, weights += 2 * kPanelWidth)
    add_products<kRows, kPanels>(x + k, block.inputs, weights, panel_stride, sums);
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const int64_t column = (panel + p) * kPanelWidth;
      store(sums[i][p], block.bias ? block.bias + column : nullptr, block.width(panel + p),
            block.y + (row + i) * block.outputs + column);
    }
}

// As `multiply_some`, for `count` rows, which are kRows at most.
template <int kPanels, int kRows = kMostRows>
void multiply_rows_of(int count, const Block& block, int64_t row, int64_t panel) {
  if constexpr (kRows > 1) {
    if (count < kRows) return multiply_rows_of<kPanels, kRows - 1>(count, block, row, panel);
  }
  multiply_some<kRows, kPanels>(block, row, panel);
}

void multiply(const Block& block) {
  for (int64_t panel = block.first_panel; panel < block.last_panel;) {
    const bool is_full = block.last_panel - panel >= kMostPanels;
    for (int64_t row = 0; row < block.rows;) {
      const int64_t left = block.rows - row, steps = (left + kMostRows - 1) / kMostRows;
      const int count = static_cast<int>((left + steps - 1) / steps);  // no step is much smaller than the others
      is_full ? multiply_rows_of<kMostPanels>(count, block, row, panel) : multiply_rows_of<1>(count, block, row, panel);
      row += count;
    }
    panel += is_full ? kMostPanels : 1;
  }
}
