#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t patch_embedding_unfold(RoclipStream, const PatchEmbeddingUnfold*) { return ROCLIP_REFUSED; }
int32_t patch_embedding_forward(RoclipStream, const PatchEmbeddingForward*) { return ROCLIP_REFUSED; }
int32_t patch_embedding_backward(RoclipStream, const PatchEmbeddingBackward*) { return ROCLIP_REFUSED; }
int32_t patch_embedding_backward_class(RoclipStream, const PatchEmbeddingBackwardClass*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
