// Barriers, what the lanes of a warp tell each other, and atomics. A mask must name lanes that all
// come to the same place; its default argument knows where that is.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "../memory.h"
#include "../scheduler.h"

#define FLOWKERN_HERE std::source_location at = std::source_location::current()

inline void __syncthreads(FLOWKERN_HERE) { emulation::meet({"__syncthreads", 0, true, at}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FLOWKERN_HERE) {
  emulation::meet({"__syncwarp", mask, true, at});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulation {

template <class T> std::uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T> T value_of(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The value of lane `source`, or this lane's own where that is outside of [first, last].
template <class T> T shuffle(const Meeting& meeting, T value, int source, int first, int last) {
  if (source < first || source > last) source = lane();
  std::uint64_t values[kWarp];
  meet(meeting, bits_of(value), values);
  check_source(meeting, source);
  return value_of<T>(values[source]);
}

// The values of the lanes in the mask, combined from the lowest lane on.
template <class T, class F> T reduce(const Meeting& meeting, T value, const F& combine) {
  std::uint64_t values[kWarp];
  meet(meeting, bits_of(value), values);
  int i = std::countr_zero(meeting.mask);
  T result = value_of<T>(values[i]);
  while (++i < kWarp)
    if (meeting.mask >> i & 1) result = combine(result, value_of<T>(values[i]));
  return result;
}

// *at becomes change(*at); what it was.
template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T update(T* at, const F& change) {
  access(at, sizeof(T), Access::kAtomic, __builtin_return_address(0));
  const T old = *at;
  *at = change(old);
  return old;
}

}  // namespace emulation

// --- shuffles ------------------------------------------------------------------------------------

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, FLOWKERN_HERE) {
  const int first = emulation::lane() & -width;
  return emulation::shuffle({"__shfl_sync", mask, false, at}, value, first + (lane & (width - 1)), 0, 31);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FLOWKERN_HERE) {
  const int lane = emulation::lane(), first = lane & -width;
  return emulation::shuffle({"__shfl_up_sync", mask, false, at}, value, lane - int(delta), first, 31);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FLOWKERN_HERE) {
  const int lane = emulation::lane(), last = lane | (width - 1);
  return emulation::shuffle({"__shfl_down_sync", mask, false, at}, value, lane + int(delta), 0, last);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, FLOWKERN_HERE) {
  const int lane = emulation::lane(), last = lane | (width - 1);
  return emulation::shuffle({"__shfl_xor_sync", mask, false, at}, value, lane ^ flip, 0, last);
}

// --- votes and reductions ------------------------------------------------------------------------

inline unsigned __ballot_sync(unsigned mask, int predicate, FLOWKERN_HERE) {
  const unsigned own = predicate ? 1u << emulation::lane() : 0u;
  const auto either = [](unsigned a, unsigned b) { return a | b; };
  return emulation::reduce({"__ballot_sync", mask, false, at}, own, either);
}
inline int __any_sync(unsigned mask, int predicate, FLOWKERN_HERE) {
  const auto either = [](int a, int b) { return a | b; };
  return emulation::reduce({"__any_sync", mask, false, at}, int(predicate != 0), either);
}
inline int __all_sync(unsigned mask, int predicate, FLOWKERN_HERE) {
  const auto both = [](int a, int b) { return a & b; };
  return emulation::reduce({"__all_sync", mask, false, at}, int(predicate != 0), both);
}

#define FLOWKERN_REDUCE(name, formula)                                                                  \
  template <class T> T name(unsigned mask, T value, FLOWKERN_HERE) {                                    \
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);                                             \
    return emulation::reduce({#name, mask, false, at}, value, [](T a, T b) { return T(formula); });     \
  }
FLOWKERN_REDUCE(__reduce_add_sync, unsigned(a) + unsigned(b))
FLOWKERN_REDUCE(__reduce_min_sync, a < b ? a : b)
FLOWKERN_REDUCE(__reduce_max_sync, a > b ? a : b)
FLOWKERN_REDUCE(__reduce_and_sync, a & b)
FLOWKERN_REDUCE(__reduce_or_sync, a | b)
FLOWKERN_REDUCE(__reduce_xor_sync, a ^ b)
#undef FLOWKERN_REDUCE
#undef FLOWKERN_HERE

// --- atomics -------------------------------------------------------------------------------------

template <class T> T atomicAdd(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return T(old + value); });
}
template <class T> T atomicMax(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return old > value ? old : value; });
}
template <class T> T atomicMin(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return old < value ? old : value; });
}
template <class T> T atomicExch(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T) { return value; });
}
template <class T> T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return old == compare ? value : old; });
}
template <class T> T atomicOr(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return T(old | value); });
}
template <class T> T atomicAnd(T* at, std::type_identity_t<T> value) {
  return emulation::update(at, [&](T old) { return T(old & value); });
}

// --- small things --------------------------------------------------------------------------------

template <class T> T __ldg(const T* p) { return *p; }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits ? std::countr_zero(unsigned(bits)) + 1 : 0; }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
