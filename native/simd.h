// Vectors of W numbers, and scalars as vectors of one, behind the same few functions.
//
// Only compiler vector extensions (g++, clang): the same source serves AVX-512, AVX2, SSE2 and NEON,
// according to the flags it is compiled with. No header of the standard library is included by the
// kernel files: an inline library function compiled for AVX-512 could be the copy that the linker
// keeps for the whole program, and would crash on other machines.
#pragma once

#include <stdint.h>

namespace DC_ISA {

template <class T>
struct Integer;
template <>
struct Integer<double> {
  using type = int64_t;
};
template <>
struct Integer<float> {
  using type = int32_t;
};

// Properties of a vector type V: its element, its width, and the type of comparisons.
template <class V>
struct Simd;

template <>
struct Simd<double> {
  using T = double;
  using Mask = bool;
  static constexpr int W = 1;
};
template <>
struct Simd<float> {
  using T = float;
  using Mask = bool;
  static constexpr int W = 1;
};

#define DC_VECTOR(NAME, TYPE, WIDTH)                                                 \
  typedef TYPE NAME __attribute__((vector_size(WIDTH * sizeof(TYPE))));              \
  typedef Integer<TYPE>::type NAME##_mask                                            \
      __attribute__((vector_size(WIDTH * sizeof(TYPE))));                            \
  template <>                                                                        \
  struct Simd<NAME> {                                                                \
    using T = TYPE;                                                                  \
    using Mask = NAME##_mask;                                                        \
    static constexpr int W = WIDTH;                                                  \
  };

#ifndef DC_BYTES
#define DC_BYTES 16
#endif
DC_VECTOR(vector_f64, double, (DC_BYTES / 8))
DC_VECTOR(vector_f32, float, (DC_BYTES / 4))
#undef DC_VECTOR

template <class T>
struct Widest;
template <>
struct Widest<double> {
  using type = vector_f64;
};
template <>
struct Widest<float> {
  using type = vector_f32;
};

#define DC_INLINE static inline __attribute__((always_inline))

template <class V>
using Element = typename Simd<V>::T;
template <class V>
using Mask = typename Simd<V>::Mask;

template <class V>
DC_INLINE V splat(Element<V> value) {
  return V{} + value;
}

template <class V>
DC_INLINE V select(Mask<V> mask, V a, V b) {
  return mask ? a : b;
}

// A vector at an address that need not be a multiple of its size.
template <class V>
DC_INLINE V load(const Element<V>* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
DC_INLINE void store(Element<V>* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <class V>
DC_INLINE Element<V> lane(const V& v, int i) {
  if constexpr (Simd<V>::W == 1)
    return v;
  else
    return v[i];
}

template <class V>
DC_INLINE bool any(Mask<V> mask) {
  if constexpr (Simd<V>::W == 1) {
    return mask;
  } else {
    typename Integer<Element<V>>::type bits = 0;
    for (int i = 0; i < Simd<V>::W; ++i) bits |= mask[i];
    return bits != 0;
  }
}
template <class V>
DC_INLINE bool all(Mask<V> mask) {
  if constexpr (Simd<V>::W == 1)
    return mask;
  else
    return !any<V>(~mask);
}
template <class V>
DC_INLINE Mask<V> negate(Mask<V> mask) {
  if constexpr (Simd<V>::W == 1)
    return !mask;
  else
    return ~mask;
}

DC_INLINE double root(double x) { return __builtin_sqrt(x); }
DC_INLINE float root(float x) { return __builtin_sqrtf(x); }
template <class V>
DC_INLINE V square_root(V v) {
  if constexpr (Simd<V>::W == 1) {
    return root(v);
  } else {
    V r;
    for (int i = 0; i < Simd<V>::W; ++i) r[i] = root(v[i]);
    return r;
  }
}

template <class V>
DC_INLINE V magnitude(V v) {
  return select<V>(v < 0, -v, v);
}
template <class V>
DC_INLINE V larger(V a, V b) {
  return select<V>(a > b, a, b);
}
template <class V>
DC_INLINE V smaller(V a, V b) {
  return select<V>(a < b, a, b);
}

// Transposes W vectors in place by exchanging ever smaller blocks.
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
template <int W, int STEP>
struct Exchange;

#define DC_LOW(i, S, W) (((i) / (S)) % 2 == 0 ? (i) : (W) + (i) - (S))
#define DC_HIGH(i, S, W) (((i) / (S)) % 2 == 0 ? (i) + (S) : (W) + (i))
#define DC_L2(f, S) f(0, S, 2), f(1, S, 2)
#define DC_L4(f, S) f(0, S, 4), f(1, S, 4), f(2, S, 4), f(3, S, 4)
#define DC_L8(f, S)                                                                          \
  f(0, S, 8), f(1, S, 8), f(2, S, 8), f(3, S, 8), f(4, S, 8), f(5, S, 8), f(6, S, 8), f(7, S, 8)
#define DC_L16(f, S)                                                                         \
  f(0, S, 16), f(1, S, 16), f(2, S, 16), f(3, S, 16), f(4, S, 16), f(5, S, 16), f(6, S, 16), \
      f(7, S, 16), f(8, S, 16), f(9, S, 16), f(10, S, 16), f(11, S, 16), f(12, S, 16),       \
      f(13, S, 16), f(14, S, 16), f(15, S, 16)
#define DC_EXCHANGE(W, S)                                         \
  template <>                                                     \
  struct Exchange<W, S> {                                         \
    template <class V>                                            \
    DC_INLINE void run(V& a, V& b) {                              \
      const V x = a, y = b;                                       \
      a = __builtin_shufflevector(x, y, DC_L##W(DC_LOW, S));      \
      b = __builtin_shufflevector(x, y, DC_L##W(DC_HIGH, S));     \
    }                                                             \
  };
DC_EXCHANGE(2, 1)
DC_EXCHANGE(4, 1)
DC_EXCHANGE(4, 2)
DC_EXCHANGE(8, 1)
DC_EXCHANGE(8, 2)
DC_EXCHANGE(8, 4)
DC_EXCHANGE(16, 1)
DC_EXCHANGE(16, 2)
DC_EXCHANGE(16, 4)
DC_EXCHANGE(16, 8)

template <int STEP, class V>
DC_INLINE void transpose_by(V* v) {
  constexpr int W = Simd<V>::W;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if ((i / STEP) % 2 == 0) Exchange<W, STEP>::run(v[i], v[i + STEP]);
  if constexpr (STEP > 1) transpose_by<STEP / 2>(v);
}
template <class V>
DC_INLINE void transpose(V* v) {
  transpose_by<Simd<V>::W / 2>(v);
}
#else
template <class V>
DC_INLINE void transpose(V* v) {
  constexpr int W = Simd<V>::W;
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < i; ++j) {
      const Element<V> x = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = x;
    }
}
#endif

}  // namespace DC_ISA
