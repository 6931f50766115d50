// The element transforms of one thread, on parameters that lie in the rows of a tile: parameter i at
// params[i·row].
#pragma once

#include "../affine_coupling/math.h"
#include "../common/activation.h"
#include "../rational_quadratic_spline/math.h"
#include "cuda.h"

FLOWKERN_BEGIN

template <class S> struct AffineElement {
  AffineSettings<S> set;
  int kind, shift, raw;

  __device__ __forceinline__ explicit AffineElement(const MaskedTransform<S>& p)
      : set{S(p.element.constants[0]), S(p.element.constants[1]), S(p.element.constants[2]), S(p.element.constants[3])},
        kind(p.element.scale_map()), shift(p.parameters == 2 && p.element.scale_first()),
        raw(p.parameters == 2 && !p.element.scale_first()) {}

  template <bool inverse> __device__ __forceinline__ AffineValue<S> map(S x, const S* params, int row) const {
    AffineValue<S> out;
    by_scale_map(kind, [&](auto k) FLOWKERN_INLINE {
      out = affine<k.value, inverse>(x, params[shift * row], params[raw * row], set);
    });
    return out;
  }

  // The cotangent of x; those of the parameters take their place.
  template <bool inverse> __device__ __forceinline__ S vjp(S x, S* params, int row, S g_out, S g_logabsdet) const {
    AffineCotangent<S> g;
    by_scale_map(kind, [&](auto k) FLOWKERN_INLINE {
      g = affine_vjp<k.value, inverse>(x, params[shift * row], params[raw * row], g_out, g_logabsdet, set);
    });
    if (kind != kAdditive) params[raw * row] = g.raw;
    params[shift * row] = g.shift;
    return g.x;
  }
};

// The parameters, or their cotangents, of a spline.
template <class S> struct Rows {
  S* first;
  int row;
  static constexpr bool rereads() { return true; }  // arrays of any number of bins would lie in main memory

  template <int K, class T> __device__ __forceinline__ void fetch(int i, int count, T* out) const {
    each<K>(count, [&](int j) FLOWKERN_INLINE { out[j] = first[(i + j) * row]; });
  }
  template <class T> __device__ __forceinline__ T pick(int from, T i) const { return first[(from + int(i)) * row]; }
  template <int K, class T> __device__ __forceinline__ void run(int i, int count, const T* values) const {
    each<K>(count, [&](int j) FLOWKERN_INLINE { first[(i + j) * row] = values[j]; });
  }
};

template <class S, int knots> struct SplineElement {
  SplineSettings<S, knots> set;
  Axis<S> across, up;

  __device__ __forceinline__ explicit SplineElement(const MaskedTransform<S>& p) {
    const double* c = p.element.constants;
    set.tails = p.element.tails(), set.bins = bins_of(p.parameters, set.tails);
    set.left = S(c[0]), set.right = S(c[1]), set.bottom = S(c[2]), set.top = S(c[3]);
    set.min_width = S(c[4]), set.min_height = S(c[5]), set.min_slope = S(c[6]);
    set.softclip = S(c[7]), set.scale = S(c[8]);
    across = {set.left, set.right}, up = {set.bottom, set.top};
  }

  template <bool inverse> __device__ __forceinline__ Mapped<S> map(S x, const S* params, int row) const {
    return transform<0, inverse>(x, Rows<const S>{params, row}, set, across, up);
  }

  // As above: each parameter is read before its cotangent is written.
  template <bool inverse> __device__ __forceinline__ S vjp(S x, S* params, int row, S g_out, S g_logabsdet) const {
    const Rows<S> rows{params, row};
    return transform_vjp<0, inverse>(x, rows, set, across, up, g_out, g_logabsdet, rows);
  }
};

FLOWKERN_END
