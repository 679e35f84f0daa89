/* Attention of several rows a sequence: what the portable kernel and the one for Hopper share. A tile's rows are pairs of a row
 * and a query head; a warp has 16 of them, a lane two (those of c in chip_mma_half). */
#ifndef QMI_CUDA_ATTEND_PREFILL_CUH
#define QMI_CUDA_ATTEND_PREFILL_CUH

#include "attend_window.cuh"

#define TOKENS 64     /* of a step */
#define BATCH 8       /* queries that a warp has on their way at a time: they fit into tiles that are needed later */

/* False: there is no such code for the card. Else tiles are of 128 pairs. */
bool attend_group(const cuda_run *run, const attend_arguments *a, int taken, uint32_t blocks);
cudaError_t attend_group_setup(int32_t shared_most);

/* Tile `index` of all sequences' -> its sequence, and what is left of the index; -1: there is none. A warp together. */
static __device__ __forceinline__ int prefill_sequence(const attend_arguments &a, int rows_each, int *index, int lane)
{
    for (int first = 0; first < a.sequences; first += QMI_WARP) {
        const int rows = first + lane < a.sequences ? a.step.sequences[first + lane].count : 0;
        const int tiles = (rows + rows_each - 1) / rows_each;
        int end = tiles;
#pragma unroll
        for (int o = 1; o < QMI_WARP; o *= 2) {
            int before = __shfl_up_sync(~0u, end, o);
            end += lane >= o ? before : 0;
        }
        uint32_t past = __ballot_sync(~0u, end > *index);
        if (past) {
            int found = __ffs((int)past) - 1;
            *index -= __shfl_sync(~0u, end - tiles, found);
            return first + found;
        }
        *index -= __shfl_sync(~0u, end, QMI_WARP - 1);
    }
    return -1;
}

/* What a block computes. With a window some tokens are packed for its later rows only, so steps are of two kinds: first those of
 * the tokens that are packed for any row, then those of the tokens that are not for any; what a row sees otherwise is masked. */
struct prefill_work {
    int row, rows, position;   /* first row and its position */
    int kv_head, first_head, heads, split;
    int step, steps_end;       /* of 64 tokens, the split's */
    int last;                  /* position of the last row */
    int packed, back;          /* steps of packed tokens; less `back` the others' number is that of their tokens */
    const uint64_t *pages;
    cuda_sequence sequence;
};

template <int T> static __device__ __forceinline__ bool prefill_packed(const prefill_work &w, int step)
{
    return !attend_has_window(T) || step < w.packed;
}

/* First token of a step. */
template <int T> static __device__ __forceinline__ int prefill_token(const prefill_work &w, int step)
{
    return (prefill_packed<T>(w, step) ? step : step - w.back) * TOKENS;
}

/* Steps up to the one that has the token at a position. */
template <int T> static __device__ __forceinline__ int prefill_steps(const prefill_work &w, int position)
{
    return position / TOKENS + 1 + (attend_has_window(T) ? w.back : 0);
}

/* The position that limits what a row at `position` sees in a step; -1: nothing. */
template <int T>
static __device__ __forceinline__ int prefill_limit(const attend_arguments &a, const prefill_work &w, int position, int step)
{
    if (!attend_has_window(T))
        return position;
    const bool packed = prefill_packed<T>(w, step);
    return packed == (prefill_token<T>(w, step) < attend_packed(a, position + 1)) ? position : -1;
}

/* Where a lane's token of a step lies. */
template <int T>
static __device__ __forceinline__ attend_place prefill_place(const attend_arguments &a, const prefill_work &w, int step,
                                                             int token)
{
    if (!attend_has_window(T))
        return attend_place_of(a, w.pages, w.kv_head, min(step * TOKENS + token, w.last));
    return attend_window_place(a, w.sequence, w.pages, w.kv_head, min(prefill_token<T>(w, step) + token, w.last),
                               prefill_packed<T>(w, step));
}

template <int T, int D, int COUNT>
static __device__ __forceinline__ void prefill_fetch(const attend_arguments &a, const prefill_work &w, __half *tile, int step,
                                                     int first, attend_place place, bool value, int lane)
{
    const int real = w.last + 1 - prefill_token<T>(w, step) - first;
    if constexpr (attend_has_window(T))
        attend_window_fetch<D, TOKENS, COUNT>(a, tile, first, place, prefill_packed<T>(w, step), value, real, lane);
    else
        attend_fetch<T == ATTEND_HALVES ? T : ATTEND_ANY, D, TOKENS, COUNT>(a, tile, first, place, value, real, lane);
}

/* False: nothing. The tiles of a sequence come in descending order: the last ones see most tokens. */
template <int T>
static __device__ __forceinline__ bool prefill_work_of(const attend_arguments &a, int pairs, int lane, prefill_work *w)
{
    const int rows_each = pairs / a.block_heads, head_places = a.kv_heads * a.head_blocks;
    int index = blockIdx.x / (head_places * a.splits), place = blockIdx.x % head_places;
    const int sequence = prefill_sequence(a, rows_each, &index, lane);
    if (sequence < 0)
        return false;
    const cuda_sequence s = a.step.sequences[sequence];
    const int first = ((s.count + rows_each - 1) / rows_each - 1 - index) * rows_each;
    w->row = s.first + first;
    w->rows = min(rows_each, s.count - first);
    w->position = s.start + first;
    w->last = w->position + w->rows - 1;
    w->pages = a.step.pages + s.page_first;
    w->sequence = s;
    if (attend_has_window(T)) {
        w->packed = attend_packed(a, w->last + 1) / TOKENS;
        w->back = w->packed - attend_packed(a, w->position + 1) / TOKENS;
    }
    w->kv_head = place / a.head_blocks;
    const int first_head = place % a.head_blocks * a.block_heads;
    w->first_head = w->kv_head * a.group + first_head;
    w->heads = min(a.block_heads, a.group - first_head);
    w->split = blockIdx.x / head_places % a.splits;
    const int steps = prefill_steps<T>(*w, w->last), each = (steps + a.splits - 1) / a.splits;
    w->step = w->split * each;
    w->steps_end = min(steps, w->step + each);
    return true;
}

/* The warp's 16 queries as they were prepared, in the basis of packed keys or not. Wait for them like cp.async. */
template <int D, int PAIRS>
static __device__ __forceinline__ void prefill_prepared(const attend_arguments &a, const prefill_work &w, __half *tile,
                                                        bool packed, int first, int lane)
{
    const int row = (first + lane % 16) / w.heads, head = first + lane % 16 - row * w.heads;
    const bool real = row < w.rows;
    const int64_t index = ((int64_t)((packed ? 0 : a.rows) + w.row + row) * a.heads + w.first_head + head) * D;
    __syncwarp(); /* what was there is done with */
    attend_fetch_halves<D, PAIRS, 16>(tile, first, (uint64_t)(a.prepared + (real ? index : 0)), min(w.rows * w.heads - first, 16),
                                      lane);
}

/* The warp's 16 queries: normalised, turned, to the tile as halves. room: BATCH * D floats of the warp's own. */
template <int D, int PAIRS>
static __device__ __forceinline__ void prefill_queries(const attend_arguments &a, const prefill_work &w, __half *tile,
                                                       float *room, int first, int lane)
{
    for (int batch = first; batch < first + 16; batch += BATCH) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int row = (batch + i) / w.heads, head = batch + i - row * w.heads;
            const bool real = row < w.rows;
            const int64_t index = (int64_t)(w.row + row) * a.heads + w.first_head + head;
            const float *from = a.query + (real ? index * a.query_step : 0);
#pragma unroll
            for (int d = 4 * lane; d < D; d += 4 * QMI_WARP)
                chip_copy16(room + i * D + d, from + d, real);
        }
        chip_copy_commit();
        chip_copy_wait<0>();
        __syncwarp();
        for (int i = 0; i < BATCH; i++) {
            const int row = (batch + i) / w.heads;
            float *query = room + i * D;
            if (row < w.rows)
                attend_turn(query, D, a.query_norm, a.query_epsilon, a.rotary, a.frequency, w.position + row, lane);
            if (a.rotate_keys && row < w.rows)
                attend_spread<D>(query, false, lane);
#pragma unroll
            for (int d = 2 * lane; d < D; d += 2 * QMI_WARP)
                *(uint32_t *)(tile + attend_piece<PAIRS>(batch + i, d / 8) + d % 8) =
                    attend_halves(query[d] * a.scale, query[d + 1] * a.scale);
        }
        __syncwarp();
    }
}

/* Scores (of 16 pairs and 64 tokens, as c of the product) become weights; what was summed up before is to be multiplied by
 * `before`. Of the lane's two pairs: the largest score so far, the sum of this lane's weights, the position that limits what
 * they see; `token` is that of scores[0][0]. */
static __device__ __forceinline__ void prefill_softmax(float scores[TOKENS / 8][4], float before[2], float largest[2],
                                                       float sum[2], const int position[2], int token)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = largest[r], added = 0;
        if (token + TOKENS > position[r]) {
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    scores[n][2 * r + j] = token + 8 * n + j <= position[r] ? scores[n][2 * r + j] : -INFINITY;
        }
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
            most = fmaxf(most, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float base = most == -INFINITY ? 0 : most; /* no token yet */
        before[r] = chip_exp2(largest[r] - base);
        largest[r] = most;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++) {
            scores[n][2 * r] = chip_exp2(scores[n][2 * r] - base);
            scores[n][2 * r + 1] = chip_exp2(scores[n][2 * r + 1] - base);
            added += scores[n][2 * r] + scores[n][2 * r + 1];
        }
        sum[r] = sum[r] * before[r] + added;
    }
}

/* Weights as a of the product with 16 values each. */
static __device__ __forceinline__ void prefill_pack(uint32_t weights[TOKENS / 16][4], const float scores[TOKENS / 8][4])
{
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            weights[n / 2][2 * (n & 1) + r] = attend_pair(scores[n][2 * r], scores[n][2 * r + 1]);
}

/* Whether the warp has to multiply what was summed up before. */
static __device__ __forceinline__ bool prefill_rescales(const float before[2])
{
    return __any_sync(~0u, before[0] != 1 || before[1] != 1);
}

template <int D> static __device__ __forceinline__ void prefill_rescale(float out[D / 8][4], const float before[2])
{
#pragma unroll
    for (int d = 0; d < D / 8; d++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            out[d][j] *= before[j >> 1];
}

/* Of a split without tokens. */
static __device__ __forceinline__ void prefill_store_nothing(const attend_arguments &a, const prefill_work &w)
{
    for (int pair = threadIdx.x; pair < w.rows * w.heads; pair += blockDim.x)
        *(float2 *)(a.marks + 2 * attend_mark(a, w.row + pair / w.heads, w.first_head + pair % w.heads, w.split)) =
            make_float2(-INFINITY, 0);
}

/* A pair's values of this lane; sum: of this lane's tokens. */
template <int D>
static __device__ __forceinline__ void prefill_store(const attend_arguments &a, const prefill_work &w, int pair,
                                                     const float out[D / 8][4], int r, float largest, float sum, int t)
{
    const int row = pair / w.heads, head = w.first_head + pair - row * w.heads;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (row >= w.rows)
        return;
    if (a.splits > 1) {
        const int64_t mark = attend_mark(a, w.row + row, head, w.split);
        if (t == 0)
            *(float2 *)(a.marks + 2 * mark) = make_float2(largest, sum);
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *(float2 *)(a.partial + mark * D + 8 * d + 2 * t) = make_float2(out[d][2 * r], out[d][2 * r + 1]);
        return;
    }
    const float *gate = a.query + attend_gate_index(a, w.row + row, head) + 2 * t;
    float *to = a.out + ((int64_t)(w.row + row) * a.heads + head) * D + 2 * t;
    const float factor = 1.f / sum;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        float2 f = make_float2(factor, factor);
        if (a.gated) {
            const float2 x = *(const float2 *)(gate + 8 * d);
            f = make_float2(factor * chip_sigmoid(x.x), factor * chip_sigmoid(x.y));
        }
        *(float2 *)(to + 8 * d) = make_float2(out[d][2 * r] * f.x, out[d][2 * r + 1] * f.y);
    }
}

#endif
