/* Bodies of the recurrent layers' kernels. Included after vector_*.h and float_tmpl.h (v_sigmoid). */
#include "cpu/kernels.h"

/* LANES channels (n of them) at all times */
static void convolve_lanes(const qmi_cpu_convolution *work, int32_t c, int64_t n)
{
    enum { TAPS_MOST = 16 };
    vector weight[TAPS_MOST];
    for (int32_t i = 0; i < work->taps; i++)
        weight[i] = v_gather_part(work->weights + (int64_t)c * work->taps + i, work->taps, n);
    for (int32_t t = 0; t < work->tokens; t++) {
        vector sum = v_zero();
        for (int32_t i = 0; i < work->taps; i++)
            sum = v_fma(weight[i], v_load_part(work->columns[t + i] + c, n), sum);
        v_store_part(work->out + t * work->out_stride + c, v_mul(sum, v_sigmoid(sum)), n);
    }
}

void NAME(convolve)(const qmi_cpu_convolution *work)
{
    for (int32_t c = 0; c < work->channels; c += LANES)
        convolve_lanes(work, c, work->channels - c < LANES ? work->channels - c : LANES);
}

#define DELTA_VECTORS 4 /* vectors of columns together: enough independent sums to hide the latency of a fused multiply-add */

/* `count` (a constant) vectors of columns through one step; the last has n of LANES columns. Two passes over the state: what key
 * recalls, then the update with the query's answer. So few columns stay in the first-level cache between the two. */
static inline __attribute__((always_inline)) void delta_step(const qmi_cpu_delta *work, int32_t t, int32_t column,
                                                             const int count, int64_t n)
{
    const float *from = (t == 0 ? work->state : work->next_state) + column;
    float *to = work->next_state + column;
    const float *query = work->query + t * work->key_stride, *key = work->key + t * work->key_stride;
    vector decay = v_all(work->decay[t * work->gate_stride]), beta = v_all(work->beta[t * work->gate_stride]);
    vector recalled[DELTA_VECTORS], change[DELTA_VECTORS], out[DELTA_VECTORS];
    for (int v = 0; v < count; v++)
        recalled[v] = out[v] = v_zero();
    for (int32_t i = 0; i < work->key_size; i++) {
        vector k = v_all(key[i]);
        for (int v = 0; v < count; v++)
            recalled[v] = v_fma(v_mul(v_load_part(from + i * work->state_stride + v * LANES, n), decay), k, recalled[v]);
    }
    for (int v = 0; v < count; v++)
        change[v] = v_mul(beta, v_sub(v_load_part(work->value + t * work->value_stride + column + v * LANES, n), recalled[v]));
    for (int32_t i = 0; i < work->key_size; i++) {
        vector k = v_all(key[i]), q = v_all(query[i]);
        for (int v = 0; v < count; v++) {
            vector s = v_mul(v_load_part(from + i * work->state_stride + v * LANES, n), decay);
            s = v_fma(k, change[v], s);
            v_store_part(to + i * work->state_stride + v * LANES, s, n);
            out[v] = v_fma(s, q, out[v]);
        }
    }
    for (int v = 0; v < count; v++)
        v_store_part(work->out + t * work->out_stride + column + v * LANES, out[v], n);
}

void NAME(delta)(const qmi_cpu_delta *work)
{
    int32_t column = 0;
    for (; column + DELTA_VECTORS * LANES <= work->columns; column += DELTA_VECTORS * LANES)
        for (int32_t t = 0; t < work->tokens; t++)
            delta_step(work, t, column, DELTA_VECTORS, LANES);
    for (; column < work->columns; column += LANES)
        for (int32_t t = 0; t < work->tokens; t++)
            delta_step(work, t, column, 1, work->columns - column < LANES ? work->columns - column : LANES);
}
