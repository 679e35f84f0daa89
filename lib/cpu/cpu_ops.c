/* The ops that are little more than matrices: EMBED, JOIN, PROJECT, GLU, PROJECT_ADD and LOGITS. */
#include <string.h>

#include "cpu/cpu_ops.h"

/* ---- EMBED, JOIN ---- */

static void look_up(const qmi_cpu_worker *w, const qmi_matrix *table, int64_t row, float *to)
{
    const qmi_quant_format *format = qmi_quant_format_of(table->type);
    int64_t row_bytes = qmi_quant_row_bytes(table->type, table->columns);
    const char *from = (const char *)(uintptr_t)table->data + w->batch->tokens[row] * row_bytes;
    format->unpack(from, to, table->columns / format->block);
}

static void run_embed(qmi_cpu_worker *w, const qmi_op *op)
{
    for (int64_t row; qmi_cpu_next(w, w->batch->count, &row);)
        look_up(w, &op->embed.table, row, qmi_cpu_row(w, op->embed.out, row));
}

static void normalise(const qmi_cpu_worker *w, const qmi_norm *norm, float *x, int64_t count)
{
    if (norm->weight.data)
        w->kernels->rms(x, qmi_cpu_floats(&norm->weight), norm->epsilon, x, count);
}

static void run_join(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_join *join = &op->join;
    int64_t width = join->table.columns;
    for (int64_t row; qmi_cpu_next(w, w->batch->count, &row);) {
        float *out = qmi_cpu_row(w, join->out, row);
        look_up(w, &join->table, row, out);
        memcpy(out + width, qmi_cpu_row(w, join->hidden, row), (size_t)width * sizeof *out);
        normalise(w, &join->norm, out, width);
        normalise(w, &join->hidden_norm, out + width, width);
    }
}

/* ---- PROJECT: rows of all matrices are one long list of items ---- */

typedef struct project_room {
    qmi_cpu_inputs_room inputs;
    float *unpacked;
} project_room;

static project_room project_lay_out(int64_t columns, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    return (project_room){ qmi_cpu_inputs_lay_out(columns, rows, shared, own), qmi_cpu_unpacked_lay_out(columns, own) };
}

/* Where a worker's parts of the scratch begin. */
static project_room project_room_of(const qmi_cpu_worker *w, int64_t columns)
{
    qmi_cpu_room shared = { w->shared, 0 }, own = { w->own, 0 };
    return project_lay_out(columns, w->batch->count, &shared, &own);
}

/* Inputs from row t on. */
static qmi_cpu_inputs inputs_from(const qmi_cpu_inputs *inputs, int64_t t)
{
    qmi_cpu_inputs from = *inputs;
    for (int format = 0; format < 2; format++)
        if (from.rows[format])
            from.rows[format] = (const char *)from.rows[format] + t * from.bytes[format];
    return from;
}

/* Tokens are taken QMI_CPU_TOKENS at a time, an item each: one after the other for the same rows of weights. */
typedef struct token_part {
    int64_t first, count;
} token_part;

static int64_t token_parts(const qmi_cpu_worker *w)
{
    return qmi_cpu_ceil(w->batch->count, QMI_CPU_TOKENS);
}

static token_part token_part_of(const qmi_cpu_worker *w, int64_t index)
{
    int64_t first = index * QMI_CPU_TOKENS;
    return (token_part){ first, qmi_cpu_least(QMI_CPU_TOKENS, w->batch->count - first) };
}

static void lay_out_project(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    project_lay_out(op->project.matrix[0].columns, rows, shared, own);
}

static void run_project(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_project *project = &op->project;
    int64_t columns = project->matrix[0].columns, rows = 0, chunks = 0;
    project_room room = project_room_of(w, columns);
    unsigned formats = 0;
    for (int32_t i = 0; i < project->count; i++) {
        formats |= qmi_cpu_format_bit(w, &project->matrix[i]);
        rows += project->matrix[i].rows;
    }
    int64_t chunk = qmi_cpu_chunk(rows, w->batch->count, w->threads, QMI_CPU_ROWS, QMI_CPU_CHUNK_MAX), parts = token_parts(w);
    for (int32_t i = 0; i < project->count; i++)
        chunks += qmi_cpu_ceil(project->matrix[i].rows, chunk);
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, project->in, 0), .columns = columns, .norm = &project->norm, .formats = formats,
        .room = room.inputs });
    for (int64_t item; qmi_cpu_next(w, chunks * parts, &item);) {
        token_part part = token_part_of(w, item % parts);
        int32_t i = 0;
        for (item /= parts; item >= qmi_cpu_ceil(project->matrix[i].rows, chunk); i++)
            item -= qmi_cpu_ceil(project->matrix[i].rows, chunk);
        const qmi_matrix *matrix = &project->matrix[i];
        qmi_cpu_multiply(w, &(qmi_cpu_product){
            .matrix = matrix, .first = item * chunk, .rows = qmi_cpu_least(chunk, matrix->rows - item * chunk),
            .inputs = inputs_from(&inputs, part.first), .tokens = part.count,
            .out = qmi_cpu_row(w, project->out[i], part.first) + item * chunk, .out_stride = matrix->rows,
            .unpacked = room.unpacked });
    }
}

/* ---- PROJECT_ADD ---- */

static void lay_out_project_add(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    project_lay_out(op->project_add.matrix.columns, rows, shared, own);
}

static void run_project_add(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_project_add *project = &op->project_add;
    const qmi_matrix *matrix = &project->matrix;
    project_room room = project_room_of(w, matrix->columns);
    int64_t chunk = qmi_cpu_chunk(matrix->rows, w->batch->count, w->threads, QMI_CPU_ROWS, QMI_CPU_CHUNK_MAX);
    int64_t parts = token_parts(w);
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, project->in, 0), .columns = matrix->columns, .formats = qmi_cpu_format_bit(w, matrix),
        .room = room.inputs });
    for (int64_t item; qmi_cpu_next(w, qmi_cpu_ceil(matrix->rows, chunk) * parts, &item);) {
        token_part part = token_part_of(w, item % parts);
        int64_t first = item / parts * chunk;
        qmi_cpu_multiply(w, &(qmi_cpu_product){
            .matrix = matrix, .first = first, .rows = qmi_cpu_least(chunk, matrix->rows - first),
            .inputs = inputs_from(&inputs, part.first), .tokens = part.count,
            .out = qmi_cpu_row(w, project->out, part.first) + first, .out_stride = matrix->rows, .add = project->add,
            .unpacked = room.unpacked });
    }
}

/* ---- GLU: a chunk's gate and up rows for some tokens, joined while they are in the cache ---- */

typedef struct glu_room {
    project_room project;
    float *gate, *up;       /* [QMI_CPU_TOKENS][QMI_CPU_CHUNK_MAX] */
} glu_room;

static glu_room glu_lay_out(int64_t columns, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    project_room project = project_lay_out(columns, rows, shared, own);
    float *gate = qmi_cpu_take(own, QMI_CPU_TOKENS * QMI_CPU_CHUNK_MAX, sizeof(float));
    float *up = qmi_cpu_take(own, QMI_CPU_TOKENS * QMI_CPU_CHUNK_MAX, sizeof(float));
    return (glu_room){ project, gate, up };
}

static void lay_out_glu(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    glu_lay_out(op->glu.gate.columns, rows, shared, own);
}

static void run_glu(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_glu *glu = &op->glu;
    qmi_cpu_room shared = { w->shared, 0 }, own = { w->own, 0 };
    glu_room room = glu_lay_out(glu->gate.columns, w->batch->count, &shared, &own);
    int64_t rows = glu->gate.rows, parts = token_parts(w);
    int64_t chunk = qmi_cpu_chunk(rows, w->batch->count, w->threads, QMI_CPU_ROWS, QMI_CPU_CHUNK_MAX);
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, glu->in, 0), .columns = glu->gate.columns, .norm = &glu->norm,
        .formats = qmi_cpu_format_bit(w, &glu->gate) | qmi_cpu_format_bit(w, &glu->up), .room = room.project.inputs });
    for (int64_t item; qmi_cpu_next(w, qmi_cpu_ceil(rows, chunk) * parts, &item);) {
        token_part part = token_part_of(w, item % parts);
        int64_t first = item / parts * chunk, count = qmi_cpu_least(chunk, rows - first);
        qmi_cpu_product product = {
            .matrix = &glu->gate, .first = first, .rows = count, .next = qmi_cpu_row_of(&glu->up, first),
            .inputs = inputs_from(&inputs, part.first), .tokens = part.count, .out = room.gate, .out_stride = QMI_CPU_CHUNK_MAX,
            .unpacked = room.project.unpacked };
        qmi_cpu_multiply(w, &product);
        product.matrix = &glu->up;
        product.next = qmi_cpu_row_of(&glu->gate, first + count);
        product.out = room.up;
        qmi_cpu_multiply(w, &product);
        for (int64_t i = 0; i < part.count; i++)
            w->kernels->silu_mul(room.gate + i * QMI_CPU_CHUNK_MAX, room.up + i * QMI_CPU_CHUNK_MAX,
                                 qmi_cpu_row(w, glu->out, part.first + i) + first, count);
    }
}

/* ---- LOGITS ---- */

static void lay_out_logits(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    project_lay_out(op->logits.output.columns, rows, shared, own);
}

static void run_logits(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_logits *logits = &op->logits;
    const qmi_matrix *matrix = &logits->output;
    project_room room = project_room_of(w, matrix->columns);
    int64_t chunk = qmi_cpu_chunk(matrix->rows, w->batch->output_count, w->threads, QMI_CPU_ROWS, QMI_CPU_CHUNK_MAX);
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, logits->in, 0), .columns = matrix->columns, .norm = &logits->norm,
        .normed = qmi_cpu_row(w, logits->hidden, 0), .formats = qmi_cpu_format_bit(w, matrix), .room = room.inputs });
    if (w->batch->output_count == 0)
        return;
    for (int64_t item; qmi_cpu_next(w, qmi_cpu_ceil(matrix->rows, chunk), &item);)
        qmi_cpu_multiply(w, &(qmi_cpu_product){
            .matrix = matrix, .first = item * chunk, .rows = qmi_cpu_least(chunk, matrix->rows - item * chunk), .inputs = inputs,
            .order = w->batch->outputs, .tokens = w->batch->output_count, .out = qmi_cpu_row(w, logits->logits, 0) + item * chunk,
            .out_stride = matrix->rows, .unpacked = room.unpacked });
}

const qmi_cpu_op qmi_cpu_op_embed = { NULL, run_embed };
const qmi_cpu_op qmi_cpu_op_join = { NULL, run_join };
const qmi_cpu_op qmi_cpu_op_project = { lay_out_project, run_project };
const qmi_cpu_op qmi_cpu_op_glu = { lay_out_glu, run_glu };
const qmi_cpu_op qmi_cpu_op_project_add = { lay_out_project_add, run_project_add };
const qmi_cpu_op qmi_cpu_op_logits = { lay_out_logits, run_logits };
