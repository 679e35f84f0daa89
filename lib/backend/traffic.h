/* What decoding moves through the memory, counted from a program: what its speed is bound by where computing is quick enough.
 *
 * Counted is what cannot stay in a cache from one step to the next: weights, recurrent state, keys and values. The slots, the
 * logits and the one row of the embedding are not. */
#ifndef QMI_BACKEND_TRAFFIC_H
#define QMI_BACKEND_TRAFFIC_H

#include "backend/program.h"

typedef struct qmi_traffic { /* bytes */
    int64_t step;      /* weights that a step reads once, whatever its batch */
    int64_t experts;   /* weights of the experts that one token chooses, beyond that */
    int64_t sequence;  /* recurrent state that a sequence reads and writes for a token */
    int64_t held;      /* keys and values that a sequence reads for each token that it holds */
} qmi_traffic;

qmi_traffic qmi_traffic_of(const qmi_program *program); /* that is valid */

#endif
