#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t adamw(RoclipStream, const AdamW*) { return ROCLIP_REFUSED; }
int32_t adamw_clamp(RoclipStream, const AdamWClamp*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
