// What the CUDA kernels share: how a block walks over rows, the log-det of its rows, launches.
//
// A block works on segments, one after the other: a few whole rows, or one row in parts where it is
// too long. How many rows depends on the number of features alone, so that sums are reproducible.
#pragma once

#include <cuda_runtime.h>  // or that of tests/gpu/emulation: the same source runs as C++ on the CPU

#include <cstdint>
#include <stdexcept>
#include <string>

#include "platform.h"
#include "shared_memory.cuh"

FLOWKERN_BEGIN

using std::int64_t;

constexpr int kPasses = 4;  // a thread has up to so many elements of a segment

// How rows are dealt out: `rows` whole ones at a time, or one in parts of `features`. The log-det of
// a row is summed by `lanes` neighbouring threads.
struct Plan { int rows, features, lanes; };

// The fewest rows that give all but a tenth of the threads `passes` elements each or more, and leave
// all but a tenth of them busy in the last pass; or else those that come closest.
inline int rows_of_segment(int features, int threads, int passes) {
  int best = 1;
  double best_share = 0;
  for (int rows = 1; rows <= threads && rows * features <= kPasses * threads; ++rows) {
    const int count = rows * features, needed = (count + threads - 1) / threads;
    const double share = double(count) / ((needed < passes ? passes : needed) * threads);
    if (share > best_share) best = rows, best_share = share;
    if (share >= 0.9) break;
  }
  return best;
}

// `passes`: how many elements a thread should have where rows are short.
inline Plan make_plan(int64_t features, int threads, int passes) {
  const int part = int(features < kPasses * threads ? features : kPasses * threads);
  const int rows = rows_of_segment(part, threads, passes);
  int lanes = 32;
  while (lanes * rows > threads) lanes /= 2;
  return {rows, part, lanes};
}

// A kernel takes its problem and a plan.
template <class P> using Kernel = void (*)(P, Plan);

// Runs a kernel on as many blocks, or on as many as a grid may have.
template <class... P>
void launch_blocks(const char* name, void (*kernel)(P...), int64_t blocks, int threads, size_t shared, void* stream, const P&... arguments) {
  if (blocks == 0) return;
  if (shared > kSharedByDefault) allow_shared(name, reinterpret_cast<const void*>(kernel));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks < 2147483647 ? blocks : 2147483647));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(name, " was not launched: ", cudaLaunchKernelEx(&config, kernel, arguments...));
}

// As many blocks as a device runs at once, where there are many more: each works on segment after segment then.
template <class... P> int64_t resident_blocks(void (*kernel)(P...), int64_t blocks, int threads, size_t shared) {
  constexpr int64_t many = 8192;
  int device = 0, processors = 0, each = 0;
  if (blocks <= many || cudaGetDevice(&device) != cudaSuccess) return blocks;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared);
  const int64_t resident = int64_t(processors) * each;
  return resident > 0 && resident < blocks ? resident : blocks;
}

template <class P>
void launch(const char* name, Kernel<P> kernel, const P& problem, const Plan& plan, int threads, size_t shared, void* stream) {
  if (problem.width > (1 << 30)) throw std::runtime_error("x: at most 2^30 features on a GPU");
  const int64_t segments = (problem.rows + plan.rows - 1) / plan.rows;
  const int64_t blocks = resident_blocks(kernel, segments, threads, shared);
  launch_blocks(name, kernel, blocks, threads, shared, stream, problem, plan);
}

// Calls body(row, rows) for the groups of rows that are this block's.
template <class F> __device__ __forceinline__ void for_rows(int64_t rows, const Plan& plan, const F& body) {
  const int64_t step = int64_t(gridDim.x) * plan.rows;
  for (int64_t row = int64_t(blockIdx.x) * plan.rows; row < rows; row += step)
    body(row, int(rows - row < plan.rows ? rows - row : plan.rows));
}

// Calls body(feature, features) for the parts of a row.
template <class F> __device__ __forceinline__ void for_parts(int64_t features, const Plan& plan, const F& body) {
  for (int64_t feature = 0; feature < features; feature += plan.features)
    body(feature, int(features - feature < plan.features ? features - feature : plan.features));
}

// The entries (outer, inner) of a matrix in row-major order, as many at a time as there are threads.
struct Walk {
  int outer, inner, step_outer, step_inner, size;

  __device__ __forceinline__ explicit Walk(int columns)
      : outer(threadIdx.x / columns), inner(threadIdx.x % columns), step_outer(blockDim.x / columns),
        step_inner(blockDim.x % columns), size(columns) {}
  __device__ __forceinline__ void next() {
    outer += step_outer, inner += step_inner;
    if (inner >= size) inner -= size, ++outer;
  }
};

// The column of a transformed feature, −1 where the index points outside.
__device__ __forceinline__ int64_t column_of(const int64_t* index, int64_t feature, int64_t width) {
  if (!index) return feature;
  const int64_t column = index[feature];
  return column >= 0 && column < width ? column : -1;
}

// An element of a segment, that of this thread.
struct Place {
  int64_t row, feature, column;  // column −1: the index points outside
  bool used;                     // whether there is one for this thread
};

// The element that `walk` stands at, in a segment that begins at (row, feature).
__device__ __forceinline__ Place place_of(const Walk& walk, int64_t row, int64_t feature, bool used, const int64_t* index, int64_t width) {
  Place at{row + walk.outer, feature + walk.inner, -1, used};
  if (used) at.column = column_of(index, at.feature, width);
  return at;
}

// Copies rows whole, before their transformed features are overwritten. In between a barrier is due.
template <class S>
__device__ __forceinline__ void copy_rows(const S* from, int64_t from_row, int64_t from_feature, S* to, int width, int rows) {
  for (Walk at(width); at.outer < rows; at.next())
    to[int64_t(at.outer) * width + at.inner] = from[at.outer * from_row + at.inner * from_feature];
}

// Which row's sum a thread shares in; `lanes` is a power of two.
__device__ __forceinline__ int row_of_sum(int lanes) { return int(threadIdx.x) >> (31 - __clz(lanes)); }

// A thread's share of the sum of its row, from the values of a segment.
template <class S>
__device__ __forceinline__ S share_of_sum(const S* values, int rows, int features, int lanes) {
  const int row = row_of_sum(lanes);
  S total = S(0);
  if (row < rows)
#if defined(__NVCC__)
#pragma unroll 1  // few terms: copies of the loop for more would cost more than they save
#endif
    for (int f = int(threadIdx.x) & (lanes - 1); f < features; f += lanes) total += values[row * features + f];
  return total;
}

// Adds up the shares of each row, always in the same order.
template <class S> __device__ __forceinline__ void store_sums(S total, int rows, int lanes, S* sums) {
  for (unsigned step = unsigned(lanes) / 2; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  const int row = row_of_sum(lanes);
  if ((int(threadIdx.x) & (lanes - 1)) == 0 && row < rows) sums[row] = total;
}

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

FLOWKERN_END
