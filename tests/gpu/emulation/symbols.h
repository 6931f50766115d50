// Names of kernels and of their shared arrays, from the symbol table of the library itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

struct Symbol {
  std::string name;
  std::uint64_t offset, bytes;  // from the beginning of the library, or of its thread-local memory
};

const std::vector<Symbol>& thread_local_symbols();
std::uint64_t thread_local_offset(const std::string& name);

// "forward_kernel<float, 8, false, true>(SplineProblem<float>, Plan)"
std::string function_name(const void* function);

std::vector<std::string> function_names();

// " [+0x1234]" in the library, for addr2line.
std::string code_place(const void* address);

}  // namespace emulation
