// From tensors to what the loops of the neural ODE solve work on: packed weights, places in memory.
//
// Weights are packed anew in every call, so they are never stale; a solve uses each many times.
#pragma once

#include "../common/scratch.h"
#include "cpu.h"
#include "torch.h"

#include <algorithm>

namespace flowkern {
namespace {

template <class S> class OdePlan {
 public:
  OdePlan(OdeCall& call, const OdeShape& shape) : call(call), panel(shape.panel), lanes(shape.lanes) {
    describe();
    place_tile();
    if (problem.backward) place_sums();
    pack();
  }
  OdePlan(const OdePlan&) = delete;  // the problem points into it

  OdeProblem<S> problem{};
  std::int64_t chunk_size = 0;  // numbers that a chunk of tiles sums up

  // The gradients out of the sums.
  void finish(const S* sums) {
    const OdeProblem<S>& p = problem;
    copy_vector(sums, p.start_sums, 1);
    copy_vector(sums, p.size_sums, 2);
    if (p.phi > 0) copy_time(sums);
    if (p.frequencies > 0) copy_vector(sums, p.omega_sums, 5);
    if (p.trace == kClosedVector) copy_vector(sums, p.closed_sums, 6);
    if (p.trace == kClosedMatrix)
      copy_matrix(sums, p.closed_sums, closed_rows(), layers[0].units, false, 6);
    for (int l = 0; l < p.layers; ++l) {
      const OdeLayer<S>& layer = layers[l];
      const bool swapped = layer.units < layer.inputs;
      copy_matrix(sums, layer.weight_sums, layer.units, layer.inputs, swapped, of_tensors + l);
      if (layer.bias) copy_vector(sums, layer.bias_sums, of_tensors + p.layers + l);
    }
  }

 private:
  OdeCall& call;
  static constexpr int of_tensors = int(OdeCall::kGradOfTensors);
  const int panel, lanes;
  std::vector<OdeLayer<S>> layers;
  std::vector<S> a, b, c;

  static const S* data(const Tensor& t) { return static_cast<const S*>(t.const_data_ptr()); }
  template <class T> static const S* data(const T& t) { return t ? data(*t) : nullptr; }
  S* grad(int i) { return call.grads[i] ? static_cast<S*>(call.grads[i]->mutable_data_ptr()) : nullptr; }

  void describe() {
    OdeProblem<S>& p = problem;
    p.rows = call.rows(), p.features = int(call.features()), p.layers = int(call.layers());
    p.stages = int(call.stages()), p.intervals = int(call.intervals());
    p.steps = int(call.set.steps), p.every = int(call.set.every);
    p.frequencies = call.frequencies ? int(call.frequencies->size(0)) : 0;
    p.phi = call.time ? int(call.time->size(1)) : 0;
    p.directions = call.directions ? int(call.directions->size(0)) : 0;
    if (call.closed) p.trace = p.layers == 2 ? kClosedVector : kClosedMatrix;
    else p.trace = call.directions ? kDirections : kNoTrace;
    p.kinetic = call.set.kinetic, p.jacobian = call.set.jacobian;
    p.adjoint = call.adjoint, p.backward = call.grad_ends != nullptr;
    p.weight = S(call.set.weight);
    a.assign(call.set.a.begin(), call.set.a.end()), b.assign(call.set.b.begin(), call.set.b.end());
    c.assign(call.set.c.begin(), call.set.c.end());
    p.a = a.data(), p.b = b.data(), p.c = c.data();
    p.starts = data(call.starts), p.sizes = data(call.sizes), p.omega = data(call.frequencies);
    p.row_bias = data(call.row_bias), p.y = data(call.y);
    if (p.directions) {
      p.epsilon = data(call.directions);
      for (int d = 0; d < 3; ++d) p.epsilon_stride[d] = call.directions->stride(d);
    }
    p.ends = static_cast<S*>(call.ends.mutable_data_ptr());
    p.kept = static_cast<S*>(call.kept.mutable_data_ptr());
    if (p.backward) {
      p.grad_ends = data(*call.grad_ends), p.grad_sums = data(*call.grad_sums);
      p.grad_y = grad(0), p.grad_row_bias = grad(3);
    } else {
      p.sums = static_cast<S*>(call.sums.mutable_data_ptr());
    }
    for (int l = 0; l < p.layers; ++l) describe(l);
    p.layer = layers.data();
  }

  void describe(int l) {
    OdeLayer<S> layer{};
    layer.units = int(call.weight(l).size(0)), layer.inputs = int(call.weight(l).size(1));
    layer.bias = data(call.bias(l));
    if (l + 1 < problem.layers)
      layer.activation = int(call.set.activations[l]), layer.slope = S(call.set.slopes[l]);
    layers.push_back(layer);
  }

  // Places, one after the other.
  template <class Int> struct Places {
    Int end = 0;
    Int take(Int count) { return (end += count) - count; }
  };

  void place_tile() {
    OdeProblem<S>& p = problem;
    Places<int> places;
    const int width = ode_padded(p.features);
    int widest = width;
    for (const auto& layer : layers)
      widest = std::max({widest, ode_padded(layer.units), ode_padded(layer.inputs)});
    p.of_y = places.take(width), p.of_k = places.take(p.stages * width);
    p.of_rate = places.take(3 * p.stages), p.of_sums = places.take(3);
    p.of_bias = places.take(p.row_bias ? ode_padded(layers[0].units) : 0);
    p.of_epsilon = places.take(p.directions * width);
    p.apart = ode_padded(layers[0].units) + ode_padded(layers.back().inputs);
    if (p.backward) p.apart *= 2;
    p.of_directions = places.take(p.directions * p.apart);
    place_frame(width);
    p.of_frames = places.take(p.frame * (p.backward && !p.adjoint ? p.stages : 1));
    if (p.backward) {
      p.of_states = places.take(p.adjoint ? 0 : p.every * width);
      p.of_lambda = places.take(width), p.of_mu = places.take(3), p.of_cot = places.take(4);
      p.of_fbar = places.take(width), p.of_ybar = places.take(p.stages * width);
      p.of_g = places.take(widest), p.of_q = places.take(widest);
      p.of_grad_bias = places.take(p.row_bias ? ode_padded(layers[0].units) : 0);
      for (auto& layer : layers) {
        const int units = ode_padded(layer.units);
        layer.grad = places.take(units), layer.extra = places.take(units);
      }
    }
    p.memory = places.end;
    Places<int> numbers;
    p.of_first = numbers.take(ode_padded(layers[0].units)), p.of_totals = numbers.take(ode_padded(layers[0].units));
    p.of_phi = numbers.take(p.phi), p.of_phi_bar = numbers.take(p.phi);
    p.numbers = numbers.end;
  }

  void place_frame(int width) {
    OdeProblem<S>& p = problem;
    Places<int> frame, direction;
    p.at_x = frame.take(width), p.at_f = frame.take(width);
    p.at_j = direction.take(width);
    for (int l = 0; l + 1 < p.layers; ++l) {
      OdeLayer<S>& layer = layers[l];
      const int units = ode_padded(layer.units);
      layer.u = frame.take(units);
      layer.d = frame.take(p.backward || p.trace != kNoTrace ? units : 0);
      layer.e = frame.take(p.backward && p.trace != kNoTrace ? units : 0);
      layer.w = direction.take(l > 0 ? units : 0), layer.v = direction.take(units);
    }
    p.at_s = frame.take(p.trace == kClosedMatrix ? ode_padded(layers[1].units) : 0);
    p.per_direction = direction.end;
    p.at_directions = frame.take(p.directions * direction.end);
    p.frame = frame.end;
  }

  void place_sums() {
    OdeProblem<S>& p = problem;
    Places<std::int64_t> places;
    p.start_sums = places.take(p.intervals), p.size_sums = places.take(p.intervals);
    p.time_sums = places.take(std::int64_t(p.phi) * ode_padded(layers[0].units));
    p.omega_sums = places.take(p.frequencies);
    if (p.trace == kClosedVector) p.closed_sums = places.take(layers[0].units);
    if (p.trace == kClosedMatrix) p.closed_sums = places.take(matrix_sums(closed_rows(), layers[0].units));
    for (auto& layer : layers) {
      const auto [most, least] = std::minmax(layer.units, layer.inputs, std::greater<int>());
      layer.weight_sums = places.take(matrix_sums(most, least));
      layer.bias_sums = places.take(ode_padded(layer.units));
    }
    chunk_size = places.end;
  }
  static std::int64_t matrix_sums(int rows, int columns) {
    return std::int64_t(ode_padded(rows)) * ode_columns(columns);
  }

  int closed_rows() const { return problem.trace == kClosedMatrix ? layers[1].units : 1; }
  // Of a matrix and its transpose in panels.
  std::int64_t panels(int rows, int columns) const {
    const std::int64_t down = (rows + panel - 1) / panel, across = (columns + panel - 1) / panel;
    return (down * columns + across * rows) * panel;
  }

  void pack() {
    OdeProblem<S>& p = problem;
    std::int64_t size = 0;
    for (const auto& layer : layers) size += panels(layer.units, layer.inputs);
    if (call.closed) size += panels(closed_rows(), layers[0].units);
    size += std::int64_t(p.phi) * ode_padded(layers[0].units);
    S* to = scratch<S, 0>(size);
    for (int l = 0; l < p.layers; ++l) {
      OdeLayer<S>& layer = layers[l];
      pack(data(call.weight(l)), layer.units, layer.inputs, layer.into, layer.back, to);
    }
    if (call.closed) pack(data(call.closed), closed_rows(), layers[0].units, p.closed, p.closed_back, to);
    if (call.time) pack_time(data(call.time), to);
  }
  void pack_time(const S* matrix, S* to) {
    OdeProblem<S>& p = problem;
    p.time = to;
    for (int column = 0; column < p.phi; ++column)
      for (int r = 0; r < ode_padded(layers[0].units); ++r)
        *to++ = r < layers[0].units ? matrix[std::int64_t(r) * p.phi + column] : S(0);
  }

  // A matrix and, where it is needed, its transpose in panels; advances `to`.
  void pack(const S* matrix, int rows, int columns, const S*& into, const S*& back, S*& to) const {
    into = pack(matrix, rows, columns, columns, 1, to);
    if (problem.backward || problem.directions) back = pack(matrix, columns, rows, 1, columns, to);
  }
  const S* pack(const S* matrix, int rows, int columns, std::int64_t of_row, std::int64_t of_column,
                S*& to) const {
    const S* begin = to;
    for (int row = 0; row < rows; row += panel)
      for (int c = 0; c < columns; ++c)
        for (int j = row; j < row + panel; ++j) *to++ = j < rows ? matrix[j * of_row + c * of_column] : S(0);
    return begin;
  }

  void copy_vector(const S* sums, std::int64_t place, int to) {
    const std::int64_t count = call.grads[to]->numel();
    for (std::int64_t i = 0; i < count; ++i) grad(to)[i] = sums[place + i];
  }
  void copy_time(const S* sums) {
    const OdeProblem<S>& p = problem;
    for (int r = 0; r < layers[0].units; ++r)
      for (int column = 0; column < p.phi; ++column) {
        const std::int64_t place = p.time_sums + std::int64_t(column) * ode_padded(layers[0].units) + r;
        grad(4)[std::int64_t(r) * p.phi + column] = sums[place];
      }
  }
  // From groups of 2·lanes rows; swapped: what lies along the lanes are the columns.
  void copy_matrix(const S* sums, std::int64_t place, int rows, int columns,
                   bool swapped, int to) {
    const int group = 2 * lanes, width = ode_columns(swapped ? rows : columns);
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column) {
        const int lane = swapped ? column : row, other = swapped ? row : column;
        const std::int64_t begin = std::int64_t(lane / group) * group * width;
        const std::int64_t at = begin + std::int64_t(other) * group + lane % group;
        grad(to)[std::int64_t(row) * columns + column] = sums[place + at];
      }
  }
};

}  // namespace
}  // namespace flowkern
