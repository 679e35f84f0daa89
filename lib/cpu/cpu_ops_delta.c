/* DELTA: the short convolution over time, the gated delta rule, the gated norm; and the state that goes on.
 *
 * Phase 1, by tokens and heads: convolve, normalise queries and keys, compute the gates. Phase 2, by value heads (or some columns
 * of one, when there are fewer heads than workers would like): the recurrence through the tokens in order; besides, the columns
 * that the next convolution needs. Then the gated norm of a head: at once if its columns were one item, else in a third phase. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_ops.h"

#define BLOCK_TOKENS 16  /* of a convolution item */
#define ITEM_HEADS 4     /* heads of a convolution item */
#define STATE_CHANNELS 2048 /* of an item that moves the convolution's columns on */
#define COLUMNS_MIN 32   /* of a part of a head: two cache lines */
#define KEY_EPSILON 1e-6f

typedef struct delta_room {
    float *mixed;        /* shared [n][channels], after the convolution */
    float *beta, *decay; /* shared [n][value_heads] */
} delta_room;

static int64_t key_width(const qmi_op_delta *op)
{
    return (int64_t)op->key_heads * op->key_size;
}

static int64_t channels_of(const qmi_op_delta *op)
{
    return 2 * key_width(op) + (int64_t)op->value_heads * op->value_size;
}

static delta_room delta_lay_out(const qmi_op_delta *op, int32_t rows, qmi_cpu_room *shared)
{
    float *mixed = qmi_cpu_take(shared, rows * channels_of(op), sizeof(float));
    float *beta = qmi_cpu_take(shared, (int64_t)rows * op->value_heads, sizeof(float));
    float *decay = qmi_cpu_take(shared, (int64_t)rows * op->value_heads, sizeof(float));
    return (delta_room){ mixed, beta, decay };
}

static void lay_out_delta(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads, (void)own;
    delta_lay_out(&op->delta, rows, shared);
}

static float *columns_of_state(const qmi_op_delta *op, qmi_address state)
{
    return (float *)(void *)((char *)(uintptr_t)state + op->state_offset);
}

/* S [key_size][value_size] of a value head. */
static float *matrix_of_state(const qmi_op_delta *op, qmi_address state, int32_t head)
{
    return columns_of_state(op, state) + (op->taps - 1) * channels_of(op) + (int64_t)head * op->key_size * op->value_size;
}

/* ---- Phase 1 ---- */

static float softplus(float x)
{
    return x > 20 ? x : log1pf(expf(x)); /* beyond 20 the difference is below half a unit in the last place */
}

/* beta = sigmoid(b), decay = exp(rate * softplus(a + bias)) of one value head. */
static void gates(const qmi_cpu_worker *w, const qmi_op_delta *op, const delta_room *room, int64_t row, int32_t head)
{
    float b, a;
    if (op->interleaved) {
        int32_t per_key = op->value_heads / op->key_heads;
        const float *of_key_head = qmi_cpu_row(w, op->beta, row) + (int64_t)(head / per_key) * 2 * per_key;
        b = of_key_head[head % per_key];
        a = of_key_head[per_key + head % per_key];
    } else {
        b = qmi_cpu_row(w, op->beta, row)[head];
        a = qmi_cpu_row(w, op->alpha, row)[head];
    }
    float *beta = room->beta + row * op->value_heads + head;
    *beta = 1;
    w->kernels->sigmoid_mul(&b, beta, 1);
    float rate = qmi_cpu_floats(&op->decay)[head], bias = qmi_cpu_floats(&op->time_bias)[head];
    room->decay[row * op->value_heads + head] = expf(rate * softplus(a + bias));
}

/* Where the channels of head h begin: queries, then keys, then values. */
static int64_t head_channel(const qmi_op_delta *op, int32_t h)
{
    int32_t keys = 2 * op->key_heads;
    return h < keys ? (int64_t)h * op->key_size : 2 * key_width(op) + (int64_t)(h - keys) * op->value_size;
}

/* The tokens [from, from + count) of a sequence, one head's channels. */
static void convolve_head(const qmi_cpu_worker *w, const qmi_op_delta *op, const delta_room *room, const qmi_sequence *sequence,
                          int32_t from, int32_t count, int32_t h)
{
    int64_t channels = channels_of(op), channel = head_channel(op, h);
    bool is_value = h >= 2 * op->key_heads;
    float scale = h < op->key_heads ? 1 / sqrtf((float)op->key_size) : 1; /* of queries */
    const float *before = columns_of_state(op, sequence->state), *columns[BLOCK_TOKENS + QMI_TAPS_MAX - 1];
    for (int32_t i = 0; i < count + op->taps - 1; i++) {
        int64_t time = (int64_t)from + i - (op->taps - 1); /* in the batch; those before it are in the state */
        columns[i] = (time < 0 ? before + (time + op->taps - 1) * channels
                               : qmi_cpu_row(w, op->qkv, sequence->first + time)) + channel;
    }
    float *out = room->mixed + (sequence->first + from) * channels + channel;
    w->kernels->convolve(&(qmi_cpu_convolution){
        .columns = columns, .weights = qmi_cpu_floats(&op->convolution) + channel * op->taps, .out = out, .out_stride = channels,
        .channels = is_value ? op->value_size : op->key_size, .taps = op->taps, .tokens = count });
    for (int32_t t = 0; t < count; t++) {
        if (is_value)
            gates(w, op, room, sequence->first + from + t, h - 2 * op->key_heads);
        else
            w->kernels->unit(out + t * channels, KEY_EPSILON, scale, op->key_size);
    }
}

/* Which sequence and which of its token blocks; blocks of all sequences are one list. */
static const qmi_sequence *find_block(const qmi_batch *batch, int64_t *block)
{
    const qmi_sequence *sequence = batch->sequences;
    for (; *block >= qmi_cpu_ceil(sequence->count, BLOCK_TOKENS); sequence++)
        *block -= qmi_cpu_ceil(sequence->count, BLOCK_TOKENS);
    return sequence;
}

static int64_t count_blocks(const qmi_batch *batch)
{
    int64_t blocks = 0;
    for (int32_t s = 0; s < batch->sequence_count; s++)
        blocks += qmi_cpu_ceil(batch->sequences[s].count, BLOCK_TOKENS);
    return blocks;
}

static void convolve_all(qmi_cpu_worker *w, const qmi_op_delta *op, const delta_room *room)
{
    int32_t heads = 2 * op->key_heads + op->value_heads;
    int64_t groups = qmi_cpu_ceil(heads, ITEM_HEADS);
    for (int64_t item; qmi_cpu_next(w, count_blocks(w->batch) * groups, &item);) {
        int64_t block = item / groups;
        const qmi_sequence *sequence = find_block(w->batch, &block);
        int32_t from = (int32_t)block * BLOCK_TOKENS, first = (int32_t)(item % groups) * ITEM_HEADS;
        for (int32_t h = first; h < heads && h < first + ITEM_HEADS; h++)
            convolve_head(w, op, room, sequence, from, (int32_t)qmi_cpu_least(BLOCK_TOKENS, sequence->count - from), h);
    }
}

/* ---- Phase 2 ---- */

static void advance_head(const qmi_cpu_worker *w, const qmi_op_delta *op, const delta_room *room, const qmi_sequence *sequence,
                         int32_t head, int32_t column, int32_t columns)
{
    int64_t channels = channels_of(op), inner = (int64_t)op->value_heads * op->value_size;
    int32_t key_head = op->grouped ? head / (op->value_heads / op->key_heads) : head % op->key_heads;
    const float *mixed = room->mixed + sequence->first * channels;
    w->kernels->delta(&(qmi_cpu_delta){
        .state = matrix_of_state(op, sequence->state, head) + column,
        .next_state = matrix_of_state(op, sequence->next_state, head) + column,
        .state_stride = op->value_size,
        .query = mixed + (int64_t)key_head * op->key_size,
        .key = mixed + key_width(op) + (int64_t)key_head * op->key_size,
        .value = mixed + 2 * key_width(op) + (int64_t)head * op->value_size + column,
        .decay = room->decay + (int64_t)sequence->first * op->value_heads + head,
        .beta = room->beta + (int64_t)sequence->first * op->value_heads + head,
        .out = qmi_cpu_row(w, op->out, sequence->first) + (int64_t)head * op->value_size + column,
        .key_stride = channels, .value_stride = channels, .gate_stride = op->value_heads, .out_stride = inner,
        .key_size = op->key_size, .columns = columns, .tokens = sequence->count });
}

/* out = rms(o) * silu(z) of one head, tokens [from, from + count) of the batch. */
static void gated_norm(const qmi_cpu_worker *w, const qmi_op_delta *op, int32_t head, int64_t from, int64_t count)
{
    for (int64_t row = from; row < from + count; row++) {
        float *out = qmi_cpu_row(w, op->out, row) + (int64_t)head * op->value_size;
        if (op->norm.weight.data)
            w->kernels->rms(out, qmi_cpu_floats(&op->norm.weight), op->norm.epsilon, out, op->value_size);
        w->kernels->silu_mul(qmi_cpu_row(w, op->z, row) + (int64_t)head * op->value_size, out, out, op->value_size);
    }
}

/* The convolution's last columns, for channels [first, first + count). */
static void keep_columns(const qmi_cpu_worker *w, const qmi_op_delta *op, const qmi_sequence *sequence, int64_t first,
                         int64_t count)
{
    int64_t channels = channels_of(op);
    const float *before = columns_of_state(op, sequence->state) + first;
    float *after = columns_of_state(op, sequence->next_state) + first;
    for (int32_t i = 0; i < op->taps - 1; i++) { /* ascending, so that what moves to the front is still there */
        int64_t time = (int64_t)sequence->count + i - (op->taps - 1);
        const float *from = time < 0 ? before + (time + op->taps - 1) * channels
                                     : qmi_cpu_row(w, op->qkv, sequence->first + time) + first;
        memcpy(after + i * channels, from, (size_t)count * sizeof *after);
    }
}

/* Columns of a value head that are one item. */
static int32_t part_of_head(const qmi_cpu_worker *w, const qmi_op_delta *op)
{
    int64_t heads = (int64_t)w->batch->sequence_count * op->value_heads;
    int32_t columns = op->value_size;
    while (columns >= 2 * COLUMNS_MIN && heads * qmi_cpu_ceil(op->value_size, columns) < 2 * (int64_t)w->threads)
        columns = (int32_t)qmi_cpu_ceil(columns / 2, COLUMNS_MIN) * COLUMNS_MIN;
    return columns;
}

static void run_delta(qmi_cpu_worker *w, const qmi_op *operation)
{
    const qmi_op_delta *op = &operation->delta;
    const qmi_batch *batch = w->batch;
    qmi_cpu_room shared = { w->shared, 0 };
    delta_room room = delta_lay_out(op, batch->count, &shared);
    convolve_all(w, op, &room);
    qmi_cpu_barrier(w);

    int32_t columns = part_of_head(w, op);
    int64_t parts = qmi_cpu_ceil(op->value_size, columns), heads = op->value_heads * parts;
    int64_t moves = qmi_cpu_ceil(channels_of(op), STATE_CHANNELS), per_sequence = heads + moves;
    for (int64_t item; qmi_cpu_next(w, batch->sequence_count * per_sequence, &item);) {
        const qmi_sequence *sequence = &batch->sequences[item / per_sequence];
        int64_t index = item % per_sequence;
        if (index >= heads) {
            int64_t first = (index - heads) * STATE_CHANNELS;
            keep_columns(w, op, sequence, first, qmi_cpu_least(STATE_CHANNELS, channels_of(op) - first));
            continue;
        }
        int32_t column = (int32_t)(index % parts) * columns;
        advance_head(w, op, &room, sequence, (int32_t)(index / parts), column,
                     (int32_t)qmi_cpu_least(columns, op->value_size - column));
        if (parts == 1)
            gated_norm(w, op, (int32_t)index, sequence->first, sequence->count);
    }
    if (parts == 1)
        return;
    qmi_cpu_barrier(w);
    for (int64_t head; qmi_cpu_next(w, op->value_heads, &head);)
        gated_norm(w, op, (int32_t)head, 0, batch->count);
}

const qmi_cpu_op qmi_cpu_op_delta = { lay_out_delta, run_delta };
