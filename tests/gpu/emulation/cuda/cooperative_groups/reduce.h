// Reductions over a tile; the order of summation is that of the lanes.
#pragma once

#include "../cooperative_groups.h"

namespace cooperative_groups {

template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };

template <unsigned lanes, class T, class F>
T reduce(const thread_block_tile<lanes>& tile, T value, const F& combine,
         std::source_location at = std::source_location::current()) {
  return emulation::reduce({"reduce", tile.mask(), false, at}, value, combine);
}

}  // namespace cooperative_groups
