/* ROUTE and EXPERTS for up to N rows, in three kernels: the router's scores (matvec_route.cu); gate and up of the chosen
 * experts; down and the weighted sum. Who is chosen is a matter of 0.3 us, so every block of the second and of the third
 * kernel chooses for itself: that saves a kernel between. The third is let start only after the second's wait, when the scores
 * are complete: so it chooses, and has its weights on their way, while the second still computes.
 *
 * Several rows may choose the same expert: the distinct ones are groups, and each group's weights are read once for its
 * members.
 *
 * Floors, for 35B-A3B (8 of 256 experts and a shared one of 512 x 2048, Q4_K, H200). Gate and up: 10.6 MB, of which 9.4 can
 * only be fetched after the choice: 2.1 us and one latency of memory; latency before that: input and scores 0.4 us, choice
 * 0.2. Down: 5.3 MB = 1.2 us, before the wait; after it: load 0.4 us, quantize 0.2, dots 0.2, sums 0.1. */
#ifndef QMI_CUDA_MATVEC_EXPERTS_CUH
#define QMI_CUDA_MATVEC_EXPERTS_CUH

#include "matvec_choose.cuh"

/* Bytes of a warp's rings: both kernels' fit into a processor's shared memory together. */
#define MATVEC_GATE_RING 4736
#define MATVEC_DOWN_RING 5184
#define MATVEC_SHARED_SLOTS 4 /* at most */

/* ---- gate and up ---- Pairs of rows are numbered through: the shared expert's, whose copies begin before the choice, and those
 * of all groups; a warp takes as many neighbours as a unit has (matvec_unit), and so on behind those of all blocks' warps. */

template <int N> constexpr __host__ __device__ int matvec_gate_pairs_of(void) /* of a unit */
{
    return matvec_unit<N>() / 2;
}

/* The first block of a pair's gate row; its up row's is `up` further in the other matrix. */
template <int N>
static __device__ __forceinline__ uint32_t matvec_gate_first(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                             int group, int row)
{
    return (uint32_t)((matvec_group_expert<N>(choice, group) * job.gate.rows + row) * job.in.blocks);
}

static __device__ __forceinline__ uint32_t matvec_up_after(const matvec_experts_job &job)
{
    return job.fused ? (uint32_t)(job.inner * job.in.blocks) : 0;
}

/* The next copies of the groups' pairs. */
struct matvec_gate_ahead {
    int pair, b, slot;
    uint32_t i;
};

template <uint32_t T, int N>
static __device__ __forceinline__ void matvec_gate_fetch(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         uint8_t *slots, int depth, int pairs, matvec_gate_ahead &ahead)
{
    constexpr int R = matvec_unit<N>();
    const int blocks = job.in.blocks;
    if (ahead.pair < pairs) {
        if (ahead.b == 0) {
            const int group = matvec_divide(ahead.pair, job.inverse_inner);
            ahead.i = matvec_gate_first<N>(job, choice, group, ahead.pair - group * job.inner);
        }
        ring_fetch<T, R, 2>(slots + ahead.slot * (R * ring_row_bytes(T)), job.gate, job.up, ahead.i, blocks, matvec_up_after(job),
                            R / 2, blocks - ahead.b);
        ahead.b += 32;
        ahead.i += 32;
        if (ahead.b >= blocks) {
            ahead.b = 0;
            ahead.pair += matvec_gate_pairs_of<N>() * MATVEC_WARPS * (int)gridDim.x;
        }
    }
    ahead.slot = ahead.slot + 1 == depth ? 0 : ahead.slot + 1;
    ring_commit(job.fillers);
}

/* Fills the ring; RING_DEPTH_MOST groups in all, whatever the type. */
template <uint32_t T, int N>
static __device__ __forceinline__ void matvec_gate_begin(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         uint8_t *slots, int pairs, matvec_gate_ahead &ahead)
{
    const int depth = ring_depth(ring_most(T, matvec_unit<N>(), MATVEC_GATE_RING), job.fillers);
    ring_commit(RING_DEPTH_MOST - 1 - depth * (1 + job.fillers));
#pragma unroll 1
    for (int i = 0; i < depth; i++)
        matvec_gate_fetch<T, N>(job, choice, slots, depth, pairs, ahead);
}

/* Starts the copies of the warp's first pair of the shared expert, as many as there are slots (of two rows). */
template <uint32_t T>
static __device__ __forceinline__ void matvec_shared_begin(const matvec_experts_job &job, uint8_t *slots, int row)
{
#pragma unroll 1
    for (int k = 0; k < job.shared_slots; k++)
        ring_fetch<T, 2, 2>(slots + k * (2 * ring_row_bytes(T)), job.shared_gate, job.shared_up,
                            (uint32_t)(row * job.in.blocks + 32 * k), 0, 0, 1, job.in.blocks - 32 * k);
}

/* The sums of a pair of the shared expert; what is not there already comes into the first slot. */
template <uint32_t T, int N>
static __device__ __forceinline__ float matvec_shared_pair(const matvec_experts_job &job, uint8_t *slots, int row, bool fetched,
                                                           const matvec_activation *area)
{
    const int blocks = job.in.blocks, lane = chip_here((int)threadIdx.x & 31);
    float sums[2 * N] = {};
    int slot = 0;
#pragma unroll 1
    for (int b = lane; b - lane < blocks; b += 32, slot++) {
        const uint32_t i = (uint32_t)(row * blocks + b);
        if (!fetched || slot >= job.shared_slots) {
            slot = 0;
            fetched = false;
            __syncwarp();
            ring_fetch<T, 2, 2>(slots, job.shared_gate, job.shared_up, i - lane, 0, 0, 1, blocks - (b - lane));
            chip_copy_commit();
            chip_copy_wait<0>();
            __syncwarp();
        }
        if (b < blocks)
            matvec_unit_dots<T, N, 2, 2>(slots + slot * (2 * ring_row_bytes(T)), i, 0, area + b, blocks, (1u << job.in.count) - 1,
                                         sums);
    }
    return matvec_reduce<2 * N>(sums);
}

/* Stores silu(gate) * up of R / 2 pairs: lane (r * N + n) * width has the sum of row r; place: of the rows among the choices of
 * the lane's row of activations. */
template <int N, int R>
static __device__ __forceinline__ void matvec_keep_pairs(const matvec_experts_job &job, float value, int row, uint32_t members,
                                                         int place)
{
    constexpr int width = 32 / (R * N);
    const int lane = threadIdx.x & 31, n = lane / width % N, r = lane / width / N;
    const float other = __shfl_down_sync(~0u, value, (N * width) & 31);
    if (lane % width == 0 && !(r & 1) && ((members >> n) & 1))
        job.act[(int64_t)(n * (job.top + 1) + place) * job.act_stride + row + r / 2] = chip_silu(value) * other;
}

template <uint32_t T, int N>
static __device__ __forceinline__ void matvec_gate_pairs(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         uint8_t *slots, int pairs, const matvec_activation *area, float factor,
                                                         matvec_gate_ahead &ahead)
{
    constexpr int R = matvec_unit<N>(), P = R / 2, most = ring_most(T, R, MATVEC_GATE_RING);
    const int lane = chip_here((int)threadIdx.x & 31), depth = ring_depth(most, job.fillers), blocks = job.in.blocks;
    const int n = lane / (32 / (R * N)) % N, warps = MATVEC_WARPS * (int)gridDim.x;
#pragma unroll 1
    for (int pair = P * (int)(blockIdx.x + gridDim.x * (threadIdx.x >> 5)); pair < pairs; pair += P * warps) {
        const int group = matvec_divide(pair, job.inverse_inner), row = pair - group * job.inner;
        const uint32_t first = matvec_gate_first<N>(job, choice, group, row);
        const uint32_t members = matvec_members<N>(job, choice, group);
        float sums[R * N] = {};
#pragma unroll 1
        for (int b = lane; b - lane < blocks; b += 32) {
            chip_copy_wait<most - 1>();
            __syncwarp();
            if (b < blocks)
                matvec_unit_dots<T, N, R, 2>(slots + ahead.slot * (R * ring_row_bytes(T)), first + b, blocks, area + b, blocks,
                                             members, sums);
            __syncwarp();
            matvec_gate_fetch<T, N>(job, choice, slots, depth, pairs, ahead);
        }
        const int place = matvec_member<N>(choice, group, n) - 1;
        matvec_keep_pairs<N, R>(job, matvec_reduce<R * N>(sums) * factor, row, members, place);
    }
}

template <int N>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1)
    matvec_gate_kernel(const __grid_constant__ matvec_experts_job job)
{
    CHIP_SHARED(uint8_t, shared);
    matvec_choice<N> *choice = (matvec_choice<N> *)shared;
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])(shared + matvec_choice_bytes<N>());
    uint8_t *rings = (uint8_t *)squares + matvec_squares_bytes(N);
    constexpr int own_width = 32 / (matvec_unit<N>() * N);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = lane / own_width % N;
    uint8_t *shared_slots = rings + warp * job.shared_ring_bytes;
    uint8_t *slots = rings + MATVEC_WARPS * job.shared_ring_bytes + warp * job.ring_bytes;
    matvec_activation *area = (matvec_activation *)(rings + MATVEC_WARPS * (job.shared_ring_bytes + job.ring_bytes));
    const int first = (int)(blockIdx.x + gridDim.x * warp), step = MATVEC_WARPS * (int)gridDim.x;
    /* The last warps choose, while the others bring the activations. */
    const int stagers = MATVEC_THREADS - 32 * job.in.count;
    if (first < job.shared_inner)
        MATVEC_FOR_QUANTIZED(job.shared_gate.type, matvec_shared_begin<T>(job, shared_slots, first));
    chip_copy_commit();
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, stagers, norm);
    chip_wait_for_previous();
    chip_let_next_start(); /* the scores are complete: what the next kernel chooses by */
    if ((int)threadIdx.x < stagers)
        matvec_stage_input<N>(job.in, stagers, norm, area, squares);
    else {
        if (lane < N)
            squares[lane][warp] = 0;
        matvec_choose_rows<N>(job, choice);
    }
    matvec_group_rows<N>(job, choice);

    const int pairs = choice->groups * job.inner;
    matvec_gate_ahead ahead = { matvec_gate_pairs_of<N>() * first, 0, 0, 0 };
    MATVEC_FOR_QUANTIZED(job.gate.type, matvec_gate_begin<T, N>(job, choice, slots, pairs, ahead));
    const float factor = matvec_factor(job.in, squares, n);
    const float shared_factor = __shfl_sync(~0u, factor, lane / (32 / (2 * N)) % N * own_width);
    chip_copy_wait<RING_DEPTH_MOST>();
    __syncwarp();
#pragma unroll 1
    for (int row = first; row < job.shared_inner; row += step) {
        float value = 0;
        MATVEC_FOR_QUANTIZED(job.shared_gate.type,
                             value = matvec_shared_pair<T, N>(job, shared_slots, row, row == first, area));
        matvec_keep_pairs<N, 2>(job, value * shared_factor, row, (1u << job.in.count) - 1, job.top);
    }
    MATVEC_FOR_QUANTIZED(job.gate.type, matvec_gate_pairs<T, N>(job, choice, slots, pairs, area, factor, ahead));
    if (blockIdx.x == 0 && job.scores)
        for (int i = threadIdx.x; i < job.in.count * (2 * job.top + 1); i += MATVEC_THREADS) {
            const int row = i / (2 * job.top + 1), k = i - row * (2 * job.top + 1);
            job.route[i] = k < job.top ? (float)choice->expert[row * job.top + k] :
                                         choice->weight[row * (job.top + 1) + k - job.top];
        }
}

/* ---- down ---- */

/* The activations of all rows and choices, each times its choice's weight; two threads a block. */
template <int N>
static __device__ __forceinline__ void matvec_stage_acts(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         matvec_activation *area)
{
    const int halves = job.in.count * job.width * 2;
#pragma unroll 1
    for (int base = 0; base < halves; base += MATVEC_THREADS) {
        const int u = base + (int)threadIdx.x, n = N == 1 ? 0 : matvec_divide(u >> 1, job.inverse_width);
        const int b = (u >> 1) - n * job.width, k = min(matvec_divide(b, job.inverse_down), job.top);
        float4 x[4];
        float gain = 0;
        if (base + ((int)threadIdx.x & ~31) >= halves)
            break;
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = make_float4(0, 0, 0, 0);
        if (u < halves) {
            const float4 *from = (const float4 *)(job.act + (n * (job.top + 1) + k) * job.act_stride +
                                                  (b - k * job.down.blocks) * 32 + (u & 1) * 16);
#pragma unroll
            for (int i = 0; i < 4; i++)
                x[i] = from[i];
            gain = choice->weight[n * (job.top + 1) + k];
        }
        float most = fmaxf(fmaxf(matvec_most4(x[0]), matvec_most4(x[1])), fmaxf(matvec_most4(x[2]), matvec_most4(x[3])));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        const float to = matvec_steps(most);
        uint32_t q[4];
        int sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[i] = matvec_round4(x[i], to);
            sum = chip_dot4_signed(q[i], 0x01010101u, sum);
        }
        const int other = __shfl_xor_sync(~0u, sum, 1);
        if (u < halves) {
            matvec_activation *block = area + (u >> 1);
            *(u & 1 ? &block->high : &block->low) = make_uint4(q[0], q[1], q[2], q[3]);
            if (!(u & 1))
                matvec_describe(block, most * (1.f / 127) * gain, sum, other);
        }
    }
}

/* Blocks of a row of the result, numbered through: those of the groups' rows one after another, then, where it has the same type,
 * those of the shared expert's row. */
struct matvec_down_blocks {
    int routed, all;
};

/* Where block v of a row is: whose (-1: the shared expert's), and its number in that matrix. */
struct matvec_down_place {
    int group;
    uint32_t block;
};

template <int N>
static __device__ __forceinline__ matvec_down_place matvec_down_find(const matvec_experts_job &job,
                                                                     const matvec_choice<N> *choice,
                                                                     const matvec_down_blocks &blocks, int row, int v)
{
    if (v >= blocks.routed)
        return { -1, (uint32_t)(row * job.shared_down.blocks + (v - blocks.routed)) };
    const int group = matvec_divide(v, job.inverse_down);
    return { group, (uint32_t)((matvec_group_expert<N>(choice, group) * job.down.rows + row - group) * job.down.blocks + v) };
}

/* Steps of a warp through a row that make a unit: for 8 experts of 512 and a shared one all. */
template <int N> constexpr __host__ __device__ int matvec_down_unit(void)
{
    return N == 1 ? 5 : 1;
}

/* Adds the product of the lane's block v of the row. own: of its activations; several rows: of those of its choice. */
template <uint32_t T, int N>
static __device__ __forceinline__ void matvec_down_dot(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                       const block<T> &w, const matvec_down_place &at, int v, int own,
                                                       const matvec_activation *area, float (&sums)[N])
{
    matvec_codes<T> codes;
    matvec_unpack<T>(w, v, codes);
    if constexpr (N == 1)
        sums[0] = matvec_dot<T>(codes, area[own], sums[0]);
    else
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int place = at.group < 0 ? job.top : matvec_member<N>(choice, at.group, n) - 1;
            if (n < job.in.count && place >= 0)
                sums[n] = matvec_dot<T>(codes, area[n * job.width + place * job.down.blocks + own], sums[n]);
        }
}

/* All rows of the block, and what they have of `blocks`, whose activations begin at `own_first`. `stage` waits and brings the
 * activations. */
template <uint32_t T, int N, class STAGE>
static __device__ __forceinline__ void matvec_down_rows(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                        const matvec_down_blocks &blocks, int own_first, uint8_t *slots,
                                                        float *parts, const matvec_activation *area, STAGE stage)
{
    constexpr int C = matvec_down_unit<N>(), most = ring_most(T, C, MATVEC_DOWN_RING, 1), slot_bytes = C * ring_row_bytes(T);
    const int warp = threadIdx.x >> 5, lane = chip_here((int)threadIdx.x & 31), depth = ring_depth(most, job.fillers);
    const int bits = job.split_bits, part = warp & ((1 << bits) - 1), per_pass = MATVEC_WARPS >> bits;
    const int stride = 32 << bits, start = 32 * part + lane;
    const int rows = job.down.rows, row_step = per_pass * (int)gridDim.x, n = lane / (32 / N);
    const bool first_lane = lane % (32 / N) == 0;

    int ahead = (int)blockIdx.x * per_pass + (warp >> bits), ahead_v = start, slot = 0;
    const auto fetch = [&]() {
        if (ahead < rows) {
#pragma unroll
            for (int c = 0; c < C; c++) {
                const int v = ahead_v + c * stride;
                const bool real = v < blocks.all, common = v >= blocks.routed;
                const uint32_t i = real ? matvec_down_find<N>(job, choice, blocks, ahead, v).block : 0;
                const uint8_t *plane[QMI_CUDA_PLANES];
#pragma unroll
                for (int k = 0; k < QMI_CUDA_PLANES; k++)
                    plane[k] = common ? job.shared_down.plane[k] : job.down.plane[k];
                ring_fetch_codes<T, C>(slots + slot * slot_bytes, c, plane, i, real);
                if (ring_by_eights(T) && (lane & 7) == 0)
                    ring_fetch_eight<T, C>(slots + slot * slot_bytes, c, lane >> 3, plane[2], plane[3], i, real);
            }
            ahead_v += C * stride;
            if (ahead_v - lane >= blocks.all) {
                ahead_v = start;
                ahead += row_step;
            }
        }
        slot = slot + 1 == depth ? 0 : slot + 1;
        ring_commit(job.fillers);
    };
#pragma unroll 1
    for (int i = 0; i < depth; i++)
        fetch();
    stage();
    bool odd = false;
#pragma unroll 1
    for (int begin = (int)blockIdx.x * per_pass; begin < rows; begin += row_step, odd = !odd) {
        const int row = begin + (warp >> bits);
        const bool mine = first_lane && n < job.in.count && part == 0 && row < rows;
        const float old = mine ? job.out[(int64_t)n * rows + row] : 0;
        float sums[N] = {};
#pragma unroll 1
        for (int v = start; row < rows && (v == start || v - lane < blocks.all); v += C * stride) {
            chip_copy_wait<most - 1>();
            __syncwarp();
            matvec_down_place at[C];
            block<T> w[C];
#pragma unroll
            for (int c = 0; c < C; c++) {
                at[c] = matvec_down_find<N>(job, choice, blocks, row, min(v + c * stride, blocks.all - 1));
                ring_take<T, C>(w[c], slots + slot * slot_bytes, c, at[c].block);
            }
#pragma unroll
            for (int c = 0; c < C; c++) {
                int own = min(v + c * stride, blocks.all - 1); /* blocks behind the last have weights of 0 */
                if (N > 1)
                    own -= at[c].group < 0 ? blocks.routed : at[c].group * job.down.blocks;
                matvec_down_dot<T, N>(job, choice, w[c], at[c], v + c * stride, own_first + own, area, sums);
            }
            __syncwarp();
            fetch();
        }
        float sum = matvec_reduce<N>(sums);
        if (bits) {
            float *kept = parts + odd * (MATVEC_WARPS * N);
            if (first_lane)
                kept[warp * N + n] = sum;
            __syncthreads();
#pragma unroll 1
            for (int i = 1; i < 1 << bits && part == 0; i++)
                sum += kept[(warp + i) * N + n];
        }
        if (mine)
            job.out[(int64_t)n * rows + row] = old + sum;
    }
}

template <int N>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1)
    matvec_down_kernel(const __grid_constant__ matvec_experts_job job)
{
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    matvec_choice<N> *choice = (matvec_choice<N> *)shared;
    float *parts = (float *)(shared + matvec_choice_bytes<N>());
    uint8_t *rings = (uint8_t *)parts + 2 * matvec_squares_bytes(N), *slots = rings + (threadIdx.x >> 5) * job.ring_bytes;
    matvec_activation *area = (matvec_activation *)(rings + MATVEC_WARPS * job.ring_bytes);
    matvec_choose_rows<N>(job, choice);
    matvec_group_rows<N>(job, choice);
    const bool alike = job.shared_down.type == job.down.type;
    const int routed = choice->groups * job.down.blocks, common = job.shared_inner ? job.shared_down.blocks : 0;
    const matvec_down_blocks blocks = { routed, routed + (alike ? common : 0) };
    const auto stage = [&]() {
        chip_wait_for_previous();
        matvec_stage_acts<N>(job, choice, area);
        __syncthreads();
    };
    MATVEC_FOR_QUANTIZED(job.down.type,
                         matvec_down_rows<T, N>(job, choice, blocks, 0, slots, parts, area, stage));
    if (common && !alike) {
        const matvec_down_blocks rest = { 0, common };
        chip_copy_wait<0>();
        __syncthreads();
        MATVEC_FOR_QUANTIZED(job.shared_down.type,
                             matvec_down_rows<T, N>(job, choice, rest, N == 1 ? routed : 0, slots, parts, area, []() {}));
    }
}

#endif
