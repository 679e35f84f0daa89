/* The matrices and vectors of an op, whatever its kind; absent ones among them. */
#ifndef QMI_EXCHANGE_OPERANDS_H
#define QMI_EXCHANGE_OPERANDS_H

#include "backend/op.h"

typedef struct qmi_operands {
    int32_t matrix_count, vector_count;
    qmi_matrix *matrices[8];
    qmi_vector *vectors[6];
} qmi_operands;

qmi_operands qmi_operands_of(qmi_op *op);

#endif
