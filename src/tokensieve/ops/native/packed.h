// Inner products of rows with packed columns, a tile at a time: what matching, clustering, column sums and attention share.
//
// A cell is 32 bits of a row: one float, or two neighbouring bfloat16 where the processor multiplies such pairs. Packed
// columns lie in panels of WIDTH, cell by cell, so that a tile of products reads them in order.
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

constexpr int64_t LANES = 16;         // floats side by side in a vector
constexpr int64_t WIDTH = 2 * LANES;  // columns of a panel
constexpr int64_t ROWS = 8;           // rows of a tile

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

// Up to ROWS rows of cells (`step` apart) times `panels` panels: out (rows, panels · WIDTH) in rows `out_step` apart.
template <int64_t COUNT, int64_t VECTORS>
INLINE void float_tile(const float* left, int64_t step, const float* right, int64_t cells, float* out, int64_t out_step) {
  Lanes sums[COUNT][VECTORS] = {};
  for (int64_t c = 0; c < cells; ++c) {
    Lanes columns[VECTORS];
    for (int64_t v = 0; v < VECTORS; ++v) columns[v] = *reinterpret_cast<const Lanes*>(right + c * WIDTH + v * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
      const Lanes value = spread(left[r * step + c]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < VECTORS; ++v) sums[r][v] += value * columns[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < COUNT; ++r) {
    for (int64_t v = 0; v < VECTORS; ++v) *reinterpret_cast<Unaligned*>(out + r * out_step + v * LANES) = sums[r][v];
  }
}

INLINE void float_rows_body(const float* left, int64_t step, const float* right, int64_t cells, int64_t panels,
                            float* out, int64_t out_step, bool wide) {
  for (int64_t p = 0; p < panels; ++p, right += cells * WIDTH, out += WIDTH) {
    if (wide) {
      float_tile<ROWS, 2>(left, step, right, cells, out, out_step);
    } else {
      for (int64_t r = 0; r < ROWS; r += 4) {
        for (int64_t v = 0; v < WIDTH; v += LANES) {
          float_tile<4, 1>(left + r * step, step, right + v, cells, out + r * out_step + v, out_step);
        }
      }
    }
  }
}

#ifdef HAS_BFLOAT16_PAIRS
__attribute__((target("arch=x86-64-v4"))) inline void float_rows_wide(const float* left, int64_t step,
                                                                     const float* right, int64_t cells,
                                                                     int64_t panels, float* out, int64_t out_step) {
  float_rows_body(left, step, right, cells, panels, out, out_step, true);
}

__attribute__((target("arch=x86-64-v4,avx512bf16"))) inline void pair_rows(const float* left, int64_t step,
                                                                         const float* right, int64_t cells,
                                                                         int64_t panels, float* out,
                                                                         int64_t out_step) {
  for (int64_t p = 0; p < panels; ++p, right += cells * WIDTH, out += WIDTH) {
    __m512 sums[ROWS][2];
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t c = 0; c < cells; ++c) {
      const __m512bh first = (__m512bh)_mm512_load_ps(right + c * WIDTH);
      const __m512bh second = (__m512bh)_mm512_load_ps(right + c * WIDTH + LANES);
#pragma GCC unroll 8
      for (int64_t r = 0; r < ROWS; ++r) {
        const __m512bh value = (__m512bh)_mm512_set1_ps(left[r * step + c]);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, first);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, second);
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) {
      _mm512_storeu_ps(out + r * out_step, sums[r][0]);
      _mm512_storeu_ps(out + r * out_step + LANES, sums[r][1]);
    }
  }
}
#endif

FOR_EVERY_PROCESSOR inline void float_rows_narrow(const float* left, int64_t step, const float* right, int64_t cells,
                                                  int64_t panels, float* out, int64_t out_step) {
  float_rows_body(left, step, right, cells, panels, out, out_step, false);
}

// Products of ROWS rows of cells with panels of packed cells.
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

  // The cells of one row; zero behind its end.
  void fill(const T* row, float* cells) const {
    if (pairs) {
      if (dim % 2) cells[count - 1] = 0.0f;
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

// cells (length, count) to panels of WIDTH columns, zero behind the last: out has round_up(length, WIDTH) · count cells.
FOR_EVERY_PROCESSOR inline void pack_cells(const float* cells, int64_t length, int64_t count, float* out) {
  for (int64_t first = 0; first < length; first += WIDTH, out += WIDTH * count) {
    for (int64_t begin = 0; begin < count; begin += LANES) {
      for (int64_t half = 0; half < WIDTH; half += LANES) {
        const int64_t last = length - first - half < LANES ? length - first - half : LANES;
        const float* corner = cells + (first + half) * count + begin;
        float* place = out + begin * WIDTH + half;
        Lanes square[LANES] = {};
        if (begin + LANES <= count) {
#pragma GCC unroll 16
          for (int64_t j = 0; j < LANES; ++j) {
            if (j < last) square[j] = *reinterpret_cast<const Unaligned*>(corner + j * count);
          }
        } else {
          for (int64_t j = 0; j < last; ++j) {
            for (int64_t c = 0; c < count - begin; ++c) square[j][c] = corner[j * count + c];
          }
        }
        exchange<1>(square);
        exchange<2>(square);
        exchange<4>(square);
        exchange<8>(square);
        const int64_t rows = count - begin < LANES ? count - begin : LANES;
        for (int64_t c = 0; c < rows; ++c) *reinterpret_cast<Lanes*>(place + c * WIDTH) = square[c];
      }
    }
  }
}

// Rows as cells, both as they are (left) and packed as columns (right).
template <class T>
class Packed {
 public:
  // `row(i)` points to the i-th of `length` rows of `dim` elements.
  template <class Row>
  void fill(int64_t length, int64_t dim, const Row& row) {
    const Cells<T> kind(dim);
    length_ = length, count_ = kind.count, pairs_ = kind.pairs;
    rows_ = cells_.room((round_up(length, ROWS)) * count_);
    for (int64_t i = 0; i < length; ++i) kind.fill(row(i), rows_ + i * count_);
    std::fill_n(rows_ + length * count_, (round_up(length, ROWS) - length) * count_, 0.0f);
  }
  void pack() {
    columns_ = panels_.room(round_up(length_, WIDTH) * count_);
    pack_cells(rows_, length_, count_, columns_);
  }
  int64_t length() const { return length_; }
  int64_t width() const { return round_up(length_, WIDTH); }
  int64_t cells() const { return count_; }
  const float* row(int64_t i) const { return rows_ + i * count_; }

  // Products of ROWS rows of cells, `step` apart, with this one's first columns, at least `columns` of them.
  void products(const float* left, int64_t step, int64_t columns, float* out, int64_t out_step) const {
    product_rows(pairs_, left, step, columns_, count_, (columns + WIDTH - 1) / WIDTH, out, out_step);
  }
  // Products of ROWS rows of cells with the columns of some panels.
  void products_of_panels(const float* left, int64_t step, int64_t first, int64_t panels, float* out,
                          int64_t out_step) const {
    product_rows(pairs_, left, step, columns_ + first * count_ * WIDTH, count_, panels, out, out_step);
  }

 private:
  Buffer<float> cells_, panels_;
  float *rows_ = nullptr, *columns_ = nullptr;
  int64_t length_ = 0, count_ = 0;
  bool pairs_ = false;
};

}  // namespace
}  // namespace tokensieve
