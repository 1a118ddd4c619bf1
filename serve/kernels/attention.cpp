// vLLM's attention on a CPU without Python in between: a layer's keys and values go into its cache, and its queries
// meet the cache, by vLLM's own two kernels, which are called here.
//
// vLLM (0.32, model_executor/layers/attention/attention.py) calls back into Python twice a layer, which looks up what
// the layer and the batch are. Here that is told once a step. See serve/engine/cpu/attention.py.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::IValue;

struct Layer {
  Tensor key_cache, value_cache;
  double scale, softcap;
  int64_t window;
  IValue instructions, cache_type;
};

struct Batch {
  Tensor query_starts, lengths, blocks, slots, schedule;
  int64_t num_tokens;
  bool is_causal;
};

std::vector<Layer> layers;
std::vector<Batch> batches;      // of the step that runs now; layers that see the same tokens share one
std::vector<int64_t> batch_of;  // by layer; -1 for none
bool is_running = false;        // a step with requests

void set_layers(const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches,
                const std::vector<double>& scales, at::IntArrayRef windows, const std::vector<double>& softcaps,
                const std::vector<std::string>& instructions, const std::vector<std::string>& cache_types) {
  std::vector<Layer> made;
  for (size_t i = 0; i < key_caches.size(); ++i)
    made.push_back({key_caches[i], value_caches[i], scales.at(i), softcaps.at(i), windows.at(i), instructions.at(i),
                    cache_types.at(i)});
  layers = std::move(made);
}

void begin_step(at::IntArrayRef batch_of_layer, const std::vector<Tensor>& query_starts,
                const std::vector<Tensor>& lengths, const std::vector<Tensor>& blocks, const std::vector<Tensor>& slots,
                const std::vector<Tensor>& schedules, at::IntArrayRef num_tokens, at::IntArrayRef is_causal) {
  TORCH_CHECK(batch_of_layer.size() == layers.size(), batch_of_layer.size(), " layers, ", layers.size(), " are known");
  batches.clear();
  for (size_t i = 0; i < query_starts.size(); ++i)
    batches.push_back({query_starts[i], lengths.at(i), blocks.at(i), slots.at(i), schedules.at(i), num_tokens.at(i),
                       is_causal.at(i) != 0});
  batch_of = batch_of_layer.vec();
  is_running = true;
}

void end_step() {
  is_running = false;
  batches.clear();
  batch_of.clear();
}

template <typename... Arguments>
void call(const c10::OperatorHandle& kernel, Arguments&&... arguments) {
  torch::jit::Stack stack;
  stack.reserve(sizeof...(arguments));
  torch::jit::push(stack, std::forward<Arguments>(arguments)...);
  kernel.callBoxed(&stack);
}

c10::OperatorHandle kernel_of_vllm(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

Tensor first_rows(const Tensor& tensor, int64_t rows) {
  return tensor.size(0) == rows ? tensor : tensor.narrow(0, 0, rows);
}

void attend(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& output, int64_t number) {
  if (!is_running) return;  // as when vLLM warms up
  TORCH_CHECK(number < static_cast<int64_t>(batch_of.size()) && batch_of[number] >= 0, "nobody told what attention layer ",
              number, " sees: this code was compiled for another model");
  static const c10::OperatorHandle write = kernel_of_vllm("_C::cpu_attn_reshape_and_cache");
  static const c10::OperatorHandle read = kernel_of_vllm("_C::cpu_attention_with_kv_cache");
  const Layer& layer = layers[number];
  const Batch& batch = batches.at(batch_of[number]);
  const int64_t rows = batch.num_tokens;
  call(write, first_rows(key, rows), first_rows(value, rows), layer.key_cache, layer.value_cache, batch.slots,
       layer.instructions, 1.0, 1.0, layer.cache_type);
  call(read, first_rows(query, rows), layer.key_cache, layer.value_cache, first_rows(output, rows), batch.query_starts,
       batch.lengths, layer.scale, batch.is_causal, IValue(), layer.window, batch.blocks, layer.softcap, batch.schedule,
       IValue(), IValue(), 1.0, 1.0, layer.cache_type);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorikeet, library) {
  library.def("attend(Tensor query, Tensor key, Tensor value, Tensor(a!) output, int layer) -> ()");
  library.def(
      "set_attention_layers(Tensor[] key_caches, Tensor[] value_caches, float[] scales, int[] windows, "
      "float[] softcaps, str[] instructions, str[] cache_types) -> ()");
  library.def(
      "begin_attention(int[] batch_of_layer, Tensor[] query_starts, Tensor[] lengths, Tensor[] blocks, "
      "Tensor[] slots, Tensor[] schedules, int[] num_tokens, int[] is_causal) -> ()");
  library.def("end_attention() -> ()", end_step);
}

TORCH_LIBRARY_IMPL(lorikeet, CPU, library) {
  library.impl("attend", attend);
}

TORCH_LIBRARY_IMPL(lorikeet, CompositeExplicitAutograd, library) {
  library.impl("set_attention_layers", set_layers);
  library.impl("begin_attention", begin_step);
}
