/* The gated delta rule (op.h, QMI_OP_DELTA): what the files of its kernels share.
 *
 *   delta.cu        chooses; sizes of any kind, one row after the other; the gated norm; the convolution's columns move on
 *   delta_step.cu   heads of 128, few rows a sequence: one kernel, the state in registers
 *   delta_chunk.cu  heads of 128, many rows a sequence: chunks of rows as matrix products on tensor cores
 */
#ifndef QMI_CUDA_DELTA_CUH
#define QMI_CUDA_DELTA_CUH

#include "chip.cuh"
#include "cuda.h"

#define DELTA_SIZE 128      /* key and value size of the fast kernels */
#define DELTA_TAPS 4        /* their convolution's width */
#define DELTA_FEW 32        /* up to so many rows a sequence is stepped through, 0.5 us each; a longer one is cut into chunks */
#define DELTA_CHUNK 64      /* rows: the products' sizes are multiples of 16, and the serial part inside grows with the square */
#define DELTA_EPSILON 1e-6f

/* The op as kernels see it; everything that changes from run to run is behind `step`. */
typedef struct delta_work {
    cuda_step step;
    const float *qkv, *z, *beta, *alpha;
    float *out;
    const float *convolution, *time_bias, *rate, *norm; /* norm may be NULL */
    float epsilon;
    int32_t rows, key_heads, value_heads, key_size, value_size, taps, per_key, key_width, channels;
    bool grouped, interleaved;
    int64_t state_offset;
} delta_work;

static __device__ __forceinline__ int delta_key_head(const delta_work &w, int head)
{
    return w.grouped ? head / w.per_key : head % w.key_heads;
}

/* The i-th of the value heads that key head `key` serves. */
static __device__ __forceinline__ int delta_value_head(const delta_work &w, int key, int i)
{
    return w.grouped ? key * w.per_key + i : i * w.key_heads + key;
}

/* The state begins with [taps - 1][channels] columns from before the convolution, oldest first; then S. */
static __device__ __forceinline__ float *delta_columns(const delta_work &w, uint64_t state)
{
    return (float *)(state + (uint64_t)w.state_offset);
}

static __device__ __forceinline__ float *delta_matrix(const delta_work &w, uint64_t state, int head)
{
    return delta_columns(w, state) + (int64_t)(w.taps - 1) * w.channels + (int64_t)head * w.key_size * w.value_size;
}

typedef struct delta_gate {
    float beta, alpha; /* before their functions */
} delta_gate;

static __device__ __forceinline__ delta_gate delta_load_gate(const delta_work &w, int64_t row, int head)
{
    delta_gate g;
    if (w.interleaved) {
        const float *pair = w.beta + row * 2 * w.value_heads + (int64_t)(head / w.per_key) * 2 * w.per_key + head % w.per_key;
        g.beta = pair[0];
        g.alpha = pair[w.per_key];
    } else {
        g.beta = w.beta[row * w.value_heads + head];
        g.alpha = w.alpha[row * w.value_heads + head];
    }
    return g;
}

/* log g = rate * softplus(alpha + bias); beyond 20 softplus is the identity in float. */
static __device__ __forceinline__ float delta_log_decay(float alpha, float bias, float rate)
{
    const float x = alpha + bias;
    return rate * (x > 20 ? x : log1pf(expf(x)));
}

/* Steps take the sequences of up to DELTA_FEW rows, chunks the longer ones; either leaves the other's alone. */
void delta_run_step(const cuda_run *run, const delta_work *work);
void delta_run_chunks(const cuda_run *run, const delta_work *work);
bool delta_step_finishes(const cuda_run *run, const delta_work *work); /* does the norm and moves the columns on, too */
int64_t delta_chunk_scratch(const qmi_op_delta *op, int32_t rows);
cudaError_t delta_chunk_setup(void);

#endif
