// The parameters of a block's elements, staged in shared memory: moved in the order in which they lie
// in main memory, used by one thread per element.
#pragma once

#include "cuda.cuh"

FLOWKERN_BEGIN

// Parameter i of element (n, t) is at base[n·row + t·feature + i·one].
template <class S> struct Parameters {
  S* base;
  int64_t row, feature, one;
};

// Element e's parameters are at values[e·stride] and on; the stride is odd, so that 32 threads find
// theirs in 32 banks.
template <class S> struct Stage {
  int64_t* offsets;  // where in main memory the elements' parameters begin
  S* values;
  int parameters, stride;

  __device__ __forceinline__ S* own() const { return values + int(threadIdx.x) * stride; }
};

// Shared memory of a stage for one element per thread.
template <class S> FLOWKERN_HD constexpr size_t stage_bytes(int threads, int64_t parameters) {
  return threads * (sizeof(int64_t) + sizeof(S) * (parameters ? parameters | 1 : 0));
}

template <class S> __device__ __forceinline__ Stage<S> stage_of(int64_t parameters) {
  auto* offsets = reinterpret_cast<int64_t*>(shared_memory());
  return {offsets, reinterpret_cast<S*>(offsets + blockDim.x), int(parameters), int(parameters) | 1};
}

// Copies contiguous values, sixteen bytes at a time where both ends are so aligned.
template <class S> __device__ __forceinline__ void copy_values(const S* from, S* to, int count) {
  constexpr int each = sizeof(uint4) / sizeof(S);
  const auto ends = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  const int whole = ends % sizeof(uint4) ? 0 : count / each;
  for (int i = threadIdx.x; i < whole; i += blockDim.x)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (int i = whole * each + int(threadIdx.x); i < count; i += blockDim.x) to[i] = from[i];
}

// Calls body(in stage, in main memory) for every parameter of `count` elements, neighbouring threads
// at neighbouring addresses: along the parameters of an element, or along the elements.
template <class T, class S, class F>
__device__ __forceinline__ void each_parameter(const Stage<S>& stage, const Parameters<T>& p, int count, const F& body) {
  const bool across = p.one != 1 && p.feature == 1;
  const int outer = across ? stage.parameters : count;
  for (Walk at(across ? count : stage.parameters); at.outer < outer; at.next()) {
    const int e = across ? at.inner : at.outer, i = across ? at.outer : at.inner;
    body(e * stage.stride + i, stage.offsets[e] + i * p.one);
  }
}

// Whether a segment's parameters lie in main memory as they do in the stage.
template <class T, class S>
__device__ __forceinline__ bool contiguous(const Stage<S>& stage, const Parameters<T>& p, int rows, int features) {
  return stage.stride == stage.parameters && p.one == 1 && p.feature == stage.parameters &&
         (rows == 1 || p.row == features * p.feature);
}

// Notes where the elements' parameters lie in main memory; that of this thread is `at`.
template <class T, class S>
__device__ __forceinline__ void note_offsets(const Stage<S>& stage, const Parameters<T>& p, const Place& at) {
  if (at.used) stage.offsets[threadIdx.x] = at.row * p.row + at.feature * p.feature;
  __syncthreads();
}

// Fetches the parameters of the block's `count` elements in a segment of rows × features.
template <class S>
__device__ __forceinline__ void load_stage(const Stage<S>& stage, const Parameters<const S>& from, const Place& at, int count, int rows, int features) {
  note_offsets(stage, from, at);
  if (contiguous(stage, from, rows, features))
    copy_values(from.base + stage.offsets[0], stage.values, count * stage.parameters);
  else
    each_parameter(stage, from, count, [&](int staged, int64_t main) FLOWKERN_INLINE { stage.values[staged] = from.base[main]; });
  __syncthreads();
}

// Writes them back.
template <class S>
__device__ __forceinline__ void store_stage(const Stage<S>& stage, const Parameters<S>& to, const Place& at, int count, int rows, int features) {
  note_offsets(stage, to, at);
  if (contiguous(stage, to, rows, features))
    copy_values(stage.values, to.base + stage.offsets[0], count * stage.parameters);
  else
    each_parameter(stage, to, count, [&](int staged, int64_t main) FLOWKERN_INLINE { to.base[main] = stage.values[staged]; });
}

FLOWKERN_END
