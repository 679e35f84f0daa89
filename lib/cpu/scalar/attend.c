/* Attention: rotation, scores, the pieces of a softmax, and the weighted sum of values. */
#include <math.h>

#include "backend/op.h"
#include "cpu/scalar/scalar.h"

static void scores(const qmi_cpu_scores *work, qmi_kv_type type)
{
    const char *record = work->keys;
    float key[QMI_HEAD_SIZE_MAX];
    for (int32_t j = 0; j < work->count; j++, record += qmi_kv_head_bytes(type, work->head_size)) {
        qmi_kv_unpack(type, record, key, work->head_size);
        for (int32_t h = 0; h < work->heads; h++) {
            const float *query = work->query + h * work->query_stride;
            double sum = 0;
            for (int32_t d = 0; d < work->head_size; d++)
                sum += (double)query[d] * key[d];
            work->score[h * work->score_stride + j] = work->scale * (float)sum;
        }
    }
}

static void mix(const qmi_cpu_mix *work, qmi_kv_type type)
{
    const char *record = work->values;
    float value[QMI_HEAD_SIZE_MAX];
    for (int32_t j = 0; j < work->count; j++, record += qmi_kv_head_bytes(type, work->head_size)) {
        qmi_kv_unpack(type, record, value, work->head_size);
        for (int32_t h = 0; h < work->heads; h++) {
            float *out = work->out + h * work->out_stride;
            float weight = work->weight[h * work->weight_stride + j];
            for (int32_t d = 0; d < work->head_size; d++)
                out[d] += weight * value[d];
        }
    }
}

void qmi_scalar_scores_q2(const qmi_cpu_scores *work)
{
    float keys[QMI_KV_GROUP * QMI_HEAD_SIZE_MAX];
    qmi_kv_unpack_group(work->keys, keys, work->head_size);
    for (int32_t h = 0; h < work->heads; h++)
        for (int32_t j = 0; j < QMI_KV_GROUP; j++) {
            const float *query = work->query + h * work->query_stride, *key = keys + (int64_t)j * work->head_size;
            double sum = 0;
            for (int32_t d = 0; d < work->head_size; d++)
                sum += (double)query[d] * key[d];
            work->score[h * work->score_stride + j] = work->scale * (float)sum;
        }
}

#define DEFINE_MIX(stem, type) \
    void qmi_scalar_mix_##stem(const qmi_cpu_mix *work) { mix(work, type); } \
    void qmi_scalar_store_##stem(const float *from, void *to, int64_t count) { qmi_kv_pack(type, from, to, count); }

#define DEFINE_KV(stem, type) \
    void qmi_scalar_scores_##stem(const qmi_cpu_scores *work) { scores(work, type); } \
    DEFINE_MIX(stem, type)

DEFINE_KV(f32, QMI_KV_F32)
DEFINE_KV(f16, QMI_KV_F16)
DEFINE_KV(bf16, QMI_KV_BF16)
DEFINE_KV(q8_0, QMI_KV_Q8_0)
DEFINE_KV(q6, QMI_KV_Q6)
DEFINE_KV(q5, QMI_KV_Q5)
DEFINE_KV(q4_0, QMI_KV_Q4_0)
DEFINE_MIX(q2, QMI_KV_Q2)

/* x H, without its factor. */
static void butterflies(float *x, int32_t count)
{
    for (int32_t apart = 1; apart < count; apart *= 2)
        for (int32_t i = 0; i < count; i++)
            if (!(i & apart)) {
                float a = x[i], b = x[i + apart];
                x[i] = a + b;
                x[i + apart] = a - b;
            }
}

void qmi_scalar_spread(float *x, int32_t count)
{
    int32_t run = qmi_kv_rotation(count);
    float factor = 1 / sqrtf((float)run);
    for (int32_t first = 0; first < count; first += run) {
        for (int32_t i = 0; i < run; i++)
            x[first + i] = qmi_kv_sign((uint32_t)i) ? -x[first + i] : x[first + i];
        butterflies(x + first, run);
        for (int32_t i = 0; i < run; i++)
            x[first + i] *= factor;
    }
}

void qmi_scalar_gather(float *x, int32_t count)
{
    int32_t run = qmi_kv_rotation(count);
    float factor = 1 / sqrtf((float)run);
    for (int32_t first = 0; first < count; first += run) {
        butterflies(x + first, run);
        for (int32_t i = 0; i < run; i++)
            x[first + i] *= qmi_kv_sign((uint32_t)i) ? -factor : factor;
    }
}

void qmi_scalar_rotate(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

float qmi_scalar_maximum(const float *x, int64_t count)
{
    float largest = -INFINITY;
    for (int64_t i = 0; i < count; i++)
        if (x[i] > largest)
            largest = x[i];
    return largest;
}

float qmi_scalar_exp_sum(float *x, int64_t count, float shift)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        x[i] = expf(x[i] - shift);
        sum += x[i];
    }
    return (float)sum;
}

void qmi_scalar_blend(float *y, float a, const float *x, float b, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = a * y[i] + b * x[i];
}
