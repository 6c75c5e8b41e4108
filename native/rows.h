// One larger problem at a time, with the vector V along the rows of its matrices. Used where so many
// numbers belong to one stage that eight or sixteen problems side by side would not fit the
// first-level cache. The m-by-m control block is worked on by the scalar form of `dense.h`.
//
// Matrices in scratch memory have rows padded with zeros to whole vectors.
#pragma once

#include "lanes.h"

namespace DC_ISA {

template <class V>
struct Rows {
  using T = Element<V>;
  static constexpr int W = Simd<V>::W;
  static constexpr int MOST_CONTROLS = 64;
#if DC_BYTES == 64
  static constexpr int MOST_COLUMNS = 5;
#else
  static constexpr int MOST_COLUMNS = 3;
#endif
  static constexpr int MOST_ROWS = 4;
  static constexpr int AHEAD = 2;  // stages to prefetch

  static constexpr int padded(int n) { return (n + W - 1) / W * W; }

  // Data of a stage to come, fetched into the second-level cache a few lines at a time: stages are
  // visited from last to first, which hardware does not foresee, and all at once would block the way
  // of the present stage's data.
  struct Ahead {
    static constexpr int64_t LINE = 64 / int64_t(sizeof(T));
    static constexpr int MOST = 4;
    const T* now[MOST] = {};
    const T* end[MOST] = {};
    int arrays = 0;
    int64_t lines = 0;  // at a time

    void add(const T* from, int64_t count) {
      now[arrays] = from;
      end[arrays++] = from + count;
    }

    void in_parts(int parts) {
      int64_t count = 0;
      for (int i = 0; i < arrays; ++i) count += end[i] - now[i];
      lines = count / (LINE * parts) + 1;
    }

    void fetch() {
      int64_t left = lines;
      for (int i = 0; i < arrays; ++i)
        for (; left > 0 && now[i] < end[i]; --left, now[i] += LINE)
          __builtin_prefetch(now[i], 0, 2);
    }
  };

  // A matrix (rows, columns) in whole vectors: where it lies, if it is so already, else copied.
  static const T* whole(const T* from, int rows, int columns, T* buffer) {
    if (columns % W == 0) return from;
    copy_in(from, rows, columns, buffer);
    return buffer;
  }

  // Rows that are no whole vectors end in one that overlaps the one before.
  static void copy_in(const T* from, int rows, int columns, T* out) {
    const int ld = padded(columns), last = columns / W * W;
    for (int i = 0; i < rows; ++i) {
      const T* row = from + i * columns;
      for (int j = 0; j < last; j += W) store<V>(out + i * ld + j, load<V>(row + j));
      if (last == columns) continue;
      store<V>(out + i * ld + last, V{});
      if (last > 0) {
        store<V>(out + i * ld + columns - W, load<V>(row + columns - W));
      } else {
        for (int j = 0; j < columns; ++j) out[i * ld + j] = row[j];
      }
    }
  }

  static void copy_out(const T* from, int rows, int columns, T* out) {
    const int ld = padded(columns), last = columns / W * W;
    for (int i = 0; i < rows; ++i) {
      T* row = out + i * columns;
      for (int j = 0; j < last; j += W) store<V>(row + j, load<V>(from + i * ld + j));
      if (last == columns) continue;
      if (last > 0) {
        store<V>(row + columns - W, load<V>(from + i * ld + columns - W));
      } else {
        for (int j = 0; j < columns; ++j) row[j] = from[i * ld + j];
      }
    }
  }

  // out (rows, ld) on and below the diagonal: the symmetric part of A (size, size).
  static void symmetric_part(const T* A, int size, T* out, int ld) {
    for (int I = 0; I < size; I += W) {
      const int rows = size - I < W ? size - I : W;
      for (int J = 0; J <= I; J += W) {
        V block[W];
        const int columns = size - J < W ? size - J : W;
        if (rows == W && columns == W) {
          for (int l = 0; l < W; ++l) block[l] = load<V>(A + (J + l) * size + I);
          transpose<V>(block);
          for (int l = 0; l < W; ++l)
            store<V>(out + (I + l) * ld + J,
                     T(0.5) * (block[l] + load<V>(A + (I + l) * size + J)));
        } else {
          for (int i = I; i < I + rows; ++i) {
            for (int j = J; j < J + columns; ++j)
              out[i * ld + j] = T(0.5) * (A[i * size + j] + A[j * size + i]);
            for (int j = J + columns; j < J + W; ++j) out[i * ld + j] = T(0);
          }
        }
      }
    }
  }

  // Completes a symmetric matrix (rows, ld) from its lower triangle, of which whole vectors are set.
  // The memory has room for whole blocks; what they leave beyond the matrix is never read.
  static void mirror(T* A, int size, int ld) {
    V position;
    for (int l = 0; l < W; ++l) position[l] = T(l);
    for (int I = 0; I < size; I += W)
      for (int J = 0; J <= I; J += W) {
        V block[W];
        for (int l = 0; l < W; ++l) block[l] = load<V>(A + (I + l) * ld + J);
        transpose<V>(block);
        for (int l = 0; l < W; ++l) {
          T* row = A + (J + l) * ld + I;
          store<V>(row, J < I ? block[l] : select<V>(position > T(l), block[l], load<V>(row)));
        }
      }
  }

  // out (R, C vectors) +- sum_k A(i, k) B(k, :), where A(i, k) = A[i * step_i + k * step_k].
  template <int R, int C, bool MINUS>
  DC_INLINE void block(int depth, const T* A, int step_i, int step_k, const T* B, int ldb, T* out,
                       int ldo) {
    V sum[R][C];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
      for (int j = 0; j < C; ++j) sum[i][j] = load<V>(out + i * ldo + j * W);
    for (int k = 0; k < depth; ++k) {
      V b[C];
#pragma GCC unroll 5
      for (int j = 0; j < C; ++j) b[j] = load<V>(B + k * ldb + j * W);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const V a = splat<V>(A[i * step_i + k * step_k]);
#pragma GCC unroll 5
        for (int j = 0; j < C; ++j) sum[i][j] = MINUS ? sum[i][j] - a * b[j] : sum[i][j] + a * b[j];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
      for (int j = 0; j < C; ++j) store<V>(out + i * ldo + j * W, sum[i][j]);
  }

  template <int R, bool MINUS>
  static void block_row(int vectors, int depth, const T* A, int step_i, int step_k, const T* B,
                           int ldb, T* out, int ldo) {
    while (vectors > 0) {
      // As even a split as possible: a lone vector would leave the multipliers waiting.
      const int parts = (vectors + MOST_COLUMNS - 1) / MOST_COLUMNS;
      const int now = (vectors + parts - 1) / parts;
      switch (now) {
        case 1: block<R, 1, MINUS>(depth, A, step_i, step_k, B, ldb, out, ldo); break;
        case 2: block<R, 2, MINUS>(depth, A, step_i, step_k, B, ldb, out, ldo); break;
        case 3: block<R, 3, MINUS>(depth, A, step_i, step_k, B, ldb, out, ldo); break;
#if DC_BYTES == 64
        case 4: block<R, 4, MINUS>(depth, A, step_i, step_k, B, ldb, out, ldo); break;
        case 5: block<R, 5, MINUS>(depth, A, step_i, step_k, B, ldb, out, ldo); break;
#endif
        default: break;
      }
      vectors -= now;
      B += now * W;
      out += now * W;
    }
  }

  // out (rows, columns) +- A B; with LOWER only the vectors that reach to the diagonal.
  template <bool LOWER, bool MINUS>
  static void add_product(int rows, int columns, int depth, const T* A, int step_i, int step_k,
                          const T* B, int ldb, T* out, int ldo, Ahead& ahead) {
    const auto vectors = [&](int last) {
      const int wanted = LOWER && last < columns ? last : columns;
      return (wanted + W - 1) / W;
    };
    int i = 0;
    for (; i + MOST_ROWS <= rows; i += MOST_ROWS) {
      ahead.fetch();
      block_row<MOST_ROWS, MINUS>(vectors(i + MOST_ROWS), depth, A + i * step_i, step_i, step_k, B,
                                  ldb, out + i * ldo, ldo);
    }
    for (; i < rows; ++i)
      block_row<1, MINUS>(vectors(i + 1), depth, A + i * step_i, step_i, step_k, B, ldb,
                          out + i * ldo, ldo);
  }

  // out (columns) += sum_k a_k B(k, :). Two sums a column, so that additions need not wait.
  template <int C>
  DC_INLINE void combination(int depth, const T* a, const T* B, int ldb, T* out) {
    V even[C], odd[C];
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) {
      even[j] = load<V>(out + j * W);
      odd[j] = V{};
    }
    int k = 0;
    for (; k + 2 <= depth; k += 2) {
      const V first = splat<V>(a[k]), second = splat<V>(a[k + 1]);
#pragma GCC unroll 5
      for (int j = 0; j < C; ++j) {
        even[j] += first * load<V>(B + k * ldb + j * W);
        odd[j] += second * load<V>(B + (k + 1) * ldb + j * W);
      }
    }
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) {
      if (k < depth) even[j] += splat<V>(a[k]) * load<V>(B + k * ldb + j * W);
      store<V>(out + j * W, even[j] + odd[j]);
    }
  }

  static void add_combination(int columns, int depth, const T* a, const T* B, int ldb, T* out) {
    int vectors = (columns + W - 1) / W;
    for (; vectors >= 4; vectors -= 4, B += 4 * W, out += 4 * W)
      combination<4>(depth, a, B, ldb, out);
    switch (vectors) {
      case 1: combination<1>(depth, a, B, ldb, out); break;
      case 2: combination<2>(depth, a, B, ldb, out); break;
      case 3: combination<3>(depth, a, B, ldb, out); break;
      default: break;
    }
  }

  // out_i += row i of A times b. The sums of W rows are added up together, transposed.
  static void add_dots(int rows, int columns, const T* A, int ld, const T* b, T* out) {
    int i = 0;
    for (; i + W <= rows; i += W) {
      V sum[W];
      for (int l = 0; l < W; ++l) sum[l] = V{};
      for (int j = 0; j < columns; j += W) {
        const V x = load<V>(b + j);
        for (int l = 0; l < W; ++l) sum[l] += load<V>(A + (i + l) * ld + j) * x;
      }
      transpose<V>(sum);
      for (int half = W / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
      store<V>(out + i, load<V>(out + i) + sum[0]);
    }
    for (; i < rows; ++i) {
      V sum = V{};
      for (int j = 0; j < columns; j += W) sum += load<V>(A + i * ld + j) * load<V>(b + j);
      out[i] += total(sum);
    }
  }

  DC_INLINE T total(V v) {
    T sum = 0;
    for (int i = 0; i < W; ++i) sum += v[i];
    return sum;
  }

  struct Space {
    T *F, *V_, *V_next, *P, *Q, *Y, *R, *L, *inverse, *pivots, *q, *w, *tau, *b, *v, *k, *Z, *Rk;
    BoxScratch<T, MOST_CONTROLS>* box;

    Space(Sizes s, Arena& arena) {
      const int64_t n = s.n, m = s.m, np = padded(s.n), nmp = padded(s.nm()), T_ = s.T;
      F = arena.take<T>(n * nmp);
      V_ = arena.take<T>(padded(n) * np);
      V_next = arena.take<T>(padded(n) * np);
      P = arena.take<T>(n * nmp);
      Q = arena.take<T>(padded(s.nm()) * nmp);
      Y = arena.take<T>(m * np);
      Z = arena.take<T>(m * np);
      R = arena.take<T>(m * m);
      L = arena.take<T>(m * m);
      inverse = arena.take<T>(m);
      pivots = arena.take<T>(m);
      Rk = arena.take<T>(m);
      q = arena.take<T>(nmp);
      w = arena.take<T>(np);
      b = arena.take<T>(np);
      tau = arena.take<T>(nmp);
      v = arena.take<T>((T_ + 1) * np);
      k = arena.take<T>(T_ * m);
      box = arena.take<BoxScratch<T, MOST_CONTROLS>>(1);
    }
  };

  // Q, on and below the diagonal, from its first summand in Q; P is V F.
  static void expand(int n, int nm, const T* V_next, const T* F, T* P, T* Q, Ahead& ahead) {
    const int np = padded(n), nmp = padded(nm);
    for (int i = 0; i < n * nmp; i += W) store<V>(P + i, V{});
    add_product<false, false>(n, nm, n, V_next, 1, np, F, nmp, P, nmp, ahead);
    add_product<true, false>(nm, nm, n, F, 1, nmp, P, nmp, Q, nmp, ahead);
  }

  // b <- L^-1 b for the rows of b (m, np); the second, L^-T. A finished row is taken off all later
  // ones at once, which do not wait for each other.
  static void solve_lower_rows(int m, int np, const T* L, const T* inverse, T* b) {
    for (int i = 0; i < m; ++i) {
      T* row = b + i * np;
      for (int j = 0; j < np; j += W) store<V>(row + j, load<V>(row + j) * inverse[i]);
      for (int c = i + 1; c < m; ++c) subtract(np, L[c * m + i], row, b + c * np);
    }
  }
  static void solve_upper_rows(int m, int np, const T* L, const T* inverse, T* b) {
    for (int i = m - 1; i >= 0; --i) {
      T* row = b + i * np;
      for (int j = 0; j < np; j += W) store<V>(row + j, load<V>(row + j) * inverse[i]);
      for (int c = 0; c < i; ++c) subtract(np, L[i * m + c], row, b + c * np);
    }
  }
  DC_INLINE void subtract(int np, T factor, const T* row, T* from) {
    for (int j = 0; j < np; j += W)
      store<V>(from + j, load<V>(from + j) - factor * load<V>(row + j));
  }

  static void factor(const Factor<T>& a, const int32_t* samples, int, void* memory) {
    const int n = a.size.n, m = a.size.m, nm = n + m, np = padded(n), nmp = padded(nm);
    const int64_t sample = samples[0], T_ = a.size.T;
    const bool solve = bool(a.x);
    Arena arena{static_cast<char*>(memory), 0};
    Space s(a.size, arena);
    T *K_out = a.K.of(sample), *V_out = a.V.of(sample), *L_out = a.L.of(sample),
      *pivots_out = a.pivots.of(sample);
    const uint8_t* all_free = a.free.of(sample);
    const int64_t H_size = a.diagonal ? nm : nm * nm;

    symmetric_part(a.H_N.of(sample), n, s.V_next, np);
    mirror(s.V_next, n, np);
    copy_out(s.V_next, n, n, V_out + T_ * n * n);
    if (solve) copy_in(a.g_N.of(sample), 1, n, s.v + T_ * np);

    for (int64_t t = T_ - 1; t >= 0; --t) {
      const T* F = whole(a.F.of(sample) + t * a.F.stage, n, nm, s.F);
      const uint8_t* free = all_free + t * m;
      Ahead ahead;
      if (t >= AHEAD) {
        if (a.H.stage) ahead.add(a.H.of(sample) + (t - AHEAD) * a.H.stage, H_size);
        if (a.F.stage) ahead.add(a.F.of(sample) + (t - AHEAD) * a.F.stage, n * nm);
        ahead.add(V_out + (t - AHEAD) * n * n, n * n);
        ahead.add(K_out + (t - AHEAD) * m * n, m * n);
        ahead.in_parts((n + nm) / MOST_ROWS);
      }
      const T* H = a.H.of(sample) + t * a.H.stage;
      if (a.diagonal) {
        for (int i = 0; i < nm * nmp; i += W) store<V>(s.Q + i, V{});
        for (int i = 0; i < nm; ++i) s.Q[i * nmp + i] = H[i];
      } else {
        symmetric_part(H, nm, s.Q, nmp);
      }
      expand(n, nm, s.V_next, F, s.P, s.Q, ahead);
      for (int i = 0; i < m; ++i) {
        for (int j = 0; j <= i; ++j)
          s.R[i * m + j] = free[i] & free[j] ? s.Q[(n + i) * nmp + n + j] : T(i == j);
        for (int j = 0; j < np; j += W)
          store<V>(s.Y + i * np + j, free[i] ? load<V>(s.Q + (n + i) * nmp + j) : V{});
      }
      T* L = L_out + t * m * m;
      cholesky<T>(m, s.R, L, s.inverse, pivots_out + t * m);
      solve_lower_rows(m, np, L, s.inverse, s.Y);
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < padded(i + 1); j += W)
          store<V>(s.V_ + i * np + j, load<V>(s.Q + i * nmp + j));
      add_product<true, true>(n, n, m, s.Y, 1, np, s.Y, np, s.V_, np, ahead);
      mirror(s.V_, n, np);
      solve_upper_rows(m, np, L, s.inverse, s.Y);
      for (int i = 0; i < m * np; i += W) store<V>(s.Y + i, -load<V>(s.Y + i));
      copy_out(s.Y, m, n, K_out + t * m * n);
      copy_out(s.V_, n, n, V_out + t * n * n);
      if (solve)
        backward(n, m, F, s.V_next, s.Y, np, L, s.inverse, free,
                 a.g.of(sample) + t * a.g.stage, a.r.of(sample) + (t + 1) * n, s.v + t * np,
                 s.v + (t + 1) * np, s.k + t * m, s);
      T* swap = s.V_;
      s.V_ = s.V_next;
      s.V_next = swap;
    }
    if (solve)
      forward(a.size, a.F.of(sample), a.F.stage, a.r.of(sample), K_out, V_out, a.x.of(sample),
              a.u.of(sample), a.costate.of(sample), s);
  }

  // v and k of one stage; K has rows of ldk.
  static void backward(int n, int m, const T* F, const T* V_next, const T* K, int ldk,
                          const T* L, const T* inverse, const uint8_t* free, const T* g,
                          const T* r, T* v, const T* v_next, T* k, Space& s) {
    const int nm = n + m, np = padded(n), nmp = padded(nm);
    bool moved = false;
    for (int i = 0; i < n; ++i) moved |= r[i] != T(0);
    for (int j = 0; j < np; j += W) store<V>(s.w + j, load<V>(v_next + j));
    if (moved) add_combination(n, n, r, V_next, np, s.w);
    copy_in(g, 1, nm, s.q);
    add_combination(nm, n, s.w, F, nmp, s.q);
    for (int i = 0; i < m; ++i) {
      s.Rk[i] = free[i] ? s.q[n + i] : T(0);
      k[i] = -s.Rk[i];
    }
    solve_lower<T>(m, 1, L, inverse, k);
    solve_upper<T>(m, 1, L, inverse, k);
    for (int j = 0; j < np; j += W) store<V>(v + j, load<V>(s.q + j));
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) v[j] += K[i * ldk + j] * s.Rk[i];
    for (int j = n; j < np; ++j) v[j] = T(0);
  }

  // Roll-out under u = K x + k from the gains and Hessians in the caller's layout, and costates.
  static void forward(Sizes size, const T* F_all, int64_t F_stage, const T* r, const T* K,
                      const T* V_all, T* x, T* u, T* costate, Space& s) {
    const int n = size.n, m = size.m, nm = n + m, np = padded(n), nmp = padded(nm);
    for (int j = 0; j < nmp; ++j) s.tau[j] = T(0);
    for (int i = 0; i < n; ++i) x[i] = s.tau[i] = r[i];
    for (int64_t t = 0; t <= size.T; ++t) {
      T* lambda = costate + t * n;
      const T* V_ = whole(V_all + t * n * n, n, n, s.V_next);
      for (int j = 0; j < np; j += W) store<V>(s.b + j, load<V>(s.v + t * np + j));
      add_combination(n, n, s.tau, V_, np, s.b);
      for (int i = 0; i < n; ++i) lambda[i] = s.b[i];
      if (t == size.T) break;
      const T *Kt = whole(K + t * m * n, m, n, s.Z), *F = whole(F_all + t * F_stage, n, nm, s.F);
      T* ut = u + t * m;
      for (int i = 0; i < m; ++i) ut[i] = s.k[t * m + i];
      add_dots(m, n, Kt, np, s.tau, ut);
      for (int i = 0; i < m; ++i) s.tau[n + i] = ut[i];
      T* following = x + (t + 1) * n;
      for (int i = 0; i < n; ++i) following[i] = r[(t + 1) * n + i];
      add_dots(n, nm, F, nmp, s.tau, following);
      for (int i = 0; i < n; ++i) s.tau[i] = following[i];
    }
  }

  static void solve(const Solve<T>& a, const int32_t* samples, int, void* memory) {
    const int n = a.size.n, m = a.size.m, nm = n + m, np = padded(n);
    const int64_t sample = samples[0], T_ = a.size.T;
    Arena arena{static_cast<char*>(memory), 0};
    Space s(a.size, arena);
    const T *K = a.K.of(sample), *V_all = a.V.of(sample);
    copy_in(a.g_N.of(sample), 1, n, s.v + T_ * np);
    for (int64_t t = T_ - 1; t >= 0; --t) {
      const T* L = a.L.of(sample) + t * m * m;
      Ahead ahead;
      if (t >= AHEAD) {
        if (a.F.stage) ahead.add(a.F.of(sample) + (t - AHEAD) * a.F.stage, n * nm);
        ahead.add(K + (t - AHEAD) * m * n, m * n);
        ahead.in_parts(1);
        ahead.fetch();
      }
      for (int i = 0; i < m; ++i) s.inverse[i] = T(1) / L[i * m + i];
      backward(n, m, whole(a.F.of(sample) + t * a.F.stage, n, nm, s.F),
               whole(V_all + (t + 1) * n * n, n, n, s.V_next), K + t * m * n, n, L, s.inverse,
               a.free.of(sample) + t * m, a.g.of(sample) + t * a.g.stage,
               a.r.of(sample) + (t + 1) * n, s.v + t * np, s.v + (t + 1) * np, s.k + t * m, s);
    }
    forward(a.size, a.F.of(sample), a.F.stage, a.r.of(sample), K, V_all, a.x.of(sample),
            a.u.of(sample), a.costate.of(sample), s);
  }

  static void sweep(const Sweep<T>& a, const int32_t* samples, int, void* memory) {
    const int64_t sample = samples[0];
    Arena arena{static_cast<char*>(memory), 0};
    Space s(a.size, arena);
    for (Curvature curvature : CURVATURES) {
      if (!a.D && curvature != Curvature::gauss_newton) continue;
      const bool positive = sweep_once(a, sample, s, curvature);
      *a.positive.of(sample) = uint8_t(positive);
      const T decrease = -(*a.linear.of(sample) + T(0.5) * *a.quadratic.of(sample));
      const bool accepted =
          curvature != Curvature::gauss_newton || decrease >= *a.worthwhile.of(sample);
      if (positive && accepted) return;
    }
  }

  static bool sweep_once(const Sweep<T>& a, int64_t sample, Space& s, Curvature curvature) {
    const bool curved = curvature != Curvature::gauss_newton;
    const int n = a.size.n, m = a.size.m, nm = n + m, np = padded(n), nmp = padded(nm);
    const int64_t T_ = a.size.T;
    const T mu = a.regularisation.of(sample)[0];
    T linear = 0, quadratic = 0;
    bool positive = true;
    symmetric_part(a.H_N.of(sample), n, s.V_next, np);
    mirror(s.V_next, n, np);
    copy_in(a.g_N.of(sample), 1, n, s.v);
    for (int64_t t = T_ - 1; t >= 0; --t) {
      const T* F = whole(a.F.of(sample) + t * a.F.stage, n, nm, s.F);
      T *K = s.Y, *k = a.k.of(sample) + t * m;
      Ahead ahead;
      if (t >= AHEAD) {
        if (a.H.stage) ahead.add(a.H.of(sample) + (t - AHEAD) * a.H.stage, nm * nm);
        if (a.F.stage) ahead.add(a.F.of(sample) + (t - AHEAD) * a.F.stage, n * nm);
        ahead.in_parts((n + nm) / MOST_ROWS);
      }
      copy_in(a.H.of(sample) + t * a.H.stage, nm, nm, s.Q);
      if (curved) {
        const T* D = a.D.of(sample) + t * a.D.stage;
        for (int i = 0; i < nm; ++i)
          for (int j = 0; j <= i; ++j) s.Q[i * nmp + j] += D[i * nm + j];
      }
      expand(n, nm, s.V_next, F, s.P, s.Q, ahead);
      copy_in(a.g.of(sample) + t * a.g.stage, 1, nm, s.q);
      add_combination(nm, n, s.v, F, nmp, s.q);
      for (int i = 0; i < m; ++i)
        for (int j = 0; j <= i; ++j) {
          const T entry = s.Q[(n + i) * nmp + n + j];
          s.R[i * m + j] = s.R[j * m + i] = entry;
        }
      if (curvature == Curvature::convexified) convexify<T>(m, s.R, s.L, s.Rk);
      for (int i = 0; i < m; ++i)
        for (int j = 0; j < m; ++j)
          s.L[i * m + j] = i == j ? s.R[i * m + j] + mu : s.R[i * m + j];
      box_qp<T, MOST_CONTROLS>(m, s.L, s.q + n, a.lower.of(sample) + t * a.lower.stage,
                               a.upper.of(sample) + t * a.upper.stage, k, *s.box);
      for (int i = 0; i < m; ++i) {
        positive &= s.box->pivots[i] > 0;
        for (int j = 0; j < np; j += W)
          store<V>(K + i * np + j, s.box->free[i] ? -load<V>(s.Q + (n + i) * nmp + j) : V{});
      }
      solve_lower_rows(m, np, s.box->L, s.box->inverse, K);
      solve_upper_rows(m, np, s.box->L, s.box->inverse, K);
      copy_out(K, m, n, a.K.of(sample) + t * m * n);
      multiply<T>(m, s.R, k, s.Rk);
      for (int i = 0; i < m; ++i) {
        linear += s.q[n + i] * k[i];
        quadratic += k[i] * s.Rk[i];
        for (int j = 0; j < np; j += W) {
          V sum = V{};
          for (int c = 0; c < m; ++c) sum += s.R[i * m + c] * load<V>(K + c * np + j);
          store<V>(s.Z + i * np + j, load<V>(s.Q + (n + i) * nmp + j) + T(0.5) * sum);
        }
      }
      for (int j = 0; j < n; ++j) {
        T sum = s.q[j];
        for (int c = 0; c < m; ++c)
          sum += s.Q[(n + c) * nmp + j] * k[c] + K[c * np + j] * (s.q[n + c] + s.Rk[c]);
        s.v[j] = sum;
      }
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < padded(i + 1); j += W)
          store<V>(s.V_ + i * np + j, load<V>(s.Q + i * nmp + j));
      add_product<true, false>(n, n, m, K, 1, np, s.Z, np, s.V_, np, ahead);
      add_product<true, false>(n, n, m, s.Z, 1, np, K, np, s.V_, np, ahead);
      mirror(s.V_, n, np);
      T* swap = s.V_;
      s.V_ = s.V_next;
      s.V_next = swap;
    }
    *a.linear.of(sample) = linear;
    *a.quadratic.of(sample) = quadratic;
    return positive;
  }

  static int64_t bytes(Sizes size) {
    Arena arena{nullptr, 0};
    Space(size, arena);
    return arena.used;
  }
};

}  // namespace DC_ISA
