// Tiles of samples on threads. Tiles are grouped into chunks, and each chunk has sums of its own, so
// that they do not depend on the number of threads.
#pragma once

#include "checks.h"
#include "scratch.h"
#include "threads.h"

#include <algorithm>

namespace flowkern {
namespace {

template <class S> struct Tiles {
  std::int64_t rows, width, chunk_size, count, chunks;
  S* sums;

  // chunk_size: how many numbers a chunk sums up. None: each tile is a chunk.
  Tiles(std::int64_t rows, std::int64_t width, std::int64_t chunk_size)
      : rows(rows), width(width), chunk_size(chunk_size), count((rows + width - 1) / width),
        chunks(chunk_size > 0 ? chunk_count() : count), sums(scratch<S, 2>(chunk_size * chunks)) {
    std::fill_n(sums, chunk_size * chunks, S(0));
  }

  // body(memory, sums of the chunk, row, samples) for each tile; memory() is called once by a thread
  // for `grain` chunks or more.
  template <class M, class F> void each(std::int64_t grain, const M& memory, const F& body) const {
    parallel_for(chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      S* own = memory();
      for (std::int64_t chunk = begin; chunk < end; ++chunk)
        for (std::int64_t tile = count * chunk / chunks; tile < count * (chunk + 1) / chunks; ++tile) {
          // The last tile may be small: it goes with the larger part, which is the first of single tiles.
          const std::int64_t row = (chunks == count ? count - 1 - tile : tile) * width;
          body(own, sums + chunk * chunk_size, row, int(std::min(width, rows - row)));
        }
    });
  }

 private:
  // Eight tiles or more to a chunk, but two chunks wherever there are two tiles; 32 MiB at the most.
  std::int64_t chunk_count() const {
    const std::int64_t most = std::min<std::int64_t>(64, (32 << 20) / (chunk_size * std::int64_t(sizeof(S))));
    return std::min(count, std::max<std::int64_t>(2, std::min(count / 8, most)));
  }
};

// The sums of several chunks, `apart` numbers from each other.
template <class S> struct ChunkSums {
  const S* sums;
  int chunks;
  std::int64_t apart;
  S total(std::int64_t at) const {
    S value = sums[at];
    for (int i = 1; i < chunks; ++i) value += sums[at + i * apart];
    return value;
  }
};

}  // namespace
}  // namespace flowkern
