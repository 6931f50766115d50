// The neural ODE solve on the samples of a tile: state, stages and network stay in cache from the
// first step to the last. Symbols: flowkern/ops/_neural_ode/README.md.
#include "field.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct OdeSolve : OdeField<S, V> {
  using Field = OdeField<S, V>;
  using T = typename Field::T;
  using Rows = typename Field::Rows;
  using Field::p, Field::memory, Field::rows, Field::each_row, Field::fill, Field::copy, Field::add,
      Field::read, Field::read_cotangent, Field::write, Field::combine, Field::add_dot, Field::multiply,
      Field::total, Field::hidden, Field::evaluate, Field::rates, Field::field_back, Field::epsilon,
      Field::first_tangent, Field::last_cotangent, Field::first_sum, Field::finish_directions, Field::step;
  using Step = typename Field::Step;

  FLOWKERN_HD int frame(int i) const { return p.of_frames + i * p.frame; }
  const S* row_of_a(int i) const { return p.a + i * (i - 1) / 2; }
  int k(int i) const { return p.of_k + i * ode_padded(p.features); }
  int rate(int i) const { return p.of_rate + i * 3; }

  // One step from the state in rows y to the rows `to`; with integrals, those are advanced too.
  void advance(const Step& step, int y, int to, bool integrals) const {
    const S h = step.h;
    const int order = integrals && p.trace != kNoTrace ? 1 : 0, width = ode_padded(p.features);
    for (int i = 0; i < p.stages; ++i) {
      combine(y, h, row_of_a(i), i, p.of_k, width, p.features, frame(0) + p.at_x);
      evaluate(order, frame(0), step.time(p.c[i]));
      copy(frame(0) + p.at_f, p.features, k(i));
      if (integrals) rates(frame(0), rate(i));
    }
    combine(y, h, p.b, p.stages, p.of_k, width, p.features, to);
    if (integrals) combine(p.of_sums, h, p.b, p.stages, p.of_rate, 3, 3, p.of_sums);
  }

  void read_inputs() const {
    if (p.row_bias) read(p.row_bias, p.layer[0].units, 1, p.layer[0].units, p.of_bias);
    for (int m = 0; m < p.directions; ++m) {
      const OdeLayer<S>&one = p.layer[0], &last = p.layer[hidden()];
      const S* from = p.epsilon + m * p.epsilon_stride[0];
      read(from, p.epsilon_stride[1], p.epsilon_stride[2], p.features, epsilon(m));
      multiply(one.into, one.units, one.inputs, epsilon(m), first_tangent(m));
      multiply(last.back, last.inputs, last.units, epsilon(m), last_cotangent(m));
    }
  }

  void forward() const {
    read_inputs();
    read(p.y, p.features, 1, p.features, p.of_y);
    fill(p.of_sums, 3, S(0));
    const bool integrals = p.trace != kNoTrace || p.kinetic;
    for (int n = 0; n < p.intervals * p.steps; ++n) {
      advance(step(n), p.of_y, p.of_y, integrals);
      if ((n + 1) % p.every) continue;
      write(p.of_y, p.features, state_after(n), p.features, 1);
      if ((n + 1) % p.steps == 0) write(p.of_sums, 3, p.sums + int64_t(n / p.steps) * 3 * p.rows, 1, p.rows);
    }
  }

  // Where the state after step n is kept.
  S* state_after(int n) const {
    const int64_t k = n / p.steps, inner = p.steps / p.every - 1, j = n % p.steps / p.every;
    return j == inner ? p.ends + k * p.rows * p.features : p.kept + (k * inner + j) * p.rows * p.features;
  }

  // Backward.

  int ybar(int i) const { return p.of_ybar + i * ode_padded(p.features); }
  int order() const { return p.trace == kNoTrace ? 1 : 2; }

  // The gradient of step n as it was taken from the state in rows y: λ from its end to its begin.
  void step_back(const Step& step, int y) const {
    const S h = step.h;
    const int width = ode_padded(p.features), of_h = p.of_cot + 3;
    for (int i = 0; i < p.stages; ++i) {
      combine(y, h, row_of_a(i), i, p.of_k, width, p.features, frame(i) + p.at_x);
      evaluate(order(), frame(i), step.time(p.c[i]));
      copy(frame(i) + p.at_f, p.features, k(i));
      rates(frame(i), rate(i));
    }
    fill(of_h, 1, S(0));
    for (int i = p.stages - 1; i >= 0; --i) {
      add_dot(p.of_lambda, k(i), p.features, p.b[i], of_h);
      add_dot(p.of_mu, rate(i), 3, p.b[i], of_h);
      stage_cotangent(i, h);
      field_back(frame(i), step, p.c[i], p.of_fbar, p.of_cot, S(1), ybar(i));
      for (int j = 0; j < i; ++j) add_dot(ybar(i), k(j), p.features, row_of_a(i)[j], of_h);
    }
    for (int i = 0; i < p.stages; ++i) add(ybar(i), p.features, p.of_lambda);
    memory.chunk[p.size_sums + step.interval] += total(of_h);
  }

  // Cotangents of stage i's slope and rates: h b_i (λ, μ) + h Σ_{j>i} a_ji Ȳ_j.
  void stage_cotangent(int i, S h) const {
    const S* column = p.a + i;  // entry j of column i of a is at j (j − 1)/2
    const S b = p.b[i];
    const int width = ode_padded(p.features), stages = p.stages;
    const Rows lambda = rows(p.of_lambda), mu = rows(p.of_mu), y = rows(p.of_ybar);
    const Rows fbar = rows(p.of_fbar), cot = rows(p.of_cot);
    each_row(p.features, [=](int r, int v) FLOWKERN_INLINE {
      T sum = T(b) * lambda(r, v);
      for (int j = i + 1; j < stages; ++j)
        if (const S a = column[j * (j - 1) / 2]; a != S(0)) sum = fma(T(a), y(j * width + r, v), sum);
      fbar.put(r, v, T(h) * sum);
    });
    each_row(3, [=](int r, int v) FLOWKERN_INLINE { cot.put(r, v, T(h * b) * mu(r, v)); });
  }

  // One step of the adjoint equation, back from the state in rows y.
  void adjoint_step(const Step& step, int y) const {
    const S h = step.h;
    const int width = ode_padded(p.features), of_h = p.of_cot + 3;
    fill(of_h, 1, S(0));
    for (int i = 0; i < p.stages; ++i) {
      combine(y, S(0) - h, row_of_a(i), i, p.of_k, width, p.features, frame(0) + p.at_x);
      combine(p.of_lambda, h, row_of_a(i), i, p.of_ybar, width, p.features, p.of_fbar);
      evaluate(order(), frame(0), step.time(S(1) - p.c[i]));
      copy(frame(0) + p.at_f, p.features, k(i));
      rates(frame(0), rate(i));
      add_dot(p.of_fbar, k(i), p.features, p.b[i], of_h);
      add_dot(p.of_mu, rate(i), 3, p.b[i], of_h);
      field_back(frame(0), step, S(1) - p.c[i], p.of_fbar, p.of_mu, h * p.b[i], ybar(i));
    }
    combine(y, S(0) - h, p.b, p.stages, p.of_k, width, p.features, y);
    combine(p.of_lambda, h, p.b, p.stages, p.of_ybar, width, p.features, p.of_lambda);
    memory.chunk[p.size_sums + step.interval] += total(of_h);
  }

  int state(int j) const { return p.of_states + j * ode_padded(p.features); }

  // The states from which steps [n, n + every) begin, by taking the steps again.
  void states_from(int n) const {
    read(n == 0 ? p.y : state_after(n - 1), p.features, 1, p.features, state(0));
    for (int j = 0; j + 1 < p.every; ++j) advance(step(n + j), state(j), state(j + 1), false);
  }

  // Begins with the cotangents, and for the adjoint with the state, at the end of interval k.
  void begin_interval(int64_t k) const {
    const int64_t at = k * p.rows * p.features;
    read_cotangent(p.grad_ends + at, p.features, 1, p.features, p.of_lambda);
    read_cotangent(p.grad_sums + k * 3 * p.rows, 1, p.rows, 3, p.of_mu);
    if (p.adjoint) read(p.ends + at, p.features, 1, p.features, p.of_y);
  }

  void backward() const {
    read_inputs();
    fill(p.of_lambda, p.features, S(0));
    fill(p.of_mu, 3, S(0));
    if (p.row_bias) fill(p.of_grad_bias, p.layer[0].units, S(0));
    for (int m = 0; m < p.directions; ++m)
      fill(first_sum(m), p.apart - (first_sum(m) - first_tangent(m)), S(0));
    for (int n = p.intervals * p.steps - 1; n >= 0; --n) {
      if ((n + 1) % p.steps == 0) begin_interval(n / p.steps);
      if (!p.adjoint && (n + 1) % p.every == 0) states_from(n + 1 - p.every);
      if (p.adjoint) adjoint_step(step(n), p.of_y);
      else step_back(step(n), state(n % p.every));
    }
    finish_directions();
    write(p.of_lambda, p.features, p.grad_y, p.features, 1);
    if (p.row_bias) write(p.of_grad_bias, p.layer[0].units, p.grad_row_bias, p.layer[0].units, 1);
  }
};

template <class S, int V>
OdeSolve<S, V> solve(const OdeProblem<S>& p, int64_t row, int samples, OdeMemory<S> memory) {
  return {{{p, row, samples, memory}}};
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                              \
  OdeShape ode_shape(S) {                                                                                \
    constexpr int lanes = Lanes<Vec<S>>::count;                                                          \
    return {kPanelRows, lanes, kWideTile * lanes, kNarrowTile * lanes};                                  \
  }                                                                                                      \
  void ode_forward(const OdeProblem<S>& p, int64_t row, int samples, bool wide, OdeMemory<S> memory) {   \
    wide ? solve<S, kWideTile>(p, row, samples, memory).forward()                                         \
         : solve<S, kNarrowTile>(p, row, samples, memory).forward();                                      \
  }                                                                                                      \
  void ode_backward(const OdeProblem<S>& p, int64_t row, int samples, bool wide, OdeMemory<S> memory) {  \
    wide ? solve<S, kWideTile>(p, row, samples, memory).backward()                                        \
         : solve<S, kNarrowTile>(p, row, samples, memory).backward();                                     \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
