/* The gated delta rule for few rows a sequence (decoding, drafts), heads of 128: all of the op in one kernel where blocks of a
 * cluster can speak to each other (sm_90 and later), else up to the recurrence (delta_finish does the rest).
 *
 * A block has some columns of a value head's S in registers, 16 rows of one column a thread: a warp has 16 of the 128 key rows
 * (its "group") and 32 columns, so it convolves the 32 query and key channels that it needs itself, one a lane. The length of q
 * and k is a factor of the sums, so sums over the groups of S^T k, S^T q, k.k, q.q, k.q all cross the block behind one barrier:
 *   r = g S^T k,  change = beta (v - r),  o = g S^T q + (k.q) change,  S = g S + k change
 * A cluster has the blocks of all value heads of a key head. They exchange the squares of o for the norm, and the barrier for
 * that also means that all have read the old columns of the convolution, so that the new ones can be written in their place.
 *
 * Why a cluster: whole heads a block would be 32 blocks that each move 64 KB in and out, 0.7 us longer than 128 blocks; a second
 * kernel for the norm is a hop, 1.5 us; the cluster's barrier is hidden behind the writes of the state.
 *
 * What is read before chip_wait_for_previous(): weights; the step and the state. Kernels let their successor start before they
 * have waited themselves, so any number of kernels may be in flight and "the last but one has ended" is no rule. The step is
 * complete because nothing of a run starts before the kernel that writes it has ended; the state, because it was written by an
 * earlier run (or a copy between runs), and by no other kernel of this one. */
#include "delta.cuh"

#define GROUPS 8       /* warps beside each other along the key rows */
#define GROUP_ROWS 16  /* = DELTA_SIZE / GROUPS; queries and keys of them are a warp's 32 channels */
#define CLUSTER_MOST 8 /* what every card with clusters has */

/* Of a block that has COLUMNS columns. Two of most, for even and odd rows: one barrier a row is enough. */
template <int COLUMNS> struct step_shared {
    float4 mixed[GROUPS * COLUMNS / QMI_WARP][2 * GROUP_ROWS / 4]; /* a warp's own: 16 of q, 16 of k */
    float recalled[2][GROUPS][COLUMNS], out[2][GROUPS][COLUMNS];
    float4 lengths[2][3][GROUPS / 4];                              /* q.q, k.k, q.k */
    float squares[2][DELTA_SIZE / QMI_WARP];                       /* of o, by 32 columns; written by who has them */
};

/* One channel: the columns behind the present one, oldest first, and the taps. */
typedef struct step_channel {
    float old[DELTA_TAPS - 1], tap[DELTA_TAPS];
} step_channel;

static __device__ __forceinline__ step_channel load_channel(const delta_work &w, const float *columns, int channel)
{
    step_channel c;
#pragma unroll
    for (int i = 0; i < DELTA_TAPS; i++)
        c.tap[i] = __ldg(w.convolution + (int64_t)channel * DELTA_TAPS + i);
#pragma unroll
    for (int i = 0; i < DELTA_TAPS - 1; i++)
        c.old[i] = columns[(int64_t)i * w.channels + channel];
    return c;
}

static __device__ __forceinline__ float convolve(step_channel &c, float x)
{
    float sum = c.tap[DELTA_TAPS - 1] * x;
#pragma unroll
    for (int i = 0; i < DELTA_TAPS - 1; i++) {
        sum += c.tap[i] * c.old[i];
        c.old[i] = i < DELTA_TAPS - 2 ? c.old[i + 1] : x;
    }
    return chip_silu(sum);
}

static __device__ __forceinline__ void keep_channel(const delta_work &w, float *columns, int channel, const step_channel &c)
{
#pragma unroll
    for (int i = 0; i < DELTA_TAPS - 1; i++)
        columns[(int64_t)i * w.channels + channel] = c.old[i];
}

static __device__ __forceinline__ float sum8(const float4 x[2])
{
    const float4 a = x[0], b = x[1];
    return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}

template <int COLUMNS> static __device__ __forceinline__ float sum_groups(const float (*x)[COLUMNS], int column)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
        sum += x[i][column];
    return sum;
}

/* The warp's sums over its 16 rows, of its q and k (x: a lane's own channel), into `parity` of the shared sums. */
template <int COLUMNS>
static __device__ __forceinline__ void add_up(step_shared<COLUMNS> &s, int parity, int group, int column, float x,
                                              const float state[GROUP_ROWS], float key[GROUP_ROWS])
{
    const int lane = threadIdx.x % QMI_WARP;
    const float4 *mixed = s.mixed[threadIdx.x / QMI_WARP];
    ((float *)mixed)[lane] = x;
    __syncwarp();
    float recalled[2] = {}, out[2] = {};
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i += 4) {
        const float4 q = mixed[i / 4], k = mixed[(GROUP_ROWS + i) / 4];
        key[i] = k.x, key[i + 1] = k.y, key[i + 2] = k.z, key[i + 3] = k.w;
        out[0] += state[i] * q.x + state[i + 1] * q.y;
        out[1] += state[i + 2] * q.z + state[i + 3] * q.w;
        recalled[0] += state[i] * k.x + state[i + 1] * k.y;
        recalled[1] += state[i + 2] * k.z + state[i + 3] * k.w;
    }
    s.recalled[parity][group][column] = recalled[0] + recalled[1];
    s.out[parity][group][column] = out[0] + out[1];
    float square = x * x, together = x * __shfl_xor_sync(~0u, x, GROUP_ROWS);
#pragma unroll
    for (int o = GROUP_ROWS / 2; o; o >>= 1) {
        square += __shfl_xor_sync(~0u, square, o);
        together += __shfl_xor_sync(~0u, together, o);
    }
    if (column == lane && lane % GROUP_ROWS == 0) /* of several warps with these rows the first */
        ((float *)s.lengths[parity][lane / GROUP_ROWS])[group] = square;
    if (column == 0)
        ((float *)s.lengths[parity][2])[group] = together;
}

/* Grid: blocks of a key head's value heads, by columns; key heads; then sequences. Three blocks of 32 columns a processor: with
 * many sequences the loads that are under way make the speed. */
template <int COLUMNS, bool CLUSTER>
static __global__ void __launch_bounds__(GROUPS * COLUMNS, 96 / COLUMNS) delta_step(delta_work w)
{
    CHIP_SHARED(step_shared<COLUMNS>, shared);
    step_shared<COLUMNS> &s = *shared;
    constexpr int parts = DELTA_SIZE / COLUMNS;
    const int lane = threadIdx.x % QMI_WARP, warp = threadIdx.x / QMI_WARP, group = warp % GROUPS;
    const int members = w.per_key * parts, member = blockIdx.x % members, key_head = blockIdx.x / members;
    const int head = delta_value_head(w, key_head, member / parts), column = warp / GROUPS * QMI_WARP + lane;
    const int head_column = member % parts * COLUMNS + column, inner = head * DELTA_SIZE + head_column;
    const int key_row = group * GROUP_ROWS + lane % GROUP_ROWS;
    const int key_channel = (lane < GROUP_ROWS ? 0 : w.key_width) + key_head * DELTA_SIZE + key_row;
    const int value_channel = 2 * w.key_width + inner;
    if (CLUSTER && !chip_has_clusters())
        return; /* never launched */
    chip_let_next_start();
    const cuda_sequence sequence = w.step.sequences[blockIdx.y];
    if (sequence.count > DELTA_FEW) {
        chip_wait_for_previous();
        return;
    }
    if (CLUSTER)
        chip_cluster_arrive(); /* waited for before another block's shared memory is written: it must have begun */
    const float bias = __ldg(w.time_bias + head), rate = __ldg(w.rate + head);
    const float norm = w.norm ? __ldg(w.norm + head_column) : 1;
    const float *before = delta_columns(w, sequence.state);
    step_channel mine = load_channel(w, before, key_channel), value = load_channel(w, before, value_channel);
    const int64_t place = (int64_t)(group * GROUP_ROWS) * DELTA_SIZE + head_column;
    const float *from = delta_matrix(w, sequence.state, head) + place;
    float state[GROUP_ROWS], key[GROUP_ROWS];
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i++)
        state[i] = from[i * DELTA_SIZE];
    chip_wait_for_previous();

    for (int t = 0; t < sequence.count; t++) {
        const int64_t row = sequence.first + t;
        const int parity = t & 1;
        const float x = w.qkv[row * w.channels + key_channel], x_value = w.qkv[row * w.channels + value_channel];
        const delta_gate gate = delta_load_gate(w, row, head);
        const int64_t place_out = row * w.value_heads * DELTA_SIZE + inner;
        const float z = CLUSTER && group == 0 ? w.z[place_out] : 0;
        add_up(s, parity, group, column, convolve(mine, x), state, key);
        const float decay = expf(delta_log_decay(gate.alpha, bias, rate)), beta = chip_sigmoid(gate.beta);
        const float v = convolve(value, x_value);
        __syncthreads();

        const float key_scale = rsqrtf(sum8(s.lengths[parity][1]) + DELTA_EPSILON);
        const float change = beta * (v - decay * key_scale * sum_groups<COLUMNS>(s.recalled[parity], column)) * key_scale;
        float out = 0;
        if (group == 0) {
            const float query_scale = rsqrtf((sum8(s.lengths[parity][0]) + DELTA_EPSILON) * DELTA_SIZE);
            out = query_scale * (decay * sum_groups<COLUMNS>(s.out[parity], column) + sum8(s.lengths[parity][2]) * change);
        }
        if (CLUSTER) {
            if (t == 0)
                chip_cluster_wait();
            if (group == 0) { /* to the blocks of this head, this one too */
                const float squares = chip_warp_sum(out * out);
                if (lane < parts)
                    chip_cluster_store(&s.squares[parity][head_column / QMI_WARP], member / parts * parts + lane, squares);
                __syncwarp();
            }
            chip_cluster_arrive();
        }
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i++)
            state[i] = decay * state[i] + key[i] * change;
        if (t == sequence.count - 1) {
            float *to = delta_matrix(w, sequence.next_state, head) + place;
#pragma unroll
            for (int i = 0; i < GROUP_ROWS; i++)
                to[i * DELTA_SIZE] = state[i];
        }
        if (CLUSTER) {
            chip_cluster_wait();
            const float *q = s.squares[parity];
            const float scale = w.norm ? rsqrtf(((q[0] + q[1]) + (q[2] + q[3])) / DELTA_SIZE + w.epsilon) * norm : 1;
            out *= scale * chip_silu(z);
        }
        if (group == 0)
            w.out[place_out] = out;
    }
    if (CLUSTER) { /* all blocks of the key head have read the old columns */
        float *after = delta_columns(w, sequence.next_state);
        if (group % members == member && warp < GROUPS)
            keep_channel(w, after, key_channel, mine);
        if (group == 0)
            keep_channel(w, after, value_channel, value);
    }
}

/* As many as fit: 32 columns each, or 64; 0: too many value heads. */
static int blocks_of_head(const delta_work *w)
{
    const int parts = CLUSTER_MOST / w->per_key;
    return parts >= 4 ? 4 : parts >= 2 ? 2 : 0;
}

bool delta_step_finishes(const cuda_run *run, const delta_work *w)
{
    return run->capability >= 90 && blocks_of_head(w) > 0;
}

template <int COLUMNS, bool CLUSTER> static void launch(const cuda_run *run, const delta_work *w)
{
    const uint32_t members = (uint32_t)w->per_key * (DELTA_SIZE / COLUMNS);
    const dim3 grid(members * (uint32_t)w->key_heads, (uint32_t)run->sequences), block(GROUPS * COLUMNS);
    if constexpr (CLUSTER)
        cuda_launch_cluster(run, members, grid, block, sizeof(step_shared<COLUMNS>), delta_step<COLUMNS, true>, *w);
    else
        cuda_launch(run, grid, block, sizeof(step_shared<COLUMNS>), delta_step<COLUMNS, false>, *w);
}

void delta_run_step(const cuda_run *run, const delta_work *w)
{
    if (!delta_step_finishes(run, w))
        launch<32, false>(run, w);
    else if (blocks_of_head(w) == 4)
        launch<32, true>(run, w);
    else
        launch<64, true>(run, w);
}
