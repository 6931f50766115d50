// Where the elements of a tensor lie, as the torch side hands them to the loops.
#pragma once

#include <cstdint>

namespace flowkern {

// Element (n, t) is at base[n·row + t·feature]; with an index, index[t] takes the place of t.
template <class S> struct Elements {
  S* base;
  std::int64_t row, feature;
  const std::int64_t* index;
};

}  // namespace flowkern
