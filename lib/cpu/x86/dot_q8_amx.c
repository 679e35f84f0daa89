/* Products of quantized weights with Q8 activations by AMX: a tile has 16 tokens (or fewer, as equal parts as can be) by 16 rows.
 * Loads, products and stores of tiles take 50 clocks a sub-block of 32 columns, for few tokens little less, and sub-blocks of 16
 * (Q6_K) as much: vectors do these.
 *
 * Weights come unpacked as for vectors (dot_q8_tmpl.h): 4 columns of each of 16 rows in 64 bytes are a row of the tile that is
 * multiplied with, as they lie. A sub-block's whole numbers are one product, which from there on go the way that those of vectors
 * go: the same whole numbers, the same order of the same operations, so the same bits.
 *
 * Tiles reach vectors only through memory, and late. So while tiles have the products of some tokens, vectors scale those of the
 * tokens before. */
#include <stdbool.h>
#include "cpu/x86/rows_avx512.h"
#include "cpu/x86/x86.h"
#include "cpu/x86/dot_q8.h"

#ifdef QMI_TILES_BY_C
#include "cpu/x86/tiles_by_c.h"
#define NAME(stem) qmi_amxbyc_##stem
QMI_DECLARE_Q8_KERNELS(amxbyc)
#else
#include "cpu/x86/tiles_amx.h"
#define NAME(stem) qmi_amx_##stem
#endif
#define INLINE static ROWS_INLINE
#define SUB_BLOCK 32
#define UNIT (PIECE / SUB_BLOCK)
#define TOKENS_A_TILE 16
#define TOKENS_LEAST 32 /* two tiles, so that there is something to scale while the second is multiplied */

typedef struct numbers {
    _Alignas(64) int32_t at[UNIT][TOKENS_A_TILE][ROWS];
} numbers;

INLINE void fetch(const uint8_t *from, int32_t bytes)
{
    for (int32_t b = 0; b < bytes; b += 64)
        __builtin_prefetch(from + b, 0, 2); /* to the second-level cache */
}

INLINE int32_t parts_of(int32_t tokens)
{
    return (tokens + TOKENS_A_TILE - 1) / TOKENS_A_TILE;
}

INLINE int32_t tokens_a_part(int32_t tokens)
{
    return (tokens + parts_of(tokens) - 1) / parts_of(tokens);
}

/* Registers 0 .. 3: sums; 4, 5: inputs; 6, 7: weights. A product takes long until it is stored, so four are under way. */
static void begin(int32_t tokens)
{
    tile_shapes shapes = { .palette = 1 };
    for (int i = 0; i < 4; i++) {
        shapes.row_bytes[i] = 4 * ROWS;
        shapes.rows[i] = (uint8_t)tokens_a_part(tokens);
    }
    for (int i = 4; i < 6; i++) {
        shapes.row_bytes[i] = SUB_BLOCK;
        shapes.rows[i] = (uint8_t)tokens_a_part(tokens);
        shapes.row_bytes[i + 2] = 4 * ROWS;
        shapes.rows[i + 2] = SUB_BLOCK / 4;
    }
    tiles_begin(&shapes);
}

#define PRODUCT(sums, a, b, s) \
    do { \
        TILE_ZERO(sums); \
        TILE_LOAD(a, x->values + SUB_BLOCK * (s), sizeof *x); \
        TILE_LOAD(b, w->bytes[SUB_BLOCK / 4 * (s)], sizeof w->bytes[0]); \
        TILE_PRODUCTS(sums, a, b); \
        TILE_STORE(sums, to->at[s], sizeof to->at[s][0]); \
    } while (0)

/* What multiply_few of dot_q8_tmpl.h does with the whole numbers, of `tokens` (a constant) tokens from one on. */
INLINE void scale(const bool minima, const floats scales[UNIT], const floats less_scales[UNIT], const int32_t count,
                  const numbers *from, int32_t token, const int tokens, const q8_input *x, q8_sums *to)
{
    floats sum[2], less[2];
    UNROLL
    for (int t = 0; t < tokens; t++) {
        sum[t] = f_load(to[t].sum);
        less[t] = f_load(to[t].less);
    }
    UNROLL
    for (int s = 0; s < UNIT; s++) {
        if (s >= count)
            break;
        UNROLL
        for (int t = 0; t < tokens; t++) {
            ints whole = i_load(from->at[s][token + t]);
            if (!minima)
                whole = i_add32(whole, i_all32(x[t].start[s]));
            sum[t] = f_fma(f_from(whole), f_mul(scales[s], f_all(x[t].scales[s])), sum[t]);
            if (minima)
                less[t] = f_fma(less_scales[s], f_all(x[t].sums[s]), less[t]);
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) {
        f_store(to[t].sum, sum[t]);
        if (minima)
            f_store(to[t].less, less[t]);
    }
}

/* One sub-block of a part of the tokens, and two tokens of the part before. */
#define STEP(s, sums_, a, b) \
    do { \
        if (part < parts && (s) < count) \
            PRODUCT(sums_, a, b, s); \
        if (part == 0) \
            fetch(ahead + (s) * step, step); \
        if (2 * (s) + 1 < left) \
            scale(minima, scales, less_scales, count, scaled, 2 * (s), 2, before + 2 * (s), sums_before + 2 * (s)); \
        else if (2 * (s) < left) \
            scale(minima, scales, less_scales, count, scaled, 2 * (s), 1, before + 2 * (s), sums_before + 2 * (s)); \
    } while (0)

INLINE void multiply(const bool minima, const q8_weights *w, const q8_input *inputs, const int32_t count, int32_t tokens,
                     const uint8_t *ahead, int32_t step, q8_sums *sums)
{
    numbers of_parts[2];
    floats scales[UNIT], less_scales[UNIT];
    const int32_t parts = parts_of(tokens), most = tokens_a_part(tokens);
    UNROLL
    for (int s = 0; s < UNIT; s++) {
        scales[s] = s < count ? f_load(w->scales[s]) : f_zero();
        less_scales[s] = minima && s < count ? f_load(w->minima[s]) : f_zero();
    }
    for (int32_t part = 0; part <= parts; part++) {
        const int32_t first = (part - 1) * most; /* token of the part before */
        const int32_t left = part == 0 ? 0 : tokens - first < most ? tokens - first : most;
        const q8_input *x = inputs + part * most, *before = x - most;
        q8_sums *sums_before = sums + first;
        numbers *to = &of_parts[part & 1], *scaled = &of_parts[1 - (part & 1)];
        for (int32_t s = 0; s < UNIT; s += 4) {
            STEP(s, 0, 4, 6);
            STEP(s + 1, 1, 5, 7);
            STEP(s + 2, 2, 4, 6);
            STEP(s + 3, 3, 5, 7);
        }
    }
}

static void end(void)
{
    tiles_end();
}

#define DEFINE_TILES(name, minima) \
    static void multiply_##name(const q8_weights *w, const q8_input *x, int32_t sub_blocks, int32_t tokens, \
                                const uint8_t *ahead, int32_t step, q8_sums *sums) \
    { \
        if (sub_blocks == UNIT) \
            multiply(minima, w, x, UNIT, tokens, ahead, step, sums); \
        else \
            multiply(minima, w, x, sub_blocks, tokens, ahead, step, sums); \
    } \
    static const q8_tiles name = { TOKENS_LEAST, begin, multiply_##name, end };
DEFINE_TILES(plain, false)
DEFINE_TILES(with_minima, true)

#define DEFINE_DOT(stem, tiles) \
    void qmi_vnni_dot_by_##stem(const qmi_cpu_tile *tile, const q8_tiles *by); \
    void NAME(dot_##stem)(const qmi_cpu_tile *tile) \
    { \
        qmi_vnni_dot_by_##stem(tile, &tiles); \
    }
DEFINE_DOT(q8_0, plain)
DEFINE_DOT(q4_0, plain)
DEFINE_DOT(q5_0, plain)
DEFINE_DOT(iq4_nl, plain)
DEFINE_DOT(iq4_xs, plain)
DEFINE_DOT(q4_k, with_minima)
DEFINE_DOT(q5_k, with_minima)

void NAME(dot_q6_k)(const qmi_cpu_tile *tile)
{
    qmi_vnni_dot_q6_k(tile);
}
