/* The C interface of the kernels: bindgen reads it, every .cu file includes it.
 *
 * One struct per launcher, named after the operation in src/backend/ops/, where formulas and shapes
 * are explained; its pointers are device pointers, row-major. A launcher returns 0, a cudaError_t,
 * or ROCLIP_REFUSED; it enqueues on the stream and returns at once. Gradients of weights are added,
 * everything else that is not const is overwritten.
 *
 * Pointers have the alignment of their element and no more: a kernel that wants to read 16 bytes at
 * once looks whether it may. */
#ifndef ROCLIP_H
#define ROCLIP_H

#include <stdint.h>

#ifdef __cplusplus
struct __nv_bfloat16;
typedef __nv_bfloat16 bf16;
#else
typedef uint16_t bf16; /* Rust has half::bf16 in its place */
#endif

typedef struct CUstream_st *RoclipStream;

enum {
    /* The launcher cannot do that shape. */
    ROCLIP_REFUSED = -1,
    /* Most partial sums of a sum over rows or elements; the same on every device, so that equal
     * shapes give equal bits. */
    ROCLIP_PARTS = 256,
    /* Values of one row of `AdamW.rates`. */
    ROCLIP_RATES = 12,
    /* Parameters that share an entry of `AdamW.group`. */
    ROCLIP_SLOT_ALIGN = 64,
    /* Widest head of the attention kernels. */
    ROCLIP_MAX_HEAD_DIM = 128,
    /* Channels that a step of a convolution multiplies. */
    ROCLIP_CONV_DEPTH = 32,
    /* Channels, in and out, whose gradients of weights a block holds. */
    ROCLIP_CONV_TILE = 64,
    /* Column strips of a search, each with a best candidate for every query. */
    ROCLIP_STRIPS = 64,
    /* Most rows of the pool that a query can ask for. */
    ROCLIP_TOP_K = 8
};

/* Which of a launcher's kernels: those for the GPU at hand, or, to compare them, one kind. A kind
 * that this GPU or this shape does not allow gives way to the portable one. */
enum {
    ROCLIP_AUTO = 0,
    ROCLIP_PORTABLE = 1, /* for every GPU */
    ROCLIP_HOPPER = 2,   /* for compute capability 9.0 */
    ROCLIP_PLAIN = 3,    /* without what makes it fast */
    ROCLIP_INT8 = 4      /* ROCLIP_HOPPER's, after a search in 8 bits */
};

/* ---- embedding ---- */

typedef struct EmbeddingForward {
    const uint32_t *cu_seqlens; /* [sequences + 1] */
    const uint32_t *tokens;     /* [S] */
    const float *table;         /* [V, C] */
    const float *positions;     /* [context, C] */
    bf16 *out;                  /* [S, C] */
    int64_t rows;               /* S */
    int32_t sequences, width;
} EmbeddingForward;

typedef struct EmbeddingBackwardTable {
    const uint32_t *tokens; /* [S] */
    const uint32_t *order;  /* [S], positions sorted by token, equal tokens in order of position */
    const bf16 *dout;       /* [S, C] */
    float *dtable;          /* [V, C], added to */
    int64_t rows;           /* S */
    int32_t width;
} EmbeddingBackwardTable;

typedef struct EmbeddingBackwardPositions {
    const uint32_t *cu_seqlens; /* [sequences + 1] */
    const bf16 *dout;           /* [S, C] */
    float *dpositions;          /* [context, C], added to */
    int32_t sequences, context, width;
} EmbeddingBackwardPositions;

/* ---- patch_embedding ---- */

typedef struct PatchEmbeddingUnfold {
    const float *images; /* [N, 3, side, side] */
    bf16 *out;           /* [N, (side/patch)^2, 3*patch^2] */
    int64_t images_n;
    int32_t side, patch;
} PatchEmbeddingUnfold;

typedef struct PatchEmbeddingForward {
    const bf16 *patches;    /* [N, T - 1, C] */
    const float *cls;       /* [C] */
    const float *positions; /* [T, C] */
    bf16 *out;              /* [N, T, C] */
    int64_t images_n;
    int32_t tokens, width; /* T, C */
} PatchEmbeddingForward;

typedef struct PatchEmbeddingBackward {
    const bf16 *dout;  /* [N, T, C] */
    bf16 *dpatches;    /* [N, T - 1, C] */
    float *dpositions; /* [T, C], added to */
    int64_t images_n;
    int32_t tokens, width;
} PatchEmbeddingBackward;

typedef struct PatchEmbeddingBackwardClass {
    const bf16 *dout; /* [N, T, C] */
    float *dclass;    /* [C], added to */
    int64_t images_n;
    int32_t tokens, width;
} PatchEmbeddingBackwardClass;

/* ---- conv2d: kernels of 3 x 3, padded by 1; H' = ceil(H / stride), W' = ceil(W / stride) ---- */

/* `w` is what matrix products read. `packed` holds the weights in another order. */
typedef struct Conv2dForward {
    const bf16 *x; /* [N, H, W, C] */
    const bf16 *w; /* [O, C, 3, 3] */
    bf16 *y;       /* [N, H', W', O] */
    bf16 *packed;  /* scratch, [O, C rounded up to ROCLIP_CONV_DEPTH, 3, 3], aligned to 16 bytes */
    int64_t images_n;
    int32_t height, width, inputs, outputs, stride; /* H, W, C, O */
    int32_t kernel;                                 /* ROCLIP_AUTO, ... */
} Conv2dForward;

typedef struct Conv2dBackwardInput { /* of stride 1 */
    const bf16 *dy; /* [N, H, W, O] */
    const bf16 *w;  /* [O, C, 3, 3] */
    bf16 *dx;       /* [N, H, W, C] */
    bf16 *packed;   /* scratch, [C, O rounded up to ROCLIP_CONV_DEPTH, 3, 3], aligned to 16 bytes */
    int64_t images_n;
    int32_t height, width, inputs, outputs;
    int32_t kernel;
} Conv2dBackwardInput;

typedef struct Conv2dBackwardWeight {
    const bf16 *x;  /* [N, H, W, C] */
    const bf16 *dy; /* [N, H', W', O] */
    float *dw;      /* [O, C, 3, 3], added to */
    float *partial; /* scratch, [parts, O, C, 3, 3] */
    int64_t images_n;
    int32_t height, width, inputs, outputs, stride;
    int32_t parts; /* of the sum over pixels, at most ROCLIP_PARTS */
    int32_t kernel;
} Conv2dBackwardWeight;

typedef struct Conv2dForwardPictures {
    const float *images; /* [N, 3, H, W] */
    const bf16 *w;       /* [O, 3, 3, 3] */
    bf16 *y;             /* [N, H', W', O] */
    int64_t images_n;
    int32_t height, width, outputs, stride;
    int32_t kernel;
} Conv2dForwardPictures;

typedef struct Conv2dBackwardWeightPictures {
    const float *images; /* [N, 3, H, W] */
    const bf16 *dy;      /* [N, H', W', O] */
    float *dw;           /* [O, 3, 3, 3], added to */
    float *partial;      /* scratch, [parts, O, 3, 3, 3] */
    int64_t images_n;
    int32_t height, width, outputs, stride;
    int32_t parts; /* as in Conv2dBackwardWeight */
    int32_t kernel;
} Conv2dBackwardWeightPictures;
/* ---- layernorm ---- */

typedef struct LayernormForward {
    const bf16 *x;          /* [rows, C] */
    const float *gain_bias; /* [2, C] */
    float *mean, *rstd;     /* [rows] */
    bf16 *y;                /* [rows, C] */
    int64_t rows;
    int32_t width;
    float eps;
} LayernormForward;

typedef struct LayernormBackward {
    const bf16 *x;           /* [rows, C] */
    const float *gain_bias;  /* [2, C] */
    const float *mean, *rstd; /* [rows] */
    const bf16 *dy;          /* [rows, C] */
    bf16 *dx;                /* [rows, C] */
    float *dgain_dbias;      /* [2, C], added to */
    float *partial;          /* scratch, [ROCLIP_PARTS, 2, C] */
    int64_t rows;
    int32_t width;
    int32_t add; /* whether dx is added to */
} LayernormBackward;

/* ---- linear: what is not a matrix product ---- */

typedef struct LinearBackwardBias {
    const bf16 *dy; /* [rows, C] */
    float *db;      /* [C], added to */
    float *partial; /* scratch, [ROCLIP_PARTS, C] */
    int64_t rows;
    int32_t width;
} LinearBackwardBias;

/* ---- gelu ---- */

typedef struct GeluForward {
    const bf16 *x;
    bf16 *y;
    int64_t len;
    int32_t quick; /* whether x*sigmoid(1.702x), else the one with erf */
} GeluForward;

typedef struct GeluBackward {
    const bf16 *x, *dy;
    bf16 *dx;
    int64_t len;
    int32_t quick;
} GeluBackward;

/* ---- attention ---- */

typedef struct AttentionForward {
    const uint32_t *cu_seqlens; /* [sequences + 1] */
    const bf16 *qkv;            /* [S, 3, heads * head_dim] */
    bf16 *out;                  /* [S, heads * head_dim] */
    float *lse;                 /* [S, heads] */
    int32_t sequences, max_len, heads, head_dim;
    int32_t causal;
} AttentionForward;

typedef struct AttentionBackward {
    const uint32_t *cu_seqlens; /* [sequences + 1] */
    const bf16 *qkv;            /* [S, 3, heads * head_dim] */
    const bf16 *out;            /* [S, heads * head_dim] */
    const float *lse;           /* [S, heads] */
    const bf16 *dout;           /* [S, heads * head_dim] */
    bf16 *dqkv;                 /* [S, 3, heads * head_dim] */
    int32_t sequences, max_len, heads, head_dim;
    int32_t causal;
} AttentionBackward;

/* ---- rows ---- */

typedef struct RowsGather {
    const bf16 *x;         /* [R, width] */
    const uint32_t *index; /* [rows], each below R */
    bf16 *out;             /* [rows, width] */
    int64_t rows;
    int32_t width;
} RowsGather;

typedef struct RowsScatter { /* the caller has zeroed dx */
    const bf16 *dout;      /* [rows, width] */
    const uint32_t *index; /* [rows], all different */
    bf16 *dx;              /* [R, width] */
    int64_t rows;
    int32_t width;
} RowsScatter;

typedef struct RowsDot {
    const bf16 *a, *b; /* [rows, width] */
    float *out;        /* [rows] */
    int64_t rows;
    int32_t width;
} RowsDot;

/* ---- l2norm ---- */

typedef struct L2normForward {
    const bf16 *x;   /* [rows, width] */
    bf16 *y;         /* [rows, width] */
    float *inv_norm; /* [rows] */
    int64_t rows;
    int32_t width;
    float eps;
} L2normForward;

typedef struct L2normBackward {
    const bf16 *y;         /* [rows, width] */
    const float *inv_norm; /* [rows] */
    const bf16 *dy;        /* [rows, width] */
    bf16 *dx;              /* [rows, width] */
    int64_t rows;
    int32_t width;
    int32_t add; /* to dx, instead of replacing it */
} L2normBackward;

/* ---- pool ---- */

typedef struct PoolMatch {
    const bf16 *queries; /* [B, D] */
    const bf16 *pool;    /* [M, D] */
    uint32_t *index;     /* [B, k] */
    float *score;        /* [B, k] */
    float *best_score;   /* scratch, [ROCLIP_STRIPS, B, 1 or, if k > 1, ROCLIP_TOP_K] */
    uint32_t *best_index; /* scratch, the same */
    int64_t queries_n, pool_n; /* B, M */
    int32_t width;             /* D */
    int32_t k;
    int32_t kernel;     /* ROCLIP_AUTO, ... */
    void *int8_scratch; /* as many bytes as pool_int8_bytes says, aligned to 128, or null */
} PoolMatch;

/* Starts nothing: writes how many bytes PoolMatch.int8_scratch wants. */
typedef struct PoolInt8Bytes {
    int64_t queries_n, pool_n;
    int32_t width;
    int64_t *bytes; /* [1], on the host */
} PoolInt8Bytes;

/* ---- contrastive ---- */

typedef struct ContrastiveForward {
    const bf16 *rows;         /* [N, D] */
    const bf16 *cols;         /* [G, D] */
    const float *logit_scale; /* [1], natural log */
    float *lse;               /* [N] */
    float *own;               /* [N], or null */
    float *col_lse;           /* [G], over these N rows, or null */
    float *strip_max;         /* scratch, [ROCLIP_STRIPS, max(N, G)]; N where col_lse is null */
    float *strip_sum;         /* scratch, as strip_max */
    int64_t rows_n, cols_n, offset;
    int32_t width;
    int32_t kernel; /* ROCLIP_AUTO, ... */
} ContrastiveForward;

/* weight[i,j] = factor s/(2G) * (exp(l[i,j] - row_lse[i]) + exp(l[i,j] - col_lse[j]) - 2 delta_ij),
 * of one direction where the other's log-sum-exps are null, for a block of rows and columns; its
 * product with the columns is a part of the gradient of these rows,
 * that of its transpose with the rows one of the gradient of these columns. */
typedef struct ContrastiveWeights {
    const bf16 *rows;         /* [rows_n, D], the block's */
    const bf16 *cols;         /* [cols_n, D], the block's */
    const float *logit_scale; /* [1] */
    const float *row_lse;     /* [rows_n], the block's, or null */
    const float *col_lse;     /* [cols_n], the block's, or null */
    bf16 *weights;            /* [rows_n, cols_n] */
    int64_t rows_n, cols_n;
    int64_t total;  /* G */
    int64_t offset; /* column, counted from the block's first, that belongs to the block's first
                       row; perhaps negative, perhaps beyond the block */
    int32_t width;
    int32_t kernel; /* ROCLIP_AUTO, ... */
    float factor;
} ContrastiveWeights;

/* dlogit_scale += sum over all rows of <rows[i], drows[i]>: logits are linear in both. */
typedef struct ContrastiveScale {
    const bf16 *rows, *drows; /* [len] */
    float *dlogit_scale;      /* [1], added to */
    float *partial;           /* scratch, [ROCLIP_PARTS] */
    int64_t len;
} ContrastiveScale;

/* ---- cyclic ---- */

/* weights = 4 weight differences; loss[i] += weight sum_j differences[i,j]^2 */
typedef struct CyclicWeights {
    const float *differences; /* [rows, cols] */
    bf16 *weights;            /* [rows, cols] */
    float *loss;              /* [rows], added to */
    int64_t rows;
    int32_t cols;
    float weight;
} CyclicWeights;

/* ---- grad_norm, adamw ---- */

typedef struct GradNorm {
    const float *grads; /* [P] */
    float *norm;        /* [1] */
    double *partial;    /* scratch, [ROCLIP_PARTS] */
    int64_t len;
} GradNorm;

/* A row of `rates`: 0 max_norm (infinity: no clipping), 1 beta1, 2 1 - beta1, 3 beta2, 4 1 - beta2,
 * 5 1 - lr * weight_decay, 6 lr / (1 - beta1^t), 7 1 / sqrt(1 - beta2^t), 8 eps, 9 whether the
 * group is updated at all, 10 and 11 unused. */
typedef struct AdamW {
    const float *rates;    /* [groups, ROCLIP_RATES] */
    const uint32_t *group; /* [ceil(P / ROCLIP_SLOT_ALIGN)], row of rates */
    const float *grads;    /* [P] */
    const float *norm;     /* [1]; where it is not finite nothing changes */
    float *weights;        /* [P] */
    bf16 *copy;            /* [P], the weights rounded */
    float *exp_avg, *exp_avg_sq; /* [P] */
    int64_t len;
} AdamW;

typedef struct AdamWClamp {
    float *weights; /* [len] */
    bf16 *copy;     /* [len] */
    float low, high;
    int64_t len;
} AdamWClamp;

/* ---- cast ---- */

typedef struct CastBf16 {
    const float *x;
    bf16 *y;
    int64_t len;
} CastBf16;

#include "resnet.h"

/* Every launcher: its arguments and its name. */
#define ROCLIP_LAUNCHERS(X)                                      \
    X(EmbeddingForward, embedding_forward)                       \
    X(EmbeddingBackwardTable, embedding_backward_table)          \
    X(EmbeddingBackwardPositions, embedding_backward_positions)  \
    X(PatchEmbeddingUnfold, patch_embedding_unfold)              \
    X(PatchEmbeddingForward, patch_embedding_forward)            \
    X(PatchEmbeddingBackward, patch_embedding_backward)          \
    X(PatchEmbeddingBackwardClass, patch_embedding_backward_class) \
    X(Conv2dForward, conv2d_forward)                             \
    X(Conv2dBackwardInput, conv2d_backward_input)                \
    X(Conv2dBackwardWeight, conv2d_backward_weight)              \
    X(Conv2dForwardPictures, conv2d_forward_pictures)            \
    X(Conv2dBackwardWeightPictures, conv2d_backward_weight_pictures) \
    X(BatchnormStatistics, batchnorm_statistics)                 \
    X(BatchnormMerge, batchnorm_merge)                           \
    X(BatchnormForward, batchnorm_forward)                       \
    X(BatchnormBackwardSums, batchnorm_backward_sums)            \
    X(BatchnormBackward, batchnorm_backward)                     \
    X(BatchnormObserve, batchnorm_observe)                       \
    X(BatchnormUpdateRunning, batchnorm_update_running)          \
    X(AvgPool2dForward, avg_pool2d_forward)                      \
    X(AvgPool2dBackward, avg_pool2d_backward)                    \
    X(LayernormForward, layernorm_forward)                       \
    X(LayernormBackward, layernorm_backward)                     \
    X(LinearBackwardBias, linear_backward_bias)                  \
    X(GeluForward, gelu_forward)                                 \
    X(GeluBackward, gelu_backward)                               \
    X(AttentionForward, attention_forward)                       \
    X(AttentionBackward, attention_backward)                     \
    X(AttentionPoolTokens, attention_pool_tokens)                \
    X(AttentionPoolBackwardTokens, attention_pool_backward_tokens)\
    X(AttentionPoolForward, attention_pool_forward)              \
    X(AttentionPoolBackward, attention_pool_backward)            \
    X(RowsGather, rows_gather)                                   \
    X(RowsScatter, rows_scatter)                                 \
    X(RowsDot, rows_dot)                                         \
    X(L2normForward, l2norm_forward)                             \
    X(L2normBackward, l2norm_backward)                           \
    X(PoolMatch, pool_match)                                     \
    X(PoolInt8Bytes, pool_int8_bytes)                            \
    X(ContrastiveForward, contrastive_forward)                   \
    X(ContrastiveWeights, contrastive_weights)                   \
    X(ContrastiveScale, contrastive_scale)                       \
    X(CyclicWeights, cyclic_weights)                             \
    X(GradNorm, grad_norm)                                       \
    X(AdamW, adamw)                                              \
    X(AdamWClamp, adamw_clamp)                                   \
    X(CastBf16, cast_bf16)

typedef struct RoclipKernels {
#define X(Args, name) int32_t (*name)(RoclipStream stream, const Args *args);
    ROCLIP_LAUNCHERS(X)
#undef X
} RoclipKernels;

#ifdef __cplusplus
extern "C" {
#endif
/* The same sources built by nvcc for GPUs, and by the host's compiler for the emulation. */
extern const RoclipKernels roclip_kernels_cuda;
extern const RoclipKernels roclip_kernels_sim;
#ifdef __cplusplus
}
#endif

#endif
