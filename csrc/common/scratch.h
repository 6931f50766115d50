// Working memory of the CPU kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flowkern {
namespace {

// Memory that a thread keeps from call to call: getting it anew costs a page fault every 4 KiB.
template <class S, int which> S* scratch(std::size_t count) {
  constexpr std::size_t alignment = 64;
  thread_local std::vector<S> memory;
  if (memory.size() < count + alignment) memory = std::vector<S>(count + alignment);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  return memory.data() + (alignment - address % alignment) % alignment / sizeof(S);
}

}  // namespace
}  // namespace flowkern
