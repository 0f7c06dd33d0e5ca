// Density-peak clustering of features, a tile of distances at a time: no matrix of them is held.
#include "packed.h"

namespace tokensieve {
namespace {

constexpr int64_t STRIPES = 8;  // parts of an image, where there are few images for the threads

// products to squared distances over the number of channels: ‖x_i‖² + ‖x_j‖² − 2 x_i·x_j, never negative.
FOR_EVERY_PROCESSOR void to_distances(float* products, float own, const float* norms, int64_t length, float per_channel) {
  for (int64_t j = 0; j < length; ++j) {
    const float value = (own + norms[j] - 2.0f * products[j]) * per_channel;
    products[j] = value > 0.0f ? value : 0.0f;
  }
}

FOR_EVERY_PROCESSOR void extremes(const float* values, int64_t length, float* smallest, float* largest) {
  float low = INFINITE, high = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t j = 0; j < length; ++j) {
    low = values[j] < low ? values[j] : low;
    high = values[j] > high ? values[j] : high;
  }
  *smallest = low;
  *largest = high;
}

// Adds a row to `sums` and returns the sum of its squares.
FOR_EVERY_PROCESSOR double add_and_square(const float* row, int64_t length, double* sums) {
  double squares = 0.0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < length; ++j) {
    const double value = row[j];
    sums[j] += value;
    squares += value * value;
  }
  return squares;
}

FOR_EVERY_PROCESSOR double inner(const float* row, const double* other, int64_t length) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < length; ++j) sum += static_cast<double>(row[j]) * other[j];
  return sum;
}

// What one image needs between the phases. Positions in `tokens` and `norms` follow the order of falling density.
template <class T>
struct Peaks {
  Packed<T> tokens, centres;
  std::vector<float> density, norms, norm_of, centre_norms, nearest, largest;  // `density`, `norm_of`: by token
  std::vector<int64_t> order;

  const T* features;
  int64_t length, dim, step;
  float per_channel;

  void start(const T* first, int64_t count, int64_t channels, int64_t row_step) {
    features = first, length = count, dim = channels, step = row_step;
    per_channel = 1.0f / static_cast<float>(dim);
    density.resize(length), norm_of.resize(length), nearest.resize(length), order.resize(length), largest.assign(STRIPES, 0.0f);
  }

  // Σ_j ‖x_i − x_j‖² = M·‖x_i‖² − 2 x_i·Σx + Σ‖x‖²: no distances between tokens are needed.
  // In double precision, so that rounding to float leaves tied densities tied.
  void density_over_all() {
    std::vector<double> sum(dim, 0.0), squares(length);
    std::vector<float> row(dim);
    double total = 0.0;
    for (int64_t i = 0; i < length; ++i) {
      squares[i] = add_and_square(as_float(i, row.data()), dim, sum.data());
      total += squares[i];
    }
    const double every = static_cast<double>(length);
    for (int64_t i = 0; i < length; ++i) {
      const double sums = every * squares[i] - 2.0 * inner(as_float(i, row.data()), sum.data(), dim) + total;
      density[i] = std::exp(-static_cast<float>(std::max(sums, 0.0) / (every * static_cast<double>(dim))));
    }
    sort();
  }

  void density_over(int64_t neighbours) {
    pack([&](int64_t i) { return features + i * step; });
    const int64_t width = tokens.width();
    Buffer<float> storage;
    float* distances = storage.room(ROWS * width);
    std::vector<float> near;
    for (int64_t first = 0; first < length; first += ROWS) {
      tokens.products(tokens.row(first), tokens.cells(), length, distances, width);
      for (int64_t i = first; i < std::min(first + ROWS, length); ++i) {
        float* row = distances + (i - first) * width;
        to_distances(row, norms[i], norms.data(), length, per_channel);
        near.assign(row, row + length);
        near.erase(near.begin() + i);
        std::nth_element(near.begin(), near.begin() + (neighbours - 1), near.end());
        float sum = 0.0f;
        for (int64_t k = 0; k < neighbours; ++k) sum += near[k];
        density[i] = std::exp(-sum / static_cast<float>(neighbours));
      }
    }
    sort();
  }

  // Tokens by falling density, equally dense ones by index; then packed in that order.
  void sort() {
    std::vector<uint64_t> keys(length);
    for (int64_t i = 0; i < length; ++i) keys[i] = descending_key(density[i], static_cast<uint32_t>(i));
    std::sort(keys.begin(), keys.end());
    for (int64_t place = 0; place < length; ++place) order[place] = static_cast<int64_t>(keys[place] & 0xFFFFFFFFu);
    pack([&](int64_t place) { return features + order[place] * step; });
    for (int64_t place = 0; place < length; ++place) norm_of[order[place]] = norms[place];
  }

  // δ of every token of one stripe: rows meet the columns of denser tokens only, so each pair is met once.
  void find_nearest(int64_t stripe, int64_t stripes) {
    const int64_t width = tokens.width();
    Buffer<float> storage;
    float* distances = storage.room(ROWS * width);
    float highest = 0.0f;
    for (int64_t first = stripe * ROWS; first < length; first += stripes * ROWS) {
      tokens.products(tokens.row(first), tokens.cells(), std::min(first + ROWS, length), distances, width);
      for (int64_t i = first; i < std::min(first + ROWS, length); ++i) {
        float* row = distances + (i - first) * width;
        float smallest, largest_here;
        to_distances(row, norms[i], norms.data(), i, per_channel);
        extremes(row, i, &smallest, &largest_here);
        nearest[i] = smallest;
        highest = std::max(highest, largest_here);
      }
    }
    largest[stripe] = highest;
  }

  void choose(int64_t clusters, int64_t* centre, int64_t* other) {
    const float farthest = std::sqrt(*std::max_element(largest.begin(), largest.end()));
    std::vector<uint64_t> keys(length);
    for (int64_t place = 0; place < length; ++place) {
      const float delta = std::min(std::sqrt(nearest[place]), farthest);
      keys[place] = descending_key(density[order[place]] * delta, static_cast<uint32_t>(order[place]));
    }
    std::vector<char> leads(length, 0);
    std::nth_element(keys.begin(), keys.begin() + (clusters - 1), keys.end());
    for (int64_t c = 0; c < clusters; ++c) leads[keys[c] & 0xFFFFFFFFu] = 1;
    const int64_t* const first = centre;
    for (int64_t i = 0; i < length; ++i) *(leads[i] ? centre++ : other++) = i;
    if (clusters == length) return;
    centres.fill(clusters, dim, [&](int64_t c) { return features + first[c] * step; });
    centres.pack();
    centre_norms = norms_of(centres);
  }

  // The nearest centre of some of the others.
  void join(const int64_t* other, int64_t begin, int64_t end, int64_t* onto) {
    const Cells<T> kind(dim);
    const int64_t clusters = centres.length(), width = centres.width();
    Buffer<float> rows_storage, storage;
    float* rows = rows_storage.room(ROWS * kind.count);
    float* distances = storage.room(ROWS * width);
    std::fill_n(rows, ROWS * kind.count, 0.0f);
    for (int64_t first = begin; first < end; first += ROWS) {
      const int64_t count = std::min(ROWS, end - first);
      for (int64_t r = 0; r < count; ++r) kind.fill(features + other[first + r] * step, rows + r * kind.count);
      centres.products(rows, kind.count, clusters, distances, width);
      for (int64_t r = 0; r < count; ++r) {
        float* row = distances + r * width;
        to_distances(row, norm_of[other[first + r]], centre_norms.data(), clusters, per_channel);
        float smallest, largest_here;
        extremes(row, clusters, &smallest, &largest_here);
        onto[first + r] = std::find(row, row + clusters, smallest) - row;
      }
    }
  }

 private:
  template <class Row>
  void pack(const Row& row) {
    tokens.fill(length, dim, row);
    tokens.pack();
    norms = norms_of(tokens);
  }

  const float* as_float(int64_t i, float* scratch) const {
    if constexpr (std::is_same_v<T, float>) return features + i * step;
    for (int64_t d = 0; d < dim; ++d) scratch[d] = load(features[i * step + d]);
    return scratch;
  }

  // ‖x_i‖² added up as the products are, so that equal tokens are at distance zero.
  std::vector<float> norms_of(const Packed<T>& packed) {
    std::vector<float> out(packed.length());
    alignas(64) float tile[ROWS * WIDTH];
    for (int64_t first = 0; first < packed.length(); first += ROWS) {
      packed.products_of_panels(packed.row(first), packed.cells(), first / WIDTH, 1, tile, WIDTH);
      for (int64_t i = first; i < std::min(first + ROWS, packed.length()); ++i) {
        out[i] = tile[(i - first) * WIDTH + i % WIDTH];
      }
    }
    return out;
  }
};

}  // namespace

// features (B, M, C) to centres, others and onto; see density_peaks in ops/density.py. `neighbours` is 0 for a density
// over all tokens.
std::tuple<Tensor, Tensor, Tensor> density_peaks(const Tensor& features, int64_t clusters, int64_t neighbours) {
  const int64_t batch = features.size(0), length = features.size(1), rest = length - clusters;
  Tensor centres = new_int64(features, {batch, clusters}), others = new_int64(features, {batch, rest});
  Tensor onto = new_int64(features, {batch, rest});
  int64_t* centre = out_data<int64_t>(centres);
  int64_t* other = out_data<int64_t>(others);
  int64_t* joins = out_data<int64_t>(onto);
  const int64_t stripes = batch == 1 && length > 256 ? STRIPES : 1;
  with_type(features, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* values = data<T>(features);
    std::vector<Peaks<T>> images(stripes > 1 ? batch : 0);
    const auto prepare = [&](Peaks<T>& image, int64_t b) {
      image.start(values + b * features.stride(0), length, features.size(2), features.stride(1));
      neighbours > 0 ? image.density_over(neighbours) : image.density_over_all();
    };
    const auto stripe_of_others = [&](Peaks<T>& image, int64_t b, int64_t stripe) {
      image.join(other + b * rest, rest * stripe / stripes, rest * (stripe + 1) / stripes, joins + b * rest);
    };
    if (stripes == 1) {
      in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
        Peaks<T> image;
        for (int64_t b = begin; b < end; ++b) {
          prepare(image, b);
          image.find_nearest(0, 1);
          image.choose(clusters, centre + b * clusters, other + b * rest);
          if (rest > 0) stripe_of_others(image, b, 0);
        }
      });
      return;
    }
    prepare(images[0], 0);
    in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) images[0].find_nearest(s, stripes);
    });
    images[0].choose(clusters, centre, other);
    if (rest == 0) return;
    in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) stripe_of_others(images[0], 0, s);
    });
  });
  return {centres, others, onto};
}

}  // namespace tokensieve
