// Density-peak clustering from the inner products of the features.
#include "common.h"

#include <algorithm>

namespace tokensieve {
namespace {

// Row i of the squared distances ‖x_i‖² + ‖x_j‖² − 2 x_i·x_j over the number of channels, in place of the inner products.
// One side of the diagonal, mirrored: rounding must not tell x_i to x_j from x_j to x_i, nor x_i from itself.
FOR_EVERY_PROCESSOR void distance_row(float* matrix, const float* norms, int64_t i, int64_t length, float per_channel,
                                      float* sum, float* largest) {
  float* row = matrix + i * length;
  const float own = norms[i];
  for (int64_t j = 0; j < i; ++j) row[j] = matrix[j * length + i];
  row[i] = 0.0f;
  for (int64_t j = i + 1; j < length; ++j) {
    const float value = (own + norms[j] - 2.0f * row[j]) * per_channel;
    row[j] = value > 0.0f ? value : 0.0f;
  }
  float total = 0.0f, highest = 0.0f;
#pragma omp simd reduction(+ : total) reduction(max : highest)
  for (int64_t j = 0; j < length; ++j) {
    total += row[j];
    highest = row[j] > highest ? row[j] : highest;
  }
  *sum = total;
  *largest = highest;
}

// The smallest distance to a denser token; of equally dense ones the earlier is denser.
FOR_EVERY_PROCESSOR float nearest_denser(const float* distances, const float* density, int64_t own, int64_t length) {
  const float mine = density[own];
  float nearest = INFINITE;
#pragma omp simd reduction(min : nearest)
  for (int64_t j = 0; j < own; ++j) {
    const float value = density[j] >= mine ? distances[j] : INFINITE;
    nearest = value < nearest ? value : nearest;
  }
#pragma omp simd reduction(min : nearest)
  for (int64_t j = own + 1; j < length; ++j) {
    const float value = density[j] > mine ? distances[j] : INFINITE;
    nearest = value < nearest ? value : nearest;
  }
  return nearest;
}

}  // namespace

// products (B, M, M) float32 of features with `channels` channels, overwritten with their squared distances, to
// centres, others and onto; see density_peaks in ops/density.py. `neighbours` is 0 for a density over all tokens.
std::tuple<Tensor, Tensor, Tensor> density_peaks(Tensor products, int64_t channels, int64_t clusters,
                                                 int64_t neighbours) {
  const int64_t batch = products.size(0), length = products.size(1), rest = length - clusters;
  Tensor centres = new_int64(products, {batch, clusters}), others = new_int64(products, {batch, rest});
  Tensor onto = new_int64(products, {batch, rest});
  int64_t* centre = out_data<int64_t>(centres);
  int64_t* other = out_data<int64_t>(others);
  int64_t* joins = out_data<int64_t>(onto);
  float* all = out_data<float>(products);
  const float per_channel = 1.0f / static_cast<float>(channels);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> norms(length), density(length), near;
    std::vector<uint64_t> order(length);
    std::vector<char> leads(length);
    for (int64_t b = begin; b < end; ++b) {
      float* distances = all + b * length * length;
      for (int64_t i = 0; i < length; ++i) norms[i] = distances[i * length + i];
      float largest = 0.0f;
      for (int64_t i = 0; i < length; ++i) {
        float* row = distances + i * length;
        float sum, highest;
        distance_row(distances, norms.data(), i, length, per_channel, &sum, &highest);
        largest = highest > largest ? highest : largest;
        if (neighbours > 0) {
          near.assign(row, row + length);
          near.erase(near.begin() + i);
          std::nth_element(near.begin(), near.begin() + (neighbours - 1), near.end());
          sum = 0.0f;
          for (int64_t k = 0; k < neighbours; ++k) sum += near[k];
          density[i] = std::exp(-sum / static_cast<float>(neighbours));
        } else {
          density[i] = std::exp(-sum / static_cast<float>(length));
        }
      }
      largest = std::sqrt(largest);
      for (int64_t i = 0; i < length; ++i) {
        const float nearest = std::sqrt(nearest_denser(distances + i * length, density.data(), i, length));
        const float delta = nearest < largest ? nearest : largest;
        order[i] = descending_key(density[i] * delta, static_cast<uint32_t>(i));
      }
      std::fill(leads.begin(), leads.end(), 0);
      std::nth_element(order.begin(), order.begin() + (clusters - 1), order.end());
      for (int64_t c = 0; c < clusters; ++c) leads[order[c] & 0xFFFFFFFFu] = 1;
      int64_t* a = centre + b * clusters;
      int64_t* z = other + b * rest;
      for (int64_t i = 0; i < length; ++i) *(leads[i] ? a++ : z++) = i;
      a = centre + b * clusters;
      z = other + b * rest;
      for (int64_t r = 0; r < rest; ++r) {
        const float* row = distances + z[r] * length;
        int64_t best = 0;
        for (int64_t c = 1; c < clusters; ++c) {
          if (row[a[c]] < row[a[best]]) best = c;
        }
        joins[b * rest + r] = best;
      }
    }
  });
  return {centres, others, onto};
}

}  // namespace tokensieve
