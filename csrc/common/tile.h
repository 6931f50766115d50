// Tiles: the parameters of as many elements as a vector has lanes, one vector per parameter.
//
// In memory the parameters of one element lie together; the formulas want the same parameter of
// many elements together. A tile is that transpose.
#pragma once

#include "vec.h"

FLOWKERN_BEGIN

// Calls group(i) for the first of every four consecutive columns; the last group overlaps the one
// before it rather than pass the end. Needs count ≥ 4, where count is K unless K = 0.
template <int K, class F> FLOWKERN_HD void groups_of_4(int count, const F& group) {
  each<K / 4>(K ? K / 4 : count / 4, [&](int i) FLOWKERN_INLINE { group(4 * i); });
  if ((K ? K : count) % 4) group((K ? K : count) - 4);
}

// columns[i] receives parameter i of as many elements as there are lanes, p[lane·stride + i], for
// i < count, where count is K unless K = 0.
template <int K, class S> FLOWKERN_HD void load_tile(const S* p, long stride, int count, Vec<S>* columns) {
  constexpr int lanes = Lanes<Vec<S>>::count;
#if defined(__AVX2__)
  if constexpr (sizeof(S) == 4 && (K == 0 || K >= 4))
    if (K || count >= 4)
      return groups_of_4<K>(count, [&](int i) FLOWKERN_INLINE { load_columns4(p + i, stride, columns + i); });
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
#if defined(__AVX2__)
  if constexpr (sizeof(S) == 4 && (K == 0 || K >= 4))
    if (K || count >= 4)
      return groups_of_4<K>(count, [&](int i) FLOWKERN_INLINE { store_columns4(p + i, stride, columns + i); });
#endif
  for (int i = 0; i < count; ++i) {
    S column[lanes];
    store(column, columns[i]);
    for (int lane = 0; lane < lanes; ++lane) p[lane * stride + i] = column[lane];
  }
}

FLOWKERN_END
