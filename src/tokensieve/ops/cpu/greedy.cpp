// Greedy choices of a subset, one token after another, without a look at every token and every row in each step.
#include <algorithm>

#include "common.h"

namespace tokensieve {
namespace {

constexpr float TINY = 64 * std::numeric_limits<float>::epsilon();  // ROUNDING in methods/language/_greedy.py
constexpr double ROUNDED = 1e-12;  // of what a token gained at first: what is left of it where it gains nothing more

struct Bound {
  double gain;
  int64_t token;
  bool operator<(const Bound& other) const { return gain < other.gain; }
};

// What a token gains never grows as others are chosen, so that what it gained before bounds it, and only tokens whose
// bound is high enough are looked at again (Minoux, 1978): the choice is that of looking at all.
//
// `count` of the tokens, each step the first of those whose `gain(token)` is the highest up to rounding; `take(token)`
// hears which one.
template <class Gain, class Take>
void choose(int64_t tokens, int64_t count, const Gain& gain, const Take& take, int64_t* chosen) {
  std::vector<Bound> bounds(tokens), seen;
  const auto known = [&](int64_t token) {
    const double value = gain(token);
    return value == value ? value : 0.0;  // of what is no number nothing is known
  };
  for (int64_t i = 0; i < tokens; ++i) bounds[i] = {known(i), i};
  std::make_heap(bounds.begin(), bounds.end());
  for (int64_t step = 0; step < count; ++step) {
    double most = 0.0;
    seen.clear();
    while (!bounds.empty() && bounds.front().gain >= most * (1.0 - TINY)) {
      std::pop_heap(bounds.begin(), bounds.end());
      Bound next = bounds.back();
      bounds.pop_back();
      if (step > 0) next.gain = std::min(next.gain, known(next.token));
      most = std::max(most, next.gain);
      seen.push_back(next);
    }
    if (most == 0.0) {  // nor will anything later: what is left comes in order
      bounds.insert(bounds.end(), seen.begin(), seen.end());
      std::sort(bounds.begin(), bounds.end(), [](const Bound& a, const Bound& b) { return a.token < b.token; });
      for (int64_t k = step; k < count; ++k) chosen[k] = bounds[k - step].token;
      return;
    }
    int64_t first = tokens;
    for (const Bound& bound : seen) {
      if (bound.gain >= most * (1.0 - TINY)) first = std::min(first, bound.token);
    }
    for (const Bound& bound : seen) {
      if (bound.token == first) continue;
      bounds.push_back(bound);
      std::push_heap(bounds.begin(), bounds.end());
    }
    chosen[step] = first;
    take(first);
  }
}

// What tokens gain by a row, Σ max(0, value − covered), less than before now that it is covered `higher`.
FOR_EVERY_PROCESSOR void cover_higher(const float* row, float covered, float higher, int64_t tokens, double* gains) {
  for (int64_t i = 0; i < tokens; ++i) {
    const float before = row[i] - covered, now = row[i] - higher;
    gains[i] -= static_cast<double>(before > 0.0f ? before : 0.0f) - static_cast<double>(now > 0.0f ? now : 0.0f);
  }
}

// The same of a row that nothing covers yet: less than its lowest value no choice covers.
FOR_EVERY_PROCESSOR float cover_first(const float* row, int64_t tokens, double* gains) {
  float lowest = INFINITE;
#pragma omp simd reduction(min : lowest)
  for (int64_t i = 0; i < tokens; ++i) lowest = row[i] < lowest ? row[i] : lowest;
  for (int64_t i = 0; i < tokens; ++i) gains[i] += row[i] - lowest;
  return lowest;
}

// One image of `greedy_cover`. A chosen token changes gains by the rows alone that it covers better than those before
// it, which are ever fewer.
void cover(const float* value, int64_t rows, int64_t tokens, int64_t count, int64_t* chosen) {
  std::vector<double> gains(tokens, 0.0), nothing(tokens);
  std::vector<float> covered(rows);
  std::vector<char> taken(tokens, 0);
  for (int64_t r = 0; r < rows; ++r) covered[r] = cover_first(value + r * tokens, tokens, gains.data());
  for (int64_t i = 0; i < tokens; ++i) nothing[i] = gains[i] * ROUNDED;
  for (int64_t step = 0; step < count; ++step) {
    double most = 0.0;
    for (int64_t i = 0; i < tokens; ++i) {
      const double gain = gains[i] > nothing[i] && !taken[i] ? gains[i] : 0.0;
      most = gain > most ? gain : most;
    }
    const double enough = most * (1.0 - TINY);
    int64_t first = 0;
    while (taken[first] || (most > 0.0 && !(gains[first] > nothing[first] && gains[first] >= enough))) ++first;
    chosen[step] = first;
    taken[first] = 1;
    for (int64_t r = 0; r < rows && step + 1 < count; ++r) {
      const float higher = value[r * tokens + first];
      if (!(higher > covered[r])) continue;
      cover_higher(value + r * tokens, covered[r], higher, tokens, gains.data());
      covered[r] = higher;
    }
  }
}

FOR_EVERY_PROCESSOR float product(const float* row, const float* other, int64_t dim) {
  return dot<float>(row, other, dim);
}

// One image of `greedy_determinant`: the part of each token that the chosen ones do not span, each as far as it was
// asked for.
class Spanned {
 public:
  Spanned(const float* unit, const float* weight, int64_t tokens, int64_t dim, int64_t count)
      : unit_(unit), weight_(weight), dim_(dim), count_(count), left_(tokens), met_(tokens, 0),
        factors_(tokens * count) {
    for (int64_t i = 0; i < tokens; ++i) {
      const float* row = unit + i * dim;
      left_[i] = std::any_of(row, row + dim, [](float value) { return value != 0.0f; }) ? 1.0f : 0.0f;
    }
  }

  double gain(int64_t token) {
    const int64_t now = static_cast<int64_t>(pivots_.size());
    float* own = factors_.data() + token * count_;
    while (met_[token] < now && left_[token] > 0.0f) {
      const int64_t start = met_[token], many = std::min<int64_t>(4, now - start);
      float products[4];
      const float* rows[4];
      for (int64_t k = 0; k < 4; ++k) rows[k] = unit_ + pivots_[std::min(start + k, now - 1)] * dim_;
      dots(unit_ + token * dim_, rows, dim_, products);
      for (int64_t k = 0; k < many; ++k) meet(token, own, start + k, products[k]);
      met_[token] = start + many;
    }
    return weight_[token] * weight_[token] * left_[token];
  }

  void take(int64_t token) {
    pivots_.push_back(token);
    shares_.push_back(left_[token] > TINY ? 1.0f / std::sqrt(left_[token]) : 0.0f);
  }

 private:
  void meet(int64_t token, float* own, int64_t step, float cosine) {
    const float spanned = product(own, factors_.data() + pivots_[step] * count_, step);
    own[step] = (cosine - spanned) * shares_[step];
    const float left = left_[token] - own[step] * own[step];
    left_[token] = left > TINY ? left : 0.0f;
  }

  const float *unit_, *weight_;
  int64_t dim_, count_;
  std::vector<float> left_;
  std::vector<int64_t> met_;
  std::vector<float> factors_, shares_;
  std::vector<int64_t> pivots_;
};

}  // namespace

// value (B, R, N) float32 to chosen tokens (B, count); see covering in methods/language/_greedy.py.
Tensor greedy_cover(const Tensor& value, int64_t count) {
  const int64_t batch = value.size(0), rows = value.size(1), tokens = value.size(2);
  Tensor chosen = new_int64(value, {batch, count});
  const float* all = data<float>(value);
  int64_t* out = out_data<int64_t>(chosen);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) cover(all + b * rows * tokens, rows, tokens, count, out + b * count);
  });
  return chosen;
}

// unit (B, N, C) and weight (B, N), float32, to chosen tokens (B, count); see determinantal in the same file.
Tensor greedy_determinant(const Tensor& unit, const Tensor& weight, int64_t count) {
  const int64_t batch = unit.size(0), tokens = unit.size(1), dim = unit.size(2);
  Tensor chosen = new_int64(unit, {batch, count});
  const float* all = data<float>(unit);
  const float* weights = data<float>(weight);
  int64_t* out = out_data<int64_t>(chosen);
  in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Spanned image(all + b * tokens * dim, weights + b * tokens, tokens, dim, count);
      choose(
          tokens, count, [&](int64_t i) { return image.gain(i); }, [&](int64_t i) { image.take(i); }, out + b * count);
    }
  });
  return chosen;
}

}  // namespace tokensieve
