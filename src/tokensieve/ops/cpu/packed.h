// Rows packed for inner products with others: what matching, clustering, column sums and attention share.
#pragma once

#include "tiles.h"

#include <memory>

namespace tokensieve {
namespace {

constexpr int64_t AHEAD = 16;  // how many rows before they are read memory is asked for them

// Asks for memory that is read soon: rows of one head or some tokens lie too far apart for the processor to foresee.
INLINE void fetch(const void* memory, int64_t bytes) {
  for (int64_t place = 0; place < bytes; place += 64) __builtin_prefetch(static_cast<const char*>(memory) + place);
}

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

// Up to LANES rows of `bytes` bytes to one panel of `count` cells each, zero behind the last row and behind its end.
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
    for (int64_t i = 0; i < length; ++i) {
      if (i + AHEAD < length) fetch(row(i + AHEAD), dim * sizeof(T));
      kind_.fill(row(i), rows_ + i * kind_.count);
    }
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
  // Products of one row of cells with all columns.
  void products_of_one(const float* left, float* out) const {
    product_row(kind_.pairs, left, columns_, kind_.count, width() / LANES, out);
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
      for (int64_t j = first + AHEAD; j < std::min(first + AHEAD + LANES, length_); ++j) fetch(row(j), bytes);
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
