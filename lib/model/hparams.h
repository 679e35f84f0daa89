/* A model's dimensions, read from the file's metadata and checked against each other. */
#ifndef QMI_MODEL_HPARAMS_H
#define QMI_MODEL_HPARAMS_H

#include "file/gguf.h"
#include "model/arch.h"

#define QMI_LAYERS_MAX 512

typedef struct qmi_hparams {
    const qmi_arch *arch;
    int32_t layers;              /* without the multi-token-prediction block */
    int32_t mtp_layers;          /* 0 or 1 */
    int32_t attention_layers, delta_layers; /* of `layers` */
    bool delta[QMI_LAYERS_MAX];  /* is layer i a delta layer? */
    int32_t hidden, vocabulary;
    int64_t context;             /* trained length */
    float epsilon;
    /* attention */
    int32_t heads, kv_heads, head_size, rotary;
    float rope_base;
    /* feed-forward: width of the dense one, or of experts */
    int32_t width;
    int32_t experts, experts_used, expert_width, shared_width; /* shared_width 0: no shared expert */
    /* delta layers */
    int32_t key_heads, value_heads, key_size, value_size, taps;
} qmi_hparams;

/* QM_ERROR_FORMAT or _UNSUPPORTED, naming key and value. The vocabulary is the number of rows of token_embd.weight. */
int32_t qmi_hparams_read(const qmi_gguf *gguf, qmi_hparams *out);

/* Of a delta layer's convolution: 2 key_heads key_size + value_heads value_size. */
int64_t qmi_hparams_channels(const qmi_hparams *h);
int64_t qmi_hparams_state_bytes(const qmi_hparams *h); /* recurrent state of a session, all layers; 0 without delta layers */
int64_t qmi_hparams_state_offset(const qmi_hparams *h, int32_t delta_index); /* of the delta_index-th delta layer in it */

#endif
