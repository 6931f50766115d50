// Watches what kernels read and write: whether it lies in a tensor or in shared memory, whether it was
// written before it is read, and whether threads that do not wait for each other come in each other's way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace emulation {

// kInput is only read, kOutput is not read before it is written, kBuffer is both.
enum class Use { kInput, kOutput, kBuffer, kShared };

// Global memory that kernels may use from here on, under this name in reports.
void watch(const void* data, std::size_t bytes, const std::string& name, Use use);
void forget_all();

enum class Access { kRead, kWrite, kAtomic };

// To be called before the running thread does it, with memory other than its own stack; does not
// return if that is wrong.
void check_access(const void* address, std::size_t bytes, Access how);

inline void access(const void* address, std::size_t bytes, Access how) {
  const auto at = reinterpret_cast<std::uintptr_t>(address), stack = reinterpret_cast<std::uintptr_t>(own_stack);
  if (at - stack >= kStack) check_access(address, bytes, how);
}

// Shared memory is as large as the grid asks for, and uninitialised when a block begins.
void begin_grid(const Grid& grid);
void begin_block();

// A new fiber begins on this stack.
void clear_stack(unsigned char* stack);

}  // namespace emulation
