/* The choice of experts in decoding: by a warp a row, from the router's scores; and whose weights are then wanted by whom. */
#ifndef QMI_CUDA_MATVEC_CHOOSE_CUH
#define QMI_CUDA_MATVEC_CHOOSE_CUH

#include "matvec.cuh"

#define MATVEC_CHOOSE_MAX 512 /* experts among which a warp chooses: 16 a lane */
#define MATVEC_FEW 256        /* ... 8 a lane */

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
    int32_t fillers, shared_slots;            /* of the kernel's rings (matvec_ring.cuh); slots of the shared expert's rows */
    int32_t ring_bytes, shared_ring_bytes;    /* a warp */
    float inverse_inner, inverse_down, inverse_width; /* 1 / inner, 1 / down.blocks, 1 / (blocks of all choices' activations) */
    int32_t width;              /* ... of a row */
};

template <int N> struct matvec_choice {
    __align__(16) uint32_t keys[N][MATVEC_FEW]; /* of all experts, for the choice */
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

/* ---- a few of up to 256 ---- */

static __device__ __forceinline__ void matvec_order(uint32_t &a, uint32_t &b)
{
    const uint32_t most = max(a, b);
    b = min(a, b);
    a = most;
}

/* Largest first. Batcher 1968: odd-even merging, 19 comparisons. */
static __device__ __forceinline__ void matvec_sort_eight(uint32_t (&k)[8])
{
#pragma unroll
    for (int i = 0; i < 8; i += 2)
        matvec_order(k[i], k[i + 1]);
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        matvec_order(k[i], k[i + 2]);
        matvec_order(k[i + 1], k[i + 3]);
        matvec_order(k[i + 1], k[i + 2]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        matvec_order(k[i], k[i + 4]);
    matvec_order(k[2], k[4]);
    matvec_order(k[3], k[5]);
#pragma unroll
    for (int i = 1; i < 7; i += 2)
        matvec_order(k[i], k[i + 1]);
}

/* matvec_take_top and matvec_weigh for up to 32 of up to 256, in a third of the time: each lane sorts its keys, and hands over
 * its largest where that is the largest of all. Numbers of the experts take the place of the keys' low 8 bits; false, and
 * nothing is written, where the others do not tell apart all that matters. `saved` has room for all keys. */
static __device__ __forceinline__ bool matvec_take_few(const uint32_t (&keys)[8], int top, uint32_t *saved, int32_t *expert,
                                                       float *weight)
{
    const int lane = threadIdx.x & 31;
    uint32_t best[8], last = ~0u, mine = 0, count = 0;
    ((uint4 *)saved)[2 * lane] = make_uint4(keys[0], keys[1], keys[2], keys[3]);
    ((uint4 *)saved)[2 * lane + 1] = make_uint4(keys[4], keys[5], keys[6], keys[7]);
#pragma unroll
    for (int i = 0; i < 8; i++)
        best[i] = (keys[i] & ~255u) | (uint32_t)(255 - 8 * lane - i);
    matvec_sort_eight(best);
    bool clear = true;
#pragma unroll 1 /* straight code would run into its own fetching */
    for (int k = 0; k < top; k++) {
        const uint32_t largest = __reduce_max_sync(~0u, best[0]);
        const bool taken = best[0] == largest;
        clear = clear && (largest ^ last) > 255;
        last = largest;
        mine = k == lane ? largest : mine;
#pragma unroll
        for (int i = 0; i < 8; i++)
            best[i] = taken ? i < 7 ? best[i + 1] : 0 : best[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        count += keys[i] >= (last & ~255u);
    clear = clear && __reduce_add_sync(~0u, count) == (uint32_t)top;
    if (!clear)
        return false;
    __syncwarp();
    const int place = 255 - (int)(mine & 255);
    const float score = lane < top ? matvec_key_value(saved[place]) : -INFINITY;
    const float largest = __shfl_sync(~0u, score, 0), p = lane < top ? __expf(score - largest) : 0;
    const float whole = chip_warp_sum(p);
    if (lane < top) {
        expert[lane] = place;
        weight[lane] = __fdividef(p, whole);
    }
    return true;
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
static __device__ __forceinline__ void matvec_choose(const matvec_experts_job &job, int n, uint32_t *saved, int32_t *expert,
                                                     float *weight)
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
    if (job.experts <= MATVEC_FEW) {
        uint32_t keys[8];
        matvec_load_keys<8>(scores, job.experts, keys);
        if (top <= 32 && matvec_take_few(keys, top, saved, expert, weight))
            return;
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
        matvec_choose(job, n, choice->keys[n], choice->expert + n * job.top, choice->weight + n * (job.top + 1));
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

#endif
