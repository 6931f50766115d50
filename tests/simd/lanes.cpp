// The vocabulary of one instruction set (vec.h, two.h, tile.h, pairs.h, sincos.h) against the standard library.
//
// Prints, for each function and type, the largest error in units in the last place.
#include "../../csrc/common/maths.h"
#include "../../csrc/common/pairs.h"
#include "../../csrc/common/sincos.h"
#include "../../csrc/common/tile.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

FLOWKERN_BEGIN
namespace {

using Wide = long double;

template <class S> constexpr const char* name_of = sizeof(S) == 4 ? "float" : "double";
template <class S> constexpr int lanes = Lanes<Vec<S>>::count;
template <class S> constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S> constexpr S nan_of = std::numeric_limits<S>::quiet_NaN();

template <class S> Wide units(S got, Wide want) {
  const S rounded = S(want), size = std::fabs(rounded);
  if (std::isnan(rounded)) return std::isnan(got) ? 0 : INFINITY;
  if (std::isinf(rounded) || !std::isfinite(got)) return got == rounded ? 0 : INFINITY;
  return std::fabs(Wide(got) - want) / (std::nextafter(size, infinity<S>) - size);
}

template <class S> void report(const char* name, Wide worst) { std::printf("%s %s %.3g\n", name, name_of<S>, double(worst)); }

// Some given numbers, and others between low and high.
template <class S> std::vector<S> numbers(S low, S high, std::vector<S> more = {}, unsigned seed = 1) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<S> uniform(low, high);
  more.resize(4096);
  for (std::size_t i = 0; i < more.size(); ++i)
    if (more[i] == 0) more[i] = uniform(random);
  return more;
}

template <class S, class F, class G> void measure(const char* name, const std::vector<S>& in, F f, G g) {
  Wide worst = 0;
  for (std::size_t i = 0; i < in.size(); i += 2 * lanes<S>) {
    S out[2 * lanes<S>];
    const Two<Vec<S>> y = f(Two<Vec<S>>{load(&in[i]), load(&in[i + lanes<S>])});
    store(out, y.a), store(out + lanes<S>, y.b);
    for (int l = 0; l < 2 * lanes<S>; ++l) worst = std::max(worst, units(out[l], Wide(g(Wide(in[i + l])))));
  }
  report<S>(name, worst);
}

// Of three vectors; also where some of their numbers are not finite.
template <class S, class F, class G> void measure3(const char* name, F f, G g) {
  const std::vector<S> special = {nan_of<S>, infinity<S>, -infinity<S>, S(-1), S(1), S(1.5), S(-2.5)};
  const auto a = numbers<S>(-9, 9, special, 2), b = numbers<S>(-9, 9, {S(1), nan_of<S>, S(1), S(-1), infinity<S>}, 3);
  const auto c = numbers<S>(-9, 9, {}, 4);
  Wide worst = 0;
  for (std::size_t i = 0; i < a.size(); i += lanes<S>) {
    S out[lanes<S>];
    store(out, f(load(&a[i]), load(&b[i]), load(&c[i])));
    for (int l = 0; l < lanes<S>; ++l) worst = std::max(worst, units(out[l], Wide(g(a[i + l], b[i + l], c[i + l]))));
  }
  report<S>(name, worst);
}

template <class S> void arithmetic() {
#define CHECK(name, formula) \
  measure3<S>(name, [](auto a, auto b, auto c) { (void)b, (void)c; using T = decltype(a); (void)sizeof(T); return formula; }, \
              [](S a, S b, S c) { (void)b, (void)c; using T = S; (void)sizeof(T); return formula; });
  CHECK("+", a + b) CHECK("-", a - b) CHECK("*", a * b) CHECK("/", a / b)
  CHECK("max", max(a, b)) CHECK("min", min(a, b)) CHECK("abs", abs(a)) CHECK("round", round(a)) CHECK("sqrt", sqrt(abs(a)))
  CHECK(">=", select(a >= b, a, c)) CHECK("<=", select(a <= b, a, c)) CHECK(">", select(a > b, a, c))
  CHECK("<", select(a < b, a, c)) CHECK("==", select(a == T(S(1)), a, c)) CHECK("add_where", add_where(a < b, a, c))
  CHECK("both", select(both(a < b, b < c), a, c)) CHECK("negate", select(negate(a < b), a, c))
#undef CHECK
#if defined(FLOWKERN_VECTORS)
  using V = Vec<S>;
  measure3<S>("fma", [](V a, V b, V c) { return fma(a, b, c); }, [](S a, S b, S c) { return std::fma(a, b, c); });
  const auto in = numbers<S>(-9, 9);
  Wide worst = 0;
  for (std::size_t i = 0; i < in.size(); i += lanes<S>) {
    Wide want = 0, size = 0;
    for (int l = 0; l < lanes<S>; ++l) want += in[i + l], size += std::fabs(in[i + l]);
    worst = std::max(worst, std::fabs(sum(load(&in[i])) - want) / (size * std::numeric_limits<S>::epsilon()));
  }
  report<S>("sum", worst);
#endif
}

template <class S> void functions() {
  const S tiny = std::numeric_limits<S>::denorm_min(), small = std::numeric_limits<S>::min();
  const S largest = std::numeric_limits<S>::max(), log_largest = std::log(largest), log_tiny = std::log(tiny);
  const std::vector<S> special = {nan_of<S>, infinity<S>, -infinity<S>, tiny, -tiny, small, -small, largest, -largest, S(1), S(-1)};
  auto each = [](auto f) { return [f](auto x) { return decltype(x){f(x.a), f(x.b)}; }; };
  measure("exp", numbers<S>(log_tiny - 1, log_largest + 1, special), [](auto x) { return exp(x); }, [](Wide x) { return std::exp(x); });
  measure("exp near 0", numbers<S>(-1, 1), [](auto x) { return exp(x); }, [](Wide x) { return std::exp(x); });
  measure("exp2_nonpositive", numbers<S>(sizeof(S) == 4 ? -125 : -1021, 0), [](auto x) { return exp2_nonpositive(x); },
          [](Wide x) { return std::exp2(x); });
  measure("log", numbers<S>(small, 4, special), [](auto x) { return log(x); }, [](Wide x) { return std::log(x); });
  measure("log of subnormals", numbers<S>(tiny, small), [](auto x) { return log(x); }, [](Wide x) { return std::log(x); });
  measure("log1p_unit", numbers<S>(0, 1), [](auto x) { return log1p_unit(x); }, [](Wide x) { return std::log1p(x); });
  measure("tanh", numbers<S>(-12, 12, special), each([](auto x) { return tanh(x); }), [](Wide x) { return std::tanh(x); });
  measure("atan", numbers<S>(-5, 5, special), each([](auto x) { return atan(x); }), [](Wide x) { return std::atan(x); });
  measure("softplus", numbers<S>(-30, 30), each([](auto x) { return softplus(x); }),
          [](Wide x) { return std::fmax(x, Wide(0)) + std::log1p(std::exp(-std::fabs(x))); });
  measure("sigmoid", numbers<S>(-30, 30), each([](auto x) { return sigmoid(x); }), [](Wide x) { return 1 / (1 + std::exp(-x)); });
  const Wide turn = 2 * std::acos(Wide(-1));
  measure("sine of turns", numbers<S>(S(0.01), S(0.24)),
          each([](auto u) { decltype(u) s, c; sincos_turns(u, s, c); return s; }), [turn](Wide u) { return std::sin(turn * u); });
  measure("cosine of turns", numbers<S>(S(0.01), S(0.24)),
          each([](auto u) { decltype(u) s, c; sincos_turns(u, s, c); return c; }), [turn](Wide u) { return std::cos(turn * u); });
}

// What only moves numbers: 0 if every one arrives.
template <class S> bool tiles_are_right() {
  constexpr int rows = lanes<S>, most = 19, stride = 23;
  S from[rows * stride], to[rows * stride];
  for (int i = 0; i < rows * stride; ++i) from[i] = S(i);
  for (int count = 1; count <= most; ++count) {
    Vec<S> columns[most];
    load_tile<0, S>(from, stride, count, columns);
    for (int i = 0; i < count; ++i) {
      S column[rows];
      store(column, columns[i]);
      for (int r = 0; r < rows; ++r)
        if (column[r] != from[r * stride + i]) return false;
    }
    for (S& value : to) value = -1;
    store_tile<0, S>(to, stride, count, columns);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < stride; ++i)
        if (to[r * stride + i] != (i < count ? from[r * stride + i] : S(-1))) return false;
  }
  return true;
}

template <class S> bool pairs_are_right() {
  constexpr int n = lanes<S>;
  S mixed[2 * n], a[n], b[n], again[2 * n];
  for (int i = 0; i < 2 * n; ++i) mixed[i] = S(i);
  Vec<S> first, second, low, high;
  unzip(load(mixed), load(mixed + n), first, second);
  store(a, first), store(b, second);
  zip(first, second, low, high);
  store(again, low), store(again + n, high);
  for (int i = 0; i < 2 * n; ++i)
    if (again[i] != S(i) || (i % 2 ? b : a)[i / 2] != S(i)) return false;
  return true;
}

template <class S> bool picks_are_right() {
  constexpr int n = lanes<S>, stride = 7;
  S values[n * stride], at[n], picked[n];
  for (int i = 0; i < n * stride; ++i) values[i] = S(i);
  for (int l = 0; l < n; ++l) at[l] = S((3 * l + 1) % stride);
  store(picked, pick_lanes(values, stride, load(at)));
  for (int l = 0; l < n; ++l)
    if (picked[l] != values[l * stride + int(at[l])]) return false;
  return true;
}

template <class S> void all() {
  arithmetic<S>(), functions<S>();
  report<S>("tiles", tiles_are_right<S>() ? 0 : INFINITY);
  report<S>("pairs", pairs_are_right<S>() ? 0 : INFINITY);
  report<S>("picks", picks_are_right<S>() ? 0 : INFINITY);
}

}  // namespace

void check() { all<float>(), all<double>(); }

FLOWKERN_END

int main() { flowkern::FLOWKERN_ISA::check(); }
