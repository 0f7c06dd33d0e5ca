// Scores and who they select: class attention in one pass over the keys, and the split into the highest and the rest.
#include "split.h"

namespace tokensieve {
namespace {

template <class T>
INLINE void class_row_body(const T* query, const T* keys, int64_t length, int64_t step, int64_t dim, float scale,
                           const float* bias, float share, float* row, float* total) {
  float highest = -INFINITE;
  for (int64_t j = 0; j < length; ++j) {
    row[j] = dot(query, keys + j * step, dim) * scale + (bias ? bias[j] : 0.0f);
    highest = row[j] > highest ? row[j] : highest;
  }
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < length; ++j) {
    row[j] = fast_exp(row[j] - highest);
    sum += row[j];
  }
  const float factor = share / sum;
  for (int64_t j = 0; j < length; ++j) total[j] += row[j] * factor;
}

#define CLASS_ROW(T)                                                                                                  \
  FOR_EVERY_PROCESSOR void class_row(const T* query, const T* keys, int64_t length, int64_t step, int64_t dim,       \
                                     float scale, const float* bias, float share, float* row, float* total) {        \
    class_row_body<T>(query, keys, length, step, dim, scale, bias, share, row, total);                                \
  }
CLASS_ROW(float)
CLASS_ROW(c10::BFloat16)
CLASS_ROW(c10::Half)
#undef CLASS_ROW

}  // namespace

// queries, keys (B, H, L, D), bias (B, L) or none, to the attention row of the first query, mean over heads: (B, L).
Tensor class_attention(const Tensor& queries, const Tensor& keys, double scale, const Maybe& bias) {
  const int64_t batch = keys.size(0), heads = keys.size(1), length = keys.size(2), dim = keys.size(3);
  Tensor out = new_float(keys, {batch, length});
  float* result = out_data<float>(out);
  const float* biases = bias ? data<float>(*bias) : nullptr;
  with_type(keys, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* q = data<T>(queries);
    const T* k = data<T>(keys);
    in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> row(length);
      for (int64_t b = begin; b < end; ++b) {
        float* total = result + b * length;
        std::fill(total, total + length, 0.0f);
        for (int64_t h = 0; h < heads; ++h) {
          class_row(q + b * queries.stride(0) + h * queries.stride(1), k + b * keys.stride(0) + h * keys.stride(1),
                    length, keys.stride(2), dim, static_cast<float>(scale), biases ? biases + b * length : nullptr,
                    1.0f / static_cast<float>(heads), row.data(), total);
        }
      }
    });
  });
  return out;
}

// score (B, M) float32 to the `count` highest and the other indices, each ascending.
std::tuple<Tensor, Tensor> split_top(const Tensor& score, int64_t count) {
  const int64_t batch = score.size(0), length = score.size(1), rest = length - count;
  Tensor top = new_int64(score, {batch, count}), others = new_int64(score, {batch, rest});
  const float* scores = data<float>(score);
  int64_t* chosen = out_data<int64_t>(top);
  int64_t* left = out_data<int64_t>(others);
  const int64_t step = score.stride(0);
  in_parallel(batch, 8, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> keys;
    for (int64_t b = begin; b < end; ++b) {
      split_scores(scores + b * step, length, count, keys, chosen + b * count, left + b * rest);
    }
  });
  return {top, others};
}

// score (B, M) float32 to what split_fused in ops/rows.py answers.
std::tuple<Tensor, Tensor, Tensor> split_fused(const Tensor& score, int64_t count) {
  const int64_t batch = score.size(0), length = score.size(1), rest = length - count;
  Tensor keep = new_int64(score, {batch, count}), moved = new_int64(score, {batch, rest});
  Tensor onto = new_int64(score, {batch, rest});
  const float* scores = data<float>(score);
  int64_t* keeps = out_data<int64_t>(keep);
  int64_t* moves = out_data<int64_t>(moved);
  std::fill_n(out_data<int64_t>(onto), batch * rest, count - 1);
  const int64_t step = score.stride(0);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> order(length);
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t m = 0; m < length; ++m) order[m] = descending_key(scores[b * step + m], static_cast<uint32_t>(m));
      std::sort(order.begin(), order.end());
      int64_t* const first = keeps + b * count;
      for (int64_t k = 0; k < count; ++k) first[k] = static_cast<int64_t>(order[k] & 0xFFFFFFFFu);
      std::sort(first, first + count - 1);
      for (int64_t r = 0; r < rest; ++r) moves[b * rest + r] = static_cast<int64_t>(order[count + r] & 0xFFFFFFFFu);
    }
  });
  return {keep, moved, onto};
}

namespace {

// Sizes are whole numbers, most of them small, where weights are not spread over tokens.
const std::vector<float> LOGARITHMS = [] {
  std::vector<float> table(256);
  for (size_t k = 0; k < table.size(); ++k) table[k] = std::log(std::max<float>(k, std::numeric_limits<float>::min()));
  return table;
}();

void log_of_sizes(const float* sizes, int64_t length, float* out) {
  for (int64_t m = 0; m < length; ++m) {
    const float value = sizes[m];
    const size_t whole = value >= 0.0f && value < static_cast<float>(LOGARITHMS.size()) ? static_cast<size_t>(value) : 0;
    out[m] = value == static_cast<float>(whole) ? LOGARITHMS[whole]
                                               : std::log(std::max(value, std::numeric_limits<float>::min()));
  }
}

}  // namespace

// size (B, M) to the bias (B, 1, 1, prefix + M) of log-size attention: log(size), and nothing for the prefix.
Tensor size_bias(const Tensor& size, int64_t prefix) {
  const int64_t batch = size.size(0), length = size.size(1), width = prefix + length;
  Tensor out = new_float(size, {batch, 1, 1, width});
  float* result = out_data<float>(out);
  const float* sizes = data<float>(size);
  const int64_t step = size.stride(0);
  in_parallel(batch, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      std::fill_n(result + b * width, prefix, 0.0f);
      log_of_sizes(sizes + b * step, length, result + b * width + prefix);
    }
  });
  return out;
}

}  // namespace tokensieve
