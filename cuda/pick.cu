/* The highest logits of each output, found on the card: sampling from the top k needs only these, and a vocabulary's worth of logits
 * takes longer over the bus than their few.
 *
 * A list of 32 candidates lies in a warp's lanes, highest first. Each warp sorts its share of the logits into such a list; lists are
 * merged by pairs: the better of a[i] and b[31 - i] for all i are the 32 best of both, as a bitonic sequence (Batcher 1968).
 * Two kernels: blocks reduce slices of the vocabulary to a list each, then one block an output merges those.
 * Floor: 1 MB of logits from L2, and two hops of about 3 us. */
#include "pick.h"
#include "chip.cuh"

#define SLICE 2048
#define WARPS 16

typedef unsigned long long candidate; /* ordered logit in the high half; low: ids fall, so that of equal logits the lower id is higher */

static __device__ __forceinline__ candidate candidate_of(float logit, uint32_t id)
{
    uint32_t bits = __float_as_uint(logit == logit ? logit : -INFINITY);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (candidate)bits << 32 | (0xffffffffu - id);
}

static __device__ __forceinline__ float logit_of(candidate c)
{
    uint32_t bits = (uint32_t)(c >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

static __device__ __forceinline__ candidate step(candidate c, int distance, bool high)
{
    candidate other = __shfl_xor_sync(~0u, c, distance);
    return (c > other) == high ? c : other;
}

static __device__ __forceinline__ candidate sort_list(candidate c, int lane)
{
#pragma unroll
    for (int size = 2; size <= 32; size *= 2)
#pragma unroll
        for (int distance = size / 2; distance; distance /= 2)
            c = step(c, distance, ((lane & distance) == 0) == ((lane & size) == 0 || size == 32));
    return c;
}

static __device__ __forceinline__ candidate merge_lists(candidate a, candidate b, int lane)
{
    candidate other = __shfl_sync(~0u, b, 31 - lane);
    candidate c = a > other ? a : other;
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
        c = step(c, distance, (lane & distance) == 0);
    return c;
}

/* Of the block's WARPS lists; valid in warp 0. */
static __device__ candidate merge_block(candidate c, int warp, int lane)
{
    __shared__ candidate lists[WARPS][32];
    for (int apart = WARPS / 2; apart; apart /= 2) {
        if (warp >= apart && warp < 2 * apart)
            lists[warp][lane] = c;
        __syncthreads();
        if (warp < apart)
            c = merge_lists(c, lists[warp + apart][lane], lane);
    }
    return c;
}

static __global__ void __launch_bounds__(WARPS * 32) pick_slices(const float *logits, int32_t width, candidate *lists)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    chip_let_next_start();
    chip_wait_for_previous();
    const float *row = logits + (int64_t)blockIdx.y * width;
    float x[SLICE / (WARPS * 32)];
    int32_t first = blockIdx.x * SLICE + warp * (SLICE / WARPS) + lane;
#pragma unroll
    for (int i = 0; i < SLICE / (WARPS * 32); i++)
        x[i] = first + 32 * i < width ? row[first + 32 * i] : -INFINITY;
    candidate best = 0;
#pragma unroll
    for (int i = 0; i < SLICE / (WARPS * 32); i++) {
        candidate list = sort_list(candidate_of(x[i], (uint32_t)(first + 32 * i)), lane);
        best = i ? merge_lists(best, list, lane) : list;
    }
    best = merge_block(best, warp, lane);
    if (warp == 0)
        lists[((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * 32 + lane] = best;
}

static __global__ void __launch_bounds__(WARPS * 32) pick_merge(const candidate *lists, int32_t count, qmi_pick *out)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    chip_let_next_start();
    chip_wait_for_previous();
    lists += (int64_t)blockIdx.x * count * 32;
    candidate best = 0;
    for (int i = warp; i < count; i += WARPS)
        best = merge_lists(best, lists[i * 32 + lane], lane);
    best = merge_block(best, warp, lane);
    if (warp == 0) {
        qmi_pick *to = out + blockIdx.x * QMI_PICKS_MAX + lane;
        to->logit = best ? logit_of(best) : -INFINITY;
        to->id = (int32_t)(0xffffffffu - (uint32_t)best);
    }
}

static int32_t slices_of(int64_t width)
{
    return (int32_t)((width + SLICE - 1) / SLICE);
}

int64_t cuda_scratch_pick(int64_t width, int32_t outputs)
{
    return (int64_t)outputs * slices_of(width) * 32 * (int64_t)sizeof(candidate);
}

void cuda_pick(const cuda_run *run, const float *logits, int64_t width, qmi_pick *out)
{
    candidate *lists = (candidate *)run->scratch;
    cuda_launch(run, dim3(slices_of(width), run->outputs), dim3(WARPS * 32), 0, pick_slices, logits, (int32_t)width, lists);
    cuda_launch(run, dim3(run->outputs), dim3(WARPS * 32), 0, pick_merge, (const candidate *)lists, slices_of(width), out);
}
