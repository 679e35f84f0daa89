/* Masks of tokens: see token_mask.h. */
#include "text/token_mask.h"

#include <string.h>
#include "base/error.h"

#define MEMORY_MOST (32 << 20) /* of all masks together; beyond, they are made anew */
#define PLACES_MOST 3          /* states of more items are walked as a whole */

typedef struct mask {
    uint64_t *bits;
    uint32_t *exits;   /* nodes behind which what is behind the place goes on, if it stands alone */
    size_t exit_count, exit_capacity;
    bool leaves;       /* the place itself may be the end already */
} mask;

struct qmi_token_masks {
    qmi_alloc alloc;
    const qmi_token_trie *trie;
    qmi_automaton *automaton;
    size_t words;          /* of a mask */
    mask *list;
    size_t count, capacity;
    uint32_t *of_set;      /* [sets] mask + 1 */
    uint8_t *plain;        /* [sets] 1: all plain bytes lead back to the set; 2: not so; 0: not known */
    size_t of_set_capacity, plain_capacity;
    int64_t memory;
    qmi_set *way;          /* [longest + 1] sets by depth ... */
    size_t *tables;        /* ... where their tables begin ... */
    bool *leaves;          /* ... and whether they may be left, if they stand alone */
};

int32_t qmi_token_fits(qmi_automaton *automaton, qmi_set set, const char *bytes, int64_t length)
{
    int32_t code = QM_OK;
    if (length > QMI_TOKEN_BRIEF && qmi_automaton_counts(automaton, set))
        return 0;
    set = qmi_automaton_clamped(automaton, set);
    for (int64_t i = 0; i < length && set != QMI_SET_DEAD && code >= 0; i++)
        code = qmi_automaton_look(automaton, set, (uint8_t)bytes[i], &set);
    return code < 0 ? code : set != QMI_SET_DEAD && length > 0;
}

/* ---- walks through the tree ---- */

static void allow(const qmi_token_trie *trie, uint64_t *bits, int32_t token)
{
    for (; token >= 0; token = trie->same[token])
        bits[token / 64] |= (uint64_t)1 << token % 64;
}

/* Whether plain bytes lead from a set back to it. 1, 0 or a code. */
static int32_t is_plain(qmi_token_masks *masks, qmi_set set)
{
    int32_t code =
        qmi_reserve(&masks->alloc, (void **)&masks->plain, &masks->plain_capacity, (size_t)set + 1, 1, "masks of tokens");
    if (code < 0)
        return code;
    if (masks->plain[set] == 0) {
        qmi_set to = set;
        for (int32_t byte = 0; byte < 256 && to == set; byte++) {
            if (qmi_trie_plain((uint8_t)byte))
                code = qmi_automaton_look(masks->automaton, set, (uint8_t)byte, &to);
            if (code < 0)
                return code;
        }
        masks->plain[set] = to == set ? 1 : 2;
    }
    return masks->plain[set] == 1;
}

static int32_t add_exit(qmi_token_masks *masks, mask *out, uint32_t node)
{
    int32_t code = qmi_reserve(&masks->alloc, (void **)&out->exits, &out->exit_capacity, out->exit_count + 1, sizeof *out->exits,
                               "masks of tokens");
    if (code >= 0)
        out->exits[out->exit_count++] = node;
    return code;
}

/* Goes down to a set at `depth`, behind a node: finds its table, and with `alone` notes whether it may be left there. */
static int32_t go_down(qmi_token_masks *masks, qmi_set set, uint32_t node, size_t depth, bool alone, mask *out)
{
    int32_t code = QM_OK;
    if (masks->way[depth] != set) {
        code = qmi_automaton_table(masks->automaton, set, &masks->tables[depth]);
        if (code >= 0)
            code = qmi_automaton_exits(masks->automaton, set);
        masks->leaves[depth] = code > 0;
        masks->way[depth] = code < 0 ? QMI_SET_DEAD : set;
    }
    return code >= 0 && alone && masks->leaves[depth] ? add_exit(masks, out, node) : code;
}

/* Whether all tokens of a node's subtree are allowed at once: plain bytes lead from the set back to it, and it is not left. */
static int32_t is_open(qmi_token_masks *masks, qmi_set set, bool alone)
{
    int32_t code = is_plain(masks, set);
    if (code > 0 && alone) {
        code = qmi_automaton_exits(masks->automaton, set);
        return code < 0 ? code : code == 0;
    }
    return code;
}

/* Allows the tokens of the nodes first .. end - 1 whose bytes lead on from `set`, which stands before them at `depth`. */
static int32_t walk(qmi_token_masks *masks, qmi_set set, uint32_t first, uint32_t end, uint32_t depth, bool alone, mask *out)
{
    const qmi_token_trie *trie = masks->trie;
    const uint8_t *classes = qmi_automaton_network(masks->automaton)->classes;
    int32_t code = go_down(masks, set, 0, depth, false, out);
    const int32_t *tables = qmi_automaton_tables(masks->automaton);
    for (uint32_t at = first; at < end && code >= 0;) {
        const qmi_trie_node *node = &trie->nodes[at];
        qmi_set from = masks->way[node->depth], to = QMI_SET_DEAD;
        int32_t way = tables[masks->tables[node->depth] + classes[node->byte]];
        if (way >= 0) {
            to = (qmi_set)way / 2;
        } else {
            code = qmi_automaton_look(masks->automaton, from, node->byte, &to);
            tables = qmi_automaton_tables(masks->automaton);
        }
        if (to == QMI_SET_DEAD) {
            at = node->end;
            continue;
        }
        if (node->plain && to == from) {
            code = is_open(masks, to, alone);
            tables = qmi_automaton_tables(masks->automaton);
            for (; code > 0 && at < node->end; at++)
                if (trie->nodes[at].token >= 0)
                    allow(trie, out->bits, trie->nodes[at].token);
            if (code != 0)
                continue;
        }
        if (node->token >= 0)
            allow(trie, out->bits, node->token);
        at++;
        if (at < node->end && code >= 0) {
            code = go_down(masks, to, at - 1, node->depth + (size_t)1, alone, out);
            tables = qmi_automaton_tables(masks->automaton);
        }
    }
    return code;
}

/* ---- masks ---- */

static int32_t new_mask(qmi_token_masks *masks, qmi_set set, size_t *out)
{
    int32_t code = qmi_reserve(&masks->alloc, (void **)&masks->list, &masks->capacity, masks->count + 1, sizeof *masks->list,
                               "masks of tokens");
    if (code >= 0)
        code = qmi_reserve(&masks->alloc, (void **)&masks->of_set, &masks->of_set_capacity, (size_t)set + 1,
                           sizeof *masks->of_set, "masks of tokens");
    if (code < 0)
        return code;
    uint64_t *bits = qmi_new(&masks->alloc, masks->words, sizeof *bits, "masks of tokens");
    if (!bits)
        return QM_ERROR_MEMORY;
    masks->list[masks->count] = (mask){ .bits = bits };
    *out = masks->count++;
    masks->memory += (int64_t)(masks->words * sizeof *bits + sizeof(mask));
    return QM_OK;
}

static bool find_mask(const qmi_token_masks *masks, qmi_set set, size_t *out)
{
    bool found = set < masks->of_set_capacity && masks->of_set[set] > 0;
    if (found)
        *out = masks->of_set[set] - 1;
    return found;
}

/* The mask of a set by a walk through the whole tree. */
static int32_t walk_whole(qmi_token_masks *masks, qmi_set set, bool alone, size_t *out)
{
    int32_t code = new_mask(masks, set, out), leaves = 0;
    if (code < 0)
        return code;
    mask *made = &masks->list[*out];
    if (alone)
        code = leaves = qmi_automaton_exits(masks->automaton, set);
    made->leaves = leaves > 0;
    if (code >= 0 && !made->leaves) /* one that may be left at once is of no use alone */
        code = walk(masks, set, 0, masks->trie->count, 0, alone, made);
    if (code >= 0)
        masks->of_set[set] = (uint32_t)*out + 1;
    masks->memory += (int64_t)(made->exit_capacity * sizeof *made->exits);
    return code;
}

/* The item's place alone: its mask. */
static int32_t find_alone(qmi_token_masks *masks, qmi_item item, size_t *out)
{
    qmi_set set;
    item.behind = QMI_SET_EXIT;
    int32_t code = qmi_automaton_single(masks->automaton, item, &set);
    if (code < 0 || find_mask(masks, set, out))
        return code;
    return walk_whole(masks, set, true, out);
}

/* 1: the mask is put together from those of its items; 0: that cannot be. */
static int32_t compose(qmi_token_masks *masks, qmi_set set, size_t *out)
{
    qmi_item items[PLACES_MOST];
    size_t alone[PLACES_MOST];
    uint32_t count;
    const qmi_item *all = qmi_automaton_items(masks->automaton, set, &count);
    if (count > PLACES_MOST)
        return 0;
    memcpy(items, all, count * sizeof *items);
    for (uint32_t i = 0; i < count; i++) {
        int32_t code = find_alone(masks, items[i], &alone[i]);
        if (code < 0 || masks->list[alone[i]].leaves)
            return code < 0 ? code : 0;
    }
    int32_t code = new_mask(masks, set, out);
    for (uint32_t i = 0; i < count && code >= 0; i++) {
        mask *made = &masks->list[*out];
        const mask part = masks->list[alone[i]];
        for (size_t w = 0; w < masks->words; w++)
            made->bits[w] |= part.bits[w];
        for (size_t e = 0; e < part.exit_count && code >= 0; e++) {
            const qmi_trie_node *node = &masks->trie->nodes[part.exits[e]];
            code = walk(masks, items[i].behind, part.exits[e] + 1, node->end, node->depth + 1u, false, made);
        }
    }
    if (code >= 0)
        masks->of_set[set] = (uint32_t)*out + 1;
    return code < 0 ? code : 1;
}

/* Where counts matter, the answer holds for so many bytes only. */
static void leave_out_long(qmi_token_masks *masks, qmi_set set, const mask *made)
{
    for (size_t w = 0; w < masks->words && qmi_automaton_counts(masks->automaton, set); w++)
        made->bits[w] &= masks->trie->brief[w];
}

int32_t qmi_token_masks_find(qmi_token_masks *masks, qmi_set set, const uint64_t **bits)
{
    size_t mask;
    set = qmi_automaton_clamped(masks->automaton, set);
    if (!find_mask(masks, set, &mask)) {
        if (masks->memory > MEMORY_MOST)
            qmi_token_masks_clear(masks);
        int32_t code = compose(masks, set, &mask);
        if (code == 0)
            code = walk_whole(masks, set, false, &mask);
        if (code < 0)
            return code;
        leave_out_long(masks, set, &masks->list[mask]);
    }
    *bits = masks->list[mask].bits;
    return QM_OK;
}

/* ---- life ---- */

static void free_masks(qmi_token_masks *masks)
{
    for (size_t i = 0; i < masks->count; i++) {
        qmi_delete(&masks->alloc, masks->list[i].bits);
        qmi_delete(&masks->alloc, masks->list[i].exits);
    }
    qmi_delete(&masks->alloc, masks->of_set);
    qmi_delete(&masks->alloc, masks->plain);
}

int32_t qmi_token_masks_new(const qmi_token_trie *trie, qmi_automaton *automaton, const qmi_alloc *alloc, qmi_token_masks **out)
{
    *out = NULL;
    qmi_token_masks *masks = qmi_new(alloc, 1, sizeof *masks, "masks of tokens");
    if (!masks)
        return QM_ERROR_MEMORY;
    *masks = (qmi_token_masks){ .alloc = *alloc, .trie = trie, .automaton = automaton };
    masks->words = ((size_t)trie->vocabulary + 63) / 64;
    masks->way = qmi_new(alloc, trie->longest + (size_t)2, sizeof *masks->way, "masks of tokens");
    masks->tables = qmi_new(alloc, trie->longest + (size_t)2, sizeof *masks->tables, "masks of tokens");
    masks->leaves = qmi_new(alloc, trie->longest + (size_t)2, sizeof *masks->leaves, "masks of tokens");
    if (!masks->way || !masks->tables || !masks->leaves) {
        qmi_token_masks_free(&masks);
        return QM_ERROR_MEMORY;
    }
    *out = masks;
    return QM_OK;
}

void qmi_token_masks_clear(qmi_token_masks *masks)
{
    free_masks(masks);
    masks->of_set = NULL;
    masks->plain = NULL;
    masks->count = masks->of_set_capacity = masks->plain_capacity = 0;
    masks->memory = 0;
    memset(masks->way, 0, (masks->trie->longest + (size_t)2) * sizeof *masks->way);
}

void qmi_token_masks_free(qmi_token_masks **masks)
{
    qmi_token_masks *old = *masks;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    free_masks(old);
    qmi_delete(&alloc, old->list);
    qmi_delete(&alloc, old->way);
    qmi_delete(&alloc, old->tables);
    qmi_delete(&alloc, old->leaves);
    qmi_delete(&alloc, old);
    *masks = NULL;
}

int64_t qmi_token_masks_memory(const qmi_token_masks *masks)
{
    return masks->memory;
}
