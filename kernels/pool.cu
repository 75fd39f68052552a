#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t pool_match(RoclipStream, const PoolMatch*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
