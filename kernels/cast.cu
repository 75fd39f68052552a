#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t cast_bf16(RoclipStream, const CastBf16*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
