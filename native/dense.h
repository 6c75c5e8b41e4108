// Factorisation and box QP of the m-by-m control block, on lanes (V a vector: one problem a lane) or
// alone (V a scalar). The arithmetic is that of `_kernel/cholesky.py` and `_kernel/box_qp.py`, line
// for line: where those derive something, the derivation stands there.
#pragma once

#include "simd.h"

namespace DC_ISA {

template <class T>
struct Rounding;
template <>
struct Rounding<double> {
  static constexpr double eps = 2.220446049250313e-16, smallest = 2.2250738585072014e-308;
};
template <>
struct Rounding<float> {
  static constexpr float eps = 1.1920929e-7f, smallest = 1.17549435e-38f;
};

// Lower factor L of A (m, m), read from its lower triangle, which is lost; inverse of L's diagonal;
// pivots relative to the diagonal of A. A pivot that is not positive is taken as very large.
// What the next column waits for is one division: the root stands beside that path, not on it.
template <class V>
static void cholesky(int m, V* A, V* L, V* inverse, V* pivots) {
  using T = Element<V>;
  const T tiny = T(4) * T(m) * Rounding<T>::eps, large = T(1) / (tiny * tiny);
  V* scales = pivots;
  for (int j = 0; j < m; ++j)
    scales[j] = larger<V>(magnitude<V>(A[j * m + j]), splat<V>(Rounding<T>::smallest));
  for (int j = 0; j < m; ++j) {
    const V scale = scales[j], pivot = A[j * m + j];
    const V safe = select<V>(pivot > tiny * scale, pivot, (T(1) + scale) * large);
    const V reciprocal = T(1) / safe, root = square_root<V>(safe);
    L[j * m + j] = root;
    inverse[j] = root * reciprocal;
    pivots[j] = select<V>(magnitude<V>(pivot) > tiny * scale, pivot / scale, V{});
    for (int i = j + 1; i < m; ++i) {
      const V factor = A[i * m + j] * reciprocal;
      for (int k = j + 1; k <= i; ++k) A[i * m + k] -= factor * A[k * m + j];
      L[i * m + j] = A[i * m + j] * inverse[j];
      L[j * m + i] = V{};
    }
  }
}

// b <- L^-1 b, for the k columns of b (m, k). A finished row is taken off all later ones at once,
// which do not wait for each other.
template <class V>
static void solve_lower(int m, int k, const V* L, const V* inverse, V* b) {
  for (int i = 0; i < m; ++i) {
    for (int c = 0; c < k; ++c) b[i * k + c] *= inverse[i];
    for (int j = i + 1; j < m; ++j)
      for (int c = 0; c < k; ++c) b[j * k + c] -= L[j * m + i] * b[i * k + c];
  }
}

// b <- L^-T b.
template <class V>
static void solve_upper(int m, int k, const V* L, const V* inverse, V* b) {
  for (int i = m - 1; i >= 0; --i) {
    for (int c = 0; c < k; ++c) b[i * k + c] *= inverse[i];
    for (int j = 0; j < i; ++j)
      for (int c = 0; c < k; ++c) b[j * k + c] -= L[i * m + j] * b[i * k + c];
  }
}

// A on the free rows and columns, the identity elsewhere.
template <class V>
static void restrict_to(int m, const V* A, const Mask<V>* free, V* out) {
  using T = Element<V>;
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j)
      out[i * m + j] = select<V>(free[i] & free[j], A[i * m + j], splat<V>(T(i == j)));
}

template <class V>
static void multiply(int m, const V* R, const V* k, V* out) {
  for (int i = 0; i < m; ++i) {
    V sum = V{};
    for (int j = 0; j < m; ++j) sum += R[i * m + j] * k[j];
    out[i] = sum;
  }
}

// Adds to the diagonal of A (m, m) what makes it positive definite, and nothing where it is clearly so
// already. `C` and `E` are scratch of (m, m) and (m).
template <class V>
static void convexify(int m, V* A, V* C, V* E) {
  using T = Element<V>;
  V diagonal = V{}, beside = V{};
  for (int i = 0; i < m; ++i) {
    diagonal = larger<V>(diagonal, magnitude<V>(A[i * m + i]));
    for (int j = 0; j < m; ++j) {
      C[i * m + j] = A[i * m + j];
      if (i != j) beside = larger<V>(beside, magnitude<V>(A[i * m + j]));
    }
  }
  const T spread = m > 1 ? T(1) / root(T(m) * T(m) - T(1)) : T(0);
  const V smallest = larger<V>(root(T(Rounding<T>::eps)) * larger<V>(diagonal, beside),
                               splat<V>(Rounding<T>::smallest));
  const V beta2 = larger<V>(larger<V>(diagonal, beside * spread), smallest);
  for (int j = 0; j < m; ++j) {
    V theta = V{};
    for (int i = j + 1; i < m; ++i) theta = larger<V>(theta, magnitude<V>(C[i * m + j]));
    const V c = C[j * m + j];
    const V d = larger<V>(larger<V>(magnitude<V>(c), smallest), theta * theta / beta2);
    E[j] = d - c;
    for (int i = j + 1; i < m; ++i)
      for (int k = j + 1; k <= i; ++k) C[i * m + k] -= C[i * m + j] * C[k * m + j] / d;
  }
  for (int j = 0; j < m; ++j) A[j * m + j] += E[j];
}

template <class V>
DC_INLINE Mask<V> pressed(V k, V gradient, V lower, V upper) {
  return ((k <= lower) & (gradient > 0)) | ((k >= upper) & (gradient < 0)) | (lower == upper);
}

// Working memory of a box QP of m variables.
template <class V, int M>
struct BoxScratch {
  V restricted[M * M], L[M * M], inverse[M], pivots[M], gradient[M], direction[M], moved[M], Rk[M];
  Mask<V> free[M];
};

// Minimises 1/2 k'Rk + q'k over lower <= k <= upper. R (m, m) is full. Leaves the factor of R on the
// free variables, its pivots, and which are free.
template <class V, int M>
static void box_qp(int m, const V* R, const V* q, const V* lower, const V* upper, V* k,
                      BoxScratch<V, M>& s) {
  using T = Element<V>;
  constexpr int SEARCHES = 12;
  const T sufficient = T(0.1);
  if (m == 1) {
    const V safe = select<V>(R[0] > 0, R[0], splat<V>(T(1)));
    k[0] = smaller<V>(larger<V>(-q[0] / safe, lower[0]), upper[0]);
  } else {
    for (int i = 0; i < m; ++i) k[i] = smaller<V>(larger<V>(V{}, lower[i]), upper[i]);
    Mask<V> done = (k[0] != k[0]);
    for (int iteration = 0; iteration < 10 + 4 * m; ++iteration) {
      multiply<V>(m, R, k, s.gradient);
      V value = V{};
      for (int i = 0; i < m; ++i) {
        value += k[i] * (T(0.5) * s.gradient[i] + q[i]);
        s.gradient[i] += q[i];
        s.free[i] = negate<V>(pressed<V>(k[i], s.gradient[i], lower[i], upper[i]));
        s.direction[i] = select<V>(s.free[i], s.gradient[i], V{});
      }
      restrict_to<V>(m, R, s.free, s.restricted);
      cholesky<V>(m, s.restricted, s.L, s.inverse, s.pivots);
      solve_lower<V>(m, 1, s.L, s.inverse, s.direction);
      solve_upper<V>(m, 1, s.L, s.inverse, s.direction);
      Mask<V> inside = (k[0] == k[0]);
      for (int i = 0; i < m; ++i) {
        s.direction[i] = -s.direction[i];
        s.moved[i] = k[i] + s.direction[i];
        inside = inside & (s.moved[i] >= lower[i]) & (s.moved[i] <= upper[i]);
      }
      // The full step where it stays inside; elsewhere the first of ever shorter projected ones
      // that decreases enough; else none.
      Mask<V> found = inside | done;
      T step = T(1);
      for (int search = 0; search < SEARCHES && !all<V>(found); ++search, step *= T(0.5)) {
        V candidate[M];
        for (int i = 0; i < m; ++i)
          candidate[i] =
              smaller<V>(larger<V>(k[i] + step * s.direction[i], lower[i]), upper[i]);
        multiply<V>(m, R, candidate, s.Rk);
        V there = V{}, slope = V{};
        for (int i = 0; i < m; ++i) {
          there += candidate[i] * (T(0.5) * s.Rk[i] + q[i]);
          slope += (k[i] - candidate[i]) * s.gradient[i];
        }
        const Mask<V> take = negate<V>(found) & (value - there >= sufficient * slope);
        for (int i = 0; i < m; ++i) s.moved[i] = select<V>(take, candidate[i], s.moved[i]);
        found = found | take;
      }
      Mask<V> same = (k[0] == k[0]);
      for (int i = 0; i < m; ++i) {
        const V next = select<V>(found & negate<V>(done), s.moved[i], k[i]);
        same = same & (next == k[i]);
        k[i] = next;
      }
      multiply<V>(m, R, k, s.Rk);
      Mask<V> settled = inside;
      for (int i = 0; i < m; ++i) {
        const Mask<V> still = negate<V>(pressed<V>(k[i], s.Rk[i] + q[i], lower[i], upper[i]));
        settled = settled & negate<V>(still ^ s.free[i]);
      }
      done = done | settled | same;
      if (all<V>(done)) break;
    }
  }
  multiply<V>(m, R, k, s.Rk);
  for (int i = 0; i < m; ++i) {
    s.free[i] = negate<V>(pressed<V>(k[i], s.Rk[i] + q[i], lower[i], upper[i]));
    k[i] = select<V>(s.free[i], V{}, k[i]);
  }
  restrict_to<V>(m, R, s.free, s.restricted);
  cholesky<V>(m, s.restricted, s.L, s.inverse, s.pivots);
  multiply<V>(m, R, k, s.Rk);
  for (int i = 0; i < m; ++i) s.direction[i] = select<V>(s.free[i], q[i] + s.Rk[i], V{});
  solve_lower<V>(m, 1, s.L, s.inverse, s.direction);
  solve_upper<V>(m, 1, s.L, s.inverse, s.direction);
  for (int i = 0; i < m; ++i)
    k[i] = select<V>(s.free[i], smaller<V>(larger<V>(-s.direction[i], lower[i]), upper[i]), k[i]);
}

}  // namespace DC_ISA
