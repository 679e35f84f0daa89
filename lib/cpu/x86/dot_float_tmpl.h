/* Bodies of the products of float weights (F32, F16, BF16) with float activations. Included after vector_*.h.
 *
 * Each (row, token) has two sums of LANES partial sums, over even and odd vectors of columns, added at the end: the same order
 * whatever else is computed along. */
#include "cpu/kernels.h"

#define TOKENS_TOGETHER 4 /* tokens that share each load of weights: 4 x 2 sums and the operands fit 16 registers */

#define DEFINE_DOT(type, number, load, load_part) \
    static inline __attribute__((always_inline)) void dot_##type(const qmi_cpu_tile *tile, int32_t row, int32_t first, \
                                                                 const int count) \
    { \
        const number *w = (const number *)(const void *)((const char *)tile->weights + row * tile->row_bytes); \
        const float *x[TOKENS_TOGETHER]; \
        vector even[TOKENS_TOGETHER], odd[TOKENS_TOGETHER]; \
        int64_t c = 0; \
        for (int t = 0; t < count; t++) { \
            int64_t at = tile->order ? tile->order[first + t] : first + t; \
            x[t] = (const float *)(const void *)((const char *)tile->inputs + at * tile->input_bytes); \
            even[t] = odd[t] = v_zero(); \
        } \
        for (; c + 2 * LANES <= tile->columns; c += 2 * LANES) { \
            vector a = load(w + c), b = load(w + c + LANES); \
            for (int t = 0; t < count; t++) { \
                even[t] = v_fma(a, v_load(x[t] + c), even[t]); \
                odd[t] = v_fma(b, v_load(x[t] + c + LANES), odd[t]); \
            } \
        } \
        for (; c < tile->columns; c += LANES) { \
            int64_t n = tile->columns - c < LANES ? tile->columns - c : LANES; \
            vector a = load_part(w + c, n); \
            for (int t = 0; t < count; t++) \
                even[t] = v_fma(a, v_load_part(x[t] + c, n), even[t]); \
        } \
        for (int t = 0; t < count; t++) { \
            float *out = tile->out + (first + t) * tile->out_stride + row; \
            float sum = v_sum(v_add(even[t], odd[t])); \
            *out = tile->add ? *out + sum : sum; \
        } \
    } \
    void NAME(dot_##type)(const qmi_cpu_tile *tile) \
    { \
        for (int32_t row = 0; row < tile->rows; row++) { \
            int32_t t = 0; \
            for (; t + TOKENS_TOGETHER <= tile->tokens; t += TOKENS_TOGETHER) \
                dot_##type(tile, row, t, TOKENS_TOGETHER); \
            for (; t < tile->tokens; t++) \
                dot_##type(tile, row, t, 1); \
        } \
    }

DEFINE_DOT(f32, float, v_load, v_load_part)
DEFINE_DOT(f16, uint16_t, v_load_half, v_load_half_part)
DEFINE_DOT(bf16, uint16_t, v_load_bfloat, v_load_bfloat_part)
