// Runs grids on the CPU, block after block. Each thread of a block is a fiber: it runs until it waits
// for others, then the next one runs, in an order that the settings name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <source_location>
#include <string>

#include "cuda/vector_types.h"

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 1 << 18;
constexpr std::size_t kMostShared = 232448;  // 227 KiB

enum Schedule { kForward = 0, kReversed = 1, kRandom = 2 };
struct Settings {
  int schedule = kForward;
  unsigned seed = 0;
  unsigned most_blocks = 2147483647;  // along x; fewer than a kernel asks for make its blocks loop
};
inline Settings settings;
inline int device = 0;  // the current one

// What a thread waits for: the lanes of `mask` in its warp, or the whole block where that is 0.
struct Meeting {
  const char* what;
  std::uint32_t mask;
  bool orders_memory;
  std::source_location at;
};

// Waits until all have come to the same meeting.
void meet(const Meeting& meeting);
// Likewise; `values` are those that the lanes of the warp brought there.
void meet(const Meeting& meeting, std::uint64_t value, std::uint64_t* values);

void check_source(const Meeting& meeting, int lane);  // that a value is taken from

int lane();  // of the running thread

// The thread that runs now, if any. What lane l did before the time seen[l] happened before what this
// thread does now.
struct Thread {
  unsigned rank = 0;
  std::uint32_t seen[kWarp] = {};
  unsigned warp() const { return rank / kWarp; }
  unsigned lane() const { return rank % kWarp; }
};
inline Thread* running = nullptr;
inline unsigned char* own_stack = nullptr;

// Whether a kernel's code runs. Not so while the emulation works for it, which shares inline functions
// of the standard library with the kernels: the linker may keep the copy that is watched.
inline bool watching = false;
struct Unwatched {
  Unwatched() { watching = false; }
  ~Unwatched() { watching = true; }
};

// Time goes on whenever threads have met, and when a block or a grid begins.
struct Clock { std::uint32_t now = 0, grid = 0, block = 0, barrier = 0; };
inline Clock now;

// A kernel and its arguments; once(kernel, arguments) calls it.
struct Call {
  void* kernel;
  void (*once)(void* kernel, void* arguments);
  void* arguments;
  std::size_t bytes;  // of the arguments
};
struct Grid {
  dim3 blocks, threads;
  std::size_t shared;  // bytes of dynamic shared memory
  Call call;
};

// Names of the kernels that have run.
inline std::set<std::string> launched;

// Runs all blocks; throws std::runtime_error with what was found wrong.
void run(const Grid& grid);

// Reports what the running thread does wrong, and leaves the grid.
[[noreturn]] void fault(const std::string& what);

std::string text(const dim3& at);                      // "(1, 0, 0)"
dim3 index_of(unsigned rank, const dim3& size);

}  // namespace emulation
