// The affine coupling's loops over rows; compiled once per instruction set, see platform.h.
#include "../common/coupling.h"
#include "../common/pairs.h"
#include "cpu.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

template <class S> AffineSettings<S> settings(const AffineProblem<S>& p) {
  return {p.a, p.b, p.prefactor, p.shift_prefactor};
}

// Shifts and raw scales (or their cotangents) in a segment: two tensors with runs of their own, or
// one in which they alternate.
enum Order { kApart, kShiftFirst, kRawFirst };
template <class S> struct Pairs {
  Order order;
  Runs<S> shift, raw;
};

template <class S>
FLOWKERN_HD Order order_of(const Elements<S>& shift, const Elements<S>& raw, const Segment& at) {
  const bool alternate = shift.row == raw.row && in_place(shift, at, 2) && in_place(raw, at, 2);
  if (alternate && raw.base == shift.base + 1) return kShiftFirst;
  if (alternate && shift.base == raw.base + 1) return kRawFirst;
  return kApart;
}

template <class S> struct PairBuffer { Buffer<S> shift, raw; };

template <int kind, class S>
FLOWKERN_HD Pairs<const S> read_pairs(const AffineProblem<S>& p, const Segment& at,
                                      PairBuffer<S>& buffer) {
  if constexpr (kind == kAdditive) return {kApart, read(p.shift, at, buffer.shift), {}};
  const Order order = order_of(p.shift, p.raw, at);
  if (order != kApart) return {order, runs_in_place(p.shift, at), runs_in_place(p.raw, at)};
  return {kApart, read(p.shift, at, buffer.shift), read(p.raw, at, buffer.raw)};
}

template <int kind, class S>
FLOWKERN_HD Pairs<S> write_pairs(const AffineProblem<S>& p, const Segment& at,
                                 PairBuffer<S>& buffer) {
  const Elements<S>&shift = p.grad_shift, &raw = p.grad_raw;
  const bool streams = p.streams;
  if constexpr (kind == kAdditive) return {kApart, write(shift, at, streams, buffer.shift), {}};
  const Order order = order_of(shift, raw, at);
  if (order != kApart)
    return {order, runs_in_place(shift, at, streams), runs_in_place(raw, at, streams)};
  return {kApart, write(shift, at, streams, buffer.shift), write(raw, at, streams, buffer.raw)};
}

template <int kind, class S>
FLOWKERN_HD void written_pairs(const AffineProblem<S>& p, const Segment& at, Order order,
                               const PairBuffer<S>& buffer) {
  if (order != kApart) return;
  written(p.grad_shift, at, buffer.shift);
  if constexpr (kind != kAdditive) written(p.grad_raw, at, buffer.raw);
}

template <class S>
FLOWKERN_HD void load_pairs(const Runs<const S>& runs, int r, int i, Vec<S>& a, Vec<S>& b) {
  const S* p = runs.at(r, 2 * i);
  unzip(load(p), load(p + Lanes<Vec<S>>::count), a, b);
}
template <class S>
FLOWKERN_HD void put_pairs(const Runs<S>& runs, int r, int i, Vec<S> a, Vec<S> b) {
  Vec<S> low, high;
  zip(a, b, low, high);
  put(runs, r, 2 * i, low);
  put(runs, r, 2 * i + Lanes<Vec<S>>::count, high);
}

template <int kind, class S>
FLOWKERN_HD void load_pair(const Pairs<const S>& pairs, int r, int i, Vec<S>& shift, Vec<S>& raw) {
  if (pairs.order == kShiftFirst) return load_pairs(pairs.shift, r, i, shift, raw);
  if (pairs.order == kRawFirst) return load_pairs(pairs.raw, r, i, raw, shift);
  shift = load(pairs.shift.at(r, i));
  raw = kind == kAdditive ? shift : load(pairs.raw.at(r, i));
}

template <int kind, class S>
FLOWKERN_HD void store_pair(const Pairs<S>& pairs, int r, int i, Vec<S> shift, Vec<S> raw) {
  if (pairs.order == kShiftFirst) return put_pairs(pairs.shift, r, i, shift, raw);
  if (pairs.order == kRawFirst) return put_pairs(pairs.raw, r, i, raw, shift);
  put(pairs.shift, r, i, shift);
  if constexpr (kind != kAdditive) put(pairs.raw, r, i, raw);
}

template <class S, int kind, bool inverse>
void forward_rows(const AffineProblem<S>& p, int64_t begin, int64_t end) {
  const AffineSettings<S> set = settings(p);
  Buffer<S> x_buffer, y_buffer, l;
  PairBuffer<S> params_buffer;
  for_segments<S>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    if (p.columns_in.base && at.feature == 0) copy_rows(p.columns_in, p.columns_out, p.width, at);
    const Runs<const S> x = read(p.x, at, x_buffer);
    const Runs<S> y = write(p.y, at, p.streams, y_buffer), l_runs{l.values, at.features};
    const Pairs<const S> params = read_pairs<kind>(p, at, params_buffer);
    each_vector<S>(at, [&](int r, int i) FLOWKERN_INLINE {
      const Vec<S> x_i = load(x.at(r, i));
      Vec<S> shift, raw;
      load_pair<kind, S>(params, r, i, shift, raw);
      const auto out = affine<kind, inverse>(x_i, shift, raw, set);
      put(y, r, i, out.y);
      store(l_runs.at(r, i), out.logabsdet);
    });
    written(p.y, at, y_buffer);
    sum_rows(l, at, p.logabsdet);
  });
  if (p.streams) flush_streams();
}

template <class S, int kind, bool inverse>
void backward_rows(const AffineProblem<S>& p, int64_t begin, int64_t end) {
  const AffineSettings<S> set = settings(p);
  Buffer<S> x_buffer, g_y_buffer, g_l_buffer, g_x_buffer;
  PairBuffer<S> params_buffer, grads_buffer;
  for_segments<S>(p.features, begin, end, [&](const Segment& at) FLOWKERN_INLINE {
    if (p.columns_in.base && at.feature == 0) copy_rows(p.columns_in, p.columns_out, p.width, at);
    const Runs<const S> x = read(p.x, at, x_buffer), g_y = read(p.grad_y, at, g_y_buffer);
    const RowValues<S> g_l = read_row_values(p.grad_logabsdet, at, g_l_buffer);
    const Runs<S> g_x = write(p.y, at, p.streams, g_x_buffer);
    const Pairs<const S> params = read_pairs<kind>(p, at, params_buffer);
    const Pairs<S> grads = write_pairs<kind>(p, at, grads_buffer);
    each_vector<S>(at, [&](int r, int i) FLOWKERN_INLINE {
      const Vec<S> x_i = load(x.at(r, i)), g_y_i = load(g_y.at(r, i)), g_l_i = g_l.at(r, i);
      Vec<S> shift, raw;
      load_pair<kind, S>(params, r, i, shift, raw);
      const auto g = affine_vjp<kind, inverse>(x_i, shift, raw, g_y_i, g_l_i, set);
      put(g_x, r, i, g.x);
      store_pair<kind, S>(grads, r, i, g.shift, g.raw);
    });
    written(p.y, at, g_x_buffer);
    written_pairs<kind>(p, at, grads.order, grads_buffer);
  });
  if (p.streams) flush_streams();
}

template <class S> using Rows = void (*)(const AffineProblem<S>&, int64_t, int64_t);

// By kind and direction.
#define FLOWKERN_LOOPS(kind, name) {forward_rows<S, kind, false>, forward_rows<S, kind, true>},
template <class S> constexpr Rows<S> kForward[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS
#define FLOWKERN_LOOPS(kind, name) {backward_rows<S, kind, false>, backward_rows<S, kind, true>},
template <class S> constexpr Rows<S> kBackward[kScaleMaps][2] = {FLOWKERN_SCALE_MAPS(FLOWKERN_LOOPS)};
#undef FLOWKERN_LOOPS

}  // namespace

#define FLOWKERN_ENTRY(name, table, S)                                      \
  void name(const AffineProblem<S>& p, int64_t begin, int64_t end) {        \
    table<S>[p.kind][p.inverse](p, begin, end);                             \
  }
FLOWKERN_ENTRY(affine_forward, kForward, float)
FLOWKERN_ENTRY(affine_forward, kForward, double)
FLOWKERN_ENTRY(affine_backward, kBackward, float)
FLOWKERN_ENTRY(affine_backward, kBackward, double)
#undef FLOWKERN_ENTRY

FLOWKERN_END
