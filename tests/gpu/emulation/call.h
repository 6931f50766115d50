// What Python (library.py) hands to an op's CUDA sources, which are compiled as C++ beside this: tensors, whose
// memory is watched while the op runs.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/elements.h"
#include "memory.h"

namespace {

using emulation::Use;
using flowkern::Elements;

// A tensor as library.py passes it: its address, how much of the memory behind that is its own, and
// three strides, missing ones 0.
struct Tensor {
  void* data;
  std::int64_t bytes, stride[3];

  template <class S> S* at(std::int64_t i = 0) const { return static_cast<S*>(data) + i * stride[2]; }
  template <class S> Elements<S> elements(const std::int64_t* index, std::int64_t i = 0) const {
    return {at<S>(i), stride[0], stride[1], index};
  }
};

// What a kernel needs besides its tensors.
template <class S> struct Scratch {
  S* data;
  explicit Scratch(std::int64_t count) : data(static_cast<S*>(emulation::allocate(std::size_t(count) * sizeof(S)))) {
    emulation::watch(data, std::size_t(count) * sizeof(S), "scratch", Use::kOutput);
  }
  ~Scratch() { emulation::release(data); }
};

struct Watched { const char* name; const Tensor& tensor; Use use; };

void watch(std::initializer_list<Watched> all) {
  emulation::forget_all();
  for (const auto& [name, tensor, use] : all)
    if (tensor.data) emulation::watch(tensor.data, std::size_t(tensor.bytes), name, use);
}

// What was wrong, or null.
template <class C, class F> const char* reported(const C& c, const F& run) {
  static std::string report;
  try {
    watch_all(c);
    run();
    return nullptr;
  } catch (const std::runtime_error& error) {
    report = error.what();
    return report.c_str();
  }
}

}  // namespace
