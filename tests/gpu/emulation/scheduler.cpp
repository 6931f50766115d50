#include "scheduler.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "memory.h"
#include "symbols.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {
namespace {

enum class State { ready, waiting, done };

// The stack of a fiber, or of the thread that runs them. Each switch is announced to the sanitizer.
struct Context {
  ucontext_t context;
  void* bottom = nullptr;
  std::size_t size = 0;
  void* fake_stack = nullptr;

  void switch_to(Context& to, [[maybe_unused]] bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, to.bottom, to.size);
#endif
    swapcontext(&context, &to.context);
    arrived(nullptr);
  }
  void arrived([[maybe_unused]] Context* from) {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;
    std::size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    if (from) from->bottom = const_cast<void*>(stack), from->size = bytes;
#endif
  }
};

struct Fiber : Context, Thread {
  State state = State::ready;
  Meeting meeting;
  std::uint64_t given, taken[kWarp];
};

struct Block {
  std::vector<Fiber> fibers;
  Context main;
  Call call;
  std::string fault;
};
Block block;

Fiber& current() { return static_cast<Fiber&>(*running); }

std::string name_of(unsigned rank) { return "thread " + text(index_of(rank, blockDim)); }

std::string report(unsigned rank, const std::string& what) {
  const std::string kernel = function_name(block.call.kernel);
  return "kernel " + kernel + ", block " + text(blockIdx) + ", " + name_of(rank) + ": " + what;
}

// Follows the address sanitizer's own report.
[[maybe_unused]] void report_address(const char*) {
  if (!running) return;
  std::fprintf(stderr, "%s\n", report(running->rank, "the address sanitizer stopped here").c_str());
}

std::string place(const Meeting& m) {
  const std::string file = m.at.file_name(), line = std::to_string(m.at.line());
  return std::string(m.what) + " (" + file.substr(file.rfind('/') + 1) + ":" + line + ")";
}

void enter() {
  current().arrived(&block.main);
  watching = true;
  block.call.once(block.call.kernel, block.call.arguments);
  watching = false;
  current().state = State::done;
  current().switch_to(block.main, true);
}

// Stacks are kept for the next block; the page below each is out of bounds.
unsigned char* stack_of(std::size_t rank) {
  static std::vector<unsigned char*> stacks;
  constexpr std::size_t page = 4096;
  while (stacks.size() <= rank) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, page + kStack, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE))
      throw std::runtime_error("emulation: no memory for stacks");
    stacks.push_back(static_cast<unsigned char*>(memory) + page);
  }
  return stacks[rank];
}

void start(Fiber& fiber, unsigned rank) {
  fiber = Fiber{};
  fiber.rank = rank;
  unsigned char* const stack = stack_of(rank);
  fiber.bottom = stack, fiber.size = kStack;
  clear_stack(stack);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack, fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, enter, 0);
}

bool same(const Meeting& a, const Meeting& b) {
  return !std::strcmp(a.what, b.what) && a.mask == b.mask && a.at.line() == b.at.line() &&
         !std::strcmp(a.at.file_name(), b.at.file_name());
}
bool waits_with(const Fiber& a, const Fiber& b) {
  return b.state == State::waiting && same(a.meeting, b.meeting);
}

// The whole block, where all of it waits at one barrier.
bool release_block() {
  for (const Fiber& fiber : block.fibers)
    if (!waits_with(block.fibers[0], fiber) || fiber.meeting.mask) return false;
  for (Fiber& fiber : block.fibers) fiber.state = State::ready;
  now.barrier = ++now.now;
  return true;
}

template <class F> void each_lane(std::uint32_t mask, const F& body) {
  for (; mask; mask &= mask - 1) body(std::countr_zero(mask));
}

// Each lane of `mask` has seen what any of them had, and all that they did until now.
void order_lanes(Fiber* warp, std::uint32_t mask) {
  std::uint32_t joined[kWarp] = {};
  each_lane(mask, [&](int lane) {
    for (int l = 0; l < kWarp; ++l) joined[l] = std::max(joined[l], warp[lane].seen[l]);
  });
  ++now.now;
  each_lane(mask, [&](int lane) { joined[lane] = now.now; });
  each_lane(mask, [&](int lane) { std::copy_n(joined, kWarp, warp[lane].seen); });
}

void exchange(Fiber* warp, std::uint32_t mask) {
  std::uint64_t values[kWarp] = {};
  each_lane(mask, [&](int lane) { values[lane] = warp[lane].given; });
  each_lane(mask, [&](int lane) {
    std::copy_n(values, kWarp, warp[lane].taken);
    warp[lane].state = State::ready;
  });
}

// The lanes with which the fiber waits, where all of them have come.
bool release_lanes(const Fiber& fiber) {
  const std::uint32_t mask = fiber.meeting.mask;
  if (fiber.state != State::waiting || mask == 0) return false;
  Fiber* warp = &block.fibers[fiber.warp() * kWarp];
  bool complete = true;
  each_lane(mask, [&](int lane) { complete = complete && waits_with(fiber, warp[lane]); });
  if (!complete) return false;
  if (fiber.meeting.orders_memory) order_lanes(warp, mask);
  exchange(warp, mask);
  return true;
}

// Lets those go on that wait together. False if nobody can.
bool release() {
  bool any = release_block();
  for (const Fiber& fiber : block.fibers) any = release_lanes(fiber) || any;
  return any;
}

// Who waits, and who has not come.
std::string stuck() {
  const auto waits = [](const Fiber& f) { return f.state == State::waiting; };
  const Fiber& fiber = *std::find_if(block.fibers.begin(), block.fibers.end(), waits);
  const std::uint32_t mask = fiber.meeting.mask;
  const auto missing = [&](const Fiber& f) {
    const bool asked = !mask || (f.warp() == fiber.warp() && mask >> f.lane() & 1);
    return asked && !waits_with(fiber, f);
  };
  const auto other = std::find_if(block.fibers.begin(), block.fibers.end(), missing);
  const bool exited = other->state == State::done;
  const std::string instead = exited ? " has exited" : " waits at " + place(other->meeting);
  return report(fiber.rank, "waits at " + place(fiber.meeting) + ", but " + name_of(other->rank) + instead);
}

struct Order {
  std::mt19937 random{settings.seed};
  std::vector<unsigned> operator()(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (settings.schedule == kReversed) std::reverse(order.begin(), order.end());
    if (settings.schedule == kRandom) std::shuffle(order.begin(), order.end(), random);
    return order;
  }
};

void resume(Fiber& fiber) {
  running = &fiber, own_stack = static_cast<unsigned char*>(fiber.bottom);
  threadIdx = index_of(fiber.rank, blockDim);
  block.main.switch_to(fiber);
  running = nullptr, own_stack = nullptr, watching = false;
  if (!block.fault.empty()) throw std::runtime_error(block.fault);
}

void run_block(Order& order) {
  const unsigned threads = unsigned(block.fibers.size());
  for (unsigned rank = 0; rank < threads; ++rank) start(block.fibers[rank], rank);
  now.block = now.barrier = ++now.now;
  begin_block();
  const auto done = [](const Fiber& f) { return f.state == State::done; };
  do {
    for (unsigned rank : order(threads))
      if (block.fibers[rank].state == State::ready) resume(block.fibers[rank]);
    if (std::all_of(block.fibers.begin(), block.fibers.end(), done)) return;
  } while (release());
  throw std::runtime_error(stuck());
}

void check_mask(const Meeting& meeting) {
  const Fiber& fiber = current();
  const Fiber* warp = &block.fibers[fiber.warp() * kWarp];
  const auto lanes = unsigned(block.fibers.data() + block.fibers.size() - warp);
  if (!(meeting.mask >> fiber.lane() & 1))
    fault(place(meeting) + " with a mask that does not name its own lane");
  each_lane(meeting.mask, [&](int lane) {
    if (unsigned(lane) >= lanes || warp[lane].state == State::done)
      fault(place(meeting) + " with a mask that names lane " + std::to_string(lane) + ", which has exited");
  });
}

}  // namespace

std::string text(const dim3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

dim3 index_of(unsigned rank, const dim3& size) {
  return {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
}

void fault(const std::string& what) {
  block.fault = report(running->rank, what);
  current().switch_to(block.main, true);
  __builtin_unreachable();
}

void meet(const Meeting& meeting) {
  const Unwatched unwatched;
  if (meeting.mask) check_mask(meeting);
  Fiber& fiber = current();
  fiber.meeting = meeting, fiber.state = State::waiting;
  fiber.switch_to(block.main);
}

void meet(const Meeting& meeting, std::uint64_t value, std::uint64_t* values) {
  current().given = value;
  meet(meeting);
  std::copy_n(current().taken, kWarp, values);
}

void check_source(const Meeting& meeting, int lane) {
  const Unwatched unwatched;
  if (!(meeting.mask >> lane & 1))
    fault(place(meeting) + " from lane " + std::to_string(lane) + ", which its mask does not name");
}

int lane() { return int(running->lane()); }

void run(const Grid& grid) {
  Order order;
  blockDim = grid.threads;
  gridDim = {std::min(grid.blocks.x, settings.most_blocks), grid.blocks.y, grid.blocks.z};
  launched.insert(function_name(grid.call.kernel));
  block.call = grid.call, block.fault.clear();
#if defined(__SANITIZE_ADDRESS__)
  __asan_set_error_report_callback(report_address);
#endif
  block.fibers.resize(blockDim.x * blockDim.y * blockDim.z);
  now.grid = ++now.now;
  begin_grid(grid);
  for (unsigned i : order(gridDim.x * gridDim.y * gridDim.z)) {
    blockIdx = index_of(i, gridDim);
    run_block(order);
  }
}

}  // namespace emulation
