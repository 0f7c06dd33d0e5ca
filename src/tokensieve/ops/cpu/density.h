// Density peaks of one image's rows, a tile of distances at a time: what density_peaks in ops/density.py answers.
#pragma once

#include "packed.h"

namespace tokensieve {
namespace {

// The squared distance over the number of channels: ‖x_i‖² + ‖x_j‖² − 2 x_i·x_j, never negative.
INLINE float distance(float product, float own, float norm, float per_channel) {
  const float value = (own + norm - 2.0f * product) * per_channel;
  return value > 0.0f ? value : 0.0f;
}

// A row of products to distances in place; returns where the first of the smallest lies.
FOR_EVERY_PROCESSOR inline int64_t to_distances(float* row, float own, const float* norms, int64_t length,
                                                float per_channel) {
  float low = INFINITE;
#pragma omp simd reduction(min : low)
  for (int64_t j = 0; j < length; ++j) {
    row[j] = distance(row[j], own, norms[j], per_channel);
    low = row[j] < low ? row[j] : low;
  }
  int64_t found = 0;
  while (found < length && row[found] != low) ++found;
  return found;
}

// The smallest and the largest distance of a row of products; infinity and zero of an empty one.
FOR_EVERY_PROCESSOR inline void extremes(const float* row, float own, const float* norms, int64_t length,
                                         float per_channel, float* smallest, float* largest) {
  float low = INFINITE, high = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t j = 0; j < length; ++j) {
    const float value = distance(row[j], own, norms[j], per_channel);
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  *smallest = low;
  *largest = high;
}

// Adds a row to `sums` and returns the sum of its squares; `scratch` has room for it in float32.
template <class T>
INLINE double add_and_square_body(const T* row, int64_t length, double* sums, float* scratch) {
  for (int64_t j = 0; j < length; ++j) scratch[j] = load(row[j]);
  double squares = 0.0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < length; ++j) {
    const double value = scratch[j];
    sums[j] += value;
    squares += value * value;
  }
  return squares;
}

template <class T>
INLINE double inner_body(const T* row, const double* other, int64_t length, float* scratch) {
  for (int64_t j = 0; j < length; ++j) scratch[j] = load(row[j]);
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < length; ++j) sum += static_cast<double>(scratch[j]) * other[j];
  return sum;
}

#define SUMS(T)                                                                                                       \
  FOR_EVERY_PROCESSOR inline double add_and_square(const T* row, int64_t length, double* sums, float* scratch) {      \
    return add_and_square_body<T>(row, length, sums, scratch);                                                        \
  }                                                                                                                   \
  FOR_EVERY_PROCESSOR inline double inner(const T* row, const double* other, int64_t length, float* scratch) {        \
    return inner_body<T>(row, other, length, scratch);                                                                \
  }
SUMS(float)
SUMS(c10::BFloat16)
SUMS(c10::Half)
#undef SUMS

// The clusters of one image. Positions in `tokens` and `norms` follow the order of falling density.
template <class T>
class Peaks {
 public:
  // The density is the one over the `neighbours` nearest, or over all where that is 0.
  void start(const T* const* rows, int64_t length, int64_t dim, int64_t neighbours, int64_t stripes) {
    rows_ = rows, length_ = length, dim_ = dim;
    per_channel_ = 1.0f / static_cast<float>(dim);
    density_.resize(length), norm_of_.resize(length), nearest_.resize(length), order_.resize(length);
    largest_.assign(stripes, 0.0f);
    neighbours > 0 ? density_over(neighbours) : density_over_all();
    sort();
  }

  // δ of every token of one stripe: rows meet the columns of denser tokens only, so each pair is met once.
  void find_nearest(int64_t stripe) {
    const int64_t width = tokens_.width(), stripes = static_cast<int64_t>(largest_.size());
    Buffer<float> storage;
    float* products = storage.room(ROWS * width);
    float highest = 0.0f;
    for (int64_t first = stripe * ROWS; first < length_; first += stripes * ROWS) {
      const int64_t last = std::min(first + ROWS, length_);
      tokens_.products(tokens_.row(first), tokens_.cells(), last, products, width);
      for (int64_t i = first; i < last; ++i) {
        float largest;
        extremes(products + (i - first) * width, norms_[i], norms_.data(), i, per_channel_, &nearest_[i], &largest);
        highest = std::max(highest, largest);
      }
    }
    largest_[stripe] = highest;
  }

  // After every stripe has found: writes the centres and the other tokens, each ascending.
  void choose(int64_t clusters, int64_t* centre, int64_t* other) {
    const float farthest = std::sqrt(*std::max_element(largest_.begin(), largest_.end()));
    keys_.resize(length_);
    for (int64_t place = 0; place < length_; ++place) {
      const float delta = std::min(std::sqrt(nearest_[place]), farthest);
      keys_[place] = descending_key(density_[order_[place]] * delta, static_cast<uint32_t>(order_[place]));
    }
    leads_.assign(length_, 0);
    std::nth_element(keys_.begin(), keys_.begin() + (clusters - 1), keys_.end());
    for (int64_t c = 0; c < clusters; ++c) leads_[keys_[c] & 0xFFFFFFFFu] = 1;
    const int64_t* const first = centre;
    for (int64_t i = 0; i < length_; ++i) *(leads_[i] ? centre++ : other++) = i;
    if (clusters == length_) return;
    centres_.pack(clusters, dim_, [&](int64_t c) { return rows_[first[c]]; });
    centre_norms_.resize(clusters);
    for (int64_t c = 0; c < clusters; ++c) centre_norms_[c] = norm_of_[first[c]];
  }

  // The nearest centre of some of the others.
  void join(const int64_t* other, int64_t begin, int64_t end, int64_t* onto) const {
    const Cells<T> kind(dim_);
    const int64_t clusters = centres_.length(), width = centres_.width();
    Buffer<float> storage[2];
    float* cells = storage[0].room(ROWS * kind.count);
    float* products = storage[1].room(ROWS * width);
    std::fill_n(cells, ROWS * kind.count, 0.0f);
    for (int64_t first = begin; first < end; first += ROWS) {
      const int64_t count = std::min(ROWS, end - first);
      for (int64_t r = 0; r < count; ++r) kind.fill(rows_[other[first + r]], cells + r * kind.count);
      centres_.products(cells, kind.count, clusters, products, width);
      for (int64_t r = 0; r < count; ++r) {
        const float norm = norm_of_[other[first + r]];
        onto[first + r] = to_distances(products + r * width, norm, centre_norms_.data(), clusters, per_channel_);
      }
    }
  }

 private:
  // Σ_j ‖x_i − x_j‖² = M·‖x_i‖² − 2 x_i·Σx + Σ‖x‖²: no distances between tokens are needed.
  // In double precision, so that rounding to float leaves tied densities tied.
  void density_over_all() {
    sums_.assign(dim_ + length_, 0.0);
    scratch_.resize(dim_);
    double* const squares = sums_.data() + dim_;
    double total = 0.0;
    for (int64_t i = 0; i < length_; ++i) {
      squares[i] = add_and_square(rows_[i], dim_, sums_.data(), scratch_.data());
      total += squares[i];
    }
    const double every = static_cast<double>(length_);
    for (int64_t i = 0; i < length_; ++i) {
      const double sums = every * squares[i] - 2.0 * inner(rows_[i], sums_.data(), dim_, scratch_.data()) + total;
      density_[i] = std::exp(-static_cast<float>(std::max(sums, 0.0) / (every * static_cast<double>(dim_))));
    }
  }

  void density_over(int64_t neighbours) {
    pack([&](int64_t i) { return rows_[i]; });
    const int64_t width = tokens_.width();
    Buffer<float> storage;
    float* distances = storage.room(ROWS * width);
    std::vector<float> near;
    for (int64_t first = 0; first < length_; first += ROWS) {
      tokens_.products(tokens_.row(first), tokens_.cells(), length_, distances, width);
      for (int64_t i = first; i < std::min(first + ROWS, length_); ++i) {
        float* row = distances + (i - first) * width;
        to_distances(row, norms_[i], norms_.data(), length_, per_channel_);
        near.assign(row, row + length_);
        near.erase(near.begin() + i);
        std::nth_element(near.begin(), near.begin() + (neighbours - 1), near.end());
        float sum = 0.0f;
        for (int64_t k = 0; k < neighbours; ++k) sum += near[k];
        density_[i] = std::exp(-sum / static_cast<float>(neighbours));
      }
    }
  }

  // Tokens by falling density, equally dense ones by index; then packed in that order.
  void sort() {
    keys_.resize(length_);
    for (int64_t i = 0; i < length_; ++i) keys_[i] = descending_key(density_[i], static_cast<uint32_t>(i));
    std::sort(keys_.begin(), keys_.end());
    for (int64_t place = 0; place < length_; ++place) order_[place] = static_cast<int64_t>(keys_[place] & 0xFFFFFFFFu);
    pack([&](int64_t place) { return rows_[order_[place]]; });
    for (int64_t place = 0; place < length_; ++place) norm_of_[order_[place]] = norms_[place];
  }

  // With ‖x_i‖² added up as the products are, so that equal tokens are at distance zero.
  template <class Row>
  void pack(const Row& row) {
    tokens_.fill(length_, dim_, row);
    tokens_.pack();
    norms_.resize(length_);
    alignas(64) float tile[ROWS * LANES];
    for (int64_t first = 0; first < length_; first += ROWS) {
      tokens_.products_of_panels(tokens_.row(first), tokens_.cells(), first / LANES, 1, tile, LANES);
      for (int64_t i = first; i < std::min(first + ROWS, length_); ++i) {
        norms_[i] = tile[(i - first) * LANES + i % LANES];
      }
    }
  }

  const T* const* rows_ = nullptr;
  int64_t length_ = 0, dim_ = 0;
  float per_channel_ = 0.0f;
  Packed<T> tokens_, centres_;
  std::vector<float> density_, norms_, norm_of_, centre_norms_, nearest_, largest_;  // density_ and norm_of_ by token
  std::vector<int64_t> order_;
  std::vector<uint64_t> keys_;
  std::vector<char> leads_;
  std::vector<double> sums_;
  std::vector<float> scratch_;
};

}  // namespace
}  // namespace tokensieve
