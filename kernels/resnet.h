/* A part of roclip.h, which includes it: what CLIP's ResNet needs beside its convolutions. */
#ifndef ROCLIP_RESNET_H
#define ROCLIP_RESNET_H

/* ---- batchnorm ---- */

typedef struct BatchnormStatistics {
    const bf16 *x;     /* [rows, C] */
    float *mean, *var; /* [C] */
    float *partial;    /* scratch, [ROCLIP_PARTS, 2, C] */
    int64_t rows;
    int32_t width;
} BatchnormStatistics;

typedef struct BatchnormMerge {
    const float *all;  /* [ranks, 2, C], each means first, of equally many rows */
    float *mean, *var; /* [C] */
    int32_t ranks, width;
} BatchnormMerge;

typedef struct BatchnormForward {
    const bf16 *x;           /* [rows, C] */
    const float *gain_bias;  /* [2, C] */
    const float *mean, *var; /* [C] */
    const bf16 *residual;    /* [rows, C], or null */
    bf16 *y;                 /* [rows, C] */
    int64_t rows;
    int32_t width;
    float eps;
    int32_t relu;
} BatchnormForward;

typedef struct BatchnormBackwardSums {
    const bf16 *x;           /* [rows, C] */
    const float *mean, *var; /* [C] */
    const bf16 *y;           /* [rows, C], or null: no rectifier */
    const bf16 *dy;          /* [rows, C] */
    bf16 *dresidual;         /* [rows, C], or null */
    float *sums;             /* [2, C] */
    float *dgain_dbias;      /* [2, C], added to */
    float *partial;          /* scratch, [ROCLIP_PARTS, 2, C] */
    int64_t rows;
    int32_t width;
    float eps;
} BatchnormBackwardSums;

typedef struct BatchnormBackward {
    const bf16 *x;           /* [rows, C] */
    const float *gain_bias;  /* [2, C] */
    const float *mean, *var; /* [C] */
    const bf16 *y;           /* [rows, C], or null: no rectifier */
    const bf16 *dy;          /* [rows, C] */
    const float *sums;       /* [2, C], of `total` rows */
    bf16 *dx;                /* [rows, C] */
    int64_t rows, total;
    int32_t width;
    float eps;
    int32_t own; /* whether mean and var are those of the rows that were summed, else constants */
} BatchnormBackward;

typedef struct BatchnormObserve {
    const float *mean, *var; /* [C] */
    float *observed;         /* [2, C], added to */
    int64_t rows;
    int32_t width;
} BatchnormObserve;

typedef struct BatchnormUpdateRunning {
    const float *observed; /* [len], sums of `passes` */
    const float *norm;     /* [1]; where it is not finite nothing changes */
    float *weights;        /* [len] */
    bf16 *copy;            /* [len], the weights rounded */
    int64_t len;
    float passes, momentum;
} BatchnormUpdateRunning;

/* ---- avg_pool2d ---- */

typedef struct AvgPool2dForward {
    const bf16 *x;        /* [lines, 2, across, 2, C]: [N, H, W, C] */
    bf16 *y;              /* [lines, across, C]: [N, H/2, W/2, C] */
    int64_t lines;        /* N*H/2 */
    int32_t across, width; /* W/2, C */
} AvgPool2dForward;

typedef struct AvgPool2dBackward {
    const bf16 *dy; /* as y */
    bf16 *dx;       /* as x */
    int64_t lines;
    int32_t across, width;
    int32_t add; /* whether dx is added to */
} AvgPool2dBackward;

/* ---- attention_pool ---- */

typedef struct AttentionPoolTokens {
    const bf16 *pixels;     /* [N, T - 1, C] */
    const float *positions; /* [T, C] */
    bf16 *tokens;           /* [N, T, C] */
    int64_t images_n;
    int32_t tokens_n, width; /* T, C */
} AttentionPoolTokens;

typedef struct AttentionPoolBackwardTokens {
    const bf16 *dquery;          /* [N, C] */
    const bf16 *dkeys, *dvalues; /* [N, T, C] */
    bf16 *dpixels;               /* [N, T - 1, C] */
    float *dpositions;           /* [T, C], added to */
    int64_t images_n;
    int32_t tokens_n, width;
} AttentionPoolBackwardTokens;

typedef struct AttentionPoolForward {
    const bf16 *query;         /* [N, heads * head_dim] */
    const bf16 *keys, *values; /* [N, T, heads * head_dim] */
    bf16 *out;                 /* [N, heads * head_dim] */
    float *lse;                /* [N, heads] */
    int64_t images_n;
    int32_t tokens_n, heads, head_dim;
} AttentionPoolForward;

typedef struct AttentionPoolBackward {
    const bf16 *query;           /* [N, heads * head_dim] */
    const bf16 *keys, *values;   /* [N, T, heads * head_dim] */
    const bf16 *out;             /* [N, heads * head_dim] */
    const float *lse;            /* [N, heads] */
    const bf16 *dout;            /* [N, heads * head_dim] */
    bf16 *dquery;                /* [N, heads * head_dim] */
    bf16 *dkeys, *dvalues;       /* [N, T, heads * head_dim] */
    int64_t images_n;
    int32_t tokens_n, heads, head_dim;
} AttentionPoolBackward;

#endif
