// The most that the processor's FMA units can do, measured: what "of peak" means in every table.
#pragma once

#include "lec7/array.h"
#include "lec7/isa.h"

LEC7_KERNELS(
    // `rounds` of independent fused multiply-adds that touch no memory; returns how many FLOPs they were. (The baseline
    // of x86-64 has no FMA: a multiplication and an addition.)
    Index fma_rounds(Index rounds);)

namespace lec7::bench {

// FLOP/s of float32 on all threads of lec7 together, for the ISA in use: the sum of each one's best of many short runs.
double fma_peak();

}  // namespace lec7::bench
