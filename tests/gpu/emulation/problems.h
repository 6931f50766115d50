// What device.py passes: the tensors of a call, and from these the problem that an op's kernels take.
#pragma once

#include <vector>

#include "affine_coupling/cuda.h"
#include "masked_autoregressive/cuda.h"
#include "neural_ode/cuda.h"
#include "probability_path/cuda.h"
#include "rational_quadratic_spline/cuda.h"
#include "runge_kutta_stage/cuda.h"

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

// Of a Runge-Kutta stage, or with y1 of a step's error.
struct StageCall {
  std::int64_t sizes[2], stages;
  Tensor y, y1, k[flowkern::kMostStages], weights, out;
  double rtol, atol;
};

// Of a neural ODE solve, or of its gradients.
constexpr int kLayers = 25;  // one more than the kernels take
struct SolveCall {
  std::int64_t rows, features, layers, stages, intervals, steps, every, directions;
  std::int64_t kinetic, jacobian, adjoint, backward, units[kLayers], activations[kLayers];
  double weight, slopes[kLayers], a[28], b[8], c[8];
  Tensor y, starts, sizes, row_bias, time, frequencies, closed, epsilon, ends, sums, kept, grad_ends, grad_sums;
  Tensor grad_y, grad_starts, grad_sizes, grad_row_bias, grad_time, grad_frequencies, grad_closed;
  Tensor weights[kLayers], biases[kLayers], grad_weights[kLayers], grad_biases[kLayers];
};

// Of the masked autoregressive transform: weight, bias, gate, gain and offset of each layer.
struct MaskedCall {
  std::int64_t rows, features, levels, layers, parameters, inverse, element, scale_first, tails;
  double constants[9];
  const Tensor* tensors;
  const std::int64_t *units, *activations, *skips;
  const double* slopes;
  const Tensor* terms;
  const std::int64_t *term_inputs, *term_activations;
  const double* term_slopes;
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

template <class S> flowkern::Combination<S> combination(const StageCall& c) {
  flowkern::Combination<S> result{c.sizes[0], c.sizes[1], int(c.stages)};
  for (int j = 0; j < c.stages; ++j) result.k[j] = c.k[j].at<S>();
  result.weights = c.weights.at<S>();
  result.weights_row = c.weights.stride[0], result.weights_one = c.weights.stride[1];
  return result;
}
template <class S> flowkern::StageProblem<S> stage(const StageCall& c) {
  return {combination<S>(c), c.y.at<S>(), c.out.at<S>()};
}
template <class S> flowkern::ErrorProblem<S> stage_error(const StageCall& c) {
  return {combination<S>(c), c.y.at<S>(), c.y1.at<S>(), S(c.rtol), S(c.atol), c.out.at<S>()};
}

template <class S> flowkern::cuda::OdeSolve<S> solve(const SolveCall& c) {
  flowkern::cuda::check_ode_table(c.layers, c.stages);
  flowkern::cuda::OdeSolve<S> p{};
  p.rows = c.rows, p.features = int(c.features), p.layers = int(c.layers), p.stages = int(c.stages);
  p.intervals = int(c.intervals), p.steps = int(c.steps), p.every = int(c.every), p.directions = int(c.directions);
  p.closed = c.closed.data, p.kinetic = c.kinetic, p.jacobian = c.jacobian;
  p.backward = c.backward, p.adjoint = c.adjoint, p.weight = S(c.weight);
  for (int i = 0; i < 28; ++i) p.a[i] = S(c.a[i]);
  for (int i = 0; i < 8; ++i) p.b[i] = S(c.b[i]), p.c[i] = S(c.c[i]);
  p.y = c.y.at<S>(), p.starts = c.starts.at<S>(), p.sizes = c.sizes.at<S>(), p.row_bias = c.row_bias.at<S>();
  p.time = c.time.at<S>(), p.omega = c.frequencies.at<S>();
  p.frequencies = int(c.frequencies.bytes / sizeof(S)), p.phi = p.omega ? 2 * p.frequencies : p.time ? 1 : 0;
  p.closed_form = c.closed.at<S>(), p.epsilon = c.epsilon.at<S>();
  for (int d = 0; d < 3; ++d) p.epsilon_stride[d] = c.epsilon.stride[d];
  p.ends = c.ends.at<S>(), p.sums = c.sums.at<S>(), p.kept = c.kept.at<S>();
  p.grad_ends = c.grad_ends.at<S>(), p.grad_sums = c.grad_sums.at<S>(), p.grad_y = c.grad_y.at<S>();
  p.grad_starts = c.grad_starts.at<S>(), p.grad_sizes = c.grad_sizes.at<S>();
  p.grad_time = c.grad_time.at<S>(), p.grad_omega = c.grad_frequencies.at<S>();
  p.grad_row_bias = c.grad_row_bias.at<S>(), p.grad_closed = c.grad_closed.at<S>();
  for (int l = 0; l < p.layers; ++l) {
    auto& layer = p.layer[l];
    layer.units = int(c.units[l]), layer.inputs = int(l > 0 ? c.units[l - 1] : c.features);
    layer.weight = c.weights[l].at<S>(), layer.bias = c.biases[l].at<S>();
    layer.activation = int(c.activations[l]), layer.slope = S(c.slopes[l]);
    layer.grad_weight = c.grad_weights[l].at<S>(), layer.grad_bias = c.grad_biases[l].at<S>();
  }
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
    if (const Tensor* term = c.terms + 3 * k; c.term_inputs[k] >= 0) {
      const auto of = [&](int i) { return term[i].elements<const S>(nullptr); };
      layer.term = {of(0), of(1), of(2), int(c.term_inputs[k]), int(c.term_activations[k]), S(c.term_slopes[k])};
    }
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace
