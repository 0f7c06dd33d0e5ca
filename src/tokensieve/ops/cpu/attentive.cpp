// BAT's whole decision in one call: who is attentive, which of them pair up, and how the others cluster.
#include "density.h"
#include "pairs.h"
#include "split.h"

namespace tokensieve {
namespace {

constexpr int64_t LONG = 512;  // tokens of an image that is cut into parts when it is alone

// What one image needs between the phases.
template <class T>
struct Decision {
  Pairs<T> pairs;
  Peaks<T> peaks;
  std::vector<uint32_t> keys;
  std::vector<int64_t> high, low, leads, joining, partners, centres, others, joins;
  std::vector<const T*> attentive, rest;
  std::vector<float> score;

  Decision(int64_t length, int64_t count, int64_t paired, int64_t clusters)
      : high(count), low(length - count), leads(count - paired), joining(paired), partners(paired), centres(clusters),
        others(low.size() - clusters), joins(others.size()), attentive(count), rest(low.size()), score(count) {}

  // `patches` points to the first of the tokens that are scored, `step` apart.
  void split(const T* patches, int64_t step, const float* scores, int64_t length) {
    split_scores(scores, length, static_cast<int64_t>(high.size()), keys, high.data(), low.data());
    for (size_t k = 0; k < high.size(); ++k) attentive[k] = patches + high[k] * step, score[k] = scores[high[k]];
    for (size_t k = 0; k < low.size(); ++k) rest[k] = patches + low[k] * step;
  }
  void pair_up(int64_t dim, int64_t rounds, int64_t stripes) {
    pairs.start(attentive.data(), static_cast<int64_t>(attentive.size()), dim, stripes);
    in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t stripe = begin; stripe < end; ++stripe) pairs.meet(stripe);
    });
    pairs.choose(score.data(), static_cast<int64_t>(joining.size()), rounds, leads.data(), joining.data(),
                 partners.data());
  }
  void cluster(int64_t dim, int64_t stripes) {
    peaks.start(rest.data(), static_cast<int64_t>(rest.size()), dim, 0, stripes);
    in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t stripe = begin; stripe < end; ++stripe) peaks.find_nearest(stripe);
    });
    peaks.choose(static_cast<int64_t>(centres.size()), centres.data(), others.data());
    const int64_t left = static_cast<int64_t>(others.size());
    if (left == 0) return;
    in_parallel(stripes, 1, [&](int64_t begin, int64_t end) {
      peaks.join(others.data(), left * begin / stripes, left * end / stripes, joins.data());
    });
  }
  void write(int64_t* keep, int64_t* moved, int64_t* onto) const {
    const int64_t leading = static_cast<int64_t>(leads.size());
    for (const int64_t k : leads) *keep++ = high[k];
    for (const int64_t k : centres) *keep++ = low[k];
    for (const int64_t k : joining) *moved++ = high[k];
    for (const int64_t k : others) *moved++ = low[k];
    for (const int64_t k : partners) *onto++ = k;
    for (const int64_t k : joins) *onto++ = leading + k;
  }
};

}  // namespace

// x (B, P + M, C) and score (B, M) float32 to keep, moved and onto; see pair_and_cluster in ops/attentive.py.
std::tuple<Tensor, Tensor, Tensor> pair_and_cluster(const Tensor& x, int64_t prefix, const Tensor& score,
                                                    int64_t attentive, int64_t pairs, int64_t clusters,
                                                    int64_t rounds) {
  const int64_t batch = score.size(0), length = score.size(1), dim = x.size(2);
  const int64_t staying = attentive - pairs + clusters, moving = length - staying;
  Tensor keep = new_int64(score, {batch, staying}), moved = new_int64(score, {batch, moving});
  Tensor onto = new_int64(score, {batch, moving});
  int64_t* keeps = out_data<int64_t>(keep);
  int64_t* moves = out_data<int64_t>(moved);
  int64_t* targets = out_data<int64_t>(onto);
  const int64_t stripes = batch == 1 && length > LONG ? 8 : 1;
  with_type(x, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    const auto split = [&](Decision<T>& image, int64_t b) {
      image.split(data<T>(x) + (b * x.size(1) + prefix) * dim, dim, data<float>(score) + b * score.stride(0), length);
    };
    if (batch == 1 && stripes == 1) {  // the two halves of the decision side by side
      Decision<T> image(length, attentive, pairs, clusters);
      split(image, 0);
      in_parallel(2, 1, [&](int64_t begin, int64_t end) {
        if (begin == 0) image.pair_up(dim, rounds, 1);
        if (end == 2) image.cluster(dim, 1);
      });
      image.write(keeps, moves, targets);
      return;
    }
    in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
      Decision<T> image(length, attentive, pairs, clusters);
      for (int64_t b = begin; b < end; ++b) {
        split(image, b);
        image.pair_up(dim, rounds, stripes);
        image.cluster(dim, stripes);
        image.write(keeps + b * staying, moves + b * moving, targets + b * moving);
      }
    });
  });
  return {keep, moved, onto};
}

}  // namespace tokensieve
