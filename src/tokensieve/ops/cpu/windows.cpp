// Patches of a grid and the cells of a coarser one near them: products and sums over those windows alone.
#include <algorithm>

#include "common.h"

namespace tokensieve {
namespace {

constexpr int64_t TOGETHER = 4;  // rows of features that one pass reads

// Where the cell of each row (or column) of patches lies, and which cells are near.
struct Side {
  int64_t patches, cells, reach;

  int64_t own(int64_t patch) const { return patch * cells / patches; }
  int64_t first(int64_t cell) const { return (cell * patches + cells - 1) / cells; }  // patch of a cell
};

FOR_EVERY_PROCESSOR void add(float* sum, const float* const* rows, const float* weights, int64_t length) {
  const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  const float of_a = weights[0], of_b = weights[1], of_c = weights[2], of_d = weights[3];
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) sum[i] += of_a * a[i] + of_b * b[i] + of_c * c[i] + of_d * d[i];
}

}  // namespace

// x (B, rows * columns, C) and centres (B, height * width, C) to their inner products (B, rows * columns, W * W),
// W = 2 * reach + 1, zero where a window reaches beyond the cells; see ops/windows.py.
Tensor window_products(const Tensor& x, const Tensor& centres, int64_t rows, int64_t columns, int64_t height,
                       int64_t width, int64_t reach) {
  const int64_t batch = x.size(0), dim = x.size(2), side = 2 * reach + 1;
  STD_TORCH_CHECK(x.size(1) == rows * columns, "expected ", rows * columns, " patches, got ", x.size(1));
  STD_TORCH_CHECK(centres.size(0) == batch && centres.size(1) == height * width && centres.size(2) == dim, "expected ",
                  height * width, " cells, got ", centres.size(1));
  Tensor out = new_float(x, {batch, rows * columns, side * side});
  float* products = out_data<float>(out);
  const float *patches = data<float>(x), *cells = data<float>(centres);
  const Side down{rows, height, reach}, across{columns, width, reach};
  in_parallel(batch * rows * columns, 64, [&](int64_t begin, int64_t end) {
    std::vector<const float*> near(side * side + TOGETHER);
    std::vector<int64_t> places(side * side + TOGETHER);
    for (int64_t number = begin; number < end; ++number) {
      const int64_t image = number / (rows * columns), place = number % (rows * columns);
      const int64_t row = down.own(place / columns), column = across.own(place % columns);
      float* answer = products + number * side * side;
      std::fill_n(answer, side * side, 0.0f);
      int64_t count = 0;
      for (int64_t i = std::max<int64_t>(row - reach, 0); i <= std::min(row + reach, height - 1); ++i) {
        for (int64_t j = std::max<int64_t>(column - reach, 0); j <= std::min(column + reach, width - 1); ++j) {
          near[count] = cells + ((image * height + i) * width + j) * dim;
          places[count++] = (i - row + reach) * side + j - column + reach;
        }
      }
      for (int64_t first = 0; first < count; first += TOGETHER) {
        float four[TOGETHER];
        for (int64_t extra = count; extra < first + TOGETHER; ++extra) near[extra] = near[first];
        dots(patches + number * dim, near.data() + first, dim, four);
        for (int64_t k = first; k < std::min(first + TOGETHER, count); ++k) answer[places[k]] = four[k - first];
      }
    }
  });
  return out;
}

// weights (B, rows * columns, W * W) and values (B, rows * columns, D) to what each cell collects (B, height * width, D).
Tensor window_sums(const Tensor& weights, const Tensor& values, int64_t rows, int64_t columns, int64_t height,
                   int64_t width, int64_t reach) {
  const int64_t batch = values.size(0), dim = values.size(2), side = 2 * reach + 1;
  STD_TORCH_CHECK(values.size(1) == rows * columns, "expected ", rows * columns, " patches, got ", values.size(1));
  STD_TORCH_CHECK(weights.size(0) == batch && weights.size(1) == rows * columns && weights.size(2) == side * side,
                  "expected ", side * side, " weights a patch, got ", weights.size(2));
  Tensor out = new_float(values, {batch, height * width, dim});
  float* sums = out_data<float>(out);
  const float *shares = data<float>(weights), *patches = data<float>(values);
  const Side down{rows, height, reach}, across{columns, width, reach};
  in_parallel(batch * height * width, 16, [&](int64_t begin, int64_t end) {
    const float* near[TOGETHER];
    float four[TOGETHER];
    for (int64_t number = begin; number < end; ++number) {
      const int64_t image = number / (height * width), row = number / width % height, column = number % width;
      float* sum = sums + number * dim;
      std::fill_n(sum, dim, 0.0f);
      int64_t waiting = 0;
      const int64_t left = across.first(std::max<int64_t>(column - reach, 0));
      const int64_t right = across.first(std::min(column + reach + 1, width));
      const int64_t bottom = down.first(std::min(row + reach + 1, height));
      for (int64_t i = down.first(std::max<int64_t>(row - reach, 0)); i < bottom; ++i) {
        const int64_t window = (row - down.own(i) + reach) * side + reach + column;
        for (int64_t j = left; j < right; ++j) {
          const int64_t patch = (image * rows + i) * columns + j;
          four[waiting] = shares[patch * side * side + window - across.own(j)];
          near[waiting++] = patches + patch * dim;
          if (waiting < TOGETHER) continue;
          add(sum, near, four, dim);
          waiting = 0;
        }
      }
      if (waiting == 0) continue;
      for (; waiting < TOGETHER; ++waiting) near[waiting] = near[0], four[waiting] = 0.0f;
      add(sum, near, four, dim);
    }
  });
  return out;
}

}  // namespace tokensieve
