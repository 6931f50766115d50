// Tiles: the parameters of as many elements as a vector has lanes, one vector per parameter.
//
// In memory the parameters of one element lie together; the formulas want the same parameter of
// many elements together. A tile is that transpose.
#pragma once

#include "two.h"

FLOWKERN_BEGIN

#if defined(FLOWKERN_VECTORS)
// Calls eight(i) or four(i) for groups of as many consecutive columns that begin at i; a last group
// overlaps the one before it rather than pass the end. Needs count ≥ 4, where count is K unless K = 0.
template <int K, class F, class G> FLOWKERN_HD void groups(int count, const F& eight, const G& four) {
  const int eights = (K ? K : count) / 8, rest = (K ? K : count) % 8, end = 8 * eights + rest;
  each<K / 8>(eights, [&](int i) FLOWKERN_INLINE { eight(8 * i); });
  if (eights && rest > 4) return eight(end - 8);
  if (rest >= 4) four(8 * eights);
  if (rest % 4) four(end - 4);
}
#endif

// columns[i] receives parameter i of as many elements as there are lanes, p[lane·stride + i], for
// i < count, where count is K unless K = 0.
template <int K, class S> FLOWKERN_HD void load_tile(const S* p, long stride, int count, Vec<S>* columns) {
  constexpr int lanes = Lanes<Vec<S>>::count;
#if defined(FLOWKERN_VECTORS)
  if constexpr (sizeof(S) == 4 && (K == 0 || K >= 4))
    if (K || count >= 4)
      return groups<K>(
          count, [&](int i) FLOWKERN_INLINE { load_columns8(p + i, stride, columns + i); },
          [&](int i) FLOWKERN_INLINE { load_columns4(p + i, stride, columns + i); });
#endif
  for (int i = 0; i < count; ++i) {
    S column[lanes];
    for (int lane = 0; lane < lanes; ++lane) column[lane] = p[lane * stride + i];
    columns[i] = load(column);
  }
}

// The inverse of load_tile.
template <int K, class S> FLOWKERN_HD void store_tile(S* p, long stride, int count, const Vec<S>* columns) {
  constexpr int lanes = Lanes<Vec<S>>::count;
#if defined(FLOWKERN_VECTORS)
  if constexpr (sizeof(S) == 4 && (K == 0 || K >= 4))
    if (K || count >= 4)
      return groups<K>(
          count, [&](int i) FLOWKERN_INLINE { store_columns8(p + i, stride, columns + i); },
          [&](int i) FLOWKERN_INLINE { store_columns4(p + i, stride, columns + i); });
#endif
  for (int i = 0; i < count; ++i) {
    S column[lanes];
    store(column, columns[i]);
    for (int lane = 0; lane < lanes; ++lane) p[lane * stride + i] = column[lane];
  }
}

// Tiles of two vectors; K is not 0.
template <int K, class S>
FLOWKERN_HD void load_tile(const S* p, long stride, int count, Two<Vec<S>>* columns) {
  Vec<S> a[K], b[K];
  load_tile<K, S>(p, stride, count, a);
  load_tile<K, S>(p + Lanes<Vec<S>>::count * stride, stride, count, b);
  each<K>(count, [&](int i) FLOWKERN_INLINE { columns[i] = {a[i], b[i]}; });
}
template <int K, class S>
FLOWKERN_HD void store_tile(S* p, long stride, int count, const Two<Vec<S>>* columns) {
  Vec<S> a[K], b[K];
  each<K>(count, [&](int i) FLOWKERN_INLINE { a[i] = columns[i].a, b[i] = columns[i].b; });
  store_tile<K, S>(p, stride, count, a);
  store_tile<K, S>(p + Lanes<Vec<S>>::count * stride, stride, count, b);
}

FLOWKERN_END
