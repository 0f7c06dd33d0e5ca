// The highest scores of a row and the rest.
#pragma once

#include "common.h"

namespace tokensieve {
namespace {

// Scores as integers that sort as they do: NaN is the highest, both zeros are equal.
INLINE uint32_t ascending(float score) {
  const float value = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return score != score ? 0xFFFFFFFFu : key;
}

// The `count`-th highest of the scores as an integer, found bit by bit, and in `above` how many are higher.
FOR_EVERY_PROCESSOR inline uint32_t rank_by_counting(const float* scores, int64_t length, int64_t count, uint32_t* keys,
                                                     int64_t* above) {
  for (int64_t m = 0; m < length; ++m) keys[m] = ascending(scores[m]);
  uint32_t found = 0;
  int32_t higher = 0;
  for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
    const uint32_t tried = found | bit;
    int32_t enough = 0;
    for (int64_t m = 0; m < length; ++m) enough += keys[m] >= tried;
    if (enough >= count) {
      found = tried;
    } else {
      higher = enough;
    }
  }
  *above = higher;
  return found;
}

// Indices of the `count` highest scores and of the others, both ascending; of equal ones the first count as higher.
inline void split_scores(const float* scores, int64_t length, int64_t count, std::vector<uint32_t>& keys, int64_t* top,
                         int64_t* others) {
  int64_t above = 0;
  keys.resize(length);
  const uint32_t least = count > 0 ? rank_by_counting(scores, length, count, keys.data(), &above) : 0;
  int64_t equals = count - above;  // how many of those at the threshold are still wanted
  for (int64_t m = 0; m < length; ++m) {
    const bool chosen = count > 0 && (keys[m] > least || (keys[m] == least && equals-- > 0));
    *(chosen ? top++ : others++) = m;
  }
}

}  // namespace
}  // namespace tokensieve
