/* Attention of sequences that have one row each (decode).
 *
 * A block takes a row, the query heads of a key-value head (up to eight, so that each key is read once for all of them) and a
 * split of the tokens. It normalises and turns the queries itself; the block whose split holds the row's own position does so
 * with the key, and appends key and value. Each warp passes over its own chunks of 16 tokens with a ring of copies ahead of it,
 * without waiting for the other warps: scores[16 tokens][8 heads] = K[16][D] q[D][8], then out[D][8] += V^T[D][16] p[16][8]. At
 * the end the warps' results are merged.
 *
 * Floors (heads of 256, f16, one key-value head): a token is 1 KB, 29 ns of the processor's share of 4.6 TB/s (H200); a chunk
 * needs 32 products of 16 x 8 x 16 and 16 KB from shared memory, which takes one warp about 0.5 us and four warps a quarter of
 * the time that the bytes need. Short context: three dependent loads (position, page, keys), about 1 us. */
#include "attend_window.cuh"

#define WARPS 4
#define HEADS 8
#define CHUNK 16
#define RING_DEEP 4  /* halves of chunks (keys or values) on their way or in use, a warp: 128 KB a block for heads of 256 */
#define RING_CODES 3 /* the same of codes, of which a chunk takes 4.25 KB then at most: two blocks fit into a processor, since */
#define RESIDENT 2   /* unpacking takes the time of twice as many warps */
#define RING_SHALLOW 2
#define SUBS 4       /* chunks of a group of q2 */

static __device__ __forceinline__ constexpr bool decode_unpacks(int taken)
{
    return taken == ATTEND_CODES || taken == ATTEND_RECORDS || taken == ATTEND_GROUPS;
}

template <int T, int D, int RING> struct decode_memory {
    static constexpr int slot = T == ATTEND_CODES ? CHUNK * (D + D / 16) : T == ATTEND_RECORDS ? CHUNK * D * 4
                              : T == ATTEND_GROUPS ? 20 * D : CHUNK * D * 2; /* bytes; codes: q8_0's, records: f32's */
    alignas(16) uint8_t ring[WARPS][RING][slot]; /* at the end each warp's part holds its out[HEADS][D + 4] */
    __half unpacked[decode_unpacks(T) ? WARPS : 1][decode_unpacks(T) ? CHUNK * D : 8];
    __half query[HEADS * D];
    __half fresh[2][D];                  /* the row's own key and value */
    float head[HEADS + 2][D];            /* queries, key, value */
    float gate[HEADS][D];
    float norm[2][D], cosine[D / 2], sine[D / 2];
    float largest[WARPS][HEADS], sum[WARPS][HEADS];
    float2 whole[HEADS];                 /* largest and sum of all warps */
};

/* The block's place in the work. */
struct decode_work {
    int row, split, kv_head, first_head, heads, position;
    int chunk, chunks_end; /* the split's */
    int subs;              /* of 16 tokens each that they count as one */
    bool owns;             /* the row's position */
    bool packed;           /* its tokens are: always without a window */
};

/* With a window: the tokens that are packed are shared by the first splits, the others by the last window_splits. */
template <int T> static __device__ __forceinline__ decode_work decode_work_of(const attend_arguments &a)
{
    decode_work w;
    w.row = blockIdx.x / a.splits;
    w.split = blockIdx.x - w.row * a.splits;
    w.position = a.step.position[w.row];
    w.kv_head = blockIdx.y / a.head_blocks;
    const int first = blockIdx.y % a.head_blocks * a.block_heads;
    w.first_head = w.kv_head * a.group + first;
    w.heads = min(a.block_heads, a.group - first);
    int chunks = w.position / CHUNK + 1, from = 0, split = w.split, splits = a.splits;
    w.packed = true;
    w.subs = 1;
    if (attend_has_window(T)) {
        const int packed = attend_packed(a, w.position + 1) / CHUNK;
        splits -= a.window_splits;
        w.packed = split < splits;
        w.subs = T == ATTEND_GROUPS && w.packed ? SUBS : 1;
        if (w.packed)
            chunks = packed / w.subs;
        else {
            from = packed;
            split -= splits;
            splits = a.window_splits;
        }
    }
    const int each = max((chunks - from + splits - 1) / splits, WARPS);
    w.chunk = from + split * each;
    w.chunks_end = min(chunks, w.chunk + each);
    w.owns = (!attend_has_window(T) || !w.packed) && w.chunk < chunks && w.chunks_end == chunks;
    return w;
}

/* ---- queries, key, value: a warp has the queries warp, warp + WARPS, ...; the first the key, too, the second the value ---- */
#define QUERIES (HEADS / WARPS)
#define KEY HEADS /* in decode_memory.head */
#define VALUE (HEADS + 1)

/* Before the wait: norms and angles to shared memory; where this warp's heads are. */
template <int T, int D, int RING>
static __device__ __forceinline__ void decode_make_ready(const attend_arguments &a, const decode_work &w,
                                                         decode_memory<T, D, RING> *m, const float *from[QUERIES + 1], int warp)
{
#pragma unroll
    for (int j = 0; j < D; j += WARPS * QMI_WARP) {
        const int i = j + threadIdx.x;
        if (i < D) {
            m->norm[0][i] = a.query_norm ? a.query_norm[i] : 1;
            m->norm[1][i] = a.key_norm ? a.key_norm[i] : 1;
        }
    }
    if ((int)threadIdx.x < a.rotary / 2)
        attend_angle(w.position, a.frequency[threadIdx.x], &m->cosine[threadIdx.x], &m->sine[threadIdx.x]);
#pragma unroll
    for (int k = 0; k < QUERIES; k++) { /* one that there is */
        const int head = w.first_head + min(warp + k * WARPS, w.heads - 1);
        from[k] = a.query + ((int64_t)w.row * a.heads + head) * a.query_step;
    }
    from[QUERIES] = (warp == 0 ? a.key : a.value) + ((int64_t)w.row * a.kv_heads + w.kv_head) * D;
}

/* Loaded and normalised; side by side, as sums wait for loads and shuffles. */
template <int T, int D, int RING>
static __device__ __forceinline__ void decode_take_heads(const attend_arguments &a, const float *const from[QUERIES + 1],
                                                         decode_memory<T, D, RING> *m, int warp, int lane)
{
    static_assert(D / 2 <= WARPS * QMI_WARP, "a thread an angle");
    constexpr int parts = (D + 127) / 128;
    float4 x[QUERIES + 1][parts];
    float sum[QUERIES + 1] = {};
#pragma unroll
    for (int k = 0; k < QUERIES + 1; k++)
#pragma unroll
        for (int j = 0; j < parts; j++)
            x[k][j] = *(const float4 *)(from[k] + (4 * lane + 128 * j) % D);
#pragma unroll
    for (int k = 0; k < QUERIES + 1; k++)
#pragma unroll
        for (int j = 0; j < parts; j++)
            sum[k] += x[k][j].x * x[k][j].x + x[k][j].y * x[k][j].y + x[k][j].z * x[k][j].z + x[k][j].w * x[k][j].w;
#pragma unroll
    for (int o = (D < 128 ? D / 4 : QMI_WARP) / 2; o; o /= 2)
#pragma unroll
        for (int k = 0; k < QUERIES + 1; k++)
            sum[k] += __shfl_xor_sync(~0u, sum[k], o);
#pragma unroll
    for (int k = 0; k < QUERIES + 1; k++) {
        const bool plain = k < QUERIES ? !a.query_norm : warp > 0 || !a.key_norm;
        const float factor = plain ? 1 : rsqrtf(sum[k] / D + (k < QUERIES ? a.query_epsilon : a.key_epsilon));
#pragma unroll
        for (int j = 0; j < parts; j++) {
            const int i = (4 * lane + 128 * j) % D;
            const float4 n = *(const float4 *)(m->norm[k == QUERIES] + i), y = x[k][j];
            const float4 z = make_float4(factor * n.x * y.x, factor * n.y * y.y, factor * n.z * y.z, factor * n.w * y.w);
            if ((k < QUERIES || warp < 2) && 4 * lane + 128 * j < D)
                *(float4 *)(m->head[k < QUERIES ? warp + k * WARPS : KEY + warp] + i) = plain ? y : z;
        }
    }
    __syncwarp();
}

/* Turned. Queries go to the tile, key and value to `fresh` and, by one of the blocks that have them, into their page. */
template <int T, int D, int RING>
static __device__ __forceinline__ void decode_put_heads(const attend_arguments &a, const decode_work &w, const uint64_t *pages,
                                                        decode_memory<T, D, RING> *m, int warp, int lane)
{
    const int half = a.rotary / 2;
    const bool appends = w.first_head == w.kv_head * a.group;
#pragma unroll 1
    for (int i = lane; i < half; i += QMI_WARP) {
        const float cosine = m->cosine[i], sine = m->sine[i];
#pragma unroll
        for (int k = 0; k < QUERIES; k++)
            attend_rotate(m->head[warp + k * WARPS], i, half, cosine, sine);
        if (warp == 0)
            attend_rotate(m->head[KEY], i, half, cosine, sine);
    }
    __syncwarp();
    if (T != ATTEND_HALVES && a.rotate_keys) {
#pragma unroll 1
        for (int k = 0; k < QUERIES; k++)
            attend_spread<D>(m->head[warp + k * WARPS], false, lane);
    }
    const bool corrected = attend_has_window(T) && w.packed && a.correction;
#pragma unroll
    for (int k = 0; k < QUERIES; k++)
#pragma unroll
        for (int i = 2 * lane; i < D; i += 2 * QMI_WARP) {
            const float2 x = *(const float2 *)(m->head[warp + k * WARPS] + i);
            uint32_t pair = attend_halves(x.x * a.scale, x.y * a.scale);
            if (corrected) {
                const int head = w.first_head + min(warp + k * WARPS, w.heads - 1);
                pair = *(const uint32_t *)(a.prepared + ((int64_t)w.row * a.heads + head) * D + i);
            }
            *(uint32_t *)(m->query + attend_piece<HEADS>(warp + k * WARPS, i / 8) + i % 8) = pair;
        }
    if (!w.owns || warp > 1)
        return;
    const uint64_t to = attend_has_window(T)
                            ? attend_in_ring(a, a.step.sequences[w.row].next_state, warp == 1, w.kv_head, w.position)
                            : attend_address<T>(a, attend_place_of(a, pages, w.kv_head, w.position), warp == 1);
    if (T != ATTEND_HALVES && (warp == 0 ? a.rotate_keys : a.rotate_values))
        attend_spread<D>(m->head[KEY + warp], false, lane);
    if (T != ATTEND_HALVES && !attend_has_window(T))
        attend_append_head(warp == 0 ? a.key_type : a.value_type, to, m->head[KEY + warp], D, appends, lane);
#pragma unroll
    for (int i = 2 * lane; i < D; i += 2 * QMI_WARP) {
        const float2 x = *(const float2 *)(m->head[KEY + warp] + i);
        *(uint32_t *)(m->fresh[warp] + i) = attend_halves(x.x, x.y);
        if ((T == ATTEND_HALVES || attend_has_window(T)) && appends)
            *(uint32_t *)(to + 2 * i) = attend_halves(x.x, x.y);
    }
}

template <int T, int D, int RING>
static __global__ void __launch_bounds__(WARPS * QMI_WARP) attend_decode_kernel(attend_arguments a)
{
    typedef decode_memory<T, D, RING> memory;
    CHIP_SHARED(memory, m);
    const int warp = attend_warp(), lane = threadIdx.x % QMI_WARP, g = lane >> 2, t = lane & 3;
    chip_let_next_start();
    const decode_work w = decode_work_of<T>(a);
    const uint64_t *pages = a.step.pages + a.step.sequences[w.row].page_first; /* one row a sequence: they have the same number */
    if (attend_has_window(T) && a.packs)
        chip_wait_for_previous();

    /* Copies, in the order keys, values of this warp's chunks; a place in the ring each. Earlier tokens are not written in this
     * run: their copies needn't wait for the kernel before. */
    const int parts = 2 * max((w.chunks_end - w.chunk - warp + WARPS - 1) / WARPS, 0);
    auto chunk_of = [&](int part) { return w.chunk + warp + (part >> 1) * WARPS; };
    auto place_of = [&](int part) {
        const int token = min(chunk_of(part) * w.subs * CHUNK + lane % CHUNK, w.packed ? w.position : max(w.position - 1, 0));
        if (attend_has_window(T))
            return attend_window_place(a, a.step.sequences[w.row], pages, w.kv_head, token, w.packed);
        return attend_place_of(a, pages, w.kv_head, token);
    };
    auto slot_of = [&](int slot) { /* of a tile of halves; with groups there is room for them elsewhere */
        return T == ATTEND_GROUPS && slot == 0 ? m->unpacked[warp] : (__half *)m->ring[warp][T == ATTEND_GROUPS ? 0 : slot];
    };
    attend_place place = place_of(0), place_ahead = place_of(2);
    int ahead = 0, ahead_slot = 0;
    auto fetch = [&]() {
        if (ahead < parts) {
            const int real = w.position - chunk_of(ahead) * CHUNK;
            if constexpr (T == ATTEND_CODES || T == ATTEND_RECORDS)
                attend_fetch_codes(m->ring[warp][ahead_slot],
                                   __shfl_sync(~0u, (unsigned long long)attend_address<T>(a, place, ahead & 1), 0),
                                   min(real, CHUNK) * (ahead & 1 ? a.value_bytes : a.key_bytes), lane);
            else if constexpr (T == ATTEND_WINDOW)
                attend_window_fetch<D, CHUNK, CHUNK>(a, slot_of(ahead_slot), 0, place, w.packed, ahead & 1, real, lane);
            else if constexpr (T == ATTEND_GROUPS) {
                const uint64_t page = __shfl_sync(~0u, (unsigned long long)place.page, 0);
                if (!w.packed)
                    attend_window_fetch<D, CHUNK, CHUNK>(a, slot_of(ahead_slot), 0, place, false, ahead & 1, real, lane);
                else if (ahead & 1)
                    attend_fetch_codes(m->ring[warp][ahead_slot],
                                       attend_address<T>(a, attend_place{ page, w.kv_head * QMI_KV_GROUP }, true), 20 * D, lane);
                else
                    attend_copy_group<D, 16>(m->ring[warp][ahead_slot], attend_group_of(a, page, w.kv_head), 0, lane);
            } else
                attend_fetch<T, D, CHUNK, CHUNK>(a, (__half *)m->ring[warp][ahead_slot], 0, place, ahead & 1, real, lane);
        }
        if (ahead & 1) {
            place = place_ahead;
            place_ahead = place_of(ahead + 3);
        }
        chip_copy_commit();
        ahead++;
        ahead_slot = ahead_slot + 1 == RING ? 0 : ahead_slot + 1;
    };
#pragma unroll 1
    for (int i = 0; i < RING - 1; i++)
        fetch();
    const float *from[QUERIES + 1];
    decode_make_ready(a, w, m, from, warp);
    __syncthreads();
    chip_wait_for_previous();
    if (w.chunk >= w.chunks_end) {
        if ((int)threadIdx.x < w.heads)
            *(float2 *)(a.marks + 2 * attend_mark(a, w.row, w.first_head + threadIdx.x, w.split)) = make_float2(-INFINITY, 0);
        return;
    }
    decode_take_heads(a, from, m, warp, lane);
    decode_put_heads<T>(a, w, pages, m, warp, lane);
    if (a.gated && a.splits == 1) /* with the next copies */
        for (int i = threadIdx.x; i < w.heads * (D / 4); i += WARPS * QMI_WARP)
            chip_copy16(&m->gate[0][0] + 4 * i,
                        a.query + attend_gate_index(a, w.row, w.first_head + i / (D / 4)) + i % (D / 4) * 4, true);
    __syncthreads();

    uint32_t query[D / 16][2];
#pragma unroll
    for (int i = 0; i < D / 32; i++) { /* rows are heads: b of 32 values */
        uint32_t b[4];
        chip_load_matrices(b, m->query + attend_piece<HEADS>(lane & 7, 4 * i + (lane >> 3)));
        query[2 * i][0] = b[0];
        query[2 * i][1] = b[1];
        query[2 * i + 1][0] = b[2];
        query[2 * i + 1][1] = b[3];
    }
    const attend_offsets key_rows = attend_rows_first(lane), value_rows = attend_values_first(lane);
    float out[D / 16][4] = {}, largest[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }; /* of heads 2 t, 2 t + 1 */
    constexpr int subs_most = T == ATTEND_GROUPS ? SUBS : 1;
    uint32_t weights[subs_most][2] = {};
    int slot = 0;
    for (int part = 0; part < parts; part++) {
        float s[subs_most][4];
        chip_copy_wait<RING - 2>();
        __syncwarp();                 /* all lanes have done the part before: its place is free */
        fetch();
#pragma unroll 1
        for (int sub = 0; sub < (subs_most == 1 ? 1 : w.subs); sub++) {
            __half *tile = decode_unpacks(T) && w.packed ? m->unpacked[warp] : slot_of(slot);
            const int first = (chunk_of(part) * w.subs + sub) * CHUNK; /* token */
            if constexpr (T == ATTEND_CODES || T == ATTEND_RECORDS)
                attend_unpack<D, CHUNK, CHUNK, T == ATTEND_RECORDS>(part & 1 ? a.value_type : a.key_type, tile, 0,
                                                                    m->ring[warp][slot], w.position - first, lane);
            if (T == ATTEND_GROUPS && w.packed) {
                __syncwarp();
                const uint8_t *raw = m->ring[warp][slot];
                if (part & 1)
                    attend_unpack_type<QMI_KV_Q2, D, CHUNK, CHUNK>(tile, 0, raw + sub * CHUNK * (5 * D / 16), CHUNK, lane);
                else
                    attend_unpack_group<D, CHUNK, CHUNK, true>(tile, 0, raw, raw + 16 * D, sub, lane);
                __syncwarp();
            }
            if (first + CHUNK > w.position) { /* the row's own token */
                const __half *from = m->fresh[part & 1];
                for (int i = lane; i < D / 8; i += QMI_WARP)
                    *(uint4 *)(tile + attend_piece<CHUNK>(w.position - first, i)) = *(const uint4 *)(from + 8 * i);
                __syncwarp();
            }
            if (!(part & 1)) {
                float score[2][4] = {};
#pragma unroll
                for (int i = 0; i < D / 16; i++) {
                    uint32_t key[4];
                    chip_load_matrices(key, tile + attend_offset<CHUNK>(key_rows, i));
                    chip_mma_half(score[i & 1], key, query[i][0], query[i][1]);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) { /* tokens g, g + 8 */
                    const float x = first + g + 8 * (i >> 1) <= w.position ? score[0][i] + score[1][i] : -INFINITY;
#pragma unroll
                    for (int k = 0; k < subs_most; k++)
                        if (k >= sub) /* and of chunks that are not there */
                            s[k][i] = k == sub ? x : -INFINITY;
                }
            } else {
                uint32_t weight[2] = { weights[0][0], weights[0][1] };
#pragma unroll
                for (int k = 1; k < subs_most; k++)
                    if (k == sub) {
                        weight[0] = weights[k][0];
                        weight[1] = weights[k][1];
                    }
#pragma unroll
                for (int i = 0; i < D / 16; i++) {
                    uint32_t value[4];
                    chip_load_matrices_turned(value, tile + attend_offset<CHUNK>(value_rows, i));
                    chip_mma_half(out[i], value, weight[0], weight[1]);
                }
            }
        }
        if (!(part & 1)) {
            float before[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float most = -INFINITY, added = 0;
#pragma unroll
                for (int k = 0; k < subs_most; k++)
                    most = fmaxf(most, fmaxf(s[k][h], s[k][h + 2]));
#pragma unroll
                for (int o = 4; o < QMI_WARP; o *= 2)
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, o));
                most = fmaxf(most, largest[h]); /* a chunk has at least one token: finite */
                before[h] = chip_exp2(largest[h] - most);
                largest[h] = most;
#pragma unroll
                for (int k = 0; k < subs_most; k++) {
                    s[k][h] = chip_exp2(s[k][h] - most);
                    s[k][h + 2] = chip_exp2(s[k][h + 2] - most);
                    added += s[k][h] + s[k][h + 2]; /* of this lane's tokens */
                }
                sum[h] = sum[h] * before[h] + added;
            }
#pragma unroll
            for (int k = 0; k < subs_most; k++) {
                weights[k][0] = chip_turn_matrix(attend_pair(s[k][0], s[k][1]));
                weights[k][1] = chip_turn_matrix(attend_pair(s[k][2], s[k][3]));
            }
#pragma unroll
            for (int i = 0; i < D / 16; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[i][j] *= before[j & 1];
        }
        slot = slot + 1 == RING ? 0 : slot + 1;
    }

    /* Merge the warps. */
    __syncwarp();
    constexpr int stride = D + 4; /* lanes of one store in different banks */
    float *mine = (float *)m->ring[warp];
    static_assert(sizeof m->ring[0] >= HEADS * stride * sizeof(float), "a warp's results take its ring's place");
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            mine[(2 * t + (j & 1)) * stride + 16 * i + 8 * (j >> 1) + g] = out[i][j];
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int o = 4; o < QMI_WARP; o *= 2)
            sum[h] += __shfl_xor_sync(~0u, sum[h], o);
        if (g == 0) {
            m->largest[warp][2 * t + h] = largest[h];
            m->sum[warp][2 * t + h] = sum[h];
        }
    }
    chip_copy_commit(); /* gates, where no copies came after them */
    chip_copy_wait<0>();
    __syncthreads();
    const bool turns = T != ATTEND_HALVES && a.rotate_values;
    auto put = [&](int h, int d, float4 y, float most, float all) {
        const int head = w.first_head + h;
        if (a.splits == 1)
            attend_finish(a, w.row, head, d, y, all, *(const float4 *)(m->gate[h] + d));
        else {
            const int64_t mark = attend_mark(a, w.row, head, w.split);
            *(float4 *)(a.partial + mark * D + d) = y;
            if (d == 0)
                *(float2 *)(a.marks + 2 * mark) = make_float2(most, all);
        }
    };
#pragma unroll 1
    for (int i = threadIdx.x; i < w.heads * (D / 4); i += WARPS * QMI_WARP) {
        const int h = i / (D / 4), d = i % (D / 4) * 4;
        float most = m->largest[0][h], all = 0;
        float4 y = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int j = 1; j < WARPS; j++)
            most = fmaxf(most, m->largest[j][h]);
#pragma unroll
        for (int j = 0; j < WARPS; j++) {
            const float4 x = *(const float4 *)((const float *)m->ring[j] + h * stride + d);
            const float factor = chip_exp2(m->largest[j][h] - most);
            all += factor * m->sum[j][h];
            y.x += factor * x.x;
            y.y += factor * x.y;
            y.z += factor * x.z;
            y.w += factor * x.w;
        }
        if (turns) {
            *(float4 *)(m->head[h] + d) = y;
            if (d == 0)
                m->whole[h] = make_float2(most, all);
        } else
            put(h, d, y, most, all);
    }
    if (!turns)
        return;
    __syncthreads();
    for (int h = warp; h < w.heads; h += WARPS) { /* also of a part of the tokens: turning is linear */
        attend_spread<D>(m->head[h], true, lane);
#pragma unroll 1
        for (int d = 4 * lane; d < D; d += 4 * QMI_WARP)
            put(h, d, *(const float4 *)(m->head[h] + d), m->whole[h].x, m->whole[h].y);
    }
}

/* ---- launching ---- */
template <int T, int D, int RING> static void launch(const cuda_run *run, const attend_arguments *a)
{
    cuda_launch(run, dim3(a->rows * a->splits, a->kv_heads * a->head_blocks), WARPS * QMI_WARP, sizeof(decode_memory<T, D, RING>),
                attend_decode_kernel<T, D, RING>, *a);
}

/* The depth of the ring where blocks are few: it fills a processor, or half of it (RESIDENT). */
static constexpr int deep_ring(int taken)
{
    return taken == ATTEND_HALVES ? RING_DEEP : taken == ATTEND_CODES ? RING_CODES : RING_SHALLOW;
}

template <int T, int D> static void launch_size(const cuda_run *run, const attend_arguments *a)
{
    /* More blocks than processors are better off when several share one. */
    const int64_t blocks = (int64_t)a->splits * a->kv_heads * a->head_blocks * a->rows;
    constexpr int deep = deep_ring(T), resident = T == ATTEND_CODES ? RESIDENT : 1;
    if ((int32_t)sizeof(decode_memory<T, D, deep>) <= run->shared_most && blocks <= resident * run->processors)
        launch<T, D, deep>(run, a);
    else
        launch<T, D, RING_SHALLOW>(run, a);
}

template <int T> static void launch_type(const cuda_run *run, const attend_arguments *a)
{
    if (a->head_size == 64)
        launch_size<T, 64>(run, a);
    else if (a->head_size == 128)
        launch_size<T, 128>(run, a);
    else
        launch_size<T, 256>(run, a);
}

void attend_decode(const cuda_run *run, const attend_arguments *a, int taken)
{
    if (taken == ATTEND_HALVES)
        launch_type<ATTEND_HALVES>(run, a);
    else if (taken == ATTEND_CODES)
        launch_type<ATTEND_CODES>(run, a);
    else if (taken == ATTEND_WINDOW)
        launch_type<ATTEND_WINDOW>(run, a);
    else if (taken == ATTEND_GROUPS)
        launch_type<ATTEND_GROUPS>(run, a);
    else
        launch_type<ATTEND_RECORDS>(run, a);
}

bool attend_decode_fits(int32_t taken, int32_t head_size, int32_t shared_most)
{
    return taken != ATTEND_RECORDS || head_size != 256 ||
           (int32_t)sizeof(decode_memory<ATTEND_RECORDS, 256, RING_SHALLOW>) <= shared_most;
}

int32_t attend_decode_heads(void)
{
    return HEADS;
}

int32_t attend_decode_resident(void)
{
    return RESIDENT;
}

template <int T, int D, int RING> static cudaError_t set_up(int32_t shared_most)
{
    const int32_t bytes = (int32_t)sizeof(decode_memory<T, D, RING>);
    if (bytes > shared_most)
        return cudaSuccess;
    return cudaFuncSetAttribute(attend_decode_kernel<T, D, RING>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <int T, int D> static cudaError_t set_up_size(int32_t shared_most)
{
    cudaError_t error = set_up<T, D, deep_ring(T)>(shared_most);
    return error == cudaSuccess ? set_up<T, D, RING_SHALLOW>(shared_most) : error;
}

cudaError_t attend_decode_setup(int32_t shared_most)
{
    cudaError_t (*const each[])(int32_t) = {
        set_up_size<ATTEND_HALVES, 64>, set_up_size<ATTEND_HALVES, 128>, set_up_size<ATTEND_HALVES, 256>,
        set_up_size<ATTEND_CODES, 64>, set_up_size<ATTEND_CODES, 128>, set_up_size<ATTEND_CODES, 256>,
        set_up_size<ATTEND_RECORDS, 64>, set_up_size<ATTEND_RECORDS, 128>, set_up_size<ATTEND_RECORDS, 256>,
        set_up_size<ATTEND_GROUPS, 64>, set_up_size<ATTEND_GROUPS, 128>, set_up_size<ATTEND_GROUPS, 256>,
        set_up_size<ATTEND_WINDOW, 64>, set_up_size<ATTEND_WINDOW, 128>, set_up_size<ATTEND_WINDOW, 256>,
    };
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < sizeof each / sizeof *each && error == cudaSuccess; i++)
        error = each[i](shared_most);
    return error;
}
