// Functions built from the vocabulary of scalar.h, for one lane or many.
#pragma once

#include "scalar.h"

FLOWKERN_BEGIN

template <class T> FLOWKERN_HD T reciprocal(T b) { return T(1) / b; }
template <class T> FLOWKERN_HD T quotient(T a, T b) { return a / b; }

// log(1 + e) for e in [0, 1], to full relative accuracy: the rounding of 1 + e is put back.
template <class T> FLOWKERN_HD T log1p_unit(T e) {
  T t = T(1) + e;
  return log(t) + (e - (t - T(1)));
}

// softplus(u) = log(1 + exp u), without overflow and without loss for very negative u.
template <class T> FLOWKERN_HD T softplus(T u) {
  return max(T(0), u) + log1p_unit(exp(T(0) - abs(u)));
}

// sigmoid(u) = 1 / (1 + exp(−u)), from exp(−|u|) so that nothing overflows.
template <class T> FLOWKERN_HD T sigmoid(T u) {
  T e = exp(T(0) - abs(u));
  return select(u >= T(0), T(1), e) / (T(1) + e);
}

FLOWKERN_END
