// Stands in for the CUDA runtime, linked to the ops' own host code: prints what is launched instead
// of launching it, one line "kernel threads dynamic-shared-memory" for each kernel that `launches`
// of the op's own file launches.
#include <cstdint>
#include <cstdio>
#include <map>

#include LAUNCHES

namespace {

struct Dim3 { unsigned x, y, z; };
struct Config {  // cudaLaunchConfig_t
  Dim3 grid, block;
  std::size_t shared;
};

// Names by the address of the host's stub of a kernel.
std::map<const void*, const char*>& names() {
  static std::map<const void*, const char*> names;
  return names;
}

}  // namespace

extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[stub] = name;
}
int cudaLaunchKernelExC(const Config* config, const void* stub, void**) {
  std::printf("%s %u %zu\n", names()[stub], config->block.x, config->shared);
  return 0;
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaFuncGetAttributes(void*, const void*) { return 0; }  // no shared memory of its own
int cudaGetDevice(int* device) { return *device = 0; }
// Of shared memory, the only one asked for: what the smallest of the architectures has for a block.
int cudaDeviceGetAttribute(int* value, int, int) {
  *value = 163 * 1024;
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) { return *blocks = 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, std::size_t, unsigned) {
  return *blocks = 0;
}
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return ""; }
// Of the <<<…>>> way to launch, which compiled code refers to and does not take.
int __cudaGetKernel(void**, const void*) { return 1; }
int __cudaLaunchKernel(const void*, Dim3, Dim3, void**, std::size_t, void*) { return 1; }
int __cudaPopCallConfiguration(Dim3*, Dim3*, std::size_t*, void*) { return 1; }
}

int main() { launches<float>(), launches<double>(); }
