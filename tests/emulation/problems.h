// What device.py passes: the tensors of a call, and from these the problem that an op's kernels take.
#pragma once

#include <vector>

#include "affine_coupling/affine_coupling_cuda.h"
#include "masked_autoregressive/masked_autoregressive_cuda.h"
#include "probability_path/probability_path_cuda.h"
#include "rational_quadratic_spline/rational_quadratic_spline_cuda.h"

namespace {

using flowkern::AffineProblem;
using flowkern::Elements;
using flowkern::PathProblem;
using flowkern::SplineProblem;

// A tensor as device.py passes it: its address, how much of the memory behind that is its own, and
// three strides, missing ones 0.
struct Tensor {
  void* data;
  std::int64_t bytes, stride[3];

  template <class S> S* at(std::int64_t i = 0) const { return static_cast<S*>(data) + i * stride[2]; }
  template <class S> Elements<S> elements(const std::int64_t* index, std::int64_t i = 0) const {
    return {at<S>(i), stride[0], stride[1], index};
  }
};

// Sizes N, D, T, P. y stands for grad_x in the backward.
struct Call {
  std::int64_t sizes[4];
  Tensor x, params, index, bounds, y, logabsdet, grad_y, grad_logabsdet, grad_params;
  std::int64_t integers[3];  // of the op, in the order of its schema
  double numbers[9];
};

// Of the probability path; each direction has some of the tensors.
struct PathCall {
  std::int64_t sizes[2];
  Tensor x0, x1, t, noise, seed, x_t, u_t, drawn, grad_x, grad_u, grad_x0, grad_x1, grad_t;
  std::int64_t kind;
  double sigma;
};

// Of the masked autoregressive transform: weight, bias, gate, gain and offset of each layer.
struct MaskedCall {
  std::int64_t rows, features, levels, layers, parameters, inverse, element, scale_first, tails;
  double constants[9];
  const Tensor* tensors;
  const std::int64_t *units, *activations, *skips;
  const double* slopes;
  Tensor given, known, order, ends, out, logabsdet, grad_out, grad_logabsdet, tape;
};

template <class S> SplineProblem<S> spline(const Call& c) {
  SplineProblem<S> p{};
  p.rows = c.sizes[0], p.width = c.sizes[1], p.features = c.sizes[2], p.parameters = c.sizes[3];
  p.x = c.x.at<S>(), p.x_row = c.x.stride[0], p.x_feature = c.x.stride[1];
  p.params = c.params.at<S>();
  p.params_row = c.params.stride[0], p.params_feature = c.params.stride[1], p.params_one = c.params.stride[2];
  p.index = c.index.at<std::int64_t>(), p.bounds = c.bounds.at<S>();
  p.inverse = c.integers[0], p.tails = int(c.integers[1]);
  const double* n = c.numbers;
  p.left = n[0], p.right = n[1], p.bottom = n[2], p.top = n[3];
  p.min_width = n[4], p.min_height = n[5], p.min_slope = n[6], p.softclip = n[7], p.scale = n[8];
  p.y = c.y.at<S>(), p.logabsdet = c.logabsdet.at<S>();
  p.grad_y = c.grad_y.at<S>(), p.grad_y_row = c.grad_y.stride[0], p.grad_y_feature = c.grad_y.stride[1];
  p.grad_logabsdet = c.grad_logabsdet.at<S>(), p.grad_logabsdet_row = c.grad_logabsdet.stride[0];
  p.grad_params = c.grad_params.at<S>(), p.grad_params_row = c.grad_params.stride[0];
  p.grad_params_feature = c.grad_params.stride[1], p.grad_params_one = c.grad_params.stride[2];
  return p;
}

template <class S> AffineProblem<S> affine(const Call& c) {
  const auto* index = c.index.at<std::int64_t>();
  const bool scale_first = c.integers[1], additive = c.integers[2] == 0;
  const int shift = scale_first && !additive, raw = 1 - shift;
  AffineProblem<S> p{};
  p.rows = c.sizes[0], p.width = c.sizes[1], p.features = c.sizes[2];
  p.x = c.x.elements<const S>(index), p.y = c.y.elements<S>(index);
  p.shift = c.params.elements<const S>(nullptr, shift), p.raw = c.params.elements<const S>(nullptr, raw);
  if (index) {
    p.columns_in = (c.grad_y.data ? c.grad_y : c.x).elements<const S>(nullptr);
    p.columns_out = c.y.elements<S>(nullptr);
  }
  p.inverse = c.integers[0], p.kind = int(c.integers[2]);
  p.a = c.numbers[0], p.b = c.numbers[1], p.prefactor = c.numbers[2], p.shift_prefactor = c.numbers[3];
  p.logabsdet = c.logabsdet.at<S>();
  p.grad_y = c.grad_y.elements<const S>(index);
  p.grad_logabsdet = c.grad_logabsdet.elements<const S>(nullptr);
  p.grad_shift = c.grad_params.elements<S>(nullptr, shift);
  p.grad_raw = c.grad_params.elements<S>(nullptr, raw);
  return p;
}

template <class S> PathProblem<S> path(const PathCall& c) {
  PathProblem<S> p{};
  p.rows = c.sizes[0], p.features = c.sizes[1], p.kind = int(c.kind), p.sigma = c.sigma;
  p.seed = c.seed.at<std::int64_t>(), p.draws_noise = !c.noise.data && (c.sigma != 0 || c.kind == 1);
  p.x0 = c.x0.at<S>(), p.x1 = c.x1.at<S>(), p.noise = c.noise.at<S>(), p.given_t = c.t.at<S>();
  p.t = c.drawn.at<S>(), p.x_t = c.x_t.at<S>(), p.u_t = c.u_t.at<S>();
  p.grad_x = c.grad_x.at<S>(), p.grad_u = c.grad_u.at<S>();
  p.grad_x0 = c.grad_x0.at<S>(), p.grad_x1 = c.grad_x1.at<S>(), p.grad_t = c.grad_t.at<S>();
  return p;
}

template <class S> flowkern::MaskedTransform<S> masked(const MaskedCall& c) {
  flowkern::MaskedTransform<S> t{};
  t.rows = c.rows, t.features = int(c.features), t.levels = int(c.levels), t.parameters = int(c.parameters);
  t.element = int(c.element), t.tails = int(c.tails), t.inverse = c.inverse, t.scale_first = c.scale_first;
  for (int i = 0; i < 9; ++i) t.constants[i] = c.constants[i];
  t.order = c.order.at<std::int64_t>(), t.ends = c.ends.at<std::int64_t>();
  t.given = c.given.elements<const S>(nullptr), t.known = c.known.elements<const S>(nullptr);
  t.out = c.out.elements<S>(nullptr), t.logabsdet = c.logabsdet.at<S>(), t.tape = c.tape.at<S>();
  t.grad_out = c.grad_out.elements<const S>(nullptr), t.grad_logabsdet = c.grad_logabsdet.elements<const S>(nullptr);
  return t;
}

template <class S> std::vector<flowkern::MaskedLayer<S>> masked_layers(const MaskedCall& c) {
  std::vector<flowkern::MaskedLayer<S>> layers;
  for (int k = 0; k < c.layers; ++k) {
    const Tensor* t = c.tensors + 5 * k;
    const auto tensor = [&](int i) { return t[i].elements<const S>(nullptr); };
    flowkern::MaskedLayer<S> layer{tensor(0), tensor(1), tensor(2), tensor(3), tensor(4), S(c.slopes[k])};
    layer.units = int(c.units[k]), layer.activation = int(c.activations[k]);
    layer.skip = c.skips[k] < 0 ? -1 : int(c.skips[k]) + 1;
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace
