/* A small vocabulary for tests: token N for byte N (0 .. 255), then one token a merge, then whatever else is added. */
#ifndef TEST_SMALL_VOCAB_H
#define TEST_SMALL_VOCAB_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "gguf_writer.h"
#include "text/vocab.h"

typedef struct small_vocab {
    writer tokens, types, merges;
    qmi_vocab_source source;
} small_vocab;

/* Appends a byte as GPT-2 shows it: printable Latin-1 as itself, the others, in their order, from U+0100. */
static inline void put_visible(char *text, uint8_t byte)
{
    uint32_t shown = 0x100;
    for (uint32_t b = 0; b <= byte; b++) {
        int printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
        if (b == byte && printable)
            shown = b;
        else if (b < byte && !printable)
            shown++;
    }
    size_t end = strlen(text);
    if (shown < 0x80) {
        text[end++] = (char)shown;
    } else {
        text[end++] = (char)(0xc0 | shown >> 6);
        text[end++] = (char)(0x80 | (shown & 0x3f));
    }
    text[end] = 0;
}

static inline int32_t small_vocab_token(small_vocab *small, const char *text, int32_t type)
{
    put_text(&small->tokens, text);
    put_u32(&small->types, (uint32_t)type);
    return (int32_t)small->source.token_count++;
}

/* Merges two plain ASCII texts without blanks; makes a token for the result. Returns it. */
static inline int32_t small_vocab_merge(small_vocab *small, const char *left, const char *right)
{
    char text[128];
    snprintf(text, sizeof text, "%s %s", left, right);
    put_text(&small->merges, text);
    small->source.merge_count++;
    snprintf(text, sizeof text, "%s%s", left, right);
    return small_vocab_token(small, text, QMI_TOKEN_NORMAL);
}

static inline void small_vocab_start(small_vocab *small, const char *pre)
{
    *small = (small_vocab){ .source = { .pre = pre, .eos = -1, .pad = -1 } };
    for (int32_t byte = 0; byte < 256; byte++) {
        char text[4] = "";
        put_visible(text, (uint8_t)byte);
        small_vocab_token(small, text, QMI_TOKEN_NORMAL);
    }
}

/* The arrays as a source; valid until something more is added. */
static inline const qmi_vocab_source *small_vocab_source(small_vocab *small)
{
    small->source.tokens = small->tokens.bytes;
    small->source.types = (const int32_t *)(const void *)small->types.bytes;
    small->source.type_count = small->source.token_count;
    small->source.merges = small->merges.bytes;
    return &small->source;
}

static inline void small_vocab_free(small_vocab *small)
{
    free(small->tokens.bytes);
    free(small->types.bytes);
    free(small->merges.bytes);
}

#endif
