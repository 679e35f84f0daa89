/* The recurrent layers: short convolution, and the gated delta rule. */
#include "cpu/scalar/scalar.h"

void qmi_scalar_convolve(const qmi_cpu_convolution *work)
{
    for (int32_t t = 0; t < work->tokens; t++) {
        for (int32_t c = 0; c < work->channels; c++) {
            const float *weight = work->weights + (int64_t)c * work->taps;
            float sum = 0;
            for (int32_t i = 0; i < work->taps; i++)
                sum += weight[i] * work->columns[t + i][c];
            work->out[t * work->out_stride + c] = sum * qmi_scalar_sigmoid(sum);
        }
    }
}

/* One column of the state through one step. */
static void step(const qmi_cpu_delta *work, int32_t t, int32_t column)
{
    const float *from = (t == 0 ? work->state : work->next_state) + column;
    float *to = work->next_state + column;
    const float *query = work->query + t * work->key_stride, *key = work->key + t * work->key_stride;
    float decay = work->decay[t * work->gate_stride], beta = work->beta[t * work->gate_stride];
    float recalled = 0, out = 0;
    for (int32_t i = 0; i < work->key_size; i++) {
        to[i * work->state_stride] = from[i * work->state_stride] * decay;
        recalled += to[i * work->state_stride] * key[i];
    }
    float change = beta * (work->value[t * work->value_stride + column] - recalled);
    for (int32_t i = 0; i < work->key_size; i++) {
        to[i * work->state_stride] += key[i] * change;
        out += to[i * work->state_stride] * query[i];
    }
    work->out[t * work->out_stride + column] = out;
}

void qmi_scalar_delta(const qmi_cpu_delta *work)
{
    for (int32_t t = 0; t < work->tokens; t++)
        for (int32_t column = 0; column < work->columns; column++)
            step(work, t, column);
}
