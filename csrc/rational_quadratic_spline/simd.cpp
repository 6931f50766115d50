// The spline's loops over rows and tiles; compiled once per instruction set, see platform.h.
#include <type_traits>

#include "../common/coupling.h"
#include "../common/tile.h"
#include "cpu.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

// Asks for memory before its use, which the hardware foresees only in part: to the first cache one vector of
// elements ahead, to the second kFar. The second takes a third of the time off a forward that streams, and
// costs nothing in cache; asking for the first alone, farther ahead, does not help.
constexpr int kFar = 4;
template <int cache, class S> FLOWKERN_HD void prefetch(const S* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < count * int64_t(sizeof(S)); i += 64) __builtin_prefetch(bytes + i, 0, 4 - cache);
}

// Whether tiles are of two vectors where they can be. Where K = 0, arrays of shares are long already.
template <class S, int K> constexpr bool kPairs = K != 0 && Lanes<Vec<S>>::count > 1;

// Calls body.operator()<V>(run, i) for tiles that begin at element i of a run, until all are covered;
// V is Two<Vec<S>> or Vec<S>, and the latter only if `single`.
template <class S, bool pairs, class F>
FLOWKERN_HD void each_tile(const Segment& at, bool single, const F& body) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  const int last = at.shorter ? 0 : at.length - lanes;
  for (int run = 0; run < at.runs; ++run) {
    int i = 0;
    if constexpr (pairs)
      for (; !single && i + 2 * lanes <= at.length; i += 2 * lanes)
        body.template operator()<Two<Vec<S>>>(run, i);
    for (; i < at.length; i += lanes) body.template operator()<Vec<S>>(run, i < last ? i : last);
  }
}

// Where the parameters (or their cotangents) of the elements of one tile lie.
template <class Element> struct Tile {
  using S = std::remove_const_t<Element>;
  static constexpr bool rereads() { return false; }
  Element* base;
  int64_t stride;  // from one element to the next

  template <int K, class V> FLOWKERN_HD void fetch(int first, int count, V* out) const {
    load_tile<K, S>(base + first, stride, count, out);
  }
  FLOWKERN_HD Vec<S> pick(int first, Vec<S> i) const { return pick_lanes(base + first, stride, i); }
  FLOWKERN_HD Two<Vec<S>> pick(int first, Two<Vec<S>> i) const {
    const Element* second = base + Lanes<Vec<S>>::count * stride;
    return {pick_lanes(base + first, stride, i.a), pick_lanes(second + first, stride, i.b)};
  }
  template <int K, class V> FLOWKERN_HD void run(int first, int count, const V* values) const {
    store_tile<K, S>(base + first, stride, count, values);
  }
};

// Room for the parameters of one tile.
template <class S, int K> struct Stage {
  static constexpr int lanes = Lanes<Vec<S>>::count * (kPairs<S, K> ? 2 : 1);
  alignas(64) S values[lanes * (3 * (K ? K : kMostBins) + 1)];
};

// The parameters of a segment. Where those of an element are not contiguous, or the elements of a
// run not evenly spaced or fewer than there are lanes, tiles go through a stage; so do those to be
// streamed, which must be written as whole vectors.
template <class Element> struct Parameters {
  using S = std::remove_const_t<Element>;
  Element* base;  // of element (0, 0)
  int64_t row, feature, one;
  int count;  // parameters of an element
  bool streams;
  S* stage;  // room for a tile

  FLOWKERN_HD bool in_place(const Segment& at) const {
    if (one != 1 || at.shorter || feature > (1 << 26)) return false;
    return at.runs == at.rows || row == at.features * feature;
  }
  FLOWKERN_HD Element* first(const Segment& at) const {
    return base + at.row * row + at.feature * feature;
  }
  // Calls body(in stage, in memory) for each of `lanes` that has an element, from element i on.
  template <class F>
  FLOWKERN_HD void each_lane(const Segment& at, int run, int i, int lanes, const F& body) {
    int e = run * at.features + i;
    for (int lane = 0; lane < lanes && e < at.rows * at.features; ++lane, ++e)
      body(stage + lane * count, first(at) + e / at.features * row + e % at.features * feature);
  }

  template <class V> FLOWKERN_HD Tile<const S> read(const Segment& at, int run, int i) {
    constexpr int lanes = Lanes<V>::count;
    if (in_place(at)) {
      Element* tile = first(at) + run * row + i * feature;
      const int64_t vector = Lanes<Vec<S>>::count * feature;
      prefetch<2>(tile + kFar * vector, lanes * feature);
      prefetch<1>(tile + vector, lanes * feature);
      return {tile, feature};
    }
    each_lane(at, run, i, lanes, [&](S* staged, Element* from) FLOWKERN_INLINE {
      for (int k = 0; k < count; ++k) staged[k] = from[k * one];
    });
    return {stage, count};
  }
  FLOWKERN_HD bool streamed(const Segment& at, const S* tile) const {
    const bool aligned = reinterpret_cast<std::uintptr_t>(tile) % sizeof(Vec<S>) == 0;
    return streams && in_place(at) && feature == count && aligned;
  }
  FLOWKERN_HD Tile<S> to_write(const Segment& at, int run, int i) {
    S* tile = first(at) + run * row + i * feature;
    if (in_place(at) && !streamed(at, tile)) return {tile, feature};
    return {stage, count};
  }
  template <class V> FLOWKERN_HD void written(const Segment& at, int run, int i) {
    constexpr int lanes = Lanes<V>::count;
    S* tile = first(at) + run * row + i * feature;
    if (streamed(at, tile)) {
      for (int k = 0; k < lanes * count; k += Lanes<Vec<S>>::count) stream(tile + k, load(stage + k));
    } else if (!in_place(at)) {
      each_lane(at, run, i, lanes, [&](const S* staged, Element* to) FLOWKERN_INLINE {
        for (int k = 0; k < count; ++k) to[k * one] = staged[k];
      });
    }
  }
};

template <class S, int knots> SplineSettings<S, knots> settings(const SplineProblem<S>& p) {
  SplineSettings<S, knots> set;
  set.bins = bins_of(int(p.parameters), p.tails), set.tails = p.tails;
  set.left = p.left, set.right = p.right, set.bottom = p.bottom, set.top = p.top;
  set.min_width = p.min_width, set.min_height = p.min_height, set.min_slope = p.min_slope;
  set.softclip = p.softclip, set.scale = p.scale;
  return set;
}

// The interval of a tile's elements: the same for all, or ± the bound of each one's feature.
template <class V, class S, class Set>
FLOWKERN_HD void axes(const Set& set, const S* bounds, Axis<V>& across, Axis<V>& up) {
  if (bounds) {
    const V high = Parts<V>::join([&](int l) FLOWKERN_INLINE { return load(bounds + l); });
    across = up = {V(S(0)) - high, high};
  } else {
    across = {V(set.left), V(set.right)};
    up = {V(set.bottom), V(set.top)};
  }
}

// All features of the rows of a segment, where some are only copied.
template <class S>
FLOWKERN_HD void copy_columns(const SplineProblem<S>& p, const S* from, int64_t row, int64_t feature,
                              const Segment& at) {
  if (!p.index || at.feature != 0) return;
  const Elements<const S> in{from, row, feature, nullptr};
  copy_rows(in, Elements<S>{p.y, p.width, 1, nullptr}, p.width, at);
}

template <class S, int K, int knots, bool inverse>
void forward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  const auto set = settings<S, knots>(p);
  const Elements<const S> bounds_elements{p.bounds, 0, 1, nullptr};
  const Elements<const S> x_elements{p.x, p.x_row, p.x_feature, p.index};
  const Elements<S> y_elements{p.y, p.width, 1, p.index};
  const int count = int(p.parameters);
  Stage<S, K> params_stage;
  Parameters<const S> params{p.params, p.params_row, p.params_feature, p.params_one,
                             count, false, params_stage.values};
  Buffer<S> x_buffer, y_buffer, bounds_buffer, l;
  for_segments<S, true>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    copy_columns(p, p.x, p.x_row, p.x_feature, at);
    const Runs<const S> x = read(x_elements, at, x_buffer);
    const Runs<S> y = write(y_elements, at, false, y_buffer), l_runs{l.values, at.features};
    Runs<const S> bounds{};
    if (p.bounds) bounds = read(bounds_elements, at, bounds_buffer);
    each_tile<S, kPairs<S, K>>(at, false, [&]<class V>(int run, int i) FLOWKERN_INLINE {
      Axis<V> across, up;
      axes(set, p.bounds ? bounds.at(run, i) : nullptr, across, up);
      const V x_i = Parts<V>::join([&](int l) FLOWKERN_INLINE { return load(x.at(run, i + l)); });
      const auto out = transform<K, inverse>(x_i, params.template read<V>(at, run, i), set, across, up);
      Parts<V>::split(out.y, [&](int l, Vec<S> v) FLOWKERN_INLINE { store(y.at(run, i + l), v); });
      Parts<V>::split(out.logabsdet, [&](int l, Vec<S> v) FLOWKERN_INLINE {
        store(l_runs.at(run, i + l), v);
      });
    });
    written(y_elements, at, y_buffer);
    sum_rows(l, at, p.logabsdet);
  });
}

template <class S, int K, int knots, bool inverse>
void backward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  const auto set = settings<S, knots>(p);
  const Elements<const S> bounds_elements{p.bounds, 0, 1, nullptr};
  const Elements<const S> x_elements{p.x, p.x_row, p.x_feature, p.index};
  const Elements<const S> g_y_elements{p.grad_y, p.grad_y_row, p.grad_y_feature, p.index};
  const Elements<const S> g_l_elements{p.grad_logabsdet, p.grad_logabsdet_row, 0, nullptr};
  const Elements<S> g_x_elements{p.y, p.width, 1, p.index};
  const int count = int(p.parameters);
  Stage<S, K> params_stage, grads_stage;
  Parameters<const S> params{p.params, p.params_row, p.params_feature, p.params_one,
                             count, false, params_stage.values};
  Parameters<S> grads{p.grad_params, p.grad_params_row, p.grad_params_feature, p.grad_params_one,
                      count, p.streams, grads_stage.values};
  Buffer<S> x_buffer, g_y_buffer, g_l_buffer, g_x_buffer, bounds_buffer;
  for_segments<S, true>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    copy_columns(p, p.grad_y, p.grad_y_row, p.grad_y_feature, at);
    const Runs<const S> x = read(x_elements, at, x_buffer), g_y = read(g_y_elements, at, g_y_buffer);
    const RowValues<S> g_l = read_row_values(g_l_elements, at, g_l_buffer);
    const Runs<S> g_x = write(g_x_elements, at, false, g_x_buffer);
    Runs<const S> bounds{};
    if (p.bounds) bounds = read(bounds_elements, at, bounds_buffer);
    // A tile to be streamed goes through the stage, where one of two vectors takes longer.
    each_tile<S, kPairs<S, K>>(at, p.streams, [&]<class V>(int run, int i) FLOWKERN_INLINE {
      Axis<V> across, up;
      axes(set, p.bounds ? bounds.at(run, i) : nullptr, across, up);
      const V x_i = Parts<V>::join([&](int l) FLOWKERN_INLINE { return load(x.at(run, i + l)); });
      const V g_y_i = Parts<V>::join([&](int l) FLOWKERN_INLINE { return load(g_y.at(run, i + l)); });
      const V g_l_i = Parts<V>::join([&](int l) FLOWKERN_INLINE { return g_l.at(run, i + l); });
      const V g = transform_vjp<K, inverse>(x_i, params.template read<V>(at, run, i), set, across, up, g_y_i,
                                            g_l_i, grads.to_write(at, run, i));
      Parts<V>::split(g, [&](int l, Vec<S> v) FLOWKERN_INLINE { store(g_x.at(run, i + l), v); });
      grads.template written<V>(at, run, i);
    });
    written(g_x_elements, at, g_x_buffer);
  });
  if (p.streams) flush_streams();
}

template <class S> using Rows = void (*)(const SplineProblem<S>&, int64_t, int64_t);

// By knot map and direction.
template <class S, int K> struct Forward {
#define FLOWKERN_LOOPS(knots, name) {forward_rows<S, K, knots, false>, forward_rows<S, K, knots, true>},
  static constexpr Rows<S> table[kKnotMaps][2] = {FLOWKERN_KNOT_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
};
template <class S, int K> struct Backward {
#define FLOWKERN_LOOPS(knots, name) {backward_rows<S, K, knots, false>, backward_rows<S, K, knots, true>},
  static constexpr Rows<S> table[kKnotMaps][2] = {FLOWKERN_KNOT_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
};

// The bin counts that the libraries default to get code of their own, unrolled; K = 0 is any count.
template <template <class, int> class Loop, class S>
void run(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  if constexpr (sizeof(S) == 4 && Lanes<Vec<S>>::count > 1) switch (bins_of(int(p.parameters), p.tails)) {
    case 8: return Loop<S, 8>::table[p.knots][p.inverse](p, begin, end);
    case 10: return Loop<S, 10>::table[p.knots][p.inverse](p, begin, end);
  }
  Loop<S, 0>::table[p.knots][p.inverse](p, begin, end);
}

}  // namespace

#define FLOWKERN_ENTRY(name, Loop, S) \
  void name(const SplineProblem<S>& p, int64_t begin, int64_t end) { run<Loop>(p, begin, end); }
FLOWKERN_ENTRY(spline_forward, Forward, float)
FLOWKERN_ENTRY(spline_forward, Forward, double)
FLOWKERN_ENTRY(spline_backward, Backward, float)
FLOWKERN_ENTRY(spline_backward, Backward, double)
#undef FLOWKERN_ENTRY

FLOWKERN_END
