// Memory of the CPU drivers: aligned, and counted in floats.
#ifndef TFINV_CUSTOM_OPS_CORE_BUFFER_H_
#define TFINV_CUSTOM_OPS_CORE_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <new>

#include "cpu_kernels.h"

namespace tfinv {

// Uninitialised floats at a multiple of kAlignment bytes.
class Buffer {
 public:
  explicit Buffer(size_t floats = 0) {
    if (floats == 0) return;
    const size_t bytes = (floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    data_ = static_cast<float*>(std::aligned_alloc(kAlignment, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  float* get() const { return data_; }

 private:
  float* data_ = nullptr;
};

constexpr int64_t kPackedTogether = 64;  // values of each sample: what is written stays in the first-level cache

// Packs `size` values of each sample, samples [first, first + count) of [B, size], to [vector][size][lane] with
// `stride` floats a vector; lanes past the end are 0.
inline void Pack(const float* samples, int64_t first, int64_t count, int64_t size, int64_t lanes, int64_t stride,
                 int64_t vector, float* packed) {
  float* to = packed + vector * stride;
  for (int64_t begin = 0; begin < size; begin += kPackedTogether) {
    const int64_t end = begin + kPackedTogether < size ? begin + kPackedTogether : size;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t sample = vector * lanes + lane;
      const float* from = samples + (first + sample) * size;
      for (int64_t index = begin; index < end; ++index) to[index * lanes + lane] = sample < count ? from[index] : 0.0f;
    }
  }
}

inline void Unpack(const float* packed, int64_t first, int64_t count, int64_t size, int64_t lanes, int64_t stride,
                   int64_t vector, float* samples) {
  const float* from = packed + vector * stride;
  for (int64_t begin = 0; begin < size; begin += kPackedTogether) {
    const int64_t end = begin + kPackedTogether < size ? begin + kPackedTogether : size;
    for (int64_t lane = 0; lane < lanes && vector * lanes + lane < count; ++lane)
      for (int64_t index = begin; index < end; ++index)
        samples[(first + vector * lanes + lane) * size + index] = from[index * lanes + lane];
  }
}

}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_BUFFER_H_
