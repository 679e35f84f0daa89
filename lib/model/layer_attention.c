/* A full-attention layer: project to queries, keys and values; attend; project back. */
#include "model/layers.h"

void qmi_layer_attention(qmi_builder *b, const qmi_layer *layer)
{
    const qmi_hparams *h = b->hparams;
    bool gated = h->arch->hybrid;
    int64_t width = (int64_t)h->heads * h->head_size, kv_width = (int64_t)h->kv_heads * h->head_size;
    qmi_slot query = qmi_build_slot(b, "query", gated ? 2 * width : width, false);
    qmi_slot key = qmi_build_slot(b, "key", kv_width, false);
    qmi_slot value = qmi_build_slot(b, "value", kv_width, false);
    qmi_slot mixed = qmi_build_slot(b, "attended", width, false);

    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT, .project = {
        .in = b->residual, .norm = qmi_build_norm(b, layer->mix_norm), .count = 3,
        .matrix = { layer->query, layer->key, layer->value }, .out = { query, key, value } } });
    const qmi_kv_layout *kv = b->kv;
    int64_t index = b->kv_layer++, layer_start = index * kv->layer_bytes, floats = kv->correction_floats;
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_ATTEND, .attend = {
        .query = query, .key = key, .value = value, .out = mixed,
        .heads = h->heads, .kv_heads = h->kv_heads, .head_size = h->head_size, .rotary = h->rotary, .gated = gated,
        .query_norm = qmi_build_norm(b, layer->query_norm), .key_norm = qmi_build_norm(b, layer->key_norm),
        .inverse_frequency = b->weights->inverse_frequency,
        .key_type = kv->key_type, .value_type = kv->value_type, .rotate_keys = kv->rotate_keys,
        .rotate_values = kv->rotate_values, .page_tokens = kv->page_tokens,
        .key_offset = layer_start, .value_offset = layer_start + kv->value_offset, .window = kv->window,
        .window_offset = kv->window_offset + index * kv->window_bytes,
        .correction = kv->correction ? (qmi_vector){ floats, kv->correction + (qmi_address)(index * floats) * sizeof(float) }
                                     : (qmi_vector){ 0 },
        .moments = kv->moments ? kv->moments + (qmi_address)(index * floats) * sizeof(double) : 0 } });
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = {
        .matrix = layer->attention_out, .in = mixed, .out = b->residual, .add = true } });
}
