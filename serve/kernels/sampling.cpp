// Tokens drawn from rows of bfloat16 logits, and ln(sum(exp(logits))) of a row: what a token's log-probability needs.
//
// Two passes over a row with AVX-512, one for its largest logit, one for the sums: plain torch writes the whole row as
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

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define INLINE inline __attribute__((always_inline))

constexpr int64_t kLine = 32;  // logits a register
constexpr int64_t kBlock = 16 * kLine;  // logits whose probabilities are added up before one is looked for among them

AVX512 INLINE __m512i load(const uint16_t* logits, int64_t size) {
  const __m512i masked = _mm512_set1_epi16(static_cast<int16_t>(0xff80));  // -inf
  return _mm512_mask_loadu_epi16(masked, size >= kLine ? ~0u : (1u << size) - 1u, logits);
}

AVX512 INLINE __m512 even(__m512i logits) { return _mm512_castsi512_ps(_mm512_slli_epi32(logits, 16)); }

AVX512 INLINE __m512 odd(__m512i logits) {
  return _mm512_castsi512_ps(_mm512_and_si512(logits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// e^x for x <= 0, to 2e-7 of it: 2^n e^y with |y| <= ln(2) / 2 and Taylor's polynomial of e^y; 0 below e^-87.
AVX512 INLINE __m512 exp_of_negative(__m512 x) {
  const __mmask16 is_seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);  // and what is no number
  const __m512 t = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-87.0f), x), _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 y = _mm512_mul_ps(_mm512_sub_ps(t, n), _mm512_set1_ps(0.693147181f));
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(1.0f / 120));
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(1.0f / 24));
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(1.0f / 6));
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(0.5f));
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(1.0f));
  sum = _mm512_fmadd_ps(sum, y, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(is_seen, sum, n);
}

AVX512 float largest_of(const uint16_t* row, int64_t size) {
  __m512 first = _mm512_set1_ps(-INFINITY), second = first;
  for (int64_t i = 0; i < size; i += kLine) {
    const __m512i logits = load(row + i, size - i);
    first = _mm512_max_ps(first, even(logits));
    second = _mm512_max_ps(second, odd(logits));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(first, second));
}

// The sum of exp((logit - most) * scale).
AVX512 INLINE float sum_of(const uint16_t* row, int64_t size, __m512 most, __m512 scale) {
  __m512 first = _mm512_setzero_ps(), second = first;
  for (int64_t i = 0; i < size; i += kLine) {
    const __m512i logits = load(row + i, size - i);
    first = _mm512_add_ps(first, exp_of_negative(_mm512_mul_ps(scale, _mm512_sub_ps(even(logits), most))));
    second = _mm512_add_ps(second, exp_of_negative(_mm512_mul_ps(scale, _mm512_sub_ps(odd(logits), most))));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(first, second));
}

AVX512 float log_sum_exp_of(const uint16_t* row, int64_t size, float largest) {
  return largest + std::log(sum_of(row, size, _mm512_set1_ps(largest), _mm512_set1_ps(1.0f)));
}

AVX512 int64_t first_of(const uint16_t* row, int64_t size, float wanted) {
  const __m512 value = _mm512_set1_ps(wanted);
  for (int64_t i = 0; i < size; i += kLine) {
    const __m512i logits = load(row + i, size - i);
    const unsigned evens = _mm512_cmp_ps_mask(even(logits), value, _CMP_EQ_OQ);
    const unsigned odds = _mm512_cmp_ps_mask(odd(logits), value, _CMP_EQ_OQ);
    if (evens | odds) {
      const int64_t at_even = evens ? 2 * __builtin_ctz(evens) : kLine, at_odd = odds ? 2 * __builtin_ctz(odds) + 1 : kLine;
      return i + std::min(at_even, at_odd);
    }
  }
  return 0;  // no number
}

// The first token of a block at which the sum of exp((logit - most) * scale) is more than `left`; else its last likely one.
AVX512 int64_t passed_at(const uint16_t* block, int64_t size, __m512 most, __m512 scale, double left) {
  int64_t last = 0;
  for (int64_t i = 0; i < size; i += kLine) {
    const __m512i logits = load(block + i, size - i);
    alignas(64) float evens[kLine / 2], odds[kLine / 2];
    _mm512_store_ps(evens, exp_of_negative(_mm512_mul_ps(scale, _mm512_sub_ps(even(logits), most))));
    _mm512_store_ps(odds, exp_of_negative(_mm512_mul_ps(scale, _mm512_sub_ps(odd(logits), most))));
    for (int64_t j = 0; j < std::min(kLine, size - i); ++j) {
      const float weight = j % 2 ? odds[j / 2] : evens[j / 2];
      if (weight > 0) last = i + j;
      left -= weight;
      if (left < 0) return i + j;
    }
  }
  return last;
}

// A token with probability proportional to exp(logit * scale), picked by `uniform`, which is in [0, 1).
// `total` becomes the sum of exp((logit - largest) * scale).
AVX512 int64_t draw_from(const uint16_t* row, int64_t size, float largest, float scale, double uniform,
                         std::vector<double>& sums, double& total) {
  const __m512 most = _mm512_set1_ps(largest), factor = _mm512_set1_ps(scale);
  total = 0;
  sums.clear();
  for (int64_t i = 0; i < size; i += kBlock) {
    sums.push_back(sum_of(row + i, std::min(kBlock, size - i), most, factor));
    total += sums.back();
  }
  double left = uniform * total;
  int64_t block = 0, likely = 0;
  for (; block < static_cast<int64_t>(sums.size()); ++block) {
    if (sums[block] > 0) likely = block;
    if (left < sums[block]) break;
    left -= sums[block];
  }
  if (block == static_cast<int64_t>(sums.size())) block = likely;  // rounding: the last one that can be meant
  const int64_t start = block * kBlock;
  return start + passed_at(row + start, std::min(kBlock, size - start), most, factor, left);
}

bool is_fast() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#else  // never called
float largest_of(const uint16_t*, int64_t) { return NAN; }

float log_sum_exp_of(const uint16_t*, int64_t, float) { return NAN; }

int64_t first_of(const uint16_t*, int64_t, float) { return 0; }

int64_t draw_from(const uint16_t*, int64_t, float, float, double, std::vector<double>&, double&) { return 0; }

bool is_fast() { return false; }
#endif

constexpr float kGreedy = 1e-5f;  // vLLM's _SAMPLING_EPS (v1/sample/sampler.py)

void check(const at::Tensor& logits) {
  TORCH_CHECK(is_fast(), "this CPU has no AVX-512");
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && logits.scalar_type() == at::kBFloat16 && logits.stride(1) == 1,
              "logits are bfloat16 (rows, tokens), and rows are dense");
}

at::Tensor log_sum_exp(const at::Tensor& logits) {
  check(logits);
  at::Tensor result = at::empty({logits.size(0), 1}, logits.options().dtype(at::kFloat));
  const auto* first = static_cast<const uint16_t*>(logits.const_data_ptr());
  float* targets = result.mutable_data_ptr<float>();
  const int64_t size = logits.size(1), stride = logits.stride(0);
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* logits_of_row = first + row * stride;
      targets[row] = log_sum_exp_of(logits_of_row, size, largest_of(logits_of_row, size));
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
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums;
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* logits_of_row = first + row * stride;
      const float largest = largest_of(logits_of_row, size), scale = 1 / temperature[row];
      const bool is_greedy = temperature[row] < kGreedy;
      double total = 0;
      token[row] = is_greedy ? first_of(logits_of_row, size, largest)
                             : draw_from(logits_of_row, size, largest, scale, uniform[row], sums, total);
      logprob[row] = 0;
      if (!with_logprobs) continue;
      const bool is_known = !is_greedy && scale == 1;
      const float normaliser = is_known ? largest + static_cast<float>(std::log(total))
                                        : log_sum_exp_of(logits_of_row, size, largest);
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
