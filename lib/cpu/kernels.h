/* THE table of CPU kernels: the inner loops that are worth an instruction set of their own, with a contract for each.
 *
 * qmi_cpu_kernels_fill starts with the scalar ones (scalar/: the specification) and overrides them with those of each instruction
 * set that is to be used, in rising order (x86/). Nothing else calls a kernel by name.
 *
 * Contracts common to all:
 * - Pure functions of their operands, called from any thread; no allocation, no state. Outputs never overlap inputs unless said.
 * - Rows of the library's own buffers start at multiples of 64 bytes; weights, pages and slots only at what their element needs.
 *   Nothing is read or written beyond the sizes given: tails are the kernel's work, any size from 1 up.
 * - Bits: within one instruction set a result depends on nothing but the values that its formula names. So dot gives a (row,
 *   token) the same sum in the same order whatever rows, tokens, order or place in the tile; delta and mix add in ascending order
 *   of tokens, one at a time. The engine cuts work as it likes and still gets the same bits.
 * - Values that are not finite come out as such, without undefined behaviour: no conversion of a NaN to an integer in C.
 * - Accuracy: products and sums of float32 in float32 or better; exp, sigmoid and silu within 2 units in the last place or so,
 *   for any argument (exp of less than -104 may be 0). */
#ifndef QMI_CPU_KERNELS_H
#define QMI_CPU_KERNELS_H

#include <stdbool.h>
#include <stdint.h>
#include "quant/kv_type.h"
#include "quant/quant.h"

/* ---- Products of weights and activations ---- */

/* How a row of activations is prepared for a type of weights. */
typedef enum qmi_cpu_format {
    QMI_FORMAT_F32, /* as it is */
    QMI_FORMAT_Q8   /* blocks of 32 int8 with a scale each, below; only for columns that are a multiple of 32 */
} qmi_cpu_format;

/* A Q8 row of C columns, 1.25 C bytes:
 *   int8_t values[C]       x / scale rounded to the nearest, ties to even, so within -127 .. 127
 *   float scales[C / 32]   the block's largest magnitude / 127; NaN when a value of the block is not finite. The int8 are 0 in
 *                          a block of zeros and in one that is not finite
 *   int16_t sums[C / 16]   of 16 values each */
static inline int64_t qmi_q8_bytes(int64_t columns)
{
    return columns + columns / 8 + columns / 8;
}

static inline float *qmi_q8_scales(void *row, int64_t columns)
{
    return (float *)(void *)((char *)row + columns);
}

static inline int16_t *qmi_q8_sums(void *row, int64_t columns)
{
    return (int16_t *)(void *)((char *)row + columns + columns / 8);
}

/* out[t * out_stride + r] = sum over c of weights[r][c] * input t[c]   (add: is added to it, in one addition at the end) */
typedef struct qmi_cpu_tile {
    const void *weights;    /* the first row, in the type's blocks */
    int64_t row_bytes;      /* from one row to the next */
    int64_t columns;        /* a multiple of the type's block */
    const void *next;       /* weights that are read after these: may be fetched ahead. NULL: what lies behind these */
    const void *inputs;     /* rows in the type's format */
    int64_t input_bytes;    /* from one to the next; Q8: a multiple of 64 */
    const int32_t *order;   /* [tokens]: input t is row order[t]; NULL: row t */
    float *out;
    int64_t out_stride;     /* floats */
    int32_t rows, tokens;   /* decoding: tokens is 1, the speed is that of reading the weights; prefill: tokens up to 64 */
    bool add;
} qmi_cpu_tile;

typedef void (*qmi_cpu_dot)(const qmi_cpu_tile *tile);

/* ---- Attention ---- */

/* For `heads` query heads that share a key-value head, over a run of `count` tokens whose records (quant/kv_type.h) lie one after
 * the other; key j is what record j unpacks to.
 * scores: score[h * score_stride + j] = scale * sum over d of query[h * query_stride + d] * key j[d]
 * mix:    out[h * out_stride + d] += sum over ascending j of weight[h * weight_stride + j] * value j[d], where
 *         each out is one chain of additions (of fused multiply-adds), so that cutting a run in two changes nothing
 * head_size is even; 64, 128 and 256 are common.
 * scores has the bits that scale * dot[F32] of the unpacked keys has, or F16 and BF16 of such keys as they lie; mix of unpacked
 * values those of mix; but for types with codes only where head_size is whole blocks.
 * Keys of q2 come as a group (qmi_kv_pack_group) instead of records, and count is QMI_KV_GROUP. */
typedef struct qmi_cpu_scores {
    const float *query;
    const void *keys;
    float *score;
    int64_t query_stride, score_stride;
    int32_t heads, head_size, count;
    float scale;
} qmi_cpu_scores;

typedef struct qmi_cpu_mix {
    const float *weight;
    const void *values;
    float *out;
    int64_t weight_stride, out_stride;
    int32_t heads, head_size, count;
} qmi_cpu_mix;

typedef struct qmi_cpu_kv_kernels { /* of a type of stored keys and values */
    void (*scores)(const qmi_cpu_scores *work);
    void (*mix)(const qmi_cpu_mix *work);
    void (*store)(const float *from, void *to, int64_t count); /* a record, the bits of qmi_kv_pack */
    void (*unpack)(const void *record, float *to, int64_t count); /* the bits of qmi_kv_unpack; NULL: that does */
} qmi_cpu_kv_kernels;

/* ---- The recurrent layers ---- */

/* out[t * out_stride + c] = silu(sum over ascending i < taps of weights[c * taps + i] * columns[t + i][c]), c < channels:
 * columns are pointers to the successive times' values, tokens + taps - 1 of them. taps is 4 in all models known. */
typedef struct qmi_cpu_convolution {
    const float *const *columns;
    const float *weights;
    float *out;
    int64_t out_stride;
    int32_t channels, taps, tokens;
} qmi_cpu_convolution;

/* Some columns of one value head's state S[key_size][columns], through `tokens` steps in order, per step:
 *   S *= decay;  r = S^T key;  S += key (beta (value - r))^T;  out = S^T query
 * The first step reads `state`, all write `next_state`, which is the same or does not overlap it. Columns do not influence each
 * other. When decoding, tokens is 1 and the state comes from memory: the speed is that of reading and writing it once. */
typedef struct qmi_cpu_delta {
    const float *state;
    float *next_state;
    int64_t state_stride;          /* floats from one key index to the next, of both */
    const float *query, *key;      /* token t's at t * key_stride: [key_size] */
    const float *value;            /* at t * value_stride: [columns] */
    const float *decay, *beta;     /* at t * gate_stride: one float */
    float *out;                    /* at t * out_stride: [columns] */
    int64_t key_stride, value_stride, gate_stride, out_stride;
    int32_t key_size, columns, tokens;
} qmi_cpu_delta;

/* ---- The table ---- */

typedef struct qmi_cpu_kernels {
    const char *isa;                       /* the highest instruction set in it: "avx512" */

    qmi_cpu_dot dot[QMI_TYPE_COUNT];       /* by weight type. NULL: a row is unpacked to floats, then dot[QMI_TYPE_F32] */
    uint8_t format[QMI_TYPE_COUNT];        /* qmi_cpu_format of that dot's inputs; QMI_FORMAT_F32 where it is NULL */
    /* Fills columns [first, first + count) of a Q8 row of `columns`, both multiples of 32, from x[0 .. count). */
    void (*quantize)(const float *x, void *row, int64_t columns, int64_t first, int64_t count);

    qmi_cpu_kv_kernels kv[QMI_KV_TYPES];
    /* Turns a head in place by H S / sqrt(m) (quant/kv_type.h), or back. Sums and differences of numbers 1, 2, 4, ... apart, in
     * this order; then one product. */
    void (*spread)(float *x, int32_t count);
    void (*gather)(float *x, int32_t count);
    float (*maximum)(const float *x, int64_t count);             /* NaNs are passed over; -infinity when there is nothing else */
    float (*exp_sum)(float *x, int64_t count, float shift);      /* x = exp(x - shift), returns their sum. x - shift <= 0 */
    void (*blend)(float *y, float a, const float *x, float b, int64_t count); /* y = a y + b x */

    /* out = x / sqrt(mean(x^2) + epsilon) * weight;  out may be x */
    void (*rms)(const float *x, const float *weight, float epsilon, float *out, int64_t count);
    /* x *= scale / sqrt(sum(x^2) + epsilon), in place */
    void (*unit)(float *x, float epsilon, float scale, int64_t count);
    void (*silu_mul)(const float *gate, const float *x, float *out, int64_t count);  /* out = silu(gate) * x; out may be either */
    void (*sigmoid_mul)(const float *gate, float *x, int64_t count);                 /* x *= sigmoid(gate) */
    /* (x[i], x[i + half]) = (x[i] c[i] - x[i + half] s[i], x[i + half] c[i] + x[i] s[i]), i < half, in place */
    void (*rotate)(float *x, const float *cosine, const float *sine, int32_t half);

    void (*convolve)(const qmi_cpu_convolution *work);
    void (*delta)(const qmi_cpu_delta *work);
} qmi_cpu_kernels;

/* The table for a set of features (cpu_features.h). */
void qmi_cpu_kernels_fill(qmi_cpu_kernels *kernels, uint32_t features);

/* What each instruction set adds; called by the former, in this order. */
void qmi_cpu_kernels_scalar(qmi_cpu_kernels *kernels);
#if defined(__x86_64__)
void qmi_cpu_kernels_avx2(qmi_cpu_kernels *kernels, uint32_t features); /* both pick the VNNI ones when that feature is there */
void qmi_cpu_kernels_avx512(qmi_cpu_kernels *kernels, uint32_t features);
#endif

#endif
