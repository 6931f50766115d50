// The masked autoregressive transform's kernels: weights are packed, then a block takes a tile of samples
// through the whole transform.
#include "element.cuh"
#include "tile.cuh"

FLOWKERN_BEGIN
namespace {

constexpr int kThreads = 256;
template <class S> constexpr int kBlocks = 8 / sizeof(S);  // on a multiprocessor, or registers would be too few
constexpr int kWidest = 32, kNarrowest = 8;      // samples of a tile
constexpr std::int64_t kMostShared = 96 * 1024;  // bytes of a tile in shared memory, which any GPU has since sm_80
constexpr std::int64_t kMostMain = 1 << 30;      // and of all tiles elsewhere
constexpr int kMostTiles = 512;                  // of the latter
constexpr int kBlockUnits = 32;                  // units of a block of ranks, in the widest layer

// --- packing ---------------------------------------------------------------------------------------

// Some layers, and the one before them, as a kernel's argument.
constexpr int kAtOnce = 8;
template <class S> struct Layers {
  MaskedLayer<S> all[kAtOnce + 1];
  int first, count;  // all[1] is layer `first`
};
static_assert(sizeof(MaskedProblem<double>) + sizeof(Layers<double>) <= 4096, "arguments that any GPU takes");

// The rank of the unit at a place: the lowest that as many units have at most.
template <class S> __device__ int rank_at(const MaskedLayer<S>& layer, int place, int levels) {
  int low = 0, high = levels;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (count_upto(layer, middle) > place) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The columns that a row of W sees; of its transpose, the units that see a row.
template <class S> __device__ Span seen(const MaskedLayer<S>& in, const MaskedLayer<S>& out, bool back, int row, int levels) {
  if (!back) return {0, count_upto(in, rank_at(out, row, levels))};
  return {count_upto(out, rank_at(in, row, levels) - 1), out.units};
}

template <class S>
__device__ void pack_panel(const MaskedProblem<S>& p, const MaskedLayer<S>& in, const MaskedLayer<S>& out, bool back, int panel) {
  __shared__ Span spans[kPanel];
  const int rows = back ? in.units : out.units, columns = back ? out.units : in.units;
  const int first = panel * kPanel, last = (rows - first < kPanel ? rows - first : kPanel) - 1;
  if (threadIdx.x < kPanel)
    spans[threadIdx.x] = int(threadIdx.x) > last ? Span{0, 0} : seen(in, out, back, first + int(threadIdx.x), p.call.levels);
  __syncthreads();
  if (threadIdx.x == 0) p.memory.spans[out.spans[back] + panel] = {spans[0].begin, spans[last].end};
  Column<S>* to = p.memory.panels + out.panels[back] + int64_t(panel) * columns;
  for (int i = threadIdx.x; i < columns * kPanel; i += blockDim.x) {
    const int column = i / kPanel, j = i % kPanel;
    S value = S(0);
    if (column >= spans[j].begin && column < spans[j].end) {
      const int64_t row_unit = unit_at(back ? in : out, first + j), column_unit = unit_at(back ? out : in, column);
      value = out.weight.base[(back ? column_unit : row_unit) * out.weight.row + (back ? row_unit : column_unit) * out.weight.feature];
    }
    to[column].row[j] = value;
  }
  __syncthreads();
}

__device__ __forceinline__ int panels_of(int units) { return (units + kPanel - 1) / kPanel; }

// A block packs a panel at a time, of W and in the backward of its transpose.
template <class S> __global__ __launch_bounds__(kThreads) void pack_kernel(MaskedProblem<S> p, Layers<S> some) {
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i <= some.count; i += blockDim.x) p.memory.layers[some.first - 1 + i] = some.all[i];
  for (int i = 1; i <= some.count; ++i)
    for (int back = 0; back <= (p.call.grad_out.base != nullptr); ++back) {
      const int panels = panels_of(back ? some.all[i - 1].units : some.all[i].units);
      for (int panel = blockIdx.x; panel < panels; panel += gridDim.x) pack_panel(p, some.all[i - 1], some.all[i], back, panel);
    }
}

// --- the transform ---------------------------------------------------------------------------------

// Calls body(tile) for the tiles that are this block's.
template <class S, class F> __device__ __forceinline__ void for_tiles(const MaskedProblem<S>& p, const F& body) {
  S* memory = reinterpret_cast<S*>(shared_memory());
  if (p.memory.tiles) memory = p.memory.tiles + int64_t(blockIdx.x) * p.tile_rows * p.samples;
  const int sample = int(threadIdx.x) % p.samples, group = int(threadIdx.x) / p.samples;
  const int64_t step = int64_t(gridDim.x) * p.samples;
  for (int64_t first = int64_t(blockIdx.x) * p.samples; first < p.call.rows; first += step) {
    const int64_t n = first + sample;
    body(Tile<S>{p, memory + sample, n, n < p.call.rows, p.samples, group, kThreads / p.samples});
    __syncthreads();  // the memory is free again
  }
}

// y of some features, in place of x, from their parameters; adds their log-dets.
template <bool inverse, class S, class E> __device__ __forceinline__ void map_features(const Tile<S>& tile, Span features, const E& element, S& logabsdet) {
  const MaskedProblem<S>& p = tile.p;
  tile.each_row(features, [&](int f) FLOWKERN_INLINE {
    S& x = tile.at(p.in + f);
    const auto out = element.template map<inverse>(x, &tile.at(tile.layer(p.outputs).u + f * p.call.parameters), p.samples);
    x = out.y, logabsdet += out.logabsdet;
  });
  __syncthreads();
}

// Block after block, and rank after rank within it.
template <class S, class E> __device__ __forceinline__ void solve(const Tile<S>& tile, const E& element, S& logabsdet) {
  const int levels = tile.p.call.levels, block = tile.p.block;
  for (int low = 0; low < levels; low += block) {
    const int high = levels - low < block ? levels : low + block;
    tile.begin_block(low, high);
    for (int rank = low; rank < high; ++rank) {
      tile.step(low, rank);
      map_features<true>(tile, tile.ranks(0, rank + 1, rank + 2), element, logabsdet);
    }
  }
}

// The sum of what all groups have for a sample.
template <class S> __device__ __forceinline__ void store_logabsdet(const Tile<S>& tile, S own) {
  __shared__ S parts[kThreads];
  parts[threadIdx.x] = own;
  __syncthreads();
  if (tile.group > 0 || !tile.here) return;
  for (int i = 1; i < tile.groups; ++i) own += parts[int(threadIdx.x) + i * tile.samples];
  tile.p.call.logabsdet[tile.n] = own;
}

template <class S, class E, bool inverse> __global__ __launch_bounds__(kThreads, kBlocks<S>) void forward_kernel(MaskedProblem<S> p) {
  const E element(p.call);
  for_tiles(p, [&](const Tile<S>& tile) FLOWKERN_INLINE {
    S logabsdet = S(0);
    tile.read(p.call.given, p.in);
    tile.start();
    tile.add_terms();
    __syncthreads();
    if constexpr (inverse) {
      solve(tile, element, logabsdet);
    } else {
      tile.evaluate();
      map_features<false>(tile, tile.all(0), element, logabsdet);
    }
    tile.write(p.in, p.call.out);
    store_logabsdet(tile, logabsdet);
  });
}

// From the cotangents of some features' outputs to those of their inputs and parameters, in place.
template <bool inverse, class S, class E> __device__ __forceinline__ void map_back(const Tile<S>& tile, int f, const E& element, S g_logabsdet) {
  const MaskedProblem<S>& p = tile.p;
  const MaskedLayer<S>& outputs = tile.layer(p.outputs);
  S& g = tile.at(p.grad + f);
  S* params = &tile.at(outputs.u + f * p.call.parameters);
  g = element.template vjp<inverse>(tile.at(p.in + f), params, p.samples, g, g_logabsdet);
  if (outputs.tape_v < 0) return;
  const int first = unit_at(outputs, f * p.call.parameters);
  for (int i = 0; i < p.call.parameters; ++i) tile.tape(outputs.tape_v, first + i) = params[i * p.samples];
}

// The transposed solve: ranks descending, first those that no output sees.
template <class S, class E> __device__ __forceinline__ void solve_back(const Tile<S>& tile, const E& element, S g_logabsdet) {
  const int levels = tile.p.call.levels, block = tile.p.block;
  tile.step_back(levels, levels);
  for (int low = (levels - 1) / block * block; low >= 0; low -= block) {
    const int high = levels - low < block ? levels : low + block;
    tile.begin_block_back(low, high);
    for (int rank = high - 1; rank >= low; --rank) {
      tile.step_to_features(rank, high, [&](int f) FLOWKERN_INLINE { map_back<true>(tile, f, element, g_logabsdet); });
      tile.step_back(rank, high);
    }
  }
}

template <class S, class E, bool inverse> __global__ __launch_bounds__(kThreads, kBlocks<S>) void backward_kernel(MaskedProblem<S> p) {
  const E element(p.call);
  for_tiles(p, [&](const Tile<S>& tile) FLOWKERN_INLINE {
    const S g_logabsdet = tile.here ? tile.value(p.call.grad_logabsdet, 0) : S(0);
    tile.read(p.call.known, tile.layer(0).u);
    if constexpr (inverse) tile.read(p.call.given, p.in);
    tile.start();
    __syncthreads();
    tile.evaluate();
    tile.clear_grads();
    tile.read(p.call.grad_out, p.grad);
    __syncthreads();
    if constexpr (inverse) {
      solve_back(tile, element, g_logabsdet);
    } else {
      tile.each_row(tile.all(0), [&](int f) FLOWKERN_INLINE { map_back<false>(tile, f, element, g_logabsdet); });
      __syncthreads();
      tile.evaluate_back();
    }
    tile.write(p.grad, p.call.out);
  });
}

// --- launches --------------------------------------------------------------------------------------

// A call, with the features as layer 0, and where everything lies.
template <class S> struct MaskedLaunch {
  MaskedProblem<S> problem{};
  std::vector<MaskedLayer<S>> layers;
  std::int64_t panels = 0, columns = 0, blocks;

  MaskedLaunch(const MaskedTransform<S>& call, const std::vector<MaskedLayer<S>>& given) : layers(given) {
    MaskedLayer<S> features{};
    features.units = call.features, features.skip = -1;
    layers.insert(layers.begin(), features);
    problem.call = call, problem.outputs = int(given.size());
    place_order();
    place_rows();
    place_tape();
    place_weights();
    divide();
  }

  void place_order() {
    const std::int64_t *order = problem.call.order, *ends = problem.call.ends;
    for (auto& layer : layers) {
      layer.per_place = 1, layer.order = order, layer.ends = ends;
      order += layer.units, ends += problem.call.levels + 1;
    }
    // Outputs have the rank below their feature's.
    layers.back().per_place = problem.call.parameters;
    layers.back().order = problem.call.order, layers.back().ends = problem.call.ends + 1;
  }

  // Of the features: the one plane that the network sees; in the backward another, for what is given,
  // or for the cotangents, which in the inverse take the place of the first.
  void place_rows() {
    const bool backward = problem.call.grad_out.base, inverse = problem.call.inverse;
    std::int64_t rows = 0;
    const auto take = [&](int count) { return int((rows += count) - count); };
    for (auto& layer : layers) layer.z = layer.grad_skip = -1;
    for (auto& layer : layers) layer.u = take(layer.units);
    if (backward) {
      const int more = take(layers[0].units);
      problem.in = inverse ? more : 0, problem.grad = inverse ? 0 : more;
    }
    for (int k = 1; k < problem.outputs; ++k) {
      const int to = layers[k].skip;
      if (to >= 0 && layers[to].z < 0) layers[to].z = take(layers[to].units);
      if (to >= 0 && backward && layers[to].grad_skip < 0) layers[to].grad_skip = take(layers[to].units);
    }
    for (int k = 1; backward && k < problem.outputs; ++k)
      if (layers[k].z < 0) layers[k].z = take(layers[k].units);
    if (rows > 0x7fffffff) throw std::runtime_error("layers: at most 2^31 units in all on a GPU");
    problem.tile_rows = int(rows);
  }

  // As gradients.py reads it.
  void place_tape() {
    for (auto& layer : layers)
      layer.tape_u = layer.tape_v = layer.tape_gate = layer.tape_gain = layer.tape_offset = -1;
    if (!problem.call.tape) return;
    std::int64_t rows = 0;
    const auto take = [&](int count) { return (rows += count) - count; };
    for (int k = 1; k < problem.outputs; ++k) layers[k].tape_u = take(layers[k].units);
    for (int k = 1; k <= problem.outputs; ++k) layers[k].tape_v = take(layers[k].units);
    for (auto& layer : layers) {
      if (layer.gate.base) layer.tape_gate = take(layer.units);
      if (!layer.gain.base && !layer.offset.base) continue;
      layer.tape_gain = take(layer.units), layer.tape_offset = take(layer.units);
    }
  }

  void place_weights() {
    for (int k = 1; k <= problem.outputs; ++k)
      for (int back = 0; back <= (problem.call.grad_out.base != nullptr); ++back) {
        const int rows = layers[back ? k - 1 : k].units, across = layers[back ? k : k - 1].units;
        layers[k].spans[back] = panels, layers[k].panels[back] = columns;
        const int count = (rows + kPanel - 1) / kPanel;
        panels += count, columns += std::int64_t(count) * across;
      }
  }

  // As wide a tile as fits into shared memory; or the widest, in main memory.
  void divide() {
    const std::int64_t row = problem.tile_rows * std::int64_t(sizeof(S));
    int samples = kWidest;
    while (samples > kNarrowest && row * samples > kMostShared) samples /= 2;
    in_shared = row * samples <= kMostShared;
    problem.samples = in_shared ? samples : kWidest;
    blocks = (problem.call.rows + problem.samples - 1) / problem.samples;
    if (!in_shared) blocks = least(blocks, least(kMostTiles, kMostMain / (row * kWidest) + 1));
    int widest = layers[0].units;
    for (int k = 1; k < problem.outputs; ++k) widest = k == 1 || layers[k].units > widest ? layers[k].units : widest;
    const std::int64_t ranks = std::int64_t(kBlockUnits) * problem.call.levels / (widest > 0 ? widest : 1);
    problem.block = int(ranks > 1 ? least(ranks, problem.call.levels) : 1);
  }
  static std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

  // Bytes of each part of the memory; the first thing that the next one needs is an address it can take.
  std::int64_t layer_bytes() const { return rounded(std::int64_t(layers.size() * sizeof(MaskedLayer<S>))); }
  std::int64_t span_bytes() const { return rounded(panels * std::int64_t(sizeof(Span))); }
  std::int64_t panel_bytes() const { return columns * std::int64_t(sizeof(Column<S>)); }
  std::int64_t tile_bytes() const { return problem.tile_rows * problem.samples * std::int64_t(sizeof(S)); }
  std::int64_t bytes() const {
    return layer_bytes() + span_bytes() + panel_bytes() + (in_shared ? 0 : blocks * tile_bytes());
  }
  static std::int64_t rounded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

  void place_memory(S* scratch) {
    auto* at = reinterpret_cast<unsigned char*>(scratch);
    problem.memory.layers = reinterpret_cast<MaskedLayer<S>*>(at);
    problem.memory.spans = reinterpret_cast<Span*>(at += layer_bytes());
    problem.memory.panels = reinterpret_cast<Column<S>*>(at += span_bytes());
    problem.memory.tiles = in_shared ? nullptr : reinterpret_cast<S*>(at + panel_bytes());
  }

  bool in_shared = true;
};

template <class S> void pack(const MaskedLaunch<S>& plan, void* stream) {
  for (int first = 1; first <= plan.problem.outputs; first += kAtOnce) {
    Layers<S> some{};
    some.first = first, some.count = int(MaskedLaunch<S>::least(kAtOnce, plan.problem.outputs + 1 - first));
    int widest = 0;
    for (int i = 0; i <= some.count; ++i) {
      some.all[i] = plan.layers[first - 1 + i];
      widest = some.all[i].units > widest ? some.all[i].units : widest;
    }
    launch_blocks("masked_autoregressive", pack_kernel<S>, (widest + kPanel - 1) / kPanel, kThreads, 0, stream, plan.problem, some);
  }
}

template <class S> using MaskedKernel = void (*)(MaskedProblem<S>);

template <class S, class E> MaskedKernel<S> kernel_with(const MaskedTransform<S>& call) {
  if (call.grad_out.base) return call.inverse ? backward_kernel<S, E, true> : backward_kernel<S, E, false>;
  return call.inverse ? forward_kernel<S, E, true> : forward_kernel<S, E, false>;
}
template <class S> MaskedKernel<S> kernel_for(const MaskedTransform<S>& call) {
  if (call.element.kind == kAffine) return kernel_with<S, AffineElement<S>>(call);
#define FLOWKERN_KERNELS(knots, name) kernel_with<S, SplineElement<S, knots>>,
  static constexpr MaskedKernel<S> (*kernels[kKnotMaps])(const MaskedTransform<S>&) = {FLOWKERN_KNOT_MAPS(FLOWKERN_KERNELS)};
#undef FLOWKERN_KERNELS
  return kernels[call.element.knots()](call);
}

template <class S> void run(MaskedLaunch<S> plan, S* scratch, void* stream) {
  plan.place_memory(scratch);
  pack(plan, stream);
  const MaskedKernel<S> kernel = kernel_for(plan.problem.call);
  const auto shared = std::size_t(plan.in_shared ? plan.tile_bytes() : 0);
  launch_blocks("masked_autoregressive", kernel, plan.blocks, kThreads, shared, stream, plan.problem);
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                            \
  std::int64_t masked_scratch(const MaskedTransform<S>& call, const std::vector<MaskedLayer<S>>& layers) { \
    return (MaskedLaunch<S>(call, layers).bytes() + sizeof(S) - 1) / sizeof(S);                                \
  }                                                                                                    \
  void masked_autoregressive(const MaskedTransform<S>& call, const std::vector<MaskedLayer<S>>& layers, \
                             S* scratch, void* stream) {                                               \
    run(MaskedLaunch<S>(call, layers), scratch, stream);                                                       \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
