/* Where an automaton keeps its sets of items: equal ones once, numbered in the order of their making. */
#ifndef QMI_TEXT_AUTOMATON_SETS_H
#define QMI_TEXT_AUTOMATON_SETS_H

#include "text/automaton.h"

typedef struct qmi_set_info {
    uint32_t first, count;     /* its items */
    uint32_t live, live_count; /* those at the end of free ways that a byte can lead on from; live UINT32_MAX: not known yet */
    qmi_set clamped;
    bool counts;               /* in an item of it or behind one */
    uint32_t table;            /* of its ways, UINT32_MAX: none yet */
    uint32_t flags;            /* known with the live ones */
    uint64_t bytes;            /* fewest to complete the text */
} qmi_set_info;

typedef struct qmi_sets {
    qmi_alloc alloc;
    qmi_set_info *list;
    size_t list_capacity;
    uint32_t count;
    qmi_item *items;
    size_t item_count, item_capacity;
    uint32_t *slots;           /* hash table: number + 1 */
    size_t slot_count;
} qmi_sets;

int32_t qmi_sets_start(qmi_sets *sets, const qmi_alloc *alloc);
void qmi_sets_end(qmi_sets *sets); /* also after a failed start */
uint32_t qmi_sets_hash(const qmi_item *items, uint32_t count);

/* Items in order, without equal ones. */
bool qmi_sets_find(const qmi_sets *sets, const qmi_item *items, uint32_t count, qmi_set *out);
/* One that is not there yet; its own clamped one. */
int32_t qmi_sets_add(qmi_sets *sets, const qmi_item *items, uint32_t count, uint64_t bytes, qmi_set *out);
int32_t qmi_sets_close(qmi_sets *sets, qmi_set set, const qmi_item *live, uint32_t count, uint32_t flags);
int64_t qmi_sets_memory(const qmi_sets *sets);

#endif
