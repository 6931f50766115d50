// What the torch side of every CPU op shares: the choice of instruction set, checks, outputs.
#pragma once

#include "checks.h"
#include "threads.h"

#include <cstdlib>
#include <cstring>
#include <vector>

namespace flowkern {

enum class Isa { portable, avx2, avx512, neon };

// The best instruction set of this machine; FLOWKERN_CPU=portable|avx2 asks for a lesser one.
inline Isa detect_isa() {
  [[maybe_unused]] const char* wish = std::getenv("FLOWKERN_CPU");
#if defined(FLOWKERN_PORTABLE_ONLY)
#elif defined(__aarch64__)
  if (!(wish && !std::strcmp(wish, "portable"))) return Isa::neon;
#elif defined(__x86_64__)
  if (wish && !std::strcmp(wish, "portable")) return Isa::portable;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  if (avx512 && !(wish && !std::strcmp(wish, "avx2"))) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

inline Isa isa() {
  static const Isa value = detect_isa();
  return value;
}

// Calls the copy of `function` for this machine's instruction set.
#if defined(__x86_64__) && !defined(FLOWKERN_PORTABLE_ONLY)
#define FLOWKERN_BY_ISA(function, ...)                                \
  (::flowkern::isa() == ::flowkern::Isa::avx512 ? avx512::function(__VA_ARGS__) \
   : ::flowkern::isa() == ::flowkern::Isa::avx2 ? avx2::function(__VA_ARGS__)   \
                                                : portable::function(__VA_ARGS__))
#elif defined(__aarch64__) && !defined(FLOWKERN_PORTABLE_ONLY)
#define FLOWKERN_BY_ISA(function, ...) \
  (::flowkern::isa() == ::flowkern::Isa::neon ? neon::function(__VA_ARGS__) : portable::function(__VA_ARGS__))
#else
#define FLOWKERN_BY_ISA(function, ...) portable::function(__VA_ARGS__)
#endif

// Whether a call that reads and writes so many bytes should write past the caches, which could not
// hold them. Sanitizers see small calls do it too.
#if defined(FLOWKERN_SANITIZED)
constexpr std::int64_t kCache = 1 << 12;
#else
constexpr std::int64_t kCache = 32 << 20;
#endif
inline bool beyond_cache(std::int64_t bytes) { return bytes >= kCache; }

// Calls body(begin, end) for rows on several threads, each with at least `least` elements.
template <class F>
void in_parallel(std::int64_t rows, std::int64_t features, std::int64_t least, const F& body) {
  if (rows <= 0 || features <= 0) return;
  const std::int64_t grain = features < least ? least / features : 1;
  parallel_for(rows, grain, body);
}

// Raises where an index names a feature twice; its entries lie in [0, width).
inline void check_distinct(const std::int64_t* values, std::int64_t features, std::int64_t width) {
  std::vector<bool> named(width);
  for (std::int64_t i = 0; i < features; ++i) {
    FLOWKERN_CHECK(!named[values[i]], "index: names a feature twice: ", values[i]);
    named[values[i]] = true;
  }
}

// The index of transformed features as a pointer, its entries checked: they may have been written to unseen.
inline const std::int64_t* index_pointer(const std::optional<Tensor>& index, std::int64_t features, std::int64_t width) {
  if (!index) {
    FLOWKERN_CHECK(features == width, "params: ", features, " transformed features, but x has ", width);
    return nullptr;
  }
  FLOWKERN_CHECK(index->scalar_type() == ScalarType::Long && index->dim() == 1 && index->is_contiguous(),
                 "index: expected a contiguous int64 vector");
  FLOWKERN_CHECK(index->size(0) == features, "index: names ", index->size(0), " features, but params has ", features);
  const auto* values = static_cast<const std::int64_t*>(index->const_data_ptr());
  bool ascending = true;
  for (std::int64_t i = 0; i < features; ++i) {
    FLOWKERN_CHECK(values[i] >= 0 && values[i] < width, "index: expected entries in [0, ", width, "), got ", values[i]);
    ascending = ascending && (i == 0 || values[i - 1] < values[i]);
  }
  if (!ascending) check_distinct(values, features, width);
  return values;
}

}  // namespace flowkern
