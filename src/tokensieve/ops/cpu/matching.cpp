// Matching tokens by similarity: means over heads, ToMe's two halves, BAT's disjoint pairs.
#include "pairs.h"

namespace tokensieve {
namespace {

constexpr int64_t TILES_APART = 4;  // of side a, which is what is worth packing side b once more for another thread

template <class T>
INLINE void mean_row_body(const T* first, int64_t heads, int64_t head_step, int64_t dim, bool unit, float* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = load(first[d]);
  for (int64_t h = 1; h < heads; ++h) {
    for (int64_t d = 0; d < dim; ++d) out[d] += load(first[h * head_step + d]);
  }
  const float mean = 1.0f / static_cast<float>(heads);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < dim; ++d) {
    out[d] *= mean;
    squares += out[d] * out[d];
  }
  if (!unit) return;
  const float norm = std::sqrt(squares);
  const float factor = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  for (int64_t d = 0; d < dim; ++d) out[d] *= factor;
}

#define MEAN_ROW(T)                                                                                                   \
  FOR_EVERY_PROCESSOR void mean_row(const T* first, int64_t heads, int64_t head_step, int64_t dim, bool unit,        \
                                    float* out) {                                                                     \
    if (dim == 64) return mean_row_body<T>(first, heads, head_step, 64, unit, out); /* unrolled */                    \
    mean_row_body<T>(first, heads, head_step, dim, unit, out);                                                        \
  }
MEAN_ROW(float)
MEAN_ROW(c10::BFloat16)
MEAN_ROW(c10::Half)
#undef MEAN_ROW

}  // namespace

// (B, H, M, D) to the mean over heads, (B, M, D) float32, scaled to length one when `unit`.
Tensor mean_rows(const Tensor& features, bool unit) {
  const int64_t batch = features.size(0), heads = features.size(1), length = features.size(2), dim = features.size(3);
  Tensor out = new_float(features, {batch, length, dim});
  float* result = out_data<float>(out);
  with_type(features, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* values = data<T>(features);
    in_parallel(batch * length, 64, [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        const int64_t b = place / length, m = place % length;
        mean_row(values + b * features.stride(0) + m * features.stride(2), heads, features.stride(1), dim, unit,
                 result + place * dim);
      }
    });
  });
  return out;
}

// metric (B, H, M, D), to what match_halves in ops/matching.py answers. No matrix of similarities is held.
std::tuple<Tensor, Tensor, Tensor> match_halves(const Tensor& metric, int64_t remove, int64_t first) {
  const int64_t batch = metric.size(0), heads = metric.size(1), length = metric.size(2), dim = metric.size(3);
  const int64_t side_b = first ? (length + 1) / 2 : length / 2, side_a = length - side_b;
  const int64_t staying = side_a - remove, count = staying + side_b, width = round_up(side_b, LANES);
  const int64_t tiles = (side_a + ROWS - 1) / ROWS;
  Tensor keep = new_int64(metric, {batch, count});
  Tensor moved = new_int64(metric, {batch, remove}), onto = new_int64(metric, {batch, remove});
  int64_t* keeps = out_data<int64_t>(keep);
  int64_t* moves = out_data<int64_t>(moved);
  int64_t* targets = out_data<int64_t>(onto);
  std::vector<float> score(batch * tiles * ROWS);
  std::vector<int32_t> partner(batch * tiles * ROWS);
  with_type(metric, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* values = data<T>(metric);
    in_parallel(batch * tiles, TILES_APART, [&](int64_t begin, int64_t end) {
      Buffer<float> storage[2];
      Packed<float> partners;
      float* left = storage[0].room(ROWS * dim);
      float* products = storage[1].room(ROWS * width);
      std::fill_n(left, ROWS * dim, 0.0f);
      int64_t prepared = -1;
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t b = tile / tiles, i = tile % tiles * ROWS, rows = std::min(ROWS, side_a - i);
        const T* image = values + b * metric.stride(0);
        const int64_t step = metric.stride(2), head_step = metric.stride(1);
        if (prepared != b) {
          float* unit = partners.open(side_b, dim);
          for (int64_t j = 0; j < side_b; ++j) {
            mean_row(image + (2 * j + 1 - first) * step, heads, head_step, dim, true, unit + j * dim);
          }
          partners.pack();
          prepared = b;
        }
        for (int64_t r = 0; r < rows; ++r) {
          mean_row(image + (2 * (i + r) + first) * step, heads, head_step, dim, true, left + r * dim);
        }
        partners.products(left, dim, side_b, products, width);
        best_of_tile(products, width, side_b, score.data() + tile * ROWS, partner.data() + tile * ROWS);
      }
    });
  });
  in_parallel(batch, 8, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> order(side_a);
    std::vector<char> moving(side_a);
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t i = 0; i < side_a; ++i) {
        order[i] = descending_key(score[b * tiles * ROWS + i], static_cast<uint32_t>(i));
      }
      std::partial_sort(order.begin(), order.begin() + remove, order.end());
      std::fill(moving.begin(), moving.end(), 0);
      for (int64_t r = 0; r < remove; ++r) {
        const int64_t i = static_cast<int64_t>(order[r] & 0xFFFFFFFFu);
        moving[i] = 1;
        moves[b * remove + r] = 2 * i + first;
        targets[b * remove + r] = partner[b * tiles * ROWS + i] + staying;
      }
      int64_t* next = keeps + b * count;
      for (int64_t i = 0; i < side_a; ++i) {
        if (!moving[i]) *next++ = 2 * i + first;
      }
      for (int64_t j = 0; j < side_b; ++j) *next++ = 2 * j + 1 - first;
    }
  });
  return {keep, moved, onto};
}

// features (B, K, C) and score (B, K) float32 to disjoint pairs; see match_pairs in ops/matching.py.
std::tuple<Tensor, Tensor, Tensor> match_pairs(const Tensor& features, const Tensor& score, int64_t pairs,
                                               int64_t rounds) {
  const int64_t batch = features.size(0), length = features.size(1), dim = features.size(2), staying = length - pairs;
  Tensor leads = new_int64(score, {batch, staying});
  Tensor moved = new_int64(score, {batch, pairs}), onto = new_int64(score, {batch, pairs});
  int64_t* lead = out_data<int64_t>(leads);
  int64_t* joining = out_data<int64_t>(moved);
  int64_t* target = out_data<int64_t>(onto);
  const float* scores = data<float>(score);
  with_type(features, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const int64_t stripes = batch == 1 ? std::max<int64_t>(1, std::min<int64_t>(8, length / 64)) : 1;
    in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
      Pairs<T> image;
      std::vector<const T*> rows(length);
      for (int64_t b = begin; b < end; ++b) {
        const T* first = data<T>(features) + b * features.stride(0);
        for (int64_t i = 0; i < length; ++i) rows[i] = first + i * features.stride(1);
        image.start(rows.data(), length, dim, stripes);
        in_parallel(stripes, 1, [&](int64_t from, int64_t to) {
          for (int64_t stripe = from; stripe < to; ++stripe) image.meet(stripe);
        });
        image.choose(scores + b * score.stride(0), pairs, rounds, lead + b * staying, joining + b * pairs,
                     target + b * pairs);
      }
    });
  });
  return {leads, moved, onto};
}

}  // namespace tokensieve
