/* Attention: chooses the kernels and how many blocks share a head's tokens; appends keys and values; merges partial results; and
 * computes heads of unusual size. */
#include "attend_window.cuh"

#define WARPS 4
#define THREADS (WARPS * QMI_WARP)

/* ---- appending: a warp normalises, turns and stores a row's key of one key-value head, and stores its value ---- */
static __global__ void __launch_bounds__(THREADS) attend_append(attend_arguments a)
{
    CHIP_SHARED(float, heads); /* [WARPS][key, value] */
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP, size = a.head_size;
    const int64_t item = (int64_t)blockIdx.x * WARPS + warp;
    const int row = (int)(item / a.kv_heads), kv_head = (int)(item % a.kv_heads);
    chip_let_next_start();
    const int known = min(row, a.rows - 1), position = a.step.position[known];
    const uint64_t *pages = a.step.pages + a.step.sequences[a.step.sequence[known]].page_first;
    const attend_place place = attend_place_of(a, pages, kv_head, position);
    chip_wait_for_previous();
    if (row >= a.rows)
        return;
    float *head = heads + 2 * warp * size, *value = head + size;
    for (int i = lane; i < size; i += QMI_WARP) {
        head[i] = a.key[item * size + i];
        value[i] = a.value[item * size + i];
    }
    attend_turn(head, size, a.key_norm, a.key_epsilon, a.rotary, a.frequency, position, lane);
    if (a.rotate_keys)
        attend_spread_any(head, size, false, lane);
    if (a.rotate_values)
        attend_spread_any(value, size, false, lane);
    attend_append_head(a.key_type, attend_address<ATTEND_ANY>(a, place, false), head, size, true, lane);
    attend_append_head(a.value_type, attend_address<ATTEND_ANY>(a, place, true), value, size, true, lane);
}

/* ---- turning results back, and gating them then: a warp a row's head ---- */
static __global__ void __launch_bounds__(THREADS) attend_turn_back(attend_arguments a)
{
    CHIP_SHARED(float, heads);
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP, size = a.head_size;
    const int64_t item = (int64_t)blockIdx.x * WARPS + warp;
    chip_let_next_start();
    chip_wait_for_previous();
    if (item >= (int64_t)a.rows * a.heads)
        return;
    float *head = heads + warp * size, *out = a.out + item * size;
    const float *gate = a.query + attend_gate_index(a, (int)(item / a.heads), (int)(item % a.heads));
    for (int i = lane; i < size; i += QMI_WARP)
        head[i] = out[i];
    attend_spread_any(head, size, true, lane);
    for (int i = lane; i < size; i += QMI_WARP)
        out[i] = head[i] * (a.gated ? chip_sigmoid(gate[i]) : 1);
}

/* ---- merging: a block merges 64 values of a row's head from all splits; eight groups of threads take every eighth split ---- */
#define MERGED 64
#define COLUMNS (MERGED / 4) /* of four values */
#define GROUPS (THREADS / COLUMNS)
#define MARKS ((ATTEND_SPLITS_MOST + QMI_WARP - 1) / QMI_WARP) /* of a lane */

static __global__ void __launch_bounds__(THREADS) attend_merge(attend_arguments a)
{
    __shared__ float4 sums[GROUPS][COLUMNS];
    CHIP_SHARED(float4, parts); /* [splits][COLUMNS] */
    const int lane = threadIdx.x % QMI_WARP, group = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    const int first = blockIdx.x * MERGED + 4 * column, head = blockIdx.y, row = blockIdx.z;
    const int64_t mark = attend_mark(a, row, head, 0);
    const float2 *marks = (const float2 *)a.marks + mark;
    const float *from = a.partial + mark * a.head_size + first, *from_gate = a.query + attend_gate_index(a, row, head) + first;
    chip_let_next_start();
    chip_wait_for_previous();
    for (int i = group; i < a.splits; i += GROUPS) /* of an empty split: whatever was there before */
        chip_copy16(parts + i * COLUMNS + column, from + (int64_t)i * a.head_size, true);
    chip_copy_commit();
    const float4 gate = a.gated ? *(const float4 *)from_gate : make_float4(0, 0, 0, 0);
    float2 own[MARKS];
    float most = -INFINITY, all = 0;
#pragma unroll
    for (int k = 0; k < MARKS; k++) {
        own[k] = lane + k * QMI_WARP < a.splits ? marks[lane + k * QMI_WARP] : make_float2(-INFINITY, 0);
        most = fmaxf(most, own[k].x);
    }
    most = chip_warp_max(most); /* finite: a row sees itself */
#pragma unroll
    for (int k = 0; k < MARKS; k++)
        all += own[k].y * chip_exp2(own[k].x - most);
    all = chip_warp_sum(all);
    chip_copy_wait<0>(); /* a thread reads what it has copied */
    float4 y = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int i = group; i < a.splits; i += GROUPS) {
        const float4 x = parts[i * COLUMNS + column];
        const float largest = marks[i].x, factor = chip_exp2(largest - most);
        const bool empty = largest == -INFINITY;
        y.x += empty ? 0 : factor * x.x;
        y.y += empty ? 0 : factor * x.y;
        y.z += empty ? 0 : factor * x.z;
        y.w += empty ? 0 : factor * x.w;
    }
    sums[group][column] = y;
    __syncthreads();
    if (group)
        return;
#pragma unroll
    for (int i = 1; i < GROUPS; i++) {
        const float4 x = sums[i][column];
        y = make_float4(y.x + x.x, y.y + x.y, y.z + x.z, y.w + x.w);
    }
    attend_finish(a, row, head, first, y, all, gate);
}

/* ---- any head size, after appending: a block a row and head, THREADS tokens at a time, in float32 ---- */
#define OWN (QMI_HEAD_SIZE_MAX / THREADS) /* values of the result that a thread has */

static __global__ void __launch_bounds__(THREADS) attend_any(attend_arguments a)
{
    __shared__ float weight[THREADS];
    CHIP_SHARED(float, query); /* with a correction a second one, of the packed keys' basis */
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP, size = a.head_size;
    const int row = blockIdx.x, head = blockIdx.y, kv_head = head / a.group;
    chip_let_next_start();
    chip_wait_for_previous();
    const float *from = a.query + ((int64_t)row * a.heads + head) * a.query_step;
    const int position = a.step.position[row];
    const cuda_sequence s = a.step.sequences[a.step.sequence[row]];
    const uint64_t *pages = a.step.pages + s.page_first;
    const int packed = a.window ? attend_packed(a, position + 1) : position + 1;
    const bool groups = a.key_type == QMI_KV_Q2;
    if (warp == 0) {
        for (int i = lane; i < size; i += QMI_WARP) {
            query[i] = from[i];
            if (a.correction)
                query[size + i] = __half2float(a.prepared[((int64_t)row * a.heads + head) * size + i]) / a.scale;
        }
        attend_turn(query, size, a.query_norm, a.query_epsilon, a.rotary, a.frequency, position, lane);
        if (a.rotate_keys)
            attend_spread_any(query, size, false, lane);
    }
    __syncthreads();
    float y[OWN] = {}, largest = -INFINITY, sum = 0;
    for (int first = 0; first <= position; first += THREADS) {
        const int count = min(THREADS, position + 1 - first);
        for (int i = warp; i < THREADS; i += WARPS) {
            float score = 0;
            const int t = first + i;
            if (t < packed && groups) {
                const uint8_t *keys = attend_group_of(a, pages[t / QMI_KV_GROUP], kv_head);
                const float *own = query + (a.correction ? size : 0);
                for (int d = lane; d < size; d += QMI_WARP)
                    score += own[d] * attend_group_value(keys, size, t % QMI_KV_GROUP, d);
            } else if (i < count) {
                const bool whole = t < packed;
                const uint64_t key = whole ? attend_address<ATTEND_ANY>(a, attend_place_of(a, pages, kv_head, t), false)
                                           : attend_in_window(a, s, false, kv_head, t);
                for (int d = lane; d < size; d += QMI_WARP)
                    score += query[d] * attend_value(whole ? a.key_type : QMI_KV_F16, key, size, d);
            }
            score = chip_warp_sum(score);
            if (lane == 0)
                weight[i] = i < count ? score * a.scale : -INFINITY;
        }
        __syncthreads();
        float most = largest, added = 0;
        for (int i = lane; i < THREADS; i += QMI_WARP)
            most = fmaxf(most, weight[i]);
        most = chip_warp_max(most);
        for (int i = lane; i < THREADS; i += QMI_WARP)
            added += chip_exp2(weight[i] - most);
        const float before = chip_exp2(largest - most), own = chip_exp2(weight[threadIdx.x] - most);
        sum = sum * before + chip_warp_sum(added);
        largest = most;
        __syncthreads();
        weight[threadIdx.x] = own;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < OWN; k++)
            y[k] *= before;
        for (int i = 0; i < count; i++) {
            const bool whole = first + i < packed;
            const uint64_t value = whole ? attend_address<ATTEND_ANY>(a, attend_place_of(a, pages, kv_head, first + i), true)
                                         : attend_in_window(a, s, true, kv_head, first + i);
#pragma unroll
            for (int k = 0; k < OWN; k++)
                if (k * THREADS + (int)threadIdx.x < size)
                    y[k] += weight[i] * attend_value(whole ? a.value_type : QMI_KV_F16, value, size, k * THREADS + threadIdx.x);
        }
        __syncthreads();
    }
    const float *gate = a.query + attend_gate_index(a, row, head);
    float *out = a.out + ((int64_t)row * a.heads + head) * size;
#pragma unroll
    for (int k = 0; k < OWN; k++) {
        const int d = k * THREADS + threadIdx.x;
        if (d < size)
            out[d] = y[k] / sum * (a.gated ? chip_sigmoid(gate[d]) : 1);
    }
}

/* ---- splits ----
 * Cost of a launch in steps of 64 tokens: each wave of blocks passes over its tokens and has a start of about three steps;
 * merging is another kernel. Up to 64 steps a split, so that the tokens of one long sequence among short ones are not one
 * block's alone. `taken`: splits that others have. */
#define STEP 64
#define WINDOW_SPLITS_MOST 16

static int32_t splits_of(const cuda_run *run, const qmi_op_attend *op, int64_t blocks, int32_t resident, int32_t taken)
{
    const int64_t places = (int64_t)run->processors * resident; /* blocks that run at a time */
    const int64_t steps = (run->longest + STEP - 1) / STEP;
    const int64_t room = ATTEND_PARTIALS / ((int64_t)run->rows * op->heads) - taken, most = ATTEND_SPLITS_MOST - taken;
    int64_t limit = steps < most ? steps : most, best = 1, best_cost = INT64_MAX, best_each = steps;
    limit = limit < room ? limit : room;
    for (int64_t splits = 1; splits <= limit; splits++) {
        const int64_t waves = (blocks * splits + places - 1) / places, each = (steps + splits - 1) / splits;
        const int64_t cost = waves * (each + 3) + (splits > 1 ? 3 : 0);
        if (cost < best_cost || best_each > 64) {
            best = splits;
            best_cost = cost;
            best_each = each;
        }
    }
    return (int32_t)best;
}

static int32_t head_blocks(const qmi_op_attend *op, int32_t most)
{
    return (op->heads / op->kv_heads + most - 1) / most;
}

static bool is_halves(const qmi_op_attend *op)
{
    return op->key_type == QMI_KV_F16 && op->value_type == QMI_KV_F16 && !op->rotate_keys && !op->rotate_values;
}

/* Records of types but halves are read sixteen tokens at a time, which have to lie in one run. */
static bool has_kernels(const qmi_op_attend *op)
{
    const bool size = op->head_size == 64 || op->head_size == 128 || op->head_size == 256;
    return size && (is_halves(op) || op->page_tokens % 16 == 0);
}

/* How the kernel for one row a sequence takes keys and values; -1: not at all. It appends, and turns results back, itself. With a
 * window a row has two splits at least. */
static int decode_taken(const cuda_run *run, const qmi_op_attend *op)
{
    const bool codes = qmi_kv_formats[op->key_type].quantized && qmi_kv_formats[op->value_type].quantized;
    if (!run->single || !has_kernels(op))
        return -1;
    if (op->window && 2 * (int64_t)run->rows * op->heads > ATTEND_PARTIALS)
        return -1;
    if (op->window)
        return op->key_type == QMI_KV_Q2 && op->value_type == QMI_KV_Q2 ? ATTEND_GROUPS : ATTEND_WINDOW;
    if (is_halves(op))
        return ATTEND_HALVES;
    const int taken = codes ? ATTEND_CODES : ATTEND_RECORDS;
    const bool fits = op->key_offset % 16 == 0 && op->value_offset % 16 == 0 &&
                      attend_decode_fits(taken, op->head_size, run->shared_most);
    return fits ? taken : -1;
}

static bool is_decode(const cuda_run *run, const qmi_op_attend *op)
{
    return decode_taken(run, op) >= 0;
}

static attend_arguments arguments_of(const cuda_run *run, const qmi_op_attend *op)
{
    attend_arguments a = {};
    a.step = run->step;
    a.query = cuda_slot(run, op->query);
    a.key = cuda_slot(run, op->key);
    a.value = cuda_slot(run, op->value);
    a.out = cuda_slot(run, op->out);
    a.query_norm = cuda_vector(&op->query_norm.weight);
    a.key_norm = cuda_vector(&op->key_norm.weight);
    a.frequency = cuda_vector(&op->inverse_frequency);
    a.query_epsilon = op->query_norm.epsilon;
    a.key_epsilon = op->key_norm.epsilon;
    a.scale = 1.44269504f / sqrtf((float)op->head_size);
    a.rows = run->rows;
    a.sequences = run->sequences;
    a.heads = op->heads;
    a.kv_heads = op->kv_heads;
    a.group = op->heads / op->kv_heads;
    a.head_size = op->head_size;
    a.rotary = op->rotary;
    a.query_step = op->gated ? 2 * op->head_size : op->head_size;
    a.gated = op->gated;
    a.page_tokens = op->page_tokens;
    a.key_offset = op->key_offset;
    a.value_offset = op->value_offset;
    a.key_type = op->key_type;
    a.value_type = op->value_type;
    a.key_bytes = (int32_t)qmi_kv_head_bytes(op->key_type, op->head_size);
    a.value_bytes = (int32_t)qmi_kv_head_bytes(op->value_type, op->head_size);
    a.rotate_keys = op->rotate_keys;
    a.rotate_values = op->rotate_values;
    a.window = op->window;
    a.ring = op->window + QMI_KV_GROUP;
    a.window_offset = op->window_offset;
    a.correction = cuda_vector(&op->correction);
    a.packs = op->window && run->packs;
    a.head_blocks = head_blocks(op, is_decode(run, op) ? attend_decode_heads() : attend_prefill_heads());
    a.block_heads = (a.group + a.head_blocks - 1) / a.head_blocks;
    a.splits = 1;
    return a;
}

/* Scratch: with a window the batch's own keys and values, and with a correction queries; then partial results, whose rows of a
 * multiple of 64 values keep what follows aligned. */
static int64_t fresh_bytes(const qmi_op_attend *op, int64_t rows)
{
    return op->window ? (2 * op->kv_heads * rows * op->head_size * (int64_t)sizeof(__half) + 255) & ~INT64_C(255) : 0;
}

static int64_t prepared_bytes(const qmi_op_attend *op, int64_t rows) /* the plan knows no address of a correction */
{
    return op->key_type == QMI_KV_Q2 ? (2 * op->heads * rows * op->head_size * (int64_t)sizeof(__half) + 255) & ~INT64_C(255) : 0;
}

static void share(const cuda_run *run, const qmi_op_attend *op, int64_t blocks, int32_t resident, attend_arguments *a)
{
    a->splits = splits_of(run, op, blocks, resident, a->window_splits) + a->window_splits;
    a->partial = (float *)(run->scratch + fresh_bytes(op, a->rows) + prepared_bytes(op, a->rows));
    a->marks = a->partial + (int64_t)a->rows * a->heads * a->splits * a->head_size;
}

static void append(const cuda_run *run, const attend_arguments *a)
{
    const int64_t items = (int64_t)a->rows * a->kv_heads;
    cuda_launch(run, (uint32_t)((items + WARPS - 1) / WARPS), THREADS, 2 * WARPS * sizeof(float) * (size_t)a->head_size,
                attend_append, *a);
}

static void turn_back(const cuda_run *run, const attend_arguments *a)
{
    const int64_t items = (int64_t)a->rows * a->heads;
    cuda_launch(run, (uint32_t)((items + WARPS - 1) / WARPS), THREADS, WARPS * sizeof(float) * (size_t)a->head_size,
                attend_turn_back, *a);
}

static bool turns_back_later(const cuda_run *run, const qmi_op_attend *op)
{
    return op->rotate_values && !is_decode(run, op);
}

/* Enough for 64 tokens each, a chunk a warp: copies from the window are not far ahead of the products. */
static int32_t window_splits(const cuda_run *run, const qmi_op_attend *op)
{
    const int64_t room = ATTEND_PARTIALS / ((int64_t)run->rows * op->heads) / 2;
    int32_t splits = (op->window + 2 * STEP - 2) / STEP;
    splits = splits < WINDOW_SPLITS_MOST ? splits : WINDOW_SPLITS_MOST;
    return splits < room ? splits : (int32_t)room;
}

static void attend(const cuda_run *run, const qmi_op_attend *op, attend_arguments a)
{
    const int taken = decode_taken(run, op);
    a.gated = a.gated && !turns_back_later(run, op);
    if (!has_kernels(op)) {
        cuda_launch(run, dim3(a.rows, a.heads), THREADS, (a.correction ? 2 : 1) * sizeof(float) * (size_t)a.head_size, attend_any,
                    a);
        return;
    }
    if (taken >= 0) {
        const bool several = taken == ATTEND_CODES || taken == ATTEND_GROUPS; /* blocks on a processor */
        a.window_splits = op->window ? window_splits(run, op) : 0;
        share(run, op, (int64_t)a.rows * a.kv_heads * a.head_blocks, several ? attend_decode_resident() : 1, &a);
        attend_decode(run, &a, taken);
    } else {
        share(run, op, attend_prefill_tiles(run, &a) * a.kv_heads * a.head_blocks, 1, &a);
        attend_prefill(run, &a, op->window ? ATTEND_WINDOW : is_halves(op) ? ATTEND_HALVES : ATTEND_ANY);
    }
    if (a.splits > 1)
        cuda_launch(run, dim3(a.head_size / MERGED, a.heads, a.rows), THREADS, (size_t)a.splits * COLUMNS * sizeof(float4),
                    attend_merge, a);
}

void cuda_attend(const cuda_run *run, const qmi_op_attend *op)
{
    attend_arguments a = arguments_of(run, op);
    const bool decode = is_decode(run, op);
    a.fresh = (__half *)run->scratch;
    a.prepared = (__half *)(run->scratch + fresh_bytes(op, a.rows));
    if (!decode && op->window)
        attend_window_append(run, &a);
    else if (!decode)
        append(run, &a);
    if (a.correction)
        attend_window_prepare(run, &a);
    if (a.packs)
        attend_window_pack(run, &a);
    attend(run, op, a);
    if (op->window && (!decode || run->moves))
        attend_window_keep(run, &a, !decode);
    if (turns_back_later(run, op))
        turn_back(run, &a);
}

int64_t cuda_scratch_attend(const qmi_op_attend *op, int32_t rows)
{
    const int64_t most = (int64_t)rows * op->heads * ATTEND_SPLITS_MOST;
    const int64_t partials = most < ATTEND_PARTIALS ? most : ATTEND_PARTIALS;
    return fresh_bytes(op, rows) + prepared_bytes(op, rows) +
           (has_kernels(op) ? partials * (op->head_size + 2) * (int64_t)sizeof(float) : 0);
}

cudaError_t cuda_attend_setup(void)
{
    int device = 0, shared_most = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&shared_most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess)
        error = attend_window_setup();
    if (error == cudaSuccess)
        error = attend_decode_setup(shared_most);
    return error == cudaSuccess ? attend_prefill_setup(shared_most) : error;
}
