// Linear layers of bfloat16 weights by instructions of our own choice: y = x W^T + b.
//
// Weights stay bfloat16 in memory, in one layout for all kernels (serve/kernels/packed.py). A kernel either widens them in
// registers and adds float32 products (AVX2, AVX-512), or adds products of bfloat16 pairs (AVX512-BF16); sums are float32.
// Which one is faster, and whether vLLM's own product is, depends on the CPU and on the number of rows: serve/engine
// measures it, and `linear` looks the answer up in the layer's table.

#include "panels_avx2.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace {

using namespace lorikeet;

using bf16 = uint16_t;

constexpr int64_t kSerialBelow = 1 << 17;  // multiply-adds that are not worth waking a thread for
constexpr int64_t kBlockBytes = 1 << 18;   // of x, read again for each panel of weights: they stay in the second cache
constexpr int64_t kFewestRows = 30;        // of a block, however wide: its weights come from farther away

struct Block {  // some rows, and their products with panels [first_panel, last_panel)
  const void* x;  // (rows, inputs), bfloat16 or, where the kernel wants it, float32
  const bf16* weight;
  const float* bias;  // null for none
  bf16* y;            // (rows, outputs)
  int64_t rows, inputs, outputs, first_panel, last_panel;

  int64_t width(int64_t panel) const { return std::min<int64_t>(kPanelWidth, outputs - panel * kPanelWidth); }
};

struct Kernel {
  std::string name;
  bool is_wide;  // x is float32
  int64_t panels_at_once;
  void (*multiply)(const Block& block);
};

#if defined(__x86_64__)
#define INLINE LORIKEET_INLINE

namespace avx2 {
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

LORIKEET_AVX2 void multiply(const Block& block) {
  const auto* x = static_cast<const float*>(block.x);
  alignas(32) float sums[kRowsAtOnce * kPanelWidth];
  for (int64_t panel = block.first_panel; panel < block.last_panel; ++panel) {
    const int64_t column = panel * kPanelWidth;
    const float* bias = block.bias ? block.bias + column : nullptr;
    for (int64_t row = 0; row < block.rows;) {
      const int count = rows_of_step(static_cast<int>(block.rows - row));
      multiply_rows<2>({x + row * block.inputs, block.inputs}, count, block.inputs / 2,
                       block.weight + column * block.inputs, sums);
      for (int i = 0; i < count; ++i)
        store_row(sums + i * kPanelWidth, bias, block.width(panel), block.y + (row + i) * block.outputs + column);
      row += count;
    }
  }
}
}  // namespace avx2

// As many sums as the 32 registers hold beside the weights of a step: kMostRows rows of kMostPanels panels.
constexpr int kMostPanels = 4;

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

using Input = float;
constexpr int kMostRows = 5;

template <int kRows, int kPanels>
TARGET INLINE void add_products(const Input* row, int64_t stride, const bf16* weights, int64_t panel_stride,
                                __m512 (&sums)[kRows][kPanels]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512 even[kPanels], odd[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    const __m512i both = _mm512_loadu_si512(weights + p * panel_stride);
    even[p] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd[p] = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
  }
#pragma GCC unroll 5
  for (int i = 0; i < kRows; ++i) {
    const __m512 x = _mm512_set1_ps(row[i * stride]);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[i][p] = _mm512_fmadd_ps(x, even[p], sums[i][p]);
  }
#pragma GCC unroll 5
  for (int i = 0; i < kRows; ++i) {
    const __m512 x = _mm512_set1_ps(row[i * stride + 1]);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[i][p] = _mm512_fmadd_ps(x, odd[p], sums[i][p]);
  }
}

#include "linear_rows.h"
#undef TARGET
}  // namespace avx512

namespace avx512_bf16 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

using Input = bf16;
constexpr int kMostRows = 6;

template <int kRows, int kPanels>
TARGET INLINE void add_products(const Input* row, int64_t stride, const bf16* weights, int64_t panel_stride,
                                __m512 (&sums)[kRows][kPanels]) {
  __m512bh both[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p)
    both[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(weights + p * panel_stride));
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    int32_t pair;
    std::memcpy(&pair, row + i * stride, sizeof pair);
    const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[i][p] = _mm512_dpbf16_ps(sums[i][p], x, both[p]);
  }
}

#include "linear_rows.h"
#undef TARGET
}  // namespace avx512_bf16

// What this CPU can do; a kernel's number is its place.
const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> all = [] {
    std::vector<Kernel> found;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
    found.push_back({"avx2", true, 1, avx2::multiply});
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
      return found;
    found.push_back({"avx512", true, kMostPanels, avx512::multiply});
    if (__builtin_cpu_supports("avx512bf16"))
      found.push_back({"avx512_bf16", false, kMostPanels, avx512_bf16::multiply});
    return found;
  }();
  return all;
}

// Rows as float32; they stay until the calling thread asks again.
const float* widened(const bf16* rows, int64_t size) {
  static thread_local std::vector<float> wide;
  if (static_cast<int64_t>(wide.size()) < size) wide.resize(size);
  widen_row(rows, size, wide.data());
  return wide.data();
}
#else
const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> none;
  return none;
}

const float* widened(const bf16*, int64_t) { return nullptr; }  // never called
#endif

const Kernel& kernel_of(int64_t number) {
  TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(kernels().size()), "this CPU has no kernel ", number);
  return kernels()[number];
}

// The products of all rows. Each thread takes its share of (block of rows, panels), a block after the other: how rows
// are divided does not depend on the number of threads, so that no sum does.
void multiply(const Kernel& kernel, const bf16* x, const Block& all) {
  const int64_t row_bytes = all.inputs * (kernel.is_wide ? sizeof(float) : sizeof(bf16));
  const int64_t most_rows = std::max(kFewestRows, kBlockBytes / row_bytes);
  const int64_t blocks = (all.rows + most_rows - 1) / most_rows;
  const int64_t rows_of_block = (all.rows + blocks - 1) / blocks;  // all alike, for threads to have as much to do
  const int64_t steps = (all.last_panel + kernel.panels_at_once - 1) / kernel.panels_at_once;
  const int64_t threads = all.rows * all.inputs * all.outputs < kSerialBelow ? 1 : at::get_num_threads();
  const auto do_share = [&](int64_t thread) {
    int64_t first = blocks * steps * thread / threads;
    const int64_t last = blocks * steps * (thread + 1) / threads;
    while (first < last) {
      const int64_t number = first / steps, end = std::min(last, (number + 1) * steps);
      const int64_t row = number * rows_of_block;
      Block block = all;
      block.rows = std::min(rows_of_block, all.rows - row);
      const bf16* rows = x + row * all.inputs;
      block.x = kernel.is_wide ? static_cast<const void*>(widened(rows, block.rows * all.inputs)) : rows;
      block.y = all.y + row * all.outputs;
      block.first_panel = (first - number * steps) * kernel.panels_at_once;
      block.last_panel = std::min(all.last_panel, (end - number * steps) * kernel.panels_at_once);
      kernel.multiply(block);
      first = end;
    }
  };
  if (threads == 1) return do_share(0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) do_share(thread);
  });
}

at::Tensor empty_product(const at::Tensor& x, int64_t outputs) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = outputs;
  return at::empty(shape, x.options());
}

at::Tensor product(const Kernel& kernel, const at::Tensor& x, const bf16* weight, int64_t outputs,
                   const std::optional<at::Tensor>& bias) {
  at::Tensor y = empty_product(x, outputs);
  if (x.numel() == 0) return y;
  const at::Tensor rows = x.contiguous();
  const at::Tensor biases = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  const int64_t inputs = x.size(-1);
  multiply(kernel, static_cast<const bf16*>(rows.const_data_ptr()),
           {nullptr, weight, bias ? biases.const_data_ptr<float>() : nullptr, static_cast<bf16*>(y.mutable_data_ptr()),
            rows.numel() / inputs, inputs, outputs, 0, (outputs + kPanelWidth - 1) / kPanelWidth});
  return y;
}

void check(const at::Tensor& x, int64_t outputs, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() >= 1 && x.scalar_type() == at::kBFloat16, "x is bfloat16 (..., inputs)");
  TORCH_CHECK(outputs > 0 && (!bias || bias->numel() == outputs), "bias is (outputs,)");
}

at::Tensor linear_by(const at::Tensor& x, const at::Tensor& weight, int64_t outputs,
                     const std::optional<at::Tensor>& bias, int64_t number) {
  check(x, outputs, bias);
  const int64_t inputs = x.size(-1), padded = (outputs + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
  TORCH_CHECK(inputs > 0 && inputs % 8 == 0 && weight.scalar_type() == at::kBFloat16 && weight.is_contiguous() &&
                  weight.numel() == inputs * padded,
              "weight is what pack_b makes of bfloat16 (outputs, inputs), inputs are a multiple of 8");
  return product(kernel_of(number), x, static_cast<const bf16*>(weight.const_data_ptr()), outputs, bias);
}

// vLLM's product by oneDNN, of the weights that `handler` (0-dimensional) points at.
at::Tensor linear_by_vllm(const at::Tensor& x, const at::Tensor& handler, int64_t outputs,
                          const std::optional<at::Tensor>& bias) {
  static const c10::OperatorHandle multiply = c10::Dispatcher::singleton().findSchemaOrThrow("_C::onednn_mm", "");
  at::Tensor y = empty_product(x, outputs);
  torch::jit::Stack arguments{y, x.reshape({-1, x.size(-1)}), bias ? c10::IValue(*bias) : c10::IValue(), handler};
  multiply.callBoxed(arguments);
  return y;
}

// table: int64, the address of packed weights (0: none), vLLM's handler, then pairs of a number of rows and of the
// kernel for up to so many (-1: vLLM's); the last pair is for any number. serve/engine/cpu/linear.py writes it.
at::Tensor linear(const at::Tensor& x, const at::Tensor& table, int64_t outputs, const std::optional<at::Tensor>& bias) {
  constexpr int64_t kHandler = 1, kPairs = 2;
  check(x, outputs, bias);
  TORCH_CHECK(table.scalar_type() == at::kLong && table.dim() == 1 && table.is_contiguous() && table.numel() > kPairs &&
                  table.numel() % 2 == 0,
              "the table is int64 (2 + 2 * classes,)");
  const int64_t *entries = table.const_data_ptr<int64_t>(), *last = entries + table.numel() - 2;
  const int64_t rows = x.numel() / std::max<int64_t>(1, x.size(-1));
  const int64_t* pair = entries + kPairs;
  while (pair < last && rows > pair[0]) pair += 2;
  if (pair[1] < 0) return linear_by_vllm(x, table.select(0, kHandler), outputs, bias);
  return product(kernel_of(pair[1]), x, reinterpret_cast<const bf16*>(entries[0]), outputs, bias);
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernel& kernel : kernels()) names.push_back(kernel.name);
  return names;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorikeet, library) {
  library.def("linear(Tensor x, Tensor table, int outputs, Tensor? bias) -> Tensor");
  library.def("linear_by(Tensor x, Tensor weight, int outputs, Tensor? bias, int kernel) -> Tensor");
  library.def("linear_kernels() -> str[]", kernel_names);
}

TORCH_LIBRARY_IMPL(lorikeet, CPU, library) {
  library.impl("linear", linear);
  library.impl("linear_by", linear_by);
}
