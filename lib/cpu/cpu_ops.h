/* How the CPU runs ops: what a worker knows, and the pieces that the ops are made of.
 *
 * All workers walk the program together and call each op's function; within it they share the work by counted items and meet at
 * barriers, and after it at one more. Scratch lies in one block: a part that all share, then one of each worker's own. */
#ifndef QMI_CPU_CPU_OPS_H
#define QMI_CPU_CPU_OPS_H

#include <stddef.h>
#include "backend/program.h"
#include "cpu/cpu_pool.h"
#include "cpu/kernels.h"

#define QMI_CPU_ROWS_MAX (1 << 20) /* of a batch: keeps sizes of scratch within 64 bits, given the limits of op.h */
#define QMI_CPU_BATCH 512          /* rows from which products gain nothing more from a larger batch */
#define QMI_CPU_TOKENS 64          /* of a tile: their activations stay in the second-level cache while rows pass by */
#define QMI_CPU_CHUNK_MAX 64       /* rows of a matrix that are one item of work */
#define QMI_CPU_ROWS 16            /* that kernels of quantized weights take together, or 8: items are whole multiples */
#define QMI_CPU_PRIVATE_ROWS 2     /* up to so many rows each worker prepares activations for itself, which is quicker than
                                      sharing them and meeting at a barrier */

/* Hands out pieces of scratch, or only counts when base is NULL: an op lays out its scratch in one function for both uses. */
typedef struct qmi_cpu_room {
    char *base;
    int64_t used;
} qmi_cpu_room;

void *qmi_cpu_take(qmi_cpu_room *room, int64_t count, int64_t size); /* aligned to QMI_ALIGNMENT; NULL when counting */

/* Cosines and sines of a position, kept while it stays the same: layer after layer turns by the same angles. */
typedef struct qmi_cpu_rotation {
    int64_t position;       /* -1: none yet */
    qmi_address frequency;
    float cosine[QMI_HEAD_SIZE_MAX / 2], sine[QMI_HEAD_SIZE_MAX / 2];
} qmi_cpu_rotation;

typedef struct qmi_cpu_worker {
    const qmi_cpu_kernels *kernels;
    const qmi_workspace *workspace;
    const qmi_program *program;
    const qmi_batch *batch;
    qmi_cpu_pool *pool;
    int32_t index, threads;
    char *shared, *own;     /* scratch */
    qmi_cpu_rotation rotation;
} qmi_cpu_worker;

typedef struct qmi_cpu_op {
    /* Takes the scratch that a batch of so many rows needs; NULL: none. */
    void (*lay_out)(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own);
    void (*run)(qmi_cpu_worker *w, const qmi_op *op);
} qmi_cpu_op;

extern const qmi_cpu_op qmi_cpu_op_embed, qmi_cpu_op_join, qmi_cpu_op_project, qmi_cpu_op_glu, qmi_cpu_op_project_add,
    qmi_cpu_op_attend, qmi_cpu_op_delta, qmi_cpu_op_route, qmi_cpu_op_experts, qmi_cpu_op_logits;

/* Row of a slot. */
static inline float *qmi_cpu_row(const qmi_cpu_worker *w, qmi_slot slot, int64_t row)
{
    return (float *)(uintptr_t)w->workspace->slots[slot] + row * w->program->slots[slot].width;
}

static inline const float *qmi_cpu_floats(const qmi_vector *vector)
{
    return (const float *)(uintptr_t)vector->data;
}

/* The next item of this phase that nobody has taken; false when all `count` are. */
static inline bool qmi_cpu_next(qmi_cpu_worker *w, int64_t count, int64_t *item)
{
    *item = qmi_cpu_pool_next(w->pool, w->index, count);
    return *item < count;
}

static inline void qmi_cpu_barrier(qmi_cpu_worker *w)
{
    qmi_cpu_pool_barrier(w->pool);
}

static inline int64_t qmi_cpu_ceil(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit;
}

static inline int64_t qmi_cpu_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- cpu_matmul.c: activations, and products with them ---- */

/* Activations of a batch, in each format that was asked for. */
typedef struct qmi_cpu_inputs {
    const void *rows[2];    /* by qmi_cpu_format; NULL: not prepared */
    int64_t bytes[2];       /* from one row to the next */
} qmi_cpu_inputs;

typedef struct qmi_cpu_inputs_room {
    char *shared_f32, *shared_q8, *own_f32, *own_q8;
} qmi_cpu_inputs_room;

typedef struct qmi_cpu_inputs_work {
    const float *x;         /* [rows of the batch][columns] */
    int64_t columns;
    const qmi_norm *norm;   /* NULL or without weight: x is taken as it is */
    float *normed;          /* where the normed rows are wanted besides; or NULL */
    unsigned formats;       /* bits 1 << format */
    qmi_cpu_inputs_room room;
} qmi_cpu_inputs_work;

qmi_cpu_inputs_room qmi_cpu_inputs_lay_out(int64_t columns, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own);
/* Called by all workers; they may read the inputs at once, but `normed` only after the next barrier. */
qmi_cpu_inputs qmi_cpu_inputs_prepare(qmi_cpu_worker *w, const qmi_cpu_inputs_work *work);

static inline unsigned qmi_cpu_format_bit(const qmi_cpu_worker *w, const qmi_matrix *matrix)
{
    return 1u << w->kernels->format[matrix->type];
}

/* Some rows of a matrix with some activations. */
typedef struct qmi_cpu_product {
    const qmi_matrix *matrix;
    int64_t first;          /* row, counted through all matrices of a stack */
    int64_t rows;
    const void *next;       /* weights that come after these: qmi_cpu_row_of; NULL: the rows behind */
    qmi_cpu_inputs inputs;
    const int32_t *order;   /* [tokens] rows of the inputs; NULL: 0, 1, ... */
    int64_t tokens;
    float *out;             /* of the first row and token */
    int64_t out_stride;     /* floats from token to token */
    bool add;
    float *unpacked;        /* own scratch for a row, when the matrix's type has no kernel: qmi_cpu_unpacked_lay_out */
} qmi_cpu_product;

static inline const void *qmi_cpu_row_of(const qmi_matrix *matrix, int64_t row)
{
    return (const char *)(uintptr_t)matrix->data + row * qmi_quant_row_bytes(matrix->type, matrix->columns);
}

float *qmi_cpu_unpacked_lay_out(int64_t columns, qmi_cpu_room *own);
void qmi_cpu_multiply(const qmi_cpu_worker *w, const qmi_cpu_product *product);

/* Rows of an item of work, a multiple of `unit`, at most `most`: a few items a worker, so that one who is held up does not hold
 * up all; when decoding, some more, since the last item's time is much of an op's. An item is for QMI_CPU_TOKENS of `tokens`
 * tokens: a kernel prepares activations once for all its rows, so with many tokens, items of few rows would cost more. */
int64_t qmi_cpu_chunk(int64_t rows, int64_t tokens, int32_t threads, int64_t unit, int64_t most);

#endif
