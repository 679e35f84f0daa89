/* The forward pass: see forward.h. A layer is: mix (attention or delta rule), then feed-forward, each added to the residual. */
#include "model/forward.h"

#include <string.h>
#include "base/error.h"
#include "model/layers.h"

qmi_slot qmi_build_slot(qmi_builder *b, const char *name, int64_t width, bool outputs)
{
    if (b->code < 0)
        return QMI_NO_SLOT;
    qmi_slot slot = qmi_program_slot(b->program, name, width, outputs);
    if (slot < 0)
        b->code = slot;
    return slot;
}

void qmi_build_append(qmi_builder *b, qmi_op op)
{
    if (b->code < 0)
        return;
    op.layer = b->layer;
    b->code = qmi_program_append(b->program, b->alloc, &op);
}

qmi_norm qmi_build_norm(const qmi_builder *b, qmi_vector weight)
{
    return (qmi_norm){ weight, b->hparams->epsilon };
}

static void append_layer(qmi_builder *b)
{
    const qmi_layer *layer = &b->weights->layers[b->layer];
    if (b->layer < b->hparams->layers && b->hparams->delta[b->layer])
        qmi_layer_delta(b, layer);
    else
        qmi_layer_attention(b, layer);
    qmi_layer_feed_forward(b, layer);
}

static void append_logits(qmi_builder *b, qmi_vector norm, qmi_matrix output)
{
    qmi_slot hidden = qmi_build_slot(b, "hidden", b->hparams->hidden, false);
    qmi_slot logits = qmi_build_slot(b, "logits", b->hparams->vocabulary, true);
    b->layer = -1;
    qmi_build_append(b, (qmi_op){ .kind = QMI_OP_LOGITS, .logits = {
        .in = b->residual, .norm = qmi_build_norm(b, norm), .output = output, .hidden = hidden, .logits = logits } });
}

static qmi_builder start(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv, const qmi_alloc *alloc,
                         qmi_program *program)
{
    *program = (qmi_program){ 0 };
    qmi_builder b = { .hparams = hparams, .weights = weights, .kv = kv, .alloc = alloc, .program = program, .layer = -1 };
    b.residual = qmi_build_slot(&b, "residual", hparams->hidden, false);
    return b;
}

static int32_t finish(qmi_builder *b)
{
    if (b->code < 0)
        qmi_program_free(b->program, b->alloc);
    return b->code;
}

int32_t qmi_forward_build_part(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv,
                               const qmi_forward_part *part, const qmi_alloc *alloc, qmi_program *out)
{
    qmi_builder b = start(hparams, weights, kv, alloc, out);
    if (part->input)
        qmi_build_append(&b, (qmi_op){ .kind = QMI_OP_EMBED, .embed = { .table = weights->embedding, .out = b.residual } });
    for (b.layer = part->first; b.layer < part->first + part->count; b.layer++)
        append_layer(&b);
    if (part->output)
        append_logits(&b, weights->output_norm, weights->output);
    return finish(&b);
}

int32_t qmi_forward_build(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv, const qmi_alloc *alloc,
                          qmi_program *out)
{
    const qmi_forward_part all = { .count = hparams->layers, .input = true, .output = true };
    return qmi_forward_build_part(hparams, weights, kv, &all, alloc, out);
}

int32_t qmi_forward_build_mtp(const qmi_hparams *hparams, const qmi_weights *weights, const qmi_kv_layout *kv,
                              const qmi_alloc *alloc, qmi_program *out)
{
    qmi_builder b = start(hparams, weights, kv, alloc, out);
    const qmi_layer *block = &weights->layers[hparams->layers];
    b.layer = hparams->layers;
    b.kv_layer = hparams->attention_layers;
    qmi_layer_mtp_input(&b, block);
    append_layer(&b);
    append_logits(&b, block->head_norm, weights->mtp_output);
    return finish(&b);
}

qmi_slot qmi_forward_slot(const qmi_program *program, const char *name)
{
    for (qmi_slot i = 0; i < program->slot_count; i++)
        if (!strcmp(program->slots[i].name, name))
            return i;
    return QMI_NO_SLOT;
}
