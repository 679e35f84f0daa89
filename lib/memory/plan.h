/* The plan: what a model needs on a device, from the file's header and the options alone. A pure function: it allocates nothing
 * and asks nothing of the machine; what is free is an argument. Loading follows it, and `info` prints it. */
#ifndef QMI_MEMORY_PLAN_H
#define QMI_MEMORY_PLAN_H

#include "base/options.h"
#include "file/gguf.h"
#include "memory/kv_format.h"
#include "memory/state.h"

typedef struct qmi_plan {
    qmi_hparams hparams;
    qmi_kv_layout kv;
    qmi_state_layout state;
    bool mtp;                 /* the block is run along */
    /* choices */
    int64_t context;          /* tokens of a session made with these options */
    int32_t chunk;            /* tokens of a prompt computed at once */
    int32_t rows;             /* of the largest batch: a chunk, or a token of each session; at least two, so that one can be
                                 computed again beside another */
    int32_t outputs;          /* rows whose logits one batch can give */
    int32_t sequences;        /* sessions decoded together at most */
    /* bytes */
    int64_t weights;          /* of the file's tensors, used where they are mapped; or of matrices as they lie on the device */
    qmi_weight_sums sums;     /* which of them are converted */
    int64_t vectors;          /* norms and the like, as float32 */
    int64_t correction;       /* of keys of q2 by option kv-correction, and what kv-fit gathers; as much for each attention layer */
    int64_t workspace;        /* activations of a batch */
    int64_t scratch;          /* the backend's own, for the program */
    int64_t fixed;            /* the backend's own, in any case */
    int64_t kv_session;       /* keys and values of one session */
    int64_t kv_pool;          /* taken for those of all sessions when the model is loaded: one's, or option kv-memory */
    bool kv_grows;            /* sessions may take more than that, as far as the device has memory */
    int64_t state_session;    /* recurrent state of one session, with the copy that a prompt is computed into */
    int64_t logits_session;   /* logits (and hidden state) of one session's last token, likewise twice */
    int32_t checkpoints;      /* states that are kept to go back to */
    int64_t checkpoint_memory; /* theirs, and a page each, since whoever goes on copies the one that it would change */
    int64_t total;            /* what is taken with one session */
    int64_t available;        /* what the device has; -1: unknown */
    bool mapped;              /* weights are used where the file is mapped: they need not be free memory at once */
    bool fits;
    char reason[512];         /* why not, and which settings would fit */
} qmi_plan;

/* What the plan needs to know of a device. */
typedef struct qmi_plan_device {
    const char *name;         /* for people */
    int64_t memory;           /* bytes that it has for us; -1: unknown */
    int64_t fixed;            /* bytes of them that the backend takes whatever the program */
    bool mapped;              /* weights are used where the file is mapped */
    bool lends;               /* experts can stay in the host's memory and come for each run (backend.h: lend) */
    int32_t threads;
    int32_t chunk_low, chunk_high; /* qmi_device_info */
    qmi_matrix_bytes_function matrix_bytes; /* NULL: the file's bytes */
    int64_t (*scratch_bytes)(const qmi_program *program, int32_t rows, int32_t threads); /* NULL: none */
} qmi_plan_device;

/* Where option checkpoint-memory leaves the choice, checkpoints take at most a quarter of what is left beside all else.
 * Where option chunk leaves the choice: the largest halving of chunk_high whose activations and scratch are at most a quarter of
 * what is left beside weights and one session; no fewer than chunk_low for that; and fewer if it does not fit otherwise.
 * Where option kv-type is auto: the best type that leaves room for chunk_low rows and states to go back to.
 * QM_ERROR_FORMAT, _UNSUPPORTED and _OPTION (a context the model or the answer budget does not allow) come with their message;
 * not fitting is no error here: `fits` says so. */
int32_t qmi_plan_make(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan_device *device, const qmi_alloc *alloc,
                      qmi_plan *out);

/* The session's context by its options: QM_ERROR_OPTION unless answer-tokens < context <= the model's length (numbers in the
 * message). */
int32_t qmi_plan_context(const qmi_hparams *hparams, const qmi_settings *settings, int64_t *context);

/* States to go back to that are worth their memory, where there is enough. */
int64_t qmi_plan_checkpoints(const qmi_plan *plan);

/* As a table for people, or as JSON. snprintf rules. */
int64_t qmi_plan_table(const qmi_plan *plan, char *text, int64_t size);
int64_t qmi_plan_json(const qmi_plan *plan, char *text, int64_t size);

#endif
