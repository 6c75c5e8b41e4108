// What a kernel is given: where each sample's data lie. Shared by every instruction set.
#pragma once

#include <stdint.h>

namespace diffcontrol {

// An array with leading batch axes, which may be broadcast, and then its own.
template <class T>
struct Operand {
  T* data = nullptr;
  int64_t stride = 0;                // from one sample to the next, if `offsets` is null
  const int64_t* offsets = nullptr;  // of every sample, where several batch axes mix
  int64_t stage = 0;                 // from one stage to the next; zero if every stage is the same

  T* of(int64_t sample) const { return data + (offsets ? offsets[sample] : sample * stride); }
  explicit operator bool() const { return data != nullptr; }
};

struct Sizes {
  int n, m, T;
  int nm() const { return n + m; }
};

// Symbols as in `_kernel/__init__.py`. Outputs without data are not wanted.
template <class T>
struct Factor {
  Sizes size;
  bool diagonal = false;  // only the diagonals of H are given
  Operand<const T> H, H_N, F;
  Operand<const uint8_t> free;
  Operand<T> K, V, L, pivots;
  // Also solve for this right-hand side, if there is one.
  Operand<const T> g, g_N, r;
  Operand<T> x, u, costate;
};

template <class T>
struct Solve {
  Sizes size;
  Operand<const T> F;
  Operand<const uint8_t> free;
  Operand<const T> K, V, L, g, g_N, r;
  Operand<T> x, u, costate;
};

template <class T>
struct Sweep {
  Sizes size;
  Operand<const T> H, D, H_N, F, g, g_N, lower, upper, regularisation, worthwhile;
  Operand<T> K, k, linear, quadratic;
  Operand<uint8_t> positive;
};

// out (stages, rows, columns) = scale (p q' + r s'), with the scale a power of two.
template <class T>
struct Outer {
  int stages, rows, columns;
  T scale;
  Operand<const T> p, q, r, s;
  Operand<T> out;
};

// With which Hessian a sweep is made; see `_kernel/box_sweep.py`.
enum class Curvature { exact, gauss_newton, convexified };

// Kernels of one instruction set. `samples` names `count <= width(size)` samples to work on;
// `scratch` is memory of `scratch_bytes(size)`, aligned to 64.
template <class T>
struct Kernels {
  int (*width)(Sizes size);
  int64_t (*scratch_bytes)(Sizes size);
  void (*factor)(const Factor<T>&, const int32_t* samples, int count, void* scratch);
  void (*solve)(const Solve<T>&, const int32_t* samples, int count, void* scratch);
  void (*sweep)(const Sweep<T>&, const int32_t* samples, int count, void* scratch);
  void (*outer)(const Outer<T>&, int64_t sample);
};

struct InstructionSet {
  const char* name;
  bool (*available)();
  Kernels<double> f64;
  Kernels<float> f32;
};

}  // namespace diffcontrol
