/* Sets of items and the ways between them: see automaton.h. */
#include "text/automaton.h"

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "text/automaton_sets.h"

#define NOT_KNOWN UINT32_MAX
#define MOST_BYTES ((uint64_t)1 << 60) /* texts that need more count as this long */

enum { SET_ACCEPTS = 1, SET_EXITS = 2 };
enum { FRESH = 1, /* its rule was entered without a byte since: what its end leads to is reached past the call already */
       IDLE = 2 }; /* it began one more of a loop without a byte since, which must not count */

typedef struct reached { /* an item on the free ways from a set */
    qmi_item item;
    uint32_t flags;
    uint32_t slot;
} reached;

typedef struct call { /* from a set into a rule */
    uint32_t rank, rule;
    qmi_item after;
} call;

struct qmi_automaton {
    qmi_alloc alloc;
    const qmi_network *network;
    uint32_t reach;
    qmi_sets sets;
    int32_t *ways;            /* [tables][class_count] */
    size_t table_count, way_capacity;
    /* of the closure under way */
    reached *reached;
    size_t reached_count, reached_capacity;
    uint32_t *slots;          /* hash table of them: index + 1 */
    size_t slot_count;
    call *calls;              /* heap, lowest rank first */
    size_t call_count, call_capacity;
    qmi_item *items;          /* a set being made */
    size_t item_count, item_capacity;
};

/* ---- making sets ---- */

static int compare_items(const void *a, const void *b)
{
    const qmi_item *x = a, *y = b;
    if (x->place != y->place)
        return x->place < y->place ? -1 : 1;
    if (x->count != y->count)
        return x->count < y->count ? -1 : 1;
    return x->behind < y->behind ? -1 : x->behind > y->behind;
}

static size_t make_set(qmi_item *items, size_t count)
{
    size_t kept = 0;
    if (count > 1)
        qsort(items, count, sizeof *items, compare_items);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || compare_items(&items[kept - 1], &items[i]) != 0)
            items[kept++] = items[i];
    return kept;
}

static int32_t fail_ambiguous(void)
{
    return qmi_fail(QM_ERROR_UNSUPPORTED, "the grammar is too ambiguous: the text can be read in more than %d ways",
                    QMI_SET_ITEMS);
}

static int32_t add_item(qmi_automaton *automaton, qmi_item item)
{
    if (automaton->item_count >= 16 * (size_t)QMI_SET_ITEMS)
        return fail_ambiguous();
    int32_t code = qmi_reserve(&automaton->alloc, (void **)&automaton->items, &automaton->item_capacity,
                               automaton->item_count + 1, sizeof *automaton->items, "state of a grammar");
    if (code >= 0)
        automaton->items[automaton->item_count++] = item;
    return code;
}

/* A count that all counts share which the next `reach` bytes cannot tell apart. */
static uint32_t clamp_count(const qmi_automaton *automaton, const qmi_network_loop *loop, uint32_t count)
{
    uint32_t reach = automaton->reach;
    if (count < loop->least)
        return loop->least - count > reach ? loop->least - reach - 1 : count;
    if (loop->most == QMI_GRAMMAR_ENDLESS || loop->most - count > reach)
        return loop->least;
    return count;
}

static uint64_t bytes_of(const qmi_automaton *automaton, const qmi_item *item)
{
    const qmi_network *network = automaton->network;
    const qmi_network_place *place = &network->places[item->place];
    uint64_t bytes = place->bytes;
    if (place->loop != QMI_NO_LOOP) {
        const qmi_network_loop *loop = &network->loops[place->loop];
        uint32_t done = item->count + (place->kind != QMI_PLACE_LOOP);
        uint64_t each = network->places[loop->body].bytes;
        if (place->kind == QMI_PLACE_LOOP)
            bytes = 0;
        if (done < loop->least)
            bytes += (uint64_t)(loop->least - done) * (each < ((uint64_t)1 << 32) ? each : (uint64_t)1 << 32);
    }
    return bytes + automaton->sets.list[item->behind].bytes;
}

/* The number of the set of the first `count` items gathered, which is its own clamped one until that is known better. */
static int32_t number_set(qmi_automaton *automaton, size_t count, bool *is_new, qmi_set *out)
{
    uint64_t bytes = count ? MOST_BYTES : QMI_FAR;
    *is_new = !qmi_sets_find(&automaton->sets, automaton->items, (uint32_t)count, out);
    for (size_t i = 0; i < count && *is_new; i++) {
        uint64_t of = bytes_of(automaton, &automaton->items[i]);
        bytes = of < bytes ? of : bytes;
    }
    return *is_new ? qmi_sets_add(&automaton->sets, automaton->items, (uint32_t)count, bytes, out) : QM_OK;
}

/* The number of the set of the items gathered. */
static int32_t intern(qmi_automaton *automaton, qmi_set *out)
{
    const qmi_network *network = automaton->network;
    size_t count = make_set(automaton->items, automaton->item_count);
    bool is_new, same = true;
    qmi_set clamped;
    if (count > QMI_SET_ITEMS)
        return fail_ambiguous();
    int32_t code = number_set(automaton, count, &is_new, out);
    for (size_t i = 0; i < count && code >= 0 && is_new; i++) {
        qmi_item *item = &automaton->items[i], before = *item;
        uint32_t loop = network->places[item->place].loop;
        if (loop != QMI_NO_LOOP)
            item->count = clamp_count(automaton, &network->loops[loop], item->count);
        if (loop != QMI_NO_LOOP || automaton->sets.list[item->behind].counts)
            automaton->sets.list[*out].counts = true;
        item->behind = automaton->sets.list[item->behind].clamped;
        same = same && compare_items(&before, item) == 0;
    }
    if (code < 0 || same)
        return code;
    code = number_set(automaton, make_set(automaton->items, count), &is_new, &clamped);
    if (code >= 0) {
        automaton->sets.list[*out].clamped = clamped;
        automaton->sets.list[clamped].counts = true;
    }
    return code;
}

/* ---- free ways ---- */

static uint32_t hash_reached(const qmi_item *item, uint32_t flags)
{
    return qmi_sets_hash(item, 1) ^ flags * 0x9e3779b9u;
}

static int32_t grow_slots(qmi_automaton *automaton)
{
    size_t count = automaton->slot_count ? 2 * automaton->slot_count : 256;
    uint32_t *slots = qmi_new(&automaton->alloc, count, sizeof *slots, "state of a grammar");
    if (!slots)
        return QM_ERROR_MEMORY;
    qmi_delete(&automaton->alloc, automaton->slots);
    automaton->slots = slots;
    automaton->slot_count = count;
    for (size_t i = 0; i < automaton->reached_count; i++) {
        reached *at = &automaton->reached[i];
        size_t slot = hash_reached(&at->item, at->flags) & (count - 1);
        while (slots[slot])
            slot = (slot + 1) & (count - 1);
        slots[slot] = (uint32_t)i + 1;
        at->slot = (uint32_t)slot;
    }
    return QM_OK;
}

static int32_t reach(qmi_automaton *automaton, qmi_item item, uint32_t flags)
{
    int32_t code = QM_OK;
    if (automaton->network->places[item.place].bytes == QMI_FAR)
        return QM_OK;
    if (2 * (automaton->reached_count + 1) > automaton->slot_count)
        code = grow_slots(automaton);
    if (code >= 0 && automaton->reached_count >= 4 * (size_t)QMI_SET_ITEMS)
        code = fail_ambiguous();
    if (code >= 0)
        code = qmi_reserve(&automaton->alloc, (void **)&automaton->reached, &automaton->reached_capacity,
                           automaton->reached_count + 1, sizeof *automaton->reached, "state of a grammar");
    if (code < 0)
        return code;
    size_t mask = automaton->slot_count - 1, slot = hash_reached(&item, flags) & mask;
    for (; automaton->slots[slot]; slot = (slot + 1) & mask) {
        const reached *found = &automaton->reached[automaton->slots[slot] - 1];
        if (found->flags == flags && compare_items(&found->item, &item) == 0)
            return QM_OK;
    }
    automaton->reached[automaton->reached_count++] = (reached){ item, flags, (uint32_t)slot };
    automaton->slots[slot] = (uint32_t)automaton->reached_count;
    return QM_OK;
}

static int32_t add_call(qmi_automaton *automaton, uint32_t rule, qmi_item after)
{
    uint32_t rank = automaton->network->rules[rule].rank;
    int32_t code = qmi_reserve(&automaton->alloc, (void **)&automaton->calls, &automaton->call_capacity,
                               automaton->call_count + 1, sizeof *automaton->calls, "state of a grammar");
    if (code < 0)
        return code;
    size_t at = automaton->call_count++;
    for (; at > 0 && automaton->calls[(at - 1) / 2].rank > rank; at = (at - 1) / 2)
        automaton->calls[at] = automaton->calls[(at - 1) / 2];
    automaton->calls[at] = (call){ rank, rule, after };
    return QM_OK;
}

static call take_call(qmi_automaton *automaton)
{
    call first = automaton->calls[0], last = automaton->calls[--automaton->call_count];
    size_t at = 0, count = automaton->call_count;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && automaton->calls[child + 1].rank < automaton->calls[child].rank)
            child++;
        if (automaton->calls[child].rank >= last.rank)
            break;
        automaton->calls[at] = automaton->calls[child];
        at = child;
    }
    automaton->calls[at] = last;
    return first;
}

/* What is behind the end of a rule that was entered before this state. */
static int32_t leave_rule(qmi_automaton *automaton, const reached *at)
{
    int32_t code = QM_OK;
    const qmi_set_info *behind = &automaton->sets.list[at->item.behind];
    for (uint32_t i = 0; i < behind->count && !(at->flags & FRESH) && code >= 0; i++)
        code = reach(automaton, automaton->sets.items[behind->first + i], 0);
    return code;
}

static int32_t go_round(qmi_automaton *automaton, const reached *at)
{
    const qmi_network *network = automaton->network;
    const qmi_network_loop *loop = &network->loops[network->places[at->item.place].first];
    qmi_item item = at->item;
    int32_t code = QM_OK;
    if (item.count >= loop->least)
        code = leave_rule(automaton, at);
    item.place = loop->body;
    if (code >= 0 && (loop->most == QMI_GRAMMAR_ENDLESS || item.count < loop->most))
        code = reach(automaton, item, at->flags | IDLE);
    return code;
}

static int32_t count_one(qmi_automaton *automaton, const reached *at)
{
    const qmi_network *network = automaton->network;
    uint32_t number = network->places[at->item.place].first;
    const qmi_network_loop *loop = &network->loops[number];
    qmi_item item = at->item;
    if (at->flags & IDLE)
        return QM_OK;
    if (loop->most != QMI_GRAMMAR_ENDLESS || item.count < loop->least)
        item.count++;
    item.place = loop->entry;
    return reach(automaton, item, at->flags);
}

static int32_t go_on(qmi_automaton *automaton, reached at, uint32_t *flags)
{
    const qmi_network *network = automaton->network;
    const qmi_network_place *place = &network->places[at.item.place];
    int32_t code = QM_OK;
    switch (place->kind) {
    case QMI_PLACE_BYTES:
        break;
    case QMI_PLACE_SPLIT:
        for (uint32_t i = 0; i < place->second && code >= 0; i++)
            code = reach(automaton, (qmi_item){ network->targets[place->first + i], at.item.count, at.item.behind }, at.flags);
        break;
    case QMI_PLACE_CALL: {
        qmi_item after = { place->second, at.item.count, at.item.behind };
        if (network->places[after.place].bytes == QMI_FAR)
            break;
        code = add_call(automaton, place->first, after);
        if (code >= 0 && qmi_network_nullable(network, place->first))
            code = reach(automaton, after, at.flags);
        break;
    }
    case QMI_PLACE_LOOP:
        return go_round(automaton, &at);
    case QMI_PLACE_STEP:
        return count_one(automaton, &at);
    case QMI_PLACE_END:
        return leave_rule(automaton, &at);
    case QMI_PLACE_ACCEPT:
        *flags |= SET_ACCEPTS;
        break;
    case QMI_PLACE_EXIT:
        *flags |= SET_EXITS;
        break;
    }
    return code;
}

/* Enters the rule of lowest rank that is called, once for all its callers: those of it are all known, since whoever calls it has
 * a lower rank. A call at the very end of a rule comes back to what is behind that rule. */
static int32_t enter_rule(qmi_automaton *automaton)
{
    uint32_t rule = automaton->calls[0].rule;
    int32_t code = QM_OK;
    qmi_set behind;
    automaton->item_count = 0;
    while (automaton->call_count > 0 && automaton->calls[0].rule == rule && code >= 0) {
        qmi_item after = take_call(automaton).after;
        const qmi_set_info *outer = &automaton->sets.list[after.behind];
        if (after.place != QMI_THE_END)
            code = add_item(automaton, after);
        for (uint32_t i = 0; after.place == QMI_THE_END && i < outer->count && code >= 0; i++)
            code = add_item(automaton, automaton->sets.items[outer->first + i]);
    }
    if (code >= 0)
        code = intern(automaton, &behind);
    if (code >= 0)
        code = reach(automaton, (qmi_item){ automaton->network->rules[rule].entry, 0, behind }, FRESH);
    return code;
}

/* The set's items at BYTES places, and its flags. */
static int32_t close_set(qmi_automaton *automaton, qmi_set set)
{
    uint32_t flags = 0;
    int32_t code = QM_OK;
    if (automaton->sets.list[set].live != NOT_KNOWN)
        return QM_OK;
    while (automaton->reached_count > 0)
        automaton->slots[automaton->reached[--automaton->reached_count].slot] = 0;
    automaton->call_count = 0;
    for (uint32_t i = 0; i < automaton->sets.list[set].count && code >= 0; i++)
        code = reach(automaton, automaton->sets.items[automaton->sets.list[set].first + i], 0);
    for (size_t next = 0; code >= 0; ) {
        if (next < automaton->reached_count)
            code = go_on(automaton, automaton->reached[next++], &flags);
        else if (automaton->call_count > 0)
            code = enter_rule(automaton);
        else
            break;
    }
    automaton->item_count = 0;
    for (size_t i = 0; i < automaton->reached_count && code >= 0; i++)
        if (automaton->network->places[automaton->reached[i].item.place].kind == QMI_PLACE_BYTES)
            code = add_item(automaton, automaton->reached[i].item);
    if (code < 0)
        return code;
    size_t count = make_set(automaton->items, automaton->item_count);
    return qmi_sets_close(&automaton->sets, set, automaton->items, (uint32_t)count, flags);
}

/* ---- bytes ---- */

static int32_t step(qmi_automaton *automaton, qmi_set from, uint8_t byte, qmi_set *out)
{
    const qmi_network *network = automaton->network;
    int32_t code = close_set(automaton, from);
    automaton->item_count = 0;
    if (code < 0)
        return code;
    const qmi_set_info *info = &automaton->sets.list[from];
    for (uint32_t i = 0; i < info->live_count && code >= 0; i++) {
        qmi_item item = automaton->sets.items[info->live + i];
        const qmi_network_place *place = &network->places[item.place];
        for (uint32_t e = 0; e < place->second && code >= 0; e++) {
            const qmi_network_edge *edge = &network->edges[place->first + e];
            if (byte < edge->low || byte > edge->high || network->places[edge->to].bytes == QMI_FAR)
                continue;
            item.place = edge->to;
            code = add_item(automaton, item);
        }
    }
    return code < 0 ? code : intern(automaton, out);
}

int32_t qmi_automaton_table(qmi_automaton *automaton, qmi_set set, size_t *first)
{
    size_t classes = (size_t)automaton->network->class_count;
    qmi_set_info *info = &automaton->sets.list[set];
    if (info->table == NOT_KNOWN) {
        int32_t code = qmi_reserve(&automaton->alloc, (void **)&automaton->ways, &automaton->way_capacity,
                                   (automaton->table_count + 1) * classes, sizeof *automaton->ways, "states of a grammar");
        if (code < 0)
            return code;
        info->table = (uint32_t)automaton->table_count++;
        memset(automaton->ways + info->table * classes, 0xFF, classes * sizeof *automaton->ways);
    }
    *first = info->table * classes;
    return QM_OK;
}

const int32_t *qmi_automaton_tables(const qmi_automaton *automaton)
{
    return automaton->ways;
}

/* A step from a clamped set, by its table. */
static int32_t look_up(qmi_automaton *automaton, qmi_set from, uint8_t byte, int32_t *way)
{
    size_t at;
    qmi_set to;
    int32_t code = qmi_automaton_table(automaton, from, &at);
    if (code < 0)
        return code;
    at += automaton->network->classes[byte];
    *way = automaton->ways[at];
    if (*way >= 0)
        return QM_OK;
    code = step(automaton, from, byte, &to);
    if (code < 0)
        return code;
    qmi_set clamped = automaton->sets.list[to].clamped;
    *way = (int32_t)(2 * clamped + (to != clamped));
    automaton->ways[at] = *way;
    return QM_OK;
}

int32_t qmi_automaton_step(qmi_automaton *automaton, qmi_set from, uint8_t byte, qmi_set *out)
{
    int32_t way = 1, code = QM_OK;
    if (from != QMI_SET_DEAD && automaton->sets.list[from].clamped == from)
        code = look_up(automaton, from, byte, &way);
    *out = from == QMI_SET_DEAD ? QMI_SET_DEAD : (qmi_set)way / 2;
    return code >= 0 && from != QMI_SET_DEAD && way % 2 ? step(automaton, from, byte, out) : code;
}

int32_t qmi_automaton_look(qmi_automaton *automaton, qmi_set from, uint8_t byte, qmi_set *out)
{
    int32_t way = 0, code = from == QMI_SET_DEAD ? QM_OK : look_up(automaton, from, byte, &way);
    *out = (qmi_set)way / 2;
    return code;
}

bool qmi_automaton_counts(const qmi_automaton *automaton, qmi_set set)
{
    return automaton->sets.list[set].counts;
}

int32_t qmi_automaton_walk(qmi_automaton *automaton, qmi_set from, const char *bytes, size_t length, qmi_set *out)
{
    int32_t code = QM_OK;
    for (size_t i = 0; i < length && from != QMI_SET_DEAD && code >= 0; i++)
        code = qmi_automaton_step(automaton, from, (uint8_t)bytes[i], &from);
    *out = from;
    return code;
}

/* ---- asking ---- */

static int32_t has_flag(qmi_automaton *automaton, qmi_set set, uint32_t flag)
{
    int32_t code = close_set(automaton, set);
    return code < 0 ? code : (automaton->sets.list[set].flags & flag) != 0;
}

int32_t qmi_automaton_accepts(qmi_automaton *automaton, qmi_set set)
{
    return has_flag(automaton, set, SET_ACCEPTS);
}

int32_t qmi_automaton_exits(qmi_automaton *automaton, qmi_set set)
{
    return has_flag(automaton, set, SET_EXITS);
}

int32_t qmi_automaton_is_over(qmi_automaton *automaton, qmi_set set)
{
    int32_t code = close_set(automaton, set);
    return code < 0 ? code : automaton->sets.list[set].live_count == 0;
}

qmi_set qmi_automaton_clamped(const qmi_automaton *automaton, qmi_set set)
{
    return automaton->sets.list[set].clamped;
}

uint64_t qmi_automaton_bytes(const qmi_automaton *automaton, qmi_set set)
{
    return automaton->sets.list[set].bytes;
}

int32_t qmi_automaton_shortest(qmi_automaton *automaton, qmi_set set, uint8_t *byte)
{
    const qmi_network *network = automaton->network;
    uint64_t fewest = QMI_FAR;
    int32_t code = close_set(automaton, set);
    if (code < 0)
        return code;
    const qmi_set_info *info = &automaton->sets.list[set];
    for (uint32_t i = 0; i < info->live_count; i++) {
        qmi_item item = automaton->sets.items[info->live + i];
        const qmi_network_place *place = &network->places[item.place];
        for (uint32_t e = 0; e < place->second; e++) {
            const qmi_network_edge *edge = &network->edges[place->first + e];
            item.place = edge->to;
            uint64_t bytes = network->places[edge->to].bytes == QMI_FAR ? QMI_FAR : bytes_of(automaton, &item);
            if (bytes >= fewest)
                continue;
            fewest = bytes;
            *byte = edge->low < 0x20 && edge->high >= 0x20 ? 0x20 : edge->low; /* no control character where it can be a blank */
        }
    }
    return QM_OK;
}

const qmi_item *qmi_automaton_items(const qmi_automaton *automaton, qmi_set set, uint32_t *count)
{
    *count = automaton->sets.list[set].count;
    return automaton->sets.items + automaton->sets.list[set].first;
}

const qmi_network *qmi_automaton_network(const qmi_automaton *automaton)
{
    return automaton->network;
}

const qmi_alloc *qmi_automaton_alloc(const qmi_automaton *automaton)
{
    return &automaton->alloc;
}

uint32_t qmi_automaton_set_count(const qmi_automaton *automaton)
{
    return automaton->sets.count;
}

int64_t qmi_automaton_memory(const qmi_automaton *automaton)
{
    return qmi_sets_memory(&automaton->sets) + (int64_t)(automaton->way_capacity * sizeof *automaton->ways);
}

/* ---- life ---- */

static int32_t start_sets(qmi_automaton *automaton, qmi_sets *sets)
{
    qmi_set set;
    const qmi_item accept = { QMI_THE_ACCEPT, 0, QMI_SET_DEAD }, leave = { QMI_THE_EXIT, 0, QMI_SET_DEAD };
    int32_t code = qmi_sets_start(sets, &automaton->alloc);
    if (code >= 0)
        code = qmi_sets_add(sets, NULL, 0, QMI_FAR, &set);
    if (code >= 0)
        code = qmi_sets_add(sets, &accept, 1, 0, &set);
    if (code >= 0)
        code = qmi_sets_add(sets, &leave, 1, 0, &set);
    return code;
}

int32_t qmi_automaton_new(const qmi_network *network, uint32_t reach, const qmi_alloc *alloc, qmi_automaton **out)
{
    *out = NULL;
    qmi_automaton *automaton = qmi_new(alloc, 1, sizeof *automaton, "states of a grammar");
    if (!automaton)
        return QM_ERROR_MEMORY;
    automaton->alloc = *alloc;
    automaton->network = network;
    automaton->reach = reach;
    int32_t code = start_sets(automaton, &automaton->sets);
    if (code < 0)
        qmi_automaton_free(&automaton);
    *out = automaton;
    return code;
}

void qmi_automaton_free(qmi_automaton **automaton)
{
    qmi_automaton *old = *automaton;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    qmi_sets_end(&old->sets);
    qmi_delete(&alloc, old->ways);
    qmi_delete(&alloc, old->reached);
    qmi_delete(&alloc, old->slots);
    qmi_delete(&alloc, old->calls);
    qmi_delete(&alloc, old->items);
    qmi_delete(&alloc, old);
    *automaton = NULL;
}

int32_t qmi_automaton_single(qmi_automaton *automaton, qmi_item item, qmi_set *out)
{
    automaton->item_count = 0;
    int32_t code = add_item(automaton, item);
    return code < 0 ? code : intern(automaton, out);
}

int32_t qmi_automaton_start(qmi_automaton *automaton, uint32_t rule, qmi_set *out)
{
    return qmi_automaton_single(automaton, (qmi_item){ automaton->network->rules[rule].entry, 0, QMI_SET_ACCEPT }, out);
}

/* Makes the sets that are marked anew, each after what is behind it, which was made before it. marks: 1, then number + 1. */
static int32_t remake(qmi_automaton *automaton, const qmi_sets *old, uint32_t *marks)
{
    int32_t code = QM_OK;
    for (qmi_set set = 0; set < old->count && code >= 0; set++) {
        const qmi_set_info *info = &old->list[set];
        qmi_set number = set;
        automaton->item_count = 0;
        for (uint32_t i = 0; set > QMI_SET_EXIT && marks[set] && i < info->count && code >= 0; i++) {
            qmi_item item = old->items[info->first + i];
            item.behind = marks[item.behind] - 1;
            code = add_item(automaton, item);
        }
        if (code >= 0 && automaton->item_count > 0)
            code = intern(automaton, &number);
        if (set <= QMI_SET_EXIT || marks[set])
            marks[set] = number + 1;
    }
    return code;
}

static void mark(const qmi_sets *sets, qmi_set *const *kept, size_t count, uint32_t *marks)
{
    for (size_t i = 0; i < count; i++)
        marks[*kept[i]] = 1;
    for (qmi_set set = sets->count; set-- > 0;)
        for (uint32_t i = 0; marks[set] && i < sets->list[set].count; i++)
            marks[sets->items[sets->list[set].first + i].behind] = 1;
}

int32_t qmi_automaton_collect(qmi_automaton *automaton, qmi_set *const *kept, size_t count)
{
    qmi_sets old = automaton->sets, made;
    uint32_t *marks = qmi_new(&automaton->alloc, old.count, sizeof *marks, "states of a grammar");
    if (!marks)
        return QM_ERROR_MEMORY;
    int32_t code = start_sets(automaton, &made);
    if (code >= 0) {
        mark(&old, kept, count, marks);
        automaton->sets = made;
        code = remake(automaton, &old, marks);
        made = automaton->sets;
    }
    automaton->sets = code < 0 ? old : made;
    for (size_t i = 0; i < count && code >= 0; i++)
        *kept[i] = marks[*kept[i]] - 1;
    qmi_sets_end(code < 0 ? &made : &old);
    qmi_delete(&automaton->alloc, marks);
    if (code < 0)
        return code;
    qmi_delete(&automaton->alloc, automaton->ways);
    automaton->ways = NULL;
    automaton->table_count = automaton->way_capacity = 0;
    return QM_OK;
}
