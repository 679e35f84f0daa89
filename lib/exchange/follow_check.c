/* Checks of what a driving rank sends: see follow_check.h. */
#include "exchange/follow_check.h"

#include <string.h>
#include "base/error.h"

/* ---- memory that was given out ---- */

/* Index of the last block that starts at `at` or before; -1: none. */
static int64_t find(const qmi_given *given, qmi_address at)
{
    size_t low = 0, high = given->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (given->list[middle].at <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return (int64_t)low - 1;
}

int32_t qmi_given_add(qmi_given *given, const qmi_alloc *alloc, const qmi_given_block *block)
{
    void *list = given->list;
    size_t place = (size_t)(find(given, block->at) + 1);
    if (place > 0 && given->list[place - 1].at == block->at) { /* the same weights once more */
        if (block->bytes > given->list[place - 1].bytes)
            given->list[place - 1] = *block;
        return QM_OK;
    }
    int32_t code = qmi_reserve(alloc, &list, &given->capacity, given->count + 1, sizeof *given->list,
                               "the list of memory in use");
    if (code < 0)
        return code;
    given->list = list;
    memmove(given->list + place + 1, given->list + place, (given->count - place) * sizeof *given->list);
    given->list[place] = *block;
    given->count++;
    return QM_OK;
}

void qmi_given_remove(qmi_given *given, qmi_address at)
{
    int64_t place = find(given, at);
    if (place < 0 || given->list[place].at != at)
        return;
    given->count--;
    memmove(given->list + place, given->list + place + 1, (given->count - (size_t)place) * sizeof *given->list);
}

void qmi_given_free(qmi_given *given, const qmi_alloc *alloc)
{
    qmi_delete(alloc, given->list);
    *given = (qmi_given){ 0 };
}

bool qmi_given_starts(const qmi_given *given, qmi_address at)
{
    int64_t place = find(given, at);
    return place >= 0 && given->list[place].at == at && !given->list[place].matrix;
}

static bool lies_in(const qmi_given *given, qmi_address at, int64_t bytes)
{
    int64_t place = find(given, at);
    if (place < 0 || bytes < 0 || given->list[place].matrix)
        return false;
    const qmi_given_block *block = &given->list[place];
    return at - block->at <= (uint64_t)block->bytes && bytes <= block->bytes - (int64_t)(at - block->at);
}

int32_t qmi_given_check(const qmi_given *given, qmi_address at, int64_t bytes)
{
    if (lies_in(given, at, bytes))
        return QM_OK;
    return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 names %lld bytes at %llx, which is no memory it was given", (long long)bytes,
                    (unsigned long long)at);
}

/* ---- programs ---- */

bool qmi_follow_bool(bool *field)
{
    unsigned char byte;
    memcpy(&byte, field, 1);
    return *field = byte != 0;
}

/* A matrix of a program is one that was uploaded, or its first rows. */
static int32_t check_matrix(const qmi_given *given, const qmi_matrix *matrix)
{
    if (!matrix->data)
        return QM_OK;
    int64_t place = find(given, matrix->data);
    const qmi_given_block *block = place < 0 ? NULL : &given->list[place];
    if (block && block->matrix && block->at == matrix->data && block->shape.type == matrix->type &&
        block->shape.columns == matrix->columns && matrix->rows > 0 && matrix->rows <= QMI_ROWS_MAX && matrix->count > 0 &&
        matrix->count <= QMI_EXPERTS_MAX && matrix->rows * matrix->count <= block->shape.rows * block->shape.count)
        return QM_OK;
    return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 names weights at %llx that it has not uploaded", (unsigned long long)matrix->data);
}

static int32_t check_vector(const qmi_given *given, const qmi_vector *vector)
{
    if (!vector->data)
        return QM_OK;
    if (vector->size < 0 || vector->size > QMI_ROWS_MAX)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 names a vector of %lld numbers", (long long)vector->size);
    return qmi_given_check(given, vector->data, vector->size * (int64_t)sizeof(float));
}

typedef struct operands { /* of one op */
    const qmi_matrix *matrices[8];
    const qmi_vector *vectors[8];
    int32_t matrix_count, vector_count;
} operands;

static void add_matrix(operands *o, const qmi_matrix *matrix)
{
    o->matrices[o->matrix_count++] = matrix;
}

static void add_vector(operands *o, const qmi_vector *vector)
{
    o->vectors[o->vector_count++] = vector;
}

static void list_attend(qmi_op_attend *op, operands *o)
{
    qmi_follow_bool(&op->gated);
    qmi_follow_bool(&op->rotate_keys);
    qmi_follow_bool(&op->rotate_values);
    add_vector(o, &op->query_norm.weight);
    add_vector(o, &op->key_norm.weight);
    add_vector(o, &op->inverse_frequency);
    add_vector(o, &op->correction);
}

static void list_delta(qmi_op_delta *op, operands *o)
{
    qmi_follow_bool(&op->grouped);
    qmi_follow_bool(&op->interleaved);
    add_vector(o, &op->convolution);
    add_vector(o, &op->time_bias);
    add_vector(o, &op->decay);
    add_vector(o, &op->norm.weight);
}

static void list_experts(qmi_op_experts *op, operands *o)
{
    add_matrix(o, &op->gate);
    add_matrix(o, &op->up);
    add_matrix(o, &op->down);
    add_matrix(o, &op->shared_gate);
    add_matrix(o, &op->shared_up);
    add_matrix(o, &op->shared_down);
}

/* What is written beside slots, pages and states. */
static int32_t check_moments(const qmi_given *given, const qmi_op_attend *op)
{
    int64_t numbers = 2 * (int64_t)op->kv_heads * op->head_size * op->head_size; /* of heads that validate has checked */
    return op->moments ? qmi_given_check(given, op->moments, numbers * (int64_t)sizeof(double)) : QM_OK;
}

static int32_t list_operands(qmi_op *op, operands *o)
{
    *o = (operands){ 0 };
    switch (op->kind) {
    case QMI_OP_EMBED:
        add_matrix(o, &op->embed.table);
        return QM_OK;
    case QMI_OP_JOIN:
        add_matrix(o, &op->join.table);
        add_vector(o, &op->join.norm.weight);
        add_vector(o, &op->join.hidden_norm.weight);
        return QM_OK;
    case QMI_OP_PROJECT:
        if (op->project.count < 0 || op->project.count > QMI_PROJECT_MAX)
            break;
        for (int32_t i = 0; i < op->project.count; i++)
            add_matrix(o, &op->project.matrix[i]);
        add_vector(o, &op->project.norm.weight);
        return QM_OK;
    case QMI_OP_GLU:
        add_matrix(o, &op->glu.gate);
        add_matrix(o, &op->glu.up);
        add_vector(o, &op->glu.norm.weight);
        return QM_OK;
    case QMI_OP_PROJECT_ADD:
        qmi_follow_bool(&op->project_add.add);
        add_matrix(o, &op->project_add.matrix);
        return QM_OK;
    case QMI_OP_ATTEND:
        list_attend(&op->attend, o);
        return QM_OK;
    case QMI_OP_DELTA:
        list_delta(&op->delta, o);
        return QM_OK;
    case QMI_OP_ROUTE:
        add_matrix(o, &op->route.router);
        add_matrix(o, &op->route.shared_gate);
        add_vector(o, &op->route.norm.weight);
        return QM_OK;
    case QMI_OP_EXPERTS:
        list_experts(&op->experts, o);
        return QM_OK;
    case QMI_OP_LOGITS:
        add_matrix(o, &op->logits.output);
        add_vector(o, &op->logits.norm.weight);
        return QM_OK;
    case QMI_OP_SUM: /* sums of ranks are messages of their own */
    case QMI_OP_COUNT:
        break;
    }
    return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent an op that there is not");
}

int32_t qmi_follow_check_program(const qmi_given *given, qmi_program *program)
{
    int32_t code = QM_OK;
    for (size_t i = 0; i < program->count && code >= 0; i++) {
        operands o;
        code = list_operands(&program->ops[i], &o);
        for (int32_t k = 0; code >= 0 && k < o.matrix_count; k++)
            code = check_matrix(given, o.matrices[k]);
        for (int32_t k = 0; code >= 0 && k < o.vector_count; k++)
            code = check_vector(given, o.vectors[k]);
    }
    if (code >= 0)
        code = qmi_program_validate(program);
    for (size_t i = 0; i < program->count && code >= 0; i++)
        if (program->ops[i].kind == QMI_OP_ATTEND)
            code = check_moments(given, &program->ops[i].attend);
    return code;
}

/* ---- batches ---- */

typedef struct needs { /* of a program, of each page and each state */
    int64_t page_tokens, page_bytes, state_bytes, vocabulary;
} needs;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static needs needs_of(const qmi_program *program)
{
    needs n = { 0, 0, 0, INT32_MAX };
    for (size_t i = 0; i < program->count; i++) {
        const qmi_op *op = &program->ops[i];
        if (op->kind == QMI_OP_ATTEND) {
            const qmi_op_attend *a = &op->attend;
            int64_t heads = (int64_t)a->kv_heads * a->page_tokens;
            n.page_tokens = a->page_tokens;
            n.page_bytes = larger(n.page_bytes, a->key_offset + heads * qmi_kv_head_bytes(a->key_type, a->head_size));
            n.page_bytes = larger(n.page_bytes, a->value_offset + heads * qmi_kv_head_bytes(a->value_type, a->head_size));
            if (a->window)
                n.state_bytes = larger(n.state_bytes, a->window_offset + 2 * (int64_t)a->kv_heads * (a->window + QMI_KV_GROUP) *
                                                          a->head_size * (int64_t)sizeof(uint16_t));
        } else if (op->kind == QMI_OP_DELTA) {
            const qmi_op_delta *d = &op->delta;
            int64_t values = (int64_t)d->value_heads * d->value_size;
            int64_t channels = 2 * (int64_t)d->key_heads * d->key_size + values;
            n.state_bytes = larger(n.state_bytes, d->state_offset + (int64_t)sizeof(float) *
                                                      ((d->taps - 1) * channels + values * d->key_size));
        } else if (op->kind == QMI_OP_EMBED || op->kind == QMI_OP_JOIN) {
            int64_t rows = op->kind == QMI_OP_EMBED ? op->embed.table.rows : op->join.table.rows;
            n.vocabulary = rows < n.vocabulary ? rows : n.vocabulary;
        }
    }
    return n;
}

static int32_t check_sequence(const qmi_given *given, const needs *n, const qmi_sequence *sequence, int64_t pages)
{
    int32_t code = QM_OK;
    if (sequence->start < 0 || sequence->start > INT64_MAX / 4)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent a sequence that begins at %lld", (long long)sequence->start);
    if (n->page_tokens && pages < (sequence->start + sequence->count + n->page_tokens - 1) / n->page_tokens)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent a sequence of %lld tokens with %lld pages",
                        (long long)(sequence->start + sequence->count), (long long)pages);
    for (int64_t i = 0; n->page_tokens && i < pages && code >= 0; i++)
        code = qmi_given_check(given, sequence->pages[i], n->page_bytes);
    if (code >= 0 && n->state_bytes)
        code = qmi_given_check(given, sequence->state, n->state_bytes);
    if (code >= 0 && n->state_bytes)
        code = qmi_given_check(given, sequence->next_state, n->state_bytes);
    return code;
}

static int32_t check_rows(const qmi_workspace *workspace, const qmi_batch *batch, const needs *n, int32_t rows)
{
    int32_t next = 0;
    if (batch->count < 1 || batch->count > workspace->rows || batch->count > rows || batch->sequence_count < 1 ||
        batch->output_count < 0 || batch->output_count > workspace->outputs)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent a batch of %d rows, %d sequences and %d outputs, where %d rows and %d "
                        "outputs were prepared", batch->count, batch->sequence_count, batch->output_count, rows,
                        workspace->outputs);
    for (int32_t i = 0; i < batch->count; i++)
        if (batch->tokens[i] < 0 || batch->tokens[i] >= n->vocabulary)
            return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent token %d", batch->tokens[i]);
    for (int32_t i = 0; i < batch->output_count; i++)
        if (batch->outputs[i] < (i ? batch->outputs[i - 1] + 1 : 0) || batch->outputs[i] >= batch->count)
            return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 wants row %d of %d", batch->outputs[i], batch->count);
    for (int32_t i = 0; i < batch->sequence_count; i++) {
        const qmi_sequence *s = &batch->sequences[i];
        if (s->first != next || s->count < 1 || s->count > batch->count - next)
            return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent sequences that do not cover the batch");
        next += s->count;
    }
    return next == batch->count ? QM_OK : qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sent sequences that do not cover the batch");
}

int32_t qmi_follow_check_batch(const qmi_given *given, const qmi_program *program, const qmi_workspace *workspace,
                               const qmi_batch *batch, const int64_t *page_counts, int32_t rows)
{
    const needs n = needs_of(program);
    int32_t code = check_rows(workspace, batch, &n, rows);
    for (int32_t i = 0; i < program->slot_count && code >= 0; i++) {
        const qmi_slot_shape *slot = &program->slots[i];
        int64_t count = slot->outputs ? batch->output_count : batch->count;
        if (count > 0 && slot->width > 0)
            code = qmi_given_check(given, workspace->slots[i], count * slot->width * (int64_t)sizeof(float));
    }
    for (int32_t i = 0; i < batch->sequence_count && code >= 0; i++)
        code = check_sequence(given, &n, &batch->sequences[i], page_counts[i]);
    return code;
}
