/* tiles_amx.h in plain C, so that the op check can run dot_q8_amx.c on a processor that has no AMX. */
#ifndef QMI_CPU_X86_TILES_BY_C_H
#define QMI_CPU_X86_TILES_BY_C_H

#include <stdint.h>
#include <string.h>

typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static _Thread_local tile_shapes shapes_now;
static _Thread_local uint8_t tiles[8][16][64];

static inline void tiles_begin(const tile_shapes *shapes)
{
    shapes_now = *shapes;
    memset(tiles, 0, sizeof tiles);
}

static inline void tiles_end(void)
{
    memset(&shapes_now, 0, sizeof shapes_now);
}

static inline void tile_load(int tile, const void *from, int64_t stride)
{
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < shapes_now.rows[tile]; row++)
        memcpy(tiles[tile][row], (const char *)from + row * stride, shapes_now.row_bytes[tile]);
}

static inline void tile_store(int tile, void *to, int64_t stride)
{
    for (int row = 0; row < shapes_now.rows[tile]; row++)
        memcpy((char *)to + row * stride, tiles[tile][row], shapes_now.row_bytes[tile]);
}

static inline void tile_products(int sums, int a, int b)
{
    for (int m = 0; m < shapes_now.rows[sums]; m++) {
        int32_t row[16];
        memcpy(row, tiles[sums][m], sizeof row);
        for (int k = 0; k < shapes_now.rows[b]; k++)
            for (int n = 0; n < shapes_now.row_bytes[sums] / 4; n++)
                for (int i = 0; i < 4; i++)
                    row[n] += (int8_t)tiles[a][m][4 * k + i] * tiles[b][k][4 * n + i];
        memcpy(tiles[sums][m], row, sizeof row);
    }
}

#define TILE_ZERO(tile) memset(tiles[tile], 0, sizeof tiles[tile])
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_PRODUCTS(sums, a, b) tile_products(sums, a, b)
#define TILE_STORE(tile, to, stride) tile_store(tile, to, stride)

#endif
