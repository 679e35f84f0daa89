/* Numbered sets of items: see automaton_sets.h. */
#include "text/automaton_sets.h"

#include <string.h>

#define FIRST_SLOTS 256

int32_t qmi_sets_start(qmi_sets *sets, const qmi_alloc *alloc)
{
    *sets = (qmi_sets){ .alloc = *alloc, .slot_count = FIRST_SLOTS };
    sets->slots = qmi_new(alloc, FIRST_SLOTS, sizeof *sets->slots, "states of a grammar");
    int32_t code = qmi_reserve(alloc, (void **)&sets->items, &sets->item_capacity, FIRST_SLOTS, sizeof *sets->items,
                               "states of a grammar");
    return sets->slots ? code : QM_ERROR_MEMORY;
}

void qmi_sets_end(qmi_sets *sets)
{
    qmi_delete(&sets->alloc, sets->list);
    qmi_delete(&sets->alloc, sets->items);
    qmi_delete(&sets->alloc, sets->slots);
    *sets = (qmi_sets){ .alloc = sets->alloc };
}

uint32_t qmi_sets_hash(const qmi_item *items, uint32_t count)
{
    uint64_t hash = count;
    for (uint32_t i = 0; i < count; i++) {
        hash = (hash ^ items[i].place) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
        hash = (hash ^ ((uint64_t)items[i].count << 32 | items[i].behind)) * 0xc2b2ae3d27d4eb4fu;
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

/* The slot of the set, or the free one where it belongs. */
static uint32_t *find_slot(const qmi_sets *sets, const qmi_item *items, uint32_t count)
{
    size_t mask = sets->slot_count - 1, slot = qmi_sets_hash(items, count) & mask;
    for (; sets->slots[slot]; slot = (slot + 1) & mask) {
        const qmi_set_info *found = &sets->list[sets->slots[slot] - 1];
        if (found->count == count && (count == 0 || memcmp(sets->items + found->first, items, count * sizeof *items) == 0))
            break;
    }
    return &sets->slots[slot];
}

bool qmi_sets_find(const qmi_sets *sets, const qmi_item *items, uint32_t count, qmi_set *out)
{
    uint32_t found = *find_slot(sets, items, count);
    if (found)
        *out = found - 1;
    return found != 0;
}

static int32_t grow_slots(qmi_sets *sets)
{
    size_t count = 2 * sets->slot_count;
    uint32_t *slots = qmi_new(&sets->alloc, count, sizeof *slots, "states of a grammar");
    if (!slots)
        return QM_ERROR_MEMORY;
    qmi_delete(&sets->alloc, sets->slots);
    sets->slots = slots;
    sets->slot_count = count;
    for (uint32_t i = 0; i < sets->count; i++)
        *find_slot(sets, sets->items + sets->list[i].first, sets->list[i].count) = i + 1;
    return QM_OK;
}

static int32_t add_items(qmi_sets *sets, const qmi_item *items, uint32_t count, uint32_t *first)
{
    int32_t code = qmi_reserve(&sets->alloc, (void **)&sets->items, &sets->item_capacity, sets->item_count + count,
                               sizeof *sets->items, "states of a grammar");
    if (code < 0)
        return code;
    *first = (uint32_t)sets->item_count;
    if (count > 0)
        memcpy(sets->items + sets->item_count, items, count * sizeof *items);
    sets->item_count += count;
    return QM_OK;
}

int32_t qmi_sets_add(qmi_sets *sets, const qmi_item *items, uint32_t count, uint64_t bytes, qmi_set *out)
{
    uint32_t first;
    int32_t code = qmi_reserve(&sets->alloc, (void **)&sets->list, &sets->list_capacity, sets->count + (size_t)1,
                               sizeof *sets->list, "states of a grammar");
    if (code >= 0 && 2 * ((size_t)sets->count + 1) > sets->slot_count)
        code = grow_slots(sets);
    if (code >= 0)
        code = add_items(sets, items, count, &first);
    if (code < 0)
        return code;
    *out = sets->count;
    *find_slot(sets, sets->items + first, count) = *out + 1;
    sets->list[sets->count++] = (qmi_set_info){ .first = first, .count = count, .live = UINT32_MAX, .clamped = *out,
                                                .table = UINT32_MAX, .bytes = bytes };
    return QM_OK;
}

int32_t qmi_sets_close(qmi_sets *sets, qmi_set set, const qmi_item *live, uint32_t count, uint32_t flags)
{
    uint32_t first;
    int32_t code = add_items(sets, live, count, &first);
    if (code < 0)
        return code;
    sets->list[set].live = first;
    sets->list[set].live_count = count;
    sets->list[set].flags = flags;
    return QM_OK;
}

int64_t qmi_sets_memory(const qmi_sets *sets)
{
    return (int64_t)(sets->list_capacity * sizeof *sets->list + sets->item_capacity * sizeof *sets->items
                     + sets->slot_count * sizeof *sets->slots);
}
