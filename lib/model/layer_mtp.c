/* The input of the multi-token-prediction block: the next token's embedding beside the main model's hidden state, projected. */
#include "model/layers.h"

void qmi_layer_mtp_input(qmi_builder *b, const qmi_layer *layer)
{
    int64_t hidden = b->hparams->hidden;
    qmi_slot draft = qmi_build_slot(b, "draft_in", hidden, false);
    qmi_slot joined = qmi_build_slot(b, "joined", 2 * hidden, false);
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_JOIN, .join = {
        .table = b->weights->embedding, .norm = qmi_build_norm(b, layer->embed_norm),
        .hidden_norm = qmi_build_norm(b, layer->hidden_norm), .hidden = draft, .out = joined } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = {
        .matrix = layer->join, .in = joined, .out = b->residual, .add = false } });
}
