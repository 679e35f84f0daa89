/* Products of quantized weights with Q8 activations by AMX: a tile has 16 tokens (or fewer, as equal parts as can be) by 16 rows.
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
#define UNIT 8         /* sub-blocks whose whole numbers are kept */
#define TOKENS_A_TILE 16

typedef struct numbers {
    _Alignas(64) int32_t at[UNIT][TOKENS_A_TILE][ROWS];
} numbers;

/* Sub-blocks of a piece: their scales, and where they begin in an input. */
typedef struct unit {
    floats scales[UNIT], minima[UNIT];
    const q8_weights *weights;
    int32_t first, count;
} unit;

INLINE int32_t parts_of(int32_t tokens)
{
    return (tokens + TOKENS_A_TILE - 1) / TOKENS_A_TILE;
}

INLINE int32_t tokens_a_part(int32_t tokens)
{
    return (tokens + parts_of(tokens) - 1) / parts_of(tokens);
}

/* Registers 0, 1: sums; 2, 3: inputs; 4, 5: weights. Two of each, so that a product need not wait for the one before. */
INLINE void begin(int32_t tokens, int32_t sub_block)
{
    tile_shapes shapes = { .palette = 1 };
    for (int i = 0; i < 4; i++)
        shapes.rows[i] = (uint8_t)tokens_a_part(tokens);
    for (int i = 0; i < 2; i++) {
        shapes.row_bytes[i] = 4 * ROWS;
        shapes.row_bytes[2 + i] = (uint16_t)sub_block;
        shapes.row_bytes[4 + i] = 4 * ROWS;
        shapes.rows[4 + i] = (uint8_t)(sub_block / 4);
    }
    tiles_begin(&shapes);
}

#define PRODUCT(sums, a, b, s) \
    do { \
        TILE_ZERO(sums); \
        TILE_LOAD(a, x->values + sub_block * (u->first + (s)), sizeof *x); \
        TILE_LOAD(b, u->weights->bytes[sub_block / 4 * (u->first + (s))], sizeof u->weights->bytes[0]); \
        TILE_PRODUCTS(sums, a, b); \
        TILE_STORE(sums, to->at[s], sizeof to->at[s][0]); \
    } while (0)

/* Sub-blocks s and s + 1 of a part of the tokens, the first of which is x. */
INLINE void multiply_two(const int sub_block, const unit *u, const q8_input *x, int32_t s, numbers *to)
{
    if (s < u->count)
        PRODUCT(0, 2, 4, s);
    if (s + 1 < u->count)
        PRODUCT(1, 3, 5, s + 1);
}

/* What multiply_few of dot_q8_tmpl.h does with a token's whole numbers. */
INLINE void scale(const int sub_block, const bool minima, const unit *u, const int32_t count, const numbers *from, int32_t token,
                  const q8_input *x, q8_sums *to)
{
    floats sum = f_load(to->sum);
    UNROLL
    for (int s = 0; s < UNIT; s++) {
        if (s >= count)
            break;
        ints whole = i_load(from->at[s][token]);
        if (!minima)
            whole = i_add32(whole, i_all32(x->start[u->first + s]));
        sum = f_fma(f_from(whole), f_mul(u->scales[s], f_all(x->scales[(u->first + s) * sub_block / 32])), sum);
    }
    f_store(to->sum, sum);
    if (!minima)
        return;
    sum = f_load(to->less);
    UNROLL
    for (int s = 0; s < UNIT; s++) {
        if (s >= count)
            break;
        sum = f_fma(u->minima[s], f_all(x->sums[u->first + s]), sum);
    }
    f_store(to->less, sum);
}

INLINE void multiply_unit(const int sub_block, const bool minima, const unit *u, const int32_t count, const q8_input *x,
                          int32_t tokens, q8_sums *to)
{
    numbers of_parts[2];
    const int32_t parts = parts_of(tokens), most = tokens_a_part(tokens);
    for (int32_t part = 0; part <= parts; part++) {
        const int32_t before = (part - 1) * most; /* the first token of the part before */
        const int32_t left = part == 0 ? 0 : tokens - before < most ? tokens - before : most;
        for (int32_t s = 0; s < UNIT; s += 2) {
            if (part < parts)
                multiply_two(sub_block, u, x + part * most, s, &of_parts[part & 1]);
            for (int32_t t = 2 * s; t < 2 * s + 4 && t < left; t++)
                scale(sub_block, minima, u, count, &of_parts[1 - (part & 1)], t, &x[before + t], &to[before + t]);
        }
    }
}

INLINE void multiply(const int sub_block, const bool minima, const q8_weights *w, const q8_input *x, int32_t sub_blocks,
                     int32_t tokens, q8_sums *to)
{
    for (int32_t first = 0; first < sub_blocks; first += UNIT) {
        unit u = { .weights = w, .first = first, .count = sub_blocks - first < UNIT ? sub_blocks - first : UNIT };
        UNROLL
        for (int s = 0; s < UNIT; s++) {
            u.scales[s] = s < u.count ? f_load(w->scales[first + s]) : f_zero();
            u.minima[s] = minima && s < u.count ? f_load(w->minima[first + s]) : f_zero();
        }
        if (u.count == UNIT)
            multiply_unit(sub_block, minima, &u, UNIT, x, tokens, to);
        else
            multiply_unit(sub_block, minima, &u, u.count, x, tokens, to);
    }
}

static void end(void)
{
    tiles_end();
}

#define DEFINE_TILES(name, sub_block, minima) \
    static void begin_##name(int32_t tokens) \
    { \
        begin(tokens, sub_block); \
    } \
    static void multiply_##name(const q8_weights *w, const q8_input *x, int32_t sub_blocks, int32_t tokens, q8_sums *to) \
    { \
        multiply(sub_block, minima, w, x, sub_blocks, tokens, to); \
    } \
    static const q8_tiles name = { begin_##name, multiply_##name, end };
DEFINE_TILES(of_32, 32, false)
DEFINE_TILES(of_16, 16, false)
DEFINE_TILES(of_minima, 32, true)

#define DEFINE_DOT(stem, tiles) \
    void qmi_vnni_dot_by_##stem(const qmi_cpu_tile *tile, const q8_tiles *tiles_); \
    void NAME(dot_##stem)(const qmi_cpu_tile *tile) \
    { \
        qmi_vnni_dot_by_##stem(tile, &tiles); \
    }
DEFINE_DOT(q8_0, of_32)
DEFINE_DOT(q4_0, of_32)
DEFINE_DOT(q5_0, of_32)
DEFINE_DOT(iq4_nl, of_32)
DEFINE_DOT(iq4_xs, of_32)
DEFINE_DOT(q4_k, of_minima)
DEFINE_DOT(q5_k, of_minima)
DEFINE_DOT(q6_k, of_16)
