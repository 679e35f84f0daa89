/* A program: the list of ops of a forward pass and the slots they work on; and the workspace that holds those slots. */
#ifndef QMI_BACKEND_PROGRAM_H
#define QMI_BACKEND_PROGRAM_H

#include "base/alloc.h"
#include "backend/op.h"

#define QMI_SLOTS_MAX 24
#define QMI_SLOT_WIDTH_MAX QMI_ROWS_MAX /* floats; 2^24 rows of all slots stay far below 2^63 bytes */

typedef struct qmi_slot_shape {
    const char *name;
    int64_t width;   /* floats a row */
    bool outputs;    /* a row for each output of the batch; else for each token */
} qmi_slot_shape;

typedef struct qmi_program {
    qmi_op *ops;
    size_t count, capacity;
    qmi_slot_shape slots[QMI_SLOTS_MAX];
    int32_t slot_count;
} qmi_program;

/* Returns the slot's index, or a negative code when there are too many. A slot of the same name and width is shared. */
qmi_slot qmi_program_slot(qmi_program *program, const char *name, int64_t width, bool outputs);
int32_t qmi_program_append(qmi_program *program, const qmi_alloc *alloc, const qmi_op *op);
void qmi_program_free(qmi_program *program, const qmi_alloc *alloc);

/* Checks every operand against every other once, so that backends need not: slots exist and are as wide as the op says, matrices
 * are there and fit, types are known, sizes are positive and in the kernels' limits. QM_ERROR_FORMAT names op, layer, operand. */
int32_t qmi_program_validate(const qmi_program *program);

/* What a step computes. Arrays are the caller's and on the host. */
typedef struct qmi_sequence {
    int32_t first, count;        /* rows of the batch: [first, first + count) */
    int64_t start;               /* position of its first row = tokens that it has behind it */
    const qmi_address *pages;    /* page table, long enough for start + count tokens */
    qmi_address state;           /* recurrent state before these rows; 0 when the model has none */
    qmi_address next_state;      /* and where it goes; may be the same */
} qmi_sequence;

#define QMI_PICKS_MAX 32
typedef struct qmi_pick { /* one of an output's highest logits */
    float logit;
    int32_t id;
} qmi_pick;

typedef struct qmi_batch {
    int32_t count;               /* rows */
    const int32_t *tokens;       /* [count], each checked against the vocabulary */
    int32_t sequence_count;
    const qmi_sequence *sequences; /* cover all rows, in order */
    int32_t output_count;
    const int32_t *outputs;      /* rows whose logits are wanted, ascending */
    qmi_pick *picks;             /* [output_count][QMI_PICKS_MAX] or NULL: to be filled with each output's highest logits, highest first (of
                                  * equal ones the lower id; NaN counts as -inf); only where the device's info says `picks` */
    const int32_t *cancel;       /* read atomically between ops: not 0 stops the run; NULL: never */
    struct qmi_joint_end *const *joints; /* by number, for SUM; NULL: the program has none */
} qmi_batch;

/* The slots' memory on a device. */
typedef struct qmi_workspace {
    qmi_address slots[QMI_SLOTS_MAX];
    int32_t rows, outputs;       /* the largest batch it can take */
} qmi_workspace;

/* Bytes of all slots, each rounded up to QMI_ALIGNMENT. */
int64_t qmi_workspace_bytes(const qmi_program *program, int32_t rows, int32_t outputs);

#endif
