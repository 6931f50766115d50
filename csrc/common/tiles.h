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

  // The sums of all tiles: those of each chunk added to the first's.
  const S* total() const {
    parallel_for(chunks > 1 ? chunk_size : 0, kNumbers / chunks, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t chunk = 1; chunk < chunks; ++chunk) {
        const S* more = sums + chunk * chunk_size;
        for (std::int64_t i = begin; i < end; ++i) sums[i] += more[i];
      }
    });
    return sums;
  }

 private:
  static constexpr std::int64_t kNumbers = 1 << 16;  // to add up; waking a thread costs as much

  // Eight tiles or more to a chunk, but two chunks wherever there are two tiles; 32 MiB at the most.
  std::int64_t chunk_count() const {
    const std::int64_t most = std::min<std::int64_t>(64, (32 << 20) / (chunk_size * std::int64_t(sizeof(S))));
    return std::min(count, std::max<std::int64_t>(2, std::min(count / 8, most)));
  }
};

}  // namespace
}  // namespace flowkern
