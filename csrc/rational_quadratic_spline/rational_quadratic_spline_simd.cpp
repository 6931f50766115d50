// The spline's loops over rows and tiles; compiled once per instruction set, see platform.h.
#include <type_traits>

#include "../common/coupling.h"
#include "../common/tile.h"
#include "rational_quadratic_spline_cpu.h"
#include "rational_quadratic_spline_math.h"

FLOWKERN_BEGIN
namespace {

// Asks for memory two tiles ahead of its use, which the hardware foresees only in part.
template <class S> FLOWKERN_HD void prefetch(const S* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < count * int64_t(sizeof(S)); i += 64) __builtin_prefetch(bytes + i);
}

// Where the parameters (or their cotangents) of the elements of one tile lie.
template <class Element> struct Tile {
  using S = std::remove_const_t<Element>;
  static constexpr bool rereads() { return false; }
  Element* base;
  int64_t stride;  // from one element to the next

  template <int K> FLOWKERN_HD void fetch(int first, int count, Vec<S>* out) const {
    load_tile<K, S>(base + first, stride, count, out);
  }
  FLOWKERN_HD Vec<S> pick(int first, Vec<S> i) const {
    return pick_lanes(base + first, stride, i);
  }
  template <int K> FLOWKERN_HD void run(int first, int count, const Vec<S>* values) const {
    store_tile<K, S>(base + first, stride, count, values);
  }
};

// The parameters of a segment. Where those of an element are not contiguous, or the elements of a
// run not evenly spaced or fewer than there are lanes, tiles go through a stage; so do those to be
// streamed, which must be written as whole vectors.
template <class Element, int capacity> struct Parameters {
  using S = std::remove_const_t<Element>;
  static constexpr int lanes = Lanes<Vec<S>>::count;
  Element* base;  // of element (0, 0)
  int64_t row, feature, one;
  int count;  // parameters of an element
  bool streams;
  alignas(64) S stage[lanes * capacity];

  FLOWKERN_HD bool in_place(const Segment& at) const {
    if (one != 1 || at.shorter || feature > (1 << 26)) return false;
    return at.runs == at.rows || row == at.features * feature;
  }
  FLOWKERN_HD Element* first(const Segment& at) const {
    return base + at.row * row + at.feature * feature;
  }
  // Calls body(in stage, in memory) for each lane that has an element, from element i of a run on.
  template <class F> FLOWKERN_HD void each_lane(const Segment& at, int run, int i, const F& body) {
    for (int lane = 0, e = run * at.features + i; lane < lanes && e < at.rows * at.features; ++lane, ++e)
      body(stage + lane * count, first(at) + e / at.features * row + e % at.features * feature);
  }

  FLOWKERN_HD Tile<const S> read(const Segment& at, int run, int i) {
    if (in_place(at)) {
      Element* tile = first(at) + run * row + i * feature;
      prefetch(tile + 2 * lanes * feature, lanes * feature);
      return {tile, feature};
    }
    each_lane(at, run, i, [&](S* staged, Element* from) FLOWKERN_INLINE {
      for (int k = 0; k < count; ++k) staged[k] = from[k * one];
    });
    return {stage, count};
  }
  FLOWKERN_HD bool streamed(const Segment& at, const S* tile) const {
    return streams && in_place(at) && feature == count && reinterpret_cast<std::uintptr_t>(tile) % sizeof(Vec<S>) == 0;
  }
  FLOWKERN_HD Tile<S> to_write(const Segment& at, int run, int i) {
    S* tile = first(at) + run * row + i * feature;
    if (in_place(at) && !streamed(at, tile)) return {tile, feature};
    return {stage, count};
  }
  FLOWKERN_HD void written(const Segment& at, int run, int i) {
    S* tile = first(at) + run * row + i * feature;
    if (streamed(at, tile)) {
      for (int k = 0; k < count; ++k) stream(tile + k * lanes, load(stage + k * lanes));
    } else if (!in_place(at)) {
      each_lane(at, run, i, [&](const S* staged, Element* to) FLOWKERN_INLINE {
        for (int k = 0; k < count; ++k) to[k * one] = staged[k];
      });
    }
  }
};

template <class S, bool soft> SplineSettings<S, soft> settings(const SplineProblem<S>& p) {
  SplineSettings<S, soft> set;
  set.bins = int((p.parameters + 1 - p.tails) / 3), set.tails = p.tails;
  set.left = S(p.left), set.right = S(p.right), set.bottom = S(p.bottom), set.top = S(p.top);
  set.min_width = S(p.min_width), set.min_height = S(p.min_height), set.min_slope = S(p.min_slope);
  set.softclip = S(p.softclip), set.scale = S(p.scale);
  return set;
}

// The interval of each element: the same for all, or ± the bound of its feature.
template <class S> struct Interval {
  Axis<Vec<S>> across, up;
  bool by_feature;
  Runs<const S> bounds;

  FLOWKERN_HD void move_to(int run, int i) {
    if (!by_feature) return;
    const Vec<S> high = load(bounds.at(run, i));
    across = up = {Vec<S>(S(0)) - high, high};
  }
};
template <class S, class Set>
FLOWKERN_HD Interval<S> interval(const SplineProblem<S>& p, const Set& set, const Segment& at, Buffer<S>& buffer) {
  Interval<S> all{{Vec<S>(set.left), Vec<S>(set.right)}, {Vec<S>(set.bottom), Vec<S>(set.top)}, p.bounds != nullptr, {}};
  if (p.bounds) all.bounds = read(Elements<const S>{p.bounds, 0, 1, nullptr}, at, buffer);
  return all;
}

// All features of the rows of a segment, where some are only copied.
template <class S>
FLOWKERN_HD void copy_columns(const SplineProblem<S>& p, const S* from, int64_t row, int64_t feature, const Segment& at) {
  if (!p.index || at.feature != 0) return;
  copy_rows(Elements<const S>{from, row, feature, nullptr}, Elements<S>{p.y, p.width, 1, nullptr}, p.width, at);
}

template <class S, int K, bool soft, bool inverse>
void forward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  constexpr int capacity = 3 * (K ? K : kMaxBins) + 1;
  const auto set = settings<S, soft>(p);
  const Elements<const S> x_elements{p.x, p.x_row, p.x_feature, p.index};
  const Elements<S> y_elements{p.y, p.width, 1, p.index};
  Parameters<const S, capacity> params{p.params, p.params_row, p.params_feature, p.params_one, int(p.parameters), false, {}};
  Buffer<S> x_buffer, y_buffer, bounds_buffer, l;
  for_segments<S, true>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    copy_columns(p, p.x, p.x_row, p.x_feature, at);
    const Runs<const S> x = read(x_elements, at, x_buffer);
    const Runs<S> y = write(y_elements, at, false, y_buffer), l_runs{l.values, at.features};
    Interval<S> in = interval(p, set, at, bounds_buffer);
    each_vector<S>(at, [&](int run, int i) FLOWKERN_INLINE {
      in.move_to(run, i);
      const auto out = transform<K, inverse>(load(x.at(run, i)), params.read(at, run, i), set, in.across, in.up);
      store(y.at(run, i), out.y);
      store(l_runs.at(run, i), out.logabsdet);
    });
    written(y_elements, at, y_buffer);
    sum_rows(l, at, p.logabsdet);
  });
}

template <class S, int K, bool soft, bool inverse>
void backward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  using V = Vec<S>;
  constexpr int capacity = 3 * (K ? K : kMaxBins) + 1;
  const auto set = settings<S, soft>(p);
  const Elements<const S> x_elements{p.x, p.x_row, p.x_feature, p.index};
  const Elements<const S> g_y_elements{p.grad_y, p.grad_y_row, p.grad_y_feature, p.index};
  const Elements<S> g_x_elements{p.y, p.width, 1, p.index};
  Parameters<const S, capacity> params{p.params, p.params_row, p.params_feature, p.params_one, int(p.parameters), false, {}};
  Parameters<S, capacity> grads{p.grad_params, p.grad_params_row, p.grad_params_feature, p.grad_params_one, int(p.parameters), p.streams, {}};
  Buffer<S> x_buffer, g_y_buffer, g_l_buffer, g_x_buffer, bounds_buffer;
  for_segments<S, true>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    copy_columns(p, p.grad_y, p.grad_y_row, p.grad_y_feature, at);
    const Runs<const S> x = read(x_elements, at, x_buffer), g_y = read(g_y_elements, at, g_y_buffer);
    const RowValues<S> g_l = read_row_values({p.grad_logabsdet, p.grad_logabsdet_row, 0, nullptr}, at, g_l_buffer);
    const Runs<S> g_x = write(g_x_elements, at, false, g_x_buffer);
    Interval<S> in = interval(p, set, at, bounds_buffer);
    each_vector<S>(at, [&](int run, int i) FLOWKERN_INLINE {
      in.move_to(run, i);
      const V g = transform_vjp<K, inverse>(load(x.at(run, i)), params.read(at, run, i), set, in.across, in.up,
                                            load(g_y.at(run, i)), g_l.at(run, i), grads.to_write(at, run, i));
      store(g_x.at(run, i), g);
      grads.written(at, run, i);
    });
    written(g_x_elements, at, g_x_buffer);
  });
  if (p.streams) flush_streams();
}

template <class S> using Rows = void (*)(const SplineProblem<S>&, int64_t, int64_t);

template <class S, int K> struct Forward {
  static constexpr Rows<S> table[2][2] = {{forward_rows<S, K, false, false>, forward_rows<S, K, false, true>},
                                          {forward_rows<S, K, true, false>, forward_rows<S, K, true, true>}};
};
template <class S, int K> struct Backward {
  static constexpr Rows<S> table[2][2] = {{backward_rows<S, K, false, false>, backward_rows<S, K, false, true>},
                                          {backward_rows<S, K, true, false>, backward_rows<S, K, true, true>}};
};

// The bin counts that the libraries default to get code of their own, unrolled; K = 0 is any count.
template <template <class, int> class Loop, class S> void run(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  const bool soft = p.softclip != 0;
  if constexpr (sizeof(S) == 4 && Lanes<Vec<S>>::count > 1) switch ((p.parameters + 1 - p.tails) / 3) {
    case 8: return Loop<S, 8>::table[soft][p.inverse](p, begin, end);
    case 10: return Loop<S, 10>::table[soft][p.inverse](p, begin, end);
  }
  Loop<S, 0>::table[soft][p.inverse](p, begin, end);
}

}  // namespace

void spline_forward(const SplineProblem<float>& p, int64_t begin, int64_t end) { run<Forward>(p, begin, end); }
void spline_forward(const SplineProblem<double>& p, int64_t begin, int64_t end) { run<Forward>(p, begin, end); }
void spline_backward(const SplineProblem<float>& p, int64_t begin, int64_t end) { run<Backward>(p, begin, end); }
void spline_backward(const SplineProblem<double>& p, int64_t begin, int64_t end) { run<Backward>(p, begin, end); }

FLOWKERN_END
