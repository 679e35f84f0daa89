/* Bodies of attention's kernels over stored keys and values. Included after vector_*.h and kv_*.h; see float_tmpl.h.
 *
 * Query heads go together, so that each load and unpacking serves several. How many changes nothing in a head's sums: each is a
 * chain of its own, and v_sum4 and v_sum_each add the lanes of a vector in the order of v_sum. */
#include <string.h>
#include "backend/op.h"
#include "cpu/kernels.h"
#include "cpu/scalar/scalar.h"

#define TOGETHER (LANES == 16 ? 8 : 4) /* as the registers allow */
#define TOGETHER_MOST 8
#define MIX_SUMS (LANES == 16 ? 16 : 8) /* vectors of mixed values that are summed together: some lines of each value at a time */
#define RECORDS_AHEAD 16                /* keys and values as they are: so many are fetched ahead */
#ifdef QMI_SANITIZED /* their checks in what is unrolled take minutes to compile */
#define ALWAYS static inline
#else
#define ALWAYS static inline __attribute__((always_inline))
#endif

/* body(work, head, count) with constant counts, until all heads have had their turn. */
#define EACH_HEADS(work, body) \
    do { \
        int32_t head = 0; \
        for (; TOGETHER == 8 && head + 8 <= (work)->heads; head += 8) \
            body(work, head, 8); \
        for (; head + 4 <= (work)->heads; head += 4) \
            body(work, head, 4); \
        for (; head + 2 <= (work)->heads; head += 2) \
            body(work, head, 2); \
        for (; head < (work)->heads; head++) \
            body(work, head, 1); \
    } while (0)

/* The sums of four vectors. */
ALWAYS __m128 v_sum4(vector a, vector b, vector c, vector d)
{
    __m128 p = v_fold(a), q = v_fold(b), r = v_fold(c), s = v_fold(d);
    __m128 pq = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
    __m128 rs = _mm_add_ps(_mm_unpacklo_ps(r, s), _mm_unpackhi_ps(r, s));
    return _mm_add_ps(_mm_movelh_ps(pq, rs), _mm_movehl_ps(rs, pq));
}

/* Sums [heads][keys] of the heads from `head` and the keys from j on: a vector full, or those of one key. */
ALWAYS void put_scores(const qmi_cpu_scores *work, int32_t head, const int heads, int32_t j, const int keys, const vector *sum)
{
    float *score = work->score + head * work->score_stride + j, all[LANES];
    if (heads * keys == LANES) {
        v_store(all, v_mul(v_all(work->scale), v_sum_each(sum)));
        for (int h = 0; h < heads; h++)
            memcpy(score + h * work->score_stride, all + h * keys, (size_t)keys * sizeof *all);
        return;
    }
    for (int h = 0; h < heads; h++)
        score[h * work->score_stride] = work->scale * v_sum(sum[h]);
}

/* keys(work, head, heads, j, count) for all keys, so many at a time that their sums are a vector full. */
#define EACH_KEYS(work, head, heads, keys) \
    do { \
        int32_t j = 0; \
        for (; j + LANES / (heads) <= (work)->count; j += LANES / (heads)) \
            keys(work, head, heads, j, LANES / (heads)); \
        for (; j < (work)->count; j++) \
            keys(work, head, heads, j, 1); \
    } while (0)

/* ---- numbers as they are ---- */

#define DEFINE_PLAIN(type, number, load, load_part) \
    ALWAYS void keys_##type(const qmi_cpu_scores *work, int32_t head, const int heads, int32_t j, const int keys) \
    { \
        const number *key = (const number *)work->keys + (int64_t)j * work->head_size; \
        const float *query = work->query + head * work->query_stride; \
        vector sum[LANES], k[LANES]; \
        int32_t d = 0; \
        for (int s = 0; s < heads * keys; s++) \
            sum[s] = v_zero(); \
        for (int32_t i = 0; head == 0 && i < keys * work->head_size; i += 64 / (int)sizeof(number)) \
            __builtin_prefetch(key + RECORDS_AHEAD * work->head_size + i, 0, 2); \
        for (; d + LANES <= work->head_size; d += LANES) { \
            for (int i = 0; i < keys; i++) \
                k[i] = load(key + i * work->head_size + d); \
            for (int h = 0; h < heads; h++) { \
                vector q = v_load(query + h * work->query_stride + d); \
                for (int i = 0; i < keys; i++) \
                    sum[h * keys + i] = v_fma(q, k[i], sum[h * keys + i]); \
            } \
        } \
        if (d < work->head_size) { \
            for (int i = 0; i < keys; i++) \
                k[i] = load_part(key + i * work->head_size + d, work->head_size - d); \
            for (int h = 0; h < heads; h++) { \
                vector q = v_load_part(query + h * work->query_stride + d, work->head_size - d); \
                for (int i = 0; i < keys; i++) \
                    sum[h * keys + i] = v_fma(q, k[i], sum[h * keys + i]); \
            } \
        } \
        put_scores(work, head, heads, j, keys, sum); \
    } \
    ALWAYS void scores_##type(const qmi_cpu_scores *work, int32_t head, const int heads) \
    { \
        EACH_KEYS(work, head, heads, keys_##type); \
    } \
    void NAME(scores_##type)(const qmi_cpu_scores *work) { EACH_HEADS(work, scores_##type); } \
    /* `vectors` vectors of each value from column d on; the first time whole values are fetched */ \
    ALWAYS void mix_columns_##type(const qmi_cpu_mix *work, int32_t head, const int count, int32_t d, const int vectors) \
    { \
        const float *weight = work->weight + head * work->weight_stride; \
        const number *value = (const number *)work->values + d; \
        float *out = work->out + head * work->out_stride + d; \
        vector sum[MIX_SUMS]; \
        for (int h = 0; h < count; h++) \
            for (int i = 0; i < vectors; i++) \
                sum[h * vectors + i] = v_load(out + h * work->out_stride + i * LANES); \
        for (int32_t j = 0; j < work->count; j++, value += work->head_size) { \
            for (int i = 0; d == 0 && i < work->head_size; i += 64 / (int)sizeof(number)) \
                __builtin_prefetch(value + RECORDS_AHEAD * work->head_size + i, 0, 2); \
            for (int i = 0; i < vectors; i++) { \
                vector v = load(value + i * LANES); \
                for (int h = 0; h < count; h++) \
                    sum[h * vectors + i] = v_fma(v_all(weight[h * work->weight_stride + j]), v, sum[h * vectors + i]); \
            } \
        } \
        for (int h = 0; h < count; h++) \
            for (int i = 0; i < vectors; i++) \
                v_store(out + h * work->out_stride + i * LANES, sum[h * vectors + i]); \
    } \
    ALWAYS void mix_##type(const qmi_cpu_mix *work, int32_t head, const int count) \
    { \
        const int vectors = count > 1 ? MIX_SUMS / count : MIX_SUMS / 2; \
        const float *weight = work->weight + head * work->weight_stride; \
        int32_t d = 0; \
        for (; d + vectors * LANES <= work->head_size; d += vectors * LANES) \
            mix_columns_##type(work, head, count, d, vectors); \
        for (; d + LANES <= work->head_size; d += LANES) \
            mix_columns_##type(work, head, count, d, 1); \
        if (d == work->head_size) \
            return; \
        for (int h = 0; h < count; h++) { \
            const number *value = (const number *)work->values + d; \
            int64_t n = work->head_size - d; \
            float *out = work->out + (head + h) * work->out_stride + d; \
            vector sum = v_load_part(out, n); \
            for (int32_t j = 0; j < work->count; j++, value += work->head_size) \
                sum = v_fma(v_all(weight[h * work->weight_stride + j]), load_part(value, n), sum); \
            v_store_part(out, sum, n); \
        } \
    } \
    void NAME(mix_##type)(const qmi_cpu_mix *work) { EACH_HEADS(work, mix_##type); }

DEFINE_PLAIN(f32, float, v_load, v_load_part)
DEFINE_PLAIN(f16, uint16_t, v_load_half, v_load_half_part)
DEFINE_PLAIN(bf16, uint16_t, v_load_bfloat, v_load_bfloat_part)

void NAME(store_f16)(const float *from, void *to, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        v_store_half_part((uint16_t *)to + i, v_load_part(from + i, n), n);
    }
}

/* ---- codes: heads of whole blocks; others are the scalar kernels' ---- */

#define HALF 16        /* numbers of half a block, which have the same shift in the plane of low bits */
#define VECTORS (HALF / LANES)
#define TOKENS 64      /* whose scales are unpacked together */
#define BLOCKS_MOST (QMI_HEAD_SIZE_MAX / QMI_KV_BLOCK)

ALWAYS float scale_of(const char *half)
{
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return _cvtsh_ss(bits);
}

/* The scales of a record of `blocks`. */
ALWAYS void load_scales(const char *record, int64_t at, int64_t blocks, float *scales)
{
    const uint16_t *halves = (const uint16_t *)(const void *)(record + at);
    for (int64_t b = 0; b < blocks; b += LANES) {
        int64_t n = blocks - b < LANES ? blocks - b : LANES;
        v_store_part(scales + b, v_load_half_part(halves + b, n), n);
    }
}

#define DEFINE_CODES(type, kind, low_bytes, high_bytes) \
    DEFINE_MIXED_CODES(type, low_bytes, high_bytes) \
    ALWAYS void keys_##type(const qmi_cpu_scores *work, int32_t head, const int heads, int32_t j, const int keys) \
    { \
        const int64_t blocks = work->head_size / QMI_KV_BLOCK, bytes = blocks * ((low_bytes) + (high_bytes) + 2); \
        const char *record = (const char *)work->keys + j * bytes; \
        const float *query = work->query + head * work->query_stride; \
        vector sum[LANES], k[LANES][VECTORS]; \
        for (int s = 0; s < heads * keys; s++) \
            sum[s] = v_zero(); \
        for (int32_t b = 0; b < blocks; b++) \
            for (int half = 0; half < 2; half++) { \
                for (int i = 0; i < keys; i++) { \
                    const uint8_t *low = (const uint8_t *)record + i * bytes, *high = low + blocks * (low_bytes); \
                    vector scale = v_all(scale_of((const char *)low + bytes - 2 * (blocks - b))); \
                    kv_codes_##type(low + b * (low_bytes), high + b * (high_bytes), half, k[i]); \
                    for (int v = 0; v < VECTORS; v++) \
                        k[i][v] = v_mul(scale, k[i][v]); \
                } \
                for (int v = 0; v < VECTORS; v++) \
                    for (int h = 0; h < heads; h++) { \
                        vector q = v_load(query + h * work->query_stride + b * QMI_KV_BLOCK + half * HALF + v * LANES); \
                        for (int i = 0; i < keys; i++) \
                            sum[h * keys + i] = v_fma(q, k[i][v], sum[h * keys + i]); \
                    } \
            } \
        put_scores(work, head, heads, j, keys, sum); \
    } \
    ALWAYS void scores_##type(const qmi_cpu_scores *work, int32_t head, const int heads) \
    { \
        EACH_KEYS(work, head, heads, keys_##type); \
    } \
    void NAME(scores_##type)(const qmi_cpu_scores *work) \
    { \
        if (work->head_size % QMI_KV_BLOCK) \
            qmi_scalar_scores_##type(work); \
        else \
            EACH_HEADS(work, scores_##type); \
    } \
    void NAME(unpack_##type)(const void *record, float *to, int64_t count) \
    { \
        const int64_t blocks = count / QMI_KV_BLOCK, bytes = blocks * ((low_bytes) + (high_bytes) + 2); \
        const uint8_t *low = record, *high = low + blocks * (low_bytes); \
        float scales[BLOCKS_MOST]; \
        vector x[VECTORS]; \
        if (count % QMI_KV_BLOCK || blocks > BLOCKS_MOST) { \
            qmi_kv_unpack(kind, record, to, count); \
            return; \
        } \
        load_scales(record, bytes - 2 * blocks, blocks, scales); \
        for (int64_t b = 0; b < blocks; b++) \
            for (int half = 0; half < 2; half++) { \
                kv_codes_##type(low + b * (low_bytes), high + b * (high_bytes), half, x); \
                for (int v = 0; v < VECTORS; v++) \
                    v_store(to + b * QMI_KV_BLOCK + half * HALF + v * LANES, v_mul(v_all(scales[b]), x[v])); \
            } \
    }

#define DEFINE_MIXED_CODES(type, low_bytes, high_bytes) \
    /* half a block of some tokens, from `record` and their scales on */ \
    ALWAYS void mix_half_##type(const qmi_cpu_mix *work, const int count, const float *weight, const char *record, \
                                const float *scales, int32_t tokens, int32_t b, const int half, float *out) \
    { \
        const int64_t blocks = work->head_size / QMI_KV_BLOCK, bytes = blocks * ((low_bytes) + (high_bytes) + 2); \
        vector sum[TOGETHER_MOST][VECTORS]; \
        for (int h = 0; h < count; h++) \
            for (int v = 0; v < VECTORS; v++) \
                sum[h][v] = v_load(out + h * work->out_stride + v * LANES); \
        for (int32_t j = 0; j < tokens; j++, record += bytes) { \
            const uint8_t *low = (const uint8_t *)record, *high = low + blocks * (low_bytes); \
            vector x[VECTORS]; \
            kv_codes_##type(low + b * (low_bytes), high + b * (high_bytes), half, x); \
            for (int v = 0; v < VECTORS; v++) { \
                x[v] = v_mul(v_all(scales[j * blocks + b]), x[v]); \
                for (int h = 0; h < count; h++) \
                    sum[h][v] = v_fma(v_all(weight[h * work->weight_stride + j]), x[v], sum[h][v]); \
            } \
        } \
        for (int h = 0; h < count; h++) \
            for (int v = 0; v < VECTORS; v++) \
                v_store(out + h * work->out_stride + v * LANES, sum[h][v]); \
    } \
    ALWAYS void mix_##type(const qmi_cpu_mix *work, int32_t head, const int count) \
    { \
        const int64_t blocks = work->head_size / QMI_KV_BLOCK, bytes = blocks * ((low_bytes) + (high_bytes) + 2); \
        const float *weight = work->weight + head * work->weight_stride; \
        const char *record = work->values; \
        float scales[TOKENS * BLOCKS_MOST]; \
        for (int32_t first = 0; first < work->count; first += TOKENS, record += TOKENS * bytes, weight += TOKENS) { \
            int32_t tokens = work->count - first < TOKENS ? work->count - first : TOKENS; \
            for (int32_t j = 0; j < tokens; j++) \
                load_scales(record + j * bytes, bytes - 2 * blocks, blocks, scales + j * blocks); \
            for (int32_t b = 0; b < blocks; b++) { \
                float *out = work->out + head * work->out_stride + b * QMI_KV_BLOCK; \
                mix_half_##type(work, count, weight, record, scales, tokens, b, 0, out); \
                mix_half_##type(work, count, weight, record, scales, tokens, b, 1, out + HALF); \
            } \
        } \
    } \
    void NAME(mix_##type)(const qmi_cpu_mix *work) \
    { \
        if (work->head_size % QMI_KV_BLOCK) \
            qmi_scalar_mix_##type(work); \
        else \
            EACH_HEADS(work, mix_##type); \
    }

DEFINE_CODES(q8_0, QMI_KV_Q8_0, 32, 0)
DEFINE_CODES(q6, QMI_KV_Q6, 16, 8)
DEFINE_CODES(q5, QMI_KV_Q5, 16, 4)
DEFINE_CODES(q4_0, QMI_KV_Q4_0, 16, 0)
DEFINE_MIXED_CODES(q2, 8, 0)

/* ---- keys of two bits: a group's tokens side by side in vectors, channel after channel ---- */

#define QUARTER 16 /* tokens of a group whose codes have the same place in a channel's bytes */

/* The part of the scores that is the same for all tokens, and for each channel what a step of its codes adds. */
ALWAYS void fold_group(const qmi_cpu_scores *work, int32_t head, const int count, float *steps, float *base)
{
    const int64_t channels = (work->head_size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK;
    const uint16_t *scales = (const uint16_t *)(const void *)((const char *)work->keys + channels * (QMI_KV_GROUP / 4));
    const uint16_t *centres = scales + channels;
    for (int h = 0; h < count; h++) {
        const float *query = work->query + (head + h) * work->query_stride;
        vector sum = v_zero();
        for (int32_t d = 0; d < work->head_size; d += LANES) {
            int64_t n = work->head_size - d < LANES ? work->head_size - d : LANES;
            sum = v_fma(v_load_part(query + d, n), v_load_half_part(centres + d, n), sum);
            v_store_part(steps + h * QMI_HEAD_SIZE_MAX + d,
                         v_mul(v_load_part(query + d, n), v_load_half_part(scales + d, n)), n);
        }
        base[h] = v_sum(sum);
    }
}

ALWAYS void scores_q2(const qmi_cpu_scores *work, int32_t head, const int count)
{
    const uint8_t *codes = work->keys;
    float steps[TOGETHER_MOST * QMI_HEAD_SIZE_MAX], base[TOGETHER_MOST];
    fold_group(work, head, count, steps, base);
    for (int quarter = 0; quarter < QMI_KV_GROUP / QUARTER; quarter++) {
        vector sum[TOGETHER_MOST][QUARTER / LANES], level[QUARTER / LANES];
        for (int h = 0; h < count; h++)
            for (int v = 0; v < QUARTER / LANES; v++)
                sum[h][v] = v_all(base[h]);
        for (int32_t d = 0; d < work->head_size; d++) {
            kv_levels_q2(codes + d * (QMI_KV_GROUP / 4), quarter, level);
            for (int h = 0; h < count; h++)
                for (int v = 0; v < QUARTER / LANES; v++)
                    sum[h][v] = v_fma(v_all(steps[h * QMI_HEAD_SIZE_MAX + d]), level[v], sum[h][v]);
        }
        for (int h = 0; h < count; h++)
            for (int v = 0; v < QUARTER / LANES; v++)
                v_store(work->score + (head + h) * work->score_stride + quarter * QUARTER + v * LANES,
                        v_mul(v_all(work->scale), sum[h][v]));
    }
}

void NAME(scores_q2)(const qmi_cpu_scores *work)
{
    EACH_HEADS(work, scores_q2);
}

/* ---- turning ---- */

/* x H without its factor, in runs of at least a vector. */
ALWAYS void butterflies(float *x, int32_t run)
{
    for (int32_t i = 0; i < run; i += LANES) {
        vector v = v_load(x + i);
        v = v_add(v_swap(v, 1), v_negate_odd(v, 1));
        v = v_add(v_swap(v, 2), v_negate_odd(v, 2));
        v = v_add(v_swap(v, 4), v_negate_odd(v, 4));
        if (LANES == 16)
            v = v_add(v_swap(v, 8), v_negate_odd(v, 8));
        v_store(x + i, v);
    }
    for (int32_t apart = LANES; apart < run; apart *= 2)
        for (int32_t first = 0; first < run; first += 2 * apart)
            for (int32_t i = first; i < first + apart; i += LANES) {
                vector a = v_load(x + i), b = v_load(x + i + apart);
                v_store(x + i, v_add(a, b));
                v_store(x + i + apart, v_sub(a, b));
            }
}

static void change_signs(float *x, int32_t run)
{
    for (int32_t i = 0; i < run; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits ^= (uint32_t)qmi_kv_sign((uint32_t)i) << 31;
        memcpy(x + i, &bits, sizeof bits);
    }
}

static void multiply(float *x, int32_t run, float factor)
{
    for (int32_t i = 0; i < run; i += LANES)
        v_store(x + i, v_mul(v_load(x + i), v_all(factor)));
}

void NAME(spread)(float *x, int32_t count)
{
    int32_t run = qmi_kv_rotation(count);
    if (run < LANES) {
        qmi_scalar_spread(x, count);
        return;
    }
    for (int32_t first = 0; first < count; first += run) {
        change_signs(x + first, run);
        butterflies(x + first, run);
        multiply(x + first, run, 1 / sqrtf((float)run));
    }
}

void NAME(gather)(float *x, int32_t count)
{
    int32_t run = qmi_kv_rotation(count);
    if (run < LANES) {
        qmi_scalar_gather(x, count);
        return;
    }
    for (int32_t first = 0; first < count; first += run) {
        butterflies(x + first, run);
        multiply(x + first, run, 1 / sqrtf((float)run));
        change_signs(x + first, run);
    }
}
