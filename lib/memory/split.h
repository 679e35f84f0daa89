/* The split: which of several devices would hold which layers of a model, and every byte of each. As pure as the plan, whose
 * choices of context, types and sequences it follows.
 *
 *   cards     layers in order, one run of them a card: the embedding with the first, norm, output and the multi-token-prediction
 *             block with the last; as evenly filled as whole layers allow
 *   host      the CPU, if it is among the devices: what the cards have no room for. Of a mixture of experts first the experts of
 *             the last layers, which are most of the bytes and a small part of the work; then, as of dense models, the first
 *             layers
 *
 * Each device has keys, values, states and checkpoints of its own layers and activations for a batch of its own, so a share is
 * all that its device needs to know. */
#ifndef QMI_MEMORY_SPLIT_H
#define QMI_MEMORY_SPLIT_H

#include "memory/plan.h"

#define QMI_SPLIT_DEVICES 17 /* 16 cards and the host */

typedef struct qmi_split_share {
    qmi_forward_part part;     /* its layers; count 0: none, and no bytes but those of experts */
    int32_t attention_layers;  /* with keys and values: of its layers, and the multi-token-prediction block */
    int32_t delta_layers;
    int32_t expert_layers;     /* of the host: layers on cards whose experts it has */
    /* bytes */
    int64_t weights, vectors, kv, state, logits, checkpoints, workspace, scratch, fixed;
    int64_t total;             /* of them what has to be free: not weights that are used where the file is mapped */
    int64_t available;         /* -1: unknown */
} qmi_split_share;

typedef struct qmi_split {
    int32_t count;             /* devices */
    qmi_split_share shares[QMI_SPLIT_DEVICES]; /* in the order of the devices */
    int32_t chunk, rows;
    int32_t checkpoints;       /* states kept to go back to, on every device those of its layers */
    bool fits;
    char reason[512];          /* why not, and which settings would fit */
} qmi_split;

/* devices: cards, then the host (mapped) or not. plan: of any of these devices. Not fitting is no error: `fits` says so. */
int32_t qmi_split_make(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan *plan, const qmi_plan_device *devices,
                       int32_t count, const qmi_alloc *alloc, qmi_split *out);

/* As a table for people; snprintf rules. */
int64_t qmi_split_table(const qmi_split *split, const qmi_plan *plan, const qmi_plan_device *devices, char *text, int64_t size);

#endif
