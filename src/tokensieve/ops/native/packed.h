// Inner products of rows with packed columns, a tile at a time: what matching, clustering, column sums and attention share.
//
// A cell is 32 bits of a row: one float, or two neighbouring bfloat16 where the processor multiplies such pairs. Packed
// columns lie in panels of LANES, cell by cell, so that a tile of products reads them in order.
#pragma once

#include "common.h"

#include <algorithm>
#include <memory>

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

INLINE Lanes spread(float value) { return Lanes{} + value; }
INLINE int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Memory that starts on a cache line, not initialised; it only grows.
template <class T>
class Buffer {
 public:
  T* room(int64_t count) {
    if (count > size_) {
      storage_.reset(new char[count * sizeof(T) + 64]);
      size_ = count;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(storage_.get());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<char[]> storage_;
  int64_t size_ = 0;
};

// Whether this processor multiplies pairs of bfloat16.
inline bool has_pairs() {
#ifdef HAS_BFLOAT16_PAIRS
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
  return has;
#else
  return false;
#endif
}

// COUNT rows of cells (`step` apart) times VECTORS panels (`panel_step` apart): out (COUNT, VECTORS · LANES).
template <int64_t COUNT, int64_t VECTORS>
INLINE void float_tile(const float* left, int64_t step, const float* right, int64_t panel_step, int64_t cells, float* out,
                       int64_t out_step) {
  Lanes sums[COUNT][VECTORS] = {};
  for (int64_t c = 0; c < cells; ++c) {
    Lanes columns[VECTORS];
#pragma GCC unroll 3
    for (int64_t v = 0; v < VECTORS; ++v) columns[v] = *reinterpret_cast<const Lanes*>(right + v * panel_step + c * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
      const Lanes value = spread(left[r * step + c]);
#pragma GCC unroll 3
      for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] += value * columns[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < VECTORS; ++v) *reinterpret_cast<Unaligned*>(out + r * out_step + v * LANES) = sums[r][v];
  }
}

#ifdef HAS_BFLOAT16_PAIRS
#define FOR_PAIRS __attribute__((target("arch=x86-64-v4,avx512bf16")))

// The same for pairs of bfloat16.
template <int64_t COUNT, int64_t VECTORS>
FOR_PAIRS INLINE void pair_tile(const float* left, int64_t step, const float* right, int64_t panel_step, int64_t cells,
                                float* out, int64_t out_step) {
  __m512 sums[COUNT][VECTORS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t c = 0; c < cells; ++c) {
    __m512bh columns[VECTORS];
#pragma GCC unroll 3
    for (int64_t v = 0; v < VECTORS; ++v) columns[v] = (__m512bh)_mm512_load_ps(right + v * panel_step + c * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
      const __m512bh value = (__m512bh)_mm512_set1_ps(left[r * step + c]);
#pragma GCC unroll 3
      for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < VECTORS; ++v) _mm512_storeu_ps(out + r * out_step + v * LANES, sums[r][v]);
  }
}

// Panels two by two; three at the end of an odd number, because one alone leaves the multipliers waiting.
#define ROWS_OF_TILES(NAME, TARGET, TILE)                                                                             \
  TARGET inline void NAME(const float* left, int64_t step, const float* right, int64_t cells, int64_t panels,         \
                          float* out, int64_t out_step) {                                                             \
    const int64_t panel_step = cells * LANES;                                                                         \
    for (; panels > 3 || panels == 2; panels -= 2, right += 2 * panel_step, out += 2 * LANES) {                       \
      TILE<ROWS, 2>(left, step, right, panel_step, cells, out, out_step);                                             \
    }                                                                                                                 \
    if (panels == 3) TILE<ROWS, 3>(left, step, right, panel_step, cells, out, out_step);                              \
    if (panels == 1) TILE<ROWS, 1>(left, step, right, panel_step, cells, out, out_step);                              \
  }
ROWS_OF_TILES(float_rows_wide, __attribute__((target("arch=x86-64-v4"))), float_tile)
ROWS_OF_TILES(pair_rows, FOR_PAIRS, pair_tile)
#undef ROWS_OF_TILES
#endif

FOR_EVERY_PROCESSOR inline void float_rows_narrow(const float* left, int64_t step, const float* right, int64_t cells,
                                                  int64_t panels, float* out, int64_t out_step) {
  for (int64_t p = 0; p < panels; ++p, right += cells * LANES, out += LANES) {
    for (int64_t r = 0; r < ROWS; r += 4) {
      float_tile<4, 1>(left + r * step, step, right, 0, cells, out + r * out_step, out_step);
    }
  }
}

// ROWS rows of cells (`step` apart) times panels of packed cells: out (ROWS, panels · LANES) in rows `out_step` apart.
inline void product_rows(bool pairs, const float* left, int64_t step, const float* right, int64_t cells, int64_t panels,
                         float* out, int64_t out_step) {
#ifdef HAS_BFLOAT16_PAIRS
  if (pairs) return pair_rows(left, step, right, cells, panels, out, out_step);
  static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (wide) return float_rows_wide(left, step, right, cells, panels, out, out_step);
#endif
  float_rows_narrow(left, step, right, cells, panels, out, out_step);
}

// How rows of `dim` elements of T become cells.
template <class T>
struct Cells {
  bool pairs = std::is_same_v<T, c10::BFloat16> && has_pairs();
  int64_t dim, count;
  explicit Cells(int64_t dim) : dim(dim), count(pairs ? (dim + 1) / 2 : dim) {}

  // Whether cells are the memory of a row as it is.
  bool copies() const { return pairs || std::is_same_v<T, float>; }

  // The cells of one row; zero behind its end.
  void fill(const T* row, float* cells) const {
    if (copies()) {
      if (pairs && dim % 2) cells[count - 1] = 0.0f;
      std::memcpy(cells, row, dim * sizeof(T));
    } else {
      for (int64_t d = 0; d < dim; ++d) cells[d] = load(row[d]);
    }
  }
};

typedef int32_t Places __attribute__((vector_size(LANES * sizeof(int32_t))));

// Exchanges what lies across the diagonal of blocks of STEP: with steps 1, 2, 4 and 8 a square is transposed.
template <int64_t STEP>
INLINE void exchange(Lanes* square) {
  Places low, high;
  for (int32_t k = 0; k < LANES; ++k) {
    low[k] = k & STEP ? k - STEP + LANES : k;
    high[k] = k & STEP ? k + LANES : k + STEP;
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < LANES; ++i) {
    if (i & STEP) continue;
    const Lanes first = square[i], second = square[i + STEP];
    square[i] = __builtin_shuffle(first, second, low);
    square[i + STEP] = __builtin_shuffle(first, second, high);
  }
}

// Up to LANES rows of `bytes` bytes to one panel of `count` columns of cells, zero behind the last row and behind its end.
FOR_EVERY_PROCESSOR inline void pack_panel(const char* const* rows, int64_t present, int64_t bytes, int64_t count,
                                           float* out) {
  constexpr int64_t SQUARE = LANES * sizeof(float);
  for (int64_t begin = 0; begin < count; begin += LANES) {
    Lanes square[LANES] = {};
    const int64_t left = bytes - begin * static_cast<int64_t>(sizeof(float));
    if (left >= SQUARE && present == LANES) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < LANES; ++j) {
        square[j] = *reinterpret_cast<const Unaligned*>(rows[j] + begin * sizeof(float));
      }
    } else {
      for (int64_t j = 0; j < present; ++j) {
        std::memcpy(&square[j], rows[j] + begin * sizeof(float), left < SQUARE ? left : SQUARE);
      }
    }
    exchange<1>(square);
    exchange<2>(square);
    exchange<4>(square);
    exchange<8>(square);
    if (begin + LANES <= count) {
#pragma GCC unroll 16
      for (int64_t c = 0; c < LANES; ++c) *reinterpret_cast<Lanes*>(out + (begin + c) * LANES) = square[c];
    } else {
      for (int64_t c = begin; c < count; ++c) *reinterpret_cast<Lanes*>(out + c * LANES) = square[c - begin];
    }
  }
}

// Rows as cells: as they are (left), packed as columns (right), or both.
template <class T>
class Packed {
 public:
  // Room for `length` rows of `dim` elements as cells, for the caller to fill; zero behind the last.
  float* open(int64_t length, int64_t dim) {
    kind_ = Cells<T>(dim), length_ = length;
    rows_ = cells_.room(round_up(length, ROWS) * kind_.count);
    std::fill_n(rows_ + length * kind_.count, (round_up(length, ROWS) - length) * kind_.count, 0.0f);
    return rows_;
  }
  // `row(i)` points to the i-th of `length` rows of `dim` elements.
  template <class Row>
  void fill(int64_t length, int64_t dim, const Row& row) {
    open(length, dim);
    for (int64_t i = 0; i < length; ++i) kind_.fill(row(i), rows_ + i * kind_.count);
  }
  // The rows that were filled as columns too.
  void pack() {
    const int64_t bytes = kind_.count * sizeof(float);
    pack_from([&](int64_t i) { return reinterpret_cast<const char*>(rows_ + i * kind_.count); }, bytes);
  }
  // Columns alone.
  template <class Row>
  void pack(int64_t length, int64_t dim, const Row& row) {
    kind_ = Cells<T>(dim), length_ = length;
    if (kind_.copies()) {
      pack_from([&](int64_t i) { return reinterpret_cast<const char*>(row(i)); }, dim * sizeof(T));
    } else {
      fill(length, dim, row);
      pack();
    }
  }
  int64_t length() const { return length_; }
  int64_t width() const { return round_up(length_, LANES); }
  int64_t cells() const { return kind_.count; }
  const float* row(int64_t i) const { return rows_ + i * kind_.count; }

  // Products of ROWS rows of cells, `step` apart, with this one's first columns, at least `columns` of them.
  void products(const float* left, int64_t step, int64_t columns, float* out, int64_t out_step) const {
    products_of_panels(left, step, 0, (columns + LANES - 1) / LANES, out, out_step);
  }
  // Products of ROWS rows of cells with the columns of some panels.
  void products_of_panels(const float* left, int64_t step, int64_t first, int64_t panels, float* out,
                          int64_t out_step) const {
    product_rows(kind_.pairs, left, step, columns_ + first * kind_.count * LANES, kind_.count, panels, out, out_step);
  }

 private:
  template <class Row>
  void pack_from(const Row& row, int64_t bytes) {
    columns_ = panels_.room(width() * kind_.count);
    const char* rows[LANES];
    for (int64_t first = 0; first < length_; first += LANES) {
      const int64_t present = std::min(LANES, length_ - first);
      for (int64_t j = 0; j < present; ++j) rows[j] = row(first + j);
      pack_panel(rows, present, bytes, kind_.count, columns_ + first * kind_.count);
    }
  }

  Buffer<float> cells_, panels_;
  float *rows_ = nullptr, *columns_ = nullptr;
  int64_t length_ = 0;
  Cells<T> kind_{0};
};

}  // namespace
}  // namespace tokensieve
