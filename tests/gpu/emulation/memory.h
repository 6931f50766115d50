// Watches what kernels read and write: whether it lies in a tensor or in shared memory, whether it was
// written before it is read, and whether threads that do not wait for each other come in each other's way.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

struct Grid;

// Inputs are only read; outputs and shared memory are not read before they are written.
enum class Use { kInput, kOutput, kShared };

// Global memory that kernels may use from here on, under this name in reports.
void watch(const void* data, std::size_t bytes, const std::string& name, Use use);
void forget_all();

// Memory where the tensors are: on the CPU here, on the GPU in tests/gpu/gate/driver.cu.
void* allocate(std::size_t bytes);
void release(void* memory);

enum class Access { kRead, kWrite, kAtomic };

// To be called before the running thread does it, at this place in the code; does not return if that
// is wrong.
void access(const void* address, std::size_t bytes, Access how, const void* code);

// Shared memory is as large as the grid asks for, and uninitialised when a block begins.
void begin_grid(const Grid& grid);
void begin_block();

// A new fiber begins on this stack.
void clear_stack(unsigned char* stack);

}  // namespace emulation
