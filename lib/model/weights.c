/* The weights of a model on a device: see weights.h. */
#include "model/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "quant/quant.h"

/* Where weights come from and go to. The first failure is kept; later steps do nothing. */
typedef struct loader {
    const qmi_gguf *gguf;
    const qmi_hparams *h;
    const qmi_backend *backend;
    qmi_device *device;       /* NULL: a survey, which takes tensors as they should be */
    qmi_matrix_bytes_function matrix_bytes; /* of a survey */
    qmi_weight_sums *sums;
    qmi_weights *weights;     /* of a survey */
    float *vectors;           /* the block of vectors as it is built on the host */
    int64_t used, room;       /* floats */
    qmi_address vector_base;  /* where the block will lie on the device */
    int32_t layer;            /* -1: outside the layers */
    int32_t code;
} loader;

#define VECTOR_GRAIN (QMI_ALIGNMENT / (int64_t)sizeof(float)) /* each vector starts at a cache line */

static int64_t grain(int64_t floats)
{
    return (floats + VECTOR_GRAIN - 1) / VECTOR_GRAIN * VECTOR_GRAIN;
}

int64_t qmi_weights_layer_vectors(const qmi_hparams *h, bool delta)
{
    int64_t count = 5 * grain(h->hidden) + 2 * grain(h->head_size); /* 5: two norms, and three more of the mtp block */
    if (delta)
        count += grain(qmi_hparams_channels(h) * h->taps) + 2 * grain(h->value_heads) + grain(h->value_size);
    return (int64_t)sizeof(float) * count;
}

int64_t qmi_weights_other_vectors(const qmi_hparams *h)
{
    return (int64_t)sizeof(float) * (grain(h->hidden) + grain(h->rotary));
}

int64_t qmi_weights_vector_bytes(const qmi_hparams *h, bool mtp)
{
    int64_t others = h->attention_layers + (mtp ? h->mtp_layers : 0);
    return h->delta_layers * qmi_weights_layer_vectors(h, true) + others * qmi_weights_layer_vectors(h, false) +
           qmi_weights_other_vectors(h);
}

static void fail_shape(loader *l, const qmi_gguf_tensor *tensor, int64_t columns, int64_t rows, int64_t count)
{
    const int64_t *d = tensor->dimensions;
    l->code = qmi_fail(QM_ERROR_FORMAT, "tensor %.*s is %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64
                       "; the file's dimensions ask for %" PRId64 " x %" PRId64 " x %" PRId64,
                       (int)tensor->name.length, tensor->name.data, d[0], d[1], d[2], d[3], columns, rows, count);
}

static const char *full_name(const loader *l, const char *name, char out[96])
{
    if (l->layer < 0)
        snprintf(out, 96, "%s", name);
    else
        snprintf(out, 96, "blk.%d.%s", l->layer, name);
    return out;
}

/* The tensor of that name; NULL when there is none, or none that could be a weight. */
static const qmi_gguf_tensor *find(loader *l, const char *name, bool required)
{
    char full[96];
    if (l->code < 0)
        return NULL;
    const qmi_gguf_tensor *tensor = qmi_gguf_find_tensor(l->gguf, full_name(l, name, full));
    if (!tensor && required && l->device)
        l->code = qmi_fail(QM_ERROR_FORMAT, "tensor %s is missing; the file is incomplete or made by a converter this library "
                           "does not know", full);
    if (tensor && (!qmi_quant_format_of(tensor->type) || !qmi_quant_format_of(tensor->type)->unpack)) {
        if (l->device)
            l->code = qmi_fail(QM_ERROR_UNSUPPORTED, "tensor %s has type %u, which can't be a weight here", full, tensor->type);
        return NULL;
    }
    return tensor;
}

static void count_matrix(loader *l, qmi_matrix *matrix)
{
    const uint32_t type = matrix->type;
    int64_t bytes = qmi_quant_row_bytes(type, matrix->columns) * matrix->rows * matrix->count;
    if (l->matrix_bytes)
        bytes = l->matrix_bytes(&matrix->type, matrix->columns, matrix->rows * matrix->count);
    bytes = bytes > 0 ? bytes : 0; /* less: not what the dimensions ask for, which loading will say */
    l->sums->bytes += bytes;
    if (l->layer >= 0) {
        l->weights->layers[l->layer].bytes += bytes;
        l->weights->layers[l->layer].expert_bytes += matrix->count > 1 ? bytes : 0;
    } else if (l->weights->embedding.rows) {
        l->weights->output_bytes = bytes;
    } else {
        l->weights->embedding_bytes = bytes;
    }
    if (matrix->type != type) {
        l->sums->kept_as[type] = matrix->type;
        l->sums->converted[type]++;
    }
}

static void upload_matrix(loader *l, const qmi_gguf_tensor *tensor, qmi_matrix *matrix)
{
    const int64_t *d = tensor->dimensions;
    if (d[0] != matrix->columns || d[1] != matrix->rows || d[2] != matrix->count || d[3] != 1)
        fail_shape(l, tensor, matrix->columns, matrix->rows, matrix->count);
    else
        l->code = l->backend->upload(l->device, tensor->data, matrix);
}

/* A matrix [count][rows][columns]; absent ones stay all zero unless required. */
static qmi_matrix load_matrix(loader *l, const char *name, int64_t columns, int64_t rows, int64_t count, bool required)
{
    const qmi_gguf_tensor *tensor = find(l, name, required);
    if (!tensor && (l->device || !required))
        return (qmi_matrix){ 0 };
    qmi_matrix matrix = { tensor ? tensor->type : QMI_TYPE_F32, columns, rows, count, 0 };
    if (l->device)
        upload_matrix(l, tensor, &matrix);
    else if (tensor)
        count_matrix(l, &matrix);
    if (!l->device) /* tells matrices apart; whose data is not there nobody reads */
        matrix.data = tensor ? (qmi_address)(uintptr_t)tensor->data : 1;
    return matrix;
}

/* Room in the block of vectors; the host's copy to fill. */
static float *vector_room(loader *l, int64_t size, qmi_vector *out)
{
    if (l->used + grain(size) > l->room) {
        l->code = qmi_fail(QM_ERROR_FORMAT, "the file has more vectors than its dimensions account for");
        return NULL;
    }
    float *to = l->vectors + l->used;
    *out = (qmi_vector){ size, l->vector_base + (qmi_address)l->used * sizeof(float) };
    l->used += grain(size);
    return to;
}

/* A vector of `columns` x `rows` values in any format, as float32. */
static qmi_vector load_vector(loader *l, const char *name, int64_t columns, int64_t rows, bool required)
{
    qmi_vector vector = { 0 };
    const qmi_gguf_tensor *tensor = find(l, name, required);
    if (!l->device && (tensor || required))
        vector.size = columns * rows;
    if (!l->device || !tensor)
        return vector;
    const int64_t *d = tensor->dimensions;
    if (d[0] != columns || d[1] != rows || d[2] != 1 || d[3] != 1) {
        fail_shape(l, tensor, columns, rows, 1);
        return vector;
    }
    const qmi_quant_format *format = qmi_quant_format_of(tensor->type);
    float *to = vector_room(l, columns * rows, &vector);
    if (to)
        format->unpack(tensor->data, to, columns * rows / format->block);
    return vector;
}

static void load_attention(loader *l, qmi_layer *layer)
{
    const qmi_hparams *h = l->h;
    int64_t query = (int64_t)h->heads * h->head_size, key = (int64_t)h->kv_heads * h->head_size;
    layer->query = load_matrix(l, "attn_q.weight", h->hidden, h->arch->hybrid ? 2 * query : query, 1, true);
    layer->key = load_matrix(l, "attn_k.weight", h->hidden, key, 1, true);
    layer->value = load_matrix(l, "attn_v.weight", h->hidden, key, 1, true);
    layer->attention_out = load_matrix(l, "attn_output.weight", query, h->hidden, 1, true);
    layer->query_norm = load_vector(l, "attn_q_norm.weight", h->head_size, 1, true);
    layer->key_norm = load_vector(l, "attn_k_norm.weight", h->head_size, 1, true);
}

static void load_delta(loader *l, qmi_layer *layer)
{
    const qmi_hparams *h = l->h;
    int64_t inner = (int64_t)h->value_heads * h->value_size;
    layer->qkv = load_matrix(l, "attn_qkv.weight", h->hidden, qmi_hparams_channels(h), 1, true);
    layer->z = load_matrix(l, "attn_gate.weight", h->hidden, inner, 1, true);
    if (h->arch->beta_alpha_fused) {
        layer->beta = load_matrix(l, "ssm_ba.weight", h->hidden, 2 * h->value_heads, 1, true);
    } else {
        layer->beta = load_matrix(l, "ssm_beta.weight", h->hidden, h->value_heads, 1, true);
        layer->alpha = load_matrix(l, "ssm_alpha.weight", h->hidden, h->value_heads, 1, true);
    }
    layer->convolution = load_vector(l, "ssm_conv1d.weight", h->taps, qmi_hparams_channels(h), true);
    layer->time_bias = load_vector(l, "ssm_dt.bias", h->value_heads, 1, true);
    layer->decay = load_vector(l, "ssm_a", h->value_heads, 1, true);
    layer->delta_norm = load_vector(l, "ssm_norm.weight", h->value_size, 1, true);
    layer->delta_out = load_matrix(l, "ssm_out.weight", inner, h->hidden, 1, true);
}

static void load_feed_forward(loader *l, qmi_layer *layer)
{
    const qmi_hparams *h = l->h;
    if (!h->arch->experts) {
        layer->gate = load_matrix(l, "ffn_gate.weight", h->hidden, h->width, 1, true);
        layer->up = load_matrix(l, "ffn_up.weight", h->hidden, h->width, 1, true);
        layer->down = load_matrix(l, "ffn_down.weight", h->width, h->hidden, 1, true);
        return;
    }
    layer->router = load_matrix(l, "ffn_gate_inp.weight", h->hidden, h->experts, 1, true);
    layer->gate = load_matrix(l, "ffn_gate_up_exps.weight", h->hidden, 2 * h->expert_width, h->experts, false);
    if (!layer->gate.rows) {
        layer->gate = load_matrix(l, "ffn_gate_exps.weight", h->hidden, h->expert_width, h->experts, true);
        layer->up = load_matrix(l, "ffn_up_exps.weight", h->hidden, h->expert_width, h->experts, true);
    }
    layer->down = load_matrix(l, "ffn_down_exps.weight", h->expert_width, h->hidden, h->experts, true);
    if (!h->shared_width)
        return;
    layer->shared_router = load_matrix(l, "ffn_gate_inp_shexp.weight", h->hidden, 1, 1, true);
    layer->shared_gate = load_matrix(l, "ffn_gate_shexp.weight", h->hidden, h->shared_width, 1, true);
    layer->shared_up = load_matrix(l, "ffn_up_shexp.weight", h->hidden, h->shared_width, 1, true);
    layer->shared_down = load_matrix(l, "ffn_down_shexp.weight", h->shared_width, h->hidden, 1, true);
}

static void load_mtp(loader *l, qmi_layer *layer, qmi_weights *weights)
{
    const qmi_hparams *h = l->h;
    layer->join = load_matrix(l, "nextn.eh_proj.weight", 2 * (int64_t)h->hidden, h->hidden, 1, true);
    layer->embed_norm = load_vector(l, "nextn.enorm.weight", h->hidden, 1, true);
    layer->hidden_norm = load_vector(l, "nextn.hnorm.weight", h->hidden, 1, true);
    layer->head_norm = load_vector(l, "nextn.shared_head_norm.weight", h->hidden, 1, false);
    if (!layer->head_norm.size)
        layer->head_norm = weights->output_norm;
    weights->mtp_output = load_matrix(l, "nextn.shared_head_head.weight", h->hidden, h->vocabulary, 1, false);
    if (!weights->mtp_output.rows)
        weights->mtp_output = weights->output;
}

static void load_layer(loader *l, qmi_weights *weights)
{
    const qmi_hparams *h = l->h;
    qmi_layer *layer = &weights->layers[l->layer];
    char name[64];
    layer->mix_norm = load_vector(l, "attn_norm.weight", h->hidden, 1, true);
    if (l->layer < h->layers && h->delta[l->layer])
        load_delta(l, layer);
    else
        load_attention(l, layer);
    /* converters name it by the architecture; either is taken */
    snprintf(name, sizeof name, "%s.weight", h->arch->ffn_norm);
    const char *other = strcmp(h->arch->ffn_norm, "ffn_norm") ? "ffn_norm.weight" : "post_attention_norm.weight";
    layer->ffn_norm = load_vector(l, other, h->hidden, 1, false);
    if (!layer->ffn_norm.size)
        layer->ffn_norm = load_vector(l, name, h->hidden, 1, true);
    load_feed_forward(l, layer);
    if (l->layer >= h->layers)
        load_mtp(l, layer, weights);
}

/* base^(-2i / n), of pair i of n rotated values (Su et al. 2021, arXiv 2104.09864, section 3.2.2); in float32 as the reference
 * does, whose rounding grows with the position */
static void make_frequencies(loader *l, qmi_vector *out)
{
    int32_t pairs = l->h->rotary / 2;
    float *to = l->code < 0 ? NULL : vector_room(l, pairs, out);
    for (int32_t i = 0; to && i < pairs; i++)
        to[i] = 1.0f / powf(l->h->rope_base, (float)(2 * i) / (float)l->h->rotary);
}

static void load_all(loader *l, qmi_weights *weights)
{
    const qmi_hparams *h = l->h;
    weights->embedding = load_matrix(l, "token_embd.weight", h->hidden, h->vocabulary, 1, true);
    weights->output = load_matrix(l, "output.weight", h->hidden, h->vocabulary, 1, false);
    if (!weights->output.rows)
        weights->output = weights->embedding;
    weights->output_norm = load_vector(l, "output_norm.weight", h->hidden, 1, true);
    for (l->layer = 0; l->code == 0 && l->layer < weights->layer_count; l->layer++)
        load_layer(l, weights);
}

static int32_t new_layers(const qmi_hparams *h, bool mtp, const qmi_alloc *alloc, qmi_weights *weights)
{
    *weights = (qmi_weights){ .layer_count = h->layers + (mtp ? h->mtp_layers : 0) };
    weights->layers = qmi_new(alloc, (size_t)weights->layer_count, sizeof *weights->layers, "the list of layers");
    return weights->layers ? QM_OK : QM_ERROR_MEMORY;
}

int32_t qmi_weights_survey(const qmi_gguf *gguf, const qmi_hparams *h, bool mtp, qmi_matrix_bytes_function matrix_bytes,
                           const qmi_alloc *alloc, qmi_weights *out, qmi_weight_sums *sums)
{
    loader l = { .gguf = gguf, .h = h, .matrix_bytes = matrix_bytes, .sums = sums, .weights = out, .layer = -1 };
    *sums = (qmi_weight_sums){ 0 };
    int32_t code = new_layers(h, mtp, alloc, out);
    if (code == 0)
        load_all(&l, out);
    return code;
}

/* Vectors are gathered on the host and go to the device as one block. */
static void load_with_vectors(loader *l, qmi_weights *weights, const qmi_alloc *alloc)
{
    const qmi_content content = { .kind = QMI_CONTENT_VECTORS };
    l->room = weights->vector_bytes / (int64_t)sizeof(float);
    l->vectors = qmi_new(alloc, (size_t)l->room, sizeof(float), "vectors while they are read");
    l->code = l->vectors ? qmi_backend_allocate(l->backend, l->device, &content, weights->vector_bytes, "norms and other vectors",
                                                &weights->vectors)
                         : QM_ERROR_MEMORY;
    l->vector_base = weights->vectors;
    make_frequencies(l, &weights->inverse_frequency);
    if (l->code == 0)
        load_all(l, weights);
    if (l->code == 0)
        l->code = l->backend->write(l->device, weights->vectors, l->vectors, weights->vector_bytes);
    qmi_delete(alloc, l->vectors);
}

int32_t qmi_weights_load(const qmi_weights_source *source, qmi_device *device, const qmi_alloc *alloc, qmi_weights *out)
{
    const qmi_backend *backend = source->backend;
    loader l = { .gguf = source->gguf, .h = source->hparams, .backend = backend, .device = device, .layer = -1 };
    l.code = new_layers(source->hparams, source->mtp, alloc, out);
    out->vector_bytes = qmi_weights_vector_bytes(source->hparams, source->mtp);
    if (l.code == 0 && backend->upload_start)
        l.code = backend->upload_start(device, source->bytes, source->files, source->file_count);
    if (l.code == 0)
        load_with_vectors(&l, out, alloc);
    if (l.code == 0 && backend->upload_finish)
        l.code = backend->upload_finish(device, source->progress, source->user, source->cancel);
    if (l.code < 0)
        qmi_weights_free(out, backend, device, alloc);
    return l.code;
}

void qmi_weights_free(qmi_weights *weights, const qmi_backend *backend, qmi_device *device, const qmi_alloc *alloc)
{
    if (weights->vectors)
        backend->release(device, weights->vectors);
    qmi_delete(alloc, weights->layers);
    *weights = (qmi_weights){ 0 };
}
