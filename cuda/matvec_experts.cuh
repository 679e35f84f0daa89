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
    int32_t tile;               /* gate and up: rows a stage (two a pair) */
    int32_t stages, stage_bytes; /* of one warp's ring */
    int32_t per_block;          /* down: rows a block */
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

/* All rows' choices by the last warps, and the groups; a barrier is part of it. */
template <int N> static __device__ __forceinline__ void matvec_choose_all(const matvec_experts_job &job, matvec_choice<N> *choice)
{
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, top = job.top, n = MATVEC_WARPS - 1 - warp;
    if (n < job.in.count)
        matvec_choose(job, n, choice->expert + n * top, choice->weight + n * (top + 1));
    __syncthreads();
    if constexpr (N == 1) {
        if (threadIdx.x == 0)
            choice->groups = top;
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

/* ---- gate and up ---- */

/* Tiles of all blocks' warps, numbered through: the shared expert's first (they can be fetched before the choice), then each
 * group's. */
struct matvec_gate_share {
    int shared_tiles, expert_tiles, tiles; /* of the shared expert, of one expert, of all */
    int segments;                          /* stages of a tile */
};

struct matvec_gate_tile {
    const matvec_experts_job *job;
    int group, expert, first, count; /* group -1: the shared expert; rows [first, first + count / 2) of each matrix, in turns */
};

template <int N>
static __device__ __forceinline__ matvec_gate_tile matvec_gate_tile_of(const matvec_experts_job &job, const matvec_gate_share &s,
                                                                       const matvec_choice<N> *choice, int tile)
{
    const int per = job.tile >> 1;
    if (tile < s.shared_tiles)
        return { &job, -1, 0, tile * per, 2 * min(per, job.shared_inner - tile * per) };
    const int group = (tile - s.shared_tiles) / s.expert_tiles, first = (tile - s.shared_tiles - group * s.expert_tiles) * per;
    return { &job, group, matvec_group_expert<N>(choice, group), first, 2 * min(per, job.inner - first) };
}

static __device__ __forceinline__ int64_t matvec_row_first(const matvec_gate_tile &t, int r)
{
    const int up = t.group >= 0 && t.job->fused && (r & 1) ? t.job->inner : 0, rows = t.group < 0 ? 0 : t.job->gate.rows;
    return ((int64_t)t.expert * rows + t.first + (r >> 1) + up) * t.job->in.blocks;
}

static __device__ __forceinline__ const uint8_t *matvec_row_plane(const matvec_gate_tile &t, int r, int plane)
{
    return t.group < 0 ? (r & 1 ? t.job->shared_up.plane[plane] : t.job->shared_gate.plane[plane]) :
                         (r & 1 ? t.job->up.plane[plane] : t.job->gate.plane[plane]);
}

static __device__ __forceinline__ uint32_t matvec_gate_type(const matvec_experts_job &job, const matvec_gate_tile &t)
{
    return t.group < 0 ? job.shared_gate.type : job.gate.type;
}

/* Stores silu(gate) * up: lane (r * N + n) * width has row r's product with row n of activations. */
template <int N>
static __device__ __forceinline__ void matvec_gate_store(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         const matvec_gate_tile &t, uint32_t members, float value)
{
    constexpr int width = 32 / ((N == 1 ? MATVEC_TILE_MAX : 2) * N);
    const int lane = threadIdx.x & 31, r = lane / width / N, n = lane / width % N;
    const float up = __shfl_down_sync(~0u, value, N * width);
    if (lane % width || (r & 1) || r >= t.count || !((members >> n) & 1))
        return;
    const int place = t.group < 0 ? job.top : matvec_member<N>(choice, t.group, n) - 1;
    job.act[(int64_t)(n * (job.top + 1) + place) * job.act_stride + t.first + (r >> 1)] = chip_silu(value) * up;
}

/* Rows of activations that a tile is multiplied with. */
template <int N>
static __device__ __forceinline__ uint32_t matvec_gate_members(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                               const matvec_gate_tile &t)
{
    if (N == 1 || t.group < 0)
        return (1u << job.in.count) - 1;
    const int lane = threadIdx.x & 31;
    return __ballot_sync(~0u, lane < N && matvec_member<N>(choice, t.group, lane & (N - 1)));
}

template <int N>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1)
    matvec_gate_kernel(const __grid_constant__ matvec_experts_job job)
{
    constexpr int R = N == 1 ? MATVEC_TILE_MAX : 2, width = 32 / (R * N);
    CHIP_SHARED(uint8_t, shared);
    matvec_choice<N> *choice = (matvec_choice<N> *)shared;
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])(shared + matvec_choice_bytes<N>());
    matvec_activation *area = (matvec_activation *)((uint8_t *)squares + MATVEC_SQUARES_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, per = job.tile >> 1, step = MATVEC_WARPS * (int)gridDim.x;
    uint8_t *ring = (uint8_t *)(area + job.in.count * job.in.blocks) + warp * job.stages * job.stage_bytes;
    matvec_gate_share s = { (job.shared_inner + per - 1) / per, (job.inner + per - 1) / per, 0,
                            (job.in.blocks + MATVEC_LANES - 1) / MATVEC_LANES };

    /* The next stage to fill is `ahead_segment` of tile `ahead`. */
    int tile = (int)(blockIdx.x + gridDim.x * warp), segment = 0, ahead = tile, ahead_segment = 0, filled = 0;
    const auto fill = [&](int slot, int end) {
        if (ahead < end) {
            const matvec_gate_tile t = matvec_gate_tile_of<N>(job, s, choice, ahead);
            const int at = ahead_segment * MATVEC_LANES, real = min(MATVEC_LANES, job.in.blocks - at);
            MATVEC_FOR_QUANTIZED(matvec_gate_type(job, t),
                                 matvec_fetch<T, MATVEC_LANES>(ring + slot * job.stage_bytes, t, t.count, at, real));
        }
        chip_copy_commit();
        if (++ahead_segment == s.segments)
            ahead_segment = 0, ahead += step;
    };
#pragma unroll 1
    for (; filled < job.stages && ahead < s.shared_tiles; filled++)
        fill(filled, s.shared_tiles);
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, norm);
    chip_wait_for_previous();
    chip_let_next_start(); /* the scores are complete: what the next kernel chooses by */
    matvec_stage_input<N>(job.in, norm, true, area, squares);
    matvec_choose_all<N>(job, choice);
    s.tiles = s.shared_tiles + choice->groups * s.expert_tiles;

    float sums[R * N] = {};
    int slot = filled == job.stages ? 0 : filled; /* of the next to fill; the first rounds only fill what is free */
#pragma unroll 1
    for (int round = filled - job.stages; tile < s.tiles; round++) {
        if (round >= 0) {
            const matvec_gate_tile t = matvec_gate_tile_of<N>(job, s, choice, tile);
            const uint32_t members = matvec_gate_members<N>(job, choice, t);
            const int at = segment * MATVEC_LANES, real = min(MATVEC_LANES, job.in.blocks - at);
            chip_copy_wait_for(job.stages - 1);
            __syncwarp();
            MATVEC_STAGE_DOTS(matvec_gate_type(job, t), N, R, ring + slot * job.stage_bytes, t, t.count, at, real, area,
                              job.in.blocks, members, sums);
            if (++segment == s.segments) {
                matvec_gate_store<N>(job, choice, t, members,
                                     matvec_reduce<R * N>(sums) * matvec_factor(job.in, squares, lane / width % N));
                segment = 0;
                tile += step;
#pragma unroll
                for (int i = 0; i < R * N; i++)
                    sums[i] = 0;
            }
            __syncwarp();
        }
        fill(slot, s.tiles);
        slot = slot + 1 == job.stages ? 0 : slot + 1;
    }
    if (blockIdx.x == 0 && job.scores)
        for (int i = threadIdx.x; i < job.in.count * (2 * job.top + 1); i += MATVEC_THREADS) {
            const int n = i / (2 * job.top + 1), k = i - n * (2 * job.top + 1);
            job.route[i] = k < job.top ? (float)choice->expert[n * job.top + k] : choice->weight[n * (job.top + 1) + k - job.top];
        }
}

/* ---- down ---- */

/* A stage of a row of the result: the rows of some groups' matrices, or of the shared expert's, L blocks of each. */
struct matvec_down_stage {
    int group, count; /* groups [group, group + count); -1: the shared expert */
    int at;           /* first block */
    int blocks;       /* of its matrix in all */
};

/* How the stages of a row follow each other: the shared expert's, then the groups' in batches. */
struct matvec_down_plan {
    int shared_segments, segments, batches, stages;
    int groups;
};

template <int L> constexpr __host__ __device__ int matvec_down_batch(void) /* groups a stage: two steps of a warp */
{
    return 2 * 32 / L;
}

template <int L>
static __device__ __forceinline__ matvec_down_stage matvec_down_stage_of(const matvec_experts_job &job, const matvec_down_plan &p,
                                                                         int index)
{
    matvec_down_stage s;
    if (index < p.shared_segments) {
        s.group = -1;
        s.count = 1;
        s.at = index * L;
        s.blocks = job.shared_down.blocks;
        return s;
    }
    const int batch = (index - p.shared_segments) / p.segments;
    s.group = batch * matvec_down_batch<L>();
    s.count = min(matvec_down_batch<L>(), p.groups - s.group);
    s.at = (index - p.shared_segments - batch * p.segments) * L;
    s.blocks = job.down.blocks;
    return s;
}

/* Row `row` of each of a stage's matrices, as matvec_fetch asks for them. */
template <int N> struct matvec_down_rows {
    const matvec_experts_job *job;
    const matvec_choice<N> *choice;
    int group, row, blocks;
};

template <int N> static __device__ __forceinline__ int64_t matvec_row_first(const matvec_down_rows<N> &rows, int r)
{
    const int expert = rows.group < 0 ? 0 : matvec_group_expert<N>(rows.choice, rows.group + r);
    return ((int64_t)expert * rows.job->down.rows + rows.row) * rows.blocks;
}

template <int N>
static __device__ __forceinline__ const uint8_t *matvec_row_plane(const matvec_down_rows<N> &rows, int, int plane)
{
    return rows.group < 0 ? rows.job->shared_down.plane[plane] : rows.job->down.plane[plane];
}

/* The activations of all rows and choices, each times its choice's weight. */
template <int N>
static __device__ __forceinline__ void matvec_stage_acts(const matvec_experts_job &job, const matvec_choice<N> *choice,
                                                         matvec_activation *area)
{
    constexpr int batch = 4;
    const int width = job.top * job.down.blocks + (job.shared_inner ? job.shared_down.blocks : 0); /* blocks of a row */
    const int units = job.in.count * width * 8;
    for (int base = 0; base < units; base += batch * MATVEC_THREADS) {
        float4 x[batch];
        float gain[batch];
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + (int)threadIdx.x;
            const int n = N == 1 ? 0 : (u >> 3) / width, block = (u >> 3) - n * width;
            const int k = min(block / job.down.blocks, job.top), at = block - k * job.down.blocks;
            gain[b] = 0;
            x[b] = make_float4(0, 0, 0, 0);
            if (u < units) {
                gain[b] = choice->weight[n * (job.top + 1) + k];
                x[b] = *(const float4 *)(job.act + (int64_t)(n * (job.top + 1) + k) * job.act_stride + at * 32 + (u & 7) * 4);
            }
        }
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + (int)threadIdx.x;
            if (base + b * MATVEC_THREADS < units)
                matvec_quantize(area + (u >> 3), x[b], gain[b], u < units);
        }
    }
}

template <int N, int L>
static __device__ __forceinline__ void matvec_down_dots(const uint8_t *stage, const matvec_experts_job &job,
                                                        const matvec_choice<N> *choice, const matvec_down_stage &s, int row,
                                                        const matvec_activation *area, float (&sums)[N])
{
    const int lane = threadIdx.x & 31, b = lane & (L - 1), real = min(L, s.blocks - s.at);
    const int width = job.top * job.down.blocks + (job.shared_inner ? job.shared_down.blocks : 0);
    const matvec_down_rows<N> rows = { &job, choice, s.group, row, s.blocks };
#pragma unroll
    for (int step = 0; step < 2; step++) {
        const int r = step * (32 / L) + lane / L;
        if (r >= s.count || b >= real)
            continue;
        matvec_bytes bytes = {};
        MATVEC_FOR_QUANTIZED(s.group < 0 ? job.shared_down.type : job.down.type,
                             matvec_stage_bytes<T, L>(stage, rows, r, chip_here(b), s.at, bytes));
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int place = s.group < 0 ? job.top : matvec_member<N>(choice, s.group + r, n) - 1;
            if (n < job.in.count && place >= 0)
                sums[n] = matvec_bytes_dot(bytes, area[n * width + place * job.down.blocks + s.at + b], sums[n]);
        }
    }
}

template <int N, int L>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1)
    matvec_down_kernel(const __grid_constant__ matvec_experts_job job)
{
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    matvec_choice<N> *choice = (matvec_choice<N> *)shared;
    matvec_activation *area = (matvec_activation *)(shared + matvec_choice_bytes<N>());
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, shared_blocks = job.shared_inner ? job.shared_down.blocks : 0;
    const int begin = (int)blockIdx.x * job.per_block, end = min(begin + job.per_block, job.down.rows);
    const int blocks = job.in.count * (job.top * job.down.blocks + shared_blocks);
    uint8_t *ring = (uint8_t *)(area + blocks) + warp * job.stages * job.stage_bytes;

    matvec_choose_all<N>(job, choice);
    matvec_down_plan p;
    p.groups = choice->groups;
    p.segments = (job.down.blocks + L - 1) / L;
    p.shared_segments = (shared_blocks + L - 1) / L;
    p.batches = (p.groups + matvec_down_batch<L>() - 1) / matvec_down_batch<L>();
    p.stages = p.shared_segments + p.batches * p.segments;

    int ahead_row = begin + warp, ahead = 0, slot = 0;
    const auto fill = [&](uint8_t *stage) {
        if (ahead_row < end) {
            const matvec_down_stage s = matvec_down_stage_of<L>(job, p, ahead);
            const matvec_down_rows<N> rows = { &job, choice, s.group, ahead_row, s.blocks };
            const int real = min(L, s.blocks - s.at);
            MATVEC_FOR_QUANTIZED(s.group < 0 ? job.shared_down.type : job.down.type,
                                 matvec_fetch<T, L>(stage, rows, s.count, s.at, real));
        }
        chip_copy_commit();
        if (++ahead == p.stages)
            ahead = 0, ahead_row += MATVEC_WARPS;
    };
#pragma unroll 1
    for (int i = -job.stages; i < 0; i++)
        fill(ring + (job.stages + i) * job.stage_bytes);
    chip_wait_for_previous();
    matvec_stage_acts<N>(job, choice, area);
    __syncthreads();
#pragma unroll 1
    for (int row = begin + warp; row < end; row += MATVEC_WARPS) {
        const int n = lane / (32 / N);
        const bool mine = lane % (32 / N) == 0 && n < job.in.count;
        const float old = mine ? job.out[(int64_t)n * job.down.rows + row] : 0;
        float sums[N] = {};
#pragma unroll 1
        for (int index = 0; index < p.stages; index++) {
            const matvec_down_stage s = matvec_down_stage_of<L>(job, p, index);
            chip_copy_wait_for(job.stages - 1);
            __syncwarp();
            matvec_down_dots<N, L>(ring + slot * job.stage_bytes, job, choice, s, row, area, sums);
            __syncwarp();
            fill(ring + slot * job.stage_bytes);
            slot = slot + 1 == job.stages ? 0 : slot + 1;
        }
        const float sum = matvec_reduce<N>(sums);
        if (mine)
            job.out[(int64_t)n * job.down.rows + row] = old + sum;
    }
}

#endif
