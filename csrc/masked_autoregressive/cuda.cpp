// Registration of the masked autoregressive transform on CUDA; the kernels are in cuda.cu.
#include "../common/cuda.h"
#include "cuda.h"
#include "torch.h"

namespace flowkern {
namespace {

struct MaskedOnCuda : OnDevice {
  using OnDevice::OnDevice;

  void run(const MaskedCall& call) const {
    if (call.x.size(0) == 0) return;
    if (call.x.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

 private:
  template <class S> void run_as(const MaskedCall& call) const {
    const MaskedTransform<S> transform = transform_of<S>(call);
    const std::vector<MaskedLayer<S>> layers = layers_of<S>(call);
    Tensor scratch = torch::stable::new_empty(call.x, {cuda::masked_scratch(transform, layers)});
    cuda::masked_autoregressive(transform, layers, static_cast<S*>(scratch.mutable_data_ptr()), stream);
  }

  // Entries of order and ends are not looked at: that would wait for the device.
  template <class S> static MaskedTransform<S> transform_of(const MaskedCall& call) {
    const MaskedSettings& set = call.set;
    MaskedTransform<S> t{};
    t.rows = call.x.size(0), t.features = int(call.features()), t.levels = int(call.levels());
    t.parameters = int(call.parameters()), t.element = set.element, t.inverse = set.inverse;
    t.order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    t.ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    t.known = elements<S>(&call.x), t.given = elements<S>(set.inverse && call.grad_out ? call.y : &call.x);
    t.out = {static_cast<S*>(call.out.mutable_data_ptr()), call.out.stride(0), call.out.stride(1), nullptr};
    t.logabsdet = call.logabsdet ? static_cast<S*>(call.logabsdet->mutable_data_ptr()) : nullptr;
    t.grad_out = elements<S>(call.grad_out), t.grad_logabsdet = elements<S>(call.grad_logabsdet);
    t.tape = call.tape ? static_cast<S*>(call.tape->mutable_data_ptr()) : nullptr;
    return t;
  }

  template <class S> static std::vector<MaskedLayer<S>> layers_of(const MaskedCall& call) {
    std::vector<MaskedLayer<S>> layers;
    for (int k = 0; k < int(call.layers()); ++k) {
      const auto* tensors = call.tensors.data() + 5 * k;
      MaskedLayer<S> layer{};
      layer.weight = elements<S>(&*tensors[0]), layer.units = int(call.units(k));
      layer.bias = vector<S>(tensors[1]), layer.gate = vector<S>(tensors[2]);
      layer.gain = vector<S>(tensors[3]), layer.offset = vector<S>(tensors[4]);
      layer.activation = int(call.set.activations[k]), layer.slope = S(call.set.slopes[k]);
      layer.skip = call.set.skips[k] < 0 ? -1 : int(call.set.skips[k]) + 1;
      if (const auto* term = call.term(k)) {
        layer.term = {elements<S>(&*term[0]), elements<S>(&*term[1]), vector<S>(term[2]), int(term[0]->size(1)),
                      int(call.terms->activations[k]), S(call.terms->slopes[k])};
      }
      layers.push_back(layer);
    }
    return layers;
  }

  template <class S> static Elements<const S> elements(const Tensor* t) {
    if (!t) return {};
    return {static_cast<const S*>(t->const_data_ptr()), t->stride(0), t->dim() > 1 ? t->stride(1) : 0, nullptr};
  }
  // One number for each unit, or a row of them for each sample.
  template <class S> static Elements<const S> vector(const std::optional<Tensor>& t) {
    if (!t || t->dim() == 2) return elements<S>(t ? &*t : nullptr);
    return {static_cast<const S*>(t->const_data_ptr()), 0, t->stride(0), nullptr};
  }
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CUDA, m) {
  m.impl("masked_autoregressive", TORCH_BOX(&MaskedOp<MaskedOnCuda>::forward));
  m.impl("masked_autoregressive_backward", TORCH_BOX(&MaskedOp<MaskedOnCuda>::backward));
}

}  // namespace
}  // namespace flowkern
