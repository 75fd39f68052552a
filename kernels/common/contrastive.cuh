// What the files of `contrastive` call of each other.
#pragma once

#include "launch.cuh"

namespace ROCLIP_BUILD {

// Of a loss: rows find columns, columns find rows, or both.
inline float directions(const ContrastiveWeights& a) {
    return float((a.row_lse != nullptr) + (a.col_lse != nullptr));
}

// ROCLIP_REFUSED where this GPU, width or alignment does not allow it. A log-sum-exp that it could
// not compute is NaN afterwards.
int32_t contrastive_forward_hopper(RoclipStream stream, const ContrastiveForward& a);

// ROCLIP_REFUSED where this GPU, width or alignment does not allow it.
int32_t contrastive_weights_hopper(RoclipStream stream, const ContrastiveWeights& a);

}  // namespace ROCLIP_BUILD
