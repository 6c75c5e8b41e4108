// Everything compiled for one instruction set. A file that includes this says which:
//   DC_ISA the namespace, DC_BYTES the width of its vectors, DC_NAME, DC_AVAILABLE a condition.
#pragma once

#include "outer.h"
#include "rows.h"

namespace DC_ISA {

// With more states than this, the matrices of as many problems as there are lanes leave the caches.
constexpr int MOST_LANE_STATES = 16;
// From this many states on a single problem fills the vectors by itself.
constexpr int SMALLEST_ROWS = 10;

template <class T>
struct Choose {
  using V = typename Widest<T>::type;
  using OnLanes = Lanes<V, 0, 0>;

  static int width(Sizes size) { return size.n > MOST_LANE_STATES ? 1 : Simd<V>::W; }

  static int64_t scratch_bytes(Sizes size) {
    const int64_t lanes = size.n > MOST_LANE_STATES ? 0 : OnLanes::bytes(size);
    const int64_t rows = size.n < SMALLEST_ROWS ? 0 : Rows<V>::bytes(size);
    return lanes > rows ? lanes : rows;
  }

  // Lanes cost the same however few are used.
  static bool in_rows(Sizes size, int count) {
    return size.n > MOST_LANE_STATES || (size.n >= SMALLEST_ROWS && 2 * count <= Simd<V>::W);
  }

// A group too small to be worth the lanes is worked on one by one.
#define DC_KERNEL(NAME, ARGUMENTS)                                                               \
  static void NAME(const ARGUMENTS<T>& a, const int32_t* samples, int count, void* scratch) {     \
    if (in_rows(a.size, count)) {                                                                 \
      for (int i = 0; i < count; ++i) Rows<V>::NAME(a, samples + i, 1, scratch);                  \
      return;                                                                                     \
    }                                                                                             \
    if (count <= 1) return Lanes<T, 0, 0>::NAME(a, samples, 1, scratch);                          \
    if (a.size.n == 4 && a.size.m == 1) return Lanes<V, 4, 1>::NAME(a, samples, count, scratch);  \
    if (a.size.n == 5 && a.size.m == 1) return Lanes<V, 5, 1>::NAME(a, samples, count, scratch);  \
    if (a.size.n == 3 && a.size.m == 1) return Lanes<V, 3, 1>::NAME(a, samples, count, scratch);  \
    OnLanes::NAME(a, samples, count, scratch);                                                    \
  }
  DC_KERNEL(factor, Factor)
  DC_KERNEL(solve, Solve)
  DC_KERNEL(sweep, Sweep)
#undef DC_KERNEL
};

inline bool available() { return DC_AVAILABLE; }

}  // namespace DC_ISA

#define DC_TABLE(T)                                                                     \
  {                                                                                     \
    DC_ISA::Choose<T>::width, DC_ISA::Choose<T>::scratch_bytes, DC_ISA::Choose<T>::factor, \
        DC_ISA::Choose<T>::solve, DC_ISA::Choose<T>::sweep, DC_ISA::OuterProducts<T>::run \
  }
