/* Activations in the formats that the dot kernels want, and products of rows of weights with them. */
#include <string.h>

#include "cpu/cpu_ops.h"

void *qmi_cpu_take(qmi_cpu_room *room, int64_t count, int64_t size)
{
    int64_t bytes = qmi_cpu_ceil(count * size, QMI_ALIGNMENT) * QMI_ALIGNMENT, at = room->used;
    room->used += bytes;
    return room->base ? room->base + at : NULL;
}

static int64_t f32_bytes(int64_t columns)
{
    return qmi_cpu_ceil(columns * (int64_t)sizeof(float), QMI_ALIGNMENT) * QMI_ALIGNMENT;
}

static int64_t q8_bytes(int64_t columns)
{
    return qmi_cpu_ceil(qmi_q8_bytes(columns), QMI_ALIGNMENT) * QMI_ALIGNMENT;
}

qmi_cpu_inputs_room qmi_cpu_inputs_lay_out(int64_t columns, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    int64_t own_rows = rows < QMI_CPU_PRIVATE_ROWS ? rows : QMI_CPU_PRIVATE_ROWS;
    int64_t shared_rows = rows > QMI_CPU_PRIVATE_ROWS ? rows : 0;
    return (qmi_cpu_inputs_room){
        .shared_f32 = qmi_cpu_take(shared, shared_rows, f32_bytes(columns)),
        .shared_q8 = qmi_cpu_take(shared, shared_rows, q8_bytes(columns)),
        .own_f32 = qmi_cpu_take(own, own_rows, f32_bytes(columns)),
        .own_q8 = qmi_cpu_take(own, own_rows, q8_bytes(columns)),
    };
}

/* One row: normed into f32, and quantized into q8. Each may be NULL when it is not wanted. */
static void prepare_row(const qmi_cpu_worker *w, const qmi_cpu_inputs_work *work, int64_t row, float *f32, void *q8)
{
    const float *x = work->x + row * work->columns;
    if (f32) {
        if (work->norm && work->norm->weight.data)
            w->kernels->rms(x, qmi_cpu_floats(&work->norm->weight), work->norm->epsilon, f32, work->columns);
        else
            memcpy(f32, x, (size_t)work->columns * sizeof *f32);
        x = f32;
    }
    if (q8)
        w->kernels->quantize(x, q8, work->columns, 0, work->columns);
}

/* Each worker for itself; the first also leaves the normed rows where they are wanted. */
static void prepare_own(const qmi_cpu_worker *w, const qmi_cpu_inputs_work *work, qmi_cpu_inputs *inputs)
{
    bool normed = work->normed || (work->norm && work->norm->weight.data);
    for (int64_t row = 0; row < w->batch->count; row++) {
        float *f32 = normed ? (float *)(void *)(work->room.own_f32 + row * f32_bytes(work->columns)) : NULL;
        bool quantized = work->formats & 1u << QMI_FORMAT_Q8;
        prepare_row(w, work, row, f32, quantized ? work->room.own_q8 + row * q8_bytes(work->columns) : NULL);
        if (work->normed && w->index == 0)
            memcpy(work->normed + row * work->columns, f32, (size_t)work->columns * sizeof *f32);
    }
    if (normed) {
        inputs->rows[QMI_FORMAT_F32] = work->room.own_f32;
        inputs->bytes[QMI_FORMAT_F32] = f32_bytes(work->columns);
    }
    inputs->rows[QMI_FORMAT_Q8] = work->room.own_q8;
}

/* All together, each row once. */
static void prepare_shared(qmi_cpu_worker *w, const qmi_cpu_inputs_work *work, qmi_cpu_inputs *inputs)
{
    bool normed = work->normed || (work->norm && work->norm->weight.data);
    bool kept = work->formats & 1u << QMI_FORMAT_F32, quantized = work->formats & 1u << QMI_FORMAT_Q8;
    char *f32_rows = work->normed ? (char *)work->normed : kept ? work->room.shared_f32 : work->room.own_f32;
    int64_t f32_step = work->normed ? work->columns * (int64_t)sizeof(float) : kept ? f32_bytes(work->columns) : 0;
    for (int64_t row; qmi_cpu_next(w, w->batch->count, &row);) {
        float *f32 = normed ? (float *)(void *)(f32_rows + row * f32_step) : NULL;
        prepare_row(w, work, row, f32, quantized ? work->room.shared_q8 + row * q8_bytes(work->columns) : NULL);
    }
    qmi_cpu_barrier(w);
    if (normed) {
        inputs->rows[QMI_FORMAT_F32] = f32_rows;
        inputs->bytes[QMI_FORMAT_F32] = f32_step;
    }
    inputs->rows[QMI_FORMAT_Q8] = work->room.shared_q8;
}

qmi_cpu_inputs qmi_cpu_inputs_prepare(qmi_cpu_worker *w, const qmi_cpu_inputs_work *work)
{
    qmi_cpu_inputs inputs = { .rows = { work->x, NULL },
                              .bytes = { work->columns * (int64_t)sizeof(float), q8_bytes(work->columns) } };
    bool as_it_is = !work->normed && !(work->norm && work->norm->weight.data) && !(work->formats & 1u << QMI_FORMAT_Q8);
    if (as_it_is)
        return inputs;
    if (w->batch->count <= QMI_CPU_PRIVATE_ROWS)
        prepare_own(w, work, &inputs);
    else
        prepare_shared(w, work, &inputs);
    return inputs;
}

float *qmi_cpu_unpacked_lay_out(int64_t columns, qmi_cpu_room *own)
{
    return qmi_cpu_take(own, columns, sizeof(float));
}

int64_t qmi_cpu_chunk(int64_t rows, int64_t tokens, int32_t threads, int64_t unit, int64_t most)
{
    int64_t total = rows * qmi_cpu_ceil(tokens, QMI_CPU_TOKENS), items = tokens <= QMI_CPU_PRIVATE_ROWS ? 16 : 8;
    int64_t chunk = qmi_cpu_ceil(qmi_cpu_ceil(total, items * threads), unit) * unit;
    return chunk < most ? chunk : most;
}

/* A type without a kernel: row by row through floats. */
static void multiply_unpacked(const qmi_cpu_worker *w, const qmi_cpu_tile *tile, uint32_t type, float *unpacked)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    qmi_cpu_tile row = *tile;
    row.weights = unpacked;
    row.row_bytes = tile->columns * (int64_t)sizeof(float);
    row.rows = 1;
    for (int32_t r = 0; r < tile->rows; r++) {
        format->unpack((const char *)tile->weights + r * tile->row_bytes, unpacked, tile->columns / format->block);
        row.out = tile->out + r;
        w->kernels->dot[QMI_TYPE_F32](&row);
    }
}

void qmi_cpu_multiply(const qmi_cpu_worker *w, const qmi_cpu_product *product)
{
    const qmi_matrix *matrix = product->matrix;
    const qmi_cpu_dot dot = w->kernels->dot[matrix->type];
    const int format = w->kernels->format[matrix->type];
    int64_t row_bytes = qmi_quant_row_bytes(matrix->type, matrix->columns);
    qmi_cpu_tile tile = { .weights = qmi_cpu_row_of(matrix, product->first), .row_bytes = row_bytes,
                          .columns = matrix->columns, .next = product->next, .input_bytes = product->inputs.bytes[format],
                          .out_stride = product->out_stride, .rows = (int32_t)product->rows, .add = product->add };
    for (int64_t t = 0; t < product->tokens; t += QMI_CPU_TOKENS) {
        tile.tokens = (int32_t)qmi_cpu_least(product->tokens - t, QMI_CPU_TOKENS);
        tile.order = product->order ? product->order + t : NULL;
        tile.inputs = (const char *)product->inputs.rows[format] + (product->order ? 0 : t * tile.input_bytes);
        tile.out = product->out + t * product->out_stride;
        if (dot)
            dot(&tile);
        else
            multiply_unpacked(w, &tile, matrix->type, product->unpacked);
    }
}
