// The kernels behind torch.ops.tokensieve.*. Python declares those, with their schemas (ops.cpu.compiled).
#include "common.h"

namespace tokensieve {

Tensor class_attention(const Tensor&, const Tensor&, double, const Maybe&);
std::tuple<Tensor, Tensor> split_top(const Tensor&, int64_t);
Tensor size_bias(const Tensor&, int64_t);
Tensor mean_rows(const Tensor&, bool);
std::tuple<Tensor, Tensor, Tensor> match_halves(const Tensor&, int64_t, int64_t);
std::tuple<Tensor, Tensor, Tensor> split_fused(const Tensor&, int64_t);
std::tuple<Tensor, Tensor, Tensor> pair_and_cluster(const Tensor&, int64_t, const Tensor&, int64_t, int64_t, int64_t,
                                                    int64_t);
std::tuple<Tensor, Tensor, Tensor> match_pairs(const Tensor&, const Tensor&, int64_t, int64_t);
std::tuple<Tensor, Tensor, Tensor> density_peaks(const Tensor&, int64_t, int64_t);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> move_tokens(const Tensor&, const Tensor&, const Tensor&,
                                                                       const Maybe&, const Tensor&, const Maybe&,
                                                                       const Maybe&, const Maybe&, bool);
Tensor agglomerate(const Tensor&, int64_t, int64_t);
Tensor distances_between(const Tensor&);
Tensor greedy_cover(const Tensor&, int64_t);
Tensor greedy_determinant(const Tensor&, const Tensor&, int64_t);
Tensor put_back(const Tensor&, const Tensor&, const Maybe&, int64_t, bool);
Tensor window_products(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, int64_t);
Tensor window_sums(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, int64_t);
bool can_attend();
std::tuple<Tensor, Tensor> attend(const Tensor&, const Tensor&, const Tensor&, double, const Maybe&, bool);
Tensor column_sums(const Tensor&, const Tensor&, double, const Maybe&, const Maybe&, int64_t, const Maybe&,
                   const Maybe&, const Maybe&, const Maybe&, bool);

STABLE_TORCH_LIBRARY_IMPL(tokensieve, CompositeExplicitAutograd, library) {
  library.impl("can_attend", TORCH_BOX(&can_attend));
}

STABLE_TORCH_LIBRARY_IMPL(tokensieve, CPU, library) {
  library.impl("attend", TORCH_BOX(&attend));
  library.impl("class_attention", TORCH_BOX(&class_attention));
  library.impl("split_top", TORCH_BOX(&split_top));
  library.impl("size_bias", TORCH_BOX(&size_bias));
  library.impl("mean_rows", TORCH_BOX(&mean_rows));
  library.impl("match_halves", TORCH_BOX(&match_halves));
  library.impl("split_fused", TORCH_BOX(&split_fused));
  library.impl("pair_and_cluster", TORCH_BOX(&pair_and_cluster));
  library.impl("match_pairs", TORCH_BOX(&match_pairs));
  library.impl("density_peaks", TORCH_BOX(&density_peaks));
  library.impl("move_tokens", TORCH_BOX(&move_tokens));
  library.impl("agglomerate", TORCH_BOX(&agglomerate));
  library.impl("distances_between", TORCH_BOX(&distances_between));
  library.impl("greedy_cover", TORCH_BOX(&greedy_cover));
  library.impl("greedy_determinant", TORCH_BOX(&greedy_determinant));
  library.impl("put_back", TORCH_BOX(&put_back));
  library.impl("column_sums", TORCH_BOX(&column_sums));
  library.impl("window_products", TORCH_BOX(&window_products));
  library.impl("window_sums", TORCH_BOX(&window_sums));
}

}  // namespace tokensieve
