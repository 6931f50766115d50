// __nv_bfloat16: a float without its lower sixteen bits. Arithmetic is in float.
#pragma once

#include "narrow_float.h"

struct __nv_bfloat16 : emulation::Narrow<__nv_bfloat16> {
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    const auto wide = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t round = 0x7fff + (wide >> 16 & 1);  // to nearest, ties to even
    bits = std::uint16_t(value != value ? 0x7fff : (wide + round) >> 16);
  }
  operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }
};

inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
