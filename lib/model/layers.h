/* What the parts of a layer need to append their ops; forward.c calls them in order. */
#ifndef QMI_MODEL_LAYERS_H
#define QMI_MODEL_LAYERS_H

#include "model/forward.h"

typedef struct qmi_builder {
    const qmi_hparams *hparams;
    const qmi_weights *weights;
    const qmi_kv_layout *kv;
    const qmi_alloc *alloc;
    qmi_program *program;
    qmi_slot residual;       /* "residual" [rows][D]: what layers add to */
    int32_t layer;           /* present layer */
    int32_t kv_layer;        /* keys and values so far: index of the next attention layer in a page */
    int32_t delta_layer;     /* recurrent states so far */
    int32_t code;            /* the first failure; later steps do nothing */
} qmi_builder;

qmi_slot qmi_build_slot(qmi_builder *builder, const char *name, int64_t width, bool outputs);
void qmi_build_append(qmi_builder *builder, qmi_op op); /* sets the op's layer */
qmi_norm qmi_build_norm(const qmi_builder *builder, qmi_vector weight);

void qmi_layer_attention(qmi_builder *builder, const qmi_layer *layer);    /* residual += attention(rms(residual)) */
void qmi_layer_delta(qmi_builder *builder, const qmi_layer *layer);        /* residual += delta(rms(residual)) */
void qmi_layer_feed_forward(qmi_builder *builder, const qmi_layer *layer); /* residual += ffn(rms(residual)), dense or experts */
void qmi_layer_mtp_input(qmi_builder *builder, const qmi_layer *layer);    /* residual = eh_proj [rms(embed) | rms(draft_in)] */

#endif
