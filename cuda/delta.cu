/* The gated delta rule: which kernels take it, kernels for heads of any size, and what comes after the recurrence.
 *
 * Floors at 35B-A3B (32 value heads of 128 x 128, 8192 channels), H200, a layer: one row moves 2 x 2 MB of state, 1 us, and is
 * one hop of the chain of kernels; 4096 rows read 134 MB of qkv and 67 MB of z and write 67 MB: 65 us, and are 24 GFLOP of
 * half-float products, 50 us at the rate of mma.sync. */
#include "delta.cuh"

#define THREADS 256
#define WARPS (THREADS / QMI_WARP)

/* ---- any size: convolution and gates ---- */

/* A warp a row and head: queries, then keys, then values. mixed [rows][channels]; gates [rows][value_heads][beta, decay]. */
static __global__ void __launch_bounds__(THREADS) delta_any_mix(delta_work w, float *mixed, float2 *gates)
{
    const int lane = threadIdx.x % QMI_WARP, heads = 2 * w.key_heads + w.value_heads;
    const int64_t item = (int64_t)blockIdx.x * WARPS + threadIdx.x / QMI_WARP;
    chip_let_next_start();
    chip_wait_for_previous();
    if (item >= (int64_t)w.rows * heads)
        return;
    const int64_t row = item / heads;
    const int head = (int)(item % heads), value = head - 2 * w.key_heads, size = value < 0 ? w.key_size : w.value_size;
    const int first = value < 0 ? head * w.key_size : 2 * w.key_width + value * w.value_size;
    const cuda_sequence sequence = w.step.sequences[w.step.sequence[row]];
    const float *before = delta_columns(w, sequence.state);
    float *out = mixed + row * w.channels + first, squares = 0;
    for (int c = lane; c < size; c += QMI_WARP) {
        float sum = 0;
        for (int i = 0; i < w.taps; i++) {
            const int64_t time = row - sequence.first + i - (w.taps - 1); /* of those before the first row: in the state */
            const float *column = time < 0 ? before + (time + w.taps - 1) * w.channels
                                           : w.qkv + (sequence.first + time) * w.channels;
            sum += w.convolution[(int64_t)(first + c) * w.taps + i] * column[first + c];
        }
        sum = chip_silu(sum);
        squares += sum * sum;
        out[c] = sum;
    }
    if (value < 0) {
        float scale = rsqrtf(chip_warp_sum(squares) + DELTA_EPSILON);
        if (head < w.key_heads)
            scale *= rsqrtf((float)w.key_size);
        for (int c = lane; c < size; c += QMI_WARP)
            out[c] *= scale;
    } else if (lane == 0) {
        const delta_gate g = delta_load_gate(w, row, value);
        const float decay = expf(delta_log_decay(g.alpha, w.time_bias[value], w.rate[value]));
        gates[row * w.value_heads + value] = make_float2(chip_sigmoid(g.beta), decay);
    }
}

/* ---- any size: the recurrence, row after row; a block has 32 columns of a value head's S, which stays in memory ---- */
static __global__ void __launch_bounds__(THREADS) delta_any_advance(delta_work w, const float *mixed, const float2 *gates)
{
    __shared__ float partial[2][3][WARPS][QMI_WARP];
    const int lane = threadIdx.x % QMI_WARP, warp = threadIdx.x / QMI_WARP, head = blockIdx.y;
    const int column = blockIdx.x * QMI_WARP + lane, key_head = delta_key_head(w, head);
    const bool real = column < w.value_size;
    chip_let_next_start();
    chip_wait_for_previous();
    const cuda_sequence sequence = w.step.sequences[blockIdx.z];
    const float *from = delta_matrix(w, sequence.state, head) + column;
    float *to = delta_matrix(w, sequence.next_state, head) + column;
    for (int t = 0; t < sequence.count; t++, from = to) {
        const int64_t row = sequence.first + t;
        const float *query = mixed + row * w.channels + (int64_t)key_head * w.key_size, *key = query + w.key_width;
        const float *value = mixed + row * w.channels + 2 * w.key_width + (int64_t)head * w.value_size;
        const float2 gate = gates[row * w.value_heads + head];
        /* r = g S^T k, and o = g S^T q + (k . q) change: both from one look at the state before this row. */
        float recalled = 0, out = 0, together = 0;
        for (int i = warp; i < w.key_size; i += WARPS) {
            const float s = real ? from[(int64_t)i * w.value_size] : 0;
            recalled += s * key[i];
            out += s * query[i];
            together += key[i] * query[i];
        }
        float(*sums)[WARPS][QMI_WARP] = partial[t & 1]; /* two, so that one barrier a row is enough */
        sums[0][warp][lane] = recalled;
        sums[1][warp][lane] = out;
        sums[2][warp][lane] = together;
        __syncthreads();
        recalled = out = together = 0;
        for (int i = 0; i < WARPS; i++) {
            recalled += sums[0][i][lane];
            out += sums[1][i][lane];
            together += sums[2][i][lane];
        }
        if (!real)
            continue;
        const float change = gate.x * (value[column] - gate.y * recalled);
        for (int i = warp; i < w.key_size; i += WARPS)
            to[(int64_t)i * w.value_size] = gate.y * from[(int64_t)i * w.value_size] + key[i] * change;
        if (warp == 0)
            w.out[row * w.value_heads * w.value_size + (int64_t)head * w.value_size + column] = gate.y * out + together * change;
    }
}

/* ---- after the recurrence ---- */

/* out = rms(out, norm) * silu(z) of a row and head: a warp. */
static __device__ __forceinline__ void finish_head(const delta_work &w, int64_t item)
{
    const int lane = threadIdx.x % QMI_WARP;
    float *out = w.out + item * w.value_size;
    const float *z = w.z + item * w.value_size, *norm = w.norm;
    float squares = 0, scale = 1;
    for (int c = lane; norm && c < w.value_size; c += QMI_WARP)
        squares += out[c] * out[c];
    if (norm)
        scale = rsqrtf(chip_warp_sum(squares) / (float)w.value_size + w.epsilon);
    for (int c = lane; c < w.value_size; c += QMI_WARP)
        out[c] *= scale * (norm ? norm[c] : 1) * chip_silu(z[c]);
}

/* The same for 128 values, four a lane. */
static __device__ __forceinline__ void finish_head_wide(const delta_work &w, int64_t item)
{
    const int lane = threadIdx.x % QMI_WARP;
    float4 *at = (float4 *)(w.out + item * DELTA_SIZE) + lane;
    float4 out = *at;
    const float4 z = *((const float4 *)(w.z + item * DELTA_SIZE) + lane);
    float4 norm = make_float4(1, 1, 1, 1);
    float scale = 1;
    if (w.norm) {
        norm = *((const float4 *)w.norm + lane);
        scale = chip_warp_sum(out.x * out.x + out.y * out.y + out.z * out.z + out.w * out.w);
        scale = rsqrtf(scale / DELTA_SIZE + w.epsilon);
    }
    out.x *= scale * norm.x * chip_silu(z.x);
    out.y *= scale * norm.y * chip_silu(z.y);
    out.z *= scale * norm.z * chip_silu(z.z);
    out.w *= scale * norm.w * chip_silu(z.w);
    *at = out;
}

/* The columns that the next convolution needs, one channel. Where state and next_state are one, what moves to the front is still
 * there when its turn comes: what is read lies behind what has been written. */
static __device__ __forceinline__ void keep_columns(const delta_work &w, const cuda_sequence &sequence, int channel)
{
    const float *before = delta_columns(w, sequence.state) + channel;
    float *after = delta_columns(w, sequence.next_state) + channel;
    for (int i = 0; i < w.taps - 1; i++) {
        const int64_t time = (int64_t)sequence.count + i - (w.taps - 1);
        after[(int64_t)i * w.channels] = time < 0 ? before[(time + w.taps - 1) * w.channels]
                                                  : w.qkv[(sequence.first + time) * w.channels + channel];
    }
}

/* Blocks [0, norms): heads of rows. The others: channels, `parts` blocks a sequence. Sequences of up to `above` rows are done. */
template <bool WIDE>
static __global__ void __launch_bounds__(THREADS) delta_finish(delta_work w, int32_t norms, int32_t parts, int32_t above)
{
    chip_let_next_start();
    chip_wait_for_previous();
    if ((int)blockIdx.x < norms) {
        const int64_t item = (int64_t)blockIdx.x * WARPS + threadIdx.x / QMI_WARP;
        if (item >= (int64_t)w.rows * w.value_heads)
            return;
        if (above && w.step.sequences[w.step.sequence[item / w.value_heads]].count <= above)
            return;
        if (WIDE)
            finish_head_wide(w, item);
        else
            finish_head(w, item);
        return;
    }
    const int part = (int)blockIdx.x - norms, channel = (part % parts) * THREADS + (int)threadIdx.x;
    const cuda_sequence sequence = w.step.sequences[part / parts];
    if (channel < w.channels && sequence.count > above)
        keep_columns(w, sequence, channel);
}

/* ---- the op ---- */

static bool is_fast(const qmi_op_delta *op)
{
    return op->key_size == DELTA_SIZE && op->value_size == DELTA_SIZE && op->taps == DELTA_TAPS && op->convolution.data % 16 == 0;
}

static uint32_t blocks_of(int64_t items, int64_t of)
{
    return (uint32_t)((items + of - 1) / of);
}

static delta_work work_of(const cuda_run *run, const qmi_op_delta *op)
{
    delta_work w = {};
    w.step = run->step;
    w.qkv = cuda_slot(run, op->qkv);
    w.z = cuda_slot(run, op->z);
    w.beta = cuda_slot(run, op->beta);
    w.alpha = op->interleaved ? NULL : cuda_slot(run, op->alpha);
    w.out = cuda_slot(run, op->out);
    w.convolution = cuda_vector(&op->convolution);
    w.time_bias = cuda_vector(&op->time_bias);
    w.rate = cuda_vector(&op->decay);
    w.norm = cuda_vector(&op->norm.weight);
    w.epsilon = op->norm.epsilon;
    w.rows = run->rows;
    w.key_heads = op->key_heads;
    w.value_heads = op->value_heads;
    w.key_size = op->key_size;
    w.value_size = op->value_size;
    w.taps = op->taps;
    w.per_key = op->value_heads / op->key_heads;
    w.key_width = op->key_heads * op->key_size;
    w.channels = 2 * w.key_width + op->value_heads * op->value_size;
    w.grouped = op->grouped;
    w.interleaved = op->interleaved;
    w.state_offset = op->state_offset;
    return w;
}

static void finish(const cuda_run *run, const delta_work *w, int32_t above)
{
    const uint32_t norms = blocks_of((int64_t)w->rows * w->value_heads, WARPS), parts = blocks_of(w->channels, THREADS);
    const bool wide = w->value_size == DELTA_SIZE && (uintptr_t)w->norm % 16 == 0;
    cuda_launch(run, norms + parts * (uint32_t)run->sequences, THREADS, 0, wide ? delta_finish<true> : delta_finish<false>, *w,
                (int32_t)norms, (int32_t)parts, above);
}

static void run_any(const cuda_run *run, const delta_work *w)
{
    float *mixed = (float *)run->scratch;
    float2 *gates = (float2 *)(mixed + ((int64_t)w->rows * w->channels + 1) / 2 * 2);
    const int64_t heads = 2 * w->key_heads + w->value_heads;
    cuda_launch(run, blocks_of(w->rows * heads, WARPS), THREADS, 0, delta_any_mix, *w, mixed, gates);
    cuda_launch(run, dim3(blocks_of(w->value_size, QMI_WARP), (uint32_t)w->value_heads, (uint32_t)run->sequences), THREADS, 0,
                delta_any_advance, *w, mixed, gates);
    finish(run, w, 0);
}

void cuda_delta(const cuda_run *run, const qmi_op_delta *op)
{
    const delta_work w = work_of(run, op);
    const int32_t longest = run->single ? 1 : run->rows - run->sequences + 1; /* at most: every sequence has a row */
    if (!is_fast(op)) {
        run_any(run, &w);
        return;
    }
    const bool finished = delta_step_finishes(run, &w);
    if (longest <= DELTA_FEW || run->sequences > 1)
        delta_run_step(run, &w);
    if (longest > DELTA_FEW)
        delta_run_chunks(run, &w);
    if (longest > DELTA_FEW || !finished)
        finish(run, &w, finished ? DELTA_FEW : 0);
}

int64_t cuda_scratch_delta(const qmi_op_delta *op, int32_t rows)
{
    if (is_fast(op))
        return rows > DELTA_FEW ? delta_chunk_scratch(op, rows) : 0;
    const int64_t channels = 2 * (int64_t)op->key_heads * op->key_size + (int64_t)op->value_heads * op->value_size;
    return ((rows * channels + 1) / 2 + (int64_t)rows * op->value_heads) * (int64_t)sizeof(float2);
}

cudaError_t cuda_delta_setup(void)
{
    return delta_chunk_setup();
}
