// Inner products of a few rows with many, a tile at a time, so that no matrix of them is ever held.
#pragma once

#include "common.h"

#include <algorithm>

namespace tokensieve {
namespace {

constexpr int64_t ROWS = 8;   // rows at a time
constexpr int64_t LANES = 16;  // columns side by side in a vector

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

INLINE Lanes spread(float value) { return Lanes{} + value; }

// rows (L, D) to (D, width), zero behind the last row, so that a row of products is a sum of contiguous rows.
template <class T>
INLINE void transpose_body(const T* rows, int64_t length, int64_t step, int64_t dim, int64_t width, float* out) {
  for (int64_t d = 0; d < dim; ++d) std::fill(out + d * width + length, out + (d + 1) * width, 0.0f);
  for (int64_t first = 0; first < length; first += LANES) {
    const int64_t last = first + LANES < length ? first + LANES : length;
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t j = first; j < last; ++j) out[d * width + j] = load(rows[j * step + d]);
    }
  }
}

#define TRANSPOSE(T)                                                                                                  \
  FOR_EVERY_PROCESSOR inline void transpose(const T* rows, int64_t length, int64_t step, int64_t dim, int64_t width,        \
                                     float* out) {                                                                    \
    transpose_body<T>(rows, length, step, dim, width, out);                                                           \
  }
TRANSPOSE(float)
TRANSPOSE(c10::BFloat16)
TRANSPOSE(c10::Half)
#undef TRANSPOSE

// Inner products of ROWS rows `left` (ROWS, D) with the columns of `transposed` (D, width), plus bias (width).
FOR_EVERY_PROCESSOR inline void product_rows(const float* left, const float* transposed, const float* bias, int64_t dim,
                                    int64_t width, float* out) {
  for (int64_t j = 0; j < width; j += LANES) {
    Lanes sums[ROWS];
    const Lanes start = *reinterpret_cast<const Unaligned*>(bias + j);
    for (int64_t r = 0; r < ROWS; ++r) sums[r] = start;
    for (int64_t d = 0; d < dim; ++d) {
      const Lanes right = *reinterpret_cast<const Lanes*>(transposed + d * width + j);
#pragma GCC unroll 8
      for (int64_t r = 0; r < ROWS; ++r) sums[r] += spread(left[r * dim + d]) * right;
    }
    for (int64_t r = 0; r < ROWS; ++r) *reinterpret_cast<Lanes*>(out + r * width + j) = sums[r];
  }
}

inline float* aligned(std::vector<float>& storage, int64_t count) {
  storage.assign(count + LANES, 0.0f);
  const uintptr_t address = reinterpret_cast<uintptr_t>(storage.data());
  const uintptr_t unit = sizeof(Lanes);
  return reinterpret_cast<float*>((address + unit - 1) / unit * unit);
}

}  // namespace
}  // namespace tokensieve
