// Tensors whose memory goes to the next one: getting it anew costs a page fault every 4 KiB.
#pragma once

#include "checks.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace flowkern {
namespace {

class SpareMemory {
 public:
  struct Block { void* data; std::size_t bytes; };

  static SpareMemory& all() {
    static auto* memory = new SpareMemory;  // outlives the tensors
    return *memory;
  }

  // A spare block of about that size, or a new one.
  Block take(std::size_t bytes) {
    if (const std::unique_lock lock(mutex, std::try_to_lock); lock) {
      const auto fits = [=](const Block& block) { return block.bytes >= bytes && block.bytes <= 2 * bytes; };
      const auto found = std::find_if(blocks.begin(), blocks.end(), fits);
      if (found != blocks.end()) {
        const Block block = *found;
        blocks.erase(found);
        return block;
      }
    }
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* data = std::aligned_alloc(kAlignment, bytes);
    FLOWKERN_CHECK(data, "out of memory: ", bytes, " bytes");
    return {data, bytes};
  }

  // The oldest goes where there are too many.
  void give(Block block) {
    if (const std::unique_lock lock(mutex, std::try_to_lock); lock) {
      blocks.push_back(block);
      if (blocks.size() <= kMost) return;
      block = blocks.front();
      blocks.erase(blocks.begin());
    }
    std::free(block.data);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kMost = 0;  // so that each tensor has bounds that are watched
#else
  static constexpr std::size_t kMost = 4;
#endif
  std::mutex mutex;  // tried only: a forked child may find it locked for ever
  std::vector<Block> blocks;
};

// A vector of `count` numbers of the dtype S, on the CPU.
template <class S> Tensor spare_tensor(const Tensor& like, std::int64_t count) {
  const auto block = SpareMemory::all().take(std::size_t(count) * sizeof(S));
  return torch::stable::from_blob(block.data, {count}, {1}, like.device(), like.scalar_type(),
                                  [block](void*) { SpareMemory::all().give(block); });
}

}  // namespace
}  // namespace flowkern
