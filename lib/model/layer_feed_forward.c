/* The feed-forward half of a layer: dense SwiGLU, or a mixture of experts with an optional shared one. */
#include "model/layers.h"

static void append_dense(qmi_builder *b, const qmi_layer *layer)
{
    qmi_slot inner = qmi_build_slot(b, "inner", b->hparams->width, false);
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_GLU, .glu = {
        .in = b->residual, .norm = qmi_build_norm(b, layer->ffn_norm), .gate = layer->gate, .up = layer->up, .out = inner } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = {
        .matrix = layer->down, .in = inner, .out = b->residual, .add = true } });
}

static void append_experts(qmi_builder *b, const qmi_layer *layer)
{
    int32_t top = b->hparams->experts_used;
    qmi_slot normed = qmi_build_slot(b, "normed", b->hparams->hidden, false);
    qmi_slot route = qmi_build_slot(b, "route", 2 * top + 1, false);
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_ROUTE, .route = {
        .in = b->residual, .norm = qmi_build_norm(b, layer->ffn_norm),
        .router = layer->router, .shared_gate = layer->shared_router, .top = top, .hidden = normed, .route = route } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_EXPERTS, .experts = {
        .hidden = normed, .route = route, .top = top, .gate = layer->gate, .up = layer->up, .down = layer->down,
        .shared_gate = layer->shared_gate, .shared_up = layer->shared_up, .shared_down = layer->shared_down,
        .out = b->residual } });
}

void qmi_layer_feed_forward(qmi_builder *b, const qmi_layer *layer)
{
    if (b->hparams->arch->experts)
        append_experts(b, layer);
    else
        append_dense(b, layer);
}
