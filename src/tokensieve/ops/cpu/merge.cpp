// Moving tokens: an assignment applied in one pass, and the way back.
#include "common.h"

#include <algorithm>
#include <atomic>

namespace tokensieve {

Tensor size_bias(const Tensor&, int64_t);

namespace {

template <class T>
INLINE void merge_row_body(const T* lead, float own, const T* rows, const int64_t* members, const float* factors,
                           int64_t count, int64_t channels, float* sum, T* out) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = own * load(lead[c]);
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + members[r] * channels;
    const float factor = factors[r];
    for (int64_t c = 0; c < channels; ++c) sum[c] += factor * load(row[c]);
  }
  for (int64_t c = 0; c < channels; ++c) store(sum[c], out + c);
}

INLINE void copy_row(const char* from, int64_t bytes, char* to) {
  int64_t c = 0;
  for (; c + 64 <= bytes; c += 64) std::memcpy(to + c, from + c, 64);
  std::memcpy(to + c, from + c, bytes - c);
}

// Where every row of the new tokens comes from; arrays of all images behind each other.
struct Moves {
  int64_t prefix, present, kept, merging, channels;
  const int64_t *keep, *members, *starts;  // `starts` (B, K + 1): where the members of each new token begin
  const float *own, *factors;
};

// Rows [begin, end) of the new tokens, counted over all images.
template <class T>
INLINE void move_rows_body(const T* x, const Moves& moves, int64_t begin, int64_t end, float* sum, T* out) {
  if (begin >= end) return;
  const int64_t width = moves.prefix + moves.kept, bytes = moves.channels * static_cast<int64_t>(sizeof(T));
  int64_t b = begin / width, j = begin % width - moves.prefix;
  for (int64_t row = begin; row < end; ++row) {
    const T* image = x + b * (moves.prefix + moves.present) * moves.channels;
    T* to = out + row * moves.channels;
    const T* lead = image + (moves.prefix + (j < 0 ? j : moves.keep[b * moves.kept + j])) * moves.channels;
    const int64_t slot = b * (moves.kept + 1) + j, joined = j < 0 ? 0 : moves.starts[slot + 1] - moves.starts[slot];
    if (joined == 0) {
      copy_row(reinterpret_cast<const char*>(lead), bytes, reinterpret_cast<char*>(to));
    } else {
      const int64_t first = b * moves.merging + moves.starts[slot];
      merge_row_body<T>(lead, moves.own[b * moves.kept + j], image, moves.members + first, moves.factors + first,
                        joined, moves.channels, sum, to);
    }
    if (++j == moves.kept) {
      j = -moves.prefix;
      ++b;
    }
  }
}

#define MOVE_ROWS(T)                                                                                                  \
  FOR_EVERY_PROCESSOR void move_rows(const T* x, const Moves& moves, int64_t begin, int64_t end, float* sum, T* out) { \
    move_rows_body<T>(x, moves, begin, end, sum, out);                                                                \
  }
MOVE_ROWS(float)
MOVE_ROWS(c10::BFloat16)
MOVE_ROWS(c10::Half)
#undef MOVE_ROWS

// Where the rows of tokens given back come from.
struct Places {
  int64_t length, prefix, front, originals, bytes, step, rest_step;
  const int64_t* index;
  const char *x, *rest;
};

// Rows [begin, end) of the tokens given back, counted over all images; whether every index names a token.
FOR_EVERY_PROCESSOR bool put_rows(const Places& places, int64_t begin, int64_t end, char* out) {
  if (begin >= end) return true;
  const int64_t width = places.front + places.originals;
  int64_t b = begin / width, n = begin % width - places.front;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t place = n < 0 ? n : places.index[b * places.step + n];
    if (place >= places.length - places.prefix) return false;
    const char* image = places.x + (b * places.length + places.prefix) * places.bytes;
    const char* source = image + place * places.bytes;
    if (n >= 0 && place < 0) source = places.rest ? places.rest + b * places.rest_step + n * places.bytes : image;
    copy_row(source, places.bytes, out + row * places.bytes);
    if (++n == places.originals) {
      n = -places.front;
      ++b;
    }
  }
  return true;
}

}  // namespace

// Applies keep (B, K), moved and onto (B, R) to x (B, P + M, C), group (B, N), rep (B, M) and size (B, M) or none.
//
// Where onto is -1 the token leaves, where it is -2 it stays after all: images that move fewer name tokens that they keep.
// Merges weigh by `weight` (B, M), or by size where there is none, and divide by the summed weight when `mean`.
// Returns x (B, P + K, C), group (B, N), rep (B, K), size (B, K), slots (B, M), -1 for tokens that leave, and the bias
// (B, 1, 1, P + K) that log-size attention makes of the sizes.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> move_tokens(
    const Tensor& x, const Tensor& group, const Tensor& rep, const Maybe& size_given, const Tensor& keep_given,
    const Maybe& moved_given, const Maybe& onto_given, const Maybe& weight_given, bool mean) {
  const Tensor keep = in_rows(keep_given);
  const Maybe moved = in_rows(moved_given), onto = in_rows(onto_given);
  const Maybe size = in_float_rows(size_given), weight = in_float_rows(weight_given);
  const int64_t batch = x.size(0), channels = x.size(2), present = rep.size(1), prefix = x.size(1) - present;
  const int64_t originals = group.size(1), kept = keep.size(1), merging = moved ? moved->size(1) : 0;
  Tensor out = new_tensor(x.scalar_type(), {batch, prefix + kept, channels});
  Tensor groups = new_int64(x, {batch, originals}), reps = new_int64(x, {batch, kept});
  Tensor sizes = new_float(x, {batch, kept}), slots = new_int64(x, {batch, present});
  const int64_t* keeps = data<int64_t>(keep);
  const int64_t* moves = moved ? data<int64_t>(*moved) : nullptr;
  const int64_t* targets = onto ? data<int64_t>(*onto) : nullptr;
  const float* weights = weight ? data<float>(*weight) : nullptr;
  const float* before = size ? data<float>(*size) : nullptr;
  const int64_t *position = data<int64_t>(rep), *was = data<int64_t>(group);
  const int64_t position_step = rep.stride(0), was_step = group.stride(0);
  int64_t *positions = out_data<int64_t>(reps), *is = out_data<int64_t>(groups);
  int64_t* slot = out_data<int64_t>(slots);
  float* after = out_data<float>(sizes);
  std::vector<float> own(batch * kept, 1.0f), factors(batch * merging);
  std::vector<int64_t> members(batch * merging), starts(batch * (kept + 1), 0);
  std::atomic<bool> valid{true};
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> total(kept);
    for (int64_t b = begin; b < end; ++b) {
      int64_t* place = slot + b * present;
      const auto size_of = [&](int64_t m) { return before ? before[b * present + m] : 1.0f; };
      const auto weight_of = [&](int64_t m) { return weights ? weights[b * present + m] : size_of(m); };
      std::fill(place, place + present, -1);
      for (int64_t j = 0; j < kept; ++j) {
        const int64_t m = keeps[b * kept + j];
        if (m < 0 || m >= present) { valid = false; return; }
        place[m] = j;
        total[j] = weight_of(m);
        after[b * kept + j] = size_of(m);
        positions[b * kept + j] = position[b * position_step + m];
      }
      int64_t* start = starts.data() + b * (kept + 1);
      for (int64_t r = 0; r < merging; ++r) {
        const int64_t m = moves[b * merging + r], j = targets[b * merging + r];
        if (m < 0 || m >= present || j < -2 || j >= kept) { valid = false; return; }
        if (j == -2) continue;  // it stays: a slot of `keep` that holds a token
        place[m] = j;
        if (j < 0) continue;  // leaves instead
        total[j] += weight_of(m);
        after[b * kept + j] += size_of(m);
        ++start[j + 1];
      }
      for (int64_t j = 0; j < kept; ++j) {
        const bool joined = start[j + 1] > 0;
        const float lead = weight_of(keeps[b * kept + j]);
        // A weight can underflow to zero; its token then stays as it is instead of becoming 0/0.
        if (joined) own[b * kept + j] = !mean ? lead : total[j] > 0.0f ? lead / total[j] : 1.0f;
        start[j + 1] += start[j];
      }
      std::vector<int64_t> next(start, start + kept);
      for (int64_t r = 0; r < merging; ++r) {
        const int64_t m = moves[b * merging + r], j = targets[b * merging + r];
        if (j < 0) continue;
        const float share = mean ? (total[j] > 0.0f ? weight_of(m) / total[j] : weight_of(m)) : weight_of(m);
        members[b * merging + next[j]] = prefix + m;
        factors[b * merging + next[j]++] = share;
      }
      for (int64_t n = 0; n < originals; ++n) {
        const int64_t g = was[b * was_step + n];
        is[b * originals + n] = g < 0 ? g : place[g];
      }
    }
  });
  STD_TORCH_CHECK(valid, "an assignment names a token that is not there: keep and moved lie in [0, M), onto in [-1, K)");
  with_type(x, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const T* from = data<T>(x);
    T* to = out_data<T>(out);
    const Moves rows{prefix,         present,       kept,      merging,       channels, keeps,
                     members.data(), starts.data(), own.data(), factors.data()};
    in_parallel(batch * (prefix + kept), 16, [&](int64_t begin, int64_t end) {
      std::vector<float> sum(channels);
      move_rows(from, rows, begin, end, sum.data(), to);
    });
  });
  return {out, groups, reps, sizes, slots, size_bias(sizes, prefix)};
}

// The tokens behind `prefix` of x (B, P + M, C) at index (B, N), and the row of `other` (B, N, C) where index is negative;
// the prefix itself in front when `with_prefix`.
Tensor put_back(const Tensor& x, const Tensor& index, const Maybe& other, int64_t prefix, bool with_prefix) {
  const int64_t batch = x.size(0), length = x.size(1), channels = x.size(2), originals = index.size(1);
  const int64_t front = with_prefix ? prefix : 0, width = front + originals;
  Tensor out = new_tensor(x.scalar_type(), {batch, width, channels});
  const int64_t bytes = channels * static_cast<int64_t>(x.element_size());
  const int64_t rest_step = other ? other->stride(0) * static_cast<int64_t>(x.element_size()) : 0;
  const Places places{length, prefix, front, originals, bytes, index.stride(0), rest_step, data<int64_t>(index),
                      static_cast<const char*>(x.const_data_ptr()),
                      other ? static_cast<const char*>(other->const_data_ptr()) : nullptr};
  char* to = static_cast<char*>(out.mutable_data_ptr());
  std::atomic<bool> valid{true};
  in_parallel(batch * width, 64, [&](int64_t begin, int64_t end) {
    if (!put_rows(places, begin, end, to)) valid = false;
  });
  STD_TORCH_CHECK(valid, "an index names a token that is not there");
  return out;
}

}  // namespace tokensieve
