// Many small problems at once: one problem a lane of V, so that every operation of the recursion is
// one instruction for all of them. With a scalar V the same code solves a single problem.
//
// Arrays arrive one problem after the other and are transposed to lanes a few stages at a time,
// which stay in the first-level cache; what the forward pass needs again is kept for all stages.
// The recursion itself is derived in `_kernel/riccati.py` and `_kernel/box_sweep.py`.
#pragma once

#include "arguments.h"
#include "dense.h"

namespace DC_ISA {

using diffcontrol::Curvature;
using diffcontrol::Factor;
using diffcontrol::Operand;
using diffcontrol::Sizes;
using diffcontrol::Solve;
using diffcontrol::Sweep;

// Hands out pieces of a thread's scratch memory. With null memory it only counts.
struct Arena {
  char* memory;
  int64_t used;

  template <class V>
  V* take(int64_t count) {
    const int64_t bytes = (count * int64_t(sizeof(V)) + 63) / 64 * 64;
    V* piece = memory ? reinterpret_cast<V*>(memory + used) : nullptr;
    used += bytes;
    return piece;
  }
};

// In the order in which a sweep tries them.
constexpr Curvature CURVATURES[] = {Curvature::exact, Curvature::gauss_newton,
                                    Curvature::convexified};

// Which samples are worked on. Lanes beyond the last sample repeat the first one.
template <class V>
struct Group {
  const int32_t* samples;
  int count;
  int64_t sample(int lane) const { return samples[lane < count ? lane : 0]; }
};

// Stages of an operand on lanes; `step` elements from one stage to the next.
template <class V>
struct Stages {
  const V* data;
  int64_t step;
  const V* operator[](int64_t t) const { return data + t * step; }
};

// `count` consecutive numbers of every sample, from `first` on, to lanes. The last block overlaps the
// one before it.
template <class V>
static void to_lanes(const Operand<const Element<V>>& a, const Group<V>& group, int64_t first,
                     int64_t count, V* out) {
  using T = Element<V>;
  constexpr int W = Simd<V>::W;
  const T* source[W];
  for (int l = 0; l < W; ++l) source[l] = a.of(group.sample(l)) + first;
  if (!a.offsets && a.stride == 0) {
    for (int64_t i = 0; i < count; ++i) out[i] = splat<V>(source[0][i]);
    return;
  }
  if (count < W) {
    for (int64_t i = 0; i < count; ++i) {
      V v{};
      for (int l = 0; l < W; ++l) v[l] = source[l][i];
      out[i] = v;
    }
    return;
  }
  for (int64_t i = 0; i < count; i += W) {
    if (i > count - W) i = count - W;
    V block[W];
    for (int l = 0; l < W; ++l) block[l] = load<V>(source[l] + i);
    transpose<V>(block);
    for (int l = 0; l < W; ++l) out[i + l] = block[l];
  }
}

// The reverse, for the samples that there are.
template <class V>
static void from_lanes(const Operand<Element<V>>& a, const Group<V>& group, int64_t first,
                       int64_t count, const V* from) {
  using T = Element<V>;
  constexpr int W = Simd<V>::W;
  T* target[W];
  for (int l = 0; l < W; ++l) target[l] = a.of(group.sample(l)) + first;
  if (count < W) {
    for (int64_t i = 0; i < count; ++i)
      for (int l = 0; l < group.count; ++l) target[l][i] = from[i][l];
    return;
  }
  for (int64_t i = 0; i < count; i += W) {
    if (i > count - W) i = count - W;
    V block[W];
    for (int l = 0; l < W; ++l) block[l] = from[i + l];
    transpose<V>(block);
    if (group.count == W) {
      for (int l = 0; l < W; ++l) store<V>(target[l] + i, block[l]);
    } else {
      for (int l = 0; l < group.count; ++l) store<V>(target[l] + i, block[l]);
    }
  }
}

// Reads `stages` stages of `core` numbers from stage `t` on; a scalar V reads them where they lie.
template <class V>
static Stages<V> read(const Operand<const Element<V>>& a, const Group<V>& group, int64_t t,
                         int64_t stages, int64_t core, V* buffer) {
  if constexpr (Simd<V>::W == 1) {
    return {a.of(group.sample(0)) + t * a.stage, a.stage};
  } else if (a.stage == 0) {
    to_lanes<V>(a, group, 0, core, buffer);
    return {buffer, 0};
  } else {
    to_lanes<V>(a, group, t * core, stages * core, buffer);
    return {buffer, core};
  }
}

// `count` numbers from the `first` on, unless they are not wanted.
template <class V>
static void write(const Operand<Element<V>>& a, const Group<V>& group, int64_t first, int64_t count,
                  const V* from) {
  if (!a) return;
  if constexpr (Simd<V>::W == 1) {
    __builtin_memcpy(a.of(group.sample(0)) + first, from, count * sizeof(V));
  } else {
    from_lanes<V>(a, group, first, count, from);
  }
}

template <class V>
DC_INLINE Mask<V> is_free(const Operand<const uint8_t>& free, const Group<V>& group, int64_t at) {
  if constexpr (Simd<V>::W == 1) {
    return free.of(group.sample(0))[at] != 0;
  } else {
    V v{};
    for (int l = 0; l < Simd<V>::W; ++l) v[l] = Element<V>(free.of(group.sample(l))[at]);
    return v > 0;
  }
}

// C (rows, columns) = or += A' B with A (depth, rows) and B (depth, columns), on and below the diagonal
// of tiles only if LOWER. The innermost block is held in registers.
#if DC_BYTES == 64 || defined(__aarch64__)
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 4;
#else
constexpr int TILE_ROWS = 2, TILE_COLUMNS = 4;
#endif

template <class V, bool ADD, int R, int C>
DC_INLINE void tile(int depth, const V* A, int lda, const V* B, int ldb, V* out, int ldc) {
  V sum[R][C];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) sum[i][j] = ADD ? out[i * ldc + j] : V{};
  for (int k = 0; k < depth; ++k) {
    V a[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) a[i] = A[k * lda + i];
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) {
      const V b = B[k * ldb + j];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) sum[i][j] += a[i] * b;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) out[i * ldc + j] = sum[i][j];
}

template <class V, bool ADD, int R>
DC_INLINE void tile_row(int columns, int depth, const V* A, int lda, const V* B, int ldb, V* out,
                        int ldc) {
  int j = 0;
  for (; j + TILE_COLUMNS <= columns; j += TILE_COLUMNS)
    tile<V, ADD, R, TILE_COLUMNS>(depth, A, lda, B + j, ldb, out + j, ldc);
  switch (columns - j) {
    case 1: tile<V, ADD, R, 1>(depth, A, lda, B + j, ldb, out + j, ldc); break;
    case 2: tile<V, ADD, R, 2>(depth, A, lda, B + j, ldb, out + j, ldc); break;
    case 3: tile<V, ADD, R, 3>(depth, A, lda, B + j, ldb, out + j, ldc); break;
    case 4: tile<V, ADD, R, 4>(depth, A, lda, B + j, ldb, out + j, ldc); break;
    default: break;
  }
}

template <class V, bool ADD, bool LOWER>
DC_INLINE void product(int rows, int columns, int depth, const V* A, int lda, const V* B, int ldb,
                       V* out, int ldc) {
  int i = 0;
  const auto width = [&](int last) { return LOWER && last < columns ? last : columns; };
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    tile_row<V, ADD, TILE_ROWS>(width(i + TILE_ROWS), depth, A + i, lda, B, ldb, out + i * ldc, ldc);
  switch (rows - i) {
    case 1: tile_row<V, ADD, 1>(width(i + 1), depth, A + i, lda, B, ldb, out + i * ldc, ldc); break;
    case 2: tile_row<V, ADD, 2>(width(i + 2), depth, A + i, lda, B, ldb, out + i * ldc, ldc); break;
    case 3: tile_row<V, ADD, 3>(width(i + 3), depth, A + i, lda, B, ldb, out + i * ldc, ldc); break;
    default: break;
  }
}

// Sizes known when compiling (N, M positive) unroll; zero means known when running.
template <class V, int N, int M>
struct Lanes {
  using T = Element<V>;
  static constexpr int W = Simd<V>::W;
  static constexpr int MOST_CONTROLS = M ? M : 64;

  // How many stages are transposed at a time: what fits the first-level cache beside the rest.
  static int chunk(Sizes s) {
    const int fit = 256 / (s.nm() * s.nm()), most = fit < 1 ? 1 : fit < W ? fit : W;
    return W == 1 || s.T < most ? s.T : most;
  }

  // Q (nm, nm), on and below the diagonal: symmetric part of H, plus F' V F. P is V F.
  static void expand(int n, int nm, const V* V_next, const V* F, V* P, V* Q) {
    product<V, false, false>(n, nm, n, V_next, n, F, nm, P, nm);
    product<V, true, true>(nm, nm, n, F, nm, P, nm, Q, nm);
  }

  // q = g + F' w
  static void pull(int n, int nm, const V* F, const V* w, const V* g, V* q) {
    for (int j = 0; j < nm; ++j) {
      V sum = g[j];
      for (int i = 0; i < n; ++i) sum += F[i * nm + j] * w[i];
      q[j] = sum;
    }
  }

  // w = v + V r
  static void affine(int n, const V* V_, const V* r, const V* v, V* w) {
    for (int i = 0; i < n; ++i) {
      V sum = v[i];
      for (int j = 0; j < n; ++j) sum += V_[i * n + j] * r[j];
      w[i] = sum;
    }
  }

  struct FactorScratch {
    V *H, *F, *g, *r, *V_, *K, *L, *pivots, *k, *v, *x, *u, *costate, *P, *Q, *q, *w, *Y, *R, *inverse;

    FactorScratch(Sizes s, bool solve, Arena& arena) {
      const int64_t n = N ? N : s.n, m = M ? M : s.m, nm = n + m, T_ = s.T, c = chunk(s);
      const bool packed = W > 1;
      H = packed ? arena.take<V>(c * nm * nm) : nullptr;
      F = packed ? arena.take<V>(c * n * nm) : nullptr;
      g = packed && solve ? arena.take<V>(c * nm) : nullptr;
      r = packed && solve ? arena.take<V>(c * n) : nullptr;
      V_ = arena.take<V>((T_ + 1) * n * n);
      K = arena.take<V>(T_ * m * n);
      L = arena.take<V>(T_ * m * m);
      pivots = arena.take<V>(T_ * m);
      k = solve ? arena.take<V>(T_ * m) : nullptr;
      v = solve ? arena.take<V>((T_ + 1) * n) : nullptr;
      x = solve ? arena.take<V>((T_ + 1) * n) : nullptr;
      u = solve ? arena.take<V>(T_ * m) : nullptr;
      costate = solve ? arena.take<V>((T_ + 1) * n) : nullptr;
      P = arena.take<V>(n * nm);
      Q = arena.take<V>(nm * nm);
      q = arena.take<V>(nm);
      w = arena.take<V>(n);
      Y = arena.take<V>(m * n);
      R = arena.take<V>(m * m);
      inverse = arena.take<V>(m);
    }
  };

  static void factor(const Factor<T>& a, const int32_t* samples, int count, void* memory) {
    const int n = N ? N : a.size.n, m = M ? M : a.size.m, nm = n + m, T_ = a.size.T;
    const bool solve = bool(a.x);
    const Group<V> group{samples, count};
    Arena arena{static_cast<char*>(memory), 0};
    FactorScratch s(a.size, solve, arena);

    V* V_next = s.V_ + int64_t(T_) * n * n;
    {
      const Stages<V> H_N = read<V>(a.H_N, group, 0, 1, n * n, s.Q);
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j)
          V_next[i * n + j] = T(0.5) * (H_N[0][i * n + j] + H_N[0][j * n + i]);
      write<V>(a.V, group, int64_t(T_) * n * n, n * n, V_next);
    }
    if (solve) {
      const Stages<V> g_N = read<V>(a.g_N, group, 0, 1, n, s.w);
      for (int i = 0; i < n; ++i) s.v[int64_t(T_) * n + i] = g_N[0][i];
    }

    const int most = chunk(a.size);
    for (int end = T_; end > 0; end -= most) {
      const int first = end > most ? end - most : 0, stages = end - first;
      const int64_t H_size = a.diagonal ? nm : nm * nm;
      const Stages<V> H = read<V>(a.H, group, first, stages, H_size, s.H);
      const Stages<V> F = read<V>(a.F, group, first, stages, n * nm, s.F);
      Stages<V> g{}, r{};
      if (solve) {
        g = read<V>(a.g, group, first, stages, nm, s.g);
        r = read<V>(a.r, group, first + 1, stages, n, s.r);
      }
      for (int t = stages - 1; t >= 0; --t) {
        const int64_t at = first + t;
        const V *Ht = H[t], *Ft = F[t];
        V *Vt = s.V_ + at * n * n, *Kt = s.K + at * m * n, *Lt = s.L + at * m * m;
        V_next = s.V_ + (at + 1) * n * n;
        Mask<V> free[MOST_CONTROLS];
        for (int i = 0; i < m; ++i) free[i] = is_free<V>(a.free, group, at * m + i);

        if (a.diagonal) {
          for (int i = 0; i < nm; ++i)
            for (int j = 0; j <= i; ++j) s.Q[i * nm + j] = i == j ? Ht[i] : V{};
        } else {
          for (int i = 0; i < nm; ++i)
            for (int j = 0; j <= i; ++j)
              s.Q[i * nm + j] = T(0.5) * (Ht[i * nm + j] + Ht[j * nm + i]);
        }
        expand(n, nm, V_next, Ft, s.P, s.Q);
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j <= i; ++j)
            s.R[i * m + j] = select<V>(free[i] & free[j], s.Q[(n + i) * nm + n + j],
                                       splat<V>(T(i == j)));
          for (int j = 0; j < n; ++j)
            s.Y[i * n + j] = select<V>(free[i], s.Q[(n + i) * nm + j], V{});
        }
        cholesky<V>(m, s.R, Lt, s.inverse, s.pivots + at * m);
        solve_lower<V>(m, n, Lt, s.inverse, s.Y);
        for (int i = 0; i < n; ++i)
          for (int j = 0; j <= i; ++j) {
            V sum = s.Q[i * nm + j];
            for (int c = 0; c < m; ++c) sum -= s.Y[c * n + i] * s.Y[c * n + j];
            Vt[i * n + j] = sum;
            Vt[j * n + i] = sum;
          }
        for (int i = 0; i < m * n; ++i) Kt[i] = -s.Y[i];
        solve_upper<V>(m, n, Lt, s.inverse, Kt);
        if (solve)
          backward(n, m, nm, Ft, V_next, Kt, Lt, s.inverse, free, g[t], r[t], s.v + at * n,
                   s.v + (at + 1) * n, s.k + at * m, s.q, s.w);
      }
      write<V>(a.V, group, int64_t(first) * n * n, int64_t(stages) * n * n, s.V_ + int64_t(first) * n * n);
    }
    write<V>(a.K, group, 0, int64_t(T_) * m * n, s.K);
    write<V>(a.L, group, 0, int64_t(T_) * m * m, s.L);
    write<V>(a.pivots, group, 0, int64_t(T_) * m, s.pivots);
    if (solve)
      forward(n, m, T_, most, group, a.F, a.r, s.F, s.r, {s.K, m * n}, s.k, {s.V_, n * n}, s.v, s.x,
              s.u, s.costate, a.x, a.u, a.costate);
  }

  // v and k of one stage.
  static void backward(int n, int m, int nm, const V* F, const V* V_next, const V* K,
                          const V* L, const V* inverse, const Mask<V>* free, const V* g,
                          const V* r, V* v, const V* v_next, V* k, V* q, V* w) {
    affine(n, V_next, r, v_next, w);
    pull(n, nm, F, w, g, q);
    for (int i = 0; i < m; ++i) {
      q[n + i] = select<V>(free[i], q[n + i], V{});
      k[i] = -q[n + i];
    }
    solve_lower<V>(m, 1, L, inverse, k);
    solve_upper<V>(m, 1, L, inverse, k);
    for (int j = 0; j < n; ++j) {
      V sum = q[j];
      for (int i = 0; i < m; ++i) sum += K[i * n + j] * q[n + i];
      v[j] = sum;
    }
  }

  // Roll-out of the linear dynamics under u = K x + k, and the costates V x + v.
  static void forward(int n, int m, int T_, int most, const Group<V>& group, const Operand<const T>& F_,
                      const Operand<const T>& r_, V* F_buffer, V* r_buffer, Stages<V> K,
                      const V* k, Stages<V> V_, const V* v, V* x, V* u, V* costate,
                      const Operand<T>& x_out, const Operand<T>& u_out,
                      const Operand<T>& costate_out) {
    const int nm = n + m;
    {
      const Stages<V> start = read<V>(r_, group, 0, 1, n, r_buffer);
      for (int i = 0; i < n; ++i) x[i] = start[0][i];
    }
    for (int first = 0; first < T_; first += most) {
      const int stages = T_ - first < most ? T_ - first : most;
      const Stages<V> F = read<V>(F_, group, first, stages, n * nm, F_buffer);
      const Stages<V> r = read<V>(r_, group, first + 1, stages, n, r_buffer);
      for (int t = 0; t < stages; ++t) {
        const int64_t at = first + t;
        const V *Ft = F[t], *Kt = K[at], *xt = x + at * n;
        V *ut = u + at * m, *following = x + (at + 1) * n;
        for (int i = 0; i < m; ++i) {
          V sum = k[at * m + i];
          for (int j = 0; j < n; ++j) sum += Kt[i * n + j] * xt[j];
          ut[i] = sum;
        }
        for (int i = 0; i < n; ++i) {
          V sum = r[t][i];
          for (int j = 0; j < n; ++j) sum += Ft[i * nm + j] * xt[j];
          for (int j = 0; j < m; ++j) sum += Ft[i * nm + n + j] * ut[j];
          following[i] = sum;
        }
        affine(n, V_[at], xt, v + at * n, costate + at * n);
      }
    }
    affine(n, V_[T_], x + int64_t(T_) * n, v + int64_t(T_) * n, costate + int64_t(T_) * n);
    write<V>(x_out, group, 0, int64_t(T_ + 1) * n, x);
    write<V>(u_out, group, 0, int64_t(T_) * m, u);
    write<V>(costate_out, group, 0, int64_t(T_ + 1) * n, costate);
  }

  struct SolveScratch {
    V *F, *g, *r, *V_, *K, *L, *k, *v, *x, *u, *costate, *q, *w, *inverse;

    SolveScratch(Sizes s, Arena& arena) {
      const int64_t n = N ? N : s.n, m = M ? M : s.m, nm = n + m, T_ = s.T, c = chunk(s);
      const bool packed = W > 1;
      F = packed ? arena.take<V>(c * n * nm) : nullptr;
      g = packed ? arena.take<V>(c * nm) : nullptr;
      r = packed ? arena.take<V>(c * n) : nullptr;
      V_ = packed ? arena.take<V>((T_ + 1) * n * n) : nullptr;
      K = packed ? arena.take<V>(T_ * m * n) : nullptr;
      L = packed ? arena.take<V>(c * m * m) : nullptr;
      k = arena.take<V>(T_ * m);
      v = arena.take<V>((T_ + 1) * n);
      x = arena.take<V>((T_ + 1) * n);
      u = arena.take<V>(T_ * m);
      costate = arena.take<V>((T_ + 1) * n);
      q = arena.take<V>(nm);
      w = arena.take<V>(n);
      inverse = arena.take<V>(m);
    }
  };

  static void solve(const Solve<T>& a, const int32_t* samples, int count, void* memory) {
    const int n = N ? N : a.size.n, m = M ? M : a.size.m, nm = n + m, T_ = a.size.T;
    const Group<V> group{samples, count};
    Arena arena{static_cast<char*>(memory), 0};
    SolveScratch s(a.size, arena);
    const Stages<V> K = read<V>(a.K, group, 0, T_, m * n, s.K);
    const Stages<V> V_ = read<V>(a.V, group, 0, T_ + 1, n * n, s.V_);
    {
      const Stages<V> g_N = read<V>(a.g_N, group, 0, 1, n, s.w);
      for (int i = 0; i < n; ++i) s.v[int64_t(T_) * n + i] = g_N[0][i];
    }
    const int most = chunk(a.size);
    for (int end = T_; end > 0; end -= most) {
      const int first = end > most ? end - most : 0, stages = end - first;
      const Stages<V> F = read<V>(a.F, group, first, stages, n * nm, s.F);
      const Stages<V> L = read<V>(a.L, group, first, stages, m * m, s.L);
      const Stages<V> g = read<V>(a.g, group, first, stages, nm, s.g);
      const Stages<V> r = read<V>(a.r, group, first + 1, stages, n, s.r);
      for (int t = stages - 1; t >= 0; --t) {
        const int64_t at = first + t;
        Mask<V> free[MOST_CONTROLS];
        for (int i = 0; i < m; ++i) {
          free[i] = is_free<V>(a.free, group, at * m + i);
          s.inverse[i] = T(1) / L[t][i * m + i];
        }
        backward(n, m, nm, F[t], V_[at + 1], K[at], L[t], s.inverse, free, g[t], r[t],
                 s.v + at * n, s.v + (at + 1) * n, s.k + at * m, s.q, s.w);
      }
    }
    forward(n, m, T_, most, group, a.F, a.r, s.F, s.r, K, s.k, V_, s.v, s.x, s.u, s.costate, a.x, a.u,
            a.costate);
  }

  struct SweepScratch {
    V *H, *D, *F, *g, *lower, *upper, *V_, *v, *V_0, *v_0, *K, *k, *P, *Q, *q, *Z, *R, *R_mu, *Rk;
    BoxScratch<V, MOST_CONTROLS>* box;

    SweepScratch(Sizes s, Arena& arena) {
      const int64_t n = N ? N : s.n, m = M ? M : s.m, nm = n + m, T_ = s.T, c = chunk(s);
      const bool packed = W > 1;
      H = packed ? arena.take<V>(c * nm * nm) : nullptr;
      D = packed ? arena.take<V>(c * nm * nm) : nullptr;
      F = packed ? arena.take<V>(c * n * nm) : nullptr;
      g = packed ? arena.take<V>(c * nm) : nullptr;
      lower = packed ? arena.take<V>(c * m) : nullptr;
      upper = packed ? arena.take<V>(c * m) : nullptr;
      V_ = arena.take<V>(n * n);
      v = arena.take<V>(n);
      V_0 = arena.take<V>(n * n);
      v_0 = arena.take<V>(n);
      K = arena.take<V>(T_ * m * n);
      k = arena.take<V>(T_ * m);
      P = arena.take<V>(n * nm);
      Q = arena.take<V>(nm * nm);
      q = arena.take<V>(nm);
      Z = arena.take<V>(m * n);
      R = arena.take<V>(m * m);
      R_mu = arena.take<V>(m * m);
      Rk = arena.take<V>(m);
      box = arena.take<BoxScratch<V, MOST_CONTROLS>>(1);
    }
  };

  // Sweeps with each Hessian in turn, the lanes for which the ones before were of no use.
  static void sweep(const Sweep<T>& a, const int32_t* samples, int count, void* memory) {
    Arena arena{static_cast<char*>(memory), 0};
    SweepScratch s(a.size, arena);
    int32_t left[W];
    for (int l = 0; l < count; ++l) left[l] = samples[l];
    for (Curvature curvature : CURVATURES) {
      if (!a.D && curvature != Curvature::gauss_newton) continue;
      const Group<V> group{left, count};
      V linear, quadratic;
      const Mask<V> positive = sweep_once(a, group, s, curvature, linear, quadratic);
      Mask<V> useful = positive;
      if (a.D && curvature == Curvature::gauss_newton) {
        V buffer;
        const V worthwhile = read<V>(a.worthwhile, group, 0, 1, 1, &buffer)[0][0];
        useful = useful & (-(linear + T(0.5) * quadratic) >= worthwhile);
      }
      write_policy(a, group, s, positive, linear, quadratic);
      int rest = 0;
      for (int l = 0; l < count; ++l)
        if (!is_set(useful, l)) left[rest++] = left[l];
      count = rest;
      if (count == 0) return;
    }
  }

  DC_INLINE bool is_set(const Mask<V>& mask, int l) {
    if constexpr (W == 1)
      return mask;
    else
      return mask[l] != 0;
  }

  static void write_policy(const Sweep<T>& a, const Group<V>& group, const SweepScratch& s,
                              const Mask<V>& positive, const V& linear, const V& quadratic) {
    const int64_t n = N ? N : a.size.n, m = M ? M : a.size.m, T_ = a.size.T;
    write<V>(a.K, group, 0, T_ * m * n, s.K);
    write<V>(a.k, group, 0, T_ * m, s.k);
    write<V>(a.linear, group, 0, 1, &linear);
    write<V>(a.quadratic, group, 0, 1, &quadratic);
    for (int l = 0; l < group.count; ++l)
      *a.positive.of(group.samples[l]) = uint8_t(is_set(positive, l));
  }

  static Mask<V> sweep_once(const Sweep<T>& a, const Group<V>& group, SweepScratch& s,
                            Curvature curvature, V& linear, V& quadratic) {
    const bool curved = curvature != Curvature::gauss_newton;
    const int n = N ? N : a.size.n, m = M ? M : a.size.m, nm = n + m, T_ = a.size.T;
    linear = quadratic = V{};
    V mu_buffer;
    const V mu = read<V>(a.regularisation, group, 0, 1, 1, &mu_buffer)[0][0];
    Mask<V> positive = (linear == linear);
    {
      const Stages<V> H_N = read<V>(a.H_N, group, 0, 1, n * n, s.V_0);
      const Stages<V> g_N = read<V>(a.g_N, group, 0, 1, n, s.v_0);
      for (int i = 0; i < n; ++i) {
        s.v[i] = g_N[0][i];
        for (int j = 0; j < n; ++j)
          s.V_[i * n + j] = T(0.5) * (H_N[0][i * n + j] + H_N[0][j * n + i]);
      }
    }
    const int most = chunk(a.size);
    for (int end = T_; end > 0; end -= most) {
      const int first = end > most ? end - most : 0, stages = end - first;
      const Stages<V> H = read<V>(a.H, group, first, stages, nm * nm, s.H);
      const Stages<V> D =
          curved ? read<V>(a.D, group, first, stages, nm * nm, s.D) : Stages<V>{nullptr, 0};
      const Stages<V> F = read<V>(a.F, group, first, stages, n * nm, s.F);
      const Stages<V> g = read<V>(a.g, group, first, stages, nm, s.g);
      const Stages<V> lower = read<V>(a.lower, group, first, stages, m, s.lower);
      const Stages<V> upper = read<V>(a.upper, group, first, stages, m, s.upper);
      for (int t = stages - 1; t >= 0; --t) {
        const int64_t at = first + t;
        V *K = s.K + at * m * n, *k = s.k + at * m;
        const V* Ht = H[t];
        if (curved) {
          const V* Dt = D[t];
          for (int i = 0; i < nm; ++i)
            for (int j = 0; j <= i; ++j) s.Q[i * nm + j] = Ht[i * nm + j] + Dt[i * nm + j];
        } else {
          for (int i = 0; i < nm; ++i)
            for (int j = 0; j <= i; ++j) s.Q[i * nm + j] = Ht[i * nm + j];
        }
        expand(n, nm, s.V_, F[t], s.P, s.Q);
        pull(n, nm, F[t], s.v, g[t], s.q);
        for (int i = 0; i < m; ++i)
          for (int j = 0; j <= i; ++j) {
            const V entry = s.Q[(n + i) * nm + n + j];
            s.R[i * m + j] = s.R[j * m + i] = entry;
          }
        if (curvature == Curvature::convexified) convexify<V>(m, s.R, s.R_mu, s.Rk);
        for (int i = 0; i < m; ++i)
          for (int j = 0; j < m; ++j)
            s.R_mu[i * m + j] = i == j ? s.R[i * m + j] + mu : s.R[i * m + j];
        box_qp<V, MOST_CONTROLS>(m, s.R_mu, s.q + n, lower[t], upper[t], k, *s.box);
        for (int i = 0; i < m; ++i) {
          positive = positive & (s.box->pivots[i] > 0);
          for (int j = 0; j < n; ++j)
            K[i * n + j] = select<V>(s.box->free[i], -s.Q[(n + i) * nm + j], V{});
        }
        solve_lower<V>(m, n, s.box->L, s.box->inverse, K);
        solve_upper<V>(m, n, s.box->L, s.box->inverse, K);
        // Z = Q_ux + 1/2 R K, so that V = Q_xx + K'Z + Z'K.
        multiply<V>(m, s.R, k, s.Rk);
        for (int i = 0; i < m; ++i) {
          linear += s.q[n + i] * k[i];
          quadratic += k[i] * s.Rk[i];
          for (int j = 0; j < n; ++j) {
            V sum = V{};
            for (int c = 0; c < m; ++c) sum += s.R[i * m + c] * K[c * n + j];
            s.Z[i * n + j] = s.Q[(n + i) * nm + j] + T(0.5) * sum;
          }
        }
        for (int i = 0; i < n; ++i) {
          V sum = s.q[i];
          for (int c = 0; c < m; ++c)
            sum += s.Q[(n + c) * nm + i] * k[c] + K[c * n + i] * (s.q[n + c] + s.Rk[c]);
          s.v[i] = sum;
          for (int j = 0; j <= i; ++j) {
            V entry = s.Q[i * nm + j];
            for (int c = 0; c < m; ++c)
              entry += K[c * n + i] * s.Z[c * n + j] + K[c * n + j] * s.Z[c * n + i];
            s.V_[i * n + j] = s.V_[j * n + i] = entry;
          }
        }
      }
    }
    return positive;
  }

  static int64_t bytes(Sizes size) {
    Arena factor{nullptr, 0}, solve{nullptr, 0}, sweep{nullptr, 0};
    FactorScratch(size, true, factor);
    SolveScratch(size, solve);
    SweepScratch(size, sweep);
    int64_t most = factor.used > solve.used ? factor.used : solve.used;
    return most > sweep.used ? most : sweep.used;
  }
};

}  // namespace DC_ISA
