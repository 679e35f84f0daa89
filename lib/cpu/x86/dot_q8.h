/* What the products of quantized weights with Q8 activations work on: pieces of 256 columns, of ROWS rows in lanes and of tokens.
 * Included behind rows_*.h, which tells ROWS. See dot_q8_tmpl.h. */
#ifndef QMI_CPU_X86_DOT_Q8_H
#define QMI_CPU_X86_DOT_Q8_H

#include <stdint.h>

#define PIECE 256         /* columns that are unpacked at a time: a super-block */
#define TOKENS_MOST 64    /* whose sums and activations of a piece are kept (24 KB of activations) */
#define ROWS_MOST 64      /* with so many rows the activations of a piece are used before those of the next are packed */

/* ROWS rows by PIECE columns. */
typedef struct q8_weights {
    _Alignas(64) uint8_t bytes[PIECE / 4][ROWS][4];  /* q, or q + 2^shift where the format's is signed */
    float scales[PIECE / 16][ROWS];                  /* by sub-block */
    float minima[PIECE / 32][ROWS];                  /* negative */
    uint16_t halves[PIECE / 32][ROWS];               /* for the unpacking: scales on their way */
    uint32_t words[PIECE / 32][ROWS];                /* fifth bits likewise */
} q8_weights;

/* PIECE columns of a token. */
typedef struct q8_input {
    _Alignas(64) int8_t values[PIECE];
    int32_t start[PIECE / 16];   /* by sub-block: what the whole number begins with, -2^shift * sum of x */
    float scales[PIECE / 32];
    float sums[PIECE / 32];      /* input scale * float(sum of x) */
} q8_input;

typedef struct q8_sums {    /* of a token */
    _Alignas(64) float sum[ROWS], less[ROWS];
} q8_sums;

/* Adds a piece's products to the sums of some tokens, at most TOKENS_MOST. With each sub-block `step` bytes of what follows
 * `ahead` are fetched: few at a time, as while many are on their way nothing else gets into the first-level cache. */
typedef void q8_multiply(const q8_weights *weights, const q8_input *inputs, int32_t sub_blocks, int32_t tokens,
                         const uint8_t *ahead, int32_t step, q8_sums *sums);

/* Tiles instead of vectors, where there are many tokens. Between begin and end, both for as many tokens, only multiply
 * is called. It may look at values of inputs beyond the tokens, up to TOKENS_MOST. */
typedef struct q8_tiles {
    int32_t least;   /* tokens from which on they are quicker */
    void (*begin)(int32_t tokens);
    q8_multiply *multiply;
    void (*end)(void);
} q8_tiles;

#endif
