// What the files of `pool` have in common: candidates of strips, and how they are joined.
#pragma once

#include "launch.cuh"
#include "nearest.cuh"

namespace ROCLIP_BUILD {

// The best of a strip of the pool, for one query.
template <int K>
__device__ __forceinline__ void store_candidates(const PoolMatch& a, int strip, int64_t query,
                                                 const Nearest<K>& nearest) {
    const int64_t at = (strip * a.queries_n + query) * K;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        a.best_score[at + k] = nearest.best[k].score;
        a.best_index[at + k] = nearest.best[k].index;
    }
}

// What is asked for, for one query.
template <int K>
__device__ __forceinline__ void store_result(const PoolMatch& a, int64_t query,
                                             const Nearest<K>& nearest) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
        if (k >= a.k) break;
        a.score[query * a.k + k] = nearest.best[k].score;
        a.index[query * a.k + k] = nearest.best[k].index;
    }
}

struct PoolJoin {
    PoolMatch a;
    int32_t strips;
    // only *left_n queries, which are left[0], left[1], ... of those that results are asked for;
    // null: all
    const uint32_t *left, *left_n;
};

// Starts the kernel that joins the candidates of all strips.
template <int K>
int32_t pool_join(RoclipStream stream, const PoolJoin& j);

// ROCLIP_REFUSED where this GPU, width or alignment does not allow it.
template <int K>
int32_t pool_match_hopper(RoclipStream stream, const PoolMatch& a);

// As pool_match_hopper, for the first *left_n of a.queries, whose results go to the places that
// `left` names.
int32_t pool_match_left(RoclipStream stream, const PoolMatch& a, const uint32_t* left,
                        const uint32_t* left_n);

// ROCLIP_REFUSED, too, where it has no scratch memory or more than one row is asked for.
int32_t pool_match_int8(RoclipStream stream, const PoolMatch& a);

}  // namespace ROCLIP_BUILD
