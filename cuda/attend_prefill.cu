/* Attention of sequences of several rows, after the batch's keys and values were appended.
 *
 * A block takes some rows of a sequence with the query heads of one key-value head, as one tile of (row, head) pairs, so that
 * each key is read for all of them; and a split of the tokens. A warp has 16 pairs: scores[16][64 tokens] = q[16][D] K^T,
 * softmax so far, then out[16][D] += p[16][64] V (Dao 2023, arXiv 2307.08691, with pairs for queries). Keys and values of the
 * next 64 tokens are copied meanwhile.
 *
 * Floor: 4 D operations for each pair and token; a tile of 128 pairs and 64 tokens of 256 values takes 4096 products of 16 x 8
 * x 16, about 3300 cycles of the tensor cores by mma.sync (H200), and 576 KB from shared memory, 4500 cycles: keys and values
 * are loaded by each warp for its 16 pairs. So 60 % of what mma.sync could give, 400 TFLOP/s. Larger tiles a warp don't fit its
 * registers. */
#include "attend_prefill.cuh"

#define HEADS_MOST 16 /* of a block */

template <int D, int WARPS, int STAGES> struct prefill_memory {
    __half query[16 * WARPS * D];
    __half tile[STAGES][2][TOKENS * D]; /* keys, values */
};

/* scores[n]: tokens 8 n .. 8 n + 7 of the tile, as c of the product. */
template <int D, int WARPS>
static __device__ __forceinline__ void prefill_scores(float scores[TOKENS / 8][4], const __half *query, const __half *keys,
                                                      const attend_offsets &query_rows, const attend_offsets &key_rows)
{
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            scores[n][j] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t q[4];
        chip_load_matrices(q, query + attend_offset<16 * WARPS>(query_rows, i));
#pragma unroll
        for (int n = 0; n < TOKENS / 16; n++) {
            uint32_t k[4];
            chip_load_matrices(k, keys + 64 * 16 * n + attend_offset<TOKENS>(key_rows, i));
            chip_mma_half(scores[2 * n], q, k[0], k[1]);
            chip_mma_half(scores[2 * n + 1], q, k[2], k[3]);
        }
    }
}

template <int D>
static __device__ __forceinline__ void prefill_mix(float out[D / 8][4], const uint32_t weights[TOKENS / 16][4],
                                                   const __half *values, const attend_offsets &value_rows)
{
#pragma unroll
    for (int n = 0; n < TOKENS / 16; n++)
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t v[4];
            chip_load_matrices_turned(v, values + 64 * 16 * n + attend_offset<TOKENS>(value_rows, i));
            chip_mma_half(out[2 * i], weights[n], v[0], v[1]);
            chip_mma_half(out[2 * i + 1], weights[n], v[2], v[3]);
        }
}

/* STAGES 2: keys and values of the next step arrive during a step. STAGES 1, for half the memory: values during the scores, the
 * next keys during the mixing. */
template <int T, int D, int WARPS, int STAGES>
static __global__ void __launch_bounds__(WARPS * QMI_WARP, 1) attend_prefill_kernel(attend_arguments a)
{
    typedef prefill_memory<D, WARPS, STAGES> memory;
    CHIP_SHARED(memory, m);
    constexpr int own = TOKENS / WARPS; /* tokens of a step that a warp copies */
    const int warp = attend_warp(), lane = threadIdx.x % QMI_WARP, g = lane >> 2, t = lane & 3;
    static_assert(BATCH * WARPS * D * sizeof(float) <= sizeof m->tile[0][0] * STAGES, "queries on their way take the free tiles");
    prefill_work w = {};
    chip_let_next_start();
    const bool found = prefill_work_of<T>(a, 16 * WARPS, lane, &w);
    chip_wait_for_previous();
    if (!found)
        return;
    if (w.step >= w.steps_end) {
        prefill_store_nothing(a, w);
        return;
    }
    auto place_of = [&](int step) { return prefill_place<T>(a, w, step, warp * own + lane % own); };
    attend_place place = place_of(w.step);
    auto fetch = [&](__half *tile, int step, bool value) {
        prefill_fetch<T, D, own>(a, w, tile, step, warp * own, place, value, lane);
    };
    fetch(m->tile[0][0], w.step, false);
    if (STAGES == 2) {
        fetch(m->tile[0][1], w.step, true);
        place = place_of(w.step + 1);
    }
    chip_copy_commit();

    const int first_pair = 16 * warp, pairs = w.rows * w.heads;
    const bool active = first_pair < pairs;
    float *room = (float *)(STAGES == 2 ? m->tile[STAGES - 1][0] : m->tile[0][1]); /* needed later */
    const bool prepared = T == ATTEND_WINDOW && a.correction; /* two bases: the second one comes where packed tokens end */
    if (active && prepared)
        prefill_prepared<D, 16 * WARPS>(a, w, m->query, w.step < w.packed, first_pair, lane);
    else if (active)
        prefill_queries<D, 16 * WARPS>(a, w, m->query, room + warp * BATCH * D, first_pair, lane);
    chip_copy_commit();

    const attend_offsets rows_first = attend_rows_first(lane), values_first = attend_values_first(lane);
    const __half *query = m->query + 64 * first_pair;
    const int position[2] = { first_pair + g < pairs ? w.position + (first_pair + g) / w.heads : -1,
                              first_pair + g + 8 < pairs ? w.position + (first_pair + g + 8) / w.heads : -1 };
    const int end = prefill_steps<T>(w, w.position + min(first_pair + 15, pairs - 1) / w.heads); /* that the warp sees */
    float out[D / 8][4] = {}, largest[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
    uint32_t weights[TOKENS / 16][4] = {};
    for (int step = w.step; step < w.steps_end; step++) {
        const int stage = STAGES == 2 ? (step - w.step) & 1 : 0;
        const bool takes = active && step < end;
        if (prepared && active && step == w.packed && step > w.step) {
            prefill_prepared<D, 16 * WARPS>(a, w, m->query, false, first_pair, lane);
            chip_copy_commit();
        }
        chip_copy_wait<0>();
        __syncthreads();
        if (STAGES == 1) {
            fetch(m->tile[0][1], step, true);
            place = place_of(step + 1);
        } else if (step + 1 < w.steps_end) {
            fetch(m->tile[stage ^ 1][0], step + 1, false);
            fetch(m->tile[stage ^ 1][1], step + 1, true);
            place = place_of(step + 2);
        }
        chip_copy_commit();
        if (takes) {
            float scores[TOKENS / 8][4], before[2];
            prefill_scores<D, WARPS>(scores, query, m->tile[stage][0], rows_first, values_first);
            const int limit[2] = { prefill_limit<T>(a, w, position[0], step), prefill_limit<T>(a, w, position[1], step) };
            prefill_softmax(scores, before, largest, sum, limit, prefill_token<T>(w, step) + 2 * t);
            prefill_pack(weights, scores);
            if (prefill_rescales(before))
                prefill_rescale<D>(out, before);
        }
        if (STAGES == 1) {
            chip_copy_wait<0>();
            __syncthreads();
            if (step + 1 < w.steps_end)
                fetch(m->tile[0][0], step + 1, false);
            chip_copy_commit();
        }
        if (takes)
            prefill_mix<D>(out, weights, m->tile[stage][1], rows_first);
    }
    if (!active)
        return;
#pragma unroll
    for (int r = 0; r < 2; r++)
        prefill_store<D>(a, w, first_pair + g + 8 * r, out, r, largest[r], sum[r], t);
}

/* ---- launching ----
 * Eight warps with two stages: 192 KB for heads of 256, 96 KB for 128. Where that is too much, four warps with one: 96 KB. */
static bool prefill_wide(int32_t head_size, int32_t shared_most)
{
    const size_t bytes = head_size == 256 ? sizeof(prefill_memory<256, 8, 2>) : sizeof(prefill_memory<128, 8, 2>);
    return (int32_t)bytes <= shared_most;
}

template <int T, int D, int WARPS, int STAGES>
static void launch(const cuda_run *run, const attend_arguments *a, uint32_t blocks)
{
    cuda_launch(run, blocks, WARPS * QMI_WARP, sizeof(prefill_memory<D, WARPS, STAGES>),
                attend_prefill_kernel<T, D, WARPS, STAGES>, *a);
}

template <int T> static void launch_type(const cuda_run *run, const attend_arguments *a, uint32_t blocks)
{
    if (a->head_size == 64)
        launch<T, 64, 8, 2>(run, a, blocks);
    else if (a->head_size == 128)
        launch<T, 128, 8, 2>(run, a, blocks);
    else if (prefill_wide(a->head_size, run->shared_most))
        launch<T, 256, 8, 2>(run, a, blocks);
    else
        launch<T, 256, 4, 1>(run, a, blocks);
}

void attend_prefill(const cuda_run *run, const attend_arguments *a, int taken)
{
    const uint32_t blocks = (uint32_t)(attend_prefill_tiles(run, a) * a->kv_heads * a->head_blocks * a->splits);
    if (attend_group(run, a, taken, blocks))
        return;
    if (taken == ATTEND_HALVES)
        launch_type<ATTEND_HALVES>(run, a, blocks);
    else if (taken == ATTEND_WINDOW)
        launch_type<ATTEND_WINDOW>(run, a, blocks);
    else
        launch_type<ATTEND_ANY>(run, a, blocks);
}

int32_t attend_prefill_heads(void)
{
    return HEADS_MOST;
}

int64_t attend_prefill_tiles(const cuda_run *run, const attend_arguments *a)
{
    const int64_t rows_each = (prefill_wide(a->head_size, run->shared_most) ? 8 : 4) * 16 / a->block_heads;
    return (a->rows - a->sequences) / rows_each + a->sequences; /* a sequence of n rows has at most (n - 1) / rows_each + 1 */
}

template <int T, int D, int WARPS, int STAGES> static cudaError_t set_up(int32_t shared_most)
{
    const int32_t bytes = (int32_t)sizeof(prefill_memory<D, WARPS, STAGES>);
    if (bytes > shared_most)
        return cudaSuccess;
    return cudaFuncSetAttribute(attend_prefill_kernel<T, D, WARPS, STAGES>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

cudaError_t attend_prefill_setup(int32_t shared_most)
{
    cudaError_t (*const each[])(int32_t) = {
        set_up<ATTEND_HALVES, 64, 8, 2>, set_up<ATTEND_HALVES, 128, 8, 2>, set_up<ATTEND_HALVES, 256, 8, 2>,
        set_up<ATTEND_HALVES, 256, 4, 1>, set_up<ATTEND_ANY, 64, 8, 2>, set_up<ATTEND_ANY, 128, 8, 2>,
        set_up<ATTEND_ANY, 256, 8, 2>, set_up<ATTEND_ANY, 256, 4, 1>, set_up<ATTEND_WINDOW, 64, 8, 2>,
        set_up<ATTEND_WINDOW, 128, 8, 2>, set_up<ATTEND_WINDOW, 256, 8, 2>, set_up<ATTEND_WINDOW, 256, 4, 1>,
    };
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < sizeof each / sizeof *each && error == cudaSuccess; i++)
        error = each[i](shared_most);
    return error == cudaSuccess ? attend_group_setup(shared_most) : error;
}
