// BAT's whole decision in one call: who is attentive, which of them pair up, and how the others cluster.
#include "common.h"

namespace tokensieve {

std::tuple<Tensor, Tensor> split_top(const Tensor&, int64_t);
std::tuple<Tensor, Tensor, Tensor> match_pairs(const Tensor&, const Tensor&, int64_t, int64_t);
std::tuple<Tensor, Tensor, Tensor> density_peaks(const Tensor&, int64_t, int64_t);
Tensor put_back(const Tensor&, const Tensor&, const Maybe&, int64_t, bool);

// x (B, P + M, C) and score (B, M) float32 to keep, moved and onto; see pair_and_cluster in ops/attentive.py.
std::tuple<Tensor, Tensor, Tensor> pair_and_cluster(const Tensor& x, int64_t prefix, const Tensor& score,
                                                    int64_t attentive, int64_t pairs, int64_t clusters,
                                                    int64_t rounds) {
  const int64_t batch = score.size(0), length = score.size(1), leading = attentive - pairs;
  const int64_t rest = length - attentive - clusters, staying = leading + clusters, moving = pairs + rest;
  const auto [first, second] = split_top(score, attentive);
  const int64_t* high = data<int64_t>(first);
  const int64_t* low = data<int64_t>(second);
  Tensor own = new_float(score, {batch, attentive});
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < attentive; ++k) {
      out_data<float>(own)[b * attentive + k] = data<float>(score)[b * score.stride(0) + high[b * attentive + k]];
    }
  }
  const auto [leads, joining, partners] = match_pairs(put_back(x, first, {}, prefix, false), own, pairs, rounds);
  const auto [centres, others, joins] = density_peaks(put_back(x, second, {}, prefix, false), clusters, 0);
  Tensor keep = new_int64(score, {batch, staying}), moved = new_int64(score, {batch, moving});
  Tensor onto = new_int64(score, {batch, moving});
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* from_high = high + b * attentive;
    const int64_t* from_low = low + b * (length - attentive);
    int64_t* keeps = out_data<int64_t>(keep) + b * staying;
    int64_t* moves = out_data<int64_t>(moved) + b * moving;
    int64_t* targets = out_data<int64_t>(onto) + b * moving;
    for (int64_t k = 0; k < leading; ++k) keeps[k] = from_high[data<int64_t>(leads)[b * leading + k]];
    for (int64_t c = 0; c < clusters; ++c) keeps[leading + c] = from_low[data<int64_t>(centres)[b * clusters + c]];
    for (int64_t r = 0; r < pairs; ++r) {
      moves[r] = from_high[data<int64_t>(joining)[b * pairs + r]];
      targets[r] = data<int64_t>(partners)[b * pairs + r];
    }
    for (int64_t r = 0; r < rest; ++r) {
      moves[pairs + r] = from_low[data<int64_t>(others)[b * rest + r]];
      targets[pairs + r] = leading + data<int64_t>(joins)[b * rest + r];
    }
  }
  return {keep, moved, onto};
}

}  // namespace tokensieve
