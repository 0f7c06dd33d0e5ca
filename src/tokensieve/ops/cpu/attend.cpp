// Attention in bfloat16 on processors that multiply pairs of it: blocks of query rows against all keys, no map is held.
#include "packed.h"

namespace tokensieve {
namespace {

constexpr int64_t BLOCK = 32;       // query rows at a time
constexpr int64_t CHUNK = 1024;     // keys at a time
constexpr int64_t TILES_APART = 8;  // of a head, at least, for each of the threads that share it
constexpr float LOG2_E = 1.44269504f;
static_assert(BLOCK % ROWS == 0 && CHUNK % LANES == 0);

#ifdef HAS_BFLOAT16_PAIRS

// Two rows of values, interleaved: the cells of a pair of keys. `second` is null behind the last key.
FOR_PAIRS void interleave(const uint16_t* first, const uint16_t* second, int64_t dim, int64_t pairs, uint32_t* out) {
  for (int64_t d = 0; d < dim; d += LANES, out += pairs * LANES) {
    const __mmask16 inside = dim - d < LANES ? static_cast<__mmask16>((1u << (dim - d)) - 1) : 0xFFFF;
    const __mmask16 present = second ? inside : 0;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, first + d));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, second + d));
    _mm512_store_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// 2^x to six digits; zero at minus infinity.
FOR_PAIRS inline __m512 power_of_two(__m512 x) {
  // x = whole + rest, rest in [0, 1): 2^x = 2^whole · series(rest).
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 series = _mm512_set1_ps(1.353416737e-02f);
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(5.201146166e-02f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(2.414427563e-01f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(6.930038346e-01f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(1.000002593e+00f));
  return _mm512_scalef_ps(series, x);
}

// A row of products to the numerators of its softmax, in bfloat16; updates the row's running maximum and sum and
// returns by what everything added up before has to be multiplied. `width` is a multiple of LANES; `scale`, `bias` and
// `highest` are in powers of two.
FOR_PAIRS float soften(const float* row, const float* bias, int64_t width, float scale, float* highest, float* sum,
                       uint16_t* out) {
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 most = _mm512_set1_ps(*highest);
  for (int64_t j = 0; j < width; j += LANES) {
    most = _mm512_max_ps(most, _mm512_fmadd_ps(_mm512_load_ps(row + j), factor, _mm512_load_ps(bias + j)));
  }
  const float now = _mm512_reduce_max_ps(most);
  const __m512 shift = _mm512_set1_ps(now > -INFINITE ? now : 0.0f);
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < width; j += LANES) {
    const __m512 value = power_of_two(
        _mm512_sub_ps(_mm512_fmadd_ps(_mm512_load_ps(row + j), factor, _mm512_load_ps(bias + j)), shift));
    total = _mm512_add_ps(total, value);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + j), (__m256i)_mm512_cvtneps_pbh(value));
  }
  const float fade = *highest > -INFINITE ? std::exp2(*highest - now) : 0.0f;
  *sum = *sum * fade + _mm512_reduce_add_ps(total);
  *highest = now;
  return fade;
}

// Numerators of a softmax from a row of products, in float32; `row` has `width` places.
FOR_PAIRS void numerators(const float* products, const float* bias, float scale, float highest, int64_t width,
                          float* row) {
  const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(highest > -INFINITE ? highest : 0.0f);
  for (int64_t j = 0; j < width; j += LANES) {
    const __mmask16 inside = width - j < LANES ? static_cast<__mmask16>((1u << (width - j)) - 1) : 0xFFFF;
    const __m512 value = _mm512_fmadd_ps(_mm512_load_ps(products + j), factor, _mm512_load_ps(bias + j));
    _mm512_mask_storeu_ps(row + j, inside, power_of_two(_mm512_sub_ps(value, shift)));
  }
}

FOR_PAIRS void mean_of_rows(const float* rows, int64_t count, int64_t width, float* mean) {
  for (int64_t j = 0; j < width; ++j) mean[j] = 0.0f;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t j = 0; j < width; ++j) mean[j] += rows[r * width + j] * (1.0f / static_cast<float>(count));
  }
}

FOR_PAIRS void fade_and_add(float* sums, const float* tile, int64_t width, float fade) {
  const __m512 factor = _mm512_set1_ps(fade);
  for (int64_t d = 0; d < width; d += LANES) {
    _mm512_store_ps(sums + d, _mm512_fmadd_ps(_mm512_load_ps(sums + d), factor, _mm512_load_ps(tile + d)));
  }
}

FOR_PAIRS void store_row(const float* sums, float total, int64_t dim, c10::BFloat16* out) {
  const __m512 factor = _mm512_set1_ps(1.0f / total);
  for (int64_t d = 0; d < dim; d += LANES) {
    const __mmask16 inside = dim - d < LANES ? static_cast<__mmask16>((1u << (dim - d)) - 1) : 0xFFFF;
    const __m512 value = _mm512_mul_ps(_mm512_load_ps(sums + d), factor);
    _mm256_mask_storeu_epi16(out + d, inside, (__m256i)_mm512_cvtneps_pbh(value));
  }
}

// One head of one image.
class Head {
 public:
  void start(const c10::BFloat16* keys, int64_t key_step, const c10::BFloat16* values, int64_t value_step,
             int64_t length, int64_t dim) {
    length_ = length, dim_ = dim, wide_ = round_up(dim, LANES);
    keys_.pack(length, dim, [&](int64_t j) { return keys + j * key_step; });
    // Values are packed by chunks of keys: what a chunk's probabilities are multiplied with lies together.
    const int64_t chunks = (length + CHUNK - 1) / CHUNK;
    values_ = packed_values_.room(chunks * CHUNK / 2 * wide_);
    for (int64_t first = 0; first < length; first += CHUNK) {
      const int64_t width = round_up(std::min(CHUNK, length - first), LANES);
      uint32_t* chunk = reinterpret_cast<uint32_t*>(values_) + first / 2 * wide_;
      const int64_t last = std::min(first + CHUNK, length);
      for (int64_t j = first; j < last; j += 2) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(values + j * value_step);
        const uint16_t* next = j + 1 < length ? row + value_step : nullptr;
        for (int64_t k = j + AHEAD; k < std::min(j + AHEAD + 2, last); ++k) {
          fetch(values + k * value_step, dim * sizeof(*values));
        }
        interleave(row, next, dim, width / 2, chunk + (j - first) / 2 * LANES);
      }
      const int64_t filled = (last - first + 1) / 2;
      for (int64_t panel = 0; panel < wide_ / LANES; ++panel) {
        std::fill_n(chunk + (panel * width / 2 + filled) * LANES, (width / 2 - filled) * LANES, 0u);
      }
    }
  }

  // Rows [first, last) of the answer, `out_step` apart. `bias` (round_up(length, LANES)) is minus infinity behind the end;
  // it and `scale` make logits of base two.
  // The attention of query 0 goes into `class_row` (length) where that is not null and the rows begin with it.
  void rows(const c10::BFloat16* queries, int64_t query_step, float scale, const float* bias, int64_t first, int64_t last,
            c10::BFloat16* out, int64_t out_step, float* class_row) {
    const Cells<c10::BFloat16> kind(dim_);
    float* copied = query_cells_.room(ROWS * kind.count);
    float* products = products_.room(ROWS * CHUNK);
    uint16_t* shares = shares_.room(ROWS * CHUNK);
    float* tile = tile_.room(ROWS * wide_);
    float* sums = sums_.room(BLOCK * wide_);
    float highest[BLOCK], total[BLOCK], fade[ROWS];
    // Rows of whole cells are read where they lie.
    const bool aligned = reinterpret_cast<uintptr_t>(queries) % sizeof(float) == 0;
    const bool whole = aligned && dim_ % 2 == 0 && query_step % 2 == 0;
    for (; first < last; first += BLOCK) {
      const int64_t count = std::min(BLOCK, last - first);
      float* const row = first == 0 ? class_row : nullptr;
      std::fill_n(highest, BLOCK, -INFINITE);
      std::fill_n(total, BLOCK, 0.0f);
      for (int64_t start = 0; start < length_; start += CHUNK) {
        const int64_t width = round_up(std::min(CHUNK, length_ - start), LANES);
        const float* values = values_ + start / 2 * wide_;
        for (int64_t group = 0; group < count; group += ROWS) {
          const c10::BFloat16* query = queries + (first + group) * query_step;
          const bool there = whole && group + ROWS <= count;
          for (int64_t r = first + group + ROWS; r < std::min(first + group + 2 * ROWS, last); ++r) {
            fetch(queries + r * query_step, dim_ * sizeof(*queries));
          }
          for (int64_t r = 0; !there && r < ROWS; ++r) {
            kind.fill(query + std::min(r, count - group - 1) * query_step, copied + r * kind.count);
          }
          keys_.products_of_panels(there ? reinterpret_cast<const float*>(query) : copied,
                                   there ? query_step / 2 : kind.count, start / LANES, width / LANES, products, width);
          for (int64_t r = 0; r < ROWS; ++r) {
            fade[r] = soften(products + r * width, bias + start, width, scale, &highest[group + r], &total[group + r],
                             shares + r * width);
          }
          if (row && group == 0) {
            for (int64_t j = 0; j < start; ++j) row[j] *= fade[0];
            numerators(products, bias + start, scale, highest[0], std::min(width, length_ - start), row + start);
          }
          float* const so_far = sums + group * wide_;
          pair_rows(reinterpret_cast<const float*>(shares), width / 2, values, width / 2, wide_ / LANES,
                    start ? tile : so_far, wide_);
          for (int64_t r = 0; start && r < ROWS; ++r) {
            fade_and_add(so_far + r * wide_, tile + r * wide_, wide_, fade[r]);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) store_row(sums + r * wide_, total[r], dim_, out + (first + r) * out_step);
      for (int64_t j = 0; row && j < length_; ++j) row[j] /= total[0];
    }
  }

 private:
  Packed<c10::BFloat16> keys_;
  Buffer<float> packed_values_, query_cells_, products_, tile_, sums_;
  Buffer<uint16_t> shares_;
  float* values_ = nullptr;
  int64_t length_ = 0, dim_ = 0, wide_ = 0;
};
#endif

}  // namespace

// Whether `attend` runs on this processor.
bool can_attend() { return has_pairs(); }

// queries, keys and values (B, H, L, D) in bfloat16, bias (B, L) or none, to softmax(scale · q kᵀ + bias) v, (B, H, L, D),
// and when `class_row` the attention of the first query, mean over heads, (B, L) in float32; else (B, 0).
std::tuple<Tensor, Tensor> attend(const Tensor& queries, const Tensor& keys, const Tensor& values, double scale,
                                  const Maybe& bias, bool class_row) {
  const int64_t batch = keys.size(0), heads = keys.size(1), length = keys.size(2), dim = keys.size(3);
  const int64_t rows = queries.size(2);
  STD_TORCH_CHECK(has_pairs(), "this processor does not multiply pairs of bfloat16");
  // Laid out as (B, L, H, D), which is how the heads are put side by side next.
  Tensor out = new_tensor(ScalarType::BFloat16, {batch, heads, rows, dim}, {rows * heads * dim, dim, heads * dim, 1});
  Tensor firsts = new_float(queries, {batch, class_row ? length : 0});
#ifdef HAS_BFLOAT16_PAIRS
  c10::BFloat16* result = out_data<c10::BFloat16>(out);
  const int64_t width = round_up(length, LANES), tiles = (rows + ROWS - 1) / ROWS;
  std::vector<float> first(class_row ? batch * heads * length : 0);  // of every head
  const int64_t query_steps[] = {queries.stride(0), queries.stride(1), queries.stride(2)};
  const int64_t key_steps[] = {keys.stride(0), keys.stride(1), keys.stride(2)};
  const int64_t value_steps[] = {values.stride(0), values.stride(1), values.stride(2)};
  const float* biases = bias ? data<float>(*bias) : nullptr;
  // A head's tiles may be shared by two threads, each of which packs its keys and values.
  in_parallel(batch * heads * tiles, TILES_APART, [&](int64_t begin, int64_t end) {
    Head head;
    Buffer<float> storage;
    float* own_bias = storage.room(width);
    std::fill_n(own_bias, length, 0.0f);
    std::fill_n(own_bias + length, width - length, -INFINITE);
    while (begin < end) {
      const int64_t place = begin / tiles, b = place / heads, h = place % heads;
      const int64_t tile = begin % tiles, last = std::min(tiles, tile + end - begin);
      for (int64_t j = 0; biases && j < length; ++j) own_bias[j] = biases[b * length + j] * LOG2_E;
      head.start(data<c10::BFloat16>(keys) + b * key_steps[0] + h * key_steps[1], key_steps[2],
                 data<c10::BFloat16>(values) + b * value_steps[0] + h * value_steps[1], value_steps[2], length, dim);
      head.rows(data<c10::BFloat16>(queries) + b * query_steps[0] + h * query_steps[1], query_steps[2],
                static_cast<float>(scale) * LOG2_E, own_bias, tile * ROWS, std::min(rows, last * ROWS),
                result + (b * rows * heads + h) * dim, heads * dim,
                class_row ? first.data() + place * length : nullptr);
      begin += last - tile;
    }
  });
  if (class_row) {
    float* mean = out_data<float>(firsts);
    for (int64_t b = 0; b < batch; ++b) mean_of_rows(first.data() + b * heads * length, heads, length, mean + b * length);
  }
#endif
  return {out, firsts};
}

}  // namespace tokensieve
