// Inner products of rows with packed columns, a tile at a time.
//
// A cell is 32 bits of a row: one float, or two neighbouring bfloat16 where the processor multiplies such pairs. Packed
// columns lie in panels of LANES, cell by cell, so that a tile of products reads them in order.
#pragma once

#include "common.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 10
#define HAS_BFLOAT16_PAIRS 1
#include <immintrin.h>
#endif

namespace tokensieve {
namespace {

constexpr int64_t LANES = 16;  // floats side by side in a vector, and columns of a panel
constexpr int64_t ROWS = 8;    // rows of a tile

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

// Half a panel: what a register of processors without AVX-512 holds. There vectors of LANES floats live in memory.
constexpr int64_t HALF = LANES / 2;
typedef float Halves __attribute__((vector_size(HALF * sizeof(float))));

INLINE int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Whether this processor multiplies pairs of bfloat16, and whether it has vectors of LANES floats.
inline bool has_pairs() {
#ifdef HAS_BFLOAT16_PAIRS
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
  return has;
#else
  return false;
#endif
}

inline bool has_wide() {
#ifdef HAS_BFLOAT16_PAIRS
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
}

// COUNT rows of cells (`step` apart) times VECTORS vectors of columns, whose cells lie `apart`: panels, or halves of one.
// out (COUNT, VECTORS · lanes of a vector).
template <int64_t COUNT, int64_t VECTORS, class Vector = Lanes>
INLINE void float_tile(const float* left, int64_t step, const float* right, int64_t apart, int64_t cells, float* out,
                       int64_t out_step) {
  constexpr int64_t WIDTH = sizeof(Vector) / sizeof(float);
  Vector sums[COUNT][VECTORS] = {};
  for (int64_t c = 0; c < cells; ++c) {
    Vector columns[VECTORS];
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) {
      columns[v] = *reinterpret_cast<const Vector*>(right + v * apart + c * LANES);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
      const float value = left[r * step + c];
#pragma GCC unroll 8
      for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] += value * columns[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) std::memcpy(out + r * out_step + v * WIDTH, &sums[r][v], sizeof(Vector));
  }
}

#ifdef HAS_BFLOAT16_PAIRS
#define FOR_PAIRS __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define FOR_WIDE __attribute__((target("arch=x86-64-v4")))

// The same for pairs of bfloat16.
template <int64_t COUNT, int64_t VECTORS>
FOR_PAIRS INLINE void pair_tile(const float* left, int64_t step, const float* right, int64_t panel_step, int64_t cells,
                                float* out, int64_t out_step) {
  __m512 sums[COUNT][VECTORS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t c = 0; c < cells; ++c) {
    __m512bh columns[VECTORS];
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) columns[v] = (__m512bh)_mm512_load_ps(right + v * panel_step + c * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
      const __m512bh value = (__m512bh)_mm512_set1_ps(left[r * step + c]);
#pragma GCC unroll 8
      for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) _mm512_storeu_ps(out + r * out_step + v * LANES, sums[r][v]);
  }
}

// Panels two by two; three at the end of an odd number, because one alone leaves the multipliers waiting. Of one row
// eight by eight, the last of which may be done twice.
#define ROWS_OF_TILES(NAME, TARGET, TILE)                                                                             \
  TARGET inline void NAME(const float* left, int64_t step, const float* right, int64_t cells, int64_t panels,         \
                          float* out, int64_t out_step) {                                                             \
    const int64_t panel_step = cells * LANES;                                                                         \
    for (; panels > 3 || panels == 2; panels -= 2, right += 2 * panel_step, out += 2 * LANES) {                       \
      TILE<ROWS, 2>(left, step, right, panel_step, cells, out, out_step);                                             \
    }                                                                                                                 \
    if (panels == 3) TILE<ROWS, 3>(left, step, right, panel_step, cells, out, out_step);                              \
    if (panels == 1) TILE<ROWS, 1>(left, step, right, panel_step, cells, out, out_step);                              \
  }                                                                                                                   \
  TARGET inline void NAME##_of_one(const float* left, const float* right, int64_t cells, int64_t panels,              \
                                   float* out) {                                                                      \
    const int64_t panel_step = cells * LANES;                                                                         \
    for (int64_t p = 0; panels >= 8 && p < panels; p += 8) {                                                          \
      const int64_t from = p + 8 <= panels ? p : panels - 8;                                                          \
      TILE<1, 8>(left, 0, right + from * panel_step, panel_step, cells, out + from * LANES, 0);                       \
    }                                                                                                                 \
    for (int64_t p = 0; panels < 8 && p < panels; ++p) {                                                              \
      TILE<1, 1>(left, 0, right + p * panel_step, panel_step, cells, out + p * LANES, 0);                             \
    }                                                                                                                 \
  }
ROWS_OF_TILES(float_rows_wide, FOR_WIDE, float_tile)
ROWS_OF_TILES(pair_rows, FOR_PAIRS, pair_tile)
#undef ROWS_OF_TILES
#endif

FOR_EVERY_PROCESSOR inline void float_rows_narrow(const float* left, int64_t step, const float* right, int64_t cells,
                                                  int64_t panels, float* out, int64_t out_step) {
  for (int64_t p = 0; p < panels; ++p, right += cells * LANES, out += LANES) {
    for (int64_t r = 0; r < ROWS; r += 4) {
      float_tile<4, 2, Halves>(left + r * step, step, right, HALF, cells, out + r * out_step, out_step);
    }
  }
}

// ROWS rows of cells (`step` apart) times panels of packed cells: out (ROWS, panels · LANES) in rows `out_step` apart.
inline void product_rows(bool pairs, const float* left, int64_t step, const float* right, int64_t cells, int64_t panels,
                         float* out, int64_t out_step) {
#ifdef HAS_BFLOAT16_PAIRS
  if (pairs) return pair_rows(left, step, right, cells, panels, out, out_step);
  if (has_wide()) return float_rows_wide(left, step, right, cells, panels, out, out_step);
#endif
  float_rows_narrow(left, step, right, cells, panels, out, out_step);
}

// The same for one row.
FOR_EVERY_PROCESSOR inline void float_rows_narrow_of_one(const float* left, const float* right, int64_t cells,
                                                         int64_t panels, float* out) {
  for (int64_t p = 0; p < panels; ++p, right += cells * LANES, out += LANES) {
    float_tile<1, 2, Halves>(left, 0, right, HALF, cells, out, 0);
  }
}

inline void product_row(bool pairs, const float* left, const float* right, int64_t cells, int64_t panels, float* out) {
#ifdef HAS_BFLOAT16_PAIRS
  if (pairs) return pair_rows_of_one(left, right, cells, panels, out);
  if (has_wide()) return float_rows_wide_of_one(left, right, cells, panels, out);
#endif
  float_rows_narrow_of_one(left, right, cells, panels, out);
}

}  // namespace
}  // namespace tokensieve
