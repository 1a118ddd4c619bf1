// One row of logits, by the vectors of one instruction set. sampling.cpp includes this once for each, in a namespace
// that has `Vector` (float32), `Line` (as many bfloat16 as two of them hold, `kLine`), what is done with them, and in
// TARGET the attribute that lets the compiler use them.

constexpr int64_t kBlock = 16 * kLine;  // logits whose probabilities are added up before one is looked for among them

TARGET float largest_of(const uint16_t* row, int64_t size) {
  Vector first = broadcast(-INFINITY), second = first;
  for (int64_t i = 0; i < size; i += kLine) {
    const Line logits = load(row + i, size - i);
    first = larger(first, even(logits));
    second = larger(second, odd(logits));
  }
  return largest(larger(first, second));
}

// The sum of exp((logit - most) * scale).
TARGET INLINE float sum_of(const uint16_t* row, int64_t size, Vector most, Vector scale) {
  Vector first = broadcast(0), second = first;
  for (int64_t i = 0; i < size; i += kLine) {
    const Line logits = load(row + i, size - i);
    first = first + exp_of_negative(scale * (even(logits) - most));
    second = second + exp_of_negative(scale * (odd(logits) - most));
  }
  return sum(first + second);
}

TARGET float log_sum_exp_of(const uint16_t* row, int64_t size, float most) {
  return most + std::log(sum_of(row, size, broadcast(most), broadcast(1)));
}

TARGET int64_t first_of(const uint16_t* row, int64_t size, float wanted) {
  const Vector value = broadcast(wanted);
  for (int64_t i = 0; i < size; i += kLine) {
    const Line logits = load(row + i, size - i);
    const unsigned evens = where_equal(even(logits), value), odds = where_equal(odd(logits), value);
    if (evens | odds) {
      const int64_t at_even = evens ? 2 * __builtin_ctz(evens) : kLine, at_odd = odds ? 2 * __builtin_ctz(odds) + 1 : kLine;
      return i + std::min(at_even, at_odd);
    }
  }
  return 0;  // no number
}

// The first token of a block at which the sum of exp((logit - most) * scale) is more than `left`; else its last likely one.
TARGET int64_t passed_at(const uint16_t* block, int64_t size, Vector most, Vector scale, double left) {
  int64_t last = 0;
  for (int64_t i = 0; i < size; i += kLine) {
    const Line logits = load(block + i, size - i);
    alignas(64) float evens[kLine / 2], odds[kLine / 2];
    store(evens, exp_of_negative(scale * (even(logits) - most)));
    store(odds, exp_of_negative(scale * (odd(logits) - most)));
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
// `total` becomes the sum of exp((logit - most) * scale), where `most` is the largest logit.
TARGET int64_t draw_from(const uint16_t* row, int64_t size, float most, float scale, double uniform,
                         std::vector<double>& sums, double& total) {
  const Vector mosts = broadcast(most), scales = broadcast(scale);
  total = 0;
  sums.clear();
  for (int64_t i = 0; i < size; i += kBlock) {
    sums.push_back(sum_of(row + i, std::min(kBlock, size - i), mosts, scales));
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
  return start + passed_at(row + start, std::min(kBlock, size - start), mosts, scales, left);
}
