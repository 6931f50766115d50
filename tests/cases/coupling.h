// A call of a coupling, as coupling_emulated.py passes it.
#pragma once

#include "../gpu/emulation/call.h"

namespace {

// Sizes N, D, T, P. y stands for grad_x in the backward.
struct Call {
  std::int64_t sizes[4];
  Tensor x, params, index, bounds, y, logabsdet, grad_y, grad_logabsdet, grad_params;
  std::int64_t integers[3];  // of the op, in the order of its schema
  double numbers[9];
};

void watch_all(const Call& c) {
  watch({
      {"x", c.x, Use::kInput},
      {"params", c.params, Use::kInput},
      {"index", c.index, Use::kInput},
      {"bound", c.bounds, Use::kInput},
      {"grad_y", c.grad_y, Use::kInput},
      {"grad_logabsdet", c.grad_logabsdet, Use::kInput},
      {c.grad_y.data ? "grad_x" : "y", c.y, Use::kOutput},
      {"logabsdet", c.logabsdet, Use::kOutput},
      {"grad_params", c.grad_params, Use::kOutput},
  });
}

}  // namespace
