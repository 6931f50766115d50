// A flow's program on the samples of a tile.
#include "cpu.h"
#include "lu.h"

#include <utility>

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct FlowTile {
  using Tile = MaskedTile<S, V>;
  using T = Vec<S>;
  static constexpr int lanes = Tile::lanes, R = Tile::R;
  static constexpr bool kWide = V == kWideTile;
  const FlowProblem<S>& p;
  int64_t first;
  int samples;
  S *tile, *chunk;

  S* rows(int features, int contexts) const { return tile + (int64_t(features) * p.features + int64_t(contexts) * p.context_features) * R; }
  S* context() const { return rows(4, 0); }
  S* grad_context() const { return p.grad_context ? rows(4, 1) : nullptr; }
  S* memory() const { return rows(4, 2); }
  // A step's values are where they are kept, or at the beginning of the tile's memory for steps; cotangents behind.
  Tile on(const FlowStep<S>& step) const {
    S* values = p.kept ? p.kept + first * p.kept_rows + int64_t(step.kept) * R : memory();
    S* grads = memory() + int64_t(step.conditioned->values) * R;
    S* sums = chunk ? chunk + step.sums : nullptr;
    return {*step.conditioned, first, samples, {values, grads, sums, context(), grad_context()}};
  }
  MatrixTile<S, V> matrix(const FlowStep<S>& step) const { return {p.features, chunk ? chunk + step.sums : nullptr}; }
  LuTile<S, V> lu(const FlowStep<S>& step) const { return {step, matrix(step), memory()}; }
  LinearTile<S, V> linear(const FlowStep<S>& step) const { return {step, matrix(step), memory()}; }
  // For reading and writing, which no step's problem matters to.
  Tile plain() const { return {kNothing, first, samples, {}}; }
  static constexpr MaskedProblem<S> kNothing{};

  void read(const Elements<const S>& from, int columns, S* to) const {
    plain().read_columns(from, columns, [=](int c) { return to + int64_t(c) * R; });
  }
  void write(const S* from, S* to, int columns) const {
    for (int c = 0; c < columns; ++c) plain().write(from + int64_t(c) * R, {to, columns, 1, nullptr}, c);
  }

  // The features before step k, in the rows `to`; of the first step those given, and behind the last the result.
  void read_state(int k, S* to) const {
    if (k == 0) return read(p.x, p.features, to);
    if (k == p.steps) return read({p.y, p.features, 1, nullptr}, p.features, to);
    for (int f = 0; f < p.features; ++f) {
      const S* from = p.states + (int64_t(k - 1) * p.features + f) * p.rows + first;
      for (int n = 0; n < R; ++n) to[int64_t(f) * R + n] = from[n < samples ? n : samples - 1];
    }
  }
  void keep_state(int k, const S* from) const {
    if (!p.states || k == p.steps) return;
    for (int f = 0; f < p.features; ++f)
      for (int n = 0; n < samples; ++n) p.states[(int64_t(k - 1) * p.features + f) * p.rows + first + n] = from[int64_t(f) * R + n];
  }

  // Forward.

  void apply(const FlowStep<S>& step, const S* x, S* y, S* log) const {
    switch (step.kind) {
      case kConditionedStep: return apply_conditioned(on(step), x, y, log);
      case kLuStep: lu(step).apply(x, y); break;
      case kScaleStep: apply_scale(step, x, y); break;
      case kLinearStep: linear(step).apply(x, y); break;
      default: for (int f = 0; f < p.features; ++f) Tile::copy(x + step.order[f] * R, y + int64_t(f) * R);
    }
    Tile::each_vector([&](int i) FLOWKERN_INLINE { store(log + i, load(log + i) + T(step.logabsdet)); });
  }

  void apply_conditioned(const Tile& step, const S* x, S* y, S* log) const {
    step.gather(x, step.given());
    conditioned_forward(step.p, first, samples, kWide, step.memory, log);
    step.scatter(step.result(), y);
  }

  void apply_scale(const FlowStep<S>& step, const S* x, S* y) const {
    for (int f = 0; f < p.features; ++f) {
      const T s = T(step.scale[f]), b = T(step.shift[f]);
      const int64_t row = int64_t(f) * R;
      Tile::each_vector([&](int i) FLOWKERN_INLINE {
        const T v = load(x + row + i);
        store(y + row + i, step.inverse ? (v - b) / s : fma(s, v, b));
      });
    }
  }

  void add_normal(const S* y, S* log) const {
    for (int f = 0; f < p.features; ++f)
      Tile::each_vector([&](int i) FLOWKERN_INLINE {
        const T v = load(y + int64_t(f) * R + i);
        store(log + i, load(log + i) - T(S(0.5)) * v * v - T(S(0.91893853320467274178)));  // log √(2π)
      });
  }

  void forward() const {
    S *x = rows(0, 0), *y = rows(1, 0);
    alignas(64) S log[R];
    Tile::fill(log, S(0));
    read(p.x, p.features, x);
    if (p.context_features) read(p.context, p.context_features, context());
    for (int k = 0; k < p.steps; ++k) {
      apply(p.step[k], x, y, log);
      keep_state(k + 1, y);
      std::swap(x, y);
    }
    if (p.normal) add_normal(x, log);
    write(x, p.out, p.features);
    for (int n = 0; n < samples; ++n) p.log[first + n] = log[n];
  }

  // Backward: the rows of cotangents hold those of a step's result, and then those of what it was given.

  void read_cotangents(const Elements<const S>& from, int columns, S* to) const {
    if (!from.base)
      for (int c = 0; c < columns; ++c) Tile::fill(to + int64_t(c) * R, S(0));
    else read(from, columns, to);
    for (int c = 0; c < columns; ++c) plain().clear_rest(to + int64_t(c) * R);
  }

  void back(int k, S* grad, const S* g_log) const {
    const FlowStep<S>& step = p.step[k];
    S *known = rows(1, 0), *given = rows(2, 0);  // what a step's parameters depend on; what it was given
    const bool kept = p.kept && step.kind == kConditionedStep;
    const bool by_result = step.inverse && step.kind != kLinearStep;
    if (step.kind != kPermutationStep && !kept) read_state(by_result ? k + 1 : k, known);
    const bool solves = step.kind == kConditionedStep || step.kind == kLuStep;
    if (solves && step.inverse && !kept) read_state(k, given);
    switch (step.kind) {
      case kConditionedStep: return back_conditioned(on(step), known, given, grad, g_log);
      case kLuStep: return lu(step).back(known, given, grad);
      case kScaleStep: return back_scale(step, known, grad);
      case kLinearStep: return linear(step).back(known, grad);
      default:
        for (int f = 0; f < p.features; ++f) Tile::copy(grad + int64_t(f) * R, given + step.order[f] * R);
        for (int f = 0; f < p.features; ++f) Tile::copy(given + int64_t(f) * R, grad + int64_t(f) * R);
    }
  }

  void back_conditioned(const Tile& step, const S* known, const S* given, S* grad, const S* g_log) const {
    const MaskedProblem<S>& of = step.p;
    S* of_features = step.grad_at(of.units[0].grad);
    if (!p.kept) {
      step.gather(known, step.at(of.units[0].u));
      if (of.inverse) step.gather(given, step.at(of.other));
      conditioned_values(of, first, samples, kWide, step.memory);
    }
    step.gather(grad, of_features);
    conditioned_backward(of, first, samples, kWide, step.memory, g_log);
    step.scatter(of_features, grad);
  }

  // Sums for each feature: Σ ḡ·x and Σ ḡ, of the inverse with the cotangent of y and the sign of −1/s.
  void back_scale(const FlowStep<S>& step, const S* x, S* grad) const {
    S* sums = chunk + step.sums;
    for (int f = 0; f < p.features; ++f) {
      const T s = T(step.scale[f]), sign = T(step.inverse ? S(-1) : S(1));
      const int64_t row = int64_t(f) * R;
      T of_scale = T(S(0)), of_shift = T(S(0));
      Tile::each_vector([&](int i) FLOWKERN_INLINE {
        const T g = load(grad + row + i), back = step.inverse ? g / s : g * s;
        const T used = step.inverse ? back : g;
        of_scale = fma(sign * used, load(x + row + i), of_scale), of_shift = fma(sign, used, of_shift);
        store(grad + row + i, back);
      });
      sums[f] += Tile::sum_lanes(of_scale), sums[p.features + f] += Tile::sum_lanes(of_shift);
    }
  }

  void back_normal(S* grad, const S* g_log) const {
    S* y = rows(1, 0);
    read_state(p.steps, y);
    for (int f = 0; f < p.features; ++f)
      Tile::each_vector([&](int i) FLOWKERN_INLINE {
        S* at = grad + int64_t(f) * R + i;
        store(at, load(at) - load(y + int64_t(f) * R + i) * load(g_log + i));
      });
  }

  void backward() const {
    S* grad = rows(0, 0);
    alignas(64) S g_log[R];
    read_cotangents(p.grad_l, 1, g_log);
    read_cotangents(p.grad_y, p.features, grad);
    T total = T(S(0));
    Tile::each_vector([&](int i) FLOWKERN_INLINE { total = total + load(g_log + i); });
    chunk[0] += Tile::sum_lanes(total);
    if (p.context_features) read(p.context, p.context_features, context());
    if (p.grad_context)
      for (int c = 0; c < p.context_features; ++c) Tile::fill(grad_context() + int64_t(c) * R, S(0));
    if (p.normal) back_normal(grad, g_log);
    for (int k = p.steps - 1; k >= 0; --k) back(k, grad, g_log);
    write(grad, p.out, p.features);
    if (p.grad_context) write(grad_context(), p.grad_context, p.context_features);
  }
};

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                                  \
  void flow_forward(const FlowProblem<S>& p, int64_t row, int samples, bool wide, S* tile) {                 \
    wide ? FlowTile<S, kWideTile>{p, row, samples, tile, nullptr}.forward()                                  \
         : FlowTile<S, kNarrowTile>{p, row, samples, tile, nullptr}.forward();                               \
  }                                                                                                          \
  void flow_backward(const FlowProblem<S>& p, int64_t row, int samples, bool wide, S* tile, S* chunk) {      \
    wide ? FlowTile<S, kWideTile>{p, row, samples, tile, chunk}.backward()                                   \
         : FlowTile<S, kNarrowTile>{p, row, samples, tile, chunk}.backward();                                \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
