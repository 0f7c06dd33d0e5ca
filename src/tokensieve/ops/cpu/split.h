// The highest scores of a row and the rest.
#pragma once

#include "common.h"

namespace tokensieve {
namespace {

constexpr int64_t AT_ONCE = 16;  // keys that a vector holds

// Scores as integers that sort as they do: NaN is the highest, both zeros are equal.
INLINE uint32_t ascending(float score) {
  const float value = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return score != score ? 0xFFFFFFFFu : key;
}

// The integer such that the `count` highest scores, as integers, are those above it and some that equal it; found
// bit by bit. `above` tells how many are above. `keys` has room for a whole number of blocks.
FOR_EVERY_PROCESSOR inline uint32_t rank_by_counting(const float* scores, int64_t length, int64_t count, uint32_t* keys,
                                                     int64_t* above) {
  const int64_t blocks = (length + AT_ONCE - 1) / AT_ONCE;
  for (int64_t m = 0; m < length; ++m) keys[m] = ascending(scores[m]);
  for (int64_t m = length; m < blocks * AT_ONCE; ++m) keys[m] = 0;
  uint32_t found = 0;
  *above = 0;
  for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
    const uint32_t tried = found | bit;
    int32_t reach = 0;
    for (int64_t m = 0; m < blocks; ++m) {
      for (int64_t k = 0; k < AT_ONCE; ++k) reach += keys[m * AT_ONCE + k] >= tried;
    }
    if (reach <= count) *above = reach;
    if (reach == count) return tried - 1;
    if (reach > count) found = tried;
  }
  return found;
}

// Indices of the `count` highest scores and of the others, both ascending; of equal ones the first count as higher.
inline void split_scores(const float* scores, int64_t length, int64_t count, std::vector<uint32_t>& keys, int64_t* top,
                         int64_t* others) {
  int64_t above = 0, high = 0, low = 0;
  keys.resize(length + AT_ONCE);
  uint32_t least = 0;
  if (count > 0) {
    least = rank_by_counting(scores, length, count, keys.data(), &above);
  } else {
    std::fill(keys.begin(), keys.end(), 0);
  }
  int64_t equals = count - above;  // how many of those at the threshold are still wanted
  // Without branches, which nobody could foresee.
  for (int64_t m = 0; m < length; ++m) {
    const bool equal = keys[m] == least, chosen = (keys[m] > least) | (equal & (equals > 0));
    equals -= equal;
    *(chosen ? top + high : others + low) = m;
    high += chosen;
    low += !chosen;
  }
}

}  // namespace
}  // namespace tokensieve
