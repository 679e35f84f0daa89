/* Bodies of the products of float weights (F32, F16, BF16) with float activations. Included after attend_tmpl.h (v_sum4).
 *
 * A block of rows and tokens passes over the columns together: a vector of weights, converted once, serves all its tokens, and
 * one of activations all its rows. Each (row, token) has LANES partial sums, lane by lane over the columns, added at the end in
 * one order: the same bits in any block.
 *
 * What is read next is fetched meanwhile: with few tokens memory bounds the speed, and several rows at once are several streams,
 * of which it gives less by itself (BF16, one token: 20 GB/s instead of 40). */
#include "cpu/kernels.h"

#define DOT_ROWS 4                        /* their results are one store */
#define DOT_TOKENS (LANES == 16 ? 6 : 3)  /* 24 sums in 32 registers, 12 in 16: the rest hold activations and a weight */
#define DOT_TOKENS_MOST 6
#define DOT_AHEAD 16                      /* rows that are fetched ahead: of 512 columns that is still 16 KB */
#define DOT_LINE(number) ((int)(64 / sizeof(number))) /* columns of a cache line */

ALWAYS void dot_put(const qmi_cpu_tile *tile, float *out, __m128 four)
{
    _mm_storeu_ps(out, tile->add ? _mm_add_ps(_mm_loadu_ps(out), four) : four);
}

/* sums [tokens][rows] of the tokens and rows from `token` and `row` on */
ALWAYS void dot_store(const qmi_cpu_tile *tile, int32_t row, int32_t token, const int rows, const int tokens,
                      vector (*sums)[DOT_ROWS])
{
    const int together = LANES / DOT_ROWS; /* tokens whose sums make a vector */
    float *out = tile->out + token * tile->out_stride + row, all[LANES];
    int t = 0;
    for (; rows == DOT_ROWS && t + together <= tokens; t += together) {
        v_store(all, v_sum_each(sums[t]));
        for (int i = 0; i < together; i++)
            dot_put(tile, out + (t + i) * tile->out_stride, _mm_loadu_ps(all + i * DOT_ROWS));
    }
    for (; rows == DOT_ROWS && t < tokens; t++)
        dot_put(tile, out + t * tile->out_stride, v_sum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]));
    for (; t < tokens; t++)
        for (int r = 0; r < rows; r++) {
            float *to = out + t * tile->out_stride + r;
            *to = tile->add ? *to + v_sum(sums[t][r]) : v_sum(sums[t][r]);
        }
}

/* Where row `row` of a tile lies, or what is read instead when the tile has ended. */
ALWAYS const char *dot_ahead(const qmi_cpu_tile *tile, int32_t row)
{
    return row < tile->rows || !tile->next ? (const char *)tile->weights + row * tile->row_bytes
                                           : (const char *)tile->next + (row - tile->rows) * tile->row_bytes;
}

#define DEFINE_DOT(type, number, load, load_part) \
    ALWAYS void dot_##type(const qmi_cpu_tile *tile, int32_t row, const int rows, int32_t first, const int tokens, \
                           const char *ahead) \
    { \
        const number *w[DOT_ROWS]; \
        const float *x[DOT_TOKENS_MOST]; \
        vector sums[DOT_TOKENS_MOST][DOT_ROWS], v[DOT_TOKENS_MOST]; \
        int64_t c = 0; \
        for (int r = 0; r < rows; r++) \
            w[r] = (const number *)(const void *)((const char *)tile->weights + (row + r) * tile->row_bytes); \
        for (int t = 0; t < tokens; t++) { \
            int64_t at = tile->order ? tile->order[first + t] : first + t; \
            x[t] = (const float *)(const void *)((const char *)tile->inputs + at * tile->input_bytes); \
            for (int r = 0; r < rows; r++) \
                sums[t][r] = v_zero(); \
        } \
        for (; c + DOT_LINE(number) <= tile->columns; c += DOT_LINE(number)) { \
            for (int r = 0; r < rows; r++) \
                __builtin_prefetch(ahead + r * tile->row_bytes + c * (int64_t)sizeof(number), 0, 2); \
            _Pragma("GCC unroll 1") \
            for (int i = 0; i < DOT_LINE(number); i += LANES) { \
                for (int t = 0; t < tokens; t++) \
                    v[t] = v_load(x[t] + c + i); \
                for (int r = 0; r < rows; r++) { \
                    vector a = load(w[r] + c + i); \
                    for (int t = 0; t < tokens; t++) \
                        sums[t][r] = v_fma(a, v[t], sums[t][r]); \
                } \
            } \
        } \
        for (; c + LANES <= tile->columns; c += LANES) { \
            for (int t = 0; t < tokens; t++) \
                v[t] = v_load(x[t] + c); \
            for (int r = 0; r < rows; r++) { \
                vector a = load(w[r] + c); \
                for (int t = 0; t < tokens; t++) \
                    sums[t][r] = v_fma(a, v[t], sums[t][r]); \
            } \
        } \
        if (c < tile->columns) { \
            int64_t n = tile->columns - c; \
            for (int r = 0; r < rows; r++) { \
                vector a = load_part(w[r] + c, n); \
                for (int t = 0; t < tokens; t++) \
                    sums[t][r] = v_fma(a, v_load_part(x[t] + c, n), sums[t][r]); \
            } \
        } \
        dot_store(tile, row, first, rows, tokens, sums); \
    } \
    ALWAYS void dot_rows_##type(const qmi_cpu_tile *tile, int32_t first, const int tokens) \
    { \
        int32_t row = 0; \
        for (; row + DOT_ROWS <= tile->rows; row += DOT_ROWS) \
            dot_##type(tile, row, DOT_ROWS, first, tokens, dot_ahead(tile, row + DOT_AHEAD)); \
        for (; row < tile->rows; row++) \
            dot_##type(tile, row, 1, first, tokens, dot_ahead(tile, row + DOT_AHEAD)); \
    } \
    void NAME(dot_##type)(const qmi_cpu_tile *tile) \
    { \
        int32_t t = 0; \
        for (; t + DOT_TOKENS <= tile->tokens; t += DOT_TOKENS) \
            dot_rows_##type(tile, t, DOT_TOKENS); \
        for (; DOT_TOKENS > 3 && t + 3 <= tile->tokens; t += 3) \
            dot_rows_##type(tile, t, 3); \
        for (; t + 2 <= tile->tokens; t += 2) \
            dot_rows_##type(tile, t, 2); \
        for (; t < tile->tokens; t++) \
            dot_rows_##type(tile, t, 1); \
    }

DEFINE_DOT(f32, float, v_load, v_load_part)
DEFINE_DOT(f16, uint16_t, v_load_half, v_load_half_part)
DEFINE_DOT(bf16, uint16_t, v_load_bfloat, v_load_bfloat_part)
