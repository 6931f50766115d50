// The kernels' host code on a runtime that keeps one maximum of shared memory for each kernel and device, as CUDA does:
// prints "launches refused, maxima set, maxima lowered" of many threads that launch one kernel on two devices.
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "common/cuda.cuh"

namespace {

constexpr int kThreadCount = 8, kLaunches = 200, kDevices = 2;
std::mutex mutex;
std::map<std::pair<int, const void*>, std::size_t> most;
int refused = 0, set = 0, lowered = 0;
bool broken = false;

void kernel(int) {}

void launch(int thread) {
  for (int i = 0; i < kLaunches; ++i) {
    try {
      flowkern::cuda::launch_blocks("kernel", kernel, 1, 32, std::size_t(50 + (7 * thread + i) % 170) * 1024, nullptr, i);
    } catch (const std::runtime_error&) {
      const std::lock_guard<std::mutex> lock(mutex);
      ++refused;
    }
  }
}

}  // namespace

namespace emulation {
cudaError_t launch(const cudaLaunchConfig_t& config, const Call& call) {
  std::this_thread::yield();
  const std::lock_guard<std::mutex> lock(mutex);
  return config.dynamicSmemBytes > most[{device, call.kernel}] ? cudaErrorInvalidConfiguration : cudaSuccess;
}
cudaError_t allow_shared(const void* kernel, std::size_t bytes) {
  if (broken) return cudaErrorInvalidConfiguration;
  const std::lock_guard<std::mutex> lock(mutex);
  std::size_t& now = most[{device, kernel}];
  ++set, lowered += bytes < now, now = bytes;
  return cudaSuccess;
}
}  // namespace emulation

int main() {
  for (emulation::device = 0; emulation::device < kDevices; ++emulation::device) {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreadCount; ++i) threads.emplace_back(launch, i);
    for (std::thread& thread : threads) thread.join();
  }
  std::printf("%d %d %d\n", refused, set, lowered);
  broken = true;  // on a device that has not been asked
  try {
    flowkern::cuda::launch_blocks("kernel", kernel, 1, 32, 64 * 1024, nullptr, 0);
  } catch (const std::runtime_error& error) {
    std::printf("%s\n", error.what());
  }
}
