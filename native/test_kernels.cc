// A program of its own that runs every kernel of every instruction set of this machine, to be built
// with sanitisers (`make sanitise`). Solutions are checked against the equations they must satisfy.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "arguments.h"

namespace diffcontrol {
extern const InstructionSet avx512, avx2, portable;
}

namespace {

using namespace diffcontrol;

template <class T>
const Kernels<T>& kernels(const InstructionSet& set);
template <>
const Kernels<double>& kernels<double>(const InstructionSet& set) {
  return set.f64;
}
template <>
const Kernels<float>& kernels<float>(const InstructionSet& set) {
  return set.f32;
}

// An array of exactly the size that the kernel may touch, so that a sanitiser sees one step more.
template <class T>
struct Array {
  std::vector<T> data;
  int64_t core;

  Array(int64_t samples, int64_t core) : data(samples * core), core(core) {}
  T* of(int64_t sample) { return data.data() + sample * core; }
  Operand<const T> in(int64_t stage = 0) const {
    Operand<const T> a;
    a.data = data.data();
    a.stride = core;
    a.stage = stage;
    return a;
  }
  Operand<T> out() {
    Operand<T> a;
    a.data = data.data();
    a.stride = core;
    return a;
  }
};

template <class T>
struct Problem {
  int n, m, T_, nm, samples;
  Array<T> H, D, H_N, F, g, g_N, r, lower, upper, mu, worthwhile;
  Array<uint8_t> free;

  Problem(int n, int m, int T_, int samples, unsigned seed)
      : n(n), m(m), T_(T_), nm(n + m), samples(samples), H(samples, T_ * nm * nm),
        D(samples, T_ * nm * nm), H_N(samples, n * n), F(samples, T_ * n * nm),
        g(samples, T_ * nm), g_N(samples, n), r(samples, (T_ + 1) * n), lower(samples, T_ * m),
        upper(samples, T_ * m), mu(samples, 1), worthwhile(samples, 1), free(samples, T_ * m) {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal;
    for (auto* a : {&F, &g, &g_N, &r})
      for (T& value : a->data) value = T(0.5 * normal(engine) / std::sqrt(double(nm)));
    const auto symmetric = [&](T* A, int size, double diagonal, double spread) {
      for (int i = 0; i < size; ++i)
        for (int j = 0; j <= i; ++j)
          A[i * size + j] = A[j * size + i] = T(i == j ? diagonal : spread * normal(engine) / size);
    };
    for (int b = 0; b < samples; ++b) {
      symmetric(H_N.of(b), n, 1.0, 0.3);
      for (int t = 0; t < T_; ++t) {
        symmetric(H.of(b) + t * nm * nm, nm, 1.0, 0.3);
        // Every third sample has a curvature that is not convex, so that sweeps fall back.
        symmetric(D.of(b) + t * nm * nm, nm, b % 3 == 1 ? -1.5 : 0.1, 0.2);
      }
      for (int i = 0; i < T_ * m; ++i) {
        free.of(b)[i] = normal(engine) > -0.5;
        lower.of(b)[i] = T(-std::abs(normal(engine)));
        upper.of(b)[i] = T(std::abs(normal(engine)));
      }
      worthwhile.of(b)[0] = T(b % 2);
    }
  }
};

double worst = 0;
int failures = 0;

void expect(bool good, const char* what, const char* set, int n, int m, int T_, int samples) {
  if (good) return;
  ++failures;
  std::printf("%s: %s fails for n=%d m=%d T=%d samples=%d\n", set, what, n, m, T_, samples);
}

// The largest violation of the equations of `riccati.py` by a solution.
template <class T>
double residual(Problem<T>& p, Array<T>& x, Array<T>& u, Array<T>& costate) {
  double most = 0;
  const int n = p.n, m = p.m, nm = p.nm;
  for (int b = 0; b < p.samples; ++b) {
    const T *X = x.of(b), *U = u.of(b), *c = costate.of(b), *r = p.r.of(b);
    for (int i = 0; i < n; ++i) most = std::max(most, std::abs(double(X[i] - r[i])));
    for (int t = 0; t < p.T_; ++t) {
      std::vector<double> tau(nm);
      for (int i = 0; i < nm; ++i) tau[i] = i < n ? X[t * n + i] : U[t * m + i - n];
      const T *H = p.H.of(b) + t * nm * nm, *F = p.F.of(b) + t * n * nm;
      for (int i = 0; i < nm; ++i) {
        double row = p.g.of(b)[t * nm + i] - (i < n ? double(c[t * n + i]) : 0.0);
        for (int j = 0; j < nm; ++j) row += H[i * nm + j] * tau[j];
        for (int j = 0; j < n; ++j) row += double(F[j * nm + i]) * c[(t + 1) * n + j];
        if (i >= n && !p.free.of(b)[t * m + i - n]) row = tau[i];
        most = std::max(most, std::abs(row));
      }
      for (int i = 0; i < n; ++i) {
        double next = double(r[(t + 1) * n + i]) - X[(t + 1) * n + i];
        for (int j = 0; j < nm; ++j) next += F[i * nm + j] * tau[j];
        most = std::max(most, std::abs(next));
      }
    }
    for (int i = 0; i < n; ++i) {
      double row = double(p.g_N.of(b)[i]) - c[p.T_ * n + i];
      for (int j = 0; j < n; ++j) row += double(p.H_N.of(b)[i * n + j]) * X[p.T_ * n + j];
      most = std::max(most, std::abs(row));
    }
  }
  return most;
}

template <class T>
void run(const InstructionSet& set, int n, int m, int T_, int samples) {
  const Kernels<T>& kernel = kernels<T>(set);
  Problem<T> p(n, m, T_, samples, 1000 * n + 100 * m + T_);
  const int nm = n + m;
  const Sizes size{n, m, T_};
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 1e-3;
  const auto say = [&](bool good, const char* what) {
    expect(good, what, set.name, n, m, T_, samples);
  };

  std::vector<char> memory(kernel.scratch_bytes(size) + 64);
  void* scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  std::vector<int32_t> order(samples);
  for (int i = 0; i < samples; ++i) order[i] = samples - 1 - i;
  const auto groups = [&](auto&& function) {
    const int width = kernel.width(size);
    for (int first = 0; first < samples; first += width)
      function(order.data() + first, std::min(width, samples - first));
  };

  Array<T> K(samples, T_ * m * n), V(samples, (T_ + 1) * n * n), L(samples, T_ * m * m),
      pivots(samples, T_ * m), x(samples, (T_ + 1) * n), u(samples, T_ * m),
      costate(samples, (T_ + 1) * n);
  Factor<T> factor;
  factor.size = size;
  factor.H = p.H.in(nm * nm);
  factor.H_N = p.H_N.in();
  factor.F = p.F.in(n * nm);
  factor.free = p.free.in();
  factor.K = K.out();
  factor.V = V.out();
  factor.L = L.out();
  factor.pivots = pivots.out();
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });

  Solve<T> solve;
  solve.size = size;
  solve.F = factor.F;
  solve.free = factor.free;
  solve.K = K.in(m * n);
  solve.V = V.in(n * n);
  solve.L = L.in(m * m);
  solve.g = p.g.in(nm);
  solve.g_N = p.g_N.in();
  solve.r = p.r.in(n);
  solve.x = x.out();
  solve.u = u.out();
  solve.costate = costate.out();
  groups([&](const int32_t* s, int count) { kernel.solve(solve, s, count, scratch); });
  const double apart = residual(p, x, u, costate);
  say(apart < tolerance, "factor, solve");
  worst = std::max(worst, apart / tolerance);

  factor.g = solve.g;
  factor.g_N = solve.g_N;
  factor.r = solve.r;
  factor.x = solve.x;
  factor.u = solve.u;
  factor.costate = solve.costate;
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });
  say(residual(p, x, u, costate) < tolerance, "factor with solve");

  Array<T> K_s(samples, T_ * m * n), k(samples, T_ * m), linear(samples, 1), quadratic(samples, 1);
  Array<uint8_t> positive(samples, 1);
  Sweep<T> sweep;
  sweep.size = size;
  sweep.H = factor.H;
  sweep.D = p.D.in(nm * nm);
  sweep.H_N = factor.H_N;
  sweep.F = factor.F;
  sweep.g = solve.g;
  sweep.g_N = solve.g_N;
  sweep.lower = p.lower.in(m);
  sweep.upper = p.upper.in(m);
  sweep.regularisation = p.mu.in();
  sweep.worthwhile = p.worthwhile.in();
  sweep.K = K_s.out();
  sweep.k = k.out();
  sweep.linear = linear.out();
  sweep.quadratic = quadratic.out();
  sweep.positive = positive.out();
  groups([&](const int32_t* s, int count) { kernel.sweep(sweep, s, count, scratch); });
  bool inside = true, downhill = true, all_positive = true;
  for (size_t i = 0; i < k.data.size(); ++i)
    inside &= k.data[i] >= p.lower.data[i] && k.data[i] <= p.upper.data[i];
  for (int b = 0; b < samples; ++b) {
    downhill &= linear.data[b] <= T(0);
    all_positive &= positive.data[b] == 1;
  }
  say(inside, "sweep: steps inside the bounds");
  say(downhill, "sweep: steps downhill");
  say(all_positive, "sweep: a positive definite Hessian");

  // With p = s and q = r the outer products are symmetric to the last bit.
  Array<T> square(samples, T_ * nm * nm), wide(samples, T_ * n * nm), next(samples, T_ * n);
  for (T& value : next.data) value = T(0.25);
  const Operand<const T> g = p.g.in(), second = p.F.in();
  Outer<T> curvature{T_, nm, nm, T(0.5), g, second, second, g, square.out()};
  Outer<T> dynamics{T_, n, nm, T(1), next.in(), g, next.in(), second, wide.out()};
  bool symmetric = true, right = true;
  for (int b = 0; b < samples; ++b) {
    kernel.outer(curvature, b);
    kernel.outer(dynamics, b);
    for (int t = 0; t < T_; ++t) {
      const T *a = p.g.of(b) + t * nm, *c = p.F.of(b) + t * nm;
      for (int j = 0; j < nm; ++j) {
        for (int i = 0; i < nm; ++i) {
          const T* out = square.of(b) + t * nm * nm;
          const T expected = T(0.5) * (a[i] * c[j] + c[i] * a[j]);
          symmetric &= out[i * nm + j] == out[j * nm + i];
          right &= std::abs(out[i * nm + j] - expected) <= T(1e-6);
        }
        for (int i = 0; i < n; ++i)
          right &= std::abs(wide.of(b)[(t * n + i) * nm + j] - T(0.25) * (a[j] + c[j])) <= T(1e-6);
      }
    }
  }
  say(symmetric, "outer products: symmetric");
  say(right, "outer products");

  // Without bounds and with one Hessian the sweep is the factorisation with every control free.
  const T infinite = std::numeric_limits<T>::infinity();
  std::fill(p.lower.data.begin(), p.lower.data.end(), -infinite);
  std::fill(p.upper.data.begin(), p.upper.data.end(), infinite);
  std::fill(p.free.data.begin(), p.free.data.end(), 1);
  sweep.D = {};
  groups([&](const int32_t* s, int count) { kernel.sweep(sweep, s, count, scratch); });
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });
  double gap = 0;
  for (size_t i = 0; i < K.data.size(); ++i)
    gap = std::max(gap, std::abs(double(K.data[i] - K_s.data[i])));
  say(gap < tolerance, "sweep equals factor");

  // Only the diagonals of H, against H without the rest.
  Array<T> diagonal(samples, T_ * nm);
  for (int b = 0; b < samples; ++b)
    for (int t = 0; t < T_; ++t)
      for (int i = 0; i < nm; ++i)
        for (int j = 0; j < nm; ++j) {
          T& entry = p.H.of(b)[(t * nm + i) * nm + j];
          if (i == j) diagonal.of(b)[t * nm + i] = entry;
          if (i != j) entry = T(0);
        }
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });
  K_s.data = K.data;
  factor.H = diagonal.in(nm);
  factor.diagonal = true;
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });
  say(K_s.data == K.data, "diagonal");
  factor.H = p.H.in(nm * nm);
  factor.diagonal = false;

  // One sample's data for all, and one stage's for all stages.
  for (Operand<const T>* a : {&factor.H, &factor.F}) a->stage = a->stride = 0;
  factor.H_N.stride = 0;
  groups([&](const int32_t* s, int count) { kernel.factor(factor, s, count, scratch); });
  bool same = true;
  for (int b = 0; b < samples; ++b)
    for (int i = 0; i < T_ * m * n; ++i)
      same &= std::abs(K.of(b)[i] - K.of(0)[i]) <= T(1e-5) * (1 + std::abs(K.of(0)[i]));
  say(same, "shared data");
}

}  // namespace

int main() {
  const int sizes[][3] = {{1, 1, 1},  {2, 1, 9},  {3, 1, 20}, {4, 1, 17}, {5, 1, 3}, {3, 3, 5},
                          {6, 2, 11}, {9, 4, 4},  {10, 1, 6}, {12, 4, 8}, {13, 5, 3}, {17, 3, 2},
                          {32, 8, 3}, {2, 6, 5}};
  for (const InstructionSet* set : {&avx512, &avx2, &portable}) {
    if (!set->available()) {
      std::printf("%s: not on this machine\n", set->name);
      continue;
    }
    for (const auto& s : sizes)
      for (int samples : {1, 2, 7, 8, 17}) {
        run<double>(*set, s[0], s[1], s[2], samples);
        run<float>(*set, s[0], s[1], s[2], samples);
      }
    std::printf("%s: done\n", set->name);
  }
  std::printf("%d failures; largest error %.2g of what is allowed\n", failures, worst);
  return failures == 0 ? 0 : 1;
}
