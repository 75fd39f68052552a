#include "common/launch.cuh"

namespace ROCLIP_BUILD {

int32_t rows_gather(RoclipStream, const RowsGather*) { return ROCLIP_REFUSED; }
int32_t rows_scatter(RoclipStream, const RowsScatter*) { return ROCLIP_REFUSED; }

}  // namespace ROCLIP_BUILD
