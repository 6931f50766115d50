// Where the kernels of the neural ODE solve keep things: rows of a tile, packed weights, sums of gradients.
#pragma once

#include "cuda.h"
#include "products.cuh"

#include <algorithm>

FLOWKERN_BEGIN
namespace {

template <class S> int64_t shared_bytes(const OdeSolve<S>& p) {
  const int64_t tile = p.tile_is_shared ? int64_t(p.tile_rows) << p.shift : 0;
  return int64_t(sizeof(S)) * (tile + (p.weights_are_shared ? p.packed_size : 0));
}

template <class S> class OdeLayout {
 public:
  // Four blocks for each of some 130 multiprocessors; fewer where a block needs much of the memory.
  static constexpr int64_t kMostBlocks = 512, kScratch = int64_t(1) << 30, kTiles = 128;
  static constexpr int kLeastShift = 2, kMostShift = 5;

  explicit OdeLayout(OdeSolve<S>& p) : p(p) {}

  void plan(int64_t shared) {
    place_packed();
    place_sums();
    place_rows();
    choose_tile(shared);
    const int64_t tile = p.tile_is_shared ? 0 : int64_t(p.tile_rows) << p.shift, own = p.slice + tile;
    const int64_t tiles = (p.rows + (1 << p.shift) - 1) >> p.shift;
    p.blocks = std::min(tiles, kMostBlocks);
    if (own > 0) p.blocks = std::min(p.blocks, std::max(kScratch / int64_t(own * sizeof(S)), int64_t(1)));
    p.slices = p.packed_size + p.blocks * tile;
    p.scratch_size = p.slices + p.blocks * p.slice;
  }

 private:
  OdeSolve<S>& p;

  template <class Int> struct Places {
    Int end = 0;
    Int take(Int count) { return (end += count) - count; }
  };

  int64_t packed(const OdeLayer<S>& layer) const {
    const int64_t size = int64_t(ode_padded(layer.units)) * ode_padded(layer.inputs);
    if (size > 0x7fffffff) throw std::runtime_error("layers: at most 2^31 - 1 entries of a weight on a GPU");
    return size;
  }
  void place_packed() {
    Places<int64_t> places;
    for (int l = 0; l < p.layers; ++l) p.layer[l].packed = places.take(packed(p.layer[l]));
    p.closed_packed = places.take(p.closed && p.layers == 3 ? packed(p.layer[1]) : 0);
    p.packed_size = places.end;
  }

  // In the order in which sums_kernel looks for them.
  void place_sums() {
    if (!p.backward) return void(p.slice = 0);
    Places<int64_t> places;
    const OdeLayer<S>&one = p.layer[0], &two = p.layer[1];
    p.start_sums = places.take(p.intervals), p.size_sums = places.take(p.intervals);
    p.time_sums = places.take(int64_t(p.phi) * one.units), p.omega_sums = places.take(p.frequencies);
    p.closed_sums = places.take(!p.closed ? 0 : p.layers == 2 ? one.units : int64_t(two.units) * two.inputs);
    for (int l = 0; l < p.layers; ++l) {
      OdeLayer<S>& layer = p.layer[l];
      layer.weight_sums = places.take(int64_t(layer.units) * layer.inputs);
      layer.bias_sums = places.take(layer.bias ? layer.units : 0);
    }
    p.slice = places.end;
  }

  Places<int> rows;
  int take(int count) { return rows.take(ode_padded(count)); }
  int take_if(bool needed, int count) { return needed ? take(count) : -1; }

  void place_rows() {
    const bool traced = p.closed || p.directions > 0;
    const int state = ode_padded(p.features);
    p.of_y = take_if(!p.backward || p.adjoint, state), p.of_x = take(state), p.of_k = take(p.stages * state);
    p.of_sums = take_if(!p.backward, 3);
    p.of_bias = take_if(p.row_bias, p.layer[0].units);
    p.of_epsilon = take_if(p.directions > 0, state);
    int widest = p.features;
    for (int l = 0; l < p.layers; ++l) {
      OdeLayer<S>& layer = p.layer[l];
      const bool hidden = l + 1 < p.layers;
      widest = std::max(widest, layer.units);
      layer.u = take_if(hidden, layer.units);
      layer.d = take_if(hidden && (p.backward || traced), layer.units);
      layer.e = take_if(hidden && p.backward && traced, layer.units);
      layer.extra = take_if(hidden && p.backward && traced, layer.units);
      layer.w = take_if(p.directions > 0, layer.units);
      layer.v = p.backward ? take_if(hidden && p.directions > 0, layer.units) : layer.w;
    }
    p.of_s = take_if(p.closed && p.layers == 3, p.layer[1].units);
    if (p.backward) place_rows_of_gradients(state, widest);
  }

  void place_rows_of_gradients(int state, int widest) {
    p.of_states = take_if(!p.adjoint, p.every * state);
    p.of_lambda = take(state), p.of_fbar = take(state), p.of_ybar = take(p.stages * state);
    p.of_mu = take(3), p.of_cot = take(3), p.of_rate = take(3), p.of_h = take(1);
    p.of_g = take(widest), p.of_q = take(widest);
    p.of_grad_bias = take_if(p.row_bias, p.layer[0].units);
  }

  bool fits(int shift, bool weights, int64_t shared) {
    p.shift = shift;
    p.of_parts = rows.end;
    const int numbers = std::max(kOdeThreads, p.layer[0].units + 2 * p.phi);  // of sums, or for embed_back
    p.tile_rows = rows.end + ((numbers + (1 << shift) - 1) >> shift);
    p.tile_is_shared = true, p.weights_are_shared = weights;
    return shared_bytes(p) <= shared;
  }
  // As many samples as give every multiprocessor a tile, at most; fewer, to have weights in shared memory too,
  // but eight; or else in main memory.
  void choose_tile(int64_t shared) {
    int most = kMostShift;
    while (most > kLeastShift && p.rows >> most < kTiles) --most;
    for (bool weights : {true, false})
      for (int shift = most; shift >= (weights ? std::min(most, 3) : kLeastShift); --shift)
        if (fits(shift, weights, shared)) return;
    fits(most, false, shared);
    p.tile_is_shared = false;
  }
};

}  // namespace
FLOWKERN_END
