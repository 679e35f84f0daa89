/* Bodies of attention's kernels over stored keys and values, F32 and F16. Included after vector_*.h; see float_tmpl.h. */
#include "cpu/kernels.h"

#define HEADS_TOGETHER 4 /* query heads that share each load of a key or value */

/* Defines scores and mix for a type of stored numbers. */
#define DEFINE_KV(type, number, load, load_part) \
    /* `count` heads (a constant) with one key */ \
    static inline __attribute__((always_inline)) void scores_##type(const qmi_cpu_scores *work, int32_t head, const int count, \
                                                                    int32_t j) \
    { \
        const number *key = (const number *)work->keys + (int64_t)j * work->head_size; \
        const float *query = work->query + head * work->query_stride; \
        vector sum[HEADS_TOGETHER]; \
        int32_t d = 0; \
        for (int h = 0; h < count; h++) \
            sum[h] = v_zero(); \
        for (; d + LANES <= work->head_size; d += LANES) { \
            vector k = load(key + d); \
            for (int h = 0; h < count; h++) \
                sum[h] = v_fma(v_load(query + h * work->query_stride + d), k, sum[h]); \
        } \
        if (d < work->head_size) { \
            vector k = load_part(key + d, work->head_size - d); \
            for (int h = 0; h < count; h++) \
                sum[h] = v_fma(v_load_part(query + h * work->query_stride + d, work->head_size - d), k, sum[h]); \
        } \
        for (int h = 0; h < count; h++) \
            work->score[(head + h) * work->score_stride + j] = work->scale * v_sum(sum[h]); \
    } \
    void NAME(scores_##type)(const qmi_cpu_scores *work) \
    { \
        int32_t head = 0; \
        for (; head + HEADS_TOGETHER <= work->heads; head += HEADS_TOGETHER) \
            for (int32_t j = 0; j < work->count; j++) \
                scores_##type(work, head, HEADS_TOGETHER, j); \
        for (; head < work->heads; head++) \
            for (int32_t j = 0; j < work->count; j++) \
                scores_##type(work, head, 1, j); \
    } \
    /* LANES dimensions (n of them) of `count` heads */ \
    static inline __attribute__((always_inline)) void mix_##type(const qmi_cpu_mix *work, int32_t head, const int count, \
                                                                 int32_t d, int64_t n) \
    { \
        const number *value = (const number *)work->values + d; \
        const float *weight = work->weight + head * work->weight_stride; \
        float *out = work->out + head * work->out_stride + d; \
        vector sum[HEADS_TOGETHER]; \
        for (int h = 0; h < count; h++) \
            sum[h] = v_load_part(out + h * work->out_stride, n); \
        for (int32_t j = 0; j < work->count; j++, value += work->head_size) { \
            vector v = n == LANES ? load(value) : load_part(value, n); \
            for (int h = 0; h < count; h++) \
                sum[h] = v_fma(v_all(weight[h * work->weight_stride + j]), v, sum[h]); \
        } \
        for (int h = 0; h < count; h++) \
            v_store_part(out + h * work->out_stride, sum[h], n); \
    } \
    void NAME(mix_##type)(const qmi_cpu_mix *work) \
    { \
        for (int32_t d = 0; d < work->head_size; d += LANES) { \
            int64_t n = work->head_size - d < LANES ? work->head_size - d : LANES; \
            int32_t head = 0; \
            for (; head + HEADS_TOGETHER <= work->heads; head += HEADS_TOGETHER) \
                mix_##type(work, head, HEADS_TOGETHER, d, n); \
            for (; head < work->heads; head++) \
                mix_##type(work, head, 1, d, n); \
        } \
    }

DEFINE_KV(f32, float, v_load, v_load_part)
DEFINE_KV(f16, uint16_t, v_load_half, v_load_half_part)

void NAME(store_f16)(const float *from, void *to, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        v_store_half_part((uint16_t *)to + i, v_load_part(from + i, n), n);
    }
}
