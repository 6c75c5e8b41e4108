// Kernels for avx512.
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define DC_ISA diffcontrol_avx512
#define DC_BYTES 64
#define DC_AVAILABLE (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
#include "instruction_set.h"

namespace diffcontrol {
extern const InstructionSet avx512;
const InstructionSet avx512 = {"avx512", DC_ISA::available, DC_TABLE(double), DC_TABLE(float)};
}  // namespace diffcontrol
#else
#include "arguments.h"

namespace diffcontrol {
// The compiler was not asked for avx512, so nothing here may be used.
extern const InstructionSet avx512;
const InstructionSet avx512 = {"avx512", [] { return false; }, {}, {}};
}  // namespace diffcontrol
#endif
