// What the self-tests share.
#pragma once

#include "common/launch.cuh"
#include "common/tensor_map.cuh"
#include "selftest.h"

// Whether fault n is planted. A GPU must not run one: some hang.
#ifdef __CUDACC__
#define PLANTED(n) false
#define MAX_BUG(n) 0
#define ROCLIP_SELFTEST_TABLE roclip_selftests_cuda
#else
#define PLANTED(n) (args.bug == (n))
#define MAX_BUG(n) (n)
#define ROCLIP_SELFTEST_TABLE roclip_selftests_sim
#endif

namespace ROCLIP_BUILD {
#define X(Args, name) int32_t name(RoclipStream stream, const Args* args);
ROCLIP_SELFTESTS(X)
#undef X
}  // namespace ROCLIP_BUILD
