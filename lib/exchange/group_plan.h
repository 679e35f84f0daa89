/* What a sharing takes on each of its members: every byte, from the same cut that loading follows. As pure as the plan, whose
 * choices of context, types and sequences it keeps; what is free is an argument. */
#ifndef QMI_EXCHANGE_GROUP_PLAN_H
#define QMI_EXCHANGE_GROUP_PLAN_H

#include "exchange/cut.h"
#include "memory/split.h"

typedef struct qmi_member_plan {
    int32_t first, count;     /* layers that it has a part of */
    double part;              /* how much of them: 1, or its share */
    int32_t expert_layers;    /* of other stages, whose experts it has */
    /* bytes */
    int64_t weights;          /* matrices as they lie on the device */
    int64_t copied;           /* of them, where weights are used in the mapped file: what is gathered from it */
    int64_t lent;             /* room for experts that come from the host's memory for batches of many rows */
    int64_t cache;            /* for experts of the host that are chosen often: as option expert-cache says */
    int64_t vectors, kv, state, checkpoints, workspace, scratch, fixed;
    int64_t total;            /* what has to be free: not what is used where the file is mapped */
    int64_t available;        /* -1: unknown */
    /* of one token computed alone */
    int64_t token_bytes;      /* weights that it reads */
    int32_t runs, exchanges;  /* programs; sums, sends and receives */
} qmi_member_plan;

typedef struct qmi_group_plan {
    int32_t count;
    qmi_member_plan members[QMI_RANKS_MAX];
    int32_t chunk, rows, checkpoints;
    bool fits;
    char reason[512];
    double decode_ns;         /* predicted: qmi_group_rates */
} qmi_group_plan;

/* Constants that a prediction is made of, measured or known. */
typedef struct qmi_group_rates {
    double read[QMI_RANKS_MAX];  /* bytes a second of its weights that a member reads; 0: unknown, and nothing is predicted */
    double op_ns[QMI_RANKS_MAX]; /* what each op costs besides */
    double run_ns[QMI_RANKS_MAX]; /* and each program: starting it and waiting for its end */
    double exchange_ns;          /* a sum */
    double message_ns;           /* from one to another */
    double byte_ns;              /* and each byte of it */
} qmi_group_rates;

typedef struct qmi_group_question {
    const qmi_gguf *gguf;
    const qmi_settings *settings;
    const qmi_plan *plan;                /* of all together: context, types, sequences */
    const qmi_sharing *sharing;
    const qmi_plan_device *devices;      /* [sharing->members] */
    const qmi_group_rates *rates;        /* NULL: nothing is predicted */
} qmi_group_question;

/* Not fitting is no error: `fits` says so. The chunk is the plan's, or half of it and so on until all fits. */
int32_t qmi_group_plan_make(const qmi_group_question *question, const qmi_alloc *alloc, qmi_group_plan *out);

qmi_cut_sizes qmi_group_plan_sizes(const qmi_plan *plan);

/* The sharing that the split by memory has found: layers by cards, and what they have no room for with the host. */
void qmi_group_plan_by_memory(const qmi_split *split, const qmi_plan_device *devices, int32_t layers, qmi_sharing *out);

/* As a table for people; snprintf rules. */
int64_t qmi_group_plan_table(const qmi_group_plan *plan, const qmi_sharing *sharing, const qmi_plan_device *devices, char *text,
                             int64_t size);

#endif
