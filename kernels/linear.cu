#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t linear_backward_bias(RoclipStream, const LinearBackwardBias*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
