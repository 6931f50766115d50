// The formulas of one element; T is a number or a vector of lanes.
#pragma once

#include "../common/vec.h"

FLOWKERN_BEGIN

template <class T> struct Scaled { T y, log_scale; };

template <class T> FLOWKERN_HD Scaled<T> tanh_scale(T x, T u) {
  const T log_scale = tanh(u);
  return {x * exp(log_scale), log_scale};
}

template <class T> struct ScaledVjp { T x, u; };

template <class T> FLOWKERN_HD ScaledVjp<T> tanh_scale_vjp(T x, T u, T g_y, T g_l) {
  const T log_scale = tanh(u), scaled = g_y * exp(log_scale);
  return {scaled, (T(1) - log_scale * log_scale) * (scaled * x + g_l)};
}

FLOWKERN_END
