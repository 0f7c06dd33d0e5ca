// What the kernels share: the stable tensor interface, loads in float32, and functions compiled for several processors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

// One body, compiled for AVX-512, AVX2 and the baseline, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace tokensieve {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

constexpr float INFINITE = std::numeric_limits<float>::infinity();

INLINE float load(float value) { return value; }
INLINE float load(c10::BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
INLINE float load(c10::Half value) { return static_cast<float>(value); }

// Rounds to the nearest, ties to even, as torch does; without branches, so that a compiler vectorises it.
INLINE void store(float value, float* out) { *out = value; }
INLINE void store(float value, c10::BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  out->x = static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}
INLINE void store(float value, c10::Half* out) { *out = static_cast<c10::Half>(value); }

// exp(x) to about two units in the last place, in a form that a compiler vectorises; exactly zero below -87.
INLINE float fast_exp(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504088896f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float rest = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
  float series = 1.9875691500e-4f;
  series = series * rest + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  series = series * rest * rest + rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < -87.0f ? 0.0f : series * power;
}

// The product of two rows of `dim` channels.
template <class T>
INLINE float dot(const T* left, const T* right, int64_t dim) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < dim; ++d) sum += load(left[d]) * load(right[d]);
  return sum;
}

// The products of a row with four others, which share its loads.
FOR_EVERY_PROCESSOR inline void dots(const float* row, const float* const* others, int64_t length, float* out) {
  const float *a = others[0], *b = others[1], *c = others[2], *d = others[3];
  float to_a = 0.0f, to_b = 0.0f, to_c = 0.0f, to_d = 0.0f;
#pragma omp simd reduction(+ : to_a, to_b, to_c, to_d)
  for (int64_t i = 0; i < length; ++i) {
    to_a += row[i] * a[i];
    to_b += row[i] * b[i];
    to_c += row[i] * c[i];
    to_d += row[i] * d[i];
  }
  out[0] = to_a, out[1] = to_b, out[2] = to_c, out[3] = to_d;
}

// Scores as integers that sort from high to low, equal ones by index. NaN comes first, as torch sorts it.
INLINE uint64_t descending_key(float score, uint32_t index) {
  uint32_t bits;
  const float value = score + 0.0f;  // minus zero equals zero
  std::memcpy(&bits, &value, sizeof(bits));
  uint32_t ascending = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  if (score != score) ascending = 0xFFFFFFFFu;
  return (static_cast<uint64_t>(~ascending) << 32) | index;
}

// A tensor on the CPU, not initialised; rows lie behind each other unless `strides` says otherwise. Asked of the
// allocator itself: through the dispatcher that takes longer than many a kernel computes for one image.
inline Tensor new_tensor(ScalarType type, std::initializer_list<int64_t> sizes,
                         std::initializer_list<int64_t> strides = {}) {
  const int64_t count = static_cast<int64_t>(sizes.size());
  int64_t steps[8], step = 1;
  for (int64_t k = count - 1; k >= 0; step *= std::max<int64_t>(sizes.begin()[k--], 1)) steps[k] = step;
  const int32_t number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(count, sizes.begin(), strides.size() ? strides.begin() : steps,
                                                         number, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}
inline Tensor new_int64(const Tensor&, std::initializer_list<int64_t> sizes) {
  return new_tensor(ScalarType::Long, sizes);
}
inline Tensor new_float(const Tensor&, std::initializer_list<int64_t> sizes) {
  return new_tensor(ScalarType::Float, sizes);
}

// The tensor itself where its rows lie behind each other, else a copy in which they do; one in float32 for weights.
inline Tensor in_rows(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline Maybe in_rows(const Maybe& tensor) { return tensor ? Maybe(in_rows(*tensor)) : Maybe(); }
inline Maybe in_float_rows(const Maybe& tensor) {
  if (!tensor) return {};
  if (tensor->scalar_type() == ScalarType::Float) return in_rows(*tensor);
  return in_rows(torch::stable::to(*tensor, ScalarType::Float));
}

// Runs `body(begin, end)` over [0, count) on torch's own threads.
template <class Body>
inline void in_parallel(int64_t count, int64_t grain, const Body& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

// Calls `body` with a null pointer of the element type of `tensor`: float, bfloat16 or half.
template <class Body>
inline void with_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(static_cast<const float*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<const c10::BFloat16*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<const c10::Half*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

template <class T>
inline const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
inline T* out_data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace tokensieve
