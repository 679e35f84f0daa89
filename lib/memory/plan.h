/* The plan: what a model needs on a device, from the file's header and the options alone. A pure function: it allocates nothing and asks
 * nothing of the machine; what is free is an argument. Loading follows it, and `info` prints it. */
#ifndef QMI_MEMORY_PLAN_H
#define QMI_MEMORY_PLAN_H

#include "base/options.h"
#include "file/gguf.h"
#include "memory/kv_format.h"

typedef struct qmi_plan {
    qmi_hparams hparams;
    qmi_kv_layout kv;
    bool mtp;                 /* the block is run along */
    /* choices */
    int64_t context;          /* tokens of a session made with these options */
    int32_t chunk;            /* rows of the largest batch */
    int32_t outputs;          /* rows whose logits one batch can give */
    int32_t sequences;        /* sessions decoded together at most */
    /* bytes */
    int64_t weights;          /* of the file's tensors, used where they are mapped */
    int64_t vectors;          /* norms and the like, as float32 */
    int64_t workspace;        /* activations of a batch */
    int64_t scratch;          /* the backend's own */
    int64_t kv_session;       /* keys and values of one session */
    int64_t state_session;    /* recurrent state of one session, with the copy that a prompt is computed into */
    int64_t total;            /* all of the above, one session */
    int64_t available;        /* what the device has; -1: unknown */
    bool mapped;              /* weights are used where the file is mapped: they need not be free memory at once */
    bool fits;
    char reason[512];         /* why not, and which settings would fit */
} qmi_plan;

/* scratch_bytes: the backend's function of that name (NULL: none). memory: bytes that the device has for us, -1: unknown.
 * QM_ERROR_FORMAT, _UNSUPPORTED and _OPTION (a context the model or the answer budget does not allow) come with their message;
 * not fitting is no error here: `fits` says so. */
int32_t qmi_plan_make(const qmi_gguf *gguf, const qmi_settings *settings, int64_t (*scratch_bytes)(const qmi_program *, int32_t, int32_t),
                      int32_t threads, int64_t memory, bool mapped, const qmi_alloc *alloc, qmi_plan *out);

/* The session's context by its options: QM_ERROR_OPTION unless answer-tokens < context <= the model's length (numbers in the message). */
int32_t qmi_plan_context(const qmi_hparams *hparams, const qmi_settings *settings, int64_t *context);

/* As a table for people, or as JSON. snprintf rules. */
int64_t qmi_plan_table(const qmi_plan *plan, char *text, int64_t size);
int64_t qmi_plan_json(const qmi_plan *plan, char *text, int64_t size);

#endif
