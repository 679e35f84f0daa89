/* Attention of several rows a sequence by the tensor cores of sm_90a, which read queries, keys and values from shared memory by
 * themselves: as attend_prefill.cu, but a warp group has 64 pairs, and the products run beside the softmax: while the scores of
 * one step become weights, the values of the step before are being summed (Shah et al. 2024, arXiv 2407.08608, section 3.2).
 *
 * Floor: a step of 128 pairs and 64 tokens of 256 values is 2048 cycles of the tensor cores; from L2 come 64 KB, 32 bytes a
 * cycle. */
#include "attend_prefill.cuh"
#include "chip_group_tiles.cuh"

#define GROUPS 2
#define WARPS (4 * GROUPS)
#define THREADS (WARPS * QMI_WARP)
#define PAIRS (64 * GROUPS)
#define CAPABILITY 90
#define ALIGN 1024     /* of tiles, to the hardware's pattern */
#define SHARED_MORE 1152 /* for that, and what the kernel has beside it */
#define STRIP (TOKENS * 128)

template <int D> struct group_memory {
    __half query[PAIRS * D], keys[2][TOKENS * D], values[2][TOKENS * D];
};

#define OWN (TOKENS / WARPS) /* tokens of a step that a warp copies */

/* Codes are copied as they are, behind the tiles, and unpacked from there a step later: so many bytes of a warp's tokens. */
static __host__ __device__ inline int32_t group_key_room(const attend_arguments &a)
{
    return a.key_type == QMI_KV_Q2 ? (OWN + 4) * a.head_size : OWN * a.key_bytes;
}

static __host__ __device__ inline int32_t group_value_room(const attend_arguments &a)
{
    return OWN * a.value_bytes;
}

static __device__ __forceinline__ constexpr bool group_stages(int taken)
{
    return taken == ATTEND_CODES || taken == ATTEND_GROUPS;
}

static bool built; /* for sm_90a: set by attend_group_setup */

#if CHIP_HAS_GROUPS

/* The group's 64 pairs with the tokens of a step; the sums are there after a commit and a wait. */
template <int D>
static __device__ __forceinline__ void group_scores(float scores[TOKENS / 8][4], uint64_t query, uint64_t keys)
{
    chip_group_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        chip_group_multiply_tiles<TOKENS>(&scores[0][0], chip_group_step(query, i / 4 * (PAIRS * 128) + i % 4 * 32),
                                          chip_group_step(keys, i / 4 * STRIP + i % 4 * 32), i > 0);
    chip_group_commit();
}

template <int D>
static __device__ __forceinline__ void group_mix(float out[D / 8][4], const uint32_t weights[TOKENS / 16][4], uint64_t values)
{
    chip_group_fence();
#pragma unroll
    for (int n = 0; n < TOKENS / 16; n++)
        chip_group_multiply_turned<D, STRIP>(&out[0][0], weights[n], chip_group_step(values, n * 16 * 128));
    chip_group_commit();
}

#endif

template <int T, int D> static __global__ void __launch_bounds__(THREADS, 1) attend_group_kernel(attend_arguments a)
{
#if CHIP_HAS_GROUPS
    typedef group_memory<D> memory;
    CHIP_SHARED(uint8_t, unaligned);
    __shared__ prefill_work work;
    __shared__ bool found;
    memory *m = (memory *)(unaligned + ((ALIGN - ((uintptr_t)unaligned & (ALIGN - 1))) & (ALIGN - 1)));
    constexpr int own = OWN;
    static_assert(BATCH * WARPS * D * sizeof(float) <= sizeof m->keys[1] + sizeof m->values[0], "queries on their way");
    const int warp = attend_warp(), lane = threadIdx.x % QMI_WARP, g = lane >> 2, t = lane & 3;
    chip_let_next_start();
    if (warp == 0) {
        prefill_work w = {};
        const bool is = prefill_work_of<T>(a, PAIRS, lane, &w);
        if (lane == 0) {
            work = w;
            found = is;
        }
    }
    __syncthreads();
    chip_wait_for_previous();
    if (!found)
        return;
    const prefill_work w = work;
    if (w.step >= w.steps_end) {
        prefill_store_nothing(a, w);
        return;
    }
    auto place_of = [&](int step) { return prefill_place<T>(a, w, step, warp * own + lane % own); };
    attend_place key_place = place_of(w.step), value_place = key_place;
    uint8_t *const raw_keys = (uint8_t *)(m + 1) + warp * group_key_room(a);
    uint8_t *const raw_values = (uint8_t *)(m + 1) + WARPS * group_key_room(a) + warp * group_value_room(a);
    auto stage = [&](attend_place place, bool value, int step) {
        const attend_place first = { (uint64_t)__shfl_sync(~0u, (unsigned long long)place.page, 0),
                                     __shfl_sync(~0u, place.record, 0) };
        const int real = min(w.last + 1 - prefill_token<T>(w, step) - warp * own, own);
        if (T == ATTEND_GROUPS && !value)
            attend_copy_group<D, own>(raw_keys, attend_group_of(a, first.page, w.kv_head), warp * own, lane);
        else if (real > 0)
            attend_fetch_codes(value ? raw_values : raw_keys, attend_address<ATTEND_ANY>(a, first, value),
                               real * (value ? a.value_bytes : a.key_bytes), lane);
    };
    auto settle = [&](bool value, int step) { /* what was staged, in its tile */
        __half *tile = value ? m->values[(step - w.step) & 1] : m->keys[(step - w.step) & 1];
        const int real = w.last + 1 - prefill_token<T>(w, step) - warp * own;
        if (!group_stages(T) || step >= w.steps_end || !prefill_packed<T>(w, step))
            return;
        if (T == ATTEND_GROUPS && !value)
            attend_unpack_group<D, TOKENS, own, true>(tile, warp * own, raw_keys, raw_keys + own * D, warp * own / 16, lane);
        else if (T == ATTEND_GROUPS)
            attend_unpack_type<QMI_KV_Q2, D, TOKENS, own>(tile, warp * own, raw_values, real, lane);
        else
            attend_unpack<D, TOKENS, own, false>(value ? a.value_type : a.key_type, tile, warp * own,
                                                 value ? raw_values : raw_keys, real, lane);
    };
    auto fetch_keys = [&](int step) { /* and where the next ones are */
        if (step < w.steps_end && group_stages(T) && prefill_packed<T>(w, step))
            stage(key_place, false, step);
        else if (step < w.steps_end)
            prefill_fetch<T, D, own>(a, w, m->keys[(step - w.step) & 1], step, warp * own, key_place, false, lane);
        key_place = place_of(step + 1);
    };
    auto fetch_values = [&](int step) {
        if (step < w.steps_end && group_stages(T) && prefill_packed<T>(w, step))
            stage(value_place, true, step);
        else if (step < w.steps_end)
            prefill_fetch<T, D, own>(a, w, m->values[(step - w.step) & 1], step, warp * own, value_place, true, lane);
        value_place = place_of(step + 1);
    };
    fetch_keys(w.step);
    chip_copy_commit();

    const int pairs = w.rows * w.heads, first_pair = 16 * warp, group_pair = first_pair & ~63;
    const bool prepared = attend_has_window(T) && a.correction; /* two bases: the second one comes where packed tokens end */
    if (prepared)
        prefill_prepared<D, PAIRS>(a, w, m->query, w.step < w.packed, first_pair, lane);
    else if (first_pair < pairs)
        prefill_queries<D, PAIRS>(a, w, m->query, (float *)m->keys[1] + warp * BATCH * D, first_pair, lane);
    chip_copy_commit();
    const int position[2] = { first_pair + g < pairs ? w.position + (first_pair + g) / w.heads : -1,
                              first_pair + g + 8 < pairs ? w.position + (first_pair + g + 8) / w.heads : -1 };
    /* Steps in which the group sees a token; none: it has no pairs. */
    const int last = w.position + min(group_pair + 63, pairs - 1) / w.heads;
    const int end = group_pair < pairs ? min(w.steps_end, prefill_steps<T>(w, last)) : w.step;
    const uint64_t query = chip_group_rows(m->query + 64 * group_pair);
    const uint64_t keys = chip_group_rows(m->keys[0]), values = chip_group_strips<STRIP>(m->values[0]);
    float out[D / 8][4] = {}, scores[TOKENS / 8][4] = {}, before[2], largest[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
    uint32_t weights[TOKENS / 16][4] = {};
    auto soften = [&](int step) {
        const int limit[2] = { prefill_limit<T>(a, w, position[0], step), prefill_limit<T>(a, w, position[1], step) };
        prefill_softmax(scores, before, largest, sum, limit, prefill_token<T>(w, step) + 2 * t);
    };

    chip_copy_wait<0>();
    __syncwarp();
    settle(false, w.step);
    chip_group_publish();
    __syncthreads();
    fetch_keys(w.step + 1);
    fetch_values(w.step);
    chip_copy_commit();
    if (w.step < end) {
        group_scores<D>(scores, query, keys);
        chip_group_wait<0>();
        chip_group_keep(&scores[0][0], TOKENS / 2);
        soften(w.step);
        prefill_pack(weights, scores);
    }
    for (int step = w.step; step < w.steps_end; step++) {
        const int now = (step - w.step) & 1;
        if (prepared && step + 1 == w.packed && step + 1 < w.steps_end) {
            __syncthreads(); /* the queries so far are done with */
            prefill_prepared<D, PAIRS>(a, w, m->query, false, first_pair, lane);
            chip_copy_commit();
        }
        chip_copy_wait<0>();
        __syncwarp();
#pragma unroll 1
        for (int value = 0; value < 2; value++)
            settle(value, value ? step : step + 1);
        chip_group_publish();
        __syncthreads(); /* the step's values and the next keys are there; its keys and the values before it are done with */
        fetch_keys(step + 2);
        fetch_values(step + 1);
        chip_copy_commit();
        if (step + 1 < end) {
            group_scores<D>(scores, query, chip_group_step(keys, (now ^ 1) * (int)sizeof m->keys[0]));
            group_mix<D>(out, weights, chip_group_step(values, now * (int)sizeof m->values[0]));
            chip_group_wait<1>();
            chip_group_keep(&scores[0][0], TOKENS / 2);
            soften(step + 1);
            chip_group_keep(&scores[0][0], TOKENS / 2);
            if (prefill_rescales(before)) { /* a branch that the assembler can't move the wait before, up to the other one */
                chip_group_wait<0>();
                chip_group_keep(&out[0][0], D / 2);
                prefill_rescale<D>(out, before);
            }
            chip_group_wait<0>();
            chip_group_keep(&out[0][0], D / 2);
            chip_group_keep(&weights[0][0], TOKENS / 4);
            prefill_pack(weights, scores);
        } else if (step < end) {
            group_mix<D>(out, weights, chip_group_step(values, now * (int)sizeof m->values[0]));
            chip_group_wait<0>();
            chip_group_keep(&out[0][0], D / 2);
        }
    }
    if (first_pair >= pairs)
        return;
#pragma unroll
    for (int r = 0; r < 2; r++)
        prefill_store<D>(a, w, first_pair + g + 8 * r, out, r, largest[r], sum[r], t);
#else
    (void)a;
    __trap();
#endif
}

/* ---- launching ---- */
template <int T, int D> static void launch(const cuda_run *run, const attend_arguments *a, uint32_t blocks)
{
    const int32_t staged = group_stages(T) ? WARPS * (group_key_room(*a) + group_value_room(*a)) : 0;
    cuda_launch(run, blocks, THREADS, sizeof(group_memory<D>) + ALIGN + staged, attend_group_kernel<T, D>, *a);
}

template <int T> static void launch_type(const cuda_run *run, const attend_arguments *a, uint32_t blocks)
{
    if (a->head_size == 128)
        launch<T, 128>(run, a, blocks);
    else
        launch<T, 256>(run, a, blocks);
}

/* Codes of both go through shared memory where they fit behind the tiles (q8_0's of heads of 256 do not), and a step's lie in one
 * page. */
static int group_taken(const cuda_run *run, const attend_arguments *a, int taken)
{
    const int32_t room = run->shared_most - (int32_t)sizeof(group_memory<256>) - SHARED_MORE;
    const bool codes = qmi_kv_formats[a->key_type].quantized && qmi_kv_formats[a->value_type].quantized;
    if (!codes || WARPS * (group_key_room(*a) + group_value_room(*a)) > room || a->key_offset % 16 || a->value_offset % 16)
        return taken;
    if (taken == ATTEND_WINDOW)
        return a->key_type == QMI_KV_Q2 && a->value_type == QMI_KV_Q2 ? ATTEND_GROUPS : taken;
    return taken == ATTEND_ANY && a->page_tokens % TOKENS == 0 ? ATTEND_CODES : taken;
}

/* Heads of 64 that are not halves, and a window whose packed keys or values are not of q2, have no kernels here. */
bool attend_group(const cuda_run *run, const attend_arguments *a, int taken, uint32_t blocks)
{
    const int own = group_taken(run, a, taken);
    if (!built || run->capability != CAPABILITY || (int32_t)sizeof(group_memory<256>) + SHARED_MORE > run->shared_most)
        return false;
    if (own == ATTEND_HALVES && a->head_size == 64)
        launch<ATTEND_HALVES, 64>(run, a, blocks);
    else if (own == ATTEND_WINDOW || a->head_size == 64)
        return false;
    else if (own == ATTEND_HALVES)
        launch_type<ATTEND_HALVES>(run, a, blocks);
    else if (own == ATTEND_CODES)
        launch_type<ATTEND_CODES>(run, a, blocks);
    else if (own == ATTEND_GROUPS)
        launch_type<ATTEND_GROUPS>(run, a, blocks);
    else
        launch_type<ATTEND_ANY>(run, a, blocks);
    return true;
}

template <int T, int D> static cudaError_t set_up(int32_t shared_most)
{
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, attend_group_kernel<T, D>);
    if (error != cudaSuccess)
        return error;
    const int32_t own = (int32_t)attributes.sharedSizeBytes;
    if (!own || (int32_t)sizeof(group_memory<D>) + ALIGN + own > shared_most) /* a trap has no shared memory */
        return cudaSuccess;
    built = true;
    return cudaFuncSetAttribute(attend_group_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_most - own);
}

cudaError_t attend_group_setup(int32_t shared_most)
{
    cudaError_t (*const each[])(int32_t) = {
        set_up<ATTEND_HALVES, 64>, set_up<ATTEND_HALVES, 128>, set_up<ATTEND_HALVES, 256>, set_up<ATTEND_ANY, 128>,
        set_up<ATTEND_ANY, 256>, set_up<ATTEND_CODES, 128>, set_up<ATTEND_CODES, 256>, set_up<ATTEND_GROUPS, 128>,
        set_up<ATTEND_GROUPS, 256>,
    };
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < sizeof each / sizeof *each && error == cudaSuccess; i++)
        error = each[i](shared_most);
    return error;
}
