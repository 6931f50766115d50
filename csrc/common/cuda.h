// What the torch side of every CUDA op shares: the device and the stream that its kernels run on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"

namespace flowkern {

// Makes x's device the current one while it lives. `stream` is the cudaStream_t that torch uses there.
struct OnDevice {
  explicit OnDevice(const Tensor& x) : guard(x.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

}  // namespace flowkern
