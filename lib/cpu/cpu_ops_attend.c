/* ATTEND: normalise, rotate and append; then attention over the pages.
 *
 * The softmax is taken span by span: the tokens at positions [256 s, 256 (s + 1)) give a maximum, a sum of exponentials and a
 * weighted sum of values, and these are merged in ascending order of s. That order depends on nothing but positions, so the bits
 * are the same whether one worker does all spans of a row or many share them, and however a prompt was cut into batches. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_attend_block.h"
#include "cpu/cpu_window.h"

#define SPAN QMI_CPU_SPAN /* tokens; keys of 256 halves make 128 KB, which stay in the second-level cache for a block of rows */
#define PARTIALS_MAX 128 /* spans computed between two barriers when workers share a row's spans */

/* The softmax so far of a key-value head's query heads. */
typedef struct partial {
    float *largest, *sum, *out; /* [group], [group], [group][head_size] */
} partial;

typedef struct attend_room {
    float *scores;       /* own [group][SPAN] */
    float *span;         /* own partial */
    float *running;      /* own [rows of a block] partials */
    float *rows;         /* shared [fewest rows * kv_heads] partials: a row's result so far */
    float *spans;        /* shared [PARTIALS_MAX] partials */
    qmi_cpu_attend_block block; /* own */
    qmi_cpu_window window;
} attend_room;

static int64_t partial_size(const qmi_op_attend *op)
{
    return (int64_t)(op->heads / op->kv_heads) * (op->head_size + 2);
}

static partial partial_at(const qmi_op_attend *op, float *from, int64_t index)
{
    int32_t group = op->heads / op->kv_heads;
    float *at = from + index * partial_size(op);
    return (partial){ at, at + group, at + 2 * group };
}

/* With so few (row, key-value head) pairs the workers share the spans of each. */
static bool shares_spans(const qmi_op_attend *op, int32_t rows, int32_t threads)
{
    return (int64_t)rows * op->kv_heads < 2 * (int64_t)threads;
}

static attend_room attend_lay_out(const qmi_op_attend *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    int64_t size = partial_size(op), pairs = qmi_cpu_least((int64_t)rows * op->kv_heads, 2 * (int64_t)threads);
    attend_room room = { 0 };
    room.scores = qmi_cpu_take(own, (int64_t)(op->heads / op->kv_heads) * SPAN, sizeof(float));
    room.span = qmi_cpu_take(own, size, sizeof(float));
    room.running = qmi_cpu_take(own, qmi_cpu_attend_block_rows(op) * size, sizeof(float));
    room.rows = qmi_cpu_take(shared, pairs * size, sizeof(float));
    room.spans = qmi_cpu_take(shared, PARTIALS_MAX * size, sizeof(float));
    room.block = qmi_cpu_attend_block_lay_out(op, own);
    room.window = qmi_cpu_window_lay_out(op, rows, shared, own);
    return room;
}

static void lay_out_attend(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    attend_lay_out(&op->attend, rows, threads, shared, own);
}

/* ---- Phase 1: queries into the slot `out`, keys and values into their page ---- */

static void turn(qmi_cpu_worker *w, const qmi_op_attend *op, float *head, int64_t position)
{
    qmi_cpu_rotation *rotation = &w->rotation;
    if (op->rotary == 0)
        return;
    if (rotation->position != position || rotation->frequency != op->inverse_frequency.data) {
        const float *frequency = qmi_cpu_floats(&op->inverse_frequency);
        for (int32_t i = 0; i < op->rotary / 2; i++) {
            float angle = (float)position * frequency[i];
            rotation->cosine[i] = cosf(angle);
            rotation->sine[i] = sinf(angle);
        }
        rotation->position = position;
        rotation->frequency = op->inverse_frequency.data;
    }
    w->kernels->rotate(head, rotation->cosine, rotation->sine, op->rotary / 2);
}

static void prepare_head(qmi_cpu_worker *w, const qmi_op_attend *op, const float *from, const qmi_norm *norm, int64_t position,
                         float *to)
{
    if (norm->weight.data)
        w->kernels->rms(from, qmi_cpu_floats(&norm->weight), norm->epsilon, to, op->head_size);
    else
        memcpy(to, from, (size_t)op->head_size * sizeof *to);
    turn(w, op, to, position);
    if (op->rotate_keys)
        w->kernels->spread(to, op->head_size);
}

static void append(qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room, int64_t row, int32_t kv_head)
{
    const qmi_sequence *sequence = qmi_cpu_sequence_of(w->batch, row);
    int64_t position = sequence->start + row - sequence->first;
    int32_t group = op->heads / op->kv_heads, size = op->head_size;
    int64_t step = op->gated ? 2 * size : size;
    const float *value = qmi_cpu_row(w, op->value, row) + (int64_t)kv_head * size;
    float head[QMI_HEAD_SIZE_MAX];
    for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h++)
        prepare_head(w, op, qmi_cpu_row(w, op->query, row) + h * step, &op->query_norm, position,
                     qmi_cpu_row(w, op->out, row) + (int64_t)h * size);
    prepare_head(w, op, qmi_cpu_row(w, op->key, row) + (int64_t)kv_head * size, &op->key_norm, position, head);
    if (op->window)
        w->kernels->kv[QMI_KV_F16].store(head, qmi_cpu_window_row(op, &room->window, room->window.keys, row, kv_head), size);
    else
        w->kernels->kv[op->key_type].store(head, qmi_cpu_stored(op, sequence, QMI_CPU_KEYS, kv_head, position), size);
    if (op->rotate_values) {
        memcpy(head, value, (size_t)size * sizeof *head);
        w->kernels->spread(head, size);
        value = head;
    }
    if (op->window)
        w->kernels->kv[QMI_KV_F16].store(value, qmi_cpu_window_row(op, &room->window, room->window.values, row, kv_head), size);
    else
        w->kernels->kv[op->value_type].store(value, qmi_cpu_stored(op, sequence, QMI_CPU_VALUES, kv_head, position), size);
    if (op->correction.data)
        qmi_cpu_window_turn(w, op, &room->window, row, kv_head);
}

/* ---- Phase 2 ---- */

/* A row's query heads of one key-value head, and the tokens that it sees. */
typedef struct attend_query {
    const qmi_sequence *sequence;
    int64_t row, tokens;
    int32_t kv_head;
} attend_query;

static float *queries(const qmi_cpu_worker *w, const qmi_op_attend *op, int64_t row, int32_t kv_head)
{
    return qmi_cpu_row(w, op->out, row) + (int64_t)kv_head * (op->heads / op->kv_heads) * op->head_size;
}

/* With the tokens [first, first + count) of a span; they may lie in several runs. */
static void attend_span(const qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room, const attend_query *q,
                        int64_t first, int32_t count, partial to)
{
    int32_t group = op->heads / op->kv_heads, size = op->head_size;
    const float *query = queries(w, op, q->row, q->kv_head);
    const float *turned = op->correction.data ? qmi_cpu_window_query(op, &room->window, q->row, q->kv_head) : query;
    qmi_cpu_run run;
    for (int32_t done = 0; done < count; done += run.count) {
        run = qmi_cpu_run_of(op, &room->window, q->sequence, QMI_CPU_KEYS, q->kv_head, first + done, count - done, q->tokens);
        w->kernels->kv[run.type].scores(
            &(qmi_cpu_scores){ .query = run.type == QMI_KV_Q2 ? turned : query, .keys = run.records,
                               .score = room->scores + done, .query_stride = size,
                               .score_stride = SPAN, .heads = group, .head_size = size, .count = run.count,
                               .scale = 1 / sqrtf((float)size) });
    }
    for (int32_t h = 0; h < group; h++) {
        to.largest[h] = w->kernels->maximum(room->scores + h * SPAN, count);
        to.sum[h] = w->kernels->exp_sum(room->scores + h * SPAN, count, to.largest[h]);
    }
    memset(to.out, 0, (size_t)group * (size_t)size * sizeof *to.out);
    for (int32_t done = 0; done < count; done += run.count) {
        run = qmi_cpu_run_of(op, &room->window, q->sequence, QMI_CPU_VALUES, q->kv_head, first + done, count - done, q->tokens);
        w->kernels->kv[run.type].mix(
            &(qmi_cpu_mix){ .weight = room->scores + done, .values = run.records, .out = to.out, .weight_stride = SPAN,
                            .out_stride = size, .heads = group, .head_size = size, .count = run.count });
    }
}

/* Adds a span to what its predecessors gave; the first one is taken as it is. */
static void merge(const qmi_cpu_worker *w, const qmi_op_attend *op, partial to, partial span, bool first)
{
    int32_t group = op->heads / op->kv_heads, size = op->head_size;
    if (first) {
        memcpy(to.largest, span.largest, (size_t)group * sizeof(float));
        memcpy(to.sum, span.sum, (size_t)group * sizeof(float));
        memcpy(to.out, span.out, (size_t)group * (size_t)size * sizeof(float));
        return;
    }
    for (int32_t h = 0; h < group; h++) {
        float largest = to.largest[h] > span.largest[h] ? to.largest[h] : span.largest[h];
        float before = expf(to.largest[h] - largest), now = expf(span.largest[h] - largest);
        to.largest[h] = largest;
        to.sum[h] = to.sum[h] * before + span.sum[h] * now;
        w->kernels->blend(to.out + (int64_t)h * size, before, span.out + (int64_t)h * size, now, size);
    }
}

/* The row's result: divided by the sum, gated. Overwrites the queries in the slot. */
static void finish(const qmi_cpu_worker *w, const qmi_op_attend *op, int64_t row, int32_t kv_head, partial from)
{
    int32_t group = op->heads / op->kv_heads, size = op->head_size;
    for (int32_t h = 0; h < group; h++) {
        int64_t head = (int64_t)kv_head * group + h;
        float *out = qmi_cpu_row(w, op->out, row) + head * size;
        float factor = 1 / from.sum[h];
        for (int32_t d = 0; d < size; d++)
            out[d] = from.out[(int64_t)h * size + d] * factor;
        if (op->rotate_values)
            w->kernels->gather(out, size);
        if (op->gated)
            w->kernels->sigmoid_mul(qmi_cpu_row(w, op->query, row) + head * 2 * size + size, out, size);
    }
}

/* A block of rows, all their spans. */
static void attend_block(const qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room,
                         const qmi_cpu_attend_rows *rows)
{
    int32_t group = op->heads / op->kv_heads;
    const qmi_cpu_attend_block *block = &room->block;
    qmi_cpu_attend_block_begin(op, block, queries(w, op, rows->first, rows->kv_head), rows->rows);
    for (int64_t at = 0; at < rows->position + rows->rows; at += SPAN)
        for (int32_t r = qmi_cpu_attend_block_span(w, op, block, rows, at); r < rows->rows; r++) {
            int64_t q = (int64_t)r * group;
            partial span = { block->largest + q, block->sum + q, block->out + q * op->head_size };
            merge(w, op, partial_at(op, room->running, r), span, at == 0);
        }
}

/* A row after the other, each reading keys and values as they lie. */
static void attend_singly(const qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room,
                          const qmi_cpu_attend_rows *rows)
{
    partial span = partial_at(op, room->span, 0);
    for (int64_t at = 0; at < rows->position + rows->rows; at += SPAN)
        for (int32_t r = 0; r < rows->rows; r++) {
            int64_t tokens = rows->position + r + 1, count = qmi_cpu_least(tokens - at, SPAN);
            if (count <= 0)
                continue;
            attend_span(w, op, room, &(attend_query){ rows->sequence, rows->first + r, tokens, rows->kv_head }, at,
                        (int32_t)count, span);
            merge(w, op, partial_at(op, room->running, r), span, at == 0);
        }
}

/* Many rows: an item is a block of a sequence's rows and a key-value head, the last blocks, which have most to do, first. */
static void attend_blocks(qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room)
{
    const qmi_batch *batch = w->batch;
    int32_t most = qmi_cpu_attend_block_rows(op);
    int64_t blocks = 0;
    for (int32_t s = 0; s < batch->sequence_count; s++)
        blocks += qmi_cpu_ceil(batch->sequences[s].count, most);
    for (int64_t item; qmi_cpu_next(w, blocks * op->kv_heads, &item);) {
        int64_t block = blocks - 1 - item / op->kv_heads;
        const qmi_sequence *sequence = batch->sequences;
        for (; block >= qmi_cpu_ceil(sequence->count, most); sequence++)
            block -= qmi_cpu_ceil(sequence->count, most);
        int32_t first = (int32_t)block * most;
        const qmi_cpu_attend_rows rows = {
            .sequence = sequence, .first = sequence->first + first, .rows = (int32_t)qmi_cpu_least(most, sequence->count - first),
            .kv_head = (int32_t)(item % op->kv_heads), .position = sequence->start + first };
        if (rows.rows > 1 && qmi_cpu_attend_block_fits(op))
            attend_block(w, op, room, &rows);
        else
            attend_singly(w, op, room, &rows);
        for (int32_t r = 0; r < rows.rows; r++)
            finish(w, op, rows.first + r, rows.kv_head, partial_at(op, room->running, r));
    }
}

/* The spans of all (row, key-value head) pairs are one list: pair by pair, each pair's ascending. */
typedef struct pair_spans {
    attend_query query;
    int64_t begin, end;     /* in the list */
} pair_spans;

static int64_t tokens_of_row(const qmi_batch *batch, int64_t row)
{
    const qmi_sequence *sequence = qmi_cpu_sequence_of(batch, row);
    return sequence->start + row - sequence->first + 1;
}

static pair_spans spans_of_pair(const qmi_batch *batch, const qmi_op_attend *op, int64_t pair)
{
    pair_spans p = { .query = { .row = pair / op->kv_heads, .kv_head = (int32_t)(pair % op->kv_heads) } };
    attend_query *q = &p.query;
    for (int64_t row = 0; row < q->row; row++)
        p.begin += op->kv_heads * qmi_cpu_ceil(tokens_of_row(batch, row), SPAN);
    q->sequence = qmi_cpu_sequence_of(batch, q->row);
    q->tokens = tokens_of_row(batch, q->row);
    p.begin += q->kv_head * qmi_cpu_ceil(q->tokens, SPAN);
    p.end = p.begin + qmi_cpu_ceil(q->tokens, SPAN);
    return p;
}

static void share_span(const qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room, int64_t index, partial to)
{
    int64_t pair = 0;
    pair_spans p = spans_of_pair(w->batch, op, pair);
    while (index >= p.end)
        p = spans_of_pair(w->batch, op, ++pair);
    int64_t first = (index - p.begin) * SPAN;
    attend_span(w, op, room, &p.query, first, (int32_t)qmi_cpu_least(p.query.tokens - first, SPAN), to);
}

/* Merges those spans of the list's [from, to) that are this pair's, in order. */
static void merge_pair(const qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room, int64_t pair, int64_t from,
                       int64_t to)
{
    pair_spans p = spans_of_pair(w->batch, op, pair);
    partial running = partial_at(op, room->rows, pair);
    if (p.begin >= to || p.end <= from)
        return;
    for (int64_t i = p.begin > from ? p.begin : from; i < qmi_cpu_least(p.end, to); i++)
        merge(w, op, running, partial_at(op, room->spans, i - from), i == p.begin);
    if (p.end <= to)
        finish(w, op, p.query.row, p.query.kv_head, running);
}

/* Few rows: the workers share their spans, some at a time, and then merge them. */
static void attend_shared(qmi_cpu_worker *w, const qmi_op_attend *op, const attend_room *room)
{
    int64_t pairs = (int64_t)w->batch->count * op->kv_heads, spans = spans_of_pair(w->batch, op, pairs - 1).end;
    for (int64_t from = 0; from < spans; from += PARTIALS_MAX) {
        int64_t to = qmi_cpu_least(from + PARTIALS_MAX, spans);
        if (from > 0)
            qmi_cpu_barrier(w); /* the former ones are merged */
        for (int64_t item; qmi_cpu_next(w, to - from, &item);)
            share_span(w, op, room, from + item, partial_at(op, room->spans, item));
        qmi_cpu_barrier(w);
        for (int64_t pair; qmi_cpu_next(w, pairs, &pair);)
            merge_pair(w, op, room, pair, from, to);
    }
}

static void run_attend(qmi_cpu_worker *w, const qmi_op *operation)
{
    const qmi_op_attend *op = &operation->attend;
    qmi_cpu_room shared = { w->shared, 0 }, own = { w->own, 0 };
    attend_room room = attend_lay_out(op, w->batch->count, w->threads, &shared, &own);
    for (int64_t item; qmi_cpu_next(w, (int64_t)w->batch->count * op->kv_heads, &item);)
        append(w, op, &room, item / op->kv_heads, (int32_t)(item % op->kv_heads));
    qmi_cpu_barrier(w);
    if (op->window)
        qmi_cpu_window_pack(w, op, &room.window);
    if (shares_spans(op, w->batch->count, w->threads))
        attend_shared(w, op, &room);
    else
        attend_blocks(w, op, &room);
    if (op->window)
        qmi_cpu_window_keep(w, op, &room.window);
}

const qmi_cpu_op qmi_cpu_op_attend = { lay_out_attend, run_attend };
