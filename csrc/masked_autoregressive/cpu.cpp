// The masked autoregressive transform on the CPU: tiles on threads, and registration; the loops are
// in simd.cpp.
#include "../common/cpu.h"
#include "../common/tiles.h"
#include "plan.h"
#include "torch.h"

namespace flowkern {
namespace {

// A call's tensors as the plan takes them.
template <class S> struct MaskedNetworkOf {
  const MaskedCall& call;
  const Tensors& tensors = call.tensors;

  MaskedNetwork<S> network() const {
    MaskedNetwork<S> net;
    net.rows = call.x.size(0), net.features = int(call.features()), net.levels = int(call.levels());
    net.parameters = int(call.parameters());
    net.order = static_cast<const std::int64_t*>(call.order.const_data_ptr());
    net.ends = static_cast<const std::int64_t*>(call.ends.const_data_ptr());
    for (int k = 0; k < int(call.layers()); ++k) net.layers.push_back(layer(k));
    net.element = call.set.element, net.inverse = call.set.inverse, net.backward = call.grad_out;
    return net;
  }

  typename MaskedNetwork<S>::Layer layer(int k) const {
    typename MaskedNetwork<S>::Layer to;
    to.units = int(call.units(k)), to.weight = matrix(*tensors[5 * k]);
    for (int i = 0; i < 4; ++i) to.vectors[i] = elements(tensors[5 * k + 1 + i]);
    to.activation = int(call.set.activations[k]), to.slope = S(call.set.slopes[k]);
    to.skip = int(call.set.skips[k]);
    if (const auto* term = call.term(k)) {
      to.term.given = true, to.term.inputs = int(term[0]->size(1));
      to.term.context = elements(term[0]), to.term.weight = matrix(*term[1]), to.term.bias = elements(term[2]);
      to.term.activation = int(call.terms->activations[k]), to.term.slope = S(call.terms->slopes[k]);
    }
    if (call.grads) place_gradients(k, to);
    return to;
  }

  void place_gradients(int k, typename MaskedNetwork<S>::Layer& to) const {
    const auto* grads = call.grads->data() + 5 * k;
    if (grads[0]) to.grad_weight = {data(*grads[0]), grads[0]->stride(0), grads[0]->stride(1)};
    for (int i = 0; i < 4; ++i)
      if (const auto& grad = grads[i + 1]) (grad->dim() == 2 ? to.grad_rows : to.grad_sums)[i] = data(*grad);
  }

  static S* data(const Tensor& t) { return static_cast<S*>(t.mutable_data_ptr()); }
  static Matrix<const S> matrix(const Tensor& t) { return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.stride(1)}; }
  static Elements<const S> elements(const std::optional<Tensor>& t) {
    if (!t) return {nullptr, 0, 0, nullptr};
    const bool by_row = t->dim() == 2;
    return {static_cast<const S*>(t->const_data_ptr()), by_row ? t->stride(0) : 0, t->stride(by_row), nullptr};
  }
};

template <class S> void place_features(const MaskedCall& call, MaskedProblem<S>& problem) {
  const auto rows = [](const Tensor* t) {
    return t ? Elements<const S>{static_cast<const S*>(t->const_data_ptr()), t->stride(0), t->dim() > 1 ? t->stride(1) : 0, nullptr}
             : Elements<const S>{};
  };
  const bool given = call.set.inverse && !call.grad_out;  // x is what the inverse is given
  problem.x = rows(given ? nullptr : &call.x), problem.y = rows(given ? &call.x : call.y);
  problem.out = {static_cast<S*>(call.out.mutable_data_ptr()), call.out.stride(0), call.out.stride(1), nullptr};
  problem.logabsdet = call.logabsdet ? static_cast<S*>(call.logabsdet->mutable_data_ptr()) : nullptr;
  problem.grad_out = rows(call.grad_out), problem.grad_logabsdet = rows(call.grad_logabsdet);
}

struct MaskedOnCpu {
  explicit MaskedOnCpu(const Tensor&) {}

  void run(const MaskedCall& call) const {
    if (call.x.size(0) == 0) return;
    if (call.x.scalar_type() == ScalarType::Double) run_as<double>(call);
    else run_as<float>(call);
  }

  template <class S> static void run_as(const MaskedCall& call) {
    const MaskedShape shape = FLOWKERN_BY_ISA(masked_shape, S());
    MaskedPlan<S> plan(MaskedNetworkOf<S>{call}.network(), shape);
    plan.pack(scratch<S, 0>(plan.packed));
    MaskedProblem<S>& p = plan.problem;
    place_features(call, p);
    // A tile as wide as need be: samples that it lacks are computed all the same.
    const bool wide = p.rows > shape.narrow;
    const Tiles<S> tiles(p.rows, wide ? shape.wide : shape.narrow, plan.chunk_size);
    // Waking a thread costs as much as so many multiplications.
    const std::int64_t tiles_at_least = kMultiplications / (plan.packed * tiles.width + 1) + 1;
    const std::int64_t grain = (tiles_at_least * tiles.chunks + tiles.count - 1) / tiles.count;
    const auto memory = [&] { return scratch<S, 1>(p.memory * tiles.width); };
    tiles.each(grain, memory, [&](S* tile, S* chunk, std::int64_t row, int samples) {
      const MaskedMemory<S> own{tile, tile + p.values * tiles.width, chunk, nullptr, nullptr};
      if (call.grads) FLOWKERN_BY_ISA(masked_backward, p, row, samples, wide, own);
      else FLOWKERN_BY_ISA(masked_forward, p, row, samples, wide, own);
    });
    if (call.grads) plan.finish(tiles.total());
  }

  static constexpr std::int64_t kMultiplications = 1 << 18;
};

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  m.impl("masked_autoregressive", TORCH_BOX(&MaskedOp<MaskedOnCpu>::forward));
  m.impl("masked_autoregressive_gradients", TORCH_BOX(&MaskedOp<MaskedOnCpu>::gradients));
}

}  // namespace
}  // namespace flowkern
