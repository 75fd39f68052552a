#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t embedding_forward(RoclipStream, const EmbeddingForward*) { return ROCLIP_REFUSED; }
int32_t embedding_backward_table(RoclipStream, const EmbeddingBackwardTable*) { return ROCLIP_REFUSED; }
int32_t embedding_backward_positions(RoclipStream, const EmbeddingBackwardPositions*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
