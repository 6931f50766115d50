// The probability path's loops over blocks of elements; compiled once per instruction set, see platform.h.
#include "../common/stream.h"
#include "cpu.h"
#include "math.h"

FLOWKERN_BEGIN
namespace {

using std::int64_t;

constexpr int kBlock = int(kPathBlock);
static_assert(kBlock == kWords, "a block of elements takes a block of random words");

template <class S> struct Buffer { alignas(64) S values[kBlock]; };

// The elements of a block; all but the last of a tensor are whole.
struct Range {
  int64_t first;
  int count;
  Range(int64_t block, int64_t total) : first(block * kBlock), count(kBlock) {
    if (total - first < kBlock) count = int(total - first);
  }
  bool whole() const { return count == kBlock; }
};

// The elements to read; a block that is not whole is filled up with zeros first.
template <class S> FLOWKERN_HD const S* read(const S* from, const Range& at, Buffer<S>& buffer) {
  if (at.whole()) return from + at.first;
  for (int i = 0; i < kBlock; ++i) buffer.values[i] = i < at.count ? from[at.first + i] : S(0);
  return buffer.values;
}

// Where to write, to be followed by written().
template <class S> FLOWKERN_HD S* write(S* to, const Range& at, Buffer<S>& buffer) {
  return at.whole() ? to + at.first : buffer.values;
}
template <class S> FLOWKERN_HD void written(S* to, const Range& at, const Buffer<S>& buffer) {
  if (!at.whole()) __builtin_memcpy(to + at.first, buffer.values, at.count * sizeof(S));
}
template <class S> FLOWKERN_HD void put(S* to, Vec<S> value, bool streams) {
  if (streams) stream(to, value);
  else store(to, value);
}

template <class F> FLOWKERN_HD void each_vector(int count, int lanes, const F& body) {
  for (int i = 0; i < count; i += lanes) body(i);
}

// Plain loops without branches, which the compiler turns into vectors.
template <class S> __attribute__((noinline)) void draw_uniform(Key key, std::uint32_t stream, int64_t block, S* values) {
  alignas(64) std::uint32_t words[kWords];
  for (int i = 0; i < kCounters; ++i) {
    const Words w = words_of(key, stream, block, i);
    for (int j = 0; j < 4; ++j) words[kCounters * j + i] = w.word[j];
  }
  for (int i = 0; i < kWords; ++i) values[i] = uniform<S>(words[i]);
}

template <class S> __attribute__((noinline)) void draw_normal(Key key, int64_t block, S* values) {
  Buffer<S> uniform;
  draw_uniform(key, kNoiseStream, block, uniform.values);
  for (int half = 0; half < kWords; half += kWords / 2)
    each_vector(kCounters, Lanes<Vec<S>>::count, [&](int i) FLOWKERN_INLINE {
      const int a = half + i, b = a + kCounters;
      Vec<S> first, second;
      box_muller(load(uniform.values + a), load(uniform.values + b), first, second);
      store(values + a, first), store(values + b, second);
    });
}

template <class S> FLOWKERN_HD const S* read_noise(const PathProblem<S>& p, int64_t block, const Range& at, Buffer<S>& buffer) {
  if (p.noise) return read(p.noise, at, buffer);
  if (p.draws_noise) draw_normal(key_of(*p.seed), block, buffer.values);
  return buffer.values;
}

// The time of each element.
template <class S> FLOWKERN_HD const S* read_times(const PathProblem<S>& p, const Range& at, Buffer<S>& buffer) {
  const S* times = p.given_t ? p.given_t : p.t;
  if (p.features == 1) return read(times, at, buffer);
  int64_t row = at.first / p.features, column = at.first % p.features;
  for (int i = 0; i < at.count; ++row, column = 0) {
    const int64_t left = p.features - column;
    const int end = left < at.count - i ? i + int(left) : at.count;
    for (const S t = times[row]; i < end; ++i) buffer.values[i] = t;
  }
  for (int i = at.count; i < kBlock; ++i) buffer.values[i] = S(0);
  return buffer.values;
}

template <class S, int kind> void forward_blocks(const PathProblem<S>& p, int64_t begin, int64_t end) {
  Buffer<S> x0_buffer, x1_buffer, noise_buffer{}, t_buffer, x_buffer, u_buffer;
  for (int64_t block = begin; block < end; ++block) {
    const Range at(block, p.rows * p.features);
    const S *x0 = read(p.x0, at, x0_buffer), *x1 = read(p.x1, at, x1_buffer);
    const S *noise = read_noise(p, block, at, noise_buffer), *t = read_times(p, at, t_buffer);
    S *x = write(p.x_t, at, x_buffer), *u = write(p.u_t, at, u_buffer);
    const bool streams = p.streams && at.whole();
    each_vector(kBlock, Lanes<Vec<S>>::count, [&](int i) FLOWKERN_INLINE {
      const auto out = sample<kind>(load(x0 + i), load(x1 + i), load(noise + i), load(t + i), S(p.sigma));
      put(x + i, out.x, streams), put(u + i, out.u, streams);
    });
    written(p.x_t, at, x_buffer), written(p.u_t, at, u_buffer);
  }
  if (p.streams) flush_streams();
}

template <class S, int kind> void backward_blocks(const PathProblem<S>& p, int64_t begin, int64_t end) {
  Buffer<S> x0_buffer, x1_buffer, noise_buffer{}, t_buffer, g_x_buffer, g_u_buffer, g_x0_buffer, g_x1_buffer, g_t_buffer;
  for (int64_t block = begin; block < end; ++block) {
    const Range at(block, p.rows * p.features);
    const S *x0 = read(p.x0, at, x0_buffer), *x1 = read(p.x1, at, x1_buffer);
    const S *g_x = read(p.grad_x, at, g_x_buffer), *g_u = read(p.grad_u, at, g_u_buffer);
    const S *noise = p.grad_t ? read_noise(p, block, at, noise_buffer) : noise_buffer.values;
    const S* t = read_times(p, at, t_buffer);
    S *g_x0 = write(p.grad_x0, at, g_x0_buffer), *g_x1 = write(p.grad_x1, at, g_x1_buffer);
    S* g_t = p.grad_t ? write(p.grad_t, at, g_t_buffer) : g_t_buffer.values;
    each_vector(kBlock, Lanes<Vec<S>>::count, [&](int i) FLOWKERN_INLINE {
      const auto g = sample_vjp<kind>(load(g_x + i), load(g_u + i), load(x0 + i), load(x1 + i), load(noise + i), load(t + i), S(p.sigma));
      store(g_x0 + i, g.x0), store(g_x1 + i, g.x1), store(g_t + i, g.t);
    });
    written(p.grad_x0, at, g_x0_buffer), written(p.grad_x1, at, g_x1_buffer);
    if (p.grad_t) written(p.grad_t, at, g_t_buffer);
  }
}

template <class S> void times(const PathProblem<S>& p, int64_t begin, int64_t end) {
  Buffer<S> buffer;
  for (int64_t block = begin; block < end; ++block) {
    const Range at(block, p.rows);
    draw_uniform(key_of(*p.seed), kTimeStream, block, write(p.t, at, buffer));
    written(p.t, at, buffer);
  }
}

template <class S> using Blocks = void (*)(const PathProblem<S>&, int64_t, int64_t);
#define FLOWKERN_LOOP(kind, name) forward_blocks<S, kind>,
template <class S> constexpr Blocks<S> kForward[] = {FLOWKERN_PATHS(FLOWKERN_LOOP)};
#undef FLOWKERN_LOOP
#define FLOWKERN_LOOP(kind, name) backward_blocks<S, kind>,
template <class S> constexpr Blocks<S> kBackward[] = {FLOWKERN_PATHS(FLOWKERN_LOOP)};
#undef FLOWKERN_LOOP

}  // namespace

#define FLOWKERN_ENTRIES(S)                                                                                       \
  void path_times(const PathProblem<S>& p, int64_t begin, int64_t end) { times(p, begin, end); }                  \
  void path_forward(const PathProblem<S>& p, int64_t begin, int64_t end) { kForward<S>[p.kind](p, begin, end); }  \
  void path_backward(const PathProblem<S>& p, int64_t begin, int64_t end) { kBackward<S>[p.kind](p, begin, end); }
FLOWKERN_ENTRIES(float)
FLOWKERN_ENTRIES(double)
#undef FLOWKERN_ENTRIES

FLOWKERN_END
