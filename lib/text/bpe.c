/* Merges, the cache of pieces, and the two ways to encode: a scan for short pieces, a heap for long ones. */
#include "text/bpe.h"

#include <stdbool.h>
#include <string.h>
#include "base/error.h"

#define SHORT_PIECE 32    /* bytes; up to here scanning all pairs for each merge beats a heap, and the cache takes the piece */
#define CACHED_TOKENS 7   /* so that a slot is one cache line */
#define CACHE_SLOTS 16384 /* 1 MB: stays in the second-level cache, and holds nearly all words of a source tree */
#define CACHE_FROM 4096   /* bytes of text; below, clearing the cache costs more than it saves */

typedef struct qmi_bpe_cached {
    uint64_t key[4];       /* the piece, see piece_key */
    uint16_t length;       /* 0: free */
    uint16_t count;
    int32_t tokens[CACHED_TOKENS];
} bpe_cached;

_Static_assert(sizeof(bpe_cached) == 64, "one cache line a slot");

typedef struct qmi_bpe_node { /* a token of a long piece, in a list linked by index */
    uint32_t token;       /* QMI_NO_TOKEN: merged into its left neighbour */
    uint32_t previous, next; /* NO_NODE: none */
} bpe_node;

#define NO_NODE UINT32_MAX

/* ---- merges ---- */

static inline size_t merge_slot(const qmi_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u; /* 2^64 over the golden ratio: spreads neighbours */
    return (size_t)(hash >> 32 ^ hash >> 13) & bpe->mask;
}

/* NULL if this pair does not merge. */
static inline const qmi_merge *find_merge(const qmi_bpe *bpe, uint32_t left, uint32_t right)
{
    for (size_t slot = merge_slot(bpe, left, right);; slot = (slot + 1) & bpe->mask) {
        const qmi_merge *merge = &bpe->merges[slot];
        if (merge->left == left && merge->right == right)
            return merge;
        if (merge->left == QMI_NO_TOKEN)
            return NULL;
    }
}

int32_t qmi_bpe_init(qmi_bpe *bpe, size_t merge_count, const qmi_alloc *alloc)
{
    size_t slots = 16;
    while (slots < 2 * merge_count)
        slots *= 2;
    bpe->merges = qmi_new(alloc, slots, sizeof *bpe->merges, "merges");
    if (!bpe->merges)
        return QM_ERROR_MEMORY;
    bpe->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        bpe->merges[i].left = QMI_NO_TOKEN;
    for (size_t byte = 0; byte < 256; byte++)
        bpe->byte_tokens[byte] = QMI_NO_TOKEN;
    return QM_OK;
}

void qmi_bpe_add(qmi_bpe *bpe, qmi_merge merge)
{
    size_t slot = merge_slot(bpe, merge.left, merge.right);
    for (; bpe->merges[slot].left != QMI_NO_TOKEN; slot = (slot + 1) & bpe->mask) {
        if (bpe->merges[slot].left == merge.left && bpe->merges[slot].right == merge.right)
            break;
    }
    bpe->merges[slot] = merge;
}

void qmi_bpe_clear(qmi_bpe *bpe, const qmi_alloc *alloc)
{
    qmi_delete(alloc, bpe->merges);
    bpe->merges = NULL;
}

/* ---- work ---- */

int32_t qmi_bpe_work_init(qmi_bpe_work *work, int64_t text_length, const qmi_alloc *alloc)
{
    if (text_length < CACHE_FROM)
        return QM_OK;
    size_t slots = CACHE_SLOTS;
    while ((int64_t)slots * 8 > text_length) /* a slot for every eight bytes is more than a text of this length fills */
        slots /= 2;
    work->cache = qmi_new(alloc, slots, sizeof *work->cache, "pieces of text");
    if (!work->cache)
        return QM_ERROR_MEMORY;
    work->cache_size = slots;
    return QM_OK;
}

void qmi_bpe_work_clear(qmi_bpe_work *work, const qmi_alloc *alloc)
{
    qmi_delete(alloc, work->cache);
    qmi_delete(alloc, work->nodes);
    qmi_delete(alloc, work->heap);
    memset(work, 0, sizeof *work);
}

static int32_t append(qmi_ids *out, const int32_t *tokens, size_t count, const qmi_alloc *alloc)
{
    if (out->capacity - out->count < count) {
        void *array = out->data;
        int32_t code = qmi_reserve(alloc, &array, &out->capacity, out->count + count, sizeof *out->data, "tokens");
        out->data = array;
        if (code < 0)
            return code;
    }
    memcpy(out->data + out->count, tokens, count * sizeof *tokens);
    out->count += count;
    return QM_OK;
}

static int32_t no_token(uint8_t byte)
{
    return qmi_fail(QM_ERROR_TEXT, "the text has byte 0x%02x, for which the model's vocabulary has no token: leave it out", byte);
}

/* ---- short pieces: look at all pairs for each merge ---- */

/* Tokens of a piece of at most SHORT_PIECE bytes to `tokens`; their number, or a code. */
static int32_t encode_short(const qmi_bpe *bpe, const char *piece, int32_t length, int32_t tokens[SHORT_PIECE])
{
    const qmi_merge *pairs[SHORT_PIECE]; /* pairs[i]: the merge of tokens i and i + 1, or NULL */
    for (int32_t i = 0; i < length; i++) {
        uint32_t token = bpe->byte_tokens[(uint8_t)piece[i]];
        if (token == QMI_NO_TOKEN)
            return no_token((uint8_t)piece[i]);
        tokens[i] = (int32_t)token;
        if (i > 0)
            pairs[i - 1] = find_merge(bpe, (uint32_t)tokens[i - 1], token);
    }
    int32_t count = length;
    for (;;) {
        int32_t best = -1;
        uint32_t rank = UINT32_MAX;
        for (int32_t i = 0; i + 1 < count; i++) {
            if (pairs[i] && pairs[i]->rank < rank) {
                rank = pairs[i]->rank;
                best = i;
            }
        }
        if (best < 0)
            return count;
        tokens[best] = (int32_t)pairs[best]->result;
        count--;
        for (int32_t i = best + 1; i < count; i++) {
            tokens[i] = tokens[i + 1];
            pairs[i - 1] = pairs[i];
        }
        if (best > 0)
            pairs[best - 1] = find_merge(bpe, (uint32_t)tokens[best - 1], (uint32_t)tokens[best]);
        if (best + 1 < count)
            pairs[best] = find_merge(bpe, (uint32_t)tokens[best], (uint32_t)tokens[best + 1]);
    }
}

/* ---- long pieces: a heap of pairs, smallest (rank, place) first; entries of pairs that are gone are skipped ---- */

static int32_t push_pair(const qmi_bpe *bpe, qmi_bpe_work *work, uint32_t left, const qmi_alloc *alloc)
{
    const bpe_node *nodes = work->nodes;
    const qmi_merge *merge = find_merge(bpe, nodes[left].token, nodes[nodes[left].next].token);
    if (!merge)
        return QM_OK;
    void *array = work->heap;
    int32_t code = qmi_reserve(alloc, &array, &work->heap_capacity, work->heap_count + 1, sizeof *work->heap, "a long piece");
    work->heap = array;
    if (code < 0)
        return code;
    uint64_t entry = (uint64_t)merge->rank << 32 | left;
    size_t at = work->heap_count++;
    for (; at > 0 && work->heap[(at - 1) / 2] > entry; at = (at - 1) / 2)
        work->heap[at] = work->heap[(at - 1) / 2];
    work->heap[at] = entry;
    return QM_OK;
}

static uint64_t pop_pair(qmi_bpe_work *work)
{
    uint64_t *heap = work->heap, first = heap[0], last = heap[--work->heap_count];
    size_t at = 0, count = work->heap_count;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (last <= heap[child])
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

/* One node a byte, and the heap of their pairs. */
static int32_t start_long(const qmi_bpe *bpe, qmi_bpe_work *work, const char *piece, uint32_t length, const qmi_alloc *alloc)
{
    void *array = work->nodes;
    int32_t code = qmi_reserve(alloc, &array, &work->node_capacity, length, sizeof *work->nodes, "a long piece");
    work->nodes = array;
    if (code < 0)
        return code;
    for (uint32_t i = 0; i < length; i++) {
        uint32_t token = bpe->byte_tokens[(uint8_t)piece[i]];
        if (token == QMI_NO_TOKEN)
            return no_token((uint8_t)piece[i]);
        work->nodes[i] = (bpe_node){ token, i > 0 ? i - 1 : NO_NODE, i + 1 < length ? i + 1 : NO_NODE };
    }
    work->heap_count = 0;
    for (uint32_t i = 0; i + 1 < length && code == QM_OK; i++)
        code = push_pair(bpe, work, i, alloc);
    return code;
}

/* Merges node `left` with its right neighbour, and pushes the pairs that come of it. */
static int32_t merge_nodes(const qmi_bpe *bpe, qmi_bpe_work *work, uint32_t left, uint32_t result, const qmi_alloc *alloc)
{
    bpe_node *nodes = work->nodes, *node = &nodes[left];
    nodes[node->next].token = QMI_NO_TOKEN;
    node->token = result;
    node->next = nodes[node->next].next;
    if (node->next != NO_NODE)
        nodes[node->next].previous = left;
    int32_t code = QM_OK;
    if (node->previous != NO_NODE)
        code = push_pair(bpe, work, node->previous, alloc);
    if (code == QM_OK && node->next != NO_NODE)
        code = push_pair(bpe, work, left, alloc);
    return code;
}

static int32_t encode_long(const qmi_bpe *bpe, qmi_bpe_work *work, const char *piece, uint32_t length, const qmi_alloc *alloc,
                           qmi_ids *out)
{
    int32_t code = start_long(bpe, work, piece, length, alloc);
    while (code == QM_OK && work->heap_count > 0) {
        uint64_t entry = pop_pair(work);
        uint32_t left = (uint32_t)entry, rank = (uint32_t)(entry >> 32);
        const bpe_node *node = &work->nodes[left];
        if (node->token == QMI_NO_TOKEN || node->next == NO_NODE)
            continue;
        const qmi_merge *merge = find_merge(bpe, node->token, work->nodes[node->next].token);
        if (merge && merge->rank == rank)
            code = merge_nodes(bpe, work, left, merge->result, alloc);
    }
    for (uint32_t i = 0; i != NO_NODE && code == QM_OK; i = work->nodes[i].next) {
        int32_t token = (int32_t)work->nodes[i].token;
        code = append(out, &token, 1, alloc);
    }
    return code;
}

/* ---- the cache ---- */

static inline uint64_t load8(const char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, 8);
    return word;
}

/* Words that, together with the length, tell pieces of 2 to SHORT_PIECE bytes apart; they overlap, so nothing beyond the
 * piece is read. Returns a hash of them. */
static inline uint64_t piece_key(const char *piece, int32_t length, uint64_t key[4])
{
    key[1] = key[2] = key[3] = 0;
    if (length > 16) {
        key[0] = load8(piece);
        key[1] = load8(piece + 8);
        key[2] = load8(piece + length - 16);
        key[3] = load8(piece + length - 8);
    } else if (length >= 8) {
        key[0] = load8(piece);
        key[1] = load8(piece + length - 8);
    } else if (length >= 4) {
        uint32_t head, tail;
        memcpy(&head, piece, 4);
        memcpy(&tail, piece + length - 4, 4);
        key[0] = (uint64_t)tail << 32 | head;
    } else {
        key[0] = (uint64_t)(uint8_t)piece[0] << 16 | (uint64_t)(uint8_t)piece[1] << 8 | (uint8_t)piece[length - 1];
    }
    uint64_t hash = ((key[0] ^ (uint64_t)length << 56) * 0x9e3779b97f4a7c15u) ^ (key[1] * 0xc2b2ae3d27d4eb4fu);
    hash ^= (key[2] * 0x165667b19e3779f9u) ^ (key[3] * 0xd6e8feb86659fd93u);
    return hash ^ hash >> 29;
}

int32_t qmi_bpe_encode(const qmi_bpe *bpe, qmi_bpe_work *work, const char *piece, int64_t length, const qmi_alloc *alloc,
                       qmi_ids *out)
{
    if (length > SHORT_PIECE) {
        if (length >= NO_NODE)
            return qmi_fail(QM_ERROR_TEXT, "a word of %lld bytes is too long to tokenize: break it up", (long long)length);
        return encode_long(bpe, work, piece, (uint32_t)length, alloc, out);
    }
    int32_t tokens[SHORT_PIECE];
    if (!work->cache || length == 1) {
        int32_t count = encode_short(bpe, piece, (int32_t)length, tokens);
        return count < 0 ? count : append(out, tokens, (size_t)count, alloc);
    }
    uint64_t key[4];
    uint64_t hash = piece_key(piece, (int32_t)length, key);
    bpe_cached *cached = &work->cache[(hash >> 20) & (work->cache_size - 1)];
    if (cached->length == length && memcmp(cached->key, key, sizeof key) == 0)
        return append(out, cached->tokens, cached->count, alloc);
    int32_t count = encode_short(bpe, piece, (int32_t)length, tokens);
    if (count < 0)
        return count;
    if (count <= CACHED_TOKENS) {
        memcpy(cached->key, key, sizeof key);
        cached->length = (uint16_t)length;
        cached->count = (uint16_t)count;
        memcpy(cached->tokens, tokens, (size_t)count * sizeof *tokens);
    }
    return append(out, tokens, (size_t)count, alloc);
}
