// Philox4x32-10: random bits as a function of a key and a counter, the same on every machine
// (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).
//
// A stream of a seed is a sequence of 32-bit words. Words 128b … 128b + 127 come from the counters
// 32b … 32b + 31: word 128b + 32j + i is output j of counter 32b + i. So the lanes of a vector, or the
// threads of a warp, each run one counter, and store neighbouring words together.
#pragma once

#include <cstdint>

#include "scalar.h"

FLOWKERN_BEGIN

constexpr int kCounters = 32, kWords = 4 * kCounters;  // of a block of a stream

struct Key { std::uint32_t low, high; };
struct Words { std::uint32_t word[4]; };

FLOWKERN_HD Key key_of(std::int64_t seed) {
  return {std::uint32_t(seed), std::uint32_t(std::uint64_t(seed) >> 32)};
}

FLOWKERN_HD Words philox(Key key, Words counter) {
  std::uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  each<10>(10, [&](int) FLOWKERN_INLINE {
    const std::uint64_t p = std::uint64_t(0xD2511F53u) * a, q = std::uint64_t(0xCD9E8D57u) * c;
    a = std::uint32_t(q >> 32) ^ b ^ key.low, b = std::uint32_t(q);
    c = std::uint32_t(p >> 32) ^ d ^ key.high, d = std::uint32_t(p);
    key.low += 0x9E3779B9u, key.high += 0xBB67AE85u;
  });
  return {{a, b, c, d}};
}

// The words of counter 32·block + i of a stream.
FLOWKERN_HD Words words_of(Key key, std::uint32_t stream, std::int64_t block, int i) {
  const std::uint64_t first = std::uint64_t(block) * kCounters;
  return philox(key, {{std::uint32_t(first) + std::uint32_t(i), std::uint32_t(first >> 32), stream, 0}});
}

// (2k + 1)/2²⁴ with k the upper 23 bits: in (0, 1), and a float without rounding.
template <class S> FLOWKERN_HD S uniform(std::uint32_t word) {
  return S(std::int32_t(word >> 9)) * S(0x1p-23) + S(0x1p-24);
}

FLOWKERN_END
