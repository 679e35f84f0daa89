/* A helper: what computes experts where they lie, in the host's memory, for a device to which they were lent. Bringing them over
 * pays only for batches of many rows; for fewer the device asks, goes on with the shared expert, and adds what it gets. */
#ifndef QMI_BACKEND_HELPER_H
#define QMI_BACKEND_HELPER_H

#include <stddef.h>
#include "backend/program.h"

/* A question, in the host's memory: what ROUTE has written of `rows` rows, and room for the answer. */
typedef struct qmi_help {
    const float *hidden;   /* [rows][D] */
    const float *route;    /* [rows][2 top + 1]; an index below 0: the device computes that one itself */
    float *out;            /* [rows][D]: sum_k w_k down_e(silu(gate_e h) * up_e h), without the shared expert */
    int32_t rows;
    const int32_t *cancel; /* as in the batch */
} qmi_help;

typedef struct qmi_helper {
    /* Of the program's EXPERTS op number `op`. Called by the thread that runs the program, one question after the other, in the
     * order of the ops. A failure ends the run with that code. */
    int32_t (*compute)(void *user, const qmi_program *program, size_t op, const qmi_help *help);
    void *user;
    int32_t rows;          /* of the largest batch that is computed so */
    int64_t cache_bytes;   /* of the device's memory for experts that are chosen often, which it then computes itself; 0: none */
    int64_t timeout_ns;    /* until a device that does not ask counts as lost; < 0: never */
} qmi_helper;

#endif
