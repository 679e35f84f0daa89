/* ROUTE and EXPERTS for up to N rows, in three kernels: the router's scores (matvec_route.cu); gate and up of the chosen
 * experts; down and the weighted sum. Who is chosen is a matter of 0.3 us, so every block of the second and of the third
 * kernel chooses for itself: that saves a kernel between. The third is let start only after the second's wait, when the scores
 * are complete: so it may choose and fetch its weights while the second still computes.
 *
 * Several rows may choose the same expert: the distinct ones are groups, and each group's weights are read once for its
 * members.
 *
 * Floors, for 35B-A3B (8 of 256 experts and a shared one of 512 x 2048, Q4_K, H200). Gate and up: 10.6 MB, of which 9.4 can
 * only be fetched after the choice: 2.1 us and one latency of memory; latency before that: input and scores 0.4 us, choice
 * 0.3. Down: 5.3 MB = 1.2 us, before the wait; after it: load 0.4 us, quantize 0.2, dots 0.2, sums 0.1. */
#ifndef QMI_CUDA_MATVEC_EXPERTS_CUH
#define QMI_CUDA_MATVEC_EXPERTS_CUH

#include "matvec.cuh"

#define MATVEC_CHOOSE_MAX 512 /* experts among which a warp chooses: 16 a lane */

struct matvec_experts_job {
    matvec_input in;            /* the hidden state, or what it is the norm of */
    cuda_matrix gate, up, down; /* [experts]; fused: `up` is `gate` */
    cuda_matrix shared_gate, shared_up, shared_down; /* rows 0: there are none */
    int32_t inner, shared_inner; /* rows of one expert's up matrix */
    int32_t fused;               /* 0 or 1: gate has gate's and then up's rows */
    int32_t experts, top;
    const float *scores;        /* [n][score_stride]: of each expert, then the shared one's gate; NULL: the route is given */
    int32_t score_stride, shared_scored;
    float *route;               /* [n][2 top + 1], read when there are no scores, else written */
    float *act;                 /* [n][top + 1][act_stride] */
    int32_t act_stride;
    float *out;                 /* [n][down.rows] */
    int32_t split_bits;         /* down: 2^split_bits warps share a row */
    float inverse_inner, inverse_down, inverse_width; /* 1 / inner, 1 / down.blocks, 1 / (blocks of all choices' activations) */
    int32_t width;              /* ... of a row */
};

template <int N> struct matvec_choice {
    float weight[N * (QMI_TOP_MAX + 1)];   /* [n][top + 1], the shared expert's last */
    int32_t expert[N * QMI_TOP_MAX];       /* [n][top] */
    int32_t groups;
    int32_t group[N == 1 ? 1 : N * QMI_TOP_MAX];       /* the expert of each; one row: as `expert` */
    uint8_t member[N == 1 ? 1 : N * QMI_TOP_MAX][N];   /* 1 + the place among row n's choices, 0: not chosen */
    int32_t before[MATVEC_WARPS];          /* groups that began in earlier warps */
};

template <int N> constexpr __host__ __device__ int matvec_choice_bytes(void)
{
    return (int)((sizeof(matvec_choice<N>) + 15) / 16 * 16);
}

/* ---- the choice of one row, by a warp ---- */

/* Numbers that are ordered as the floats are; NaN comes before all (1), and 0 is nothing at all. */
static __device__ __forceinline__ uint32_t matvec_key(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 1 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float matvec_key_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* Lane l has experts P l .. P l + P - 1. */
template <int P> static __device__ __forceinline__ void matvec_load_keys(const float *scores, int experts, uint32_t (&keys)[P])
{
    const int first = (int)(threadIdx.x & 31) * P;
#pragma unroll
    for (int i = 0; i < P; i += 4) {
        const float4 s = first + i < experts ? __ldcg((const float4 *)(scores + first + i)) : make_float4(0, 0, 0, 0);
        keys[i] = first + i < experts ? matvec_key(s.x) : 0;
        keys[i + 1] = first + i + 1 < experts ? matvec_key(s.y) : 0;
        keys[i + 2] = first + i + 2 < experts ? matvec_key(s.z) : 0;
        keys[i + 3] = first + i + 3 < experts ? matvec_key(s.w) : 0;
    }
}

/* The `top` largest, largest first, of equals the lower index first: expert[], and their scores to weight[]. Each round takes the
 * largest of all lanes' largest. */
template <int P>
static __device__ __forceinline__ void matvec_take_top(uint32_t (&keys)[P], int top, int32_t *expert, float *weight)
{
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int k = 0; k < top; k++) {
        uint32_t best[P];
        int place[P];
#pragma unroll
        for (int i = 0; i < P; i++) {
            best[i] = keys[i];
            place[i] = i;
        }
#pragma unroll
        for (int width = 1; width < P; width *= 2)
#pragma unroll
            for (int i = 0; i < P; i += 2 * width)
                if (best[i + width] > best[i]) {
                    best[i] = best[i + width];
                    place[i] = place[i + width];
                }
        const uint32_t largest = __reduce_max_sync(~0u, best[0]), who = __ballot_sync(~0u, best[0] == largest);
        if (lane == __ffs((int)who) - 1) {
            expert[k] = lane * P + place[0];
            weight[k] = matvec_key_value(largest);
#pragma unroll
            for (int i = 0; i < P; i++)
                keys[i] = i == place[0] ? 0 : keys[i];
        }
    }
    __syncwarp();
}

/* weight[0 .. top - 1]: scores, largest first, to softmax over the chosen ones (which is p / sum of the chosen p, op.h). */
static __device__ __forceinline__ void matvec_weigh(float *weight, int top)
{
    const int lane = threadIdx.x & 31;
    const float most = weight[0];
    const float a = lane < top ? __expf(weight[lane] - most) : 0, b = lane + 32 < top ? __expf(weight[lane + 32] - most) : 0;
    const float whole = 1 / chip_warp_sum(a + b);
    __syncwarp();
    if (lane < top)
        weight[lane] = a * whole;
    if (lane + 32 < top)
        weight[lane + 32] = b * whole;
}

/* What row n chose: from its scores, or from the route that is given. By one warp. Loads pass by the L1 cache, which may hold
 * older values when this runs before the wait. */
static __device__ __forceinline__ void matvec_choose(const matvec_experts_job &job, int n, int32_t *expert, float *weight)
{
    const int lane = threadIdx.x & 31, top = job.top;
    if (!job.scores) {
        const float *route = job.route + (int64_t)n * (2 * top + 1);
        for (int k = lane; k <= top; k += 32) {
            if (k < top)
                expert[k] = (int32_t)__ldcg(route + k);
            weight[k] = __ldcg(route + top + k);
        }
        return;
    }
    const float *scores = job.scores + (int64_t)n * job.score_stride;
    if (lane == 0)
        weight[top] = job.shared_scored ? chip_sigmoid(__ldcg(scores + job.experts)) : 1;
    if (job.experts <= 256) {
        uint32_t keys[8];
        matvec_load_keys<8>(scores, job.experts, keys);
        matvec_take_top<8>(keys, top, expert, weight);
    } else {
        uint32_t keys[16];
        matvec_load_keys<16>(scores, job.experts, keys);
        matvec_take_top<16>(keys, top, expert, weight);
    }
    matvec_weigh(weight, top);
}

/* All rows' choices by the last warps. */
template <int N>
static __device__ __forceinline__ void matvec_choose_rows(const matvec_experts_job &job, matvec_choice<N> *choice)
{
    const int n = MATVEC_WARPS - 1 - (int)(threadIdx.x >> 5);
    if (n < job.in.count)
        matvec_choose(job, n, choice->expert + n * job.top, choice->weight + n * (job.top + 1));
}

/* The groups; begins and ends with a barrier. */
template <int N> static __device__ __forceinline__ void matvec_group_rows(const matvec_experts_job &job, matvec_choice<N> *choice)
{
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, top = job.top;
    __syncthreads();
    if constexpr (N == 1) {
        if (threadIdx.x == 0)
            choice->groups = top;
        (void)warp, (void)lane;
    } else {
        /* A thread for each pair of row and choice, at most 8 * 64 of them; the first pair with an expert begins its group. */
        const int pair = threadIdx.x, pairs = job.in.count * top, row = pair / top;
        const int expert = pair < pairs ? choice->expert[pair] : -1;
        int leader = pair;
        for (int i = 0; pair < pairs && i < row * top; i++)
            if (choice->expert[i] == expert) {
                leader = i;
                break;
            }
        const uint32_t leaders = __ballot_sync(~0u, pair < pairs && leader == pair);
        if (lane == 0)
            choice->before[warp] = __popc(leaders);
        __syncthreads();
        int before = 0;
        for (int i = 0; i < warp; i++)
            before += choice->before[i];
        if (threadIdx.x == MATVEC_THREADS - 1)
            choice->groups = before + __popc(leaders);
        const int mine = before + __popc(leaders & ((1u << lane) - 1));
        if (pair < pairs && leader == pair) {
            choice->group[mine] = expert;
            for (int i = 0; i < N; i++) { /* a row has an expert once */
                int place = 0;
                for (int k = 0; i >= row && i < job.in.count && k < top; k++)
                    if (choice->expert[i * top + k] == expert)
                        place = k + 1;
                choice->member[mine][i] = (uint8_t)place;
            }
        }
    }
    __syncthreads();
}

template <int N> static __device__ __forceinline__ int matvec_group_expert(const matvec_choice<N> *choice, int group)
{
    return N == 1 ? choice->expert[group] : choice->group[group];
}

/* 1 + place of the group's expert among row n's choices, or 0. */
template <int N> static __device__ __forceinline__ int matvec_member(const matvec_choice<N> *choice, int group, int n)
{
    return N == 1 ? group + 1 : choice->member[group][n];
}

/* Rows of activations that a group is multiplied with. */
template <int N>
static __device__ __forceinline__ uint32_t matvec_members(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                          int group)
{
    if (N == 1)
        return (1u << job.in.count) - 1;
    const int lane = threadIdx.x & 31;
    return __ballot_sync(~0u, lane < N && matvec_member<N>(choice, group, lane & (N - 1)));
}

/* ---- gate and up ---- Pairs of rows of all blocks' warps, numbered through: the shared expert's first (they can be fetched
 * before the choice), then each group's. */

/* One pair: row `gate` of the one matrix and row `up` of the other; returns to lane r * 16 / N ... the products of
 * matvec_reduce. */
template <uint32_t T, int N>
static __device__ __forceinline__ float matvec_gate_pair(const cuda_matrix &a, const cuda_matrix &b, int64_t gate, int64_t up,
                                                         int blocks, const matvec_activation *area, uint32_t members)
{
    constexpr int C = matvec_chunks<T, N, true>();
    float sums[2 * N] = {};
#pragma unroll 1
    for (int at = chip_here((int)threadIdx.x & 31); at < (blocks + 31) / 32 * 32; at += 32 * C) {
        block<T> w[C][2];
#pragma unroll
        for (int c = 0; c < C; c++) {
            const int place = min(at + 32 * c, blocks - 1);
            block_load<T>(w[c][0], a, gate * blocks + place);
            block_load<T>(w[c][1], b, up * blocks + place);
        }
#pragma unroll
        for (int c = 0; c < C; c++)
            if (at + 32 * c < blocks)
                matvec_dots<T, N, 2>(w[c], at + 32 * c, area + at + 32 * c, blocks, members, sums);
    }
    return matvec_reduce<2 * N>(sums);
}

template <int N>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1)
    matvec_gate_kernel(const __grid_constant__ matvec_experts_job job)
{
    constexpr int width = 32 / (2 * N);
    CHIP_SHARED(uint8_t, shared);
    matvec_choice<N> *choice = (matvec_choice<N> *)shared;
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])(shared + matvec_choice_bytes<N>());
    matvec_activation *area = (matvec_activation *)((uint8_t *)squares + MATVEC_SQUARES_BYTES);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = lane / width % N, r = lane / width / N;

    if ((int)(blockIdx.x + gridDim.x * warp) < job.shared_inner) {
        matvec_prefetch_row(job.shared_gate, blockIdx.x + gridDim.x * warp);
        matvec_prefetch_row(job.shared_up, blockIdx.x + gridDim.x * warp);
    }
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, norm);
    chip_wait_for_previous();
    chip_let_next_start(); /* the scores are complete: what the next kernel chooses by */
    matvec_stage_input<N>(job.in, norm, area, squares);
    __syncthreads();
    const float factor = matvec_factor(job.in, squares, n);
    const uint32_t everyone = (1u << job.in.count) - 1;
    const auto keep = [&](float value, int row, uint32_t members, int place) { /* place: the lane's row's, among its choices */
        value *= factor;
        const float other = __shfl_down_sync(~0u, value, (N * width) & 31);
        if (lane % width == 0 && r == 0 && ((members >> n) & 1))
            job.act[(int64_t)(n * (job.top + 1) + place) * job.act_stride + row] = chip_silu(value) * other;
    };

    /* While the last warps choose, the others have the shared expert. */
    const int choosers = job.in.count, others = MATVEC_WARPS - choosers;
    if (warp >= others)
        matvec_choose_rows<N>(job, choice);
    else
#pragma unroll 1
        for (int row = (int)(blockIdx.x + gridDim.x * warp); row < job.shared_inner; row += others * (int)gridDim.x) {
            float value = 0;
            MATVEC_FOR_QUANTIZED(job.shared_gate.type,
                                 value = matvec_gate_pair<T, N>(job.shared_gate, job.shared_up, row, row, job.in.blocks, area, everyone));
            keep(value, row, everyone, job.top);
        }
    matvec_group_rows<N>(job, choice);

    const int pairs = choice->groups * job.inner;
#pragma unroll 1
    for (int pair = (int)(blockIdx.x + gridDim.x * warp); pair < pairs; pair += MATVEC_WARPS * (int)gridDim.x) {
        const int group = matvec_divide(pair, job.inverse_inner), row = pair - group * job.inner;
        const int64_t gate = (int64_t)matvec_group_expert<N>(choice, group) * job.gate.rows + row, up = job.fused ? gate + job.inner : gate;
        const uint32_t members = matvec_members<N>(job, choice, group);
        float value = 0;
        MATVEC_FOR_QUANTIZED(job.gate.type, value = matvec_gate_pair<T, N>(job.gate, job.up, gate, up, job.in.blocks, area, members));
        keep(value, row, members, matvec_member<N>(choice, group, n) - 1);
    }
    if (blockIdx.x == 0 && job.scores)
        for (int i = threadIdx.x; i < job.in.count * (2 * job.top + 1); i += MATVEC_THREADS) {
            const int row = i / (2 * job.top + 1), k = i - row * (2 * job.top + 1);
            job.route[i] = k < job.top ? (float)choice->expert[row * job.top + k] :
                                         choice->weight[row * (job.top + 1) + k - job.top];
        }
}

/* ---- down ---- */

/* The activations of all rows and choices, each times its choice's weight. */
template <int N>
static __device__ __forceinline__ void matvec_stage_acts(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         matvec_activation *area)
{
    constexpr int batch = 3;
    const int units = job.in.count * job.width * 8;
#pragma unroll 1
    for (int base = 0; base < units; base += batch * MATVEC_THREADS) {
        float4 x[batch];
        float gain[batch];
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + (int)threadIdx.x, n = N == 1 ? 0 : matvec_divide(u >> 3, job.inverse_width);
            const int block = (u >> 3) - n * job.width, k = min(matvec_divide(block, job.inverse_down), job.top);
            gain[b] = 0;
            x[b] = make_float4(0, 0, 0, 0);
            if (u < units) {
                gain[b] = choice->weight[n * (job.top + 1) + k];
                x[b] = *(const float4 *)(job.act + (n * (job.top + 1) + k) * job.act_stride + (block - k * job.down.blocks) * 32 +
                                         (u & 7) * 4);
            }
        }
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + (int)threadIdx.x;
            if (base + b * MATVEC_THREADS >= units)
                break;
            matvec_quantize(area + (u >> 3), x[b], gain[b], u < units);
        }
    }
}

/* Blocks of a row of the result: those of the groups' rows one after another, or (groups 0) those of the shared expert's row. */
struct matvec_down_part {
    int groups, blocks; /* blocks in all */
};

/* Adds one part's products of the warp's chunks to sums. `stage`, the first time, waits and brings the activations. */
template <uint32_t T, int N, class STAGE>
static __device__ __forceinline__ void matvec_down_dots(const matvec_experts_job &job, const cuda_matrix &m,
                                                        const matvec_choice<N> *choice, const matvec_down_part &p, int row,
                                                        int first, const matvec_activation *area, float (&sums)[N], STAGE stage)
{
    constexpr int C = N == 1 ? 3 : 1;
    const int stride = 32 << job.split_bits, lane = threadIdx.x & 31;
    bool waits = true;
#pragma unroll 1
    for (int at = first; waits || at - lane < p.blocks; at += C * stride) {
        block<T> w[C][1];
        int group[C];
#pragma unroll
        for (int c = 0; c < C; c++) {
            const int v = min(at + c * stride, p.blocks - 1);
            group[c] = p.groups ? matvec_divide(v, job.inverse_down) : 0;
            const int expert = p.groups ? matvec_group_expert<N>(choice, group[c]) : 0;
            block_load<T>(w[c][0], m, ((int64_t)expert * m.rows + row) * m.blocks + (v - group[c] * m.blocks));
        }
        if (waits)
            stage();
        waits = false;
#pragma unroll
        for (int c = 0; c < C; c++) {
            const int v = at + c * stride, b = v - group[c] * m.blocks;
            if (v >= p.blocks)
                continue;
            matvec_codes<T> codes;
            matvec_unpack<T>(w[c][0], b, codes);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const int place = p.groups ? matvec_member<N>(choice, group[c], n) - 1 : job.top;
                if (n < job.in.count && place >= 0)
                    sums[n] = matvec_dot<T>(codes, area[n * job.width + place * job.down.blocks + b], sums[n]);
            }
        }
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
    matvec_activation *area = (matvec_activation *)((uint8_t *)parts + MATVEC_SQUARES_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, bits = job.split_bits, part = warp & ((1 << bits) - 1);
    const int n = lane / (32 / N), first = 32 * part + lane, per_pass = MATVEC_WARPS >> bits, step = per_pass * (int)gridDim.x;
    const bool first_lane = lane % (32 / N) == 0;
    bool staged = false;

    if (job.shared_inner && (int)(blockIdx.x * per_pass + (warp >> bits)) < job.down.rows)
        matvec_prefetch_row(job.shared_down, blockIdx.x * per_pass + (warp >> bits));
    matvec_choose_rows<N>(job, choice);
    matvec_group_rows<N>(job, choice);
    const bool alike = job.shared_inner && job.shared_down.type == job.down.type;
    const matvec_down_part routed = { choice->groups, choice->groups * job.down.blocks }, common = { 0, job.shared_down.blocks };
    const auto stage = [&]() {
        if (staged)
            return;
        staged = true;
        chip_wait_for_previous();
        matvec_stage_acts<N>(job, choice, area);
        __syncthreads();
    };
    const auto nothing = []() {};
#pragma unroll 1
    for (int begin = (int)blockIdx.x * per_pass; begin < job.down.rows; begin += step) {
        const int wanted = begin + (warp >> bits), row = min(wanted, job.down.rows - 1);
        const bool mine = first_lane && n < job.in.count && part == 0 && wanted < job.down.rows;
        float sums[N] = {};
        MATVEC_FOR_QUANTIZED(job.down.type,
                             matvec_down_dots<T, N>(job, job.down, choice, routed, row, chip_here(first), area, sums, stage);
                             if (alike) matvec_down_dots<T, N>(job, job.shared_down, choice, common, row, chip_here(first), area,
                                                               sums, nothing));
        const float old = mine ? job.out[(int64_t)n * job.down.rows + row] : 0;
        if (job.shared_inner && !alike)
            MATVEC_FOR_QUANTIZED(job.shared_down.type, matvec_down_dots<T, N>(job, job.shared_down, choice, common, row,
                                                                              chip_here(first), area, sums, nothing));
        float sum = matvec_reduce<N>(sums);
        if (bits) {
            if (begin >= step)
                __syncthreads();
            if (first_lane)
                parts[warp * N + n] = sum;
            __syncthreads();
#pragma unroll 1
            for (int i = 1; i < 1 << bits && part == 0; i++)
                sum += parts[(warp + i) * N + n];
        }
        if (mine)
            job.out[(int64_t)n * job.down.rows + row] = old + sum;
    }
}

#endif
