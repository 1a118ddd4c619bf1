// A linear layer of bfloat16 weights for CPUs that cannot multiply bfloat16: y = x W^T + b.
//
// Without AVX-512, oneDNN has no product of bfloat16 matrices, and torch's own one (which vLLM then takes) is a fifth as
// fast as one of float32. Here the weights stay bfloat16 in memory, and are widened in registers: as little to read, and
// the speed of float32. Only where `has_own_linear` says so.

#include "panels_avx2.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace {

using namespace lorikeet;

#if defined(__x86_64__)
using bf16 = uint16_t;

constexpr int64_t kSerialBelow = 1 << 17;  // multiply-adds that are not worth waking a thread for
constexpr int64_t kBlockFloats = 1 << 16;  // of x, read again for each panel of weights: they stay in the second cache

struct Product {
  const float* x;  // (rows, inputs)
  const bf16* weight;
  const float* bias;  // null for none
  bf16* y;
  int64_t rows, inputs, outputs;
};

LORIKEET_AVX2 void store_row(const float* sums, const float* bias, int64_t width, bf16* target) {
  alignas(32) float added[kPanelWidth];
  std::memcpy(added, sums, sizeof added);
  if (bias)
    for (int64_t c = 0; c < width; ++c) added[c] += bias[c];
  const __m128i low = narrow8(_mm256_load_ps(added)), high = narrow8(_mm256_load_ps(added + 8));
  if (width == kPanelWidth) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), low);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 8), high);
    return;
  }
  alignas(16) bf16 narrowed[kPanelWidth];
  _mm_store_si128(reinterpret_cast<__m128i*>(narrowed), low);
  _mm_store_si128(reinterpret_cast<__m128i*>(narrowed + 8), high);
  std::memcpy(target, narrowed, width * sizeof(bf16));
}

// y of rows [first_row, last_row) and of panels [first_panel, last_panel).
LORIKEET_AVX2 void multiply_block(const Product& product, int64_t first_row, int64_t last_row, int64_t first_panel,
                                  int64_t last_panel) {
  alignas(32) float sums[kRowsAtOnce * kPanelWidth];
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t column = panel * kPanelWidth, width = std::min<int64_t>(kPanelWidth, product.outputs - column);
    const float* bias = product.bias ? product.bias + column : nullptr;
    for (int64_t row = first_row; row < last_row;) {
      const int count = rows_of_step(static_cast<int>(last_row - row));
      multiply_rows<2>({product.x + row * product.inputs, product.inputs}, count, product.inputs / 2,
                       product.weight + column * product.inputs, sums);
      for (int i = 0; i < count; ++i)
        store_row(sums + i * kPanelWidth, bias, width, product.y + (row + i) * product.outputs + column);
      row += count;
    }
  }
}

void multiply(const Product& product) {
  const int64_t panels = (product.outputs + kPanelWidth - 1) / kPanelWidth;
  const int64_t block_rows = std::max<int64_t>(kRowsAtOnce, kBlockFloats / product.inputs / kRowsAtOnce * kRowsAtOnce);
  const int64_t threads =
      product.rows * product.inputs * product.outputs < kSerialBelow ? 1 : at::get_num_threads();
  const auto do_share = [&](int64_t thread) {
    const int64_t first = panels * thread / threads, last = panels * (thread + 1) / threads;
    for (int64_t row = 0; row < product.rows; row += block_rows)
      multiply_block(product, row, std::min(product.rows, row + block_rows), first, last);
  };
  if (threads == 1) return do_share(0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) do_share(thread);
  });
}

bool is_usable() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#else  // never called
bool is_usable() { return false; }
#endif

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, int64_t outputs, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(is_usable(), "this CPU has no AVX2");
  TORCH_CHECK(x.dim() >= 1 && x.scalar_type() == at::kBFloat16, "x is bfloat16 (..., inputs)");
  const int64_t inputs = x.size(-1), padded = (outputs + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
  TORCH_CHECK(inputs > 0 && inputs % 8 == 0 && outputs > 0 && weight.scalar_type() == at::kBFloat16 &&
                  weight.is_contiguous() && weight.numel() == inputs * padded,
              "weight is what pack_b makes of bfloat16 (outputs, inputs), inputs are a multiple of 8");
  TORCH_CHECK(!bias || bias->numel() == outputs, "bias is (outputs,)");
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = outputs;
  at::Tensor y = at::empty(shape, x.options());
  if (x.numel() == 0) return y;
#if defined(__x86_64__)
  const at::Tensor rows = x.contiguous();
  const at::Tensor biases = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  static thread_local std::vector<float> wide;  // kept from call to call
  wide.resize(rows.numel());
  widen_row(static_cast<const bf16*>(rows.const_data_ptr()), rows.numel(), wide.data());
  multiply({wide.data(), static_cast<const bf16*>(weight.const_data_ptr()),
            bias ? biases.const_data_ptr<float>() : nullptr, static_cast<bf16*>(y.mutable_data_ptr()),
            rows.numel() / inputs, inputs, outputs});
#endif
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorikeet, library) {
  library.def("linear(Tensor x, Tensor weight, int outputs, Tensor? bias) -> Tensor");
  library.def("has_own_linear() -> bool", is_usable);
}

TORCH_LIBRARY_IMPL(lorikeet, CPU, library) { library.impl("linear", linear); }
