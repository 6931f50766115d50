// The masked autoregressive transform on tiles of tensors.
#include "transform.h"

FLOWKERN_BEGIN
namespace {

template <class S, int V> struct MaskedCallOnTile : ConditionedTransform<S, V> {
  using Tile = ConditionedTransform<S, V>;
  using Tile::p, Tile::first, Tile::samples, Tile::R, Tile::at, Tile::grad_at, Tile::fill, Tile::read, Tile::read_layer;

  void forward() const {
    alignas(64) S logabsdet[R];
    fill(logabsdet, S(0));
    read_layer(0, p.inverse ? p.y : p.x, Tile::given());
    Tile::apply(logabsdet);
    Tile::write_features(Tile::result());
    for (int n = 0; n < samples; ++n) p.logabsdet[first + n] = logabsdet[n];
  }

  void backward() const {
    alignas(64) S g_logabsdet[R];
    read(p.grad_logabsdet, 0, g_logabsdet);
    Tile::clear_rest(g_logabsdet);
    read_layer(0, p.x, at(p.units[0].u));
    if (p.inverse) read_layer(0, p.y, at(p.other));
    Tile::read_cotangents(p.grad_out, grad_at(p.units[0].grad));
    Tile::evaluate();
    Tile::pull_back(g_logabsdet);
    Tile::write_features(grad_at(p.units[0].grad));
  }
};

template <class S, int V>
MaskedCallOnTile<S, V> on_tile(const MaskedProblem<S>& p, int64_t row, int samples, MaskedMemory<S> memory) {
  return {{{p, row, samples, memory}}};
}

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                         \
  MaskedShape masked_shape(S) {                                                                     \
    constexpr int lanes = Lanes<Vec<S>>::count;                                                     \
    return {kPanelRows, lanes, kWideTile * lanes, kNarrowTile * lanes};                             \
  }                                                                                                 \
  void masked_forward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,               \
                      MaskedMemory<S> memory) {                                                     \
    wide ? on_tile<S, kWideTile>(p, row, samples, memory).forward()                                 \
         : on_tile<S, kNarrowTile>(p, row, samples, memory).forward();                              \
  }                                                                                                 \
  void masked_backward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,              \
                       MaskedMemory<S> memory) {                                                    \
    wide ? on_tile<S, kWideTile>(p, row, samples, memory).backward()                                \
         : on_tile<S, kNarrowTile>(p, row, samples, memory).backward();                             \
  }                                                                                                 \
  void conditioned_forward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,          \
                           MaskedMemory<S> memory, S* logabsdet) {                                  \
    wide ? on_tile<S, kWideTile>(p, row, samples, memory).apply(logabsdet)                          \
         : on_tile<S, kNarrowTile>(p, row, samples, memory).apply(logabsdet);                       \
  }                                                                                                 \
  void conditioned_values(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,           \
                          MaskedMemory<S> memory) {                                                 \
    wide ? on_tile<S, kWideTile>(p, row, samples, memory).evaluate()                                \
         : on_tile<S, kNarrowTile>(p, row, samples, memory).evaluate();                             \
  }                                                                                                 \
  void conditioned_backward(const MaskedProblem<S>& p, int64_t row, int samples, bool wide,         \
                            MaskedMemory<S> memory, const S* g_logabsdet) {                         \
    wide ? on_tile<S, kWideTile>(p, row, samples, memory).pull_back(g_logabsdet)                    \
         : on_tile<S, kNarrowTile>(p, row, samples, memory).pull_back(g_logabsdet);                 \
  }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
