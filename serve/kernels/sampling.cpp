// Tokens drawn from rows of bfloat16 logits, and ln(sum(exp(logits))) of a row: what a token's log-probability needs.
//
// Two passes over a row with AVX-512 or AVX2, one for its largest logit, one for the sums: plain torch writes the whole row as
// float32 first, and draws a random number for each of its tokens. Here one uniform number a row picks the token at which
// the sum of the probabilities passes it. Only where `has_fast_sampling` says so.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// How a row is read: see sampling_rows.h.
struct Rows {
  float (*largest_of)(const uint16_t* row, int64_t size);
  float (*log_sum_exp_of)(const uint16_t* row, int64_t size, float most);
  int64_t (*first_of)(const uint16_t* row, int64_t size, float wanted);
  int64_t (*draw_from)(const uint16_t* row, int64_t size, float most, float scale, double uniform,
                       std::vector<double>& sums, double& total);
};

#if defined(__x86_64__)
#define INLINE inline __attribute__((always_inline))

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

using Vector = __m512;
using Line = __m512i;
constexpr int64_t kLine = 32;

// -inf where there is none.
TARGET INLINE Line load(const uint16_t* logits, int64_t size) {
  const __m512i masked = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
  return _mm512_mask_loadu_epi16(masked, size >= kLine ? ~0u : (1u << size) - 1u, logits);
}

TARGET INLINE void store(float* to, Vector values) { _mm512_store_ps(to, values); }
TARGET INLINE Vector broadcast(float value) { return _mm512_set1_ps(value); }
TARGET INLINE Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
TARGET INLINE float largest(Vector values) { return _mm512_reduce_max_ps(values); }
TARGET INLINE float sum(Vector values) { return _mm512_reduce_add_ps(values); }
TARGET INLINE unsigned where_equal(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
TARGET INLINE Vector even(Line logits) { return _mm512_castsi512_ps(_mm512_slli_epi32(logits, 16)); }
TARGET INLINE Vector odd(Line logits) {
  return _mm512_castsi512_ps(_mm512_and_si512(logits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// e^x for x <= 0, to 2e-7 of it: 2^n e^y with |y| <= ln(2) / 2 and Taylor's polynomial of e^y; 0 below e^-87.
TARGET INLINE Vector exp_of_negative(Vector x) {
  const __mmask16 is_seen = _mm512_cmp_ps_mask(x, broadcast(-87), _CMP_NLT_UQ);  // and what is no number
  const Vector t = _mm512_max_ps(broadcast(-87), x) * broadcast(1.44269504f);
  const Vector n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector y = (t - n) * broadcast(0.693147181f);
  Vector power = broadcast(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    power = _mm512_fmadd_ps(power, y, broadcast(coefficient));
  }
  return _mm512_maskz_scalef_ps(is_seen, power, n);
}

#include "sampling_rows.h"
#undef TARGET
}  // namespace avx512

namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))

using Vector = __m256;
using Line = __m256i;
constexpr int64_t kLine = 16;

TARGET INLINE Line load(const uint16_t* logits, int64_t size) {
  if (size >= kLine) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(logits));
  alignas(32) uint16_t line[kLine];
  for (int64_t i = 0; i < kLine; ++i) line[i] = i < size ? logits[i] : 0xff80;  // -inf
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(line));
}

TARGET INLINE void store(float* to, Vector values) { _mm256_store_ps(to, values); }
TARGET INLINE Vector broadcast(float value) { return _mm256_set1_ps(value); }
TARGET INLINE Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
TARGET INLINE float largest(Vector values) {
  alignas(32) float lanes[8];
  store(lanes, values);
  return *std::max_element(lanes, lanes + 8);
}
TARGET INLINE float sum(Vector values) {
  alignas(32) float lanes[8];
  store(lanes, values);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}
TARGET INLINE unsigned where_equal(Vector a, Vector b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
TARGET INLINE Vector even(Line logits) { return _mm256_castsi256_ps(_mm256_slli_epi32(logits, 16)); }
TARGET INLINE Vector odd(Line logits) {
  return _mm256_castsi256_ps(_mm256_and_si256(logits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

// As with AVX-512, but 2^n by its bits: n is -126 at least.
TARGET INLINE Vector exp_of_negative(Vector x) {
  const Vector is_seen = _mm256_cmp_ps(x, broadcast(-87), _CMP_NLT_UQ);
  const Vector t = _mm256_max_ps(broadcast(-87), x) * broadcast(1.44269504f);
  const Vector n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector y = (t - n) * broadcast(0.693147181f);
  Vector power = broadcast(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    power = _mm256_fmadd_ps(power, y, broadcast(coefficient));
  }
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_and_ps(is_seen, power * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

#include "sampling_rows.h"
#undef TARGET
}  // namespace avx2

// None where the CPU has neither.
const Rows* rows_of_this_cpu() {
  static const Rows with_avx512{avx512::largest_of, avx512::log_sum_exp_of, avx512::first_of, avx512::draw_from};
  static const Rows with_avx2{avx2::largest_of, avx2::log_sum_exp_of, avx2::first_of, avx2::draw_from};
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return &with_avx512;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &with_avx2 : nullptr;
}
#else
const Rows* rows_of_this_cpu() { return nullptr; }
#endif

bool is_fast() { return rows_of_this_cpu() != nullptr; }

constexpr float kGreedy = 1e-5f;  // vLLM's _SAMPLING_EPS (v1/sample/sampler.py)

void check(const at::Tensor& logits) {
  TORCH_CHECK(is_fast(), "this CPU has neither AVX-512 nor AVX2");
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && logits.scalar_type() == at::kBFloat16 && logits.stride(1) == 1,
              "logits are bfloat16 (rows, tokens), and rows are dense");
}

at::Tensor log_sum_exp(const at::Tensor& logits) {
  check(logits);
  at::Tensor result = at::empty({logits.size(0), 1}, logits.options().dtype(at::kFloat));
  const auto* first = static_cast<const uint16_t*>(logits.const_data_ptr());
  float* targets = result.mutable_data_ptr<float>();
  const int64_t size = logits.size(1), stride = logits.stride(0);
  const Rows& by = *rows_of_this_cpu();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* logits_of_row = first + row * stride;
      targets[row] = by.log_sum_exp_of(logits_of_row, size, by.largest_of(logits_of_row, size));
    }
  });
  return result;
}

// A token a row, (rows,), and its log-probability at temperature 1, (rows, 1): 0 unless it is wanted.
std::tuple<at::Tensor, at::Tensor> draw(const at::Tensor& logits, const at::Tensor& temperatures,
                                        const at::Tensor& uniforms, bool with_logprobs) {
  check(logits);
  const int64_t rows = logits.size(0), size = logits.size(1), stride = logits.stride(0);
  TORCH_CHECK(temperatures.scalar_type() == at::kFloat && temperatures.is_contiguous() && temperatures.numel() == rows,
              "temperatures are float32 (rows,)");
  TORCH_CHECK(uniforms.scalar_type() == at::kDouble && uniforms.is_contiguous() && uniforms.numel() == rows,
              "uniforms are float64 (rows,)");
  at::Tensor tokens = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor logprobs = at::empty({rows, 1}, logits.options().dtype(at::kFloat));
  const auto* first = static_cast<const uint16_t*>(logits.const_data_ptr());
  const auto* values = logits.const_data_ptr<at::BFloat16>();
  const float* temperature = temperatures.const_data_ptr<float>();
  const double* uniform = uniforms.const_data_ptr<double>();
  int64_t* token = tokens.mutable_data_ptr<int64_t>();
  float* logprob = logprobs.mutable_data_ptr<float>();
  const Rows& by = *rows_of_this_cpu();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums;
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* logits_of_row = first + row * stride;
      const float largest = by.largest_of(logits_of_row, size), scale = 1 / temperature[row];
      const bool is_greedy = temperature[row] < kGreedy;
      double total = 0;
      token[row] = is_greedy ? by.first_of(logits_of_row, size, largest)
                             : by.draw_from(logits_of_row, size, largest, scale, uniform[row], sums, total);
      logprob[row] = 0;
      if (!with_logprobs) continue;
      const bool is_known = !is_greedy && scale == 1;
      const float normaliser = is_known ? largest + static_cast<float>(std::log(total))
                                        : by.log_sum_exp_of(logits_of_row, size, largest);
      logprob[row] = static_cast<float>(values[row * stride + token[row]]) - normaliser;
    }
  });
  return {tokens, logprobs};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorikeet, library) {
  library.def("log_sum_exp(Tensor logits) -> Tensor");
  library.def("draw(Tensor logits, Tensor temperatures, Tensor uniforms, bool with_logprobs) -> (Tensor, Tensor)");
  library.def("has_fast_sampling() -> bool", is_fast);
}

TORCH_LIBRARY_IMPL(lorikeet, CPU, library) {
  library.impl("log_sum_exp", log_sum_exp);
  library.impl("draw", draw);
}
