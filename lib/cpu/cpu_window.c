/* The window of tokens that are not packed yet: see cpu_window.h. */
#include "cpu/cpu_window.h"

#include <string.h>
#include "quant/quant.h"

qmi_cpu_window qmi_cpu_window_lay_out(const qmi_op_attend *op, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    int64_t heads = op->window ? (int64_t)rows * op->kv_heads * op->head_size : 0;
    int64_t queries = op->key_type == QMI_KV_Q2 ? (int64_t)rows * op->heads * op->head_size : 0; /* the plan knows no address */
    int64_t group = op->window ? (int64_t)QMI_KV_GROUP * op->head_size : 0;
    qmi_cpu_window window = { .rows = rows };
    window.keys = qmi_cpu_take(shared, heads, sizeof *window.keys);
    window.values = qmi_cpu_take(shared, heads, sizeof *window.values);
    window.turned = qmi_cpu_take(shared, queries, sizeof *window.turned);
    window.group = qmi_cpu_take(own, 2 * group, sizeof *window.group);
    return window;
}

/* ---- where things lie ---- */

const qmi_sequence *qmi_cpu_sequence_of(const qmi_batch *batch, int64_t row)
{
    const qmi_sequence *sequence = batch->sequences;
    while (row >= sequence->first + sequence->count)
        sequence++;
    return sequence;
}

static qmi_kv_type type_of(const qmi_op_attend *op, qmi_cpu_part part)
{
    return part == QMI_CPU_KEYS ? op->key_type : op->value_type;
}

static bool has_groups(const qmi_op_attend *op, qmi_cpu_part part)
{
    return part == QMI_CPU_KEYS && op->key_type == QMI_KV_Q2;
}

void *qmi_cpu_stored(const qmi_op_attend *op, const qmi_sequence *sequence, qmi_cpu_part part, int32_t kv_head, int64_t position)
{
    char *page = (char *)(uintptr_t)sequence->pages[position / op->page_tokens];
    int64_t token = has_groups(op, part) ? 0 : position % op->page_tokens;
    int64_t head = (int64_t)kv_head * op->page_tokens + token;
    return page + (part == QMI_CPU_KEYS ? op->key_offset : op->value_offset) +
           head * qmi_kv_head_bytes(type_of(op, part), op->head_size);
}

static int64_t ring_tokens(const qmi_op_attend *op)
{
    return op->window + QMI_KV_GROUP;
}

static uint16_t *in_ring(const qmi_op_attend *op, qmi_address state, qmi_cpu_part part, int32_t kv_head, int64_t position)
{
    uint16_t *ring = (uint16_t *)(uintptr_t)(state + (qmi_address)op->window_offset);
    int64_t head = (part == QMI_CPU_KEYS ? 0 : op->kv_heads) + kv_head;
    return ring + (head * ring_tokens(op) + position % ring_tokens(op)) * op->head_size;
}

/* A token's f16, which is not packed when the batch begins. */
static uint16_t *in_window(const qmi_op_attend *op, const qmi_cpu_window *window, const qmi_sequence *sequence, qmi_cpu_part part,
                           int32_t kv_head, int64_t position)
{
    if (position < sequence->start)
        return in_ring(op, sequence->state, part, kv_head, position);
    return qmi_cpu_window_row(op, window, part == QMI_CPU_KEYS ? window->keys : window->values,
                              sequence->first + position - sequence->start, kv_head);
}

qmi_cpu_run qmi_cpu_run_of(const qmi_op_attend *op, const qmi_cpu_window *window, const qmi_sequence *sequence,
                           qmi_cpu_part part, int32_t kv_head, int64_t position, int64_t most, int64_t tokens)
{
    if (!op->window || position < qmi_kv_packed(op->window, tokens)) {
        int64_t left = op->page_tokens - position % op->page_tokens;
        return (qmi_cpu_run){ qmi_cpu_stored(op, sequence, part, kv_head, position), type_of(op, part),
                              (int32_t)qmi_cpu_least(most, left) };
    }
    int64_t left = most;
    if (position < sequence->start)
        left = qmi_cpu_least(sequence->start - position, ring_tokens(op) - position % ring_tokens(op));
    return (qmi_cpu_run){ in_window(op, window, sequence, part, kv_head, position), QMI_KV_F16,
                          (int32_t)qmi_cpu_least(most, left) };
}

/* ---- queries ---- */

void qmi_cpu_window_turn(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window, int64_t row,
                            int32_t kv_head)
{
    int32_t size = op->head_size, group = op->heads / op->kv_heads;
    const float *query = qmi_cpu_row(w, op->out, row) + (int64_t)kv_head * group * size;
    const qmi_cpu_tile tile = { .weights = qmi_cpu_floats(&op->correction) + (2 * kv_head + 1) * (int64_t)size * size,
                                .row_bytes = size * (int64_t)sizeof(float), .columns = size, .inputs = query,
                                .input_bytes = size * (int64_t)sizeof(float),
                                .out = qmi_cpu_window_query(op, window, row, kv_head), .out_stride = size, .rows = size,
                                .tokens = group };
    w->kernels->dot[QMI_TYPE_F32](&tile);
}

/* ---- packing ---- */

/* sums += x x^T */
static void add_square(const float *x, double *sums, int32_t size)
{
    for (int32_t i = 0; i < size; i++)
        for (int32_t j = 0; j < size; j++)
            sums[(int64_t)i * size + j] += (double)x[i] * x[j];
}

static double *moments_of(const qmi_op_attend *op, int32_t kv_head)
{
    return (double *)(uintptr_t)op->moments + 2 * (int64_t)kv_head * op->head_size * op->head_size;
}

static void add_keys(const qmi_op_attend *op, const float *keys, int32_t kv_head)
{
    int32_t size = op->head_size;
    float mean[QMI_HEAD_SIZE_MAX] = { 0 }, x[QMI_HEAD_SIZE_MAX];
    for (int32_t t = 0; t < QMI_KV_GROUP; t++)
        for (int32_t d = 0; d < size; d++)
            mean[d] += keys[(int64_t)t * size + d] / QMI_KV_GROUP;
    for (int32_t t = 0; t < QMI_KV_GROUP; t++) {
        for (int32_t d = 0; d < size; d++)
            x[d] = keys[(int64_t)t * size + d] - mean[d];
        add_square(x, moments_of(op, kv_head), size);
    }
}

static void add_queries(const qmi_cpu_worker *w, const qmi_op_attend *op, int32_t kv_head)
{
    int32_t size = op->head_size, group = op->heads / op->kv_heads;
    for (int32_t row = 0; row < w->batch->count; row++)
        for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            add_square(qmi_cpu_row(w, op->out, row) + (int64_t)h * size, moments_of(op, kv_head) + (int64_t)size * size, size);
}

static void pack_keys(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window, int32_t kv_head, void *to)
{
    int32_t size = op->head_size;
    float *keys = window->group, *turned = keys + (int64_t)QMI_KV_GROUP * size;
    if (op->moments)
        add_keys(op, keys, kv_head);
    if (op->correction.data)
        w->kernels->dot[QMI_TYPE_F32](&(qmi_cpu_tile){
            .weights = qmi_cpu_floats(&op->correction) + 2 * kv_head * (int64_t)size * size,
            .row_bytes = size * (int64_t)sizeof(float), .columns = size, .inputs = keys,
            .input_bytes = size * (int64_t)sizeof(float), .out = turned, .out_stride = size, .rows = size,
            .tokens = QMI_KV_GROUP });
    qmi_kv_pack_group(op->correction.data ? turned : keys, to, size);
}

/* The tokens [first, first + QMI_KV_GROUP) of a sequence. */
static void pack_part(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window,
                      const qmi_sequence *sequence, qmi_cpu_part part, int32_t kv_head, int64_t first)
{
    int32_t size = op->head_size;
    for (int32_t t = 0; t < QMI_KV_GROUP; t++) {
        const uint16_t *from = in_window(op, window, sequence, part, kv_head, first + t);
        float *to = window->group + (int64_t)t * size;
        for (int32_t d = 0; d < size; d++)
            to[d] = qmi_half_to_float(from[d]);
        if (!has_groups(op, part))
            w->kernels->kv[type_of(op, part)].store(to, qmi_cpu_stored(op, sequence, part, kv_head, first + t), size);
    }
    if (has_groups(op, part))
        pack_keys(w, op, window, kv_head, qmi_cpu_stored(op, sequence, part, kv_head, first));
}

/* An item is what one key-value head has of a sequence, so that moments are summed by one worker, in the order of the tokens; or
 * of one of its groups. */
void qmi_cpu_window_pack(qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window)
{
    int64_t heads = 2 * (int64_t)op->kv_heads, groups = 0;
    for (int32_t s = 0; s < w->batch->sequence_count; s++) {
        const qmi_sequence *sequence = &w->batch->sequences[s];
        int64_t packed = qmi_kv_packed(op->window, sequence->start);
        groups += (qmi_kv_packed(op->window, sequence->start + sequence->count) - packed) / QMI_KV_GROUP;
    }
    if (groups == 0)
        return;
    for (int64_t item; qmi_cpu_next(w, op->moments ? heads : groups * heads, &item);) {
        int64_t index = 0;
        for (int32_t s = 0; s < w->batch->sequence_count; s++) {
            const qmi_sequence *sequence = &w->batch->sequences[s];
            int64_t end = qmi_kv_packed(op->window, sequence->start + sequence->count);
            for (int64_t first = qmi_kv_packed(op->window, sequence->start); first < end; first += QMI_KV_GROUP, index++)
                if (op->moments || index == item / heads)
                    pack_part(w, op, window, sequence, item % heads < op->kv_heads ? QMI_CPU_KEYS : QMI_CPU_VALUES,
                              (int32_t)(item % op->kv_heads), first);
        }
        if (op->moments && item < op->kv_heads)
            add_queries(w, op, (int32_t)item);
    }
    qmi_cpu_barrier(w);
}

/* ---- keeping ---- */

static void keep(const qmi_op_attend *op, const qmi_cpu_window *window, const qmi_sequence *sequence, qmi_cpu_part part,
                 int32_t kv_head)
{
    int64_t end = sequence->start + sequence->count;
    for (int64_t t = qmi_kv_packed(op->window, end); t < end; t++) {
        const uint16_t *from = in_window(op, window, sequence, part, kv_head, t);
        uint16_t *to = in_ring(op, sequence->next_state, part, kv_head, t);
        if (to != from)
            memcpy(to, from, (size_t)op->head_size * sizeof *to);
    }
}

void qmi_cpu_window_keep(qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window)
{
    int64_t heads = 2 * (int64_t)op->kv_heads;
    qmi_cpu_barrier(w);
    for (int64_t item; qmi_cpu_next(w, w->batch->sequence_count * heads, &item);)
        keep(op, window, &w->batch->sequences[item / heads], item % heads < op->kv_heads ? QMI_CPU_KEYS : QMI_CPU_VALUES,
             (int32_t)(item % op->kv_heads));
}
