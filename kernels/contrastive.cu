#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t contrastive_forward(RoclipStream, const ContrastiveForward*) { return ROCLIP_REFUSED; }
int32_t contrastive_weights(RoclipStream, const ContrastiveWeights*) { return ROCLIP_REFUSED; }
int32_t contrastive_scale(RoclipStream, const ContrastiveScale*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
