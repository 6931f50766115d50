// Stands in for the CUDA runtime: kernels compiled as C++ run on the CPU, block after block.
//
// Each thread of a block is a fiber. It runs until it waits at a barrier or in a shuffle, then the
// next one runs; in which order is up to emulation::schedule. Shared memory is on the heap, so that
// the address sanitizer sees accesses beyond it. A barrier that only a part of the block reaches, and
// a shuffle without the whole warp, end the process.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct __attribute__((may_alias, aligned(16))) uint4 { unsigned x, y, z, w; };

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid configuration argument" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr size_t kStack = 1 << 18;
constexpr int kWarp = 32;
enum State { kReady, kAtBarrier, kInShuffle, kDone };
enum Schedule { kForward = 0, kReversed = 1, kRandom = 2 };

inline int schedule = kForward;
inline unsigned seed = 0;
inline int withheld = 0;       // bytes of shared memory that a kernel asks for and does not get
inline unsigned most_blocks = 2147483647;  // of a grid; fewer make blocks loop

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "emulation: %s\n", message);
  std::abort();
}

// The stack of a fiber, or of the thread that runs them. Each switch is announced to the sanitizer.
struct Context {
  ucontext_t context;
  void* stack = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;

  void switch_to(Context& to, [[maybe_unused]] bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, to.stack, to.size);
#endif
    swapcontext(&context, &to.context);
    arrived(*this);
  }
  static void arrived(Context& self, Context* from = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(self.fake_stack, &stack, &size);
    if (from) from->stack = const_cast<void*>(stack), from->size = size;
#else
    (void)self, (void)from;
#endif
  }
};

struct Fiber : Context {
  State state = kDone;
  int shuffles = 0;          // so far; two slots are enough, as nobody overtakes by two
  double slots[2];           // what it gives in a shuffle
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char*> stacks;
  Context main;
  Fiber* current = nullptr;
  unsigned char* shared = nullptr;
  std::function<void()> body;
};
inline Block block;

inline unsigned char* shared_memory() { return block.shared; }

inline void wait(State state) {
  block.current->state = state;
  block.current->switch_to(block.main);
}

inline void enter() {
  Context::arrived(*block.current, &block.main);
  block.body();
  block.current->state = kDone;
  block.current->switch_to(block.main, true);
}

inline void start(Fiber& fiber, unsigned char* stack) {
  fiber = Fiber{};
  fiber.stack = stack, fiber.size = kStack, fiber.state = kReady;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack, fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, enter, 0);
}

inline bool all(size_t first, size_t last, State state) {
  return std::all_of(block.fibers.begin() + first, block.fibers.begin() + last, [&](const Fiber& f) { return f.state == state; });
}
inline void release(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) block.fibers[i].state = kReady;
}

// Lets those go on that wait together. False if nobody can.
inline bool release_waiting() {
  const size_t threads = block.fibers.size();
  bool any = all(0, threads, kAtBarrier);
  if (any) release(0, threads);
  for (size_t first = 0; first < threads; first += kWarp)
    if (all(first, first + kWarp, kInShuffle)) release(first, first + kWarp), any = true;
  return any;
}

// One turn for every fiber that is ready.
inline void turn(std::vector<unsigned>& order, std::mt19937& random) {
  if (schedule == kRandom) std::shuffle(order.begin(), order.end(), random);
  for (unsigned i : order) {
    Fiber& fiber = block.fibers[schedule == kReversed ? order.size() - 1 - i : i];
    if (fiber.state != kReady) continue;
    block.current = &fiber;
    threadIdx = dim3(unsigned(&fiber - block.fibers.data()), 0, 0);
    block.main.switch_to(fiber);
  }
}

inline void run_block(size_t shared, std::mt19937& random) {
  const size_t threads = block.fibers.size();
  for (size_t i = 0; i < threads; ++i) start(block.fibers[i], block.stacks[i]);
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, shared)) fail("no memory");
  block.shared = static_cast<unsigned char*>(memory);
  std::memset(block.shared, 0xff, shared);  // NaN, and far outside as an offset
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  do turn(order, random);
  while (release_waiting());
  if (!all(0, threads, kDone)) fail("a barrier or a shuffle was not reached by all its threads");
  std::free(block.shared);
}

inline void run_grid(const cudaLaunchConfig_t& config) {
  const unsigned threads = config.blockDim.x;
  while (block.stacks.size() < threads)
    block.stacks.push_back(static_cast<unsigned char*>(
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  block.fibers.assign(threads, {});
  std::mt19937 random(seed);
  gridDim = dim3(std::min(config.gridDim.x, most_blocks)), blockDim = config.blockDim;
  for (unsigned i = 0; i < gridDim.x; ++i) {
    blockIdx = dim3(i, 0, 0);
    run_block(config.dynamicSmemBytes - withheld, random);
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::kAtBarrier); }

template <class S> S __shfl_xor_sync(unsigned, S value, int mask) {
  using namespace emulation;
  const int slot = block.current->shuffles++ % 2;
  block.current->slots[slot] = value;
  wait(kInShuffle);
  return S(block.fibers[threadIdx.x ^ unsigned(mask)].slots[slot]);
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const bool fits = config->gridDim.x > 0 && config->blockDim.x > 0 && config->blockDim.x <= 1024 &&
                    config->blockDim.x % emulation::kWarp == 0 && config->dynamicSmemBytes <= 49152;
  if (!fits) return cudaErrorInvalidConfiguration;
  emulation::block.body = [&] { kernel(P(arguments)...); };
  emulation::run_grid(*config);
  return cudaSuccess;
}
