// Agglomerative clustering from distances, one image at a time with the nearest neighbour of every cluster remembered.
#include "common.h"

namespace tokensieve {
namespace {

// The nearest of the clusters behind `row` in order, the first of equally near ones.
INLINE void find_nearest(const float* distances, int64_t row, int64_t length, int64_t* nearest, float* value) {
  const float* from = distances + row * length;
  float lowest = INFINITE;
  int64_t best = -1;
  for (int64_t j = row + 1; j < length; ++j) {
    if (from[j] < lowest) {
      lowest = from[j];
      best = j;
    }
  }
  nearest[row] = best;
  value[row] = lowest;
}

// Distances of the joined cluster i to all others, as the linkage says, in row i.
FOR_EVERY_PROCESSOR void join_rows(float* left, const float* right, float first, float second, int64_t linkage,
                                   int64_t length) {
  const float share = first / (first + second), rest = second / (first + second);
  if (linkage == 0) {
    for (int64_t k = 0; k < length; ++k) left[k] = right[k] < left[k] ? right[k] : left[k];
  } else if (linkage == 1) {
    for (int64_t k = 0; k < length; ++k) left[k] = right[k] > left[k] ? right[k] : left[k];
  } else {
    for (int64_t k = 0; k < length; ++k) left[k] = share * left[k] + rest * right[k];
  }
}

}  // namespace

// distances (B, M, M) float32, symmetric, overwritten, to group numbers (B, M); see agglomerate in ops/agglomerative.py.
// `linkage` is 0 for single, 1 for complete and 2 for average.
Tensor agglomerate(Tensor distances, int64_t clusters, int64_t linkage) {
  const int64_t batch = distances.size(0), length = distances.size(1);
  Tensor groups = new_int64(distances, {batch, length});
  float* all = out_data<float>(distances);
  int64_t* out = out_data<int64_t>(groups);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> nearest(length), leader(length), number(length);
    std::vector<float> value(length), size(length);
    std::vector<char> present(length);
    for (int64_t b = begin; b < end; ++b) {
      float* matrix = all + b * length * length;
      for (int64_t i = 0; i < length; ++i) {
        find_nearest(matrix, i, length, nearest.data(), value.data());
        leader[i] = i;
        size[i] = 1.0f;
        present[i] = 1;
      }
      for (int64_t left = length; left > clusters; --left) {
        int64_t i = -1;
        for (int64_t k = 0; k < length; ++k) {
          if (present[k] && nearest[k] >= 0 && (i < 0 || value[k] < value[i])) i = k;
        }
        if (i < 0) break;  // only distances that are no numbers are left
        const int64_t j = nearest[i];
        join_rows(matrix + i * length, matrix + j * length, size[i], size[j], linkage, length);
        size[i] += size[j];
        present[j] = 0;
        for (int64_t k = 0; k < length; ++k) {
          if (leader[k] == j) leader[k] = i;
          matrix[k * length + j] = INFINITE;
          if (present[k]) matrix[k * length + i] = matrix[i * length + k];
        }
        matrix[i * length + i] = INFINITE;
        for (int64_t k = 0; k < i; ++k) {
          if (!present[k]) continue;
          const float now = matrix[k * length + i];
          if (nearest[k] == i || nearest[k] == j) {
            find_nearest(matrix, k, length, nearest.data(), value.data());
          } else if (now < value[k] || (now == value[k] && i < nearest[k])) {
            nearest[k] = i;
            value[k] = now;
          }
        }
        for (int64_t k = i + 1; k < j; ++k) {
          if (present[k] && nearest[k] == j) find_nearest(matrix, k, length, nearest.data(), value.data());
        }
        find_nearest(matrix, i, length, nearest.data(), value.data());
      }
      int64_t count = 0;
      for (int64_t k = 0; k < length; ++k) {
        if (leader[k] == k) number[k] = count++;
        out[b * length + k] = number[leader[k]];
      }
    }
  });
  return groups;
}

}  // namespace tokensieve
