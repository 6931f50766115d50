// Time in the first layer, on all threads of a block: what it adds there, and the gradients of that.
#pragma once

#include "../common/cuda.cuh"
#include "../common/sincos.h"
#include "cuda.h"
#include "products.cuh"

FLOWKERN_BEGIN
namespace {

// The time c steps after the begin of step n.
template <class S> __device__ __forceinline__ S stage_time(const OdeSolve<S>& p, int n, S c) {
  return fma(S(n % p.steps) + c, p.sizes[n / p.steps], p.starts[n / p.steps]);
}

// φ(t), by all threads.
template <class S> __device__ __forceinline__ void put_phi(const OdeSolve<S>& p, S t, S* phi) {
  if (threadIdx.x == 0 && p.phi > 0) phi[0] = t;
  for (int f = threadIdx.x; f < p.frequencies; f += kOdeThreads)
    sincos(p.omega[f] * t, phi[p.frequencies + f], phi[f]);
  __syncthreads();
}

// What the first layer adds then for all samples, b + W φ(t), to a number for each unit; behind them is room for
// φ(t). Without a barrier at the end: a product stands between this and its use.
template <class S> __device__ __noinline__ void embed(const OdeSolve<S>& p, int n, S c, S* first) {
  const OdeLayer<S>& layer = p.layer[0];
  S* phi = first + layer.units;
  put_phi(p, stage_time(p, n, c), phi);
  for (int r = threadIdx.x; r < layer.units; r += kOdeThreads) {
    S sum = layer.bias ? layer.bias[r] : S(0);
    for (int q = 0; q < p.phi; ++q) sum = fma(p.time[int64_t(r) * p.phi + q], phi[q], sum);
    first[r] = sum;
  }
}

// Adds the gradients of b, W, ω and the time to the block's sums. z: the cotangent of the first layer's W u + b;
// numbers: room for each unit and twice for φ(t).
template <class S>
__device__ __noinline__ void embed_back(const OdeSolve<S>& p, int n, S c, const S* z, S factor, S* numbers, S* slice) {
  const OdeLayer<S>& layer = p.layer[0];
  const S t = stage_time(p, n, c);
  S *phi = numbers + layer.units, *bar = phi + p.phi;  // bar: the cotangent of φ(t)
  put_phi(p, t, phi);
  for (int r = threadIdx.x; r < layer.units; r += kOdeThreads) {
    const S total = factor * row_total(z, r, 1 << p.shift);
    numbers[r] = total;
    if (layer.bias) slice[layer.bias_sums + r] += total;
    S* sums = slice + p.time_sums + int64_t(r) * p.phi;
    for (int q = 0; q < p.phi; ++q) sums[q] = fma(total, phi[q], sums[q]);
  }
  __syncthreads();
  for (int q = threadIdx.x; q < p.phi; q += kOdeThreads) {
    S sum = S(0);
    for (int r = 0; r < layer.units; ++r) sum = fma(p.time[int64_t(r) * p.phi + q], numbers[r], sum);
    bar[q] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0 && p.phi > 0) {
    S of_time = p.omega ? S(0) : bar[0];
    for (int f = 0; f < p.frequencies; ++f) {
      const S of_angle = phi[f] * bar[p.frequencies + f] - phi[p.frequencies + f] * bar[f];
      slice[p.omega_sums + f] = fma(t, of_angle, slice[p.omega_sums + f]);
      of_time = fma(p.omega[f], of_angle, of_time);
    }
    slice[p.start_sums + n / p.steps] += of_time;
    slice[p.size_sums + n / p.steps] += (S(n % p.steps) + c) * of_time;
  }
  __syncthreads();
}

}  // namespace
FLOWKERN_END
