/* The texts of a vocabulary's tokens as a tree of bytes, so that tokens which begin alike are looked at once.
 *
 * Nodes lie in the order of a walk through the tree: a node's subtree is what follows it up to `end`. Only tokens that are text
 * are in it: normal ones and those that the file marks as user defined; no control tokens. Read-only once made. */
#ifndef QMI_TEXT_TOKEN_TRIE_H
#define QMI_TEXT_TOKEN_TRIE_H

#include "text/vocab.h"

#define QMI_TOKEN_BRIEF 32 /* nearly all tokens have as few bytes */

typedef struct qmi_trie_node {
    uint32_t end;    /* the node behind its subtree */
    int32_t token;   /* whose text ends here, -1: none */
    uint16_t depth;  /* bytes before its own */
    uint8_t byte;
    uint8_t plain;   /* every byte of it and its subtree is qmi_trie_plain */
} qmi_trie_node;

typedef struct qmi_token_trie {
    qmi_alloc alloc;
    qmi_trie_node *nodes;
    uint32_t count;
    int32_t *same;       /* [vocabulary] the next token with the same text, -1: none */
    int32_t vocabulary;
    uint32_t longest;    /* bytes of the longest text */
    uint64_t *brief;     /* [(vocabulary + 63) / 64] bits of the tokens of at most QMI_TOKEN_BRIEF bytes */
} qmi_token_trie;

/* Bytes that texts in quotation marks mostly consist of. */
static inline bool qmi_trie_plain(uint8_t byte)
{
    return byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\';
}

int32_t qmi_token_trie_new(const qmi_vocab *vocab, const qmi_alloc *alloc, qmi_token_trie **out);
void qmi_token_trie_free(qmi_token_trie **trie);
/* The token whose text is the longest start of these bytes; -1: not even the first byte is one. */
int32_t qmi_token_trie_longest(const qmi_token_trie *trie, const char *bytes, size_t length, size_t *used);

#endif
