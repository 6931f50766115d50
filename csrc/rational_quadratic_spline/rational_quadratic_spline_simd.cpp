// The spline's loops over rows and tiles; compiled once per instruction set, see platform.h.
#include <type_traits>

#include "../common/tile.h"
#include "rational_quadratic_spline_cpu.h"
#include "rational_quadratic_spline_math.h"

FLOWKERN_BEGIN

using std::int64_t;

constexpr int kBlock = 512;  // elements worked on between gathering x and scattering y

// Elements of one pass: `rows` whole rows of `features`, or a part of one row that is too long.
struct Segment {
  int64_t row, feature;
  int rows, features;
  int count() const { return rows * features; }
};

// Values of the elements of a segment, in order, padded to whole vectors with the last element.
template <class S> struct Buffer {
  static constexpr int lanes = Lanes<Vec<S>>::count;
  alignas(64) S values[kBlock + lanes];

  FLOWKERN_HD void pad(int count) {
    for (int i = 0; i < lanes; ++i) values[count + i] = values[count - 1];
  }
};

template <class S> FLOWKERN_HD int64_t column_of(const SplineProblem<S>& p, int64_t feature) {
  return p.index ? p.index[feature] : feature;
}

// Fills a buffer with the transformed features of a row-major tensor, segment by segment.
template <class S>
FLOWKERN_HD void gather(const SplineProblem<S>& p, const Segment& at, const S* from, int64_t row_stride, int64_t feature_stride, Buffer<S>& to) {
  S* out = to.values;
  for (int r = 0; r < at.rows; ++r, out += at.features) {
    const S* row = from + (at.row + r) * row_stride;
    if (!p.index && feature_stride == 1)
      for (int f = 0; f < at.features; ++f) out[f] = row[at.feature + f];
    else
      for (int f = 0; f < at.features; ++f) out[f] = row[column_of(p, at.feature + f) * feature_stride];
  }
  to.pad(at.count());
}

// Fills a buffer with value(row, feature).
template <class S, class F> FLOWKERN_HD void fill(const Segment& at, Buffer<S>& to, const F& value) {
  S* out = to.values;
  for (int r = 0; r < at.rows; ++r)
    for (int f = 0; f < at.features; ++f) *out++ = value(at.row + r, at.feature + f);
  to.pad(at.count());
}

// Asks for memory two tiles ahead of its use, which the hardware foresees only in part.
template <class S> FLOWKERN_HD void prefetch(const S* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < count * int64_t(sizeof(S)); i += 64) __builtin_prefetch(bytes + i);
}

// Where the parameters (or their cotangents) of the elements of one tile lie.
template <class Element> struct Tile {
  using S = std::remove_const_t<Element>;
  Element* base;
  int64_t stride;  // from one element to the next

  template <int K> FLOWKERN_HD void fetch(int first, int count, Vec<S>* out) const {
    load_tile<K, S>(base + first, stride, count, out);
  }
  template <int K> FLOWKERN_HD void run(int first, int count, const Vec<S>* values) const {
    store_tile<K, S>(base + first, stride, count, values);
  }
};

// The parameters of a segment's elements, tile by tile. Where those of an element are not contiguous,
// or the elements of a tile not evenly spaced or fewer than there are lanes, they go through a stage.
template <class Element, int capacity> struct Parameters {
  using S = std::remove_const_t<Element>;
  static constexpr int lanes = Lanes<Vec<S>>::count;
  Element* base;  // of element (0, 0)
  int64_t row, feature, one;
  int count;  // parameters of an element
  S stage[lanes * capacity];

  FLOWKERN_HD Element* element(const Segment& at, int e) const {
    return base + (at.row + e / at.features) * row + (at.feature + e % at.features) * feature;
  }
  FLOWKERN_HD bool even(const Segment& at, int e) const {
    const bool whole = one == 1 && e + lanes <= at.count();
    return whole && (row == at.features * feature || e / at.features == (e + lanes - 1) / at.features);
  }
  FLOWKERN_HD Tile<const S> read(const Segment& at, int e) {
    if (even(at, e)) {
      Element* tile = element(at, e);
      prefetch(tile + 2 * lanes * feature, lanes * feature);
      return {tile, feature};
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const S* from = element(at, e + lane < at.count() ? e + lane : at.count() - 1);
      for (int i = 0; i < count; ++i) stage[lane * count + i] = from[i * one];
    }
    return {stage, count};
  }
  FLOWKERN_HD Tile<S> to_write(const Segment& at, int e) {
    if (even(at, e)) return {element(at, e), feature};
    return {stage, count};
  }
  FLOWKERN_HD void written(const Segment& at, int e) {
    if (even(at, e)) return;
    for (int lane = 0; lane < lanes && e + lane < at.count(); ++lane) {
      S* to = element(at, e + lane);
      for (int i = 0; i < count; ++i) to[i * one] = stage[lane * count + i];
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

// The interval of a tile: the same for all, or ±bounds of each element's feature.
template <class S, class Set>
FLOWKERN_HD void axes(const Set& set, const S* bounds, Axis<Vec<S>>& across, Axis<Vec<S>>& up) {
  using V = Vec<S>;
  if (bounds) {
    V high = load(bounds), low = V(S(0)) - high;
    across = up = {low, high};
  } else {
    across = {V(set.left), V(set.right)};
    up = {V(set.bottom), V(set.top)};
  }
}

// Calls body(segment) for the rows [begin, end), a few whole rows at a time or one row in parts.
template <class S, class F> void for_segments(const SplineProblem<S>& p, int64_t begin, int64_t end, const F& body) {
  const int features = p.features < kBlock ? int(p.features) : kBlock;
  const int64_t step = kBlock / features;
  for (int64_t row = begin; row < end; row += step)
    for (int64_t f = 0; f < p.features; f += features) {
      int64_t rows = end - row < step ? end - row : step;
      int64_t left = p.features - f;
      body(Segment{row, f, int(rows), left < features ? int(left) : features});
    }
}

// Rows are copied whole before their transformed features are overwritten.
template <class S> void copy_rows(const SplineProblem<S>& p, const S* from, int64_t row_stride, int64_t feature_stride, int64_t begin, int64_t end) {
  if (!p.index) return;
  for (int64_t n = begin; n < end; ++n)
    for (int64_t d = 0; d < p.width; ++d) p.y[n * p.width + d] = from[n * row_stride + d * feature_stride];
}

template <class S> FLOWKERN_HD void scatter(const SplineProblem<S>& p, const Segment& at, const S* values) {
  for (int r = 0; r < at.rows; ++r, values += at.features) {
    S* row = p.y + (at.row + r) * p.width;
    if (!p.index)
      for (int f = 0; f < at.features; ++f) row[at.feature + f] = values[f];
    else
      for (int f = 0; f < at.features; ++f) row[p.index[at.feature + f]] = values[f];
  }
}

// Sums in an order that depends on the number of features alone.
template <class S> FLOWKERN_HD S sum_row(const S* values, int count) {
  S total = S(0);
  int i = 0;
#if defined(__AVX2__)
  using V = Vec<S>;
  constexpr int lanes = Lanes<V>::count;
  if (count >= lanes) {
    V partial = load(values);
    for (i = lanes; i + lanes <= count; i += lanes) partial = partial + load(values + i);
    total = sum(partial);
  }
#endif
  for (; i < count; ++i) total += values[i];
  return total;
}

template <class S> FLOWKERN_HD void reduce(const SplineProblem<S>& p, const Segment& at, const S* values) {
  for (int r = 0; r < at.rows; ++r) {
    S total = sum_row(values + r * at.features, at.features);
    S* out = p.logabsdet + at.row + r;
    *out = at.feature ? *out + total : total;
  }
}

template <class S, int K, bool soft, bool inverse>
void forward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  using V = Vec<S>;
  constexpr int capacity = 3 * (K ? K : kMaxBins) + 1;
  const auto set = settings<S, soft>(p);
  Buffer<S> x, y, l, bound;
  Parameters<const S, capacity> params{p.params, p.params_row, p.params_feature, p.params_one, int(p.parameters)};
  copy_rows(p, p.x, p.x_row, p.x_feature, begin, end);
  for_segments(p, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    gather(p, at, p.x, p.x_row, p.x_feature, x);
    if (p.bounds) fill(at, bound, [&](int64_t, int64_t f) FLOWKERN_INLINE { return p.bounds[f]; });
    for (int e = 0; e < at.count(); e += Buffer<S>::lanes) {
      Axis<V> across, up;
      axes(set, p.bounds ? bound.values + e : nullptr, across, up);
      const auto mapped = transform<K, inverse>(V(load(x.values + e)), params.read(at, e), set, across, up);
      store(y.values + e, mapped.y);
      store(l.values + e, mapped.logabsdet);
    }
    scatter(p, at, y.values);
    reduce(p, at, l.values);
  });
}

template <class S, int K, bool soft, bool inverse>
void backward_rows(const SplineProblem<S>& p, int64_t begin, int64_t end) {
  using V = Vec<S>;
  constexpr int capacity = 3 * (K ? K : kMaxBins) + 1;
  const auto set = settings<S, soft>(p);
  Buffer<S> x, g_y, g_l, g_x, bound;
  Parameters<const S, capacity> params{p.params, p.params_row, p.params_feature, p.params_one, int(p.parameters)};
  Parameters<S, capacity> grad_params{p.grad_params, p.grad_params_row, p.grad_params_feature, p.grad_params_one, int(p.parameters)};
  copy_rows(p, p.grad_y, p.grad_y_row, p.grad_y_feature, begin, end);
  for_segments(p, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    gather(p, at, p.x, p.x_row, p.x_feature, x);
    gather(p, at, p.grad_y, p.grad_y_row, p.grad_y_feature, g_y);
    fill(at, g_l, [&](int64_t n, int64_t) FLOWKERN_INLINE { return p.grad_logabsdet[n * p.grad_logabsdet_row]; });
    if (p.bounds) fill(at, bound, [&](int64_t, int64_t f) FLOWKERN_INLINE { return p.bounds[f]; });
    for (int e = 0; e < at.count(); e += Buffer<S>::lanes) {
      Axis<V> across, up;
      axes(set, p.bounds ? bound.values + e : nullptr, across, up);
      const V grad = transform_vjp<K, inverse>(
          V(load(x.values + e)), params.read(at, e), set, across, up, V(load(g_y.values + e)), V(load(g_l.values + e)),
          grad_params.to_write(at, e));
      store(g_x.values + e, grad);
      grad_params.written(at, e);
    }
    scatter(p, at, g_x.values);
  });
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

void spline_forward(const SplineProblem<float>& p, int64_t begin, int64_t end) { run<Forward>(p, begin, end); }
void spline_forward(const SplineProblem<double>& p, int64_t begin, int64_t end) { run<Forward>(p, begin, end); }
void spline_backward(const SplineProblem<float>& p, int64_t begin, int64_t end) { run<Backward>(p, begin, end); }
void spline_backward(const SplineProblem<double>& p, int64_t begin, int64_t end) { run<Backward>(p, begin, end); }

FLOWKERN_END
