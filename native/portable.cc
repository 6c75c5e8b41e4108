// Kernels for portable.
#define DC_ISA diffcontrol_portable
#define DC_BYTES 16
#define DC_AVAILABLE (true)
#include "instruction_set.h"

namespace diffcontrol {
extern const InstructionSet portable;
const InstructionSet portable = {"portable", DC_ISA::available, DC_TABLE(double), DC_TABLE(float)};
}  // namespace diffcontrol
