// Matching tokens by similarity: means over heads, ToMe's two halves, BAT's disjoint pairs.
#include "packed.h"

namespace tokensieve {
namespace {

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
    mean_row_body<T>(first, heads, head_step, dim, unit, out);                                                        \
  }
MEAN_ROW(float)
MEAN_ROW(c10::BFloat16)
MEAN_ROW(c10::Half)
#undef MEAN_ROW

// The highest of values[j] + closed[j] and the first j that has it; -infinity and 0 where there is none.
FOR_EVERY_PROCESSOR void best_open(const float* values, const float* closed, int64_t length, float* best,
                                   int64_t* where) {
  float highest = -INFINITE;
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < length; ++j) {
    const float value = values[j] + closed[j];
    highest = value > highest ? value : highest;
  }
  int64_t found = 0;
  if (highest > -INFINITE) {
    while (!(values[found] + closed[found] == highest)) ++found;
  }
  *best = highest;
  *where = found;
}

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
  const int64_t staying = side_a - remove, count = staying + side_b, width = round_up(side_b, WIDTH);
  Tensor keep = new_int64(metric, {batch, count});
  Tensor moved = new_int64(metric, {batch, remove}), onto = new_int64(metric, {batch, remove});
  int64_t* keeps = out_data<int64_t>(keep);
  int64_t* moves = out_data<int64_t>(moved);
  int64_t* targets = out_data<int64_t>(onto);
  std::vector<float> partner_score(batch * side_a);
  std::vector<int64_t> partner(batch * side_a);
  // Few images are cut into stripes of side a, so that every thread has work.
  const int64_t stripes = batch == 1 ? std::max<int64_t>(1, std::min<int64_t>(8, side_a / 64)) : 1;
  with_type(metric, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* values = data<T>(metric);
    in_parallel(batch * stripes, 1, [&](int64_t begin, int64_t end) {
      Buffer<float> storage[3];
      Packed<float> partners;
      float* unit = storage[0].room(side_b * dim);
      float* left = storage[1].room(ROWS * dim);
      float* products = storage[2].room(ROWS * width);
      std::fill_n(left, ROWS * dim, 0.0f);
      const std::vector<float> open(side_b, 0.0f);
      int64_t prepared = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / stripes, stripe = task % stripes;
        const T* image = values + b * metric.stride(0);
        const int64_t step = metric.stride(2), head_step = metric.stride(1);
        if (prepared != b) {
          for (int64_t j = 0; j < side_b; ++j) {
            mean_row(image + (2 * j + 1 - first) * step, heads, head_step, dim, true, unit + j * dim);
          }
          partners.fill(side_b, dim, [&](int64_t j) { return unit + j * dim; });
          partners.pack();
          prepared = b;
        }
        const int64_t from = side_a * stripe / stripes, to = side_a * (stripe + 1) / stripes;
        for (int64_t i = from; i < to; i += ROWS) {
          const int64_t rows = std::min(ROWS, to - i);
          for (int64_t r = 0; r < rows; ++r) {
            mean_row(image + (2 * (i + r) + first) * step, heads, head_step, dim, true, left + r * dim);
          }
          partners.products(left, dim, side_b, products, width);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t place = b * side_a + i + r;
            best_open(products + r * width, open.data(), side_b, &partner_score[place], &partner[place]);
          }
        }
      }
    });
  });
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> order(side_a);
    std::vector<char> moving(side_a);
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t i = 0; i < side_a; ++i) {
        order[i] = descending_key(partner_score[b * side_a + i], static_cast<uint32_t>(i));
      }
      std::partial_sort(order.begin(), order.begin() + remove, order.end());
      std::fill(moving.begin(), moving.end(), 0);
      for (int64_t r = 0; r < remove; ++r) {
        const int64_t i = static_cast<int64_t>(order[r] & 0xFFFFFFFFu);
        moving[i] = 1;
        moves[b * remove + r] = 2 * i + first;
        targets[b * remove + r] = partner[b * side_a + i] + staying;
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

namespace {

FOR_EVERY_PROCESSOR float sum_of_squares(const float* values, int64_t length) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < length; ++d) sum += values[d] * values[d];
  return sum;
}

// out[j] = products[j] · own · inverse[j] for j in [first, length).
FOR_EVERY_PROCESSOR void scale_into(const float* products, float own, const float* inverse, int64_t first,
                                    int64_t length, float* out) {
  for (int64_t j = first; j < length; ++j) out[j] = products[j] * own * inverse[j];
}

// One over the length of a row, as mean_row scales it.
template <class T>
float inverse_norm(const T* row, int64_t dim, float* scratch) {
  mean_row(row, 1, 0, dim, false, scratch);
  return 1.0f / std::max(std::sqrt(sum_of_squares(scratch, dim)), 1e-12f);
}

// The most similar disjoint pairs of one image, from its similarities (K, K); see match_pairs in ops/matching.py.
void pair_up(const float* values, const float* own, int64_t length, int64_t pairs, int64_t rounds, int64_t* lead,
             int64_t* move, int64_t* target) {
  std::vector<float> closed(length), best(length), value(length);
  std::vector<int64_t> nearest(length), partner(length), place(length);
  std::vector<char> stale(length), mutual(length);
  std::vector<uint64_t> order;
  std::vector<std::pair<int64_t, int64_t>> found;
  std::fill(closed.begin(), closed.end(), 0.0f);
  std::fill(stale.begin(), stale.end(), 1);
  found.clear();
  order.clear();
  int64_t open = length;
  for (int64_t round = 0; round < rounds && open > 1; ++round) {
    for (int64_t i = 0; i < length; ++i) {
      if (closed[i] != 0.0f || !stale[i]) continue;
      closed[i] = -INFINITE;  // nobody pairs with itself
      best_open(values + i * length, closed.data(), length, &best[i], &nearest[i]);
      closed[i] = 0.0f;
      stale[i] = 0;
    }
    for (int64_t i = 0; i < length; ++i) {
      mutual[i] = closed[i] == 0.0f && best[i] > -INFINITE && closed[nearest[i]] == 0.0f &&
                  nearest[nearest[i]] == i;
    }
    for (int64_t i = 0; i < length; ++i) {
      if (!mutual[i]) continue;
      closed[i] = -INFINITE;
      --open;
      if (nearest[i] > i) {
        order.push_back(descending_key(best[i], static_cast<uint32_t>(i)));
        partner[i] = nearest[i];
      }
    }
    // Only those whose nearest was taken look again.
    for (int64_t i = 0; i < length; ++i) stale[i] = closed[i] == 0.0f && closed[nearest[i]] != 0.0f;
  }
  std::sort(order.begin(), order.end());
  for (const uint64_t key : order) {
    const int64_t i = static_cast<int64_t>(key & 0xFFFFFFFFu);
    found.emplace_back(i, partner[i]);
  }
  // What is left pairs up by position, behind all others.
  int64_t waiting = -1;
  for (int64_t i = 0; i < length; ++i) {
    if (closed[i] != 0.0f) continue;
    if (waiting < 0) {
      waiting = i;
    } else {
      found.emplace_back(waiting, i);
      waiting = -1;
    }
  }
  std::fill(place.begin(), place.end(), 0);
  for (int64_t r = 0; r < pairs; ++r) {
    const auto [low, high] = found[r];
    const bool swap = own[low] < own[high];
    move[r] = swap ? low : high;
    target[r] = swap ? high : low;
    place[move[r]] = -1;
  }
  int64_t next = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (place[i] < 0) continue;
    lead[next] = i;
    place[i] = next++;
  }
  for (int64_t r = 0; r < pairs; ++r) target[r] = place[target[r]];
}

// Cosine similarities of the rows of one image, worked out on one side of the diagonal and mirrored.
template <class T>
class Similarities {
 public:
  void start(const T* features, int64_t length, int64_t dim, int64_t step) {
    rows_.fill(length, dim, [&](int64_t i) { return features + i * step; });
    rows_.pack();
    inverse_.resize(length);
    std::vector<float> unit(dim);
    for (int64_t i = 0; i < length; ++i) inverse_[i] = inverse_norm(features + i * step, dim, unit.data());
    values_ = matrix_.room(length * length);
  }
  // Every stripes-th tile of rows.
  void fill(int64_t stripe, int64_t stripes) {
    const int64_t length = rows_.length(), width = rows_.width();
    Buffer<float> storage;
    float* tile = storage.room(ROWS * width);
    for (int64_t first = stripe * ROWS; first < length; first += stripes * ROWS) {
      const int64_t count = std::min(ROWS, length - first), panel = first / WIDTH;
      rows_.products_of_panels(rows_.row(first), rows_.cells(), panel, width / WIDTH - panel, tile + panel * WIDTH, width);
      for (int64_t r = 0; r < count; ++r) {
        float* row = values_ + (first + r) * length;
        scale_into(tile + r * width, inverse_[first + r], inverse_.data(), first, length, row);
      }
      for (int64_t j = first + count; j < length; ++j) {
        for (int64_t r = 0; r < count; ++r) values_[j * length + first + r] = values_[(first + r) * length + j];
      }
    }
  }
  const float* values() const { return values_; }

 private:
  Packed<T> rows_;
  Buffer<float> matrix_;
  float* values_ = nullptr;
  std::vector<float> inverse_;
};

}  // namespace

// features (B, K, C) and score (B, K) float32 to disjoint pairs; see match_pairs in ops/matching.py.
std::tuple<Tensor, Tensor, Tensor> match_pairs(const Tensor& features, const Tensor& score, int64_t pairs,
                                               int64_t rounds) {
  const int64_t batch = features.size(0), length = features.size(1), dim = features.size(2), staying = length - pairs;
  Tensor leads = new_int64(score, {batch, staying});
  Tensor moved = new_int64(score, {batch, pairs}), onto = new_int64(score, {batch, pairs});
  int64_t* lead = out_data<int64_t>(leads);
  int64_t* move = out_data<int64_t>(moved);
  int64_t* target = out_data<int64_t>(onto);
  const float* scores = data<float>(score);
  const auto pair_image = [&](const float* values, int64_t b) {
    pair_up(values, scores + b * score.stride(0), length, pairs, rounds, lead + b * staying, move + b * pairs,
            target + b * pairs);
  };
  with_type(features, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* values = data<T>(features);
    if (batch == 1) {
      Similarities<T> similar;
      similar.start(values, length, dim, features.stride(1));
      const int64_t stripes = std::max<int64_t>(1, std::min<int64_t>(8, length / 64));
      in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t stripe = begin; stripe < end; ++stripe) similar.fill(stripe, stripes);
      });
      pair_image(similar.values(), 0);
      return;
    }
    in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
      Similarities<T> similar;
      for (int64_t b = begin; b < end; ++b) {
        similar.start(values + b * features.stride(0), length, dim, features.stride(1));
        similar.fill(0, 1);
        pair_image(similar.values(), b);
      }
    });
  });
  return {leads, moved, onto};
}

}  // namespace tokensieve
