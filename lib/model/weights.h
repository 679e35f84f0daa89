/* The weights of a model on a device: tensors of the file found by name, checked against the dimensions, and uploaded. */
#ifndef QMI_MODEL_WEIGHTS_H
#define QMI_MODEL_WEIGHTS_H

#include "backend/backend.h"
#include "model/hparams.h"
#include "quant/quant.h"

typedef struct qmi_layer {       /* absent parts are all zero; shapes in comments as [rows][columns] */
    qmi_vector mix_norm;         /* attn_norm [D] */
    /* attention */
    qmi_matrix query;            /* [heads head_size (2 head_size gated)][D] */
    qmi_matrix key, value;       /* [kv_heads head_size][D] */
    qmi_matrix attention_out;    /* [D][heads head_size] */
    qmi_vector query_norm, key_norm; /* [head_size] */
    /* delta */
    qmi_matrix qkv, z;           /* [channels][D], [value_heads value_size][D] */
    qmi_matrix beta, alpha;      /* [value_heads][D]; fused: beta is [2 value_heads][D], alpha absent */
    qmi_vector convolution;      /* [channels][taps] */
    qmi_vector time_bias, decay; /* [value_heads] */
    qmi_vector delta_norm;       /* [value_size] */
    qmi_matrix delta_out;        /* [D][value_heads value_size] */
    /* feed-forward */
    qmi_vector ffn_norm;         /* [D] */
    qmi_matrix gate, up;         /* [F][D] each; experts: count = experts, and both may be fused in gate */
    qmi_matrix down;             /* [D][F]; experts: count = experts */
    qmi_matrix router;           /* [experts][D] */
    qmi_matrix shared_router;    /* [1][D] */
    qmi_matrix shared_gate, shared_up, shared_down;
    /* multi-token prediction */
    qmi_matrix join;             /* nextn.eh_proj [D][2 D] */
    qmi_vector embed_norm, hidden_norm, head_norm; /* [D] */
    /* of a survey: bytes of its matrices on the device, and those of experts among them */
    int64_t bytes, expert_bytes;
} qmi_layer;

typedef struct qmi_weights {
    qmi_matrix embedding, output; /* [vocabulary][D]; tied: the same */
    qmi_vector output_norm;       /* [D] */
    qmi_matrix mtp_output;        /* of the multi-token-prediction block: its own head or `output` */
    qmi_vector inverse_frequency; /* [rotary / 2] */
    int32_t layer_count;          /* layers, and the multi-token-prediction block if it is loaded */
    qmi_layer *layers;
    int64_t embedding_bytes, output_bytes; /* of a survey; output_bytes 0: tied */
    qmi_address vectors;          /* the one block in which all vectors lie, float32 */
    int64_t vector_bytes;
} qmi_weights;

/* Bytes of the block of vectors, without touching a device (for the plan). mtp: the multi-token-prediction block is loaded
 * too. */
int64_t qmi_weights_vector_bytes(const qmi_hparams *hparams, bool mtp);
/* Of them those of one layer, a delta layer or another; and those outside the layers. */
int64_t qmi_weights_layer_vectors(const qmi_hparams *hparams, bool delta);
int64_t qmi_weights_other_vectors(const qmi_hparams *hparams);

/* What the matrices take on a device. */
typedef struct qmi_weight_sums {
    int64_t bytes;
    int32_t converted[QMI_TYPE_COUNT]; /* by type of the file: matrices that lie on the device as another type */
    uint32_t kept_as[QMI_TYPE_COUNT];  /* ... and which */
} qmi_weight_sums;

typedef int64_t (*qmi_matrix_bytes_function)(uint32_t *type, int64_t columns, int64_t rows); /* backend.h: matrix_bytes */

/* Shapes and types of all weights as they would lie on a device, and their sums; addresses are the tensors' of the file, which
 * only tell them apart. A tensor that is missing or of another shape than the dimensions say is no error here but of loading; it
 * counts as it should be. */
int32_t qmi_weights_survey(const qmi_gguf *gguf, const qmi_hparams *hparams, bool mtp, qmi_matrix_bytes_function matrix_bytes,
                           const qmi_alloc *alloc, qmi_weights *out, qmi_weight_sums *sums);

typedef struct qmi_weights_source {
    const qmi_gguf *gguf;
    const qmi_os_map *files;         /* which gguf lies in; stay mapped while the device is open */
    int32_t file_count;
    const qmi_hparams *hparams;
    bool mtp;                        /* load the multi-token-prediction block too */
    const qmi_backend *backend;
    int64_t bytes;                   /* of qmi_weights_survey */
    qm_progress_callback progress;   /* NULL: none */
    void *user;
    const int32_t *cancel;           /* read atomically while matrices are uploaded; NULL: never */
} qmi_weights_source;

/* QM_ERROR_FORMAT names the tensor that is missing or has another shape than the dimensions say (both shapes are given). */
int32_t qmi_weights_load(const qmi_weights_source *source, qmi_device *device, const qmi_alloc *alloc, qmi_weights *out);
/* device NULL: of qmi_weights_survey. */
void qmi_weights_free(qmi_weights *weights, const qmi_backend *backend, qmi_device *device, const qmi_alloc *alloc);

#endif
