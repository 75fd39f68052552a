// The emulation: what a host's C++ compiler needs to run kernels. README.md says how faithful it
// is.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#include "api.h"
#include "checks.h"
#include "fault.h"
#include "hopper.h"
#include "memory.h"
#include "tensor.h"
#include "warp.h"
#include "wgmma.h"
