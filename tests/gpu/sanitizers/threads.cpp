// torch's parallel_for, in a library for the sanitizers: four threads that they know of take a few of the
// iterations at a time, however small the call.
#include <cstdint>
#include <thread>

namespace {

constexpr int kThreads = 4;
constexpr std::int64_t kMost = 7;  // no multiple of the lanes or of what fits into a segment

}  // namespace

// As declared in torch/csrc/stable/c/shim.h. Hidden, so that this library's calls come here.
extern "C" __attribute__((visibility("hidden"))) std::int32_t torch_parallel_for(
    std::int64_t begin, std::int64_t end, std::int64_t, void (*body)(std::int64_t, std::int64_t, void*), void* context) {
  const std::int64_t share = (end - begin + kThreads - 1) / kThreads, step = share < kMost ? share : kMost;
  std::thread threads[kThreads];
  for (int t = 0; t < kThreads; ++t)
    threads[t] = std::thread([=] {
      for (std::int64_t i = begin + t * step; i < end; i += kThreads * step) body(i, i + step < end ? i + step : end, context);
    });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
