// A small kernel for each fault that the emulation has to see, and its right twin (wrong = false).
// Each runs on two blocks of 64 threads, reads `in` and writes `out`, both of 128 floats, and has 64
// floats of dynamic shared memory. test_faults.py says which thread is to be named.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace faults {

constexpr int kThreads = 64, kBlocks = 2, kCount = kThreads * kBlocks;
constexpr unsigned kAll = 0xffffffffu;

__device__ int here() { return int(blockIdx.x * blockDim.x + threadIdx.x); }
__device__ float* dynamic_memory() {
  extern __shared__ float memory[];
  return memory;
}

// --- out of bounds -------------------------------------------------------------------------------

template <bool wrong> __global__ void global_read(const float* in, float* out) {
  out[here()] = in[here() + wrong];
}
template <bool wrong> __global__ void global_write(const float* in, float* out) {
  out[here() - wrong] = in[here()];
}
template <bool wrong> __global__ void input_written(const float* in, float* out) {
  (wrong ? const_cast<float*>(in) : out)[here()] = 1;
}
template <bool wrong> __global__ void dynamic_shared(const float* in, float* out) {
  float* memory = dynamic_memory();
  memory[threadIdx.x + wrong] = in[here()];
  out[here()] = memory[threadIdx.x + wrong];
}
template <bool wrong> __global__ void static_shared(const float* in, float* out) {
  __shared__ float tile[2][32];
  float* first = tile[0];
  first[threadIdx.x + wrong] = in[here()];
  out[here()] = first[threadIdx.x + wrong];
}
template <bool wrong> __global__ void static_shared_pointer(const float* in, float* out) {
  __shared__ float tile[64];
  float* volatile first = tile;  // so that the compiler does not know what it points to
  first[threadIdx.x + wrong] = in[here()];
  out[here()] = first[threadIdx.x + wrong];
}
template <bool wrong> __global__ void static_shared_index(const float* in, float* out) {
  __shared__ float tile[64][1];
  tile[threadIdx.x][wrong && threadIdx.x == 40] = in[here()];
  out[here()] = tile[threadIdx.x][0];
}
template <bool wrong> __global__ void local_index(const float* in, float* out) {
  float values[4] = {in[0], in[1], in[2], in[3]};
  out[here()] = values[wrong && threadIdx.x == 7 ? 4 : threadIdx.x % 4];
}
__device__ __attribute__((noinline)) float pick(const float* values, int i) { return values[i]; }
template <bool wrong> __global__ void local_pointer(const float* in, float* out) {
  float values[4] = {in[0], in[1], in[2], in[3]};
  out[here()] = pick(values, wrong && threadIdx.x == 7 ? 4 : threadIdx.x % 4);
}

// --- undefined behaviour -------------------------------------------------------------------------

template <bool wrong> __global__ void overflow(const float* in, float* out) {
  const int large = 2147483647 - 63;
  out[here()] = in[here()] + float(large + int(threadIdx.x) + wrong);
}
template <bool wrong> __global__ void shift(const float* in, float* out) {
  out[here()] = in[here()] + float(1u << (threadIdx.x % 32 + (wrong && threadIdx.x == 31)));
}
template <bool wrong> __global__ void misaligned(const float* in, float* out) {
  const auto four = reinterpret_cast<const float4*>(in + wrong)[threadIdx.x % 8];
  out[here()] = four.x;
}
template <bool wrong> __global__ void conversion(const float* in, float* out) {
  out[here()] = float(int(in[here()] + (wrong && threadIdx.x == 9 ? 3e9f : 0.0f)));
}

// --- barriers ------------------------------------------------------------------------------------

template <bool wrong> __global__ void barrier_after_exit(const float* in, float* out) {
  if (wrong && threadIdx.x == 50) return;
  __syncthreads();
  out[here()] = in[here()];
}
template <bool wrong> __global__ void barrier_in_a_branch(const float* in, float* out) {
  if (!wrong || threadIdx.x < 32) __syncthreads();
  out[here()] = in[here()];
  __syncwarp();
}
template <bool wrong> __global__ void two_barriers(const float* in, float* out) {
  if (wrong && threadIdx.x % 2) __syncthreads();
  else __syncthreads();
  out[here()] = in[here()];
}

// --- lanes ---------------------------------------------------------------------------------------

template <bool wrong> __global__ void shuffle_from_exited(const float* in, float* out) {
  if (wrong && threadIdx.x == 5) return;
  out[here()] = __shfl_xor_sync(kAll, in[here()], 1);
}
template <bool wrong> __global__ void shuffle_not_reached(const float* in, float* out) {
  float value = in[here()];
  if (!wrong || threadIdx.x != 33) value = __shfl_down_sync(kAll, value, 1);
  __syncthreads();
  out[here()] = value;
}
template <bool wrong> __global__ void shuffle_outside_of_mask(const float* in, float* out) {
  float value = 0;
  if (threadIdx.x % 32 < 16) value = __shfl_sync(0xffffu, in[here()], wrong && threadIdx.x == 3 ? 20 : 0);
  out[here()] = value;
}
template <bool wrong> __global__ void mask_without_itself(const float* in, float* out) {
  out[here()] = float(__ballot_sync(wrong && threadIdx.x == 8 ? kAll & ~256u : kAll, in[here()] > 0));
}

// --- uninitialised -------------------------------------------------------------------------------

template <bool wrong> __global__ void shared_not_written(const float* in, float* out) {
  float* memory = dynamic_memory();
  if (!wrong || threadIdx.x != 20) memory[threadIdx.x] = in[here()];
  __syncthreads();
  out[here()] = memory[63 - threadIdx.x];
}
template <bool wrong> __global__ void left_by_another_block(const float* in, float* out) {
  __shared__ float first;
  if (threadIdx.x == 0 && (!wrong || blockIdx.x == 0)) first = in[0];
  __syncthreads();
  out[here()] = first;
}
template <bool wrong> __global__ void output_not_written(const float* in, float* out) {
  if (!wrong) out[here()] = 0;
  out[here()] = out[here()] + in[here()];
}

// --- races ---------------------------------------------------------------------------------------

template <bool wrong> __global__ void read_without_barrier(const float* in, float* out) {
  float* memory = dynamic_memory();
  memory[threadIdx.x] = in[here()];
  if (!wrong) __syncthreads();
  out[here()] = memory[threadIdx.x ^ 32];
}
template <bool wrong> __global__ void rewritten_without_barrier(const float* in, float* out) {
  float* memory = dynamic_memory();
  for (int i = 0; i < 2; ++i) {
    memory[threadIdx.x] = in[here()];
    __syncthreads();
    out[here()] = memory[63 - threadIdx.x];
    if (!wrong) __syncthreads();
  }
}
template <bool wrong> __global__ void both_write(const float* in, float* out) {
  __shared__ unsigned char flags[kThreads];
  flags[wrong ? threadIdx.x / 2 : threadIdx.x] = in[here()] > 0;
  __syncthreads();
  out[here()] = flags[threadIdx.x];
}
template <bool wrong> __global__ void read_without_syncwarp(const float* in, float* out) {
  float* memory = dynamic_memory();
  memory[threadIdx.x] = in[here()];
  const float sum = __shfl_xor_sync(kAll, in[here()], 1);  // orders no memory
  if (!wrong) __syncwarp();
  out[here()] = memory[threadIdx.x ^ 1] + sum;
}
template <bool wrong> __global__ void written_after_read(const float* in, float* out) {
  float* memory = dynamic_memory();
  memory[threadIdx.x] = in[here()];
  __syncthreads();
  out[here()] = memory[threadIdx.x & ~31u];
  if (!wrong) __syncwarp();
  if (threadIdx.x % 32 == 1) memory[threadIdx.x & ~31u] = 0;
}
template <bool wrong> __global__ void tile_too_small(const float* in, float* out) {
  namespace cg = cooperative_groups;
  const auto block = cg::this_thread_block();
  float* memory = dynamic_memory();
  memory[block.thread_rank()] = in[here()];
  cg::tiled_partition<8>(block).sync();
  out[here()] = memory[threadIdx.x ^ (wrong ? 8 : 4)];
}
template <bool wrong> __global__ void syncwarp_between_warps(const float* in, float* out) {
  float* memory = dynamic_memory();
  memory[threadIdx.x] = in[here()];
  __syncwarp();
  out[here()] = memory[threadIdx.x ^ (wrong ? 32 : 16)];
}
template <bool wrong> __global__ void global_race(const float* in, float* out) {
  out[here()] = in[here()];
  if (!wrong) __syncthreads();
  if (threadIdx.x < 32) out[here() + 32] = 0;
}
template <bool wrong> __global__ void race_of_blocks(const float* in, float* out) {
  out[wrong ? threadIdx.x : here()] = in[here()];
}
template <bool wrong> __global__ void atomic_and_plain(const float* in, float* out) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (wrong && threadIdx.x == 63) sum = sum + in[here()];
  else atomicAdd(&sum, in[here()]);
  __syncthreads();
  out[here()] = sum;
}

// --- right in every order ------------------------------------------------------------------------

// Everything at once; wrong = true only changes the sums.
template <bool wrong> __global__ void right(const float* in, float* out) {
  namespace cg = cooperative_groups;
  const auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  __shared__ int most, first;
  __shared__ double warps[2];
  if (threadIdx.x == 0) most = -1, first = 0;
  __syncthreads();
  atomicMax(&most, int(threadIdx.x));
  atomicCAS(&first, 0, 7);
  float value = cg::reduce(tile, in[here()], cg::plus<float>()) + tile.shfl(in[here()], 3);
  value += __shfl_up_sync(kAll, value, 1) + __shfl_down_sync(kAll, value, 2, 8);
  const unsigned even = __ballot_sync(kAll, threadIdx.x % 2 == 0);
  const int sum = __reduce_add_sync(kAll, int(threadIdx.x));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int votes = __any_sync(kAll, wrong) + __all_sync(kAll, 1);
  out[here()] = value + float(most + first + __popc(even) + sum + votes) + float(warps[0] - warps[1]);
}

// Blocks of 4 × 2 × 8 threads in a grid of 1 × 2 × 1, which use `dynamic` floats of shared memory.
__global__ void dimensions(float* out, int dynamic) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  if (thread == 0) dynamic_memory()[dynamic - 1] = float(1000 * blockIdx.y);
  __syncthreads();
  const unsigned at = blockIdx.y * kThreads + thread;
  out[at] = dynamic_memory()[dynamic - 1] + float(threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z);
}

// -------------------------------------------------------------------------------------------------

using Kernel = void (*)(const float*, float*);
struct Fault { const char* name; Kernel kernels[2]; };
#define FAULT(name) {#name, {name<false>, name<true>}}
constexpr Fault kFaults[] = {
    FAULT(global_read), FAULT(global_write), FAULT(input_written), FAULT(dynamic_shared),
    FAULT(static_shared), FAULT(static_shared_pointer), FAULT(static_shared_index), FAULT(local_index),
    FAULT(local_pointer), FAULT(overflow), FAULT(shift), FAULT(misaligned), FAULT(conversion),
    FAULT(barrier_after_exit), FAULT(barrier_in_a_branch), FAULT(two_barriers), FAULT(shuffle_from_exited),
    FAULT(shuffle_not_reached), FAULT(shuffle_outside_of_mask), FAULT(mask_without_itself),
    FAULT(shared_not_written), FAULT(left_by_another_block), FAULT(output_not_written),
    FAULT(read_without_barrier), FAULT(rewritten_without_barrier), FAULT(both_write),
    FAULT(read_without_syncwarp), FAULT(written_after_read), FAULT(tile_too_small),
    FAULT(syncwarp_between_warps), FAULT(global_race), FAULT(race_of_blocks), FAULT(atomic_and_plain),
    FAULT(right),
};

std::string report;

const Fault& find(const std::string& name) {
  for (const Fault& fault : kFaults)
    if (name == fault.name) return fault;
  throw std::runtime_error("no kernel " + name);
}

}  // namespace faults

// Runs a kernel, right or wrong, on in = 0, 1, …; what was found wrong, or null.
extern "C" const char* run_fault(const char* name, bool wrong, int schedule, unsigned seed, float* result) {
  using namespace faults;
  constexpr std::size_t bytes = sizeof(float) * kCount;
  emulation::settings = {schedule, seed};
  float* const in = static_cast<float*>(std::aligned_alloc(16, bytes));
  float* const out = static_cast<float*>(std::aligned_alloc(16, bytes));
  for (int i = 0; i < kCount; ++i) in[i] = float(i);
  emulation::forget_all();
  emulation::watch(in, bytes, "in", emulation::Use::kInput);
  emulation::watch(out, bytes, "out", emulation::Use::kOutput);
  report.clear();
  try {
    const cudaLaunchConfig_t config{dim3(kBlocks), dim3(kThreads), sizeof(float) * kThreads, nullptr};
    cudaLaunchKernelEx(&config, find(name).kernels[wrong], in, out);
  } catch (const std::runtime_error& error) {
    report = error.what();
  }
  std::memcpy(result, out, bytes);
  std::free(in), std::free(out);
  return report.empty() ? nullptr : report.c_str();
}

// Likewise `dimensions`, with so much shared memory allowed before; what the launch returns.
extern "C" int run_dimensions(int dynamic, int allowed, float* out) {
  emulation::settings = {};
  emulation::forget_all();
  emulation::watch(out, sizeof(float) * faults::kCount, "out", emulation::Use::kOutput);
  const int bytes = int(sizeof(float));
  const cudaLaunchConfig_t config{dim3(1, 2), dim3(4, 2, 8), std::size_t(bytes * dynamic), nullptr};
  constexpr auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const auto error = cudaFuncSetAttribute(faults::dimensions, most, bytes * allowed);
  if (error != cudaSuccess) return error;
  return cudaLaunchKernelEx(&config, faults::dimensions, out, dynamic);
}
