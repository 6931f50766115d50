// Runs a flow that Python exported, with flowkern's kernels and without Python: main flow.pt2
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>

int main(int, char** arguments) {
  torch::inductor::AOTIModelPackageLoader flow(arguments[1]);
  const at::Tensor x = at::arange(15, at::kFloat).view({5, 3}) / 10;
  const at::Tensor log_prob = flow.run({x})[0];
  for (std::int64_t n = 0; n < log_prob.size(0); ++n) std::printf("%.9g\n", log_prob[n].item<double>());
}
