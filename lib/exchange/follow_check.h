/* What a rank believes of the rank that drives it: nothing. Addresses have to lie in memory that was given out, programs and
 * batches have to be what a backend may trust. */
#ifndef QMI_EXCHANGE_FOLLOW_CHECK_H
#define QMI_EXCHANGE_FOLLOW_CHECK_H

#include "backend/backend.h"

typedef struct qmi_given_block {   /* memory of the device that the driving rank may name */
    qmi_address at;
    int64_t bytes;
    bool matrix;                   /* weights: only read, and their shape is theirs */
    qmi_matrix shape;
} qmi_given_block;

typedef struct qmi_given {
    qmi_given_block *list;         /* by address */
    size_t count, capacity;
} qmi_given;

int32_t qmi_given_add(qmi_given *given, const qmi_alloc *alloc, const qmi_given_block *block);
void qmi_given_remove(qmi_given *given, qmi_address at); /* if it is there */
void qmi_given_free(qmi_given *given, const qmi_alloc *alloc);
bool qmi_given_starts(const qmi_given *given, qmi_address at); /* a block of `allocate` starts there */
/* QM_ERROR_ARGUMENT: the range is not inside one block of memory that was allocated. */
int32_t qmi_given_check(const qmi_given *given, qmi_address at, int64_t bytes);

/* A program that was put together of what has arrived: its bools are made bools first. */
int32_t qmi_follow_check_program(const qmi_given *given, qmi_program *program);
/* rows: what the program was prepared for. The sequences' page tables have page_counts[i] entries. */
int32_t qmi_follow_check_batch(const qmi_given *given, const qmi_program *program, const qmi_workspace *workspace,
                               const qmi_batch *batch, const int64_t *page_counts, int32_t rows);
bool qmi_follow_bool(bool *field);       /* whatever byte lies there becomes 0 or 1 */

#endif
