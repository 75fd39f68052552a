// attention_pool: the mean of a picture's pixels asks all of them, and itself.
//
//   tokens    tokens[n, 0] = mean of pixels[n] + positions[0],
//             tokens[n, 1 + i] = pixels[n, i] + positions[1 + i]
//             backward, d = dkeys + dvalues, and + dquery for token 0:
//             dpixels[n, i] = d[n, 1 + i] + d[n, 0] / (T - 1),
//             dpositions[t] += sum over n of d[n, t]
//   forward   s[t] = <query, keys[t]> / sqrt(d),  lse = log sum_t exp(s[t]),
//             out = sum_t exp(s[t] - lse) values[t], head by head
//   backward  p[t] = exp(s[t] - lse),  ds[t] = p[t] (<dout, values[t]> - <dout, out>)
//             dquery = sum_t ds[t] keys[t] / sqrt(d),  dkeys[t] = ds[t] query / sqrt(d),
//             dvalues[t] = p[t] dout
//
// Tensors   in roclip.h; T tokens of C = heads * d values.
// Requires  images_n >= 1, T >= 2; what is written overlaps no other tensor. The launcher refuses
//           heads wider than ROCLIP_MAX_HEAD_DIM.
// Launch    tokens: V columns of IMAGES pictures a thread, which share what is read of positions.
//           Their backward: tiles of the T*C columns, all pictures. forward and backward: a warp
//           for each head of each picture. 16 bytes at a time where pointers allow it and, for
//           columns, C % 8 == 0, for heads, d is 64, as in every ResNet of CLIP's.
// Mapping   a row of a head of 64 is 16 bytes each of a team of 8 lanes; the 4 teams of a warp read
//           neighbouring rows and share a running maximum; their sums are added at the end. Heads
//           of other widths: one team of 32 lanes, up to 4 values each, element by element.
// Barriers  one in `sum_columns`, for every thread of the block.
// Numerics  f32, one rounding to bf16; the weights of the sum of values are not rounded. The order
//           of all additions is cut by the shape alone.
// Cost      bytes: tokens 4 an element, their backward 6; forward 4 an element of the keys,
//           backward 8: everything is read once and written once.
// Twins     src/backend/{ops,cpu,cuda}/attention_pool.rs, tests/ops/attention_pool.rs
#include "common/columns.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int IMAGES = 4;
constexpr int UNROLL = 4;  // rows that a lane has in flight

// ----------------------------------------------------------------------------------------- tokens

template <int V>
__global__ void __launch_bounds__(THREADS) tokens_kernel(AttentionPoolTokens a) {
    const int64_t column = (int64_t(blockIdx.y) * THREADS + threadIdx.x) * V, width = a.width;
    if (column >= width) return;
    const int64_t first = int64_t(blockIdx.x) * IMAGES, left = a.images_n - first;
    const int images = left < IMAGES ? int(left) : IMAGES, pixels_n = a.tokens_n - 1;
    const bf16* from = a.pixels + first * pixels_n * width + column;
    bf16* to = a.tokens + first * a.tokens_n * width + column;
    float sums[IMAGES][V] = {}, position[V];
#pragma unroll 2
    for (int i = 0; i < pixels_n; ++i) {
        load_floats(a.positions + (i + 1) * width + column, position);
        Vec<bf16, V> pixels[IMAGES];
#pragma unroll
        for (int n = 0; n < IMAGES; ++n) {
            if (n < images) pixels[n] = load<V>(from + (int64_t(n) * pixels_n + i) * width);
        }
#pragma unroll
        for (int n = 0; n < IMAGES; ++n) {
            if (n >= images) break;
            float token[V];
#pragma unroll
            for (int c = 0; c < V; ++c) {
                sums[n][c] += to_float(pixels[n][c]);
                token[c] = to_float(pixels[n][c]) + position[c];
            }
            store_together(to + (int64_t(n) * a.tokens_n + 1 + i) * width, token);
        }
    }
    load_floats(a.positions + column, position);
#pragma unroll
    for (int n = 0; n < IMAGES; ++n) {
        if (n >= images) break;
#pragma unroll
        for (int c = 0; c < V; ++c) sums[n][c] = sums[n][c] / float(pixels_n) + position[c];
        store_together(to + int64_t(n) * a.tokens_n * width, sums[n]);
    }
}

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS)
    backward_tokens_kernel(AttentionPoolBackwardTokens a) {
    const int64_t elements = int64_t(a.tokens_n) * a.width, column = my_column<V>(blockIdx.x);
    const int64_t channel = column % a.width;
    const bool is_mean = column < a.width;
    const float share = 1 / float(a.tokens_n - 1);
    struct Term {
        Vec<bf16, V> dkeys, dvalues, mean[3];
    };
    float sums[1][V];
    const bool mine = sum_columns<V, 1, 1>(
        column < elements, a.images_n, 0, 1,
        [&](int64_t n) {
            const int64_t mean = n * elements + channel;
            return Term{load<V>(a.dkeys + n * elements + column),
                        load<V>(a.dvalues + n * elements + column),
                        {load<V>(a.dquery + n * a.width + channel), load<V>(a.dkeys + mean),
                         load<V>(a.dvalues + mean)}};
        },
        [&](int64_t n, const Term& term, float(&sums)[1][V]) {
            float dpixel[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const auto& [dquery, dkey, dvalue] = term.mean;
                const float mean = to_float(dkey[i]) + to_float(dvalue[i]) + to_float(dquery[i]);
                const float d = to_float(term.dkeys[i]) + to_float(term.dvalues[i]);
                sums[0][i] += is_mean ? mean : d;
                dpixel[i] = d + mean * share;
            }
            if (is_mean) return;
            store_together(a.dpixels + n * (elements - a.width) + column - a.width, dpixel);
        },
        sums);
    if (mine) add_floats(a.dpositions + column, sums[0]);
}

// -------------------------------------------------------------------------------------- attention

// How a row of a head lies over the lanes of a team: VECTORS times V values each. Beyond the head's
// `dim` values there is 0.
template <int TEAM, int V, int VECTORS>
struct Head {
    static constexpr int LANES = TEAM, TEAMS = WARP / TEAM;

    // Calls use(i, first value) for the vectors that this lane has of a head.
    template <class Use>
    __device__ __forceinline__ static void each(int dim, Use use) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            const int first = (k * TEAM + int(threadIdx.x) % TEAM) * V;
            if (first < dim) use(k, first);
        }
    }

    // As it lies in memory.
    struct Raw {
        Vec<bf16, V> at[VECTORS];

        __device__ __forceinline__ void load(const bf16* from, int dim) {
#pragma unroll
            for (int k = 0; k < VECTORS; ++k) at[k] = {};
            each(dim, [&](int k, int first) { at[k] = ROCLIP_BUILD::load<V>(from + first); });
        }
    };

    float at[VECTORS][V] = {};

    __device__ __forceinline__ void load(const bf16* from, int dim) {
        each(dim, [&](int k, int first) { load_floats(from + first, at[k]); });
    }

    __device__ __forceinline__ void store(bf16* to, int dim, float weight) const {
        each(dim, [&](int k, int first) {
            float scaled[V];
#pragma unroll
            for (int i = 0; i < V; ++i) scaled[i] = at[k][i] * weight;
            store_floats(to + first, scaled);
        });
    }

    __device__ __forceinline__ void scale(float by) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int i = 0; i < V; ++i) at[k][i] *= by;
        }
    }

    __device__ __forceinline__ void add(const Raw& row, float weight) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int i = 0; i < V; ++i) at[k][i] += to_float(row.at[k][i]) * weight;
        }
    }

    // The product with a row; every lane of the team gets it.
    __device__ __forceinline__ float dot(const Raw& row) const {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum += at[k][i] * to_float(row.at[k][i]);
        }
        for (int step = TEAM / 2; step > 0; step /= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, step);
        }
        return sum;
    }

    // Adds up what the teams have; every lane gets the sum.
    __device__ __forceinline__ static float over_teams(float x) {
        for (int step = TEAM; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
        return x;
    }

    __device__ __forceinline__ void add_teams() {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int i = 0; i < V; ++i) at[k][i] = over_teams(at[k][i]);
        }
    }
};

using Head64 = Head<8, 8, 1>;
using HeadAny = Head<WARP, 1, ROCLIP_MAX_HEAD_DIM / WARP>;

// What a warp works on: where its head begins in [N, C], and where in [N, T, C] that of its team's
// first token.
template <class Head>
struct Work {
    int64_t pair, token, row, width;
    int team;
    bool exists, first;  // whether there is such a head; whether this is the first team

    template <class Args>
    __device__ explicit Work(const Args& a) {
        pair = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
        exists = pair < a.images_n * a.heads;
        team = threadIdx.x % WARP / Head::LANES;
        first = team == 0;
        const int64_t image = pair / a.heads, head = pair % a.heads;
        width = int64_t(a.heads) * a.head_dim;
        token = image * width + head * a.head_dim;
        row = (image * a.tokens_n + team) * width + head * a.head_dim;
    }
};

// UNROLL rows of a team's keys and values, from token `top + team` on; which of them exist.
template <class Head>
struct Tokens {
    typename Head::Raw keys[UNROLL], values[UNROLL];
    bool exists[UNROLL];

    template <class Args>
    __device__ __forceinline__ Tokens(const Args& a, const Work<Head>& work, int top) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int t = top + u * Head::TEAMS;
            exists[u] = t + work.team < a.tokens_n;
            const int dim = exists[u] ? a.head_dim : 0;
            keys[u].load(a.keys + work.row + t * work.width, dim);
            values[u].load(a.values + work.row + t * work.width, dim);
        }
    }
};

template <class Head>
__global__ void __launch_bounds__(THREADS) attention_pool_forward_kernel(AttentionPoolForward a) {
    const Work<Head> work(a);
    if (!work.exists) return;  // a warp as a whole
    const float scale = LOG2E / sqrtf(float(a.head_dim));
    Head query, out;
    query.load(a.query + work.token, a.head_dim);
    float most = -INFINITY, sum = 0;
    // every team comes to the shuffles, also one whose tokens have ended
    for (int top = 0; top < a.tokens_n; top += UNROLL * Head::TEAMS) {
        const Tokens<Head> tokens(a, work, top);
        float s[UNROLL], more = most;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            s[u] = query.dot(tokens.keys[u]) * scale;
            if (!tokens.exists[u]) s[u] = -INFINITY;
            more = fmaxf(more, s[u]);
        }
        more = warp_max(more);
        const float keep = exp2_approx(most - more);
        most = more;
        sum *= keep;
        out.scale(keep);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const float p = exp2_approx(s[u] - most);
            sum += p;
            out.add(tokens.values[u], p);
        }
    }
    sum = Head::over_teams(sum);
    out.add_teams();
    if (work.first) out.store(a.out + work.token, a.head_dim, 1 / sum);
    if (threadIdx.x % WARP == 0) a.lse[work.pair] = most / LOG2E + logf(sum);
}

template <class Head>
__global__ void __launch_bounds__(THREADS)
    attention_pool_backward_kernel(AttentionPoolBackward a) {
    const Work<Head> work(a);
    if (!work.exists) return;  // a warp as a whole
    const float scale = 1 / sqrtf(float(a.head_dim)), lse = a.lse[work.pair] * LOG2E;
    Head query, dout, dquery;
    query.load(a.query + work.token, a.head_dim);
    dout.load(a.dout + work.token, a.head_dim);
    typename Head::Raw out;
    out.load(a.out + work.token, a.head_dim);
    const float delta = dout.dot(out);
    for (int top = 0; top < a.tokens_n; top += UNROLL * Head::TEAMS) {
        const Tokens<Head> tokens(a, work, top);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const float s = query.dot(tokens.keys[u]) * (scale * LOG2E);
            const float dp = dout.dot(tokens.values[u]) - delta;
            if (!tokens.exists[u]) continue;
            const float p = exp2_approx(s - lse), ds = p * dp * scale;
            dquery.add(tokens.keys[u], ds);
            const int64_t row = work.row + int64_t(top + u * Head::TEAMS) * work.width;
            query.store(a.dkeys + row, a.head_dim, ds);
            dout.store(a.dvalues + row, a.head_dim, p);
        }
    }
    dquery.add_teams();
    if (work.first) dquery.store(a.dquery + work.token, a.head_dim, 1);
}

// start(V), a constant of its type, for the widest V that shape and pointers allow.
template <class Start, class... Pointers>
int32_t with_columns(int width, Start start, Pointers... pointers) {
    const bool wide = width % LANE == 0 && aligned(16, pointers...);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

// start(Head{}) for the kind of head that shape and pointers ask for.
template <class Args, class Start, class... Pointers>
int32_t with_head(const Args& a, Start start, Pointers... pointers) {
    if (a.head_dim > ROCLIP_MAX_HEAD_DIM) return ROCLIP_REFUSED;
    const int64_t blocks = ceil_div(a.images_n * a.heads, WARPS);
    return a.head_dim == 64 && aligned(16, pointers...) ? start(Head64{}, blocks)
                                                        : start(HeadAny{}, blocks);
}

}  // namespace

int32_t attention_pool_tokens(RoclipStream stream, const AttentionPoolTokens* a) {
    const auto start = [&](auto v) {
        const dim3 grid(ceil_div(a->images_n, IMAGES), ceil_div(a->width, THREADS * v));
        return launch<tokens_kernel<v>>(stream, grid, THREADS, 0, *a);
    };
    return with_columns(a->width, start, a->pixels, a->positions, a->tokens);
}

int32_t attention_pool_backward_tokens(
    RoclipStream stream, const AttentionPoolBackwardTokens* a) {
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(int64_t(a->tokens_n) * a->width, COLUMN_TILE<v>);
        return launch<backward_tokens_kernel<v>>(stream, blocks, COLUMN_THREADS, 0, *a);
    };
    return with_columns(
        a->width, start, a->dquery, a->dkeys, a->dvalues, a->dpixels, a->dpositions);
}

int32_t attention_pool_forward(RoclipStream stream, const AttentionPoolForward* a) {
    const auto start = [&](auto head, int64_t blocks) {
        using Kind = decltype(head);
        return launch<attention_pool_forward_kernel<Kind>>(stream, blocks, THREADS, 0, *a);
    };
    return with_head(*a, start, a->query, a->keys, a->values, a->out);
}

int32_t attention_pool_backward(RoclipStream stream, const AttentionPoolBackward* a) {
    const auto start = [&](auto head, int64_t blocks) {
        using Kind = decltype(head);
        return launch<attention_pool_backward_kernel<Kind>>(stream, blocks, THREADS, 0, *a);
    };
    return with_head(*a, start, a->query, a->keys, a->values, a->out, a->dout, a->dquery,
                     a->dkeys, a->dvalues);
}

}  // namespace ROCLIP_BUILD
