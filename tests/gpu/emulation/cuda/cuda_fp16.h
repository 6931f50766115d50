// __half: eleven bits of precision, exponents from −14 to 15. Arithmetic is in float.
#pragma once

#include "narrow_float.h"

struct __half : emulation::Narrow<__half> {
  __half() = default;
  __half(float value) {
    const auto wide = std::bit_cast<std::uint32_t>(value);
    const float size = __builtin_fabsf(value);
    std::uint32_t half = 0x7fff;                                  // NaN
    if (size >= 65520.0f) half = 0x7c00;                          // infinity
    else if (size < 0x1p-14f) half = rounded(size, 0x1p-1f);      // subnormal: multiples of 2⁻²⁴
    else if (size == size) half = normal(wide & 0x7fffffff);
    bits = std::uint16_t(half | (wide >> 16 & 0x8000));
  }
  operator float() const {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * float(fraction);
    return std::bit_cast<float>(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
  }

 private:
  // The sum's last bit is worth 2⁻²⁴, so that it is rounded to nearest, ties to even.
  static std::uint32_t rounded(float size, float unit) {
    return std::bit_cast<std::uint32_t>(size + unit) - std::bit_cast<std::uint32_t>(unit);
  }
  static std::uint32_t normal(std::uint32_t wide) {
    return (wide - (112u << 23) + 0xfff + (wide >> 13 & 1)) >> 13;
  }
};

inline __half __float2half(float value) { return value; }
inline float __half2float(__half value) { return value; }
