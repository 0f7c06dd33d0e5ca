// Density-peak clustering of features: no matrix of distances is held.
#include "density.h"

namespace tokensieve {

// features (B, M, C) to centres, others and onto; see density_peaks in ops/density.py. `neighbours` is 0 for a density
// over all tokens.
std::tuple<Tensor, Tensor, Tensor> density_peaks(const Tensor& features, int64_t clusters, int64_t neighbours) {
  const int64_t batch = features.size(0), length = features.size(1), rest = length - clusters;
  Tensor centres = new_int64(features, {batch, clusters}), others = new_int64(features, {batch, rest});
  Tensor onto = new_int64(features, {batch, rest});
  int64_t* centre = out_data<int64_t>(centres);
  int64_t* other = out_data<int64_t>(others);
  int64_t* joins = out_data<int64_t>(onto);
  const int64_t stripes = batch == 1 && length > 256 ? 8 : 1;  // parts of an image that is alone
  with_type(features, [&](auto kind) {
    using T = std::decay_t<decltype(*kind)>;
    in_parallel(batch, 1, [&](int64_t begin, int64_t end) {
      Peaks<T> image;
      std::vector<const T*> rows(length);
      for (int64_t b = begin; b < end; ++b) {
        const T* first = data<T>(features) + b * features.stride(0);
        for (int64_t i = 0; i < length; ++i) rows[i] = first + i * features.stride(1);
        image.start(rows.data(), length, features.size(2), neighbours, stripes);
        in_parallel(stripes, 1, [&](int64_t from, int64_t to) {
          for (int64_t stripe = from; stripe < to; ++stripe) image.find_nearest(stripe);
        });
        image.choose(clusters, centre + b * clusters, other + b * rest);
        if (rest == 0) continue;
        in_parallel(stripes, 1, [&](int64_t from, int64_t to) {
          image.join(other + b * rest, rest * from / stripes, rest * to / stripes, joins + b * rest);
        });
      }
    });
  });
  return {centres, others, onto};
}

}  // namespace tokensieve
