// The best of a row of numbers and where it is; of equal ones the first.
#pragma once

#include "packed.h"

namespace tokensieve {
namespace {

// The highest of values[j] + closed[j] and the first j that has it; -infinity and 0 where there is none.
FOR_EVERY_PROCESSOR inline void best_open(const float* values, const float* closed, int64_t length, float* best,
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

// Lane by lane the best met so far, and where.
struct Best {
  Lanes value;
  Places where;

  INLINE void meet(Lanes other, Places place) {
    const Places better = other > value;
    value = better ? other : value;
    where = better ? place : where;
  }
};

constexpr Best NOBODY = {Lanes{} - INFINITE, Places{}};

INLINE Places places_from(int64_t first) {
  const Places steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return steps + static_cast<int32_t>(first);
}

// The best of all lanes.
INLINE void best_of_lanes(const Best& row, float* best, int32_t* where) {
  constexpr int32_t NOWHERE = std::numeric_limits<int32_t>::max();
  const float* values = reinterpret_cast<const float*>(&row.value);
  const int32_t* places = reinterpret_cast<const int32_t*>(&row.where);
  float highest = -INFINITE;
  int32_t lowest = NOWHERE;
#pragma omp simd reduction(max : highest)
  for (int64_t k = 0; k < LANES; ++k) highest = values[k] > highest ? values[k] : highest;
#pragma omp simd reduction(min : lowest)
  for (int64_t k = 0; k < LANES; ++k) {
    const int32_t place = values[k] == highest ? places[k] : NOWHERE;
    lowest = place < lowest ? place : lowest;
  }
  *best = highest;
  *where = lowest;
}

// The best of the first `length` places of every row of a tile, rows `step` apart.
FOR_EVERY_PROCESSOR inline void best_of_tile(const float* tile, int64_t step, int64_t length, float* best,
                                             int32_t* where) {
  Best rows[ROWS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < ROWS; ++r) rows[r] = NOBODY;
  for (int64_t column = 0; column < length; column += LANES) {
    const Places place = places_from(column), inside = place < static_cast<int32_t>(length);
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) {
      const Lanes value = *reinterpret_cast<const Unaligned*>(tile + r * step + column);
      rows[r].meet(inside ? value : NOBODY.value, place);
    }
  }
  for (int64_t r = 0; r < ROWS; ++r) best_of_lanes(rows[r], best + r, where + r);
}

}  // namespace
}  // namespace tokensieve
