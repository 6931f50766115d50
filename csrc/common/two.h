// Two vectors side by side, as one of twice the lanes. Their instructions alternate, so that each has
// something to do while the other waits for a result: worth a fifth of the time of a long formula.
#pragma once

#include "vec.h"

FLOWKERN_BEGIN

template <class V> struct Two {
  V a, b;
  Two() = default;
  FLOWKERN_HD Two(V a, V b) : a(a), b(b) {}
  template <class Number> FLOWKERN_HD explicit Two(Number s) : a(s), b(s) {}
};
template <class Mask> struct TwoMasks { Mask a, b; };

template <class V> struct Lanes<Two<V>> {
  using scalar = typename Lanes<V>::scalar;
  using mask = TwoMasks<typename Lanes<V>::mask>;
  static constexpr int count = 2 * Lanes<V>::count;
};
template <class V> using MaskOf = typename Lanes<V>::mask;

#define FLOWKERN_EACH(f)                                                                     \
  template <class V> FLOWKERN_HD Two<V> f(Two<V> x) { return {f(x.a), f(x.b)}; }
FLOWKERN_EACH(abs)
FLOWKERN_EACH(sqrt)
FLOWKERN_EACH(exp)
FLOWKERN_EACH(exp2_nonpositive)
FLOWKERN_EACH(log)
FLOWKERN_EACH(log1p_unit)
#undef FLOWKERN_EACH

#define FLOWKERN_EACH(result, f, call_a, call_b)                                             \
  template <class V> FLOWKERN_HD result f(Two<V> x, Two<V> y) { return {call_a, call_b}; }
FLOWKERN_EACH(Two<V>, max, max(x.a, y.a), max(x.b, y.b))
FLOWKERN_EACH(Two<V>, min, min(x.a, y.a), min(x.b, y.b))
FLOWKERN_EACH(Two<V>, operator+, x.a + y.a, x.b + y.b)
FLOWKERN_EACH(Two<V>, operator-, x.a - y.a, x.b - y.b)
FLOWKERN_EACH(Two<V>, operator*, x.a * y.a, x.b * y.b)
FLOWKERN_EACH(Two<V>, operator/, x.a / y.a, x.b / y.b)
FLOWKERN_EACH(MaskOf<Two<V>>, operator>=, x.a >= y.a, x.b >= y.b)
FLOWKERN_EACH(MaskOf<Two<V>>, operator<=, x.a <= y.a, x.b <= y.b)
FLOWKERN_EACH(MaskOf<Two<V>>, operator==, x.a == y.a, x.b == y.b)
#undef FLOWKERN_EACH

template <class V> FLOWKERN_HD Two<V> fma(Two<V> x, Two<V> y, Two<V> z) {
  return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)};
}
template <class M> FLOWKERN_HD TwoMasks<M> both(TwoMasks<M> m, TwoMasks<M> n) {
  return {both(m.a, n.a), both(m.b, n.b)};
}
template <class V> FLOWKERN_HD Two<V> select(MaskOf<Two<V>> m, Two<V> x, Two<V> y) {
  return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
}
template <class V> FLOWKERN_HD Two<V> add_where(MaskOf<Two<V>> m, Two<V> x, Two<V> y) {
  return {add_where(m.a, x.a, y.a), add_where(m.b, x.b, y.b)};
}

// part(0), or for two vectors part(0) and part(the lanes of one).
template <class V> struct Parts {
  template <class F> static FLOWKERN_HD V join(const F& part) { return part(0); }
  template <class F> static FLOWKERN_HD void split(V v, const F& part) { part(0, v); }
};
template <class V> struct Parts<Two<V>> {
  template <class F> static FLOWKERN_HD Two<V> join(const F& part) {
    return {part(0), part(Lanes<V>::count)};
  }
  template <class F> static FLOWKERN_HD void split(Two<V> v, const F& part) {
    part(0, v.a), part(Lanes<V>::count, v.b);
  }
};

FLOWKERN_END
