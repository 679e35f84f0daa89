/* Attention of a block of rows of one sequence: its queries pass over each span of keys and values together, so that these are
 * read once for all of them, as in a product of matrices. The results are those of one row after the other, bit for bit. */
#ifndef QMI_CPU_CPU_ATTEND_BLOCK_H
#define QMI_CPU_CPU_ATTEND_BLOCK_H

#include "cpu/cpu_ops.h"

#define QMI_CPU_SPAN 256 /* tokens whose softmax is taken together: see cpu_ops_attend.c */

/* A worker's scratch, and after qmi_cpu_attend_block_span what the span gave: of row r and head h of the group at
 * [r * group + h]. */
typedef struct qmi_cpu_attend_block {
    float *queries;        /* [rows][group][head_size] */
    float *scores;         /* [rows][group][QMI_CPU_SPAN] */
    float *unpacked;       /* [piece][head_size] keys or values, when their type has codes */
    float *largest, *sum;  /* [rows][group] */
    float *out;            /* [rows][group][head_size] */
} qmi_cpu_attend_block;

/* Whether keys and values are of types that blocks take; else their rows go one by one. */
bool qmi_cpu_attend_block_fits(const qmi_op_attend *op);
int32_t qmi_cpu_attend_block_rows(const qmi_op_attend *op);
qmi_cpu_attend_block qmi_cpu_attend_block_lay_out(const qmi_op_attend *op, qmi_cpu_room *own);

/* The rows [first, first + rows) of the batch, which are a sequence's from `position` on, with one key-value head. */
typedef struct qmi_cpu_attend_rows {
    const qmi_sequence *sequence;
    int32_t first, rows, kv_head;
    int64_t position;
} qmi_cpu_attend_rows;

/* Takes the rows' queries, `heads * head_size` floats from one row to the next. */
void qmi_cpu_attend_block_begin(const qmi_op_attend *op, const qmi_cpu_attend_block *room, const float *queries, int32_t rows);

/* With the tokens of a span, from `at` on; rows before the returned one see none of them. */
int32_t qmi_cpu_attend_block_span(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_attend_block *room,
                                  const qmi_cpu_attend_rows *rows, int64_t at);

#endif
