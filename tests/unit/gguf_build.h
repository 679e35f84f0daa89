/* Builds the header of a GGUF file in memory, for tests: values first, then tensors, then the end. */
#ifndef TEST_GGUF_BUILD_H
#define TEST_GGUF_BUILD_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "file/gguf.h"
#include "quant/quant.h"

typedef struct gguf_build {
    uint8_t bytes[1 << 20];
    int64_t size;
    int64_t tensors, values;
    int64_t data;            /* bytes of tensor data so far */
} gguf_build;

static inline void build_bytes(gguf_build *b, const void *from, size_t size)
{
    memcpy(b->bytes + b->size, from, size);
    b->size += (int64_t)size;
}

static inline void build_u32(gguf_build *b, uint32_t value) { build_bytes(b, &value, 4); }
static inline void build_u64(gguf_build *b, uint64_t value) { build_bytes(b, &value, 8); }

static inline void build_string(gguf_build *b, const char *text)
{
    build_u64(b, strlen(text));
    build_bytes(b, text, strlen(text));
}

static inline void build_start(gguf_build *b)
{
    b->size = b->tensors = b->values = b->data = 0;
    build_bytes(b, "GGUF", 4);
    build_u32(b, 3);
    build_u64(b, 0); /* tensors and values: set at the end */
    build_u64(b, 0);
}

static inline void build_int(gguf_build *b, const char *key, uint32_t value)
{
    build_string(b, key);
    build_u32(b, QMI_GGUF_U32);
    build_u32(b, value);
    b->values++;
}

static inline void build_float(gguf_build *b, const char *key, float value)
{
    build_string(b, key);
    build_u32(b, QMI_GGUF_F32);
    build_bytes(b, &value, 4);
    b->values++;
}

static inline void build_text(gguf_build *b, const char *key, const char *value)
{
    build_string(b, key);
    build_u32(b, QMI_GGUF_STRING);
    build_string(b, value);
    b->values++;
}

static inline void build_tensor(gguf_build *b, const char *name, uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    build_string(b, name);
    build_u32(b, count > 1 ? 3 : rows > 1 ? 2 : 1);
    build_u64(b, (uint64_t)columns);
    if (rows > 1 || count > 1)
        build_u64(b, (uint64_t)rows);
    if (count > 1)
        build_u64(b, (uint64_t)count);
    build_u32(b, type);
    build_u64(b, (uint64_t)b->data);
    b->data += (qmi_quant_row_bytes(type, columns) * rows * count + 31) / 32 * 32;
    b->tensors++;
}

/* Returns the size of the whole file, of which only the header is in `bytes`. */
static inline int64_t build_end(gguf_build *b)
{
    memcpy(b->bytes + 8, &b->tensors, 8);
    memcpy(b->bytes + 16, &b->values, 8);
    while (b->size % 32)
        b->bytes[b->size++] = 0;
    return b->size + b->data;
}

/* ---- the real geometries, from the published configurations ---- */

static inline void build_attention(gguf_build *b, int32_t layer, int32_t hidden, int32_t heads, int32_t kv_heads, int32_t head_size)
{
    char name[64];
    const struct { const char *part; int64_t columns, rows; uint32_t type; } parts[] = {
        { "attn_q", hidden, 2 * heads * head_size, QMI_TYPE_Q4_K }, { "attn_k", hidden, kv_heads * head_size, QMI_TYPE_Q4_K },
        { "attn_v", hidden, kv_heads * head_size, QMI_TYPE_Q4_K }, { "attn_output", heads * head_size, hidden, QMI_TYPE_Q4_K },
        { "attn_q_norm", head_size, 1, QMI_TYPE_F32 }, { "attn_k_norm", head_size, 1, QMI_TYPE_F32 } };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, parts[i].part);
        build_tensor(b, name, parts[i].type, parts[i].columns, parts[i].rows, 1);
    }
}

static inline void build_geometry_key(gguf_build *b, const char *arch, const char *key, uint32_t value)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    build_int(b, name, value);
}

/* Metadata of Qwen3.5-35B-A3B (experts true) or Qwen3.5-27B, and their embedding; layers' tensors are not needed for a plan. */
static inline void build_geometry(gguf_build *b, bool experts)
{
    const char *a = experts ? "qwen35moe" : "qwen35";
    const struct { const char *key; uint32_t moe, dense; } keys[] = {
        { "block_count", 40, 64 }, { "context_length", 262144, 262144 }, { "embedding_length", 2048, 5120 },
        { "attention.head_count", 16, 24 }, { "attention.head_count_kv", 2, 4 }, { "attention.key_length", 256, 256 },
        { "attention.value_length", 256, 256 }, { "rope.dimension_count", 64, 64 }, { "feed_forward_length", 512, 17408 },
        { "expert_count", 256, 0 }, { "expert_used_count", 8, 0 }, { "expert_feed_forward_length", 512, 0 },
        { "expert_shared_feed_forward_length", 512, 0 }, { "ssm.conv_kernel", 4, 4 }, { "ssm.state_size", 128, 128 },
        { "ssm.group_count", 16, 16 }, { "ssm.time_step_rank", 32, 48 }, { "ssm.inner_size", 4096, 6144 }, { "full_attention_interval", 4, 4 } };
    build_text(b, "general.architecture", a);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        build_geometry_key(b, a, keys[i].key, experts ? keys[i].moe : keys[i].dense);
    build_tensor(b, "token_embd.weight", QMI_TYPE_Q4_K, experts ? 2048 : 5120, 248320, 1);
    build_attention(b, 3, experts ? 2048 : 5120, experts ? 16 : 24, experts ? 2 : 4, 256);
}

#endif
