// Runs recorded calls of the ops (problems.py) without Python and torch, for tools that look at kernels:
//     driver FILE [NAME]            each call twice, or those of the name
//     driver FILE [NAME] --time S   and the seconds of each of several calls, in lines of JSON
// In the emulation (FLOWKERN_EMULATED) memory is the CPU's, and nothing is timed.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#define DECLARE(op) extern "C" const char* op(const void* call, bool wide);
ENTRIES(DECLARE)

namespace {

using Entry = const char* (*)(const void*, bool);
#define NAMED(op) {#op, op},
const std::map<std::string, Entry> entries{ENTRIES(NAMED)};

struct Pointer { std::int64_t block, at, to; };  // in a block stands the address of another
struct Memory {
  std::int64_t block, at, bytes;  // where its address stands
  bool random;
  std::vector<char> contents;
};
struct Problem {
  std::string name, op;
  bool wide;
  std::vector<std::vector<char>> blocks;  // the call, and what it points to
  std::vector<Pointer> pointers;
  std::vector<Memory> tensors;

  void set(std::int64_t block, std::int64_t at, const void* address) {
    std::memcpy(blocks[std::size_t(block)].data() + at, &address, sizeof address);
  }
  void* get(const Memory& m) const {
    void* address = nullptr;
    std::memcpy(&address, blocks[std::size_t(m.block)].data() + m.at, sizeof address);
    return address;
  }
  const char* run() const;
};

const char* Problem::run() const { return entries.at(op)(blocks[0].data(), wide); }

}  // namespace

#ifdef FLOWKERN_EMULATED
namespace {
void* device_memory(std::size_t bytes) { return std::malloc(bytes); }
void free_memory(void* memory) { std::free(memory); }
void to_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void wait() {}
double seconds(const Problem&) { return 0; }
}  // namespace
#else
#include <cuda_runtime.h>

namespace emulation {
enum class Use;
void watch(const void*, std::size_t, const std::string&, Use) {}
void forget_all() {}
void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes ? bytes : 1) != cudaSuccess) throw std::runtime_error("no memory");
  return memory;
}
void release(void* memory) { cudaFree(memory); }
}  // namespace emulation

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
void* device_memory(std::size_t bytes) { return emulation::allocate(bytes); }
void free_memory(void* memory) { check(cudaFree(memory)); }
void to_device(void* to, const void* from, std::size_t bytes) { check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice)); }
void wait() { check(cudaDeviceSynchronize()); }

constexpr std::size_t kFlush = std::size_t(1) << 28;  // more than any L2

__global__ void read_all(const int4* from, std::size_t count, int* out) {
  int sum = 0;
  for (std::size_t i = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x; i < count; i += std::size_t(gridDim.x) * blockDim.x)
    sum += from[i].x;
  if (sum == 42) *out = sum;
}

// Of one call with nothing of its data left in the cache.
double seconds(const Problem& p) {
  static int4* flush = static_cast<int4*>(device_memory(kFlush + sizeof(int)));
  cudaEvent_t start, end;
  check(cudaEventCreate(&start)), check(cudaEventCreate(&end));
  read_all<<<1024, 256>>>(flush, kFlush / sizeof(int4), reinterpret_cast<int*>(flush) + kFlush / sizeof(int));
  check(cudaEventRecord(start));
  p.run();
  check(cudaEventRecord(end));
  wait();
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start, end));
  return milliseconds / 1e3;
}

}  // namespace
#endif

namespace {

std::int64_t number(std::istream& file) {
  std::int64_t value = 0;
  if (!file.read(reinterpret_cast<char*>(&value), sizeof value)) throw std::runtime_error("the file ends too early");
  return value;
}
std::vector<char> bytes(std::istream& file, std::int64_t count) {
  std::vector<char> found(static_cast<std::size_t>(count));
  if (!file.read(found.data(), count)) throw std::runtime_error("the file ends too early");
  return found;
}
std::string text(std::istream& file) {
  const auto found = bytes(file, number(file));
  return {found.begin(), found.end()};
}

Problem problem(std::istream& file) {
  Problem p{text(file), text(file), number(file) != 0, {}, {}, {}};
  for (std::int64_t left = number(file); left > 0; --left) p.blocks.push_back(bytes(file, number(file)));
  for (std::int64_t left = number(file); left > 0; --left) p.pointers.push_back({number(file), number(file), number(file)});
  for (std::int64_t left = number(file); left > 0; --left) {
    Memory m{number(file), number(file), number(file), number(file) != 0, {}};
    if (!m.random) m.contents = bytes(file, m.bytes);
    p.tensors.push_back(std::move(m));
  }
  return p;
}

// Numbers between −1 and 1, as floats.
std::vector<float> random(std::size_t count) {
  std::vector<float> values(count);
  std::uint32_t state = 1;
  for (float& value : values) value = float(std::int32_t(state = state * 1664525u + 1013904223u)) / 2147483648.0f;
  return values;
}

void run(Problem p, double time) {
  for (const Pointer& pointer : p.pointers) p.set(pointer.block, pointer.at, p.blocks[std::size_t(pointer.to)].data());
  for (const Memory& m : p.tensors) {
    void* memory = device_memory(std::size_t(m.bytes ? m.bytes : 1));
    if (m.random) to_device(memory, random(std::size_t(m.bytes) / sizeof(float)).data(), std::size_t(m.bytes));
    else to_device(memory, m.contents.data(), m.contents.size());
    p.set(m.block, m.at, memory);
  }
  for (int i = 0; i < 2; ++i)
    if (const char* report = p.run()) throw std::runtime_error(report);
  wait();
  std::printf("{\"name\": \"%s\", \"seconds\": [", p.name.c_str());
  double total = 0;
  for (int i = 0; i < 30 && total < time; ++i) {
    const double one = seconds(p);
    total += one;
    std::printf("%s%.4e", i ? ", " : "", one);
  }
  std::printf("]}\n");
  std::fflush(stdout);
  for (const Memory& m : p.tensors) free_memory(p.get(m));
}

}  // namespace

int main(int count, char** words) try {
  std::string name;
  double time = 0;
  for (int i = 2; i < count; ++i)
    if (std::string(words[i]) == "--time") time = std::atof(words[++i]);
    else name = words[i];
  std::ifstream file(words[1], std::ios::binary);
  for (std::int64_t left = number(file); left > 0; --left) {
    Problem p = problem(file);
    if (name.empty() || p.name == name) run(std::move(p), time);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "driver: %s\n", error.what());
  return 1;
}
