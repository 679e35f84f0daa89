/* Attention: rotation, scores, the pieces of a softmax, and the weighted sum of values. */
#include <math.h>
#include <string.h>

#include "cpu/scalar/scalar.h"

#define PIECE 128 /* values converted at a time */

/* `count` stored numbers as floats: F32 where they are, F16 through `buffer`. */
static const float *as_floats(const void *from, int32_t count, bool half, float buffer[PIECE])
{
    const uint16_t *halves = from;
    if (!half)
        return from;
    for (int32_t i = 0; i < count; i++)
        buffer[i] = qmi_half_to_float(halves[i]);
    return buffer;
}

static void scores(const qmi_cpu_scores *work, bool half)
{
    for (int32_t j = 0; j < work->count; j++) {
        for (int32_t h = 0; h < work->heads; h++) {
            const float *query = work->query + h * work->query_stride;
            double sum = 0;
            for (int32_t first = 0; first < work->head_size; first += PIECE) {
                float buffer[PIECE];
                int32_t size = work->head_size - first < PIECE ? work->head_size - first : PIECE;
                const char *head = (const char *)work->keys + ((int64_t)j * work->head_size + first) * (half ? 2 : 4);
                const float *key = as_floats(head, size, half, buffer);
                for (int32_t d = 0; d < size; d++)
                    sum += (double)query[first + d] * key[d];
            }
            work->score[h * work->score_stride + j] = work->scale * (float)sum;
        }
    }
}

static void mix(const qmi_cpu_mix *work, bool half)
{
    for (int32_t j = 0; j < work->count; j++) {
        for (int32_t first = 0; first < work->head_size; first += PIECE) {
            float buffer[PIECE];
            int32_t size = work->head_size - first < PIECE ? work->head_size - first : PIECE;
            const char *head = (const char *)work->values + ((int64_t)j * work->head_size + first) * (half ? 2 : 4);
            const float *value = as_floats(head, size, half, buffer);
            for (int32_t h = 0; h < work->heads; h++) {
                float *out = work->out + h * work->out_stride + first;
                float weight = work->weight[h * work->weight_stride + j];
                for (int32_t d = 0; d < size; d++)
                    out[d] += weight * value[d];
            }
        }
    }
}

void qmi_scalar_scores_f32(const qmi_cpu_scores *work)
{
    scores(work, false);
}

void qmi_scalar_scores_f16(const qmi_cpu_scores *work)
{
    scores(work, true);
}

void qmi_scalar_mix_f32(const qmi_cpu_mix *work)
{
    mix(work, false);
}

void qmi_scalar_mix_f16(const qmi_cpu_mix *work)
{
    mix(work, true);
}

void qmi_scalar_store_f32(const float *from, void *to, int64_t count)
{
    memcpy(to, from, (size_t)count * sizeof *from);
}

void qmi_scalar_store_f16(const float *from, void *to, int64_t count)
{
    uint16_t *halves = to;
    for (int64_t i = 0; i < count; i++)
        halves[i] = qmi_float_to_half(from[i]);
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
