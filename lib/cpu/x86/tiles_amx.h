/* The tile registers of AMX, by the names that dot_q8_amx.c uses; tiles_by_c.h has the same without them. Numbers of registers
 * are literals. Intel SDM volume 1, chapter 18. */
#ifndef QMI_CPU_X86_TILES_AMX_H
#define QMI_CPU_X86_TILES_AMX_H

#include <immintrin.h>
#include <stdint.h>

typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* The intrinsics tell the compiler of no memory that they read, so it is told here that all may be. */
#define TILES_MEMORY __asm__ volatile("" ::: "memory")

static inline void tiles_begin(const tile_shapes *shapes)
{
    TILES_MEMORY;
    _tile_loadconfig(shapes);
}

static inline void tiles_end(void)
{
    _tile_release();
}

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) \
    do { \
        TILES_MEMORY; \
        _tile_loadd(tile, from, stride); \
    } while (0)
/* sums [m][n] += signed bytes a [m][4 k + i] * unsigned bytes b [k][4 n + i] */
#define TILE_PRODUCTS(sums, a, b) _tile_dpbsud(sums, a, b)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)

#endif
