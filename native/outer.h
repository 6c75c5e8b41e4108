// Outer products of vectors, stage by stage: the gradients of matrices that were multiplied by vectors
// (`_kernel/products.py`).
#pragma once

#include "arguments.h"
#include "simd.h"

namespace DC_ISA {

template <class T>
struct OuterProducts {
  using V = typename Widest<T>::type;
  static constexpr int W = Simd<V>::W;

  // Rows are written in their order as whole vectors. What a vector leaves beyond its row is
  // overwritten by the rows that follow, and the last rows of all are written number by number.
  static void run(const diffcontrol::Outer<T>& a, int64_t sample) {
    const int rows = a.rows, columns = a.columns;
    const T *p_all = a.p.of(sample), *q_all = a.q.of(sample), *r_all = a.r.of(sample),
            *s_all = a.s.of(sample);
    T* out = a.out.of(sample);
    T* const end = out + int64_t(a.stages) * rows * columns;
    for (int64_t t = 0; t < a.stages; ++t) {
      const T *p = p_all + t * rows, *q = q_all + t * columns, *r = r_all + t * rows,
              *s = s_all + t * columns;
      // The vectors q and s may be read beyond this stage, but not beyond the last.
      const int64_t readable = (a.stages - t) * columns;
      if (columns <= W && readable >= W && end - out >= rows * columns + W) {
        const V q_t = load<V>(q), s_t = load<V>(s);
        for (int i = 0; i < rows; ++i, out += columns)
          store<V>(out, combine(a.scale, splat<V>(p[i]) * q_t, splat<V>(r[i]) * s_t));
        continue;
      }
      for (int i = 0; i < rows; ++i, out += columns) {
        const V p_i = splat<V>(p[i]), r_i = splat<V>(r[i]);
        int j = 0;
        for (; j < columns && j + W <= readable && out + j + W <= end; j += W)
          store<V>(out + j, combine(a.scale, p_i * load<V>(q + j), r_i * load<V>(s + j)));
        for (; j < columns; ++j) out[j] = combine(a.scale, p[i] * q[j], r[i] * s[j]);
      }
    }
  }

  // Scaling a rounded product by a power of two is exact, so this rounds the sum of two rounded
  // products, whichever of them is joined with the addition: for p = s and q = r the result is
  // symmetric to the last bit.
  template <class X>
  DC_INLINE X combine(T scale, X first, X second) {
    return scale * first + scale * second;
  }
};

}  // namespace DC_ISA
