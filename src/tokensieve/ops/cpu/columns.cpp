// Column sums of attention maps, streamed: a few query rows at a time, no map is ever held.
#include "packed.h"

namespace tokensieve {
namespace {

// Products of queries and keys to logits.
FOR_EVERY_PROCESSOR void scale_row(float* row, float scale, const float* bias, int64_t width) {
  for (int64_t j = 0; j < width; ++j) row[j] = row[j] * scale + bias[j];
}

// Adds the softmax of a row of logits, times `vote`, to `total`; or its logarithm when `logarithm`.
FOR_EVERY_PROCESSOR void add_softmax(float* row, int64_t length, float vote, bool logarithm, float* total) {
  float highest = -INFINITE;
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < length; ++j) highest = row[j] > highest ? row[j] : highest;
  float sum = 0.0f;
  if (logarithm) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < length; ++j) sum += fast_exp(row[j] - highest);
    const float shift = highest + std::log(sum);
    for (int64_t j = 0; j < length; ++j) total[j] += vote * (row[j] - shift);
    return;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < length; ++j) {
    row[j] = fast_exp(row[j] - highest);
    sum += row[j];
  }
  const float factor = vote / sum;
  for (int64_t j = 0; j < length; ++j) total[j] += row[j] * factor;
}

// The selector's two convolutions of width 1 on a vector of keys; `in` and `out` hold one row of lanes per head.
template <int64_t HEADS, class Vector>
INLINE void mix_body(const Vector* in, const float* expand, const float* expand_bias, const float* reduce,
                     const float* reduce_bias, int64_t heads, int64_t hidden, Vector* out) {
  const int64_t count = HEADS > 0 ? HEADS : heads;
  Vector sums[HEADS > 0 ? HEADS : 64];
  for (int64_t h = 0; h < count; ++h) sums[h] = Vector{} + reduce_bias[h];
  for (int64_t k = 0; k < hidden; ++k) {
    Vector unit = Vector{} + expand_bias[k];
    for (int64_t h = 0; h < count; ++h) unit += expand[k * count + h] * in[h];
    const Vector zero = {};
    unit = unit > zero ? unit : zero;
    for (int64_t h = 0; h < count; ++h) sums[h] += reduce[k * count + h] * unit;
  }
  for (int64_t h = 0; h < count; ++h) out[h] = sums[h];
}

// rows (H, R, width) of logits, replaced by what the selector makes of them. `reduce` is (hidden, H).
template <int64_t HEADS, class Vector>
INLINE void mix_rows_body(float* rows, int64_t count, int64_t width, const float* expand, const float* expand_bias,
                          const float* reduce, const float* reduce_bias, int64_t heads, int64_t hidden) {
  constexpr int64_t STEP = sizeof(Vector) / sizeof(float);
  Vector in[HEADS > 0 ? HEADS : 64], out[HEADS > 0 ? HEADS : 64];
  for (int64_t place = 0; place < count * width; place += STEP) {
    for (int64_t h = 0; h < heads; ++h) in[h] = *reinterpret_cast<const Vector*>(rows + h * ROWS * width + place);
    mix_body<HEADS>(in, expand, expand_bias, reduce, reduce_bias, heads, hidden, out);
    for (int64_t h = 0; h < heads; ++h) *reinterpret_cast<Vector*>(rows + h * ROWS * width + place) = out[h];
  }
}

#define MIX_ROWS(NAME, PROCESSORS, VECTOR, HEADS)                                                                     \
  PROCESSORS void NAME##_##HEADS(float* rows, int64_t count, int64_t width, const float* expand,                     \
                                 const float* expand_bias, const float* reduce, const float* reduce_bias,            \
                                 int64_t heads, int64_t hidden) {                                                     \
    mix_rows_body<HEADS, VECTOR>(rows, count, width, expand, expand_bias, reduce, reduce_bias, heads, hidden);        \
  }
#define MIX_ROWS_OF_HEADS(NAME, PROCESSORS, VECTOR)                                                                   \
  MIX_ROWS(NAME, PROCESSORS, VECTOR, 0)                                                                               \
  MIX_ROWS(NAME, PROCESSORS, VECTOR, 3)                                                                               \
  MIX_ROWS(NAME, PROCESSORS, VECTOR, 6)                                                                               \
  MIX_ROWS(NAME, PROCESSORS, VECTOR, 12)                                                                              \
  MIX_ROWS(NAME, PROCESSORS, VECTOR, 16)                                                                              \
  auto NAME(int64_t heads) {                                                                                          \
    return heads == 3 ? NAME##_3 : heads == 6 ? NAME##_6 : heads == 12 ? NAME##_12 : heads == 16 ? NAME##_16 : NAME##_0; \
  }
MIX_ROWS_OF_HEADS(mix_narrow, FOR_EVERY_PROCESSOR, Halves)
#ifdef HAS_BFLOAT16_PAIRS
MIX_ROWS_OF_HEADS(mix_wide, FOR_WIDE, Lanes)
#endif
#undef MIX_ROWS_OF_HEADS
#undef MIX_ROWS

void mix_rows(float* rows, int64_t count, int64_t width, const float* expand, const float* expand_bias,
              const float* reduce, const float* reduce_bias, int64_t heads, int64_t hidden) {
  auto mix = mix_narrow(heads);
#ifdef HAS_BFLOAT16_PAIRS
  if (has_wide()) mix = mix_wide(heads);
#endif
  mix(rows, count, width, expand, expand_bias, reduce, reduce_bias, heads, hidden);
}

// The logits of one query, unscaled: for one row, packing the keys takes longer than the products. Zero up to `width`.
template <class T, int64_t DIM>
INLINE void logits_of_one_body(const T* query, const T* keys, int64_t length, int64_t step, int64_t dim, int64_t width,
                               float* out) {
  const int64_t channels = DIM > 0 ? DIM : dim;
  for (int64_t j = 0; j < length; ++j) out[j] = dot(query, keys + j * step, channels);
  std::fill(out + length, out + width, 0.0f);
}

#define LOGITS_OF_ONE(T)                                                                                              \
  FOR_EVERY_PROCESSOR void logits_of_one(const T* query, const T* keys, int64_t length, int64_t step, int64_t dim,   \
                                         int64_t width, float* out) {                                                 \
    if (dim == 64) return logits_of_one_body<T, 64>(query, keys, length, step, dim, width, out); /* unrolled */       \
    logits_of_one_body<T, 0>(query, keys, length, step, dim, width, out);                                             \
  }
LOGITS_OF_ONE(float)
LOGITS_OF_ONE(c10::BFloat16)
LOGITS_OF_ONE(c10::Half)
#undef LOGITS_OF_ONE

// A parameter's numbers in float32; none where there is none.
std::vector<float> numbers_of(const Maybe& parameter) {
  if (!parameter) return {};
  const Tensor rows = in_rows(*parameter);
  std::vector<float> numbers(rows.numel());
  with_type(rows, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    std::transform(data<T>(rows), data<T>(rows) + numbers.size(), numbers.begin(), [](T value) { return load(value); });
  });
  return numbers;
}

}  // namespace

// Column sums (B, H, L) of the softmax of attention logits, over the query rows first, first + stride, …
//
// queries and keys (B, H, L, D), bias (B, L) or none, votes (B, L) or none: the weight of every query row. With expand
// (hidden, H), its bias, reduce (H, hidden) and its bias, of any element type, the logits go through ToSA's selector
// before the softmax.
Tensor column_sums(const Tensor& queries, const Tensor& keys, double scale, const Maybe& bias, const Maybe& votes,
                   int64_t stride, const Maybe& expand, const Maybe& expand_bias, const Maybe& reduce,
                   const Maybe& reduce_bias, bool logarithm) {
  const int64_t batch = keys.size(0), heads = keys.size(1), length = keys.size(2), dim = keys.size(3);
  const int64_t width = round_up(length, LANES), hidden = expand ? expand->size(0) : 0;
  Tensor out = new_float(keys, {batch, heads, length});
  float* result = out_data<float>(out);
  const std::vector<float> expands = numbers_of(expand), expand_biases = numbers_of(expand_bias);
  const std::vector<float> reduces = numbers_of(reduce), reduce_biases = numbers_of(reduce_bias);
  std::vector<float> reduced(hidden * heads);
  for (int64_t h = 0; h < (hidden ? heads : 0); ++h) {
    for (int64_t k = 0; k < hidden; ++k) reduced[k * heads + h] = reduces[h * hidden + k];
  }
  const bool alone = stride >= length;  // only the first query is read
  // The selector mixes the heads of an image; without it every head is work of its own.
  const int64_t together = hidden ? heads : 1;
  const int64_t query_steps[] = {queries.stride(0), queries.stride(1), queries.stride(2)};
  const int64_t key_steps[] = {keys.stride(0), keys.stride(1), keys.stride(2)};
  const float* own_bias = bias ? data<float>(*bias) : nullptr;
  const float* weights = votes ? data<float>(*votes) : nullptr;
  with_type(keys, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    in_parallel(batch * heads / together, 1, [&](int64_t begin, int64_t end) {
      const Cells<T> kind_of_cells(dim);
      std::vector<Packed<T>> packed(together);
      Buffer<float> storage;
      float* biases = storage.room(width + together * ROWS * width + ROWS * kind_of_cells.count);
      float* rows = biases + width;
      float* query_cells = rows + together * ROWS * width;
      std::fill_n(biases, width, 0.0f);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task * together / heads, start = task * together % heads;
        if (own_bias) std::copy_n(own_bias + b * length, length, biases);
        for (int64_t h = 0; h < (alone ? 0 : together); ++h) {
          const T* head = data<T>(keys) + b * key_steps[0] + (start + h) * key_steps[1];
          packed[h].pack(length, dim, [&](int64_t j) { return head + j * key_steps[2]; });
        }
        std::fill_n(result + (b * heads + start) * length, together * length, 0.0f);
        for (int64_t first = 0; first < length; first += ROWS * stride) {
          const int64_t count = std::min(ROWS, (length - first + stride - 1) / stride);
          for (int64_t h = 0; h < together; ++h) {
            const T* query = data<T>(queries) + b * query_steps[0] + (start + h) * query_steps[1];
            float* const logits = rows + h * ROWS * width;
            if (alone) {
              const T* head = data<T>(keys) + b * key_steps[0] + (start + h) * key_steps[1];
              logits_of_one(query, head, length, key_steps[2], dim, width, logits);
              scale_row(logits, static_cast<float>(scale), biases, width);
              continue;
            }
            for (int64_t r = 0; r < count; ++r) {
              const T* row = query + (first + r * stride) * query_steps[2];
              kind_of_cells.fill(row, query_cells + r * kind_of_cells.count);
            }
            // What lies in the cells of rows that are not there is not looked at.
            if (count == 1) {
              packed[h].products_of_one(query_cells, logits);
            } else {
              packed[h].products(query_cells, kind_of_cells.count, length, logits, width);
            }
            for (int64_t r = 0; r < count; ++r) scale_row(logits + r * width, static_cast<float>(scale), biases, width);
          }
          if (hidden) {
            mix_rows(rows, count, width, expands.data(), expand_biases.data(), reduced.data(), reduce_biases.data(),
                     heads, hidden);
          }
          for (int64_t h = 0; h < together; ++h) {
            for (int64_t r = 0; r < count; ++r) {
              const float vote = weights ? weights[b * length + first + r * stride] : 1.0f;
              if (vote == 0.0f) continue;
              add_softmax(rows + (h * ROWS + r) * width, length, vote, logarithm,
                          result + (b * heads + start + h) * length);
            }
          }
        }
      }
    });
  });
  return out;
}

}  // namespace tokensieve
