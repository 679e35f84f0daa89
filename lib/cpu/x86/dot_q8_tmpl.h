/* Body of the products of quantized weights with Q8 activations (kernels.h).
 *
 * Included by an instance that has NAME(stem), the vectors of rows_*.h and
 *     sub_dot(tokens, groups, bits, weights, values, sums)      see sub_dot_vnni.h
 *     EIGHT_BITS_SIGNED   weights of 8 bits go to sub_dot signed, not with 128 added
 *     BITS_MATTER         sub_dot does less for weights of fewer bits
 *
 * Rows lie in lanes. A tile is done in pieces of ROWS rows by 256 columns: dot_q8_unpack.h makes of a piece bytes that a vector
 * at a time has 4 columns of each row, once for all tokens, and scales for each sub-block of 32 (Q6_K: 16) columns. Then tokens
 * are taken together, so many that their sums fill the registers.
 *
 * The sum of a (row, token) is one chain, over ascending sub-blocks s:
 *     sum  = fma(float(whole number), weight scale * input scale, sum);   whole number: sum of q x over the sub-block's columns
 *     less = fma(-minimum, input scale * float(sum of x), less)           in formats that have minima; the result is sum + less
 * The whole numbers are exact whatever the order of their addition, so nothing that is computed along changes a sum's bits. */
#include <stdbool.h>
#include <string.h>
#include "cpu/kernels.h"
#include "cpu/x86/dot_q8.h"
#include "quant/quant_blocks.h"

#define INLINE static ROWS_INLINE
#define TOKENS_FEW 2      /* up to so many: dot_q8_few.h */
#define INPUTS_FEW 96     /* pieces of activations that are kept then */
#define AHEAD_LEAST 8192  /* bytes that are fetched ahead then, if two times the rows have as many */

typedef struct q8_few {        /* successive pieces of ROWS rows, for few tokens */
    const uint8_t *rows[ROWS]; /* where the first begins */
    const uint8_t *ahead;      /* what is read next: piece_bytes a piece and row */
    const q8_input *inputs;    /* [pieces][tokens] */
    int32_t pieces, blocks;    /* blocks: of 32 columns in each piece; the bytes are there for 8 */
} q8_few;

typedef struct q8_type {
    /* Sub-blocks of a piece whose columns begin at byte `at` of each row: `blocks` of 32 columns. */
    void (*unpack)(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to);
    q8_multiply *multiply;
    void (*multiply_rows)(const q8_few *few, int32_t tokens, q8_sums *sums);
    const uint8_t *units;        /* the order of 16 columns each in which multiply_rows wants values; NULL: as they are */
    int32_t sub_block;           /* columns */
    int32_t shift;               /* 0: weights are as they are */
    int32_t piece_bytes;         /* of a row */
} q8_type;

INLINE int64_t pieces_of(const qmi_cpu_tile *tile)
{
    return (tile->columns + PIECE - 1) / PIECE;
}

/* Blocks of 32 columns: 8, but in the last piece of a row. */
INLINE int32_t blocks_of(const qmi_cpu_tile *tile, int64_t piece)
{
    int64_t left = tile->columns - piece * PIECE;
    return (int32_t)(left < PIECE ? left : PIECE) / 32;
}

/* ---- activations ---- */

/* The `blocks` blocks from column `at` on. */
static void pack(const q8_type *type, const void *row, int64_t columns, int64_t at, int32_t blocks, q8_input *to)
{
    const float *scales = qmi_q8_scales((void *)(uintptr_t)row, columns) + at / 32;
    const int16_t *sums = qmi_q8_sums((void *)(uintptr_t)row, columns) + at / 16;
    float scales_copy[8] = { 0 };
    int16_t sums_copy[16] = { 0 };
    for (int32_t b = 0; b < blocks; b++)
        _mm256_store_si256((__m256i *)(void *)(to->values + 32 * b),
                           _mm256_loadu_si256((const __m256i *)(const void *)((const int8_t *)row + at + 32 * b)));
    if (blocks < PIECE / 32) {
        memset(to->values + 32 * blocks, 0, PIECE - 32 * (size_t)blocks);
        memcpy(scales_copy, scales, (size_t)blocks * sizeof *scales);
        memcpy(sums_copy, sums, 2 * (size_t)blocks * sizeof *sums);
        scales = scales_copy;
        sums = sums_copy;
    }
    __m256 by = _mm256_loadu_ps(scales);
    __m256i sixteens = _mm256_loadu_si256((const __m256i *)(const void *)sums);
    __m256i whole = _mm256_madd_epi16(sixteens, _mm256_set1_epi16(1));
    __m256i *start = (__m256i *)(void *)to->start;
    const __m128i shift = _mm_cvtsi32_si128(type->shift);
    _mm256_store_ps(to->scales, by);
    _mm256_store_ps(to->sums, _mm256_mul_ps(by, _mm256_cvtepi32_ps(whole)));
    if (type->shift == 0) {
        start[0] = start[1] = _mm256_setzero_si256();
    } else if (type->sub_block == 32) {
        start[0] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_sll_epi32(whole, shift));
    } else {
        for (int i = 0; i < 2; i++) {
            __m256i eight = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(sums + 8 * i)));
            start[i] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_sll_epi32(eight, shift));
        }
    }
}

/* ---- a piece's products ---- */

INLINE void fetch(const uint8_t *from, int64_t bytes)
{
    for (int64_t b = 0; b < bytes; b += 64)
        __builtin_prefetch(from + b, 0, 2); /* to the second-level cache: that has more reads under way than the first */
}

INLINE void multiply_few(const int tokens, const int groups, const bool minima, const int bits, const q8_weights *w,
                         const q8_input *x, int32_t sub_blocks, const uint8_t *ahead, int32_t step, q8_sums *to)
{
    floats sums[TOGETHER];
    UNROLL
    for (int t = 0; t < tokens; t++)
        sums[t] = f_load(to[t].sum);
    for (int32_t s = 0; s < sub_blocks; s++) {
        ints products[TOGETHER];
        fetch(ahead + s * step, step);
        UNROLL
        for (int t = 0; t < tokens; t++)
            products[t] = minima ? i_zero() : i_all32(x[t].start[s]);
        sub_dot(tokens, groups, bits, w->bytes[groups * s], x->values + 4 * groups * s, products);
        floats scales = f_load(w->scales[s]);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            floats scale = f_mul(scales, f_all(x[t].scales[groups == 8 ? s : s / 2]));
            sums[t] = f_fma(f_from(products[t]), scale, sums[t]);
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++)
        f_store(to[t].sum, sums[t]);
    if (!minima)
        return;
    UNROLL
    for (int t = 0; t < tokens; t++)
        sums[t] = f_load(to[t].less);
    for (int32_t s = 0; s < sub_blocks; s++) {
        floats less = f_load(w->minima[s]);
        UNROLL
        for (int t = 0; t < tokens; t++)
            sums[t] = f_fma(less, f_all(x[t].sums[s]), sums[t]);
    }
    UNROLL
    for (int t = 0; t < tokens; t++)
        f_store(to[t].less, sums[t]);
}

/* Tokens in parts as equal as can be. */
INLINE void multiply(const int groups, const bool minima, const int bits, const q8_weights *w, const q8_input *x,
                     int32_t sub_blocks, int32_t tokens, const uint8_t *ahead, int32_t step, q8_sums *to)
{
    for (int32_t parts = (tokens + TOGETHER - 1) / TOGETHER; parts > 0; parts--) {
        int32_t count = (tokens + parts - 1) / parts;
        switch (count) {
#define CASE(n) case n: multiply_few(n, groups, minima, bits, w, x, sub_blocks, ahead, step, to); break;
        EACH_COUNT(CASE)
#undef CASE
        }
        tokens -= count;
        x += count;
        to += count;
        step = 0;
    }
}

#define DEFINE_MULTIPLY(name, groups, minima, bits) \
    static void name(const q8_weights *w, const q8_input *x, int32_t sub_blocks, int32_t tokens, const uint8_t *ahead, \
                     int32_t step, q8_sums *to) \
    { \
        multiply(groups, minima, bits, w, x, sub_blocks, tokens, ahead, step, to); \
    }
DEFINE_MULTIPLY(multiply_5_minima, 8, true, 5)
DEFINE_MULTIPLY(multiply_8, 8, false, 8)
DEFINE_MULTIPLY(multiply_6_of_16, 4, false, 6)
#if BITS_MATTER
DEFINE_MULTIPLY(multiply_4_minima, 8, true, 4)
DEFINE_MULTIPLY(multiply_4, 8, false, 4)
DEFINE_MULTIPLY(multiply_5, 8, false, 5)
#else
#define multiply_4_minima multiply_5_minima
#define multiply_4 multiply_8
#define multiply_5 multiply_8
#endif

#include "cpu/x86/dot_q8_unpack.h"
#if ROWS == 16
#include "cpu/x86/dot_q8_few_512.h"
#else
#include "cpu/x86/dot_q8_few.h"
#endif

/* ---- a tile ---- */

typedef struct q8_scratch {
    q8_weights weights;
    q8_input inputs[TOKENS_MOST];
    q8_sums sums[ROWS_MOST / ROWS][TOKENS_MOST];
} q8_scratch;

/* A piece of all tokens; the next one is fetched meanwhile, as rows of activations lie too far apart to be foreseen. */
static void pack_tokens(const q8_type *type, const qmi_cpu_tile *tile, int32_t first, int32_t tokens, int64_t piece, q8_input *to)
{
    for (int32_t t = 0; t < tokens; t++) {
        int64_t input = tile->order ? tile->order[first + t] : first + t;
        const char *row = (const char *)tile->inputs + input * tile->input_bytes;
        fetch((const uint8_t *)row + (piece + 1) * PIECE, PIECE);
        __builtin_prefetch(qmi_q8_scales((void *)(uintptr_t)row, tile->columns) + (piece + 1) * (PIECE / 32), 0, 2);
        __builtin_prefetch(qmi_q8_sums((void *)(uintptr_t)row, tile->columns) + (piece + 1) * (PIECE / 16), 0, 2);
        pack(type, row, tile->columns, piece * PIECE, blocks_of(tile, piece), &to[t]);
    }
}

/* Lanes beyond the last row compute it once more. */
INLINE void find_rows(const qmi_cpu_tile *tile, int32_t first, const uint8_t *row[ROWS])
{
    for (int32_t r = 0; r < ROWS; r++)
        row[r] = (const uint8_t *)tile->weights + (first + r < tile->rows ? first + r : tile->rows - 1) * tile->row_bytes;
}

INLINE void write_sums(const qmi_cpu_tile *tile, int32_t row, int32_t first, int32_t tokens, const q8_sums *sums)
{
    for (int32_t t = 0; t < tokens; t++)
        f_write(tile->out + (first + t) * tile->out_stride + row, f_add(f_load(sums[t].sum), f_load(sums[t].less)),
                tile->rows - row < ROWS ? tile->rows - row : ROWS, tile->add);
}

/* ---- few tokens ---- */

typedef struct q8_scratch_few {
    q8_input inputs[INPUTS_FEW];
    q8_sums sums[TOKENS_FEW];
    uint8_t last[ROWS][PIECE / 32 * sizeof(qmi_block_q8_0)]; /* what rows have beyond whole pieces, and zeros */
} q8_scratch_few;

static void pack_few(const q8_type *type, const qmi_cpu_tile *tile, int32_t first, int32_t tokens, int64_t piece, int64_t count,
                     q8_input *to)
{
    for (int64_t p = piece; p < piece + count; p++, to += tokens) {
        pack_tokens(type, tile, first, tokens, p, to);
        for (int32_t t = 0; type->units && t < tokens; t++) {
            __m128i values[PIECE / 16], *arranged = (__m128i *)(void *)to[t].values;
            memcpy(values, arranged, sizeof values);
            for (int u = 0; u < PIECE / 16; u++)
                arranged[u] = values[type->units[u]];
        }
    }
}

/* What a group of rows has of pieces [piece, piece + count). next: what is read after all its pieces. */
static void multiply_part(const q8_type *type, const qmi_cpu_tile *tile, const uint8_t *const rows[ROWS], const uint8_t *next,
                          int32_t tokens, int64_t piece, int64_t count, const q8_input *inputs, q8_scratch_few *scratch)
{
    const int64_t whole = tile->columns / PIECE, from = piece * type->piece_bytes;
    q8_few few = { .ahead = next + ROWS * from, .inputs = inputs, .blocks = PIECE / 32 };
    few.pieces = (int32_t)((piece + count < whole ? piece + count : whole) - piece);
    for (int32_t r = 0; r < ROWS; r++)
        few.rows[r] = rows[r] + from;
    if (few.pieces > 0)
        type->multiply_rows(&few, tokens, scratch->sums);
    if (piece + count == whole)
        return;
    for (int32_t r = 0; r < ROWS; r++) {
        memcpy(scratch->last[r], rows[r] + whole * type->piece_bytes, (size_t)(tile->row_bytes - whole * type->piece_bytes));
        few.rows[r] = scratch->last[r];
    }
    few.inputs += few.pieces * tokens;
    few.pieces = 1;
    few.blocks = blocks_of(tile, whole);
    type->multiply_rows(&few, tokens, scratch->sums);
}

static void dot_few(const q8_type *type, const qmi_cpu_tile *tile, int32_t first, int32_t tokens)
{
    const int64_t pieces = pieces_of(tile), most = INPUTS_FEW / tokens;
    const int32_t ahead = ROWS * tile->row_bytes < AHEAD_LEAST ? 2 * ROWS : ROWS; /* rows */
    q8_scratch_few scratch;
    memset(scratch.last, 0, tile->columns % PIECE ? sizeof scratch.last : 0);
    if (pieces <= most)
        pack_few(type, tile, first, tokens, 0, pieces, scratch.inputs);
    for (int32_t row = 0; row < tile->rows; row += ROWS) {
        const uint8_t *rows[ROWS], *next = tile->next;
        find_rows(tile, row, rows);
        if (!next || row + ahead < tile->rows)
            next = rows[0] + ahead * tile->row_bytes;
        else
            next += (row + ahead - tile->rows) * tile->row_bytes;
        memset(scratch.sums, 0, sizeof scratch.sums);
        for (int64_t piece = 0, count; piece < pieces; piece += count) {
            count = pieces - piece < most ? pieces - piece : most;
            if (pieces > most)
                pack_few(type, tile, first, tokens, piece, count, scratch.inputs);
            multiply_part(type, tile, rows, next, tokens, piece, count, scratch.inputs, &scratch);
        }
        write_sums(tile, row, first, tokens, scratch.sums);
    }
}

/* ---- many ---- */

/* A piece of their activations is packed for ROWS_MOST rows. Meanwhile what is multiplied next is fetched, as one stream: rows of
 * the tile come in pieces here, which would be read in no order of memory's. */
static void dot_many(const q8_type *type, const qmi_cpu_tile *tile, int32_t first, int32_t tokens, q8_multiply *multiply)
{
    q8_scratch scratch;
    const int32_t step = ROWS * type->piece_bytes * type->sub_block / PIECE;
    const uint8_t *ahead = tile->next ? tile->next : (const uint8_t *)tile->weights + tile->rows * tile->row_bytes;
    for (int32_t row = 0; row < tile->rows; row += ROWS_MOST) {
        int32_t groups = ((tile->rows - row < ROWS_MOST ? tile->rows - row : ROWS_MOST) + ROWS - 1) / ROWS;
        memset(scratch.sums, 0, (size_t)groups * sizeof scratch.sums[0]);
        for (int64_t piece = 0; piece < pieces_of(tile); piece++) {
            pack_tokens(type, tile, first, tokens, piece, scratch.inputs);
            for (int32_t g = 0; g < groups; g++) {
                const uint8_t *rows[ROWS];
                find_rows(tile, row + g * ROWS, rows);
                const int32_t sub_blocks = blocks_of(tile, piece) * (32 / type->sub_block);
                type->unpack(rows, piece * type->piece_bytes, blocks_of(tile, piece), &scratch.weights);
                multiply(&scratch.weights, scratch.inputs, sub_blocks, tokens, ahead, step, scratch.sums[g]);
                ahead += sub_blocks * step;
            }
        }
        for (int32_t g = 0; g < groups; g++)
            write_sums(tile, row + g * ROWS, first, tokens, scratch.sums[g]);
    }
}

/* tiles: NULL for the instance's own vectors. */
static void dot(const q8_type *type, const qmi_cpu_tile *tile, const q8_tiles *tiles)
{
    for (int32_t t = 0; t < tile->tokens; t += TOKENS_MOST) {
        int32_t tokens = tile->tokens - t < TOKENS_MOST ? tile->tokens - t : TOKENS_MOST;
        if (tokens <= TOKENS_FEW) {
            dot_few(type, tile, t, tokens);
        } else if (!tiles || tokens < tiles->least) {
            dot_many(type, tile, t, tokens, type->multiply);
        } else {
            tiles->begin(tokens);
            dot_many(type, tile, t, tokens, tiles->multiply);
            tiles->end();
        }
    }
}

#define SIGNED_SHIFT (EIGHT_BITS_SIGNED ? 0 : 7)
#define DEFINE_DOT(stem, multiply, units, sub_block, shift, piece_bytes) \
    void NAME(dot_by_##stem)(const qmi_cpu_tile *tile, const q8_tiles *tiles) \
    { \
        static const q8_type type = { unpack_##stem, multiply, multiply_rows_##stem, units, sub_block, shift, piece_bytes }; \
        dot(&type, tile, tiles); \
    } \
    void NAME(dot_##stem)(const qmi_cpu_tile *tile) \
    { \
        NAME(dot_by_##stem)(tile, NULL); \
    }
DEFINE_DOT(q8_0, multiply_8, NULL, 32, SIGNED_SHIFT, 8 * sizeof(qmi_block_q8_0))
DEFINE_DOT(q4_0, multiply_4, UNITS_OF_BLOCKS, 32, 3, 8 * sizeof(qmi_block_q4_0))
DEFINE_DOT(q5_0, multiply_5, UNITS_OF_BLOCKS, 32, 4, 8 * sizeof(qmi_block_q5_0))
DEFINE_DOT(iq4_nl, multiply_8, UNITS_OF_BLOCKS, 32, SIGNED_SHIFT, 8 * sizeof(qmi_block_iq4_nl))
DEFINE_DOT(iq4_xs, multiply_8, UNITS_OF_BLOCKS, 32, SIGNED_SHIFT, sizeof(qmi_block_iq4_xs))
DEFINE_DOT(q4_k, multiply_4_minima, UNITS_OF_SUPER, 32, 0, sizeof(qmi_block_q4_k))
DEFINE_DOT(q5_k, multiply_5_minima, UNITS_OF_SUPER, 32, 0, sizeof(qmi_block_q5_k))
DEFINE_DOT(q6_k, multiply_6_of_16, NULL, 16, 5, sizeof(qmi_block_q6_k))
