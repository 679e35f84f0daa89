/* Attention with a window (backend/op.h): where a token lies that is not packed yet, and reading either kind.
 *
 *   positions:  | packed: pages | the state's ring | this batch's own rows |
 *               0               packed           start            start + count
 *
 * The packed ones are fewer for a batch's first rows than for its last ones. A page holds QMI_KV_GROUP tokens. */
#ifndef QMI_CUDA_ATTEND_WINDOW_CUH
#define QMI_CUDA_ATTEND_WINDOW_CUH

#include "attend_types.cuh"

/* Before the attention of batches of several rows a sequence: keys and values to `fresh`. */
void attend_window_append(const cuda_run *run, const attend_arguments *a);
/* With a correction: queries of both bases to `prepared`. */
void attend_window_prepare(const cuda_run *run, const attend_arguments *a);
/* Packs what the batch's last rows see packed, and its sequences' last batches did not. */
void attend_window_pack(const cuda_run *run, const attend_arguments *a);
/* What is not packed goes into the next state; from_rows: the batch's own, too. */
void attend_window_keep(const cuda_run *run, const attend_arguments *a, bool from_rows);
cudaError_t attend_window_setup(void);

/* Of a sequence's first `tokens`, those that are packed. */
static __device__ __forceinline__ int attend_packed(const attend_arguments &a, int tokens)
{
    return tokens > a.window ? (tokens - a.window) / QMI_KV_GROUP * QMI_KV_GROUP : 0;
}

static __device__ __forceinline__ uint64_t attend_in_ring(const attend_arguments &a, uint64_t state, bool value, int kv_head,
                                                          int position)
{
    const int64_t head = (int64_t)((value ? a.kv_heads : 0) + kv_head) * a.ring + position % a.ring;
    return state + (uint64_t)(a.window_offset + head * a.head_size * 2);
}

static __device__ __forceinline__ uint64_t attend_in_rows(const attend_arguments &a, bool value, int kv_head, int row)
{
    return (uint64_t)(a.fresh + ((int64_t)((value ? a.kv_heads : 0) + kv_head) * a.rows + row) * a.head_size);
}

/* A head of halves of a token that was not packed when the batch began. */
static __device__ __forceinline__ uint64_t attend_in_window(const attend_arguments &a, const cuda_sequence &s, bool value,
                                                            int kv_head, int position)
{
    return position < s.start ? attend_in_ring(a, s.state, value, kv_head, position)
                              : attend_in_rows(a, value, kv_head, s.first + position - s.start);
}

/* A page's group of keys of q2. */
static __device__ __forceinline__ const uint8_t *attend_group_of(const attend_arguments &a, uint64_t page, int kv_head)
{
    return (const uint8_t *)(page + (uint64_t)(a.key_offset + (int64_t)kv_head * QMI_KV_GROUP * a.key_bytes));
}

/* One number of a group. */
static __device__ __forceinline__ float attend_group_value(const uint8_t *group, int size, int token, int i)
{
    const int channels = (size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK;
    const __half *scales = (const __half *)(group + 16 * channels);
    const int code = group[16 * i + token % 16] >> 2 * (token / 16) & 3;
    return __half2float(scales[channels + i]) + __half2float(scales[i]) * ((float)code - 1.5f);
}

/* Where a lane's token lies: packed: page and record; else: the address of its key's halves, and whether in the ring. */
static __device__ __forceinline__ attend_place attend_window_place(const attend_arguments &a, const cuda_sequence &s,
                                                                   const uint64_t *pages, int kv_head, int position, bool packed)
{
    if (packed)
        return attend_place_of(a, pages, kv_head, position);
    return attend_place{ attend_in_window(a, s, false, kv_head, position), position < s.start };
}

/* As attend_fetch: COUNT tokens that are all packed or all not. */
template <int D, int ROWS, int COUNT>
static __device__ __forceinline__ void attend_window_fetch(const attend_arguments &a, __half *tile, int first_row,
                                                           attend_place place, bool packed, bool value, int real, int lane)
{
    if (!packed) {
        const int64_t apart = (int64_t)a.kv_heads * (place.record ? a.ring : a.rows) * D * 2; /* from keys to values */
        attend_fetch_halves<D, ROWS, COUNT>(tile, first_row, place.page + (value ? (uint64_t)apart : 0), real, lane);
    } else if (!value && a.key_type == QMI_KV_Q2) {
        const int record = __shfl_sync(~0u, place.record, 0);
        const uint64_t page = __shfl_sync(~0u, (unsigned long long)place.page, 0);
        const uint8_t *group = attend_group_of(a, page, record / QMI_KV_GROUP);
        attend_unpack_group<D, ROWS, COUNT, false>(tile, first_row, group + record % 16, group + 16 * D,
                                                   record % QMI_KV_GROUP / 16, lane);
    } else
        attend_fetch<ATTEND_ANY, D, ROWS, COUNT>(a, tile, first_row, place, value, real, lane);
}

#endif
