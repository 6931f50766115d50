// Cooperative groups, as far as kernels use them: the block, and tiles of a power of two of its lanes.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct thread_block {
  void sync(std::source_location at = std::source_location::current()) const { __syncthreads(at); }
  unsigned thread_rank() const {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
};
inline thread_block this_thread_block() { return {}; }

template <unsigned lanes> struct thread_block_tile {
  static_assert(lanes <= 32 && (lanes & (lanes - 1)) == 0);
  using Here = std::source_location;

  unsigned thread_rank() const { return unsigned(emulation::lane()) % lanes; }
  unsigned meta_group_rank() const { return this_thread_block().thread_rank() / lanes; }
  static constexpr unsigned size() { return lanes; }

  void sync(Here at = Here::current()) const { __syncwarp(mask(), at); }
  template <class T> T shfl(T value, int lane, Here at = Here::current()) const {
    return __shfl_sync(mask(), value, lane, lanes, at);
  }
  template <class T> T shfl_up(T value, unsigned delta, Here at = Here::current()) const {
    return __shfl_up_sync(mask(), value, delta, lanes, at);
  }
  template <class T> T shfl_down(T value, unsigned delta, Here at = Here::current()) const {
    return __shfl_down_sync(mask(), value, delta, lanes, at);
  }
  template <class T> T shfl_xor(T value, int flip, Here at = Here::current()) const {
    return __shfl_xor_sync(mask(), value, flip, lanes, at);
  }
  bool any(int predicate, Here at = Here::current()) const { return __any_sync(mask(), predicate, at); }
  bool all(int predicate, Here at = Here::current()) const { return __all_sync(mask(), predicate, at); }
  unsigned ballot(int predicate, Here at = Here::current()) const {
    return __ballot_sync(mask(), predicate, at) >> first_lane();
  }

 private:
  template <unsigned n, class T, class F>
  friend T reduce(const thread_block_tile<n>&, T, const F&, Here);

  static int first_lane() { return emulation::lane() & -int(lanes); }
  static unsigned mask() { return (lanes == 32 ? ~0u : (1u << lanes) - 1) << first_lane(); }
};
template <unsigned lanes> thread_block_tile<lanes> tiled_partition(const thread_block&) { return {}; }

}  // namespace cooperative_groups
