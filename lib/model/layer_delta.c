/* A gated-delta layer: project to the recurrence's inputs; advance the state; project back. */
#include "model/layers.h"

void qmi_layer_delta(qmi_builder *b, const qmi_layer *layer)
{
    const qmi_hparams *h = b->hparams;
    bool fused = h->arch->beta_alpha_fused;
    int64_t inner = (int64_t)h->value_heads * h->value_size;
    qmi_slot qkv = qmi_build_slot(b, "qkv", qmi_hparams_channels(h), false);
    qmi_slot z = qmi_build_slot(b, "z", inner, false);
    qmi_slot beta = qmi_build_slot(b, "beta", fused ? 2 * h->value_heads : h->value_heads, false);
    qmi_slot alpha = fused ? QMI_NO_SLOT : qmi_build_slot(b, "alpha", h->value_heads, false);
    qmi_slot mixed = qmi_build_slot(b, "recalled", inner, false);

    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT, .project = {
        .in = b->residual, .norm = qmi_build_norm(b, layer->mix_norm), .count = fused ? 3 : 4,
        .matrix = { layer->qkv, layer->z, layer->beta, layer->alpha }, .out = { qkv, z, beta, alpha } } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_DELTA, .delta = {
        .qkv = qkv, .z = z, .beta = beta, .alpha = alpha, .out = mixed,
        .key_heads = h->key_heads, .value_heads = h->value_heads, .key_size = h->key_size, .value_size = h->value_size,
        .taps = h->taps, .grouped = h->arch->grouped, .interleaved = fused,
        .convolution = layer->convolution, .time_bias = layer->time_bias, .decay = layer->decay,
        .norm = qmi_build_norm(b, layer->delta_norm),
        .state_offset = qmi_hparams_state_offset(h, b->delta_layer++) } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = {
        .matrix = layer->delta_out, .in = mixed, .out = b->residual, .add = true } });
}
