// The masked autoregressive transform in the emulation: from what emulated.py passes to the problem that its kernels take.
#include "masked_autoregressive/cuda.h"
#include "../../gpu/emulation/call.h"

namespace {

// Of the masked autoregressive transform: weight, bias, gate, gain and offset of each layer.
struct MaskedCall {
  std::int64_t rows, features, levels, layers, parameters, inverse, element, kinds[2];
  double constants[9];
  const Tensor* tensors;
  const std::int64_t *units, *activations, *skips;
  const double* slopes;
  const Tensor* terms;
  const std::int64_t *term_inputs, *term_activations;
  const double* term_slopes;
  Tensor given, known, order, ends, out, logabsdet, grad_out, grad_logabsdet, tape;
};

template <class S> flowkern::MaskedTransform<S> masked(const MaskedCall& c) {
  flowkern::MaskedTransform<S> t{};
  t.rows = c.rows, t.features = int(c.features), t.levels = int(c.levels), t.parameters = int(c.parameters);
  t.element = {int(c.element), int(c.kinds[0]), int(c.kinds[1]), {}}, t.inverse = c.inverse;
  for (int i = 0; i < 9; ++i) t.element.constants[i] = c.constants[i];
  t.order = c.order.at<std::int64_t>(), t.ends = c.ends.at<std::int64_t>();
  t.given = c.given.elements<const S>(nullptr), t.known = c.known.elements<const S>(nullptr);
  t.out = c.out.elements<S>(nullptr), t.logabsdet = c.logabsdet.at<S>(), t.tape = c.tape.at<S>();
  t.grad_out = c.grad_out.elements<const S>(nullptr), t.grad_logabsdet = c.grad_logabsdet.elements<const S>(nullptr);
  return t;
}

template <class S> std::vector<flowkern::MaskedLayer<S>> masked_layers(const MaskedCall& c) {
  std::vector<flowkern::MaskedLayer<S>> layers;
  for (int k = 0; k < c.layers; ++k) {
    const Tensor* t = c.tensors + 5 * k;
    const auto tensor = [&](int i) { return t[i].elements<const S>(nullptr); };
    flowkern::MaskedLayer<S> layer{tensor(0), tensor(1), tensor(2), tensor(3), tensor(4), S(c.slopes[k])};
    layer.units = int(c.units[k]), layer.activation = int(c.activations[k]);
    layer.skip = c.skips[k] < 0 ? -1 : int(c.skips[k]) + 1;
    if (const Tensor* term = c.terms + 3 * k; c.term_inputs[k] >= 0) {
      const auto of = [&](int i) { return term[i].elements<const S>(nullptr); };
      layer.term = {of(0), of(1), of(2), int(c.term_inputs[k]), int(c.term_activations[k]), S(c.term_slopes[k])};
    }
    layers.push_back(layer);
  }
  return layers;
}

template <class S> void run_masked(const MaskedCall& c) {
  const auto transform = masked<S>(c);
  const auto layers = masked_layers<S>(c);
  const Scratch<S> scratch(flowkern::cuda::masked_scratch(transform, layers));
  flowkern::cuda::masked_autoregressive(transform, layers, scratch.data, nullptr);
}

void watch_all(const MaskedCall& c) {
  watch({
      {"x", c.given, Use::kInput},
      {"known", c.known, Use::kInput},
      {"order", c.order, Use::kInput},
      {"ends", c.ends, Use::kInput},
      {"grad_out", c.grad_out, Use::kInput},
      {"grad_logabsdet", c.grad_logabsdet, Use::kInput},
      {c.grad_out.data ? "grad_x" : "y", c.out, Use::kOutput},
      {"logabsdet", c.logabsdet, Use::kOutput},
      {"tape", c.tape, Use::kOutput},
  });
  const char* const names[] = {"weight", "bias", "gate", "gain", "offset"};
  for (int i = 0; i < 5 * c.layers; ++i)
    if (const Tensor& t = c.tensors[i]; t.data) emulation::watch(t.data, std::size_t(t.bytes), names[i % 5], Use::kInput);
  const char* const of_terms[] = {"context", "context's weight", "context's bias"};
  for (int i = 0; i < 3 * c.layers; ++i)
    if (const Tensor& t = c.terms[i]; t.data) emulation::watch(t.data, std::size_t(t.bytes), of_terms[i % 3], Use::kInput);
}

}  // namespace

extern "C" const char* masked_autoregressive(const MaskedCall* c, bool wide) {
  return reported(*c, [&] { wide ? run_masked<double>(*c) : run_masked<float>(*c); });
}
