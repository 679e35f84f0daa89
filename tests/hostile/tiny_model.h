/* A whole qwen35moe model of a few KB, written in memory, with edits that make it hostile.
 *
 * One delta layer and one attention layer, 2 experts of which 1 is used, 24 tokens. All sizes are the least that exercise every
 * part of loading and computing. */
#ifndef TEST_TINY_MODEL_H
#define TEST_TINY_MODEL_H

#include "gguf_writer.h"

enum { TINY_HIDDEN = 32, TINY_TOKENS = 24, TINY_DATA_ALIGNMENT = 32 };

enum tiny_action {
    TINY_END,      /* of a list of edits */
    TINY_DROP,     /* the key or tensor is left out */
    TINY_U32,      /* the key's value becomes this number ... */
    TINY_U64,
    TINY_F32,
    TINY_TEXT,
    TINY_NUMBERS,  /* ... an array of `number` i32 zeros ... */
    TINY_TEXTS,    /* ... or an array of `number` copies of `text` */
    TINY_TYPE,     /* the tensor's type becomes this number, with data to match */
    TINY_COLUMNS,  /* its first dimension */
    TINY_ROWS,     /* its second dimension */
    TINY_OFFSET,   /* its offset; the data stays where it is */
    TINY_FILL,     /* all its values become `real` */
    TINY_RENAME,   /* the key or tensor is called `text` */
    TINY_ADD       /* one key more, with this number */
};

typedef struct tiny_edit {
    enum tiny_action action;
    const char *name; /* of the key or tensor */
    uint64_t number;
    float real;
    const char *text;
} tiny_edit;

typedef struct tiny_writer {
    writer *to;
    const tiny_edit *edits; /* up to TINY_END; NULL: none */
    uint64_t values, tensors, random;
    writer data;
} tiny_writer;

static inline const tiny_edit *tiny_find(const tiny_writer *t, const char *name, enum tiny_action first, enum tiny_action last)
{
    for (const tiny_edit *e = t->edits; e && e->action != TINY_END; e++)
        if (strcmp(e->name, name) == 0 && e->action >= first && e->action <= last)
            return e;
    return NULL;
}

/* Writes an edited value; 0 if there is no edit. A dropped one is written as nothing. */
static inline int tiny_edited(tiny_writer *t, const char *key)
{
    const tiny_edit *e = tiny_find(t, key, TINY_DROP, TINY_TEXTS);
    if (!e)
        return 0;
    t->values += e->action != TINY_DROP;
    switch (e->action) {
    case TINY_U32:
        put_u32_value(t->to, key, (uint32_t)e->number);
        break;
    case TINY_U64:
        put_key(t->to, key, 10), put_u64(t->to, e->number);
        break;
    case TINY_F32:
        put_key(t->to, key, 6), put_f32(t->to, e->real);
        break;
    case TINY_TEXT:
        put_text_value(t->to, key, e->text);
        break;
    case TINY_NUMBERS:
        put_array(t->to, key, 5, e->number);
        for (uint64_t i = 0; i < e->number; i++)
            put_u32(t->to, 0);
        break;
    case TINY_TEXTS:
        put_array(t->to, key, 8, e->number);
        for (uint64_t i = 0; i < e->number; i++)
            put_text(t->to, e->text);
        break;
    default:
        break;
    }
    return 1;
}

static inline const char *tiny_name(const tiny_writer *t, const char *name)
{
    const tiny_edit *e = tiny_find(t, name, TINY_RENAME, TINY_RENAME);
    return e ? e->text : name;
}

static inline void tiny_u32(tiny_writer *t, const char *key, uint32_t value)
{
    if (tiny_edited(t, key))
        return;
    put_u32_value(t->to, tiny_name(t, key), value);
    t->values++;
}

static inline void tiny_f32(tiny_writer *t, const char *key, float value)
{
    if (tiny_edited(t, key))
        return;
    put_key(t->to, tiny_name(t, key), 6);
    put_f32(t->to, value);
    t->values++;
}

static inline void tiny_text(tiny_writer *t, const char *key, const char *value)
{
    if (tiny_edited(t, key))
        return;
    put_text_value(t->to, tiny_name(t, key), value);
    t->values++;
}

static const char *const tiny_tokens[TINY_TOKENS] = {
    "a", "b", "c", "d", "e", "\xC4\xA0", "\xC4\x8A", "ab", "cd", "abcd", "1", "2", ".", ",", "(", ")", ":", "=", "<|endoftext|>",
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "" };

static inline void tiny_vocabulary(tiny_writer *t)
{
    static const char *const merges[3] = { "a b", "c d", "ab cd" };
    tiny_text(t, "tokenizer.ggml.model", "gpt2");
    tiny_text(t, "tokenizer.ggml.pre", "qwen35");
    if (!tiny_edited(t, "tokenizer.ggml.tokens")) {
        put_array(t->to, "tokenizer.ggml.tokens", 8, TINY_TOKENS);
        for (int i = 0; i < TINY_TOKENS; i++)
            put_text(t->to, tiny_tokens[i]);
        t->values++;
    }
    if (!tiny_edited(t, "tokenizer.ggml.token_type")) {
        put_array(t->to, "tokenizer.ggml.token_type", 5, TINY_TOKENS);
        for (int i = 0; i < TINY_TOKENS; i++)
            put_u32(t->to, i < 18 ? 1 : i < 21 ? 3 : i < 23 ? 4 : 5); /* normal, control, user defined, unused */
        t->values++;
    }
    if (!tiny_edited(t, "tokenizer.ggml.merges")) {
        put_array(t->to, "tokenizer.ggml.merges", 8, 3);
        for (int i = 0; i < 3; i++)
            put_text(t->to, merges[i]);
        t->values++;
    }
    tiny_u32(t, "tokenizer.ggml.eos_token_id", 20);
    tiny_u32(t, "tokenizer.ggml.padding_token_id", 18);
    if (tiny_find(t, "tokenizer.chat_template", TINY_TEXT, TINY_TEXT))
        tiny_edited(t, "tokenizer.chat_template");
}

static inline void tiny_values(tiny_writer *t)
{
    static const struct { const char *key; uint32_t value; } numbers[] = {
        { "qwen35moe.block_count", 2 }, { "qwen35moe.context_length", 128 }, { "qwen35moe.embedding_length", TINY_HIDDEN },
        { "qwen35moe.attention.head_count", 2 }, { "qwen35moe.attention.head_count_kv", 1 },
        { "qwen35moe.attention.key_length", 32 }, { "qwen35moe.attention.value_length", 32 },
        { "qwen35moe.rope.dimension_count", 8 }, { "qwen35moe.expert_count", 2 }, { "qwen35moe.expert_used_count", 1 },
        { "qwen35moe.expert_feed_forward_length", 32 }, { "qwen35moe.expert_shared_feed_forward_length", 32 },
        { "qwen35moe.ssm.conv_kernel", 4 }, { "qwen35moe.ssm.state_size", 16 }, { "qwen35moe.ssm.group_count", 1 },
        { "qwen35moe.ssm.time_step_rank", 2 }, { "qwen35moe.ssm.inner_size", 32 }, { "qwen35moe.full_attention_interval", 2 } };
    tiny_text(t, "general.architecture", "qwen35moe");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        tiny_u32(t, numbers[i].key, numbers[i].value);
    tiny_f32(t, "qwen35moe.attention.layer_norm_rms_epsilon", 1e-6f);
    tiny_f32(t, "qwen35moe.rope.freq_base", 10000);
    tiny_vocabulary(t);
    for (const tiny_edit *e = t->edits; e && e->action != TINY_END; e++)
        if (e->action == TINY_ADD) {
            put_u32_value(t->to, e->name, (uint32_t)e->number);
            t->values++;
        }
}

/* Appends the values to t->data and the entry to the header. */
static inline void tiny_tensor(tiny_writer *t, const char *name, uint64_t columns, uint64_t rows, uint64_t count)
{
    if (tiny_find(t, name, TINY_DROP, TINY_DROP))
        return;
    const tiny_edit *type = tiny_find(t, name, TINY_TYPE, TINY_TYPE), *fill = tiny_find(t, name, TINY_FILL, TINY_FILL);
    const tiny_edit *new_columns = tiny_find(t, name, TINY_COLUMNS, TINY_COLUMNS);
    const tiny_edit *new_rows = tiny_find(t, name, TINY_ROWS, TINY_ROWS);
    const tiny_edit *offset = tiny_find(t, name, TINY_OFFSET, TINY_OFFSET);
    const uint64_t sizes[3] = { new_columns ? new_columns->number : columns, new_rows ? new_rows->number : rows, count };
    put_tensor(t->to, tiny_name(t, name), type ? (uint32_t)type->number : 0, count > 1 ? 3 : sizes[1] > 1 ? 2 : 1, sizes,
               offset ? offset->number : t->data.size);
    t->tensors++;
    for (uint64_t i = 0; i < columns * rows * count; i++) {
        t->random = t->random * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX generator: any numbers will do */
        put_f32(&t->data, fill ? fill->real : (float)(int32_t)(t->random >> 33) * 0x1p-33f);
    }
    while (t->data.size % TINY_DATA_ALIGNMENT)
        put_u8(&t->data, 0);
}

static inline void tiny_tensors(tiny_writer *t)
{
    static const struct { const char *name; uint64_t columns, rows, count; } tensors[] = {
        { "token_embd.weight", TINY_HIDDEN, TINY_TOKENS, 1 }, { "output.weight", TINY_HIDDEN, TINY_TOKENS, 1 },
        { "output_norm.weight", TINY_HIDDEN, 1, 1 },
        /* the delta layer: channels 2 x 16 + 2 x 16 */
        { "blk.0.attn_norm.weight", TINY_HIDDEN, 1, 1 }, { "blk.0.attn_qkv.weight", TINY_HIDDEN, 64, 1 },
        { "blk.0.attn_gate.weight", TINY_HIDDEN, 32, 1 }, { "blk.0.ssm_beta.weight", TINY_HIDDEN, 2, 1 },
        { "blk.0.ssm_alpha.weight", TINY_HIDDEN, 2, 1 }, { "blk.0.ssm_conv1d.weight", 4, 64, 1 },
        { "blk.0.ssm_dt.bias", 2, 1, 1 }, { "blk.0.ssm_a", 2, 1, 1 }, { "blk.0.ssm_norm.weight", 16, 1, 1 },
        { "blk.0.ssm_out.weight", 32, TINY_HIDDEN, 1 },
        /* the attention layer: queries with their gates 2 x 2 x 32 */
        { "blk.1.attn_norm.weight", TINY_HIDDEN, 1, 1 }, { "blk.1.attn_q.weight", TINY_HIDDEN, 128, 1 },
        { "blk.1.attn_k.weight", TINY_HIDDEN, 32, 1 }, { "blk.1.attn_v.weight", TINY_HIDDEN, 32, 1 },
        { "blk.1.attn_output.weight", 64, TINY_HIDDEN, 1 }, { "blk.1.attn_q_norm.weight", 32, 1, 1 },
        { "blk.1.attn_k_norm.weight", 32, 1, 1 } };
    static const struct { const char *name; uint64_t columns, rows, count; } both[] = {
        { "post_attention_norm.weight", TINY_HIDDEN, 1, 1 }, { "ffn_gate_inp.weight", TINY_HIDDEN, 2, 1 },
        { "ffn_gate_exps.weight", TINY_HIDDEN, 32, 2 }, { "ffn_up_exps.weight", TINY_HIDDEN, 32, 2 },
        { "ffn_down_exps.weight", 32, TINY_HIDDEN, 2 }, { "ffn_gate_inp_shexp.weight", TINY_HIDDEN, 1, 1 },
        { "ffn_gate_shexp.weight", TINY_HIDDEN, 32, 1 }, { "ffn_up_shexp.weight", TINY_HIDDEN, 32, 1 },
        { "ffn_down_shexp.weight", 32, TINY_HIDDEN, 1 } };
    char name[64];
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        tiny_tensor(t, tensors[i].name, tensors[i].columns, tensors[i].rows, tensors[i].count);
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < sizeof both / sizeof *both; i++) {
            snprintf(name, sizeof name, "blk.%d.%s", layer, both[i].name);
            tiny_tensor(t, name, both[i].columns, both[i].rows, both[i].count);
        }
}

/* Writes the file; returns the bytes of its header with padding. */
static inline size_t tiny_model(writer *w, const tiny_edit *edits)
{
    tiny_writer t = { .to = w, .edits = edits, .random = 1 };
    put_start(w, 3, 0, 0);
    tiny_values(&t);
    tiny_tensors(&t);
    memcpy(w->bytes + 8, &t.tensors, 8);
    memcpy(w->bytes + 16, &t.values, 8);
    while (w->size % TINY_DATA_ALIGNMENT)
        put_u8(w, 0);
    const size_t header = w->size;
    put(w, t.data.bytes, t.data.size);
    writer_free(&t.data);
    return header;
}

#endif
