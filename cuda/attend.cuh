/* Attention on the card: what its kernels share.
 *
 *   attend.cu          which kernels run, appending, merging of partial results, head sizes without a kernel of their own
 *   attend_decode.cu   one row a sequence
 *   attend_prefill.cu  several rows a sequence (attend_prefill.cuh: what it shares with the next)
 *   attend_group.cu    the same on sm_90a
 *   attend_types.cuh   types of stored keys and values: packing, unpacking to halves, turning
 *   attend_window.cu   with a window of tokens that are not packed yet: appending, packing, keeping (attend_window.cuh: where
 *                      such tokens lie)
 *
 * Keys and values are multiplied as halves on tensor cores, sums and softmax are float32. The softmax counts in powers of two:
 * the queries are multiplied by log2(e) / sqrt(head_size). A head's tokens may be shared by several blocks ("splits"), each of
 * which leaves its largest score, sum and weighted values; the tokens of a split depend on the row's position and the launch
 * only, and splits are merged in their order, so that the same run gives the same bits. */
#ifndef QMI_CUDA_ATTEND_CUH
#define QMI_CUDA_ATTEND_CUH

#include "chip.cuh"
#include "cuda.h"

#define ATTEND_SPLITS_MOST 144  /* for one head: as many as a large card has processors */
#define ATTEND_PARTIALS 16384   /* partial results of one head that the scratch holds: 17 MB for heads of 256 */

typedef struct attend_arguments {
    cuda_step step;
    const float *query, *key, *value; /* rows of heads as the projections left them */
    float *out;
    const float *query_norm, *key_norm, *frequency;
    float query_epsilon, key_epsilon;
    float scale;               /* log2(e) / sqrt(head_size) */
    int32_t rows, sequences;
    int32_t heads, kv_heads, group, head_size, rotary;
    int32_t query_step;        /* floats from a head's query to the next one's */
    bool gated;
    int32_t page_tokens;
    int64_t key_offset, value_offset;
    int32_t key_type, value_type;   /* qmi_kv_type */
    int32_t key_bytes, value_bytes; /* of a record */
    bool rotate_keys, rotate_values;
    int32_t window, ring;      /* tokens kept as f16 before they are packed, and those that the state has room for; 0: none */
    int64_t window_offset;
    const float *correction;   /* [kv_heads][T, T^-T][head_size][head_size] or NULL */
    __half *fresh;             /* [keys, values][kv_heads][rows][head_size]: the batch's own, where a sequence has several rows */
    __half *prepared;          /* with a correction: queries times `scale`, [T^-T q, q][rows][heads][head_size] */
    bool packs;                /* the launch before packs tokens */
    int32_t block_heads;       /* query heads that a block takes; a group has head_blocks times that or less */
    int32_t head_blocks;
    int32_t splits;
    int32_t window_splits;     /* of those the last ones, in decode: tokens that are not packed */
    float *marks;              /* [rows][heads][splits] largest score and sum; no token: -infinity, 0 */
    float *partial;            /* [rows][heads][splits][head_size] */
} attend_arguments;

/* Head sizes 64, 128, 256. */
void attend_decode(const cuda_run *run, const attend_arguments *a, int taken);
void attend_prefill(const cuda_run *run, const attend_arguments *a, int taken);
bool attend_decode_fits(int32_t taken, int32_t head_size, int32_t shared_most);
int32_t attend_decode_heads(void);                           /* the most for block_heads */
int32_t attend_decode_resident(void);                        /* blocks of codes that a processor has at a time */
int32_t attend_prefill_heads(void);
int64_t attend_prefill_tiles(const cuda_run *run, const attend_arguments *a); /* at most, of all sequences */
cudaError_t attend_decode_setup(int32_t shared_most);
cudaError_t attend_prefill_setup(int32_t shared_most);

/* The compiler then knows that all lanes have the same. */
static __device__ __forceinline__ int attend_warp(void)
{
    return __shfl_sync(~0u, (int)threadIdx.x / QMI_WARP, 0);
}

/* How a kernel takes stored keys and values: halves as they are, or types (attend_types.cuh) that it finds in its arguments. Some
 * copy records as they are, too, and unpack them in shared memory. */
#define ATTEND_HALVES 0
#define ATTEND_ANY 1
#define ATTEND_CODES 2   /* both are quantized, and copied as they are */
#define ATTEND_RECORDS 3 /* decode: any two types, copied as they are */
#define ATTEND_WINDOW 4  /* as ATTEND_ANY where tokens are packed; the latest ones are halves */
#define ATTEND_GROUPS 5  /* the same, both of q2: groups are copied as they are */

static __device__ __forceinline__ constexpr bool attend_has_window(int taken)
{
    return taken == ATTEND_WINDOW || taken == ATTEND_GROUPS;
}

static __device__ __forceinline__ __half attend_half(float x)
{
    return __float2half_rn(fminf(fmaxf(x, -65504.f), 65504.f));
}

/* x in the low half. */
static __device__ __forceinline__ uint32_t attend_pair(float x, float y)
{
    const __half2 pair = __floats2half2_rn(x, y);
    return *(const uint32_t *)&pair;
}

static __device__ __forceinline__ uint32_t attend_halves(float x, float y)
{
    return attend_pair(fminf(fmaxf(x, -65504.f), 65504.f), fminf(fmaxf(y, -65504.f), 65504.f));
}

/* ---- pages ---- */

/* A key-value head's record at a position: its page, and which one of the page's it is. */
struct attend_place {
    uint64_t page;
    int32_t record;
};

static __device__ __forceinline__ attend_place attend_place_of(const attend_arguments &a, const uint64_t *pages, int kv_head,
                                                               int position)
{
    int page = position / a.page_tokens, slot = position - page * a.page_tokens;
    return attend_place{ pages[page], kv_head * a.page_tokens + slot };
}

/* Of the record's key (or value). */
template <int T> static __device__ __forceinline__ uint64_t attend_address(const attend_arguments &a, attend_place p, bool value)
{
    const int bytes = T == ATTEND_HALVES ? 2 * a.head_size : value ? a.value_bytes : a.key_bytes;
    return p.page + (value ? a.value_offset : a.key_offset) + (int64_t)p.record * bytes;
}

/* ---- tiles in shared memory ----
 * A tile of ROWS rows of halves lies in strips of 64 values; a strip's row has 128 bytes in eight pieces of 16, and piece c of
 * row r lies at c ^ (r & 7), so that eight rows' pieces of the same number are in different banks when an instruction loads
 * them. */
template <int ROWS> static __device__ __forceinline__ int attend_piece(int row, int piece)
{
    return (piece >> 3) * (64 * ROWS) + 64 * row + 8 * ((piece ^ row) & 7);
}

/* Where a lane finds its row of four 8 x 8 matrices that hold values 16 i .. 16 i + 15 of 16 rows. */
struct attend_offsets {
    int at[4];
};

template <int ROWS> static __device__ __forceinline__ int attend_offset(const attend_offsets &o, int i)
{
    return o.at[i & 3] + (i >> 2) * (64 * ROWS);
}

/* row and half (of the sixteen values): this lane's. */
static __device__ __forceinline__ attend_offsets attend_offsets_of(int row, int half)
{
    attend_offsets o;
#pragma unroll
    for (int i = 0; i < 4; i++)
        o.at[i] = attend_piece<0>(row, 2 * i + half);
    return o;
}

/* Matrices: rows 0-7 and 8-15 of values 0-7, then of values 8-15. */
static __device__ __forceinline__ attend_offsets attend_rows_first(int lane)
{
    return attend_offsets_of(lane & 15, lane >> 4);
}

/* Matrices: values 0-7 and 8-15 of rows 0-7, then of rows 8-15. */
static __device__ __forceinline__ attend_offsets attend_values_first(int lane)
{
    return attend_offsets_of((lane & 7) + 8 * (lane >> 4), (lane >> 3) & 1);
}

/* ---- heads as they come from the projections ---- */

/* cos and sin of the float product position * frequency. Its nearest multiple of 2 pi is taken off in two parts (2 pi as the
 * nearest float, and what that has too much), each by a fused multiply-add: below 2^20 the error is less than 3e-7. */
static __device__ __forceinline__ void attend_angle(int position, float frequency, float *cosine, float *sine)
{
    float angle = __fmul_rn((float)position, frequency), turns = rintf(angle * 0.15915494f);
    angle = fmaf(turns, -6.2831855f, angle);
    angle = fmaf(turns, 1.7484555e-7f, angle);
    __sincosf(angle, sine, cosine);
}

static __device__ __forceinline__ void attend_rotate(float *head, int i, int half, float cosine, float sine)
{
    float x = head[i], y = head[i + half];
    head[i] = x * cosine - y * sine;
    head[i + half] = y * cosine + x * sine;
}

/* A warp normalises and turns a head of `size` floats in shared memory; lane l comes with the values l, l + 32, ... visible to
 * it, and leaves with all visible to all. */
static __device__ __forceinline__ void attend_turn(float *head, int size, const float *norm, float epsilon, int rotary,
                                                   const float *frequency, int position, int lane)
{
    if (norm) {
        float sum = 0;
#pragma unroll 8
        for (int i = lane; i < size; i += QMI_WARP)
            sum += head[i] * head[i];
        float factor = rsqrtf(chip_warp_sum(sum) / (float)size + epsilon);
#pragma unroll 8
        for (int i = lane; i < size; i += QMI_WARP)
            head[i] *= factor * norm[i];
    }
    __syncwarp();
    int half = rotary / 2;
    for (int i = lane; i < half; i += QMI_WARP) {
        float cosine, sine;
        attend_angle(position, frequency[i], &cosine, &sine);
        attend_rotate(head, i, half, cosine, sine);
    }
    __syncwarp();
}

/* ---- results ---- */

static __device__ __forceinline__ int64_t attend_mark(const attend_arguments &a, int row, int head, int split)
{
    return ((int64_t)row * a.heads + head) * a.splits + split;
}

static __device__ __forceinline__ int64_t attend_gate_index(const attend_arguments &a, int row, int head)
{
    return ((int64_t)row * a.heads + head) * a.query_step + a.head_size;
}

/* Four values of a head: divided by the softmax's sum, gated. */
static __device__ __forceinline__ void attend_finish(const attend_arguments &a, int row, int head, int first, float4 y, float sum,
                                                     float4 gate)
{
    float factor = 1.f / sum;
    float4 f = make_float4(factor, factor, factor, factor);
    if (a.gated)
        f = make_float4(factor * chip_sigmoid(gate.x), factor * chip_sigmoid(gate.y), factor * chip_sigmoid(gate.z),
                        factor * chip_sigmoid(gate.w));
    *(float4 *)(a.out + ((int64_t)row * a.heads + head) * a.head_size + first) =
        make_float4(y.x * f.x, y.y * f.y, y.z * f.z, y.w * f.w);
}

#endif
