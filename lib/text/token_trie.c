/* Makes the tree from texts in order: see token_trie.h. */
#include "text/token_trie.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST 65535 /* of a text, as depths are kept; longer tokens are left out */

typedef struct text {
    const char *bytes;
    uint32_t length;
    int32_t token;
} text;

static int compare_texts(const void *a, const void *b)
{
    const text *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->length < y->length ? x->length : y->length);
    if (order != 0)
        return order;
    if (x->length != y->length)
        return x->length < y->length ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static size_t list_texts(const qmi_vocab *vocab, text *texts)
{
    size_t count = 0;
    for (int32_t token = 0; token < qmi_vocab_size(vocab); token++) {
        int32_t kind = qmi_vocab_kind(vocab, token);
        int64_t length;
        const char *bytes = qmi_vocab_bytes(vocab, token, &length);
        if ((kind == QMI_TOKEN_NORMAL || kind == QMI_TOKEN_USER_DEFINED || kind == QMI_TOKEN_BYTE) && length > 0 &&
            length <= LONGEST)
            texts[count++] = (text){ bytes, (uint32_t)length, token };
    }
    return count;
}

/* Bytes at the start that a text shares with the one before it. */
static uint32_t shared_start(const text *texts, size_t at)
{
    uint32_t shared = 0;
    if (at == 0)
        return 0;
    const text *one = &texts[at - 1], *other = &texts[at];
    while (shared < one->length && shared < other->length && one->bytes[shared] == other->bytes[shared])
        shared++;
    return shared;
}

/* Adds the nodes that each text has beyond the last one. open: the nodes on the way to the last one. */
static void fill(qmi_token_trie *trie, const text *texts, size_t count, uint32_t *open)
{
    uint32_t depth = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t shared = shared_start(texts, i);
        while (depth > shared)
            trie->nodes[open[--depth]].end = trie->count;
        for (; depth < texts[i].length; depth++) {
            open[depth] = trie->count;
            trie->nodes[trie->count++] =
                (qmi_trie_node){ .token = -1, .depth = (uint16_t)depth, .byte = (uint8_t)texts[i].bytes[depth] };
        }
        qmi_trie_node *last = &trie->nodes[open[depth - 1]];
        trie->same[texts[i].token] = last->token;
        last->token = texts[i].token;
        if (texts[i].length <= QMI_TOKEN_BRIEF)
            trie->brief[last->token / 64] |= (uint64_t)1 << last->token % 64;
    }
    while (depth > 0)
        trie->nodes[open[--depth]].end = trie->count;
}

static void find_plain(qmi_token_trie *trie)
{
    for (uint32_t i = trie->count; i-- > 0;) {
        qmi_trie_node *node = &trie->nodes[i];
        node->plain = qmi_trie_plain(node->byte);
        for (uint32_t child = i + 1; child < node->end && node->plain; child = trie->nodes[child].end)
            node->plain = trie->nodes[child].plain;
    }
}

static int32_t make(qmi_token_trie *trie, text *texts, size_t count)
{
    size_t nodes = 0;
    qsort(texts, count, sizeof *texts, compare_texts);
    for (size_t i = 0; i < count; i++) {
        nodes += texts[i].length - shared_start(texts, i);
        trie->longest = texts[i].length > trie->longest ? texts[i].length : trie->longest;
    }
    if (nodes > UINT32_MAX)
        nodes = SIZE_MAX; /* which no allocation gives */
    trie->nodes = qmi_new(&trie->alloc, nodes, sizeof *trie->nodes, "tree of token texts");
    uint32_t *open = qmi_new(&trie->alloc, trie->longest, sizeof *open, "tree of token texts");
    if (trie->nodes && open) {
        fill(trie, texts, count, open);
        find_plain(trie);
    }
    bool done = trie->nodes && open;
    qmi_delete(&trie->alloc, open);
    return done ? QM_OK : QM_ERROR_MEMORY;
}

int32_t qmi_token_trie_new(const qmi_vocab *vocab, const qmi_alloc *alloc, qmi_token_trie **out)
{
    size_t size = (size_t)qmi_vocab_size(vocab);
    *out = NULL;
    qmi_token_trie *trie = qmi_new(alloc, 1, sizeof *trie, "tree of token texts");
    text *texts = qmi_new(alloc, size, sizeof *texts, "tree of token texts");
    int32_t code = trie && texts ? QM_OK : QM_ERROR_MEMORY;
    if (trie) {
        trie->alloc = *alloc;
        trie->vocabulary = (int32_t)size;
        trie->same = qmi_new(alloc, size, sizeof *trie->same, "tree of token texts");
        trie->brief = qmi_new(alloc, (size + 63) / 64, sizeof *trie->brief, "tree of token texts");
        if (!trie->same || !trie->brief)
            code = QM_ERROR_MEMORY;
    }
    if (code >= 0)
        code = make(trie, texts, list_texts(vocab, texts));
    qmi_delete(alloc, texts);
    if (code < 0)
        qmi_token_trie_free(&trie);
    *out = trie;
    return code;
}

void qmi_token_trie_free(qmi_token_trie **trie)
{
    qmi_token_trie *old = *trie;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    qmi_delete(&alloc, old->nodes);
    qmi_delete(&alloc, old->same);
    qmi_delete(&alloc, old->brief);
    qmi_delete(&alloc, old);
    *trie = NULL;
}

int32_t qmi_token_trie_longest(const qmi_token_trie *trie, const char *bytes, size_t length, size_t *used)
{
    int32_t found = -1;
    uint32_t at = 0, end = trie->count;
    for (size_t i = 0; i < length; i++) {
        while (at < end && trie->nodes[at].byte != (uint8_t)bytes[i])
            at = trie->nodes[at].end;
        if (at >= end)
            break;
        if (trie->nodes[at].token >= 0) {
            found = trie->nodes[at].token;
            *used = i + 1;
        }
        end = trie->nodes[at].end;
        at++;
    }
    return found;
}
