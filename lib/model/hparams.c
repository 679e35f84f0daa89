/* A model's dimensions from the file's metadata: see hparams.h. */
#include "model/hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"

/* Limits that keep every product of two dimensions, and every size in bytes, far inside 64 bits. */
#define WIDTH_MAX (1 << 20)
#define HEADS_MAX 4096
#define EXPERTS_MAX 65536

typedef struct reader {
    const qmi_gguf *gguf;
    const char *prefix;
    int32_t code;        /* the first failure; later reads do nothing */
} reader;

static const char *key_name(const reader *r, const char *key, char name[128])
{
    snprintf(name, 128, "%s.%s", r->prefix, key);
    return name;
}

static const int64_t required = INT64_MIN; /* as a fallback: the key must be there */

static int64_t read_int(reader *r, const char *key, int64_t fallback, int64_t low, int64_t high)
{
    char name[128];
    int64_t value = fallback;
    if (r->code < 0)
        return low;
    int32_t found = qmi_gguf_int(r->gguf, key_name(r, key, name), &value);
    if (found < 0)
        r->code = found;
    else if (!found && fallback == required)
        r->code = qmi_fail(QM_ERROR_FORMAT, "%s is missing: the file does not say how large the model is", name);
    else if (value < low || value > high)
        r->code = qmi_fail(QM_ERROR_FORMAT, "%s is %" PRId64 ", not between %" PRId64 " and %" PRId64, name, value, low, high);
    return r->code < 0 ? low : value;
}

static float read_float(reader *r, const char *key, double fallback, double low, double high)
{
    char name[128];
    double value = fallback;
    if (r->code < 0)
        return (float)fallback;
    int32_t found = qmi_gguf_float(r->gguf, key_name(r, key, name), &value);
    if (found < 0)
        r->code = found;
    else if (!(value >= low && value <= high))
        r->code = qmi_fail(QM_ERROR_FORMAT, "%s is %g, not between %g and %g", name, value, low, high);
    return (float)value;
}

/* "A 5 is no multiple of B 2" unless it is right. */
static void check(reader *r, bool right, const char *name_a, int64_t a, const char *relation, const char *name_b, int64_t b)
{
    if (r->code == 0 && !right)
        r->code = qmi_fail(QM_ERROR_FORMAT, "%s %" PRId64 " %s %s %" PRId64, name_a, a, relation, name_b, b);
}

static void read_attention(reader *r, qmi_hparams *h)
{
    h->heads = (int32_t)read_int(r, "attention.head_count", required, 1, HEADS_MAX);
    h->kv_heads = (int32_t)read_int(r, "attention.head_count_kv", h->heads, 1, HEADS_MAX);
    int64_t derived = h->hidden / h->heads;
    h->head_size = (int32_t)read_int(r, "attention.key_length", derived, 2, 1024);
    int64_t value_size = read_int(r, "attention.value_length", h->head_size, 2, 1024);
    h->rotary = (int32_t)read_int(r, "rope.dimension_count", h->head_size, 2, 1024);
    h->rope_base = read_float(r, "rope.freq_base", 10000, 1, 1e12);
    check(r, h->heads % h->kv_heads == 0, "attention.head_count", h->heads, "is no multiple of", "attention.head_count_kv",
          h->kv_heads);
    check(r, value_size == h->head_size, "attention.value_length", value_size, "is not", "attention.key_length", h->head_size);
    check(r, h->rotary % 2 == 0 && h->rotary <= h->head_size, "rope.dimension_count", h->rotary, "is odd or more than",
          "attention.key_length", h->head_size);
}

static void read_feed_forward(reader *r, qmi_hparams *h)
{
    if (!h->arch->experts) {
        h->width = (int32_t)read_int(r, "feed_forward_length", required, 1, WIDTH_MAX);
        return;
    }
    h->experts = (int32_t)read_int(r, "expert_count", required, 1, EXPERTS_MAX);
    h->experts_used = (int32_t)read_int(r, "expert_used_count", required, 1, 64);
    h->expert_width = (int32_t)read_int(r, "expert_feed_forward_length", required, 1, WIDTH_MAX);
    h->shared_width = (int32_t)read_int(r, "expert_shared_feed_forward_length", 0, 0, WIDTH_MAX);
    check(r, h->experts_used <= h->experts, "expert_used_count", h->experts_used, "is more than", "expert_count", h->experts);
}

static void read_delta(reader *r, qmi_hparams *h)
{
    h->taps = (int32_t)read_int(r, "ssm.conv_kernel", required, 2, 16);
    h->key_size = (int32_t)read_int(r, "ssm.state_size", required, 1, 1024);
    h->key_heads = (int32_t)read_int(r, "ssm.group_count", required, 1, HEADS_MAX);
    h->value_heads = (int32_t)read_int(r, "ssm.time_step_rank", required, 1, HEADS_MAX);
    int64_t inner = read_int(r, "ssm.inner_size", required, 1, WIDTH_MAX);
    check(r, h->value_heads % h->key_heads == 0, "ssm.time_step_rank", h->value_heads, "is no multiple of", "ssm.group_count",
          h->key_heads);
    check(r, inner % h->value_heads == 0, "ssm.inner_size", inner, "is no multiple of", "ssm.time_step_rank", h->value_heads);
    h->value_size = (int32_t)(inner / h->value_heads);
    check(r, h->value_size <= 1024, "ssm.inner_size", inner, "gives value heads of more than 1024 with", "ssm.time_step_rank",
          h->value_heads);
}

/* Which layers are delta layers: attention.recurrent_layers (a bool or integer a layer) where the file has it, else all but every
 * full_attention_interval-th. */
static void read_layer_kinds(reader *r, qmi_hparams *h)
{
    char name[128];
    const qmi_gguf_value *list = qmi_gguf_find(r->gguf, key_name(r, "attention.recurrent_layers", name));
    int64_t interval = read_int(r, "full_attention_interval", 4, 1, QMI_LAYERS_MAX);
    if (r->code < 0)
        return;
    if (list && (list->type != QMI_GGUF_ARRAY || list->element_type == QMI_GGUF_STRING || list->element_type == QMI_GGUF_F32 ||
                 list->element_type == QMI_GGUF_F64 || list->count < h->layers)) {
        r->code = qmi_fail(QM_ERROR_FORMAT, "%s is no list of %d booleans", name, h->layers);
        return;
    }
    for (int32_t i = 0; i < h->layers; i++)
        h->delta[i] = list ? qmi_gguf_array_int(list, i) != 0 : (i + 1) % interval != 0;
}

int32_t qmi_hparams_read(const qmi_gguf *gguf, qmi_hparams *out)
{
    qmi_text name;
    qmi_hparams h = { 0 };
    int32_t found = qmi_gguf_text(gguf, "general.architecture", &name);
    if (found < 0)
        return found;
    if (!found)
        return qmi_fail(QM_ERROR_FORMAT, "general.architecture is missing: this is not a model file");
    h.arch = qmi_arch_find(name);
    if (!h.arch)
        return QM_ERROR_UNSUPPORTED;

    reader r = { gguf, h.arch->name, 0 };
    int64_t blocks = read_int(&r, "block_count", required, 1, QMI_LAYERS_MAX);
    h.mtp_layers = (int32_t)read_int(&r, "nextn_predict_layers", 0, 0, 1);
    h.layers = (int32_t)blocks - h.mtp_layers;
    check(&r, h.layers >= 1, "block_count", blocks, "leaves no layer beside", "nextn_predict_layers", h.mtp_layers);
    h.hidden = (int32_t)read_int(&r, "embedding_length", required, 1, WIDTH_MAX);
    h.context = read_int(&r, "context_length", 32768, 1, (int64_t)1 << 31);
    h.epsilon = read_float(&r, "attention.layer_norm_rms_epsilon", 1e-6, 0, 1);
    read_attention(&r, &h);
    read_feed_forward(&r, &h);
    if (h.arch->hybrid) {
        read_delta(&r, &h);
        read_layer_kinds(&r, &h);
    }
    if (r.code < 0)
        return r.code;
    for (int32_t i = 0; i < h.layers; i++)
        h.delta_layers += h.delta[i];
    h.attention_layers = h.layers - h.delta_layers;

    const qmi_gguf_tensor *embedding = qmi_gguf_find_tensor(gguf, "token_embd.weight");
    if (!embedding)
        return qmi_fail(QM_ERROR_FORMAT, "tensor token_embd.weight is missing");
    if (embedding->dimensions[1] < 1 || embedding->dimensions[1] > INT32_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "token_embd.weight has %" PRId64 " rows; a vocabulary has 1 to %d",
                        embedding->dimensions[1], INT32_MAX);
    h.vocabulary = (int32_t)embedding->dimensions[1];
    *out = h;
    return QM_OK;
}

int64_t qmi_hparams_channels(const qmi_hparams *h)
{
    return 2 * (int64_t)h->key_heads * h->key_size + (int64_t)h->value_heads * h->value_size;
}

static int64_t layer_state_bytes(const qmi_hparams *h)
{
    int64_t floats = (h->taps - 1) * qmi_hparams_channels(h) + (int64_t)h->value_heads * h->key_size * h->value_size;
    return (floats * (int64_t)sizeof(float) + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
}

int64_t qmi_hparams_state_bytes(const qmi_hparams *h)
{
    return h->delta_layers ? h->delta_layers * layer_state_bytes(h) : 0;
}

int64_t qmi_hparams_state_offset(const qmi_hparams *h, int32_t delta_index)
{
    return delta_index * layer_state_bytes(h);
}
