/* Products of many rows with tensor cores: what its files share.
 *
 * Activations are converted once an op (convert.cu) to half floats in the order in which the tensor cores take them; the
 * product kernel (matmul_tmpl.cuh) unpacks weights from their planes into registers and never writes them anywhere.
 *
 * Converted rows: k is cut into chunks of 128 = 4 blocks of 32. In a chunk, 16 units of 16 bytes: unit p holds pair p
 * (block.cuh's order, 0-15) of blocks 0, 1, 2, 3. So units 2 s and 2 s + 1 are the b of one mma of k 16 whose lane 4 g + c owns
 * block c, and a lane of the weights needs whole blocks only. Rows are filled with zeros up to whole chunks. */
#ifndef QMI_CUDA_MATMUL_CUH
#define QMI_CUDA_MATMUL_CUH

#include <cuda_fp16.h>

#include "cuda.h"

#define MATMUL_CHUNK 128
#define MATMUL_WARPS 8
#define MATMUL_THREADS (QMI_WARP * MATMUL_WARPS)
#define MATMUL_PARTS QMI_PROJECT_MAX
#define MATMUL_FEW_TOKENS 4 /* of a tile in the kernel for few tokens (matmul_few.cuh) */
#define MATMUL_STAGES 3    /* of activations under way, in the kernels without warp groups */

/* Converted rows; value = half * scale of its row, a power of two (1 where the values fit). For weights of floats, which are exact or
 * nearly so, a row has what its halves lost as well: [halves | rest] for two products with F16 and BF16, [halves | rest | halves]
 * for three with F32, whose last is with the rest of the weights. */
typedef struct matmul_input {
    __half *x;
    float *scale;
    int32_t stride;            /* halves a row, a multiple of MATMUL_CHUNK */
    int32_t passes;            /* parts of a row */
} matmul_input;

/* 32 activations as q * scale: word k has values 4 k .. 4 k + 3 for k < 4, of the high half behind it for the others, and lies at
 * 2 (k & 3) + (k >> 2), so that an mma's two are neighbours. total: scale times the sum of q; sums: of q over each half, as two
 * int16. */
typedef struct alignas(16) matmul_bytes {
    uint32_t word[8];
    float scale, total;
    uint32_t sums, unused;
} matmul_bytes;

/* Some rows of one expert. */
typedef struct alignas(16) matmul_tile {
    int32_t expert, first, count, unused;
} matmul_tile;

/* Where a part's weights are unpacked for a library (dense.cu); weights NULL: that is not for it. */
typedef struct matmul_dense {
    __half *weights;
    float *sums;               /* GLU */
    int64_t bytes, sums_bytes;
} matmul_dense;

typedef enum matmul_mode { MATMUL_STORE, MATMUL_ADD, MATMUL_GLU } matmul_mode;

/* out[i] = W x[gather[i]], for all rows i or tiles of them; GLU: silu(a x) * (b x). */
typedef struct matmul_part {
    cuda_matrix a, b;          /* b: only GLU, of the same type */
    int32_t b_first;           /* row of b that belongs to row 0 of a (gate and up in one matrix) */
    int32_t rows;              /* of `out`'s width; GLU: as many of a as of b */
    matmul_input in;
    int32_t passes;            /* over the columns, for weights of floats */
    const matmul_bytes *bytes; /* not NULL, in all parts of a launch: rows of 8 bits instead of `in` (matmul_few.cuh) */
    matmul_bytes *out_bytes;   /* GLU with those: what comes out, as such rows, instead of `out` */
    const int32_t *gather;     /* NULL: row i of `in` */
    float *out;                /* [..][out_stride] */
    int32_t out_stride, mode;
    int32_t tokens;            /* rows i, when there are no tiles */
    const matmul_tile *tiles;  /* NULL: plain matrix */
    const int32_t *tile_count; /* on the card */
    int32_t token_tiles;       /* with tiles: the most there can be */
    int32_t written;           /* a kernel of this op wrote the weights: not to be read before it has ended */
    matmul_dense dense;
    int32_t row_tiles, first_block; /* of the grid */
} matmul_part;

/* One launch: parts of the same type and columns. */
typedef struct matmul_work {
    matmul_part part[MATMUL_PARTS];
    int32_t parts;
    int32_t row_warps;         /* warps side by side along the rows; the others share out k */
    int32_t tile_tokens;       /* rows of `in` that a block has at most */
    int32_t stages, stage_bytes; /* in shared memory */
} matmul_work;

/* ---- convert.cu ---- */

/* to = rms(from, norm) converted; also stored as floats to `normed` unless NULL. */
typedef struct convert_part {
    const float *from;
    int32_t columns, rows;
    const float *weight;       /* NULL: no norm */
    float epsilon;
    matmul_input to;           /* x NULL: not wanted */
    float *normed;
    matmul_bytes *bytes;       /* instead of `to`: [rows][blocks] */
} convert_part;

#define CONVERT_PARTS 2
typedef struct convert_work {
    convert_part part[CONVERT_PARTS];
    int32_t first_block[CONVERT_PARTS + 1];
    int32_t row_warps[CONVERT_PARTS];
} convert_work;

void cuda_convert(const cuda_run *run, const convert_part *parts, int32_t count);
/* Sets first_block and row_warps for blocks of so many warps; returns the number of blocks. */
int32_t convert_plan(convert_work *work, int32_t parts, int32_t warps);

/* ---- matmul.cu ---- */

/* Widest tile of tokens for batches of that many rows a matrix. */
int32_t matmul_tokens(int32_t rows);
/* Whether the kernel for few tokens takes a product with a matrix like that. */
bool matmul_few_takes(const cuda_run *run, const qmi_matrix *matrix);
/* Shared memory of a token there: its blocks, four at a time; rows of whole chunks of eight begin in different banks. */
static inline __host__ __device__ int32_t matmul_few_row_bytes(int32_t blocks)
{
    return (blocks + 3) / 4 * 4 * (int32_t)sizeof(matmul_bytes) + 64;
}

/* Launches the parts, grouped by type; tokens: of a tile, as `tiles` was made for. */
void matmul_launch(const cuda_run *run, const matmul_part *parts, int32_t count, int32_t tokens);

static inline int32_t matmul_ceil(int64_t a, int64_t b)
{
    return (int32_t)((a + b - 1) / b);
}

static inline int32_t matmul_stride(int64_t columns)
{
    return matmul_ceil(columns, MATMUL_CHUNK) * MATMUL_CHUNK;
}

/* Scratch is taken piece by piece, the same way when it is counted (base NULL) and when it is used. */
typedef struct matmul_room {
    uint8_t *base;
    int64_t used;
} matmul_room;

static inline void *matmul_take(matmul_room *room, int64_t count, int64_t size)
{
    int64_t at = room->used;
    room->used += (count * size + 255) / 256 * 256;
    return room->base ? room->base + at : NULL;
}

static inline int32_t matmul_passes(uint32_t type)
{
    return type == QMI_TYPE_F32 ? 3 : type == QMI_TYPE_F16 || type == QMI_TYPE_BF16 ? 2 : 1;
}

static inline matmul_input matmul_take_input(matmul_room *room, int64_t rows, int64_t columns, int32_t passes)
{
    matmul_input in = {};
    in.stride = passes * matmul_stride(columns);
    in.passes = passes;
    in.x = (__half *)matmul_take(room, rows, in.stride * (int64_t)sizeof(__half));
    in.scale = (float *)matmul_take(room, rows, sizeof(float));
    return in;
}

static inline matmul_bytes *matmul_take_bytes(matmul_room *room, int64_t rows, int64_t columns)
{
    return (matmul_bytes *)matmul_take(room, rows * ((columns + QMI_CUDA_BLOCK - 1) / QMI_CUDA_BLOCK), sizeof(matmul_bytes));
}

/* ---- dense.cu ---- */

#define MATMUL_DENSE_ROWS 16 /* of a matrix, from which on it is worth it */

/* For a product of up to so many rows of activations. */
matmul_dense matmul_take_dense(matmul_room *room, const qmi_matrix *matrix, int32_t rows, bool glu);
bool matmul_is_dense(const cuda_run *run, const matmul_part *part);
/* Computes the part's first rows, all unless the library fails; returns how many. */
int32_t matmul_multiply_dense(const cuda_run *run, const matmul_part *part);

/* out = silu(gate) * up. */
void matmul_glu_apart(const cuda_run *run, const float *gate, const float *up, float *out, int64_t count);

/* ---- experts.cu, route.cu ---- */
int64_t experts_scratch(const qmi_op_experts *op, int32_t rows);
int64_t route_scratch(const qmi_op_route *op, int32_t rows);
cudaError_t route_setup(void);

/* How a launch goes. */
typedef struct matmul_shape {
    bool groups;               /* by the kernel of warp groups (matmul_group.cuh) */
    bool few;                  /* by the kernel for few tokens (matmul_few.cuh) */
    int32_t tokens;            /* of a tile */
    int32_t row_warps, stages;
    int32_t stage_bytes, shared;
} matmul_shape;

/* ---- instances of the product kernel, by type ---- */
#define MATMUL_TYPES(X) \
    X(F32) X(F16) X(BF16) X(Q8_0) X(Q4_0) X(Q5_0) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS) X(IQ4_NL)
#define MATMUL_DECLARE(type) \
    void matmul_start_##type(const cuda_run *run, const matmul_work *work, const matmul_shape *shape, int32_t blocks); \
    cudaError_t matmul_setup_##type(int32_t shared_most, bool *groups);
MATMUL_TYPES(MATMUL_DECLARE)
#undef MATMUL_DECLARE

#endif
