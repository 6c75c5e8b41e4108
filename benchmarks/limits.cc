// What one core can do: the peak rate of fused multiply-adds, and how fast memory of given sizes is
// read and written. Arguments: sizes in bytes. Prints one JSON object; the best of several runs.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef double Vector __attribute__((vector_size(kBytes), may_alias));
constexpr int kLanes = kBytes / sizeof(double);

// Tells the compiler that memory and the value are looked at here, so nothing is left out.
static void keep(Vector& value) { asm volatile("" : "+m"(value) : : "memory"); }

template <class Function>
static double best_seconds(int runs, Function function) {
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    const auto started = std::chrono::steady_clock::now();
    function();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
    best = std::min(best, taken.count());
  }
  return best;
}

// Enough independent chains to hide the latency of an operation on every unit of the core.
static double flops_per_second() {
  constexpr int kChains = 16, kSteps = 1000000;
  Vector chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = Vector{} + i;
  const double seconds = best_seconds(20, [&] {
    Vector local[kChains], scale = Vector{} + 0.999999, shift = Vector{} + 1e-9;
    std::memcpy(local, chains, sizeof(local));
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) local[i] = local[i] * scale + shift;
    }
    std::memcpy(chains, local, sizeof(local));
    keep(chains[0]);
  });
  return 2.0 * kSteps * kChains * kLanes / seconds;
}

struct Bandwidth {
  double read, write;  // bytes per second
};

static Bandwidth bandwidth(size_t bytes) {
  constexpr size_t kStride = 4 * kLanes;
  const size_t count = bytes / sizeof(double) / kStride * kStride;
  double* data = static_cast<double*>(std::aligned_alloc(64, (count * sizeof(double) + 63) / 64 * 64));
  if (data == nullptr) return {0.0, 0.0};
  std::fill(data, data + count, 1.0);
  const size_t repeats = std::max<size_t>(1, (size_t{200} << 20) / (count * sizeof(double)));
  const auto at = [&](size_t i) { return reinterpret_cast<Vector*>(data + i); };
  Vector sums[4] = {};
  const double reading = best_seconds(15, [&] {
    for (size_t repeat = 0; repeat < repeats; ++repeat) {
      Vector a = sums[0], b = sums[1], c = sums[2], d = sums[3];
      for (size_t i = 0; i < count; i += kStride) {
        a += *at(i);
        b += *at(i + kLanes);
        c += *at(i + 2 * kLanes);
        d += *at(i + 3 * kLanes);
      }
      sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
      keep(sums[0]);
    }
  });
  Vector value = Vector{} + 2.0;
  const double writing = best_seconds(15, [&] {
    for (size_t repeat = 0; repeat < repeats; ++repeat) {
      const Vector now = value;
      for (size_t i = 0; i < count; i += kStride) {
        *at(i) = now;
        *at(i + kLanes) = now;
        *at(i + 2 * kLanes) = now;
        *at(i + 3 * kLanes) = now;
      }
      keep(value);
    }
  });
  std::free(data);
  const double moved = double(repeats) * count * sizeof(double);
  return {moved / reading, moved / writing};
}

int main(int argc, char** argv) {
  std::printf("{\"flops\": %.6g, \"read\": [", flops_per_second());
  Bandwidth found[16] = {};
  const int sizes = std::min(argc - 1, 16);
  for (int i = 0; i < sizes; ++i) found[i] = bandwidth(std::strtoull(argv[i + 1], nullptr, 10));
  for (int i = 0; i < sizes; ++i) std::printf("%s%.6g", i ? ", " : "", found[i].read);
  std::printf("], \"write\": [");
  for (int i = 0; i < sizes; ++i) std::printf("%s%.6g", i ? ", " : "", found[i].write);
  std::printf("]}\n");
}
