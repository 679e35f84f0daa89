/* Headers of files with the real geometries, for tests that need no weights. On top of gguf_writer.h: counts values and tensors
 * itself, and where each tensor's data would lie. */
#ifndef TEST_GEOMETRY_H
#define TEST_GEOMETRY_H

#include "gguf_writer.h"
#include "quant/quant.h"

typedef struct geometry {
    writer w;
    uint64_t tensors, values;
    int64_t data; /* bytes of tensor data so far */
} geometry;

static inline void geometry_start(geometry *g)
{
    g->tensors = g->values = 0;
    g->data = 0;
    put_start(&g->w, 3, 0, 0); /* the counts are set at the end */
}

static inline void geometry_int(geometry *g, const char *arch, const char *key, uint32_t value)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    put_u32_value(&g->w, name, value);
    g->values++;
}

static inline void geometry_tensor(geometry *g, const char *name, uint32_t type, int64_t columns, int64_t rows)
{
    put_tensor(&g->w, name, type, rows > 1 ? 2 : 1, (uint64_t[]){ (uint64_t)columns, (uint64_t)rows }, (uint64_t)g->data);
    g->data += (qmi_quant_row_bytes(type, columns) * rows + 31) / 32 * 32;
    g->tensors++;
}

/* Returns the size of the whole file, of which only the header is in g->w. */
static inline int64_t geometry_end(geometry *g)
{
    memcpy(g->w.bytes + 8, &g->tensors, 8);
    memcpy(g->w.bytes + 16, &g->values, 8);
    while (g->w.size % 32)
        put_u8(&g->w, 0);
    return (int64_t)g->w.size + g->data;
}

/* Metadata of Qwen3.5-35B-A3B (experts) or Qwen3.5-27B from their published configurations, and their embedding. `skip`: a key to
 * leave out, `change`: one to give another value; NULL: none. Other tensors are not needed for a plan. */
static inline void geometry_real(geometry *g, int experts, const char *skip, const char *change, uint32_t value)
{
    const char *arch = experts ? "qwen35moe" : "qwen35";
    const struct { const char *key; uint32_t moe, dense; } keys[] = {
        { "block_count", 40, 64 }, { "context_length", 262144, 262144 }, { "embedding_length", 2048, 5120 },
        { "attention.head_count", 16, 24 }, { "attention.head_count_kv", 2, 4 }, { "attention.key_length", 256, 256 },
        { "attention.value_length", 256, 256 }, { "rope.dimension_count", 64, 64 }, { "feed_forward_length", 512, 17408 },
        { "expert_count", 256, 0 }, { "expert_used_count", 8, 0 }, { "expert_feed_forward_length", 512, 0 },
        { "expert_shared_feed_forward_length", 512, 0 }, { "ssm.conv_kernel", 4, 4 }, { "ssm.state_size", 128, 128 },
        { "ssm.group_count", 16, 16 }, { "ssm.time_step_rank", 32, 48 }, { "ssm.inner_size", 4096, 6144 },
        { "full_attention_interval", 4, 4 } };
    put_text_value(&g->w, "general.architecture", arch);
    g->values++;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (skip && !strcmp(skip, keys[i].key))
            continue;
        int changed = change && !strcmp(change, keys[i].key);
        geometry_int(g, arch, keys[i].key, changed ? value : experts ? keys[i].moe : keys[i].dense);
    }
    geometry_tensor(g, "token_embd.weight", QMI_TYPE_Q4_K, experts ? 2048 : 5120, 248320);
}

static inline void geometry_part(geometry *g, int layer, const char *name, uint32_t type, int64_t columns, int64_t rows,
                                 int64_t count)
{
    char full[96];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    put_tensor(&g->w, full, type, count > 1 ? 3 : rows > 1 ? 2 : 1,
               (uint64_t[]){ (uint64_t)columns, (uint64_t)rows, (uint64_t)count }, (uint64_t)g->data);
    g->data += (qmi_quant_row_bytes(type, columns) * rows * count + 31) / 32 * 32;
    g->tensors++;
}

/* The tensors of all layers after geometry_real, as a file of mixture Q4_K_S has them (examples/bench/random_model.py). */
static inline void geometry_layers(geometry *g, int experts)
{
    const int layers = experts ? 40 : 64;
    const int64_t width = experts ? 2048 : 5120, heads = experts ? 16 : 24, kv_heads = experts ? 2 : 4;
    const int64_t value_heads = experts ? 32 : 48, keys = 16 * 128, values = value_heads * 128, inner = experts ? 512 : 17408;
    const uint32_t main_type = QMI_TYPE_Q4_K;
    geometry_tensor(g, "output.weight", QMI_TYPE_Q6_K, width, 248320);
    geometry_tensor(g, "output_norm.weight", QMI_TYPE_F32, width, 1);
    for (int i = 0; i < layers; i++) {
        const uint32_t down = i < layers / 8 ? QMI_TYPE_Q5_K : main_type;
        geometry_part(g, i, "attn_norm.weight", QMI_TYPE_F32, width, 1, 1);
        geometry_part(g, i, "post_attention_norm.weight", QMI_TYPE_F32, width, 1, 1);
        if ((i + 1) % 4) {
            geometry_part(g, i, "attn_qkv.weight", main_type, width, 2 * keys + values, 1);
            geometry_part(g, i, "attn_gate.weight", main_type, width, values, 1);
            geometry_part(g, i, "ssm_conv1d.weight", QMI_TYPE_F32, 4, 2 * keys + values, 1);
            geometry_part(g, i, "ssm_dt.bias", QMI_TYPE_F32, value_heads, 1, 1);
            geometry_part(g, i, "ssm_a", QMI_TYPE_F32, value_heads, 1, 1);
            geometry_part(g, i, "ssm_beta.weight", main_type, width, value_heads, 1);
            geometry_part(g, i, "ssm_alpha.weight", main_type, width, value_heads, 1);
            geometry_part(g, i, "ssm_norm.weight", QMI_TYPE_F32, 128, 1, 1);
            geometry_part(g, i, "ssm_out.weight", main_type, values, width, 1);
        } else {
            geometry_part(g, i, "attn_q.weight", main_type, width, 2 * 256 * heads, 1);
            geometry_part(g, i, "attn_k.weight", main_type, width, 256 * kv_heads, 1);
            geometry_part(g, i, "attn_v.weight", i < 8 ? QMI_TYPE_Q5_K : main_type, width, 256 * kv_heads, 1);
            geometry_part(g, i, "attn_output.weight", main_type, 256 * heads, width, 1);
            geometry_part(g, i, "attn_q_norm.weight", QMI_TYPE_F32, 256, 1, 1);
            geometry_part(g, i, "attn_k_norm.weight", QMI_TYPE_F32, 256, 1, 1);
        }
        if (experts) {
            geometry_part(g, i, "ffn_gate_inp.weight", QMI_TYPE_F32, width, 256, 1);
            geometry_part(g, i, "ffn_gate_inp_shexp.weight", QMI_TYPE_F32, width, 1, 1);
            geometry_part(g, i, "ffn_gate_exps.weight", main_type, width, inner, 256);
            geometry_part(g, i, "ffn_up_exps.weight", main_type, width, inner, 256);
            geometry_part(g, i, "ffn_down_exps.weight", down, inner, width, 256);
            geometry_part(g, i, "ffn_gate_shexp.weight", main_type, width, inner, 1);
            geometry_part(g, i, "ffn_up_shexp.weight", main_type, width, inner, 1);
            geometry_part(g, i, "ffn_down_shexp.weight", down, inner, width, 1);
        } else {
            geometry_part(g, i, "ffn_gate.weight", main_type, width, inner, 1);
            geometry_part(g, i, "ffn_up.weight", main_type, width, inner, 1);
            geometry_part(g, i, "ffn_down.weight", down, inner, width, 1);
        }
    }
}

#endif
