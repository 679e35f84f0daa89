/* Dense products of many rows by a library: weights are unpacked to halves, some rows of the matrix at a time, in the order in
 * which the activations lie (matmul.cuh), and then multiplied.
 *
 *   unpack     some rows of the matrix; GLU: of gate, and the same of up behind them
 *   product    by the library: to `out`, or (GLU) to sums in scratch
 *   glu        silu(gate) * up
 *   scale      rows of activations that had to be made smaller: rare, else it only looks at their scales
 *
 * Floors for R rows, K columns, n tokens: 2 R K n operations; unpacking R K (bits / 8 + 2) bytes. */
#include "block.cuh"
#include "chip.cuh"
#include "cuda_blas.h"
#include "matmul.cuh"

#define DENSE_TOKENS 256   /* from so many on */
#define DENSE_WEIGHTS ((int64_t)192 << 20) /* bytes of unpacked weights at a time */
#define DENSE_SUMS ((int64_t)128 << 20)    /* of gate's and up's sums */
#define DENSE_ALIGN 8      /* rows: a product of so many is faster, where there is room for their sums */
#define UNPACK_THREADS 256

/* ---- unpacking: a thread has a block ---- A warp has eight chunks, 2 KB in a piece. Words of a block go to all units of its
 * chunk, so they change places in shared memory: unit p of chunk c lies at p ^ c, where neighbouring chunks meet other banks. */

template <uint32_t T>
static __global__ void __launch_bounds__(UNPACK_THREADS)
    unpack_kernel(cuda_matrix matrix, int first, int rows, int passes, int filled, __half *to)
{
    __shared__ uint4 units[UNPACK_THREADS / QMI_WARP][128];
    chip_let_next_start();
    chip_wait_for_previous();
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, own = lane >> 2;
    const int chunks = (matrix.blocks + 3) / 4, all = chunks * passes;
    const int64_t begin = (blockIdx.x * (int64_t)(UNPACK_THREADS / QMI_WARP) + warp) * 8, place = begin + own;
    const int row = (int)(place / all), column = (int)(place - (int64_t)row * all);
    const int pass = (column >= chunks) + (column >= 2 * chunks), b = 4 * (column - pass * chunks) + (lane & 3);
    uint32_t pairs[16] = {};
    if (row < rows && b < matrix.blocks) {
        const int64_t at = (int64_t)(first + row) * matrix.blocks + b;
        block<T> w;
        block_load(w, matrix, at);
        if constexpr (T == QMI_TYPE_F32)
            if (pass == 2)
                block_rest(w);
        block_unpack(w, at, pairs);
    }
#pragma unroll
    for (int p = 0; p < 16; p++)
        ((uint32_t *)&units[warp][16 * own + (p ^ own)])[lane & 3] = pairs[p];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int unit = 32 * i + lane;
        if (begin + (unit >> 4) < (int64_t)filled * all)
            ((uint4 *)(to + begin * MATMUL_CHUNK))[unit] = units[warp][(unit & ~15) + ((unit & 15) ^ (unit >> 4))];
    }
}

/* Rows from `rows` to `filled` are zeros. */
static void unpack(const cuda_run *run, const cuda_matrix &matrix, int32_t first, int32_t rows, int32_t passes, int32_t filled,
                   __half *to)
{
    const int64_t threads = (int64_t)filled * ((matrix.blocks + 3) / 4) * passes * 4;
    const dim3 grid((unsigned)((threads + UNPACK_THREADS - 1) / UNPACK_THREADS)), block(UNPACK_THREADS);
    switch (matrix.type) {
#define UNPACK(name) \
    case QMI_TYPE_##name: \
        cuda_launch(run, grid, block, 0, unpack_kernel<QMI_TYPE_##name>, matrix, first, rows, passes, filled, to); \
        break;
    MATMUL_TYPES(UNPACK)
#undef UNPACK
    }
}

static float gain_of(uint32_t type)
{
    return matmul_passes(type) > 1 ? BLOCK_GAIN_FLOAT : BLOCK_GAIN;
}

/* ---- after the product ---- */

/* out[t][first + r] = silu(gate) * up: sums [n][2 rows], of tokens that were scaled. */
template <int WIDTH>
static __global__ void __launch_bounds__(256)
    sums_glu_kernel(const float *sums, const float *scale, float *out, int n, int rows, int first, int stride)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int width = rows / WIDTH;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (int64_t)n * width; i += (int64_t)gridDim.x * blockDim.x) {
        const int token = (int)(i / width), r = (int)(i - (int64_t)token * width) * WIDTH;
        const float *gate = sums + (int64_t)token * 2 * rows + r, s = scale[token];
        float *to = out + (int64_t)token * stride + first + r;
        if constexpr (WIDTH == 4) {
            const float4 g = *(const float4 *)gate, u = *(const float4 *)(gate + rows);
            *(float4 *)to = make_float4(chip_silu(g.x * s) * (u.x * s), chip_silu(g.y * s) * (u.y * s),
                                        chip_silu(g.z * s) * (u.z * s), chip_silu(g.w * s) * (u.w * s));
        } else
            *to = chip_silu(gate[0] * s) * (gate[rows] * s);
    }
}

/* Rows whose scale is not 1 times it, or divided by it: exact, as it is a power of two. */
static __global__ void __launch_bounds__(256) scale_kernel(float *out, const float *scale, int n, int rows, int stride, bool divide)
{
    chip_let_next_start();
    chip_wait_for_previous();
    for (int token = blockIdx.x; token < n; token += gridDim.x) {
        const float s = divide ? 1 / scale[token] : scale[token];
        for (int r = threadIdx.x; s != 1 && r < rows; r += blockDim.x)
            out[(int64_t)token * stride + r] *= s;
    }
}

static void scale_rows(const cuda_run *run, const matmul_part *part, bool divide)
{
    const int blocks = part->tokens < 2 * run->processors ? part->tokens : 2 * run->processors;
    cuda_launch(run, dim3((unsigned)blocks), dim3(256), 0, scale_kernel, part->out, (const float *)part->in.scale, part->tokens,
                part->rows, part->out_stride, divide);
}

/* ---- a part ---- */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

matmul_dense matmul_take_dense(matmul_room *room, const qmi_matrix *matrix, int32_t rows, bool glu)
{
    matmul_dense out = {};
    const int64_t matrices = glu ? 2 : 1;
    const int64_t row = matmul_passes(matrix->type) * matmul_stride(matrix->columns) * (int64_t)sizeof(__half);
    if (rows < DENSE_TOKENS || matrix->rows < MATMUL_DENSE_ROWS || !cuda_blas_is_there())
        return out;
    out.bytes = smaller(DENSE_WEIGHTS, (matrices * matrix->rows + DENSE_ALIGN) * row);
    out.weights = (__half *)matmul_take(room, out.bytes, 1);
    if (glu) {
        out.sums_bytes = smaller(DENSE_SUMS, 2 * matrix->rows * rows * (int64_t)sizeof(float));
        out.sums = (float *)matmul_take(room, out.sums_bytes, 1);
    }
    return out;
}

bool matmul_is_dense(const cuda_run *run, const matmul_part *part)
{
    return run->blas && part->dense.weights && !part->tiles && !part->gather && !part->bytes && part->tokens >= DENSE_TOKENS;
}

/* Rows of a piece: as many as both rooms hold, and pieces alike. 0: not even 128. */
static int32_t piece_rows(const matmul_part *part)
{
    const int64_t row = (int64_t)part->passes * matmul_stride(part->a.columns) * (int64_t)sizeof(__half);
    int64_t most = part->dense.bytes / row;
    if (part->mode == MATMUL_GLU)
        most = smaller(most / 2, part->dense.sums_bytes / (2 * part->tokens * (int64_t)sizeof(float)));
    if (most >= part->rows)
        return part->rows;
    most = most / 128 * 128;
    return most ? (int32_t)smaller(most, (matmul_ceil(part->rows, matmul_ceil(part->rows, most)) + 127) / 128 * 128) : 0;
}

static bool multiply_piece(const cuda_run *run, const matmul_part *part, int32_t first, int32_t rows)
{
    const bool glu = part->mode == MATMUL_GLU;
    const int32_t k = part->passes * matmul_stride(part->a.columns);
    cuda_product product = { part->dense.weights, part->in.x, part->out + first, rows, part->tokens, k, part->in.stride,
                             part->out_stride, 1 / gain_of(part->a.type), part->mode == MATMUL_ADD };
    const int32_t filled = (rows + DENSE_ALIGN - 1) / DENSE_ALIGN * DENSE_ALIGN;
    if (part->mode == MATMUL_STORE && first + rows == part->rows && first + filled <= part->out_stride &&
        (int64_t)filled * k * (int64_t)sizeof(__half) <= part->dense.bytes)
        product.rows = filled;
    unpack(run, part->a, first, rows, part->passes, product.rows, part->dense.weights);
    if (glu) {
        unpack(run, part->b, part->b_first + first, rows, part->passes, rows, part->dense.weights + (int64_t)rows * k);
        product.out = part->dense.sums;
        product.rows = product.stride = 2 * rows;
    }
    if (cudaPeekAtLastError() != cudaSuccess || run->blas->multiply(run->blas, &product) != 0)
        return false;
    if (glu) {
        const int width = rows % 4 || first % 4 || part->out_stride % 4 ? 1 : 4;
        const int64_t blocks = ((int64_t)part->tokens * (rows / width) + 1023) / 1024;
        cuda_launch(run, dim3((unsigned)smaller(blocks, 16384)), dim3(256), 0, width == 4 ? sums_glu_kernel<4> : sums_glu_kernel<1>,
                    (const float *)part->dense.sums, (const float *)part->in.scale, part->out, part->tokens, rows, first,
                    part->out_stride);
    }
    return true;
}

int32_t matmul_multiply_dense(const cuda_run *run, const matmul_part *part)
{
    const int32_t piece = piece_rows(part);
    int32_t first = 0;
    if (!piece)
        return 0;
    if (part->mode == MATMUL_ADD)
        scale_rows(run, part, true);
    while (first < part->rows) {
        const int32_t rows = part->rows - first < piece ? part->rows - first : piece;
        if (!multiply_piece(run, part, first, rows))
            break;
        first += rows;
    }
    if (part->mode != MATMUL_GLU) {
        matmul_part done = *part;
        done.rows = part->mode == MATMUL_ADD ? part->rows : first;
        if (done.rows)
            scale_rows(run, &done, false);
    }
    return first;
}
