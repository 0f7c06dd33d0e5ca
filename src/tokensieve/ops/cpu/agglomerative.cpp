// Agglomerative clustering from distances, one image at a time with the nearest neighbour of every cluster remembered.
#include <algorithm>

#include "common.h"

namespace tokensieve {
namespace {

constexpr int64_t LANES = 16;

// The place of the lowest of `from[first .. length)`, the first of equal ones, -1 where all are infinite. `gone` is
// infinite for clusters that have joined another and 0 for the others: their columns need not be overwritten.
FOR_EVERY_PROCESSOR int64_t find_lowest(const float* from, const float* gone, int64_t first, int64_t length,
                                        float* value) {
  float lanes[LANES];
  for (int64_t k = 0; k < LANES; ++k) lanes[k] = INFINITE;
  int64_t j = first;
  for (; j + LANES <= length; j += LANES) {
    for (int64_t k = 0; k < LANES; ++k) {
      const float now = from[j + k] + gone[j + k];
      lanes[k] = now < lanes[k] ? now : lanes[k];
    }
  }
  float lowest = INFINITE;
  for (int64_t k = 0; k < LANES; ++k) lowest = lanes[k] < lowest ? lanes[k] : lowest;
  for (; j < length; ++j) lowest = from[j] + gone[j] < lowest ? from[j] + gone[j] : lowest;
  *value = lowest;
  if (lowest == INFINITE) return -1;
  for (j = first; j + LANES <= length; j += LANES) {
    int32_t hits = 0;
    for (int64_t k = 0; k < LANES; ++k) hits |= from[j + k] + gone[j + k] == lowest;
    if (hits) break;
  }
  while (from[j] + gone[j] != lowest) ++j;
  return j;
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

// Which of the first `length` clusters have another nearest one now that j has joined i, whose distances are `row`.
FOR_EVERY_PROCESSOR void find_stale(const float* row, const float* value, const float* gone, const int32_t* nearest,
                                    int32_t i, int32_t j, int64_t length, int32_t* stale) {
  for (int64_t k = 0; k < length; ++k) {
    const int32_t before = static_cast<int32_t>(k) < i;
    const int32_t closer = (row[k] <= value[k]) | (nearest[k] == i);
    stale[k] = (gone[k] == 0.0f) & ((nearest[k] == j) | (before & closer));
  }
}

// One minus the similarities right of the diagonal, mirrored, in blocks that stay in the first cache.
FOR_EVERY_PROCESSOR void mirror(const float* similarities, float* distances, int64_t length) {
  for (int64_t top = 0; top < length; top += LANES) {
    for (int64_t left = top; left < length; left += LANES) {
      const int64_t bottom = std::min(top + LANES, length), right = std::min(left + LANES, length);
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = std::max(left, i + 1); j < right; ++j) {
          const float distance = 1.0f - similarities[i * length + j];
          distances[i * length + j] = distance;
          distances[j * length + i] = distance;
        }
      }
    }
    for (int64_t i = top; i < std::min(top + LANES, length); ++i) distances[i * length + i] = 0.0f;
  }
}

}  // namespace

// similarities (B, M, M) float32 to distances; see distances_between in ops/agglomerative.py.
Tensor distances_between(const Tensor& similarities) {
  const int64_t batch = similarities.size(0), length = similarities.size(1);
  Tensor distances = new_float(similarities, {batch, length, length});
  const float* from = data<float>(similarities);
  float* out = out_data<float>(distances);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) mirror(from + b * length * length, out + b * length * length, length);
  });
  return distances;
}

// distances (B, M, M) float32, symmetric, to group numbers (B, M); see agglomerate in ops/agglomerative.py.
// `linkage` is 0 for single, 1 for complete and 2 for average.
Tensor agglomerate(const Tensor& distances, int64_t clusters, int64_t linkage) {
  const int64_t batch = distances.size(0), length = distances.size(1);
  Tensor groups = new_int64(distances, {batch, length});
  const float* all = data<float>(distances);
  int64_t* out = out_data<int64_t>(groups);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> number(length);
    std::vector<int32_t> leader(length), nearest(length), stale(length);
    std::vector<float> value(length), size(length), gone(length), work(length * length);
    float* matrix = work.data();
    const auto renew = [&](int64_t row) {
      nearest[row] =
          static_cast<int32_t>(find_lowest(matrix + row * length, gone.data(), row + 1, length, &value[row]));
    };
    for (int64_t b = begin; b < end; ++b) {
      std::memcpy(matrix, all + b * length * length, length * length * sizeof(float));
      for (int64_t i = 0; i < length; ++i) gone[i] = 0.0f;
      for (int64_t i = 0; i < length; ++i) {
        renew(i);
        leader[i] = static_cast<int32_t>(i);
        size[i] = 1.0f;
      }
      for (int64_t left = length; left > clusters; --left) {
        float lowest;
        int64_t i = find_lowest(value.data(), gone.data(), 0, length, &lowest), j = i < 0 ? -1 : nearest[i];
        if (i < 0) {  // only distances that are no numbers are left: the first two clusters join
            for (i = 0; gone[i] != 0.0f;) ++i;
            for (j = i + 1; gone[j] != 0.0f;) ++j;
        }
        float* row = matrix + i * length;
        join_rows(row, matrix + j * length, size[i], size[j], linkage, length);
        size[i] += size[j];
        gone[j] = INFINITE;
        for (int64_t k = 0; k < length; ++k) leader[k] = leader[k] == j ? static_cast<int32_t>(i) : leader[k];
        for (int64_t k = 0; k < length; ++k) matrix[k * length + i] = row[k];
        find_stale(row, value.data(), gone.data(), nearest.data(), i, j, j, stale.data());
        for (int64_t k = 0; k < j; ++k) {
          if (!stale[k] || k == i) continue;
          if (nearest[k] == j || nearest[k] == i) {
            renew(k);
          } else if (row[k] < value[k] || i < nearest[k]) {
            nearest[k] = static_cast<int32_t>(i);
            value[k] = row[k];
          }
        }
        renew(i);
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
