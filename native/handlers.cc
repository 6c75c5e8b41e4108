// The door from XLA: checks every shape, finds every sample's data, hands groups of samples to
// threads, and picks the kernels of the best instruction set that this machine has.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "arguments.h"
#include "helpers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace diffcontrol {

extern const InstructionSet avx512, avx2, portable;

namespace {

const InstructionSet& best() {
  static const InstructionSet& chosen = [] () -> const InstructionSet& {
    const char* wanted = std::getenv("DIFFCONTROL_INSTRUCTION_SET");
    for (const InstructionSet* set : {&avx512, &avx2, &portable})
      if (set->available() && (!wanted || !std::strcmp(wanted, set->name))) return *set;
    return portable;
  }();
  return chosen;
}

std::atomic<int> most_threads{0};  // 0: as many as the machine has

template <class T>
const Kernels<T>& kernels();
template <>
const Kernels<double>& kernels<double>() {
  return best().f64;
}
template <>
const Kernels<float>& kernels<float>() {
  return best().f32;
}

// Below this many multiplications a second thread costs more than it brings.
constexpr double SMALLEST_SHARED_WORK = 1e5;

// Counts the calls that are under way.
struct Busy {
  static inline std::atomic<int> calls{0};
  const int others = calls.fetch_add(1);
  ~Busy() { calls.fetch_sub(1); }
};

// Runs `run(samples, count, scratch)` over groups of at most `width` of the `samples`.
template <class Run>
ffi::Error over_groups(ffi::ThreadPool& pool, const std::vector<int32_t>& samples, int width,
                       int64_t scratch_bytes, double multiplications, const Run& run) {
  const int64_t count = samples.size();
  if (count == 0) return ffi::Error::Success();
  auto work = std::make_shared<Work>();
  work->groups = (count + width - 1) / width;
  work->scratch_bytes = scratch_bytes;
  work->run = [&](int64_t group, void* scratch) {
    const int64_t first = group * width;
    run(samples.data() + first, int(std::min<int64_t>(width, count - first)), scratch);
  };
  int64_t threads = most_threads > 0 ? most_threads.load() : int64_t(pool.num_threads());
  threads = std::min<int64_t>(std::min<int64_t>(threads, work->groups),
                              1 + int64_t(multiplications * count / SMALLEST_SHARED_WORK));
  // Calls that run at the same time, for several devices, share the threads.
  Busy busy;
  threads -= busy.others;
  if (threads > 1) Helpers::all().ask(work, int(threads - 1));
  work->help();
  // Helpers that have begun finish soon; those that have not are not waited for.
  while (work->done.load(std::memory_order_acquire) < work->groups) std::this_thread::yield();
  if (work->failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  return ffi::Error::Success();
}

// Reads arrays of one call: leading batch axes, each of the call's size or of size one.
class Call {
 public:
  explicit Call(ffi::Span<const int64_t> batch) : batch_(batch.begin(), batch.end()) {
    for (int64_t size : batch_) count_ *= size;
  }

  int64_t count() const { return count_; }
  const std::string& error() const { return error_; }

  // `core` are the axes after the batch. The first of them may be one if `stages`: then every stage
  // has the same values.
  template <class T>
  Operand<T> operand(const char* name, void* data, ffi::AnyBuffer::Dimensions shape,
                     std::vector<int64_t> core, bool stages = false) {
    Operand<T> out;
    const size_t rank = batch_.size();
    bool fits = shape.size() == rank + core.size();
    bool same = stages && fits && shape[rank] == 1 && core[0] != 1;
    if (same) core[0] = 1;
    int64_t size = 1;
    for (size_t i = 0; fits && i < core.size(); ++i) {
      fits = shape[rank + i] == core[i];
      size *= core[i];
    }
    bool all = true, none = true;
    for (size_t i = 0; fits && i < rank; ++i) {
      fits = shape[i] == batch_[i] || shape[i] == 1;
      if (batch_[i] == 1) continue;
      (shape[i] == 1 ? all : none) = false;
    }
    if (!fits) {
      if (error_.empty()) error_ = std::string("diffcontrol: `") + name + "` has a wrong shape";
      return out;
    }
    out.data = static_cast<T*>(data);
    out.stage = same || core.empty() || !stages ? 0 : size / core[0];
    if (all) {
      out.stride = size;
    } else if (!none) {
      offsets_.push_back(offsets(shape, size));
      out.offsets = offsets_.back()->data();
    }
    return out;
  }

 private:
  std::unique_ptr<std::vector<int64_t>> offsets(ffi::AnyBuffer::Dimensions shape, int64_t size) {
    auto out = std::make_unique<std::vector<int64_t>>(count_);
    std::vector<int64_t> stride(batch_.size()), index(batch_.size(), 0);
    int64_t step = size;
    for (size_t i = batch_.size(); i-- > 0;) {
      stride[i] = shape[i] == 1 ? 0 : step;
      step *= shape[i];
    }
    for (int64_t sample = 0; sample < count_; ++sample) {
      int64_t offset = 0;
      for (size_t i = 0; i < batch_.size(); ++i) offset += index[i] * stride[i];
      (*out)[sample] = offset;
      for (size_t i = batch_.size(); i-- > 0;) {
        if (++index[i] < batch_[i]) break;
        index[i] = 0;
      }
    }
    return out;
  }

  std::vector<int64_t> batch_;
  int64_t count_ = 1;
  std::vector<std::unique_ptr<std::vector<int64_t>>> offsets_;
  std::string error_;
};

std::vector<int32_t> everyone(int64_t count) {
  std::vector<int32_t> samples(count);
  for (int64_t i = 0; i < count; ++i) samples[i] = int32_t(i);
  return samples;
}

double work_of(Sizes s) {
  const double nm = s.nm();
  return s.T * (double(s.n) * s.n * nm + 0.5 * s.n * nm * nm);
}

ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument(message); }

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// Batch axes of an output, and the sizes from the last axes of a gain (T, m, n).
struct Frame {
  Sizes size;
  ffi::Span<const int64_t> batch;
  bool good = false;
};

Frame frame_of(ffi::AnyBuffer::Dimensions gains) {
  Frame frame;
  if (gains.size() < 3) return frame;
  const size_t rank = gains.size() - 3;
  frame.size = {int(gains[rank + 2]), int(gains[rank + 1]), int(gains[rank])};
  frame.batch = gains.first(rank);
  frame.good = frame.size.n > 0 && frame.size.m > 0 && frame.size.m <= 64 && frame.size.T > 0;
  return frame;
}

template <class T>
ffi::Error factor_as(ffi::ThreadPool& pool, const In& H, const In& H_N, const In& F, const In& free,
                     Out& K, Out& V, Out& L, Out& pivots, const In* rhs, Out* solved) {
  const Frame frame = frame_of(K->dimensions());
  if (!frame.good) return invalid("diffcontrol: the gains must have shape (..., T, m, n), m <= 64");
  const int64_t n = frame.size.n, m = frame.size.m, nm = n + m, T_ = frame.size.T;
  Call call(frame.batch);
  Factor<T> a;
  a.size = frame.size;
  a.diagonal = H.dimensions().size() == frame.batch.size() + 2;
  a.H = call.operand<const T>("H", H.untyped_data(), H.dimensions(),
                              a.diagonal ? std::vector<int64_t>{T_, nm}
                                         : std::vector<int64_t>{T_, nm, nm}, true);
  a.H_N = call.operand<const T>("H_N", H_N.untyped_data(), H_N.dimensions(), {n, n});
  a.F = call.operand<const T>("F", F.untyped_data(), F.dimensions(), {T_, n, nm}, true);
  a.free = call.operand<const uint8_t>("free", free.untyped_data(), free.dimensions(), {T_, m});
  a.K = call.operand<T>("K", K->untyped_data(), K->dimensions(), {T_, m, n});
  a.V = call.operand<T>("V", V->untyped_data(), V->dimensions(), {T_ + 1, n, n});
  a.L = call.operand<T>("L", L->untyped_data(), L->dimensions(), {T_, m, m});
  a.pivots = call.operand<T>("pivots", pivots->untyped_data(), pivots->dimensions(), {T_, m});
  if (rhs) {
    a.g = call.operand<const T>("g", rhs[0].untyped_data(), rhs[0].dimensions(), {T_, nm}, true);
    a.g_N = call.operand<const T>("g_N", rhs[1].untyped_data(), rhs[1].dimensions(), {n});
    a.r = call.operand<const T>("r", rhs[2].untyped_data(), rhs[2].dimensions(), {T_ + 1, n}, true);
    a.x = call.operand<T>("x", solved[0]->untyped_data(), solved[0]->dimensions(), {T_ + 1, n});
    a.u = call.operand<T>("u", solved[1]->untyped_data(), solved[1]->dimensions(), {T_, m});
    a.costate =
        call.operand<T>("costate", solved[2]->untyped_data(), solved[2]->dimensions(), {T_ + 1, n});
    if (a.r && a.r.stage == 0) return invalid("diffcontrol: `r` must be given for every stage");
  }
  if (!call.error().empty()) return invalid(call.error());
  const Kernels<T>& k = kernels<T>();
  return over_groups(pool, everyone(call.count()), k.width(a.size), k.scratch_bytes(a.size),
                     work_of(a.size), [&](const int32_t* samples, int count, void* scratch) {
                       k.factor(a, samples, count, scratch);
                     });
}

template <class T>
ffi::Error solve_as(ffi::ThreadPool& pool, const In& F, const In& free, const In& K, const In& V,
                    const In& L, const In& g, const In& g_N, const In& r, Out& x, Out& u,
                    Out& costate) {
  const auto xs = x->dimensions(), us = u->dimensions();
  if (xs.size() < 2 || us.size() != xs.size()) return invalid("diffcontrol: `x` has a wrong shape");
  const size_t rank = xs.size() - 2;
  Solve<T> a;
  a.size = {int(xs[rank + 1]), int(us[rank + 1]), int(us[rank])};
  const int64_t n = a.size.n, m = a.size.m, nm = n + m, T_ = a.size.T;
  if (n < 1 || m < 1 || m > 64 || T_ < 1) return invalid("diffcontrol: sizes out of range");
  Call call(xs.first(rank));
  a.F = call.operand<const T>("F", F.untyped_data(), F.dimensions(), {T_, n, nm}, true);
  a.free = call.operand<const uint8_t>("free", free.untyped_data(), free.dimensions(), {T_, m});
  a.K = call.operand<const T>("K", K.untyped_data(), K.dimensions(), {T_, m, n}, true);
  a.V = call.operand<const T>("V", V.untyped_data(), V.dimensions(), {T_ + 1, n, n}, true);
  a.L = call.operand<const T>("L", L.untyped_data(), L.dimensions(), {T_, m, m}, true);
  a.g = call.operand<const T>("g", g.untyped_data(), g.dimensions(), {T_, nm}, true);
  a.g_N = call.operand<const T>("g_N", g_N.untyped_data(), g_N.dimensions(), {n});
  a.r = call.operand<const T>("r", r.untyped_data(), r.dimensions(), {T_ + 1, n}, true);
  a.x = call.operand<T>("x", x->untyped_data(), xs, {T_ + 1, n});
  a.u = call.operand<T>("u", u->untyped_data(), us, {T_, m});
  a.costate = call.operand<T>("costate", costate->untyped_data(), costate->dimensions(), {T_ + 1, n});
  if (!call.error().empty()) return invalid(call.error());
  if (a.r.stage == 0 || a.V.stage == 0) return invalid("diffcontrol: stages are missing");
  const Kernels<T>& k = kernels<T>();
  const double multiplications = double(T_) * (2 * n * nm + 2 * n * n + 2 * m * n);
  return over_groups(pool, everyone(call.count()), k.width(a.size), k.scratch_bytes(a.size),
                     multiplications, [&](const int32_t* samples, int count, void* scratch) {
                       k.solve(a, samples, count, scratch);
                     });
}

template <class T>
ffi::Error sweep_as(ffi::ThreadPool& pool, const In& H, const In* D, const In& H_N, const In& F,
                    const In& g, const In& g_N, const In& lower, const In& upper,
                    const In& regularisation, const In& worthwhile, const In& wanted, Out& K, Out& k_out, Out& linear,
                    Out& quadratic, Out& positive) {
  const Frame frame = frame_of(K->dimensions());
  if (!frame.good) return invalid("diffcontrol: the gains must have shape (..., T, m, n), m <= 64");
  const int64_t n = frame.size.n, m = frame.size.m, nm = n + m, T_ = frame.size.T;
  Call call(frame.batch);
  Sweep<T> a;
  a.size = frame.size;
  a.H = call.operand<const T>("H", H.untyped_data(), H.dimensions(), {T_, nm, nm}, true);
  if (D) a.D = call.operand<const T>("D", D->untyped_data(), D->dimensions(), {T_, nm, nm}, true);
  a.H_N = call.operand<const T>("H_N", H_N.untyped_data(), H_N.dimensions(), {n, n});
  a.F = call.operand<const T>("F", F.untyped_data(), F.dimensions(), {T_, n, nm}, true);
  a.g = call.operand<const T>("g", g.untyped_data(), g.dimensions(), {T_, nm}, true);
  a.g_N = call.operand<const T>("g_N", g_N.untyped_data(), g_N.dimensions(), {n});
  a.lower = call.operand<const T>("lower", lower.untyped_data(), lower.dimensions(), {T_, m}, true);
  a.upper = call.operand<const T>("upper", upper.untyped_data(), upper.dimensions(), {T_, m}, true);
  a.regularisation = call.operand<const T>("regularisation", regularisation.untyped_data(),
                                           regularisation.dimensions(), {});
  a.worthwhile = call.operand<const T>("worthwhile", worthwhile.untyped_data(),
                                       worthwhile.dimensions(), {});
  const auto flags =
      call.operand<const uint8_t>("wanted", wanted.untyped_data(), wanted.dimensions(), {});
  a.K = call.operand<T>("K", K->untyped_data(), K->dimensions(), {T_, m, n});
  a.k = call.operand<T>("k", k_out->untyped_data(), k_out->dimensions(), {T_, m});
  a.linear = call.operand<T>("linear", linear->untyped_data(), linear->dimensions(), {});
  a.quadratic = call.operand<T>("quadratic", quadratic->untyped_data(), quadratic->dimensions(), {});
  a.positive =
      call.operand<uint8_t>("positive", positive->untyped_data(), positive->dimensions(), {});
  if (!call.error().empty()) return invalid(call.error());
  std::vector<int32_t> samples;
  samples.reserve(call.count());
  for (int64_t i = 0; i < call.count(); ++i) {
    if (*flags.of(i)) {
      samples.push_back(int32_t(i));
    } else {  // outputs of samples that are not wanted are zero
      std::memset(a.K.of(i), 0, sizeof(T) * T_ * m * n);
      std::memset(a.k.of(i), 0, sizeof(T) * T_ * m);
      *a.linear.of(i) = *a.quadratic.of(i) = T(0);
      *a.positive.of(i) = 0;
    }
  }
  const Kernels<T>& k = kernels<T>();
  return over_groups(pool, samples, k.width(a.size), k.scratch_bytes(a.size), work_of(a.size),
                     [&](const int32_t* chosen, int count, void* scratch) {
                       k.sweep(a, chosen, count, scratch);
                     });
}

template <class T>
ffi::Error outer_as(ffi::ThreadPool& pool, double scale, const In& p, const In& q, const In& r,
                    const In& s, Out& out) {
  const ffi::AnyBuffer::Dimensions shape = out->dimensions();
  if (shape.size() < 3) return invalid("diffcontrol: outer products have at least three axes");
  const size_t rank = shape.size() - 3;
  const int64_t T_ = shape[rank], rows = shape[rank + 1], columns = shape[rank + 2];
  Call call(shape.first(rank));
  Outer<T> a{int(T_), int(rows), int(columns), T(scale), {}, {}, {}, {}, {}};
  a.p = call.operand<const T>("p", p.untyped_data(), p.dimensions(), {T_, rows});
  a.q = call.operand<const T>("q", q.untyped_data(), q.dimensions(), {T_, columns});
  a.r = call.operand<const T>("r", r.untyped_data(), r.dimensions(), {T_, rows});
  a.s = call.operand<const T>("s", s.untyped_data(), s.dimensions(), {T_, columns});
  a.out = call.operand<T>("out", out->untyped_data(), out->dimensions(), {T_, rows, columns});
  if (!call.error().empty()) return invalid(call.error());
  const Kernels<T>& k = kernels<T>();
  return over_groups(pool, everyone(call.count()), 1, 0, 4.0 * T_ * rows * columns,
                     [&](const int32_t* chosen, int, void*) { k.outer(a, *chosen); });
}

// Calls `function` as double or float, as the data are.
#define DC_BY_TYPE(BUFFER, FUNCTION, ...)                              \
  switch ((BUFFER).element_type()) {                                   \
    case ffi::F64: return FUNCTION<double>(__VA_ARGS__);               \
    case ffi::F32: return FUNCTION<float>(__VA_ARGS__);                \
    default: return invalid("diffcontrol: float32 or float64 only");   \
  }

bool same_type(std::initializer_list<ffi::DataType> types) {
  for (ffi::DataType type : types)
    if (type != *types.begin()) return false;
  return true;
}

ffi::Error FactorImpl(ffi::ThreadPool pool, In H, In H_N, In F, In free, Out K, Out V, Out L,
                      Out pivots) {
  if (!same_type({H.element_type(), H_N.element_type(), F.element_type(), K->element_type(),
                  V->element_type(), L->element_type(), pivots->element_type()}) ||
      free.element_type() != ffi::PRED)
    return invalid("diffcontrol: types disagree");
  DC_BY_TYPE(H, factor_as, pool, H, H_N, F, free, K, V, L, pivots, nullptr, nullptr)
}

ffi::Error FactorSolveImpl(ffi::ThreadPool pool, In H, In H_N, In F, In free, In g, In g_N, In r,
                           Out K, Out V, Out L, Out pivots, Out x, Out u, Out costate) {
  if (!same_type({H.element_type(), H_N.element_type(), F.element_type(), g.element_type(),
                  g_N.element_type(), r.element_type(), K->element_type(), V->element_type(),
                  L->element_type(), pivots->element_type(), x->element_type(), u->element_type(),
                  costate->element_type()}) ||
      free.element_type() != ffi::PRED)
    return invalid("diffcontrol: types disagree");
  const In rhs[3] = {g, g_N, r};
  Out solved[3] = {x, u, costate};
  DC_BY_TYPE(H, factor_as, pool, H, H_N, F, free, K, V, L, pivots, rhs, solved)
}

ffi::Error SolveImpl(ffi::ThreadPool pool, In F, In free, In K, In V, In L, In g, In g_N, In r,
                     Out x, Out u, Out costate) {
  if (!same_type({F.element_type(), K.element_type(), V.element_type(), L.element_type(),
                  g.element_type(), g_N.element_type(), r.element_type(), x->element_type(),
                  u->element_type(), costate->element_type()}) ||
      free.element_type() != ffi::PRED)
    return invalid("diffcontrol: types disagree");
  DC_BY_TYPE(F, solve_as, pool, F, free, K, V, L, g, g_N, r, x, u, costate)
}

ffi::Error SweepImpl(ffi::ThreadPool pool, In H, In H_N, In F, In g, In g_N, In lower, In upper,
                     In regularisation, In worthwhile, In wanted, ffi::RemainingArgs more, Out K,
                     Out k, Out linear, Out quadratic, Out positive) {
  if (!same_type({H.element_type(), H_N.element_type(), F.element_type(), g.element_type(),
                  g_N.element_type(), lower.element_type(), upper.element_type(),
                  regularisation.element_type(), worthwhile.element_type(), K->element_type(), k->element_type(),
                  linear->element_type(), quadratic->element_type()}) ||
      wanted.element_type() != ffi::PRED || positive->element_type() != ffi::PRED ||
      more.size() > 1)
    return invalid("diffcontrol: types disagree");
  const In* D = nullptr;
  In curvature = H;
  if (more.size() == 1) {
    auto given = more.get<ffi::AnyBuffer>(0);
    if (!given || given->element_type() != H.element_type())
      return invalid("diffcontrol: types disagree");
    curvature = *given;
    D = &curvature;
  }
  DC_BY_TYPE(H, sweep_as, pool, H, D, H_N, F, g, g_N, lower, upper, regularisation, worthwhile,
             wanted, K, k, linear, quadratic, positive)
}

ffi::Error OuterImpl(ffi::ThreadPool pool, In p, In q, In r, In s, double scale, Out out) {
  if (!same_type({p.element_type(), q.element_type(), r.element_type(), s.element_type(),
                  out->element_type()}))
    return invalid("diffcontrol: types disagree");
  DC_BY_TYPE(p, outer_as, pool, scale, p, q, r, s, out)
}

}  // namespace

}  // namespace diffcontrol

#pragma GCC visibility push(default)
#define A Arg<ffi::AnyBuffer>()
#define R Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffcontrol_factor, diffcontrol::FactorImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().A.A.A.A.R.R.R.R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffcontrol_factor_solve, diffcontrol::FactorSolveImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().A.A.A.A.A.A.A.R.R.R.R.R.R.R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffcontrol_solve, diffcontrol::SolveImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().A.A.A.A.A.A.A.A.R.R.R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffcontrol_sweep, diffcontrol::SweepImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().A.A.A.A.A.A.A.A.A.A.RemainingArgs().R.R.R.R.R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    diffcontrol_outer, diffcontrol::OuterImpl,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().A.A.A.A.Attr<double>("scale").R);

extern "C" const char* diffcontrol_instruction_set() { return diffcontrol::best().name; }
extern "C" void diffcontrol_set_threads(int threads) { diffcontrol::most_threads = threads; }
#pragma GCC visibility pop
