// The neural ODE solve: one kernel from the first time to the last, one for all gradients. Before it weights
// are packed, after it the blocks' sums of gradients are added up.
#include "layout.cuh"
#include "tile.cuh"

FLOWKERN_BEGIN
namespace {

template <class S> struct OdeSteps : OdeTile<S> {
  using Tile = OdeTile<S>;
  using Tile::p;

  // The first `count` stages of step n from the state in rows y; with `integrals`, those are advanced too.
  __device__ void take_stages(int n, int y, int count, bool integrals) const {
    const S h = this->size(n);
    for (int i = 0; i < count; ++i) {
      this->combine(y, h, this->row_of_a(i), i, p.of_k, p.of_x);
      this->evaluate(n, p.c[i], this->k(i), integrals);
      if (integrals) this->add_rates(this->k(i), h * p.b[i], p.of_sums, [](int) {});
    }
  }
  __device__ void advance(int n, int y, int to, bool integrals) const {
    take_stages(n, y, p.stages, integrals);
    this->combine(y, this->size(n), p.b, p.stages, p.of_k, to);
  }

  __device__ void read_row_bias() const {
    const int units = p.layer[0].units;
    if (p.row_bias) this->read(p.row_bias, units, 1, units, p.of_bias);
  }

  __device__ void forward() const {
    read_row_bias();
    this->read(p.y, p.features, 1, p.features, p.of_y);
    this->fill(p.of_sums, 3);
    for (int n = 0; n < p.intervals * p.steps; ++n) {
      advance(n, p.of_y, p.of_y, true);
      if ((n + 1) % p.every) continue;
      this->write(p.of_y, p.features, state_after(n), p.features, 1);
      if ((n + 1) % p.steps == 0) this->write(p.of_sums, 3, p.sums + int64_t(n / p.steps) * 3 * p.rows, 1, p.rows);
    }
  }

  // Where the state after step n is kept. A call, because inlined it makes the compiler spill.
  __device__ __noinline__ S* state_after(int n) const {
    const int64_t k = n / p.steps, inner = p.steps / p.every - 1, j = n % p.steps / p.every;
    return j == inner ? p.ends + k * p.rows * p.features : p.kept + (k * inner + j) * p.rows * p.features;
  }

  // Stage i from the state in rows y by a step h: its gradients, and the cotangent of what it began with.
  // fbar holds the cotangent of f; `share` is what the integrals' cotangents have of theirs here.
  __device__ void stage_back(int n, int i, int y, S h, S share, S factor) const {
    const S c = p.adjoint ? S(1) - p.c[i] : p.c[i];
    const int f = this->k(i);
    this->combine(y, h, this->row_of_a(i), i, p.of_k, p.of_x);
    this->evaluate(n, c, f, true);
    this->add_dot(p.adjoint ? p.of_fbar : p.of_lambda, f, p.features, p.b[i], p.of_h);
    this->each_number(3, [&](int q) FLOWKERN_INLINE { this->at(p.of_cot)[q] = share * this->at(p.of_mu)[q]; });
    this->fill(p.of_rate, 3);
    if (p.directions)
      for (int l = 0; l + 1 < p.layers; ++l) this->fill(p.layer[l].extra, p.layer[l].units);
    this->add_rates(f, S(1), p.of_rate, [&](int) FLOWKERN_INLINE { this->pull(factor); });
    this->add_dot(p.of_mu, p.of_rate, 3, p.b[i], p.of_h);
    if (p.closed) this->closed_back(factor);
    if (p.kinetic)
      this->each_number(p.features, [&](int q) FLOWKERN_INLINE {
        const S two = S(2) * this->at(p.of_cot + 1)[q & (this->samples() - 1)];
        this->at(p.of_fbar)[q] = fma(two, this->at(f)[q], this->at(p.of_fbar)[q]);
      });
    this->field_back(n, c, factor, this->ybar(i));
  }

  // Cotangent of stage i's slope: h b_i λ + h Σ_{j>i} a_ji Ȳ_j.
  __device__ void stage_cotangent(int i, S h) const {
    this->each_number(p.features, [&](int q) FLOWKERN_INLINE {
      S sum = p.b[i] * this->at(p.of_lambda)[q];
      for (int j = i + 1; j < p.stages; ++j) {
        const S a = this->row_of_a(j)[i];
        if (a != S(0)) sum = fma(a, this->at(this->ybar(j))[q], sum);
      }
      this->at(p.of_fbar)[q] = h * sum;
    });
  }

  // The gradient of step n as it was taken from the state in rows y: λ from its end to its begin.
  __device__ void step_back(int n, int y) const {
    const S h = this->size(n);
    take_stages(n, y, p.stages - 1, false);
    for (int i = p.stages - 1; i >= 0; --i) {
      stage_cotangent(i, h);
      stage_back(n, i, y, h, h * p.b[i], S(1));
      for (int j = 0; j < i; ++j) this->add_dot(this->ybar(i), this->k(j), p.features, this->row_of_a(i)[j], p.of_h);
    }
    this->each_number(p.features, [&](int q) FLOWKERN_INLINE {
      for (int i = 0; i < p.stages; ++i) this->at(p.of_lambda)[q] += this->at(this->ybar(i))[q];
    });
  }

  // One step of the adjoint equation, back from the state in rows y.
  __device__ void adjoint_step(int n, int y) const {
    const S h = this->size(n);
    for (int i = 0; i < p.stages; ++i) {
      this->combine(p.of_lambda, h, this->row_of_a(i), i, p.of_ybar, p.of_fbar);
      stage_back(n, i, y, S(0) - h, S(1), h * p.b[i]);
    }
    this->combine(y, S(0) - h, p.b, p.stages, p.of_k, y);
    this->combine(p.of_lambda, h, p.b, p.stages, p.of_ybar, p.of_lambda);
  }

  __device__ __forceinline__ int state(int j) const { return p.of_states + j * ode_padded(p.features); }

  // The states from which steps [n, n + every) begin, by taking the steps again.
  __device__ void states_from(int n) const {
    this->read(n == 0 ? p.y : state_after(n - 1), p.features, 1, p.features, state(0));
    for (int j = 0; j + 1 < p.every; ++j) advance(n + j, state(j), state(j + 1), false);
  }

  // Begins with the cotangents, and for the adjoint with the state, at the end of interval k.
  __device__ void begin_interval(int64_t k) const {
    const int64_t of_state = k * p.rows * p.features;
    this->read_cotangent(p.grad_ends + of_state, p.features, 1, p.features, p.of_lambda);
    this->read_cotangent(p.grad_sums + k * 3 * p.rows, 1, p.rows, 3, p.of_mu);
    if (p.adjoint) this->read(p.ends + of_state, p.features, 1, p.features, p.of_y);
  }

  __device__ void backward() const {
    read_row_bias();
    this->fill(p.of_lambda, p.features);
    this->fill(p.of_mu, 3);
    if (p.row_bias) this->fill(p.of_grad_bias, p.layer[0].units);
    for (int n = p.intervals * p.steps - 1; n >= 0; --n) {
      if ((n + 1) % p.steps == 0) begin_interval(n / p.steps);
      if (!p.adjoint && (n + 1) % p.every == 0) states_from(n + 1 - p.every);
      this->fill(p.of_h, 1);
      if (p.adjoint) adjoint_step(n, p.of_y);
      else step_back(n, state(n % p.every));
      add_totals(this->at(p.of_h), 1, this->samples(), S(1), this->slice + p.size_sums + n / p.steps);
    }
    this->write(p.of_lambda, p.features, p.grad_y, p.features, 1);
    if (p.row_bias) this->write(p.of_grad_bias, p.layer[0].units, p.grad_row_bias, p.layer[0].units, 1);
  }
};

// Numbers of S that begin at `to`.
template <class S> __device__ void clear(S* to, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += kOdeThreads) to[i] = S(0);
}

// solve(steps) for every tile that is this block's.
template <class S, class F> __device__ __forceinline__ void each_tile(const OdeSolve<S>& p, const F& solve) {
  S* shared = reinterpret_cast<S*>(shared_memory());
  const int64_t size = int64_t(p.tile_rows) << p.shift;
  S* slice = p.scratch + p.slices + blockIdx.x * p.slice;
  S* memory = p.tile_is_shared ? shared : p.scratch + p.packed_size + blockIdx.x * size;
  const S* packed = p.scratch;
  if (p.weights_are_shared) {
    packed = shared + size;
    for (int64_t i = threadIdx.x; i < p.packed_size; i += kOdeThreads) shared[size + i] = p.scratch[i];
  }
  clear(memory, size);  // rows between those in use are read, and must be numbers
  clear(slice, p.slice);
  __syncthreads();
  const int64_t step = int64_t(gridDim.x) << p.shift;
  for (int64_t first = int64_t(blockIdx.x) << p.shift; first < p.rows; first += step)
    solve(OdeSteps<S>{{p, memory, packed, slice, first}});
}

// Blocks that a multiprocessor has registers for; shared memory seldom has room for more. Left to itself, the
// compiler keeps room for more, and spills what outlives the calls of products.
template <class S> constexpr int kOdeBlocks = sizeof(S) == 4 ? 3 : 2;

template <class S>
__global__ __launch_bounds__(kOdeThreads, kOdeBlocks<S>) void forward_kernel(const __grid_constant__ OdeSolve<S> p) {
  each_tile(p, [](const OdeSteps<S>& steps) FLOWKERN_INLINE { steps.forward(); });
}
template <class S>
__global__ __launch_bounds__(kOdeThreads, kOdeBlocks<S>) void backward_kernel(const __grid_constant__ OdeSolve<S> p) {
  each_tile(p, [](const OdeSteps<S>& steps) FLOWKERN_INLINE { steps.backward(); });
}

// A matrix (rows, columns), with zeros to multiples of four.
template <class S> __device__ void pack(const S* from, int rows, int columns, S* to) {
  const int width = ode_padded(columns), step = gridDim.x * kOdeThreads;
  for (int i = blockIdx.x * kOdeThreads + threadIdx.x; i < ode_padded(rows) * width; i += step) {
    const int row = i / width, column = i % width;
    to[i] = row < rows && column < columns ? from[int64_t(row) * columns + column] : S(0);
  }
}
template <class S> __global__ __launch_bounds__(kOdeThreads) void pack_kernel(const __grid_constant__ OdeSolve<S> p) {
  for (int l = 0; l < p.layers; ++l) {
    const OdeLayer<S>& layer = p.layer[l];
    pack(layer.weight, layer.units, layer.inputs, p.scratch + layer.packed);
  }
  if (p.closed && p.layers == 3) pack(p.closed_form, p.layer[1].units, p.layer[1].inputs, p.scratch + p.closed_packed);
}

// Where number i of a block's sums belongs.
template <class S> __device__ S* target(const OdeSolve<S>& p, int64_t i) {
  if (i < p.size_sums) return p.grad_starts + i;
  if (i < p.time_sums) return p.grad_sizes + (i - p.size_sums);
  if (i < p.omega_sums) return p.grad_time + (i - p.time_sums);
  if (i < p.closed_sums) return p.grad_omega + (i - p.omega_sums);
  if (i < p.layer[0].weight_sums) return p.grad_closed + (i - p.closed_sums);
  int l = 0;
  while (l + 1 < p.layers && i >= p.layer[l + 1].weight_sums) ++l;
  const OdeLayer<S>& layer = p.layer[l];
  return i < layer.bias_sums ? layer.grad_weight + (i - layer.weight_sums) : layer.grad_bias + (i - layer.bias_sums);
}
// Always in the same order, so that the result has the same bits in every run.
template <class S> __global__ __launch_bounds__(kOdeThreads) void sums_kernel(const __grid_constant__ OdeSolve<S> p) {
  const int64_t i = int64_t(blockIdx.x) * kOdeThreads + threadIdx.x;
  if (i >= p.slice) return;
  S total = S(0);
  for (int64_t block = 0; block < p.blocks; ++block) total += p.scratch[p.slices + block * p.slice + i];
  *target(p, i) = total;
}

template <class S> void run(const OdeSolve<S>& p, void* stream) {
  if (p.rows == 0) return;
  const auto kernel = p.backward ? backward_kernel<S> : forward_kernel<S>;
  const size_t shared = shared_bytes(p);
  launch_blocks("neural_ode_pack", pack_kernel<S>, 32, kOdeThreads, 0, stream, p);
  launch_blocks(p.backward ? "neural_ode_backward" : "neural_ode", kernel, p.blocks, kOdeThreads, shared, stream, p);
  const int64_t blocks = (p.slice + kOdeThreads - 1) / kOdeThreads;
  launch_blocks("neural_ode_sums", sums_kernel<S>, blocks, kOdeThreads, 0, stream, p);
}

}  // namespace

void ode_plan(OdeSolve<float>& p) { OdeLayout(p).plan(most_shared("neural_ode", current_device("neural_ode"))); }
void ode_plan(OdeSolve<double>& p) { OdeLayout(p).plan(most_shared("neural_ode", current_device("neural_ode"))); }
void ode_solve(const OdeSolve<float>& p, void* stream) { run(p, stream); }
void ode_solve(const OdeSolve<double>& p, void* stream) { run(p, stream); }

FLOWKERN_END
