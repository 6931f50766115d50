// What __half and __nv_bfloat16 have in common: sixteen bits, and sums and products that are rounded
// from those in float.
#pragma once

#include <bit>
#include <cstdint>

namespace emulation {

template <class T> struct Narrow {
  std::uint16_t bits;

  friend T operator+(T a, T b) { return float(a) + float(b); }
  friend T operator-(T a, T b) { return float(a) - float(b); }
  friend T operator*(T a, T b) { return float(a) * float(b); }
  friend T operator/(T a, T b) { return float(a) / float(b); }
  friend T operator-(T a) { return -float(a); }
  friend T& operator+=(T& a, T b) { return a = a + b; }
  friend T& operator-=(T& a, T b) { return a = a - b; }
  friend T& operator*=(T& a, T b) { return a = a * b; }
  friend bool operator<(T a, T b) { return float(a) < float(b); }
  friend bool operator>(T a, T b) { return float(a) > float(b); }
  friend bool operator==(T a, T b) { return float(a) == float(b); }
};

}  // namespace emulation
