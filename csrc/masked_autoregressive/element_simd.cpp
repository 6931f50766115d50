// The element transforms of element.h: affine with any map, and the spline.
#include "element.h"

#include "../affine_coupling/math.h"
#include "../rational_quadratic_spline/math.h"

FLOWKERN_BEGIN
namespace {

// What a tile hands over.
template <class S> struct Samples {
  const S *x, *params;
  int vectors;
  FLOWKERN_HD int row() const { return vectors * Lanes<Vec<S>>::count; }
};
template <class S> struct Cotangents {
  const S *out, *logabsdet;
  S *x, *params;
};

// Calls body(i) where vector i of the samples begins.
template <class S, class F> FLOWKERN_HD void each_vector(const Samples<S>& in, const F& body) {
  for (int v = 0; v < in.vectors; ++v) body(v * Lanes<Vec<S>>::count);
}

template <class S> AffineSettings<S> affine_settings(const MaskedProblem<S>& p) {
  const double* c = p.element.constants;
  return {S(c[0]), S(c[1]), S(c[2]), S(c[3])};
}

// Which of the two parameters is the shift; an additive map has no other.
template <int kind, class S> bool shift_is_second(const MaskedProblem<S>& p) {
  return kind != kAdditive && p.element.scale_first();
}

template <int kind, bool inverse, class S>
void affine_element(const MaskedProblem<S>& p, const Samples<S>& in, S* out, S* l) {
  const auto set = affine_settings(p);
  const bool second = shift_is_second<kind>(p);
  const S* shift = in.params + (second ? in.row() : 0);
  const S* raw = in.params + (second ? 0 : in.row());
  each_vector(in, [&](int i) FLOWKERN_INLINE {
    const Vec<S> x = load(in.x + i), b = load(shift + i);
    const auto mapped = affine<kind, inverse>(x, b, kind == kAdditive ? b : Vec<S>(load(raw + i)), set);
    store(out + i, mapped.y);
    store(l + i, load(l + i) + mapped.logabsdet);
  });
}

template <int kind, bool inverse, class S>
void affine_element_vjp(const MaskedProblem<S>& p, const Samples<S>& in, const Cotangents<S>& g) {
  const auto set = affine_settings(p);
  const bool second = shift_is_second<kind>(p);
  const int shift = second ? in.row() : 0, raw = second ? 0 : in.row();
  each_vector(in, [&](int i) FLOWKERN_INLINE {
    const Vec<S> x = load(in.x + i), b = load(in.params + shift + i);
    const Vec<S> u = kind == kAdditive ? b : Vec<S>(load(in.params + raw + i));
    const auto grad = affine_vjp<kind, inverse>(x, b, u, Vec<S>(load(g.out + i)), Vec<S>(load(g.logabsdet + i)), set);
    store(g.x + i, grad.x);
    store(g.params + shift + i, grad.shift);
    if constexpr (kind != kAdditive) store(g.params + raw + i, grad.raw);
  });
}

// The parameters of the samples of one vector, or their cotangents.
template <class S> struct Rows {
  S* first;
  int row;
  static constexpr bool rereads() { return false; }
  template <int K, class T> FLOWKERN_HD void fetch(int i, int count, T* out) const {
    each<K>(count, [&](int j) FLOWKERN_INLINE { out[j] = load(first + (i + j) * row); });
  }
  // For each lane the parameter with its own number, from + i.
  template <class T> FLOWKERN_HD T pick(int from, T i) const {
    return pick_lanes(first + from * row, 1, i * T(row));
  }
  template <int K, class T> FLOWKERN_HD void run(int i, int count, const T* values) const {
    each<K>(count, [&](int j) FLOWKERN_INLINE { store(first + (i + j) * row, values[j]); });
  }
};

template <int knots, class S> SplineSettings<S, knots> spline_settings(const MaskedProblem<S>& p) {
  const double* c = p.element.constants;
  SplineSettings<S, knots> set;
  set.tails = p.element.tails(), set.bins = bins_of(p.parameters, set.tails);
  set.left = S(c[0]), set.right = S(c[1]), set.bottom = S(c[2]), set.top = S(c[3]);
  set.min_width = S(c[4]), set.min_height = S(c[5]), set.min_slope = S(c[6]);
  set.softclip = S(c[7]), set.scale = S(c[8]);
  return set;
}

template <int K, int knots, bool inverse, class S>
void spline_element(const MaskedProblem<S>& p, const Samples<S>& in, S* out, S* l) {
  using T = Vec<S>;
  const auto set = spline_settings<knots>(p);
  const Axis<T> across{set.left, set.right}, up{set.bottom, set.top};
  each_vector(in, [&](int i) FLOWKERN_INLINE {
    const Rows<const S> raw{in.params + i, in.row()};
    const auto mapped = transform<K, inverse>(T(load(in.x + i)), raw, set, across, up);
    store(out + i, mapped.y);
    store(l + i, load(l + i) + mapped.logabsdet);
  });
}

template <int K, int knots, bool inverse, class S>
void spline_element_vjp(const MaskedProblem<S>& p, const Samples<S>& in, const Cotangents<S>& g) {
  using T = Vec<S>;
  const auto set = spline_settings<knots>(p);
  const Axis<T> across{set.left, set.right}, up{set.bottom, set.top};
  each_vector(in, [&](int i) FLOWKERN_INLINE {
    const Rows<const S> raw{in.params + i, in.row()};
    const Rows<S> to{g.params + i, in.row()};
    store(g.x + i, transform_vjp<K, inverse>(T(load(in.x + i)), raw, set, across, up, T(load(g.out + i)),
                                             T(load(g.logabsdet + i)), to));
  });
}

template <class S> using Element = void (*)(const MaskedProblem<S>&, const Samples<S>&, S*, S*);
template <class S> using Vjp = void (*)(const MaskedProblem<S>&, const Samples<S>&, const Cotangents<S>&);

// By kind of map and direction.
#define FLOWKERN_LOOPS(kind, name) {affine_element<kind, false, S>, affine_element<kind, true, S>},
template <class S> constexpr Element<S> kAffines[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
#define FLOWKERN_LOOPS(kind, name) {affine_element_vjp<kind, false, S>, affine_element_vjp<kind, true, S>},
template <class S> constexpr Vjp<S> kAffineVjps[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
#define FLOWKERN_LOOPS(kind, name) {spline_element<K, kind, false, S>, spline_element<K, kind, true, S>},
template <class S, int K> constexpr Element<S> kSplines[kKnotMaps][2] = {FLOWKERN_KNOT_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
#define FLOWKERN_LOOPS(kind, name) {spline_element_vjp<K, kind, false, S>, spline_element_vjp<K, kind, true, S>},
template <class S, int K> constexpr Vjp<S> kSplineVjps[kKnotMaps][2] = {FLOWKERN_KNOT_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS

// The bin counts that libraries default to have code of their own; K = 0 is any count.
template <class S> bool has_own_code(const MaskedProblem<S>& p, int bins) {
  return sizeof(S) == 4 && Lanes<Vec<S>>::count > 1 && bins_of(p.parameters, p.element.tails()) == bins;
}

template <class S> Element<S> element_of(const MaskedProblem<S>& p) {
  if (p.element.kind == kAffine) return kAffines<S>[p.element.scale_map()][p.inverse];
  const int knots = p.element.knots();
  if constexpr (sizeof(S) == 4) {
    if (has_own_code(p, 8)) return kSplines<S, 8>[knots][p.inverse];
    if (has_own_code(p, 10)) return kSplines<S, 10>[knots][p.inverse];
  }
  return kSplines<S, 0>[knots][p.inverse];
}

template <class S> Vjp<S> vjp_of(const MaskedProblem<S>& p) {
  if (p.element.kind == kAffine) return kAffineVjps<S>[p.element.scale_map()][p.inverse];
  const int knots = p.element.knots();
  if constexpr (sizeof(S) == 4) {
    if (has_own_code(p, 8)) return kSplineVjps<S, 8>[knots][p.inverse];
    if (has_own_code(p, 10)) return kSplineVjps<S, 10>[knots][p.inverse];
  }
  return kSplineVjps<S, 0>[knots][p.inverse];
}

}  // namespace

#define FLOWKERN_ENTRY(S)                                                                         \
  void masked_element(const MaskedProblem<S>& p, const S* x, const S* params, int vectors, S* out, \
                      S* logabsdet) {                                                             \
    element_of(p)(p, {x, params, vectors}, out, logabsdet);                                       \
  }                                                                                               \
  void masked_element_vjp(const MaskedProblem<S>& p, const S* x, const S* params, int vectors,    \
                          const S* g_out, const S* g_logabsdet, S* g_x, S* g_params) {            \
    vjp_of(p)(p, {x, params, vectors}, {g_out, g_logabsdet, g_x, g_params});                      \
  }
FLOWKERN_ENTRY(float)
FLOWKERN_ENTRY(double)
#undef FLOWKERN_ENTRY

FLOWKERN_END
