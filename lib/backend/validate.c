/* Checks a program once, every operand against every other, so that backends trust it: see qmi_program_validate. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "backend/program.h"
#include "base/error.h"
#include "quant/quant.h"

typedef struct checker {
    const qmi_program *program;
    size_t index;                     /* of the op under check */
    int64_t experts[QMI_SLOTS_MAX];   /* how many experts the ROUTE that wrote this slot chooses from; 0: none did */
} checker;

static int32_t fault(const checker *c, const char *operand, const char *format, ...) QMI_PRINTF(3, 4);

static int32_t fault(const checker *c, const char *operand, const char *format, ...)
{
    const qmi_op *op = &c->program->ops[c->index];
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return qmi_fail(QM_ERROR_FORMAT, "op %zu (%s, layer %d): %s: %s", c->index, qmi_op_name(op->kind), op->layer, operand, text);
}

static int32_t check_range(const checker *c, const char *operand, int64_t value, int64_t low, int64_t high)
{
    if (value < low || value > high)
        return fault(c, operand, "%lld is out of range (%lld .. %lld)", (long long)value, (long long)low, (long long)high);
    return QM_OK;
}

static int32_t check_equal(const checker *c, const char *operand, int64_t value, const char *needed_by, int64_t needed)
{
    if (value != needed)
        return fault(c, operand, "is %lld, but %s needs %lld", (long long)value, needed_by, (long long)needed);
    return QM_OK;
}

static int32_t check_slot(const checker *c, const char *operand, qmi_slot slot, int64_t width)
{
    if (slot < 0 || slot >= c->program->slot_count)
        return fault(c, operand, "slot %d is none of the program's %d", slot, c->program->slot_count);
    const qmi_slot_shape *shape = &c->program->slots[slot];
    long long is = shape->width, needed = width;
    if (shape->outputs)
        return fault(c, operand, "slot %s has a row for each output, but one for each token is needed", shape->name);
    if (is != needed)
        return fault(c, operand, "slot %s is %lld wide, but %lld is needed", shape->name, is, needed);
    return QM_OK;
}

/* Ops read and write in parallel, so what is written must not be what is read. */
static int32_t check_apart(const checker *c, const char *operand, qmi_slot out, const qmi_slot *others, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (out == others[i])
            return fault(c, operand, "slot %s is another operand of the op too", c->program->slots[out].name);
    return QM_OK;
}

static int32_t check_address(const checker *c, const char *operand, qmi_address data, unsigned alignment)
{
    if (!data)
        return fault(c, operand, "is missing");
    if (data % alignment)
        return fault(c, operand, "its address is no multiple of %u; the file's alignment is too small", alignment);
    return QM_OK;
}

static int32_t check_matrix(const checker *c, const char *operand, const qmi_matrix *matrix, int64_t columns)
{
    const qmi_quant_format *format = qmi_quant_format_of(matrix->type);
    int32_t code;
    if (!matrix->data)
        return fault(c, operand, "is missing");
    if (!format)
        return fault(c, operand, "type %u is unknown", matrix->type);
    if (!format->unpack)
        return fault(c, operand, "type %s cannot be a weight", format->name);
    unsigned alignment = format->block == 1 ? (unsigned)format->bytes : 1; /* blocks are read byte by byte */
    if ((code = check_address(c, operand, matrix->data, alignment)) < 0 ||
        (code = check_range(c, operand, matrix->columns, 1, QMI_COLUMNS_MAX)) < 0 ||
        (code = check_range(c, operand, matrix->rows, 1, QMI_ROWS_MAX)) < 0 ||
        (code = check_range(c, operand, matrix->count, 1, QMI_EXPERTS_MAX)) < 0)
        return code;
    int64_t row_bytes = qmi_quant_row_bytes(matrix->type, matrix->columns);
    if (row_bytes < 0)
        return fault(c, operand, "%lld columns are no multiple of the block of %d that %s has", (long long)matrix->columns,
                     format->block, format->name);
    if (row_bytes > INT64_MAX / matrix->rows / matrix->count)
        return fault(c, operand, "%lld x %lld x %lld values are more than can be addressed", (long long)matrix->count,
                     (long long)matrix->rows, (long long)matrix->columns);
    if (matrix->columns != columns)
        return fault(c, operand, "has %lld columns, but %lld are needed", (long long)matrix->columns, (long long)columns);
    return QM_OK;
}

/* A matrix whose whole shape is given. */
static int32_t check_shape(const checker *c, const char *operand, const qmi_matrix *matrix, int64_t columns, int64_t rows,
                           int64_t count)
{
    int32_t code = check_matrix(c, operand, matrix, columns);
    if (code < 0)
        return code;
    if (matrix->rows != rows)
        return fault(c, operand, "has %lld rows, but %lld are needed", (long long)matrix->rows, (long long)rows);
    if (matrix->count != count)
        return fault(c, operand, "has %lld matrices, but %lld are needed", (long long)matrix->count, (long long)count);
    return QM_OK;
}

static int32_t check_vector(const checker *c, const char *operand, const qmi_vector *vector, int64_t size)
{
    int32_t code = check_address(c, operand, vector->data, 4);
    if (code < 0)
        return code;
    if (vector->size != size)
        return fault(c, operand, "has %lld values, but %lld are needed", (long long)vector->size, (long long)size);
    return QM_OK;
}

static int32_t check_norm(const checker *c, const char *operand, const qmi_norm *norm, int64_t size)
{
    if (!norm->weight.data)
        return QM_OK;
    if (!isfinite(norm->epsilon) || norm->epsilon < 0)
        return fault(c, operand, "epsilon %g is not a positive number", (double)norm->epsilon);
    return check_vector(c, operand, &norm->weight, size);
}

static int64_t width_of(const checker *c, qmi_slot slot)
{
    return slot >= 0 && slot < c->program->slot_count ? c->program->slots[slot].width : 0;
}

static int32_t check_embed(const checker *c, const qmi_op_embed *op)
{
    int64_t width = op->table.columns;
    int32_t code = check_shape(c, "table", &op->table, width, op->table.rows, 1);
    return code < 0 ? code : check_slot(c, "out", op->out, width);
}

static int32_t check_join(const checker *c, const qmi_op_join *op)
{
    int64_t width = op->table.columns;
    int32_t code;
    if ((code = check_shape(c, "table", &op->table, width, op->table.rows, 1)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, width)) < 0 ||
        (code = check_norm(c, "hidden norm", &op->hidden_norm, width)) < 0 ||
        (code = check_slot(c, "hidden", op->hidden, width)) < 0 ||
        (code = check_slot(c, "out", op->out, 2 * width)) < 0)
        return code;
    return QM_OK;
}

static int32_t check_project(const checker *c, const qmi_op_project *op)
{
    static const char *const matrix_names[QMI_PROJECT_MAX] = { "matrix 0", "matrix 1", "matrix 2", "matrix 3" };
    static const char *const out_names[QMI_PROJECT_MAX] = { "out 0", "out 1", "out 2", "out 3" };
    int64_t columns = width_of(c, op->in);
    qmi_slot used[1 + QMI_PROJECT_MAX] = { op->in };
    int32_t code;
    if ((code = check_range(c, "count of matrices", op->count, 1, QMI_PROJECT_MAX)) < 0 ||
        (code = check_slot(c, "in", op->in, columns)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, columns)) < 0)
        return code;
    for (int32_t i = 0; i < op->count; i++) {
        const qmi_matrix *matrix = &op->matrix[i];
        if ((code = check_shape(c, matrix_names[i], matrix, columns, matrix->rows, 1)) < 0 ||
            (code = check_slot(c, out_names[i], op->out[i], matrix->rows)) < 0 ||
            (code = check_apart(c, out_names[i], op->out[i], used, 1 + i)) < 0)
            return code;
        used[1 + i] = op->out[i];
    }
    return QM_OK;
}

static int32_t check_glu(const checker *c, const qmi_op_glu *op)
{
    int64_t columns = width_of(c, op->in);
    int32_t code;
    if ((code = check_slot(c, "in", op->in, columns)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, columns)) < 0 ||
        (code = check_shape(c, "gate", &op->gate, columns, op->gate.rows, 1)) < 0 ||
        (code = check_shape(c, "up", &op->up, columns, op->gate.rows, 1)) < 0 ||
        (code = check_slot(c, "out", op->out, op->gate.rows)) < 0)
        return code;
    return check_apart(c, "out", op->out, &op->in, 1);
}

static int32_t check_project_add(const checker *c, const qmi_op_project_add *op)
{
    int64_t columns = width_of(c, op->in);
    int32_t code;
    if ((code = check_slot(c, "in", op->in, columns)) < 0 ||
        (code = check_shape(c, "matrix", &op->matrix, columns, op->matrix.rows, 1)) < 0 ||
        (code = check_slot(c, "out", op->out, op->matrix.rows)) < 0)
        return code;
    return check_apart(c, "out", op->out, &op->in, 1);
}

static int32_t check_heads(const checker *c, const char *many_name, int64_t many, const char *few_name, int64_t few)
{
    int32_t code;
    if ((code = check_range(c, many_name, many, 1, QMI_HEADS_MAX)) < 0 ||
        (code = check_range(c, few_name, few, 1, QMI_HEADS_MAX)) < 0)
        return code;
    if (many % few)
        return fault(c, many_name, "%lld are no multiple of the %lld %s", (long long)many, (long long)few, few_name);
    return QM_OK;
}

static int32_t check_pages(const checker *c, const qmi_op_attend *op)
{
    int32_t code;
    if ((code = check_range(c, "type of keys", op->key_type, 0, QMI_KV_TYPES - 1)) < 0 ||
        (code = check_range(c, "type of values", op->value_type, 0, QMI_KV_TYPES - 1)) < 0)
        return code;
    if ((code = check_range(c, "tokens of a page", op->page_tokens, 1, QMI_PAGE_TOKENS_MAX)) < 0 ||
        (code = check_range(c, "offset of keys", op->key_offset, 0, INT64_MAX / 2)) < 0 ||
        (code = check_range(c, "offset of values", op->value_offset, 0, INT64_MAX / 2)) < 0)
        return code;
    bool groups = op->key_type == QMI_KV_Q2;
    if ((code = check_range(c, "window", op->window, groups ? 1 : 0, QMI_WINDOW_MAX)) < 0 ||
        (code = check_range(c, "offset of the window", op->window_offset, 0, INT64_MAX / 2)) < 0)
        return code;
    if (op->window && op->page_tokens != QMI_KV_GROUP)
        return fault(c, "tokens of a page", "%d are not the %d that are packed together", op->page_tokens, QMI_KV_GROUP);
    if ((op->correction.data || op->moments) && !groups)
        return fault(c, "correction", "is of keys of q2, and these are %s", qmi_kv_formats[op->key_type].name);
    if (op->correction.data && (code = check_vector(c, "correction", &op->correction, 2 * (int64_t)op->kv_heads * op->head_size *
                                                    op->head_size)) < 0)
        return code;
    int64_t heads = (int64_t)op->kv_heads * op->page_tokens, keys = heads * qmi_kv_head_bytes(op->key_type, op->head_size);
    int64_t values = heads * qmi_kv_head_bytes(op->value_type, op->head_size);
    if (op->key_offset < op->value_offset ? op->value_offset - op->key_offset < keys : op->key_offset - op->value_offset < values)
        return fault(c, "offset of values", "keys of %lld and values of %lld bytes overlap", (long long)keys, (long long)values);
    if (op->key_offset % 4 || op->value_offset % 4)
        return fault(c, "offsets of keys and values", "are no multiples of 4");
    return QM_OK;
}

static int32_t check_attend(const checker *c, const qmi_op_attend *op)
{
    const qmi_slot read[] = { op->query, op->key, op->value };
    int32_t code;
    if ((code = check_heads(c, "query heads", op->heads, "key-value heads", op->kv_heads)) < 0 ||
        (code = check_range(c, "head size", op->head_size, 2, QMI_HEAD_SIZE_MAX)) < 0 ||
        (code = check_range(c, "rotary size", op->rotary, 0, op->head_size)) < 0)
        return code;
    if (op->head_size % 2 || op->rotary % 2)
        return fault(c, "head size and rotary size", "%d and %d are not both even", op->head_size, op->rotary);
    int64_t query_width = (int64_t)op->heads * op->head_size, key_width = (int64_t)op->kv_heads * op->head_size;
    if ((code = check_slot(c, "query", op->query, op->gated ? 2 * query_width : query_width)) < 0 ||
        (code = check_slot(c, "key", op->key, key_width)) < 0 ||
        (code = check_slot(c, "value", op->value, key_width)) < 0 ||
        (code = check_slot(c, "out", op->out, query_width)) < 0 ||
        (code = check_apart(c, "out", op->out, read, 3)) < 0 ||
        (code = check_norm(c, "query norm", &op->query_norm, op->head_size)) < 0 ||
        (code = check_norm(c, "key norm", &op->key_norm, op->head_size)) < 0)
        return code;
    if (op->rotary && (code = check_vector(c, "inverse frequency", &op->inverse_frequency, op->rotary / 2)) < 0)
        return code;
    return check_pages(c, op);
}

static int32_t check_delta_slots(const checker *c, const qmi_op_delta *op, int64_t channels, int64_t inner)
{
    const qmi_slot read[] = { op->qkv, op->z, op->beta, op->alpha };
    int32_t code;
    if ((code = check_slot(c, "qkv", op->qkv, channels)) < 0 ||
        (code = check_slot(c, "z", op->z, inner)) < 0 ||
        (code = check_slot(c, "beta", op->beta, op->interleaved ? 2 * (int64_t)op->value_heads : op->value_heads)) < 0 ||
        (!op->interleaved && (code = check_slot(c, "alpha", op->alpha, op->value_heads)) < 0) ||
        (code = check_slot(c, "out", op->out, inner)) < 0)
        return code;
    return check_apart(c, "out", op->out, read, op->interleaved ? 3 : 4);
}

static int32_t check_delta(const checker *c, const qmi_op_delta *op)
{
    int32_t code;
    if ((code = check_heads(c, "value heads", op->value_heads, "key heads", op->key_heads)) < 0 ||
        (code = check_range(c, "key size", op->key_size, 1, QMI_HEAD_SIZE_MAX)) < 0 ||
        (code = check_range(c, "value size", op->value_size, 1, QMI_HEAD_SIZE_MAX)) < 0 ||
        (code = check_range(c, "taps", op->taps, 1, QMI_TAPS_MAX)) < 0)
        return code;
    int64_t inner = (int64_t)op->value_heads * op->value_size;
    int64_t channels = 2 * (int64_t)op->key_heads * op->key_size + inner;
    if ((code = check_delta_slots(c, op, channels, inner)) < 0 ||
        (code = check_vector(c, "convolution", &op->convolution, channels * op->taps)) < 0 ||
        (code = check_vector(c, "time bias", &op->time_bias, op->value_heads)) < 0 ||
        (code = check_vector(c, "decay", &op->decay, op->value_heads)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, op->value_size)) < 0 ||
        (code = check_range(c, "offset of the state", op->state_offset, 0, INT64_MAX / 2)) < 0)
        return code;
    if (op->state_offset % 4)
        return fault(c, "offset of the state", "%lld is no multiple of 4", (long long)op->state_offset);
    return QM_OK;
}

static int32_t check_route(checker *c, const qmi_op_route *op)
{
    const qmi_slot used[] = { op->in, op->hidden };
    int64_t width = width_of(c, op->in), experts = op->router.rows;
    int32_t code;
    if ((code = check_slot(c, "in", op->in, width)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, width)) < 0 ||
        (code = check_shape(c, "router", &op->router, width, experts, 1)) < 0 ||
        (code = check_range(c, "experts", experts, 1, QMI_EXPERTS_MAX)) < 0 ||
        (code = check_range(c, "chosen experts", op->top, 1, experts < QMI_TOP_MAX ? experts : QMI_TOP_MAX)) < 0 ||
        (op->shared_gate.data && (code = check_shape(c, "shared gate", &op->shared_gate, width, 1, 1)) < 0) ||
        (code = check_slot(c, "hidden", op->hidden, width)) < 0 ||
        (code = check_slot(c, "route", op->route, 2 * op->top + 1)) < 0 ||
        (code = check_apart(c, "hidden", op->hidden, used, 1)) < 0 ||
        (code = check_apart(c, "route", op->route, used, 2)) < 0)
        return code;
    c->experts[op->route] = experts;
    return QM_OK;
}

static int32_t check_shared_expert(const checker *c, const qmi_op_experts *op, int64_t width)
{
    if (!op->shared_gate.data && !op->shared_up.data && !op->shared_down.data)
        return QM_OK;
    int64_t inner = op->shared_gate.rows;
    int32_t code;
    if ((code = check_shape(c, "shared gate", &op->shared_gate, width, inner, 1)) < 0 ||
        (code = check_shape(c, "shared up", &op->shared_up, width, inner, 1)) < 0)
        return code;
    return check_shape(c, "shared down", &op->shared_down, inner, width, 1);
}

static int32_t check_experts(const checker *c, const qmi_op_experts *op)
{
    const qmi_slot read[] = { op->hidden, op->route };
    int64_t width = width_of(c, op->hidden), experts = op->gate.count;
    int32_t code;
    if ((code = check_range(c, "chosen experts", op->top, 1, QMI_TOP_MAX)) < 0 ||
        (code = check_slot(c, "hidden", op->hidden, width)) < 0 ||
        (code = check_slot(c, "route", op->route, 2 * op->top + 1)) < 0 ||
        (code = check_slot(c, "out", op->out, width)) < 0 ||
        (code = check_apart(c, "out", op->out, read, 2)) < 0 ||
        (code = check_shape(c, "gate", &op->gate, width, op->gate.rows, experts)) < 0 ||
        (code = check_equal(c, "gate's count of experts", experts, "the router before it", c->experts[op->route])) < 0)
        return code;
    bool fused = !op->up.data;
    if (fused && op->gate.rows % 2)
        return fault(c, "gate", "%lld rows of gate and up together are not even", (long long)op->gate.rows);
    int64_t inner = fused ? op->gate.rows / 2 : op->gate.rows;
    if ((!fused && (code = check_shape(c, "up", &op->up, width, inner, experts)) < 0) ||
        (code = check_shape(c, "down", &op->down, inner, width, experts)) < 0)
        return code;
    return check_shared_expert(c, op, width);
}

static int32_t check_logits(const checker *c, const qmi_op_logits *op)
{
    int64_t width = width_of(c, op->in);
    int32_t code;
    if ((code = check_slot(c, "in", op->in, width)) < 0 ||
        (code = check_norm(c, "norm", &op->norm, width)) < 0 ||
        (code = check_shape(c, "output", &op->output, width, op->output.rows, 1)) < 0 ||
        (code = check_slot(c, "hidden", op->hidden, width)) < 0 ||
        (code = check_apart(c, "hidden", op->hidden, &op->in, 1)) < 0)
        return code;
    if (op->logits < 0 || op->logits >= c->program->slot_count)
        return fault(c, "logits", "slot %d is none of the program's %d", op->logits, c->program->slot_count);
    const qmi_slot_shape *shape = &c->program->slots[op->logits];
    if (!shape->outputs)
        return fault(c, "logits", "slot %s has a row for each token, but one for each output is needed", shape->name);
    return check_equal(c, "logits", shape->width, "the output matrix", op->output.rows);
}

static int32_t check_sum(const checker *c, const qmi_op_sum *op)
{
    if (op->to < 0 || op->to >= c->program->slot_count)
        return fault(c, "to", "slot %d is none of the program's %d", op->to, c->program->slot_count);
    int64_t width = c->program->slots[op->to].width;
    int32_t code = check_slot(c, "to", op->to, width);
    return code < 0 ? code : check_slot(c, "from", op->from, width);
}

static int32_t check_op(checker *c, const qmi_op *op)
{
    switch (op->kind) {
    case QMI_OP_EMBED: return check_embed(c, &op->embed);
    case QMI_OP_JOIN: return check_join(c, &op->join);
    case QMI_OP_PROJECT: return check_project(c, &op->project);
    case QMI_OP_GLU: return check_glu(c, &op->glu);
    case QMI_OP_PROJECT_ADD: return check_project_add(c, &op->project_add);
    case QMI_OP_ATTEND: return check_attend(c, &op->attend);
    case QMI_OP_DELTA: return check_delta(c, &op->delta);
    case QMI_OP_ROUTE: return check_route(c, &op->route);
    case QMI_OP_EXPERTS: return check_experts(c, &op->experts);
    case QMI_OP_LOGITS: return check_logits(c, &op->logits);
    case QMI_OP_SUM: return check_sum(c, &op->sum);
    case QMI_OP_COUNT: break;
    }
    return fault(c, "kind", "%d is unknown", (int)op->kind);
}

int32_t qmi_program_validate(const qmi_program *program)
{
    checker c = { .program = program };
    for (c.index = 0; c.index < program->count; c.index++) {
        int32_t code = check_op(&c, &program->ops[c.index]);
        if (code < 0)
            return code;
    }
    return QM_OK;
}
