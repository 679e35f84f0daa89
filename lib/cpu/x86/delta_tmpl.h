/* Bodies of the recurrent layers' kernels. Included after vector_*.h and float_tmpl.h (v_sigmoid). */
#include <stdbool.h>
#include <string.h>
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

/* Vectors of columns together. One token reads the state from memory, where whole cache lines of a row are best taken together;
 * several tokens find it in the first-level cache if so few columns of it are 16 KB (of 128 keys), and if these lie together:
 * rows of 128 floats are 512 bytes apart, and an eighth of the cache is for them. */
#define DELTA_VECTORS 4
#define DELTA_VECTORS_MANY 2
#define DELTA_TOKENS_MANY 4  /* from which copying there and back pays */
#define DELTA_KEYS_MANY 256

/* recalled = S^T key, before the decay */
ALWAYS void delta_recall(const qmi_cpu_delta *work, int32_t column, const int count, int64_t n, vector *recalled)
{
    const float *from = work->state + column;
    for (int v = 0; v < count; v++)
        recalled[v] = v_zero();
    for (int32_t i = 0; i < work->key_size; i++) {
        vector k = v_all(work->key[i]);
        for (int v = 0; v < count; v++)
            recalled[v] = v_fma(v_load_part(from + i * work->state_stride + v * LANES, n), k, recalled[v]);
    }
}

/* `count` (a constant) vectors of columns through one step; the last has n of LANES columns. Decay scales what the state recalls
 * rather than the state before that, which saves a product. While the new state passes, what the next token's key recalls of it
 * is summed up (last: there is none), in the same order as by delta_recall, so that a step reads and writes the state once: 4
 * operations a number. Several tokens in matrix form would need more than 3, and their number would change the bits. */
ALWAYS void delta_step(const qmi_cpu_delta *work, int32_t t, int32_t column, const int count, int64_t n, const bool last,
                        vector *recalled)
{
    const float *from = (t == 0 ? work->state : work->next_state) + column;
    float *to = work->next_state + column;
    const float *query = work->query + t * work->key_stride, *key = work->key + t * work->key_stride;
    const float *next_key = last ? key : key + work->key_stride;
    vector decay = v_all(work->decay[t * work->gate_stride]), beta = v_all(work->beta[t * work->gate_stride]);
    vector change[DELTA_VECTORS], out[DELTA_VECTORS], next[DELTA_VECTORS];
    for (int v = 0; v < count; v++) {
        vector value = v_load_part(work->value + t * work->value_stride + column + v * LANES, n);
        change[v] = v_mul(beta, v_sub(value, v_mul(decay, recalled[v])));
        out[v] = next[v] = v_zero();
    }
    for (int32_t i = 0; i < work->key_size; i++) {
        vector k = v_all(key[i]), q = v_all(query[i]), k_next = last ? v_zero() : v_all(next_key[i]);
        for (int v = 0; v < count; v++) {
            vector s = v_mul(v_load_part(from + i * work->state_stride + v * LANES, n), decay);
            s = v_fma(k, change[v], s);
            v_store_part(to + i * work->state_stride + v * LANES, s, n);
            out[v] = v_fma(s, q, out[v]);
            if (!last)
                next[v] = v_fma(s, k_next, next[v]);
        }
    }
    for (int v = 0; v < count; v++) {
        v_store_part(work->out + t * work->out_stride + column + v * LANES, out[v], n);
        recalled[v] = next[v];
    }
}

ALWAYS void delta_columns(const qmi_cpu_delta *work, int32_t column, const int count, int64_t n)
{
    vector recalled[DELTA_VECTORS];
    delta_recall(work, column, count, n, recalled);
    for (int32_t t = 0; t + 1 < work->tokens; t++)
        delta_step(work, t, column, count, n, false, recalled);
    delta_step(work, work->tokens - 1, column, count, n, true, recalled);
}

/* DELTA_VECTORS_MANY vectors of columns from `column` on, which lie together meanwhile. */
static void delta_together(const qmi_cpu_delta *work, int32_t column)
{
    enum { WIDTH = DELTA_VECTORS_MANY * LANES };
    _Alignas(64) float together[DELTA_KEYS_MANY * WIDTH];
    qmi_cpu_delta cut = *work;
    for (int32_t i = 0; i < work->key_size; i++)
        memcpy(together + i * WIDTH, work->state + column + i * work->state_stride, WIDTH * sizeof(float));
    cut.state = cut.next_state = together;
    cut.state_stride = WIDTH;
    cut.value += column;
    cut.out += column;
    delta_columns(&cut, 0, DELTA_VECTORS_MANY, LANES);
    for (int32_t i = 0; i < work->key_size; i++)
        memcpy(work->next_state + column + i * work->state_stride, together + i * WIDTH, WIDTH * sizeof(float));
}

void NAME(delta)(const qmi_cpu_delta *work)
{
    int32_t column = 0;
    const bool together = work->tokens >= DELTA_TOKENS_MANY && work->key_size <= DELTA_KEYS_MANY;
    for (; together && column + DELTA_VECTORS_MANY * LANES <= work->columns; column += DELTA_VECTORS_MANY * LANES)
        delta_together(work, column);
    for (; work->tokens == 1 && column + DELTA_VECTORS * LANES <= work->columns; column += DELTA_VECTORS * LANES)
        delta_columns(work, column, DELTA_VECTORS, LANES);
    for (; column + DELTA_VECTORS_MANY * LANES <= work->columns; column += DELTA_VECTORS_MANY * LANES)
        delta_columns(work, column, DELTA_VECTORS_MANY, LANES);
    for (; column < work->columns; column += LANES)
        delta_columns(work, column, 1, work->columns - column < LANES ? work->columns - column : LANES);
}
