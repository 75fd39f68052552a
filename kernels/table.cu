// The table through which Rust calls the launchers: one for each build of the sources.
#include "common/launch.cuh"

namespace ROCLIP_BUILD {
#define X(Args, name) int32_t name(RoclipStream stream, const Args* args);
ROCLIP_LAUNCHERS(X)
#undef X
}  // namespace ROCLIP_BUILD

#ifdef __CUDACC__
#define ROCLIP_TABLE roclip_kernels_cuda
#else
#define ROCLIP_TABLE roclip_kernels_sim
#endif

extern "C" const RoclipKernels ROCLIP_TABLE = {
#define X(Args, name) ROCLIP_BUILD::name,
    ROCLIP_LAUNCHERS(X)
#undef X
};
