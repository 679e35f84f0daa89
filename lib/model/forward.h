/* The forward pass: the one place that knows the order of a layer. Appends ops; does no arithmetic. */
#ifndef QMI_MODEL_FORWARD_H
#define QMI_MODEL_FORWARD_H

#include "backend/program.h"
#include "model/hparams.h"
#include "model/weights.h"

/* Where a page keeps each attention layer's keys and values (memory/kv_format.h decides the numbers). */
typedef struct qmi_kv_layout {
    qmi_kv_type key_type, value_type;
    bool rotate_keys, rotate_values;
    int32_t page_tokens;
    int64_t layer_bytes;   /* a layer's keys and values in a page: keys first, then values */
    int64_t value_offset;  /* values within a layer */
    int64_t page_bytes;    /* all layers */
    int64_t mtp_offset;    /* of the multi-token-prediction block's; page_bytes: it has none */
    int32_t heads;         /* of keys and of values */
    int32_t window;        /* tokens kept as f16 before they are packed; 0: none are */
    int64_t window_offset; /* where the windows lie in a session's recurrent state, a layer's in window_bytes */
    int64_t window_bytes;
    qmi_address correction, moments; /* of keys of q2 (op.h): a layer's in correction_floats floats, in as many doubles; 0: none */
    int64_t correction_floats;
} qmi_kv_layout;

/* Slots by name: "hidden" (rms of the last layer's output, [rows][D]) and "logits" ([outputs][vocabulary]). Layer numbers in the
 * page: attention layers in order, then the multi-token-prediction block. Weights may be all zero addresses (a program for the
 * plan only, not to be validated or run). */
int32_t qmi_forward_build(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv, const qmi_alloc *alloc,
                          qmi_program *out);

/* The same for a part of the layers, where several devices share a model: pages and states hold those of these layers alone.
 * Without `input` slot "residual" is written before the run; without `output` it is the result, and there are no "hidden" and
 * "logits". */
typedef struct qmi_forward_part {
    int32_t first, count; /* layers */
    bool input, output;   /* the embedding before them; final norm and logits behind them */
} qmi_forward_part;

int32_t qmi_forward_build_part(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv,
                               const qmi_forward_part *part, const qmi_alloc *alloc, qmi_program *out);

/* The multi-token-prediction block: row i of slot "draft_in" holds the hidden state after output_norm of position p, the row's
 * token is that of p + 1, its sequence's position is p. "logits" predict the token at p + 2; "hidden" the next draft_in. */
int32_t qmi_forward_build_mtp(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv,
                              const qmi_alloc *alloc, qmi_program *out);

qmi_slot qmi_forward_slot(const qmi_program *program, const char *name); /* must exist */

#endif
