#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "scheduler.h"
#include "symbols.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// Where every `extern __shared__` array begins; build.py gives it their names as well.
extern "C" thread_local unsigned char emulation_dynamic_shared[];
constexpr std::size_t kGap = 64;  // bytes that build.py puts behind any other

namespace emulation {
namespace {

// The last write of a piece of memory, and the reads since. A read that happened before a later one is
// forgotten for it: who comes after the later one comes after both.
struct Cell {
  std::uint32_t write_time = 0, read_time = 0, read_lanes = 0;
  std::uint16_t writer = 0, read_warp = 0;  // kSeveral: warps
  bool atomic = false;
};
constexpr std::uint16_t kSeveral = 0xffff;

struct Region {
  std::uintptr_t begin, end;
  std::string name;
  Use use;
  unsigned piece = 4;  // bytes of a cell, until something smaller is accessed
  std::vector<Cell> cells;
};
std::vector<Region> tensors, own;  // own: the kernel's

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

Region region(const void* data, std::size_t bytes, const std::string& name, Use use) {
  const std::uintptr_t begin = number(data);
  return {begin, begin + bytes, name, use, 4, std::vector<Cell>(use == Use::kInput ? 0 : (bytes + 3) / 4)};
}

void split(Region& region) {
  std::vector<Cell> cells;
  for (const Cell& cell : region.cells) cells.insert(cells.end(), region.piece, cell);
  region.cells.swap(cells), region.piece = 1;
}

// Whether what lanes of a warp did at that time happened before what the running thread does now.
bool before(const Region& region, std::uint32_t time, unsigned warp, std::uint32_t lanes) {
  if (time < now.grid) return true;
  if (time < now.block) return region.use == Use::kShared;
  if (time < now.barrier) return true;
  if (warp != running->warp()) return false;
  for (int lane = 0; lane < kWarp; ++lane)
    if (lanes >> lane & 1 && lane != int(running->lane()) && running->seen[lane] <= time) return false;
  return true;
}

bool write_before(const Region& region, const Cell& cell) {
  return !cell.write_time || before(region, cell.write_time, cell.writer / kWarp, 1u << cell.writer % kWarp);
}
bool reads_before(const Region& region, const Cell& cell) {
  return !cell.read_lanes || before(region, cell.read_time, cell.read_warp, cell.read_lanes);
}

const void* place;  // in the code, of the access that is looked at

[[noreturn]] void report(const std::string& what) { fault(what + code_place(place)); }

std::string where(const Region& region, std::uintptr_t at) {
  return " at byte " + std::to_string(at - region.begin) + " of " + region.name;
}

std::string writer(const Cell& cell) {
  const char* const block = cell.write_time < now.block ? "another block, " : "";
  return block + ("thread " + text(index_of(cell.writer, blockDim))) + " wrote";
}

[[noreturn]] void race(const char* does, const std::string& place, const std::string& who) {
  report("race: " + std::string(does) + place + ", which " + who + " with no barrier in between");
}

void read(Region& region, Cell& cell, std::uintptr_t at) {
  if (!write_before(region, cell)) race("reads", where(region, at), writer(cell));
  const auto warp = std::uint16_t(running->warp());
  if (reads_before(region, cell)) cell.read_lanes = 0;
  const bool alone = !cell.read_lanes || (cell.read_warp == warp && cell.read_time >= now.block);
  cell.read_warp = alone ? warp : kSeveral;
  cell.read_lanes |= 1u << running->lane(), cell.read_time = now.now;
}

void write(Region& region, Cell& cell, std::uintptr_t at, bool atomic) {
  const bool ordered = (atomic && cell.atomic) || write_before(region, cell);
  if (!ordered) race("writes", where(region, at), writer(cell));
  if (!reads_before(region, cell)) race("writes", where(region, at), "another thread read");
  cell = {now.now, 0, 0, std::uint16_t(running->rank), 0, atomic};
}

void update(Region& region, Cell& cell, std::uintptr_t at, Access how) {
  const std::uint32_t first = region.use == Use::kShared ? now.block : 1;
  if (how != Access::kWrite && cell.write_time < first)
    report("uninitialised: reads" + where(region, at) + ", which no thread has written");
  if (how == Access::kRead) read(region, cell, at);
  else write(region, cell, at, how == Access::kAtomic);
}

// Says how far off an access is from the memory next to it.
[[noreturn]] void outside(std::uintptr_t at, std::size_t bytes, Access how) {
  const std::uintptr_t end = at + bytes;
  const auto beyond = [&](const Region& r) {
    return at < r.begin ? r.begin - at : end > r.end ? end - r.end : 0;
  };
  const Region* near = &own.front();
  for (const auto* regions : {&own, &tensors})
    for (const Region& region : *regions)
      if (beyond(region) < beyond(*near)) near = &region;
  const std::string does = how == Access::kRead ? "reads " : "writes ";
  report("out of bounds: " + does + std::to_string(bytes) + " bytes, which go " +
         std::to_string(beyond(*near)) + " bytes beyond the " + (at < near->begin ? "beginning" : "end") +
         " of " + near->name);
}

Region& region_of(std::uintptr_t at, std::size_t bytes, Access how) {
  for (auto* regions : {&own, &tensors})
    for (Region& region : *regions)
      if (at >= region.begin && at + bytes <= region.end) return region;
  outside(at, bytes, how);
}

// `room`: how many bytes from its beginning on no other array has.
void add_array(void* data, std::size_t bytes, [[maybe_unused]] std::size_t room, const std::string& name) {
  own.push_back(region(data, bytes, "shared memory" + name, Use::kShared));
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(data, room);
  __asan_unpoison_memory_region(data, bytes);
#endif
}

// The arrays that kernels declare __shared__. Those of unknown size have none in the symbol table.
void add_shared(std::size_t dynamic) {
  unsigned char* const memory = emulation_dynamic_shared;
  unsigned char* const base = memory - thread_local_offset("emulation_dynamic_shared");
  for (const auto& [name, offset, bytes] : thread_local_symbols())
    if (bytes) add_array(base + offset, bytes, bytes + kGap, " " + name);
  add_array(memory, dynamic, kMostShared, "");
}

}  // namespace

void watch(const void* data, std::size_t bytes, const std::string& name, Use use) {
  tensors.push_back(region(data, bytes, name, use));
}
void forget_all() { tensors.clear(); }

void* allocate(std::size_t bytes) { return std::malloc(bytes); }
void release(void* memory) { std::free(memory); }

void access(const void* address, std::size_t bytes, Access how, const void* code) {
#if defined(__SANITIZE_ADDRESS__)
  return;  // only atomics come here then
#endif
  const std::uintptr_t at = number(address);
  if (at - number(own_stack) < kStack || !watching) return;
  const Unwatched unwatched;
  place = code;
  Region& region = region_of(at, bytes, how);
  if (region.use == Use::kInput) {
    if (how != Access::kRead) report("writes" + where(region, at) + ", an input");
    return;
  }
  const std::size_t first = at - region.begin;
  if (region.piece > 1 && (first | bytes) % region.piece) split(region);
  for (std::size_t i = first / region.piece; i < (first + bytes) / region.piece; ++i)
    update(region, region.cells[i], region.begin + i * region.piece, how);
}

void begin_grid(const Grid& grid) {
  own.clear();
  for (const dim3* builtin : {&threadIdx, &blockIdx, &blockDim, &gridDim})
    own.push_back(region(builtin, sizeof(dim3), "the kernel's indices", Use::kInput));
  own.push_back(region(grid.call.arguments, grid.call.bytes, "the kernel's arguments", Use::kInput));
  add_shared(grid.shared);
}

void begin_block() {
  for (const Region& r : own)
    if (r.use == Use::kShared) std::memset(reinterpret_cast<void*>(r.begin), 0xff, r.end - r.begin);
}

void clear_stack([[maybe_unused]] unsigned char* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStack);
#endif
}

}  // namespace emulation
