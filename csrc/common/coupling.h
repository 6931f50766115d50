// How the loops of the coupling ops walk over the transformed elements (n, t) of a batch.
//
// A segment is a few whole rows, or a part of one row that is too long. It is seen as runs of
// consecutive elements: one run per row, or one in all, as where rows are shorter than a vector. A
// tensor whose runs are contiguous in memory is read and written there, any other through a buffer.
// The last vector of a run reaches back over the one before it, so that nothing beyond the run is
// touched; a run shorter than a vector lives in buffers, which have room.
#pragma once

#include "elements.h"
#include "stream.h"

FLOWKERN_BEGIN

using std::int64_t;

constexpr int kBlock = 512;  // elements of a segment

struct Segment {
  int64_t row, feature;  // of its first element
  int rows, features;
  int runs, length;
  bool shorter;  // than a vector
};

template <class S> struct Buffer { alignas(64) S values[kBlock]; };

// The runs of a tensor in a segment.
template <class S> struct Runs {
  S* first;
  int64_t step;
  bool streams = false;
  FLOWKERN_HD S* at(int run, int64_t i) const { return first + run * step + i; }
};
template <class S> FLOWKERN_HD void put(const Runs<S>& to, int run, int64_t i, Vec<S> value) {
  if (to.streams) stream(to.at(run, i), value);
  else store(to.at(run, i), value);
}

// Calls body(segment) for all features of the rows [begin, end). `joined` asks for one run in all
// wherever rows are not made of whole vectors, for ops whose elements cost more than a gather.
template <class S, bool joined = false, class F>
FLOWKERN_HD void for_segments(int64_t features, int64_t begin, int64_t end, const F& body) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  const int64_t part = features < kBlock ? features : kBlock, step = kBlock / part;
  for (int64_t row = begin; row < end; row += step)
    for (int64_t feature = 0; feature < features; feature += part) {
      Segment at{row, feature, int(step), int(part), int(step), int(part), false};
      if (end - row < step) at.rows = at.runs = int(end - row);
      if (features - feature < part) at.features = at.length = int(features - feature);
      if (at.features < lanes || (joined && at.features % lanes != 0))
        at.runs = 1, at.length = at.rows * at.features;
      at.shorter = at.length < lanes;
      body(at);
    }
}

// Calls body(run, i) for vectors that begin at element i of a run, until all are covered.
template <class S, class F> FLOWKERN_HD void each_vector(const Segment& at, const F& body) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  const int last = at.shorter ? 0 : at.length - lanes;
  for (int run = 0; run < at.runs; ++run)
    for (int i = 0; i < at.length; i += lanes) body(run, i < last ? i : last);
}

// Whether the elements of each run are `unit` apart in memory.
template <class S>
FLOWKERN_HD bool in_place(const Elements<S>& e, const Segment& at, int unit = 1) {
  if (e.index || at.shorter || (at.features > 1 && e.feature != unit)) return false;
  return at.runs == at.rows || e.row == at.features * unit;
}

template <class S> FLOWKERN_HD S* element(const Elements<S>& e, int64_t n, int64_t t) {
  return e.base + n * e.row + (e.index ? e.index[t] : t) * e.feature;
}

template <class S> FLOWKERN_HD Runs<S> runs_in_place(const Elements<S>& e, const Segment& at) {
  return {element(e, at.row, at.feature), e.row};
}

// Likewise to write; streams where that is wanted and every vector is aligned.
template <class S>
FLOWKERN_HD Runs<S> runs_in_place(const Elements<S>& e, const Segment& at, bool streams) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  Runs<S> runs{element(e, at.row, at.feature), e.row};
  runs.streams = streams && at.length % lanes == 0 && e.row % lanes == 0 &&
                 reinterpret_cast<std::uintptr_t>(runs.first) % (lanes * sizeof(S)) == 0;
  return runs;
}

// Calls body(e, n, t) for the elements of a segment in the order of memory, e = 0, 1, …; where rows
// are short, feature by feature instead, so that the inner loop is the long one.
template <class F> FLOWKERN_HD void each_element(const Segment& at, const F& body) {
  if (at.rows <= at.features) {
    for (int r = 0; r < at.rows; ++r)
      for (int f = 0; f < at.features; ++f) body(r * at.features + f, at.row + r, at.feature + f);
  } else {
    for (int f = 0; f < at.features; ++f)
      for (int r = 0; r < at.rows; ++r) body(r * at.features + f, at.row + r, at.feature + f);
  }
}

template <class S>
__attribute__((noinline)) void gather(Elements<const S> from, Segment at, Buffer<S>& to) {
  each_element(at, [&](int e, int64_t n, int64_t t) FLOWKERN_INLINE {
    to.values[e] = *element(from, n, t);
  });
  // Vectors are computed whole: lanes without an element get a value all the same.
  for (int e = at.rows * at.features; e < Lanes<Vec<S>>::count; ++e) to.values[e] = to.values[0];
}

template <class S>
__attribute__((noinline)) void scatter(const Buffer<S>& from, Segment at, Elements<S> to) {
  each_element(at, [&](int e, int64_t n, int64_t t) FLOWKERN_INLINE {
    *element(to, n, t) = from.values[e];
  });
}

// The runs to read; those not contiguous are gathered first.
template <class S>
FLOWKERN_HD Runs<const S> read(const Elements<const S>& from, const Segment& at,
                               Buffer<S>& buffer) {
  if (in_place(from, at)) return runs_in_place(from, at);
  gather(from, at, buffer);
  return {buffer.values, at.features};
}

// A value per row, for every element of its row.
template <class S> struct RowValues {
  Elements<const S> from;
  const Segment& segment;
  const S* buffer;  // null where runs are rows
  FLOWKERN_HD Vec<S> at(int run, int i) const {
    if (buffer) return load(buffer + i);
    return from.base[(segment.row + run) * from.row];
  }
};
template <class S>
FLOWKERN_HD RowValues<S> read_row_values(const Elements<const S>& from, const Segment& at,
                                         Buffer<S>& buffer) {
  const bool by_row = at.runs == at.rows && !at.shorter;
  if (!by_row) gather(from, at, buffer);
  return {from, at, by_row ? nullptr : buffer.values};
}

// The runs to write; to be followed by written().
template <class S>
FLOWKERN_HD Runs<S> write(const Elements<S>& to, const Segment& at, bool streams,
                          Buffer<S>& buffer) {
  return in_place(to, at) ? runs_in_place(to, at, streams) : Runs<S>{buffer.values, at.features};
}
template <class S>
FLOWKERN_HD void written(const Elements<S>& to, const Segment& at, const Buffer<S>& buffer) {
  if (!in_place(to, at)) scatter(buffer, at, to);
}

// Copies the rows of a segment whole, before their transformed features are overwritten.
template <class S>
__attribute__((noinline)) void copy_rows(Elements<const S> from, Elements<S> to, int64_t width,
                                         const Segment& at) {
  const S* in = element(from, at.row, 0);
  S* out = element(to, at.row, 0);  // contiguous, as all outputs are
  if (from.feature == 1 && from.row == width) {
    __builtin_memcpy(out, in, at.rows * width * sizeof(S));
    return;
  }
  for (int r = 0; r < at.rows; ++r)
    for (int64_t d = 0; d < width; ++d) out[r * width + d] = in[r * from.row + d * from.feature];
}

// Sums in an order that depends on the number of values alone.
template <class S> FLOWKERN_HD S sum_row(const S* values, int count) {
  constexpr int lanes = Lanes<Vec<S>>::count;
  S total = values[0];
  int i = 1;
  if constexpr (lanes > 1)
    if (count >= lanes) {
      Vec<S> partial = load(values);
      for (i = lanes; i + lanes <= count; i += lanes) partial = partial + load(values + i);
      total = sum(partial);
    }
  for (; i < count; ++i) total += values[i];
  return total;
}

// sums[n] = Σ_t of the values of row n, over as many segments as the row has.
template <class S> FLOWKERN_HD void sum_rows(const Buffer<S>& buffer, const Segment& at, S* sums) {
  const S* values = buffer.values;
  S* out = sums + at.row;
  if (at.features >= Lanes<Vec<S>>::count) {
    for (int r = 0; r < at.rows; ++r) {
      const S total = sum_row(values + r * at.features, at.features);
      out[r] = at.feature ? out[r] + total : total;
    }
  } else {  // short rows, whole, or the short end of a long one
    for (int r = 0; r < at.rows; ++r)
      out[r] = at.feature ? out[r] + values[r * at.features] : values[r * at.features];
    for (int f = 1; f < at.features; ++f)
      for (int r = 0; r < at.rows; ++r) out[r] += values[r * at.features + f];
  }
}

FLOWKERN_END
