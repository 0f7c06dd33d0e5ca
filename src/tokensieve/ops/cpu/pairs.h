// The most similar disjoint pairs of one image's rows: what match_pairs in ops/matching.py answers.
#pragma once

#include "best.h"

namespace tokensieve {
namespace {

// One over the length of a row; `scratch` has room for it in float32.
template <class T>
INLINE float inverse_norm_body(const T* row, int64_t dim, float* scratch) {
  for (int64_t d = 0; d < dim; ++d) scratch[d] = load(row[d]);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < dim; ++d) squares += scratch[d] * scratch[d];
  return 1.0f / std::max(std::sqrt(squares), 1e-12f);
}

#define INVERSE_NORM(T)                                                                                               \
  FOR_EVERY_PROCESSOR inline float inverse_norm(const T* row, int64_t dim, float* scratch) {                          \
    return inverse_norm_body<T>(row, dim, scratch);                                                                   \
  }
INVERSE_NORM(float)
INVERSE_NORM(c10::BFloat16)
INVERSE_NORM(c10::Half)
#undef INVERSE_NORM

// One panel of a tile: products to similarities, each of which its row and its column meet. On the diagonal columns
// before `first` met these rows already, nobody meets itself, and the rows of a tile meet each other as rows only.
template <bool DIAGONAL>
INLINE void meet_panel(float* products, int64_t step, const float* inverse, int64_t first, int64_t column, Best* rows,
                       Best* columns) {
  const Places place = places_from(column);
  const Lanes scale = *reinterpret_cast<const Lanes*>(inverse + column);
  Best below = columns[column / LANES];
#pragma GCC unroll 8
  for (int64_t r = 0; r < ROWS; ++r) {
    const int32_t self = static_cast<int32_t>(first + r);
    Lanes* const stored = reinterpret_cast<Lanes*>(products + r * step + column);
    const Lanes value = *stored * inverse[self] * scale;
    *stored = value;
    if (DIAGONAL) {
      const Places shown = (place >= static_cast<int32_t>(first)) & (place != self);
      const Places behind = place >= static_cast<int32_t>(first + ROWS);
      rows[r].meet(shown ? value : NOBODY.value, place);
      below.meet(behind ? value : NOBODY.value, Places{} + self);
    } else {
      rows[r].meet(value, place);
      below.meet(value, Places{} + self);
    }
  }
  columns[column / LANES] = below;
}

// A tile of products of the rows from `first` on, to similarities in place; `best` and `where` of each of its rows.
FOR_EVERY_PROCESSOR inline void meet_tile(float* products, int64_t step, const float* inverse, int64_t first,
                                          int64_t width, Best* columns, float* best, int32_t* where) {
  Best rows[ROWS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < ROWS; ++r) rows[r] = NOBODY;
  int64_t column = first / LANES * LANES;
  meet_panel<true>(products, step, inverse, first, column, rows, columns);
  for (column += LANES; column < width; column += LANES) {
    meet_panel<false>(products, step, inverse, first, column, rows, columns);
  }
  for (int64_t r = 0; r < ROWS; ++r) best_of_lanes(rows[r], best + r, where + r);
}

// The pairs of one image. Similarities are worked out on one side of the diagonal; the best of a row, on both sides,
// is known when they are.
template <class T>
class Pairs {
 public:
  void start(const T* const* rows, int64_t length, int64_t dim, int64_t stripes) {
    rows_.fill(length, dim, [&](int64_t i) { return rows[i]; });
    rows_.pack();
    length_ = length, width_ = rows_.width(), stripes_ = stripes;
    values_ = matrix_.room(round_up(length, ROWS) * width_);
    inverse_ = floats_.room(3 * width_ + dim);
    closed_ = inverse_ + width_, best_ = closed_ + width_;
    for (int64_t i = 0; i < length; ++i) inverse_[i] = inverse_norm(rows[i], dim, best_ + width_);
    // What is behind the end is not a number there, and never better than anybody.
    std::fill_n(inverse_ + length, width_ - length, std::numeric_limits<float>::quiet_NaN());
    std::fill_n(closed_, length, 0.0f);
    nearest_.resize(width_);
    columns_ = bests_.room(stripes * width_ / LANES);
    std::fill_n(columns_, stripes * width_ / LANES, NOBODY);
  }

  // Every stripes-th tile of rows meets the rows from its own first on.
  void meet(int64_t stripe) {
    for (int64_t first = stripe * ROWS; first < length_; first += stripes_ * ROWS) {
      const int64_t panel = first / LANES;
      float* tile = values_ + first * width_;
      rows_.products_of_panels(rows_.row(first), rows_.cells(), panel, width_ / LANES - panel, tile + panel * LANES,
                               width_);
      meet_tile(tile, width_, inverse_, first, width_, columns_ + stripe * width_ / LANES, best_ + first,
                nearest_.data() + first);
    }
  }

  // After every stripe has met: writes length - pairs leads, and who joins which of them. `own` is the score by which
  // one of a pair leads.
  void choose(const float* own, int64_t pairs, int64_t rounds, int64_t* lead, int64_t* joining, int64_t* onto) {
    join_stripes();
    find(pairs, rounds);
    place_.assign(length_, 0);
    for (int64_t r = 0; r < pairs; ++r) {
      const int64_t low = static_cast<int64_t>(found_[r] & 0xFFFFFFFFu), high = partner_[low];
      const bool swap = own[low] < own[high];
      joining[r] = swap ? low : high;
      onto[r] = swap ? high : low;
      place_[joining[r]] = -1;
    }
    int64_t next = 0;
    for (int64_t i = 0; i < length_; ++i) {
      if (place_[i] < 0) continue;
      lead[next] = i;
      place_[i] = next++;
    }
    for (int64_t r = 0; r < pairs; ++r) onto[r] = place_[onto[r]];
  }

 private:
  // A row's best is the better of what it met as a row and as a column; of equal ones the first.
  void join_stripes() {
    for (int64_t stripe = 0; stripe < stripes_; ++stripe) {
      const Best* const columns = columns_ + stripe * width_ / LANES;
      for (int64_t i = 0; i < length_; ++i) {
        const float value = columns[i / LANES].value[i % LANES];
        const int32_t where = columns[i / LANES].where[i % LANES];
        if (value > best_[i] || (value == best_[i] && where < nearest_[i])) best_[i] = value, nearest_[i] = where;
      }
    }
  }

  // The best of the open ones for a row that lost it.
  void look_again(int64_t i) {
    const int64_t first = i / ROWS * ROWS;
    float best = -INFINITE;
    int64_t nearest = 0;
    for (int64_t k = 0; k < first; ++k) {
      const float value = values_[k * width_ + i] + closed_[k];
      if (value > best) best = value, nearest = k;
    }
    float right;
    int64_t where;
    closed_[i] = -INFINITE;  // nobody pairs with itself
    best_open(values_ + i * width_ + first, closed_ + first, length_ - first, &right, &where);
    closed_[i] = 0.0f;
    if (right > best) best = right, nearest = first + where;
    best_[i] = best, nearest_[i] = static_cast<int32_t>(nearest);
  }

  // The keys of the first `pairs` pairs, from high to low, in `found_`; `partner_` of the lower of each.
  void find(int64_t pairs, int64_t rounds) {
    found_.clear();
    partner_.resize(length_);
    mutual_.resize(length_);
    float enough = -INFINITE;  // who can only get worse than so many pairs need not look again
    int64_t open = length_;
    for (int64_t round = 0; round < rounds && open > 1 && pairs > 0; ++round) {
      for (int64_t i = 0; round > 0 && i < length_; ++i) {
        if (closed_[i] == 0.0f && closed_[nearest_[i]] != 0.0f && !(best_[i] < enough)) look_again(i);
      }
      for (int64_t i = 0; i < length_; ++i) {
        const int64_t j = nearest_[i];
        mutual_[i] = closed_[i] == 0.0f && best_[i] > -INFINITE && closed_[j] == 0.0f && nearest_[j] == i;
      }
      for (int64_t i = 0; i < length_; ++i) {
        if (!mutual_[i]) continue;
        closed_[i] = -INFINITE;
        --open;
        if (nearest_[i] > i) {
          found_.push_back(descending_key(best_[i], static_cast<uint32_t>(i)));
          partner_[i] = nearest_[i];
        }
      }
      if (static_cast<int64_t>(found_.size()) >= pairs) {
        std::nth_element(found_.begin(), found_.begin() + (pairs - 1), found_.end());
        enough = best_[found_[pairs - 1] & 0xFFFFFFFFu];
      }
    }
    std::sort(found_.begin(), found_.begin() + std::min<int64_t>(pairs, found_.size()));
    // What is left pairs up by position, behind all others.
    int64_t waiting = -1;
    for (int64_t i = 0; i < length_ && static_cast<int64_t>(found_.size()) < pairs; ++i) {
      if (closed_[i] != 0.0f) continue;
      if (waiting >= 0) {
        found_.push_back(static_cast<uint64_t>(waiting));
        partner_[waiting] = i;
      }
      waiting = waiting < 0 ? i : -1;
    }
  }

  Packed<T> rows_;
  Buffer<float> matrix_, floats_;
  Buffer<Best> bests_;
  Best* columns_ = nullptr;
  float *values_ = nullptr, *inverse_ = nullptr, *closed_ = nullptr, *best_ = nullptr;
  int64_t length_ = 0, width_ = 0, stripes_ = 1;
  std::vector<int32_t> nearest_;
  std::vector<int64_t> partner_, place_;
  std::vector<char> mutual_;
  std::vector<uint64_t> found_;
};

}  // namespace
}  // namespace tokensieve
