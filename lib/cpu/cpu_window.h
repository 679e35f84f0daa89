/* ATTEND's view of stored keys and values: where those of a token lie, and the window of tokens that are not packed yet.
 *
 *   positions:  | packed: pages | window: the state's ring | this batch's own rows |
 *               0               packed                     start                   start + count
 *
 * The packed ones are fewer for a batch's first rows than for its last ones (qmi_kv_packed). Without a window all is in pages. */
#ifndef QMI_CPU_CPU_WINDOW_H
#define QMI_CPU_CPU_WINDOW_H

#include "cpu/cpu_ops.h"

typedef enum qmi_cpu_part { QMI_CPU_KEYS, QMI_CPU_VALUES } qmi_cpu_part;

typedef struct qmi_cpu_window {
    uint16_t *keys, *values; /* shared [kv_heads][rows][head_size]: the batch's own, as f16 */
    int32_t rows;            /* of those */
    float *turned;           /* shared [rows][heads][head_size]: queries in the basis of the packed keys */
    float *group;            /* own [2][QMI_KV_GROUP][head_size] */
} qmi_cpu_window;

qmi_cpu_window qmi_cpu_window_lay_out(const qmi_op_attend *op, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own);

const qmi_sequence *qmi_cpu_sequence_of(const qmi_batch *batch, int64_t row);

/* Where a page has a token's key or value; of keys of q2, its group. */
void *qmi_cpu_stored(const qmi_op_attend *op, const qmi_sequence *sequence, qmi_cpu_part part, int32_t kv_head, int64_t position);

/* Tokens from a position on whose records lie one after the other. */
typedef struct qmi_cpu_run {
    const void *records;
    qmi_kv_type type;
    int32_t count;
} qmi_cpu_run;

/* The run that begins there, at most `most` of it, for a row that sees so many tokens. */
qmi_cpu_run qmi_cpu_run_of(const qmi_op_attend *op, const qmi_cpu_window *window, const qmi_sequence *sequence,
                           qmi_cpu_part part, int32_t kv_head, int64_t position, int64_t most, int64_t tokens);

/* keys or values of the window: those of a row of the batch. */
static inline uint16_t *qmi_cpu_window_row(const qmi_op_attend *op, const qmi_cpu_window *window, uint16_t *part, int64_t row,
                                           int32_t kv_head)
{
    return part + ((int64_t)kv_head * window->rows + row) * op->head_size;
}

static inline float *qmi_cpu_window_query(const qmi_op_attend *op, const qmi_cpu_window *window, int64_t row, int32_t kv_head)
{
    return window->turned + (row * op->heads + (int64_t)kv_head * (op->heads / op->kv_heads)) * op->head_size;
}

/* T^-T q of a row's query heads of a key-value head; its queries are in the slot `out`. */
void qmi_cpu_window_turn(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window, int64_t row,
                            int32_t kv_head);

/* Called by all workers: packs what the batch's last rows see packed and its sequences' last batches did not; the pages may be
 * read when it returns. */
void qmi_cpu_window_pack(qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window);
/* Called by all workers, when the last row is done: what is not packed goes into the next state. */
void qmi_cpu_window_keep(qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_window *window);

#endif
