// The kinds that a call chooses from, each declared once: X(enumerator, name in Python).
//
// A kind's code is its place in its list, here and in Python's tables (flowkern/ops), which
// tests/test_kinds.py compares with these. A list is all that a table of kernels, a switch or a check
// needs: none of them counts.
#pragma once

#include "platform.h"

// s(u), the scales of affine transforms: formulas in the math.h of their coupling.
#define FLOWKERN_SCALE_MAPS(X)               \
  X(kAdditive, additive)                     \
  X(kExp, exp)                               \
  X(kSoftclip, softclip)                     \
  X(kTanh, tanh)                             \
  X(kAtan, atan)                             \
  X(kSigmoid, sigmoid)                       \
  X(kReciprocalSigmoid, reciprocal_sigmoid)  \
  X(kSoftplus, softplus)

// From raw parameters to a spline's knots: formulas in the bin.h of splines.
#define FLOWKERN_KNOT_MAPS(X) \
  X(kSoftplusKnots, softplus) \
  X(kSoftclipKnots, softclip)

// What lies outside a spline's interval; last, how many slopes are free beyond one per bin.
#define FLOWKERN_TAILS(X)     \
  X(kIdentity, identity, -1)  \
  X(kCircular, circular, 0)   \
  X(kNone, none, 1)

// What an autoregressive transform applies to each feature; last, how many constants it has.
#define FLOWKERN_ELEMENTS(X) \
  X(kAffine, affine, 4)      \
  X(kSpline, spline, 9)

// x_t between two points: formulas in the math.h of paths.
#define FLOWKERN_PATHS(X)                        \
  X(kConditional, conditional)                   \
  X(kTarget, target)                             \
  X(kVariancePreserving, variance_preserving)    \
  X(kSchroedingerBridge, schroedinger_bridge)

// Of conditioners and vector fields: formulas in activation.h.
#define FLOWKERN_ACTIVATIONS(X)      \
  X(kIdentityActivation, identity)   \
  X(kLeakyRelu, leaky_relu)          \
  X(kTanhActivation, tanh)           \
  X(kElu, elu)                       \
  X(kSilu, silu)                     \
  X(kGelu, gelu)                     \
  X(kSigmoidActivation, sigmoid)     \
  X(kSoftplusActivation, softplus)

namespace flowkern {

constexpr int kMostBins = 256;

#define FLOWKERN_ENUMERATOR(kind, ...) kind,
enum ScaleMap { FLOWKERN_SCALE_MAPS(FLOWKERN_ENUMERATOR) kScaleMaps };
enum KnotMap { FLOWKERN_KNOT_MAPS(FLOWKERN_ENUMERATOR) kKnotMaps };
enum Tails { FLOWKERN_TAILS(FLOWKERN_ENUMERATOR) kTails };
enum ElementKind { FLOWKERN_ELEMENTS(FLOWKERN_ENUMERATOR) kElements };
enum PathKind { FLOWKERN_PATHS(FLOWKERN_ENUMERATOR) kPaths };
enum ActivationKind { FLOWKERN_ACTIVATIONS(FLOWKERN_ENUMERATOR) kActivations };
#undef FLOWKERN_ENUMERATOR

// An element's kind, those of its maps, and its constants. An affine one has a scale map and says whether
// the scale comes first among its parameters; a spline has tails and a knot map.
struct ElementCode {
  int kind, first, second;
  double constants[9];

  FLOWKERN_HD int scale_map() const { return first; }
  FLOWKERN_HD bool scale_first() const { return second; }
  FLOWKERN_HD int tails() const { return first; }
  FLOWKERN_HD int knots() const { return second; }
};

}  // namespace flowkern

FLOWKERN_BEGIN

// How many parameters a spline of K bins takes, less 3K; and K of so many.
FLOWKERN_HD constexpr int more_slopes(int tails) {
#define FLOWKERN_CASE(kind, name, more) case kind: return more;
  switch (tails) { FLOWKERN_TAILS(FLOWKERN_CASE) }
#undef FLOWKERN_CASE
  return 0;
}
FLOWKERN_HD constexpr int bins_of(int parameters, int tails) { return (parameters - more_slopes(tails)) / 3; }

inline int constants_of(int element) {
#define FLOWKERN_CASE(kind, name, constants) case kind: return constants;
  switch (element) { FLOWKERN_ELEMENTS(FLOWKERN_CASE) }
#undef FLOWKERN_CASE
  return 0;
}

template <int k> struct Constant { static constexpr int value = k; };

// body(Constant<kind>()) for a kind known at run time, which the torch side has checked.
#define FLOWKERN_CASE(kind, name) case kind: return body(Constant<kind>());
template <class F> FLOWKERN_HD void by_scale_map(int kind, const F& body) {
  switch (kind) { FLOWKERN_SCALE_MAPS(FLOWKERN_CASE) }
}
template <class F> FLOWKERN_HD void by_activation(int kind, const F& body) {
  switch (kind) { FLOWKERN_ACTIVATIONS(FLOWKERN_CASE) }
}
#undef FLOWKERN_CASE

FLOWKERN_END
