// Memory of the CPU drivers: aligned, and counted in floats.
#ifndef TFINV_CUSTOM_OPS_CORE_BUFFER_H_
#define TFINV_CUSTOM_OPS_CORE_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "cpu_kernels.h"

namespace tfinv {

constexpr size_t kKeptFrom = size_t{1} << 16;  // bytes; smaller blocks the allocator keeps itself
constexpr size_t kKeptBytes = size_t{3} << 24;  // 48 MiB a process: of a CapsNet's layer with a bias, backward

// Blocks between two uses: fresh pages from the system cost as much as some of the passes that write them. Of the
// blocks that are kept the oldest makes room; one that is larger than all may be is not kept.
class KeptBlocks {
 public:
  // Never destroyed: a thread of the host framework may outlive the statics.
  static KeptBlocks& Instance() {
    static KeptBlocks* const blocks = new KeptBlocks;
    return *blocks;
  }

  // A block of exactly `bytes`, or null.
  float* Take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t index = blocks_.size(); index-- > 0;) {
      if (blocks_[index].bytes != bytes) continue;
      float* data = blocks_[index].data;
      blocks_.erase(blocks_.begin() + index);
      kept_ -= bytes;
      return data;
    }
    return nullptr;
  }

  void Give(float* data, size_t bytes) noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > kKeptBytes || !Append({data, bytes})) return std::free(data);
    for (kept_ += bytes; kept_ > kKeptBytes; blocks_.erase(blocks_.begin())) {
      kept_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
    }
  }

  size_t Bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

 private:
  struct Block {
    float* data;
    size_t bytes;
  };
  bool Append(Block block) noexcept {
    try {
      blocks_.push_back(block);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // the oldest first
  size_t kept_ = 0;
};

// Uninitialised floats at a multiple of kAlignment bytes.
class Buffer {
 public:
  explicit Buffer(size_t floats = 0) : bytes_((floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment) {
    if (bytes_ == 0) return;
    if (bytes_ >= kKeptFrom) data_ = KeptBlocks::Instance().Take(bytes_);
    if (data_ == nullptr) data_ = static_cast<float*>(std::aligned_alloc(kAlignment, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() {
    if (data_ != nullptr && bytes_ >= kKeptFrom)
      KeptBlocks::Instance().Give(data_, bytes_);
    else
      std::free(data_);
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  float* get() const { return data_; }

 private:
  float* data_ = nullptr;
  size_t bytes_;
};

constexpr int64_t kPackedTogether = 64;  // values of each sample: what is read stays in the first-level cache

// What CpuKernels::pack packs, back: values [vector][size][lane], `stride` floats a vector, to those of each sample,
// samples [first, first + count) of [B, size].
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
