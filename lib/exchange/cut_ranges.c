/* Parts of operands: see cut_ranges.h. */
#include "exchange/cut_ranges.h"

#include "quant/quant.h"

#define FLOAT_UNIT 16 /* of columns of unquantized matrices and rows of the vocabulary, where there are enough of them */

int64_t qmi_ranges_total(const qmi_ranges *ranges)
{
    int64_t total = 0;
    for (int32_t i = 0; i < ranges->count; i++)
        total += ranges->list[i].count;
    return total;
}

void qmi_ranges_add(qmi_ranges *ranges, int64_t first, int64_t count)
{
    qmi_range *last = ranges->count ? &ranges->list[ranges->count - 1] : NULL;
    if (count == 0)
        return;
    if (last && last->first + last->count == first)
        last->count += count;
    else
        ranges->list[ranges->count++] = (qmi_range){ first, count };
}

qmi_ranges qmi_ranges_one(int64_t first, int64_t end)
{
    qmi_ranges ranges = { 0 };
    qmi_ranges_add(&ranges, first, end - first);
    return ranges;
}

qmi_ranges qmi_ranges_times(const qmi_ranges *ranges, int64_t factor)
{
    qmi_ranges result = *ranges;
    for (int32_t i = 0; i < result.count; i++)
        result.list[i] = (qmi_range){ result.list[i].first * factor, result.list[i].count * factor };
    return result;
}

const qmi_stage *qmi_cut_stage(const qmi_sharing *sharing, const qmi_op *op)
{
    const qmi_stage *last = &sharing->stages[sharing->stage_count - 1];
    if (op->kind == QMI_OP_EMBED)
        return sharing->stages;
    for (const qmi_stage *stage = sharing->stages; stage < last; stage++)
        if (op->layer >= 0 && op->layer < stage->first + stage->count)
            return stage;
    return last;
}

/* ---- units ---- */

/* Things of `width` columns each that make up whole blocks of the format. Blocks are powers of two. */
static int64_t whole_blocks(uint32_t type, int64_t width)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    int64_t unit = format ? format->block : 1;
    while (unit > 1 && width % 2 == 0) {
        unit /= 2;
        width /= 2;
    }
    return unit;
}

/* The matrix of the PROJECT_ADD that reads what op writes into `out`. */
static const qmi_matrix *reader_of(const qmi_program *program, const qmi_op *op, qmi_slot out)
{
    for (const qmi_op *other = op + 1; other < program->ops + program->count; other++)
        if (other->kind == QMI_OP_PROJECT_ADD && other->project_add.in == out)
            return &other->project_add.matrix;
    static const qmi_matrix none = { .type = QMI_TYPE_F32 };
    return &none;
}

static int64_t float_unit(int64_t count, int64_t members)
{
    return count >= FLOAT_UNIT * members ? FLOAT_UNIT : 1;
}

static int64_t unit_of_delta(const qmi_op_delta *op, const qmi_matrix *reader)
{
    int64_t values = op->value_heads / op->key_heads;
    if (op->grouped)
        return whole_blocks(reader->type, values * op->value_size);
    int64_t unit = whole_blocks(reader->type, op->value_size);
    /* a member has a range of value heads of each of `values` rounds of all key heads, which must end between blocks too */
    bool rounds_fit = values + 2 <= QMI_RANGES_MAX && op->key_heads % unit == 0;
    return rounds_fit ? unit : op->key_heads;
}

static int64_t unit_of(const qmi_program *program, const qmi_op *op, int64_t members)
{
    const qmi_matrix *reader;
    int64_t unit, floats;
    switch (op->kind) {
    case QMI_OP_ATTEND:
        reader = reader_of(program, op, op->attend.out);
        return whole_blocks(reader->type, (int64_t)op->attend.heads / op->attend.kv_heads * op->attend.head_size);
    case QMI_OP_DELTA:
        return unit_of_delta(&op->delta, reader_of(program, op, op->delta.out));
    case QMI_OP_GLU:
        unit = whole_blocks(reader_of(program, op, op->glu.out)->type, 1);
        floats = float_unit(op->glu.gate.rows, members);
        return unit > floats ? unit : floats;
    case QMI_OP_EXPERTS:
        unit = whole_blocks(op->experts.down.type, 1);
        floats = float_unit(op->experts.down.columns, members);
        return unit > floats ? unit : floats;
    default:
        return float_unit(op->logits.output.rows, members);
    }
}

static int64_t count_of(const qmi_op *op)
{
    switch (op->kind) {
    case QMI_OP_ATTEND: return op->attend.kv_heads;
    case QMI_OP_DELTA: return op->delta.key_heads;
    case QMI_OP_GLU: return op->glu.gate.rows;
    case QMI_OP_EXPERTS: return op->experts.down.columns;
    default: return op->logits.output.rows;
    }
}

void qmi_cut_bounds(const qmi_program *program, const qmi_op *op, const qmi_sharing *sharing, int64_t bounds[QMI_RANKS_MAX + 1])
{
    const qmi_stage *stage = qmi_cut_stage(sharing, op);
    int64_t unit = 1;
    for (const qmi_op *other = program->ops; other < program->ops + program->count; other++) {
        bool alike = other->kind == op->kind && qmi_cut_stage(sharing, other) == stage;
        int64_t needed = alike ? unit_of(program, other, stage->members) : 1;
        unit = needed > unit ? needed : unit;
    }
    qmi_sharing_cut(sharing, stage, count_of(op), unit, bounds);
}

void qmi_cut_bounds_shared(const qmi_program *program, const qmi_op *op, const qmi_sharing *sharing,
                           int64_t bounds[QMI_RANKS_MAX + 1])
{
    const qmi_stage *stage = qmi_cut_stage(sharing, op);
    int64_t experts[QMI_RANKS_MAX + 1], width = op->experts.shared_down.columns;
    int64_t unit = whole_blocks(op->experts.shared_down.type, 1), floats = float_unit(width, stage->members);
    qmi_sharing_cut(sharing, stage, width, unit > floats ? unit : floats, bounds);
    qmi_cut_bounds(program, op, sharing, experts);
    /* who has none of the experts leaves his part to the next, or to the one before */
    for (int32_t i = 0; i < stage->members; i++)
        if (experts[i] == experts[i + 1] && i + 1 < stage->members)
            bounds[i + 1] = bounds[i];
    for (int32_t i = stage->members - 1; i > 0 && experts[i] == experts[i + 1]; i--)
        bounds[i] = width;
}

/* ---- heads of the delta rule ---- */

qmi_ranges qmi_cut_value_heads(const qmi_op_delta *op, int64_t first, int64_t end)
{
    qmi_ranges ranges = { 0 };
    int64_t values = op->value_heads / op->key_heads;
    if (op->grouped || end - first == op->key_heads)
        return qmi_ranges_one(first * values, end * values);
    for (int64_t i = 0; i < values; i++)
        qmi_ranges_add(&ranges, i * op->key_heads + first, end - first);
    return ranges;
}

qmi_ranges qmi_cut_channels(const qmi_op_delta *op, int64_t first, int64_t end)
{
    int64_t keys = (int64_t)op->key_heads * op->key_size;
    qmi_ranges heads = qmi_cut_value_heads(op, first, end), ranges = { 0 };
    qmi_ranges_add(&ranges, first * op->key_size, (end - first) * op->key_size);
    qmi_ranges_add(&ranges, keys + first * op->key_size, (end - first) * op->key_size);
    for (int32_t i = 0; i < heads.count; i++)
        qmi_ranges_add(&ranges, 2 * keys + heads.list[i].first * op->value_size, heads.list[i].count * op->value_size);
    return ranges;
}
