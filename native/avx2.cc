// Kernels for avx2.
#if defined(__AVX2__) && defined(__FMA__)
#define DC_ISA diffcontrol_avx2
#define DC_BYTES 32
#define DC_AVAILABLE (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "instruction_set.h"

namespace diffcontrol {
extern const InstructionSet avx2;
const InstructionSet avx2 = {"avx2", DC_ISA::available, DC_TABLE(double), DC_TABLE(float)};
}  // namespace diffcontrol
#else
#include "arguments.h"

namespace diffcontrol {
// The compiler was not asked for avx2, so nothing here may be used.
extern const InstructionSet avx2;
const InstructionSet avx2 = {"avx2", [] { return false; }, {}, {}};
}  // namespace diffcontrol
#endif
