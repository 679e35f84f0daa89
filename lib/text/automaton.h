/* Matching text against a network: a pushdown automaton that is made deterministic while it is used.
 *
 * A state is a set of items (place, count, set): where one can stand, the count of the loop around it, and the set of items that
 * come behind the end of its rule. So what is behind is itself such a set, equal sets are one and have one number, and a state
 * knows its whole stack. A byte leads from set to set; those ways are remembered.
 *
 * Calls of the same rule from one state share what is behind them, a call at the end of a rule leaves nothing behind, and items
 * that no text can complete are left out: states stay small, and from every state there is a way to a complete text.
 *
 * Counts are clamped where ways are remembered: a loop that within `reach` more bytes can neither be left nor be full is like
 * any other such. What is asked about the next `reach` bytes has the same answer for a set and for its clamped one, and so has
 * what is asked about the bytes that are left when one of them is taken.
 *
 * One thread at a time. Numbers of sets are valid until qmi_automaton_collect. Codes: QM_ERROR_MEMORY; QM_ERROR_UNSUPPORTED when
 * the grammar is so ambiguous that a state has too many items. */
#ifndef QMI_TEXT_AUTOMATON_H
#define QMI_TEXT_AUTOMATON_H

#include "text/grammar_network.h"

typedef uint32_t qmi_set;
enum {
    QMI_SET_DEAD,   /* no item: the text does not fit */
    QMI_SET_ACCEPT, /* behind the whole text */
    QMI_SET_EXIT    /* behind a rule that is looked at alone */
};

#define QMI_SET_ITEMS 65536 /* most of one state */

typedef struct qmi_item {
    qmi_place place;
    uint32_t count;
    qmi_set behind;
} qmi_item;

typedef struct qmi_automaton qmi_automaton;

/* The network is borrowed. */
int32_t qmi_automaton_new(const qmi_network *network, uint32_t reach, const qmi_alloc *alloc, qmi_automaton **out);
void qmi_automaton_free(qmi_automaton **automaton);

int32_t qmi_automaton_start(qmi_automaton *automaton, uint32_t rule, qmi_set *out);
/* A set of one item. */
int32_t qmi_automaton_single(qmi_automaton *automaton, qmi_item item, qmi_set *out);
int32_t qmi_automaton_step(qmi_automaton *automaton, qmi_set from, uint8_t byte, qmi_set *out);
int32_t qmi_automaton_walk(qmi_automaton *automaton, qmi_set from, const char *bytes, size_t length, qmi_set *out);
/* 1: the text up to here is complete, or may leave the rule that is looked at alone. 0: it is not. Or a code. */
int32_t qmi_automaton_accepts(qmi_automaton *automaton, qmi_set set);
int32_t qmi_automaton_exits(qmi_automaton *automaton, qmi_set set);
/* 1: no byte leads on. */
int32_t qmi_automaton_is_over(qmi_automaton *automaton, qmi_set set);

qmi_set qmi_automaton_clamped(const qmi_automaton *automaton, qmi_set set);
/* Fewest bytes that complete the text. */
uint64_t qmi_automaton_bytes(const qmi_automaton *automaton, qmi_set set);
/* The first of such bytes; there is one unless the number is 0. */
int32_t qmi_automaton_shortest(qmi_automaton *automaton, qmi_set set, uint8_t *byte);
/* Its items before any free way; borrowed until the next call that may make a set. */
const qmi_item *qmi_automaton_items(const qmi_automaton *automaton, qmi_set set, uint32_t *count);

/* For questions about at most `reach` bytes: from a clamped set to a clamped set. */
int32_t qmi_automaton_look(qmi_automaton *automaton, qmi_set from, uint8_t byte, qmi_set *out);
bool qmi_automaton_counts(const qmi_automaton *automaton, qmi_set set); /* there are counts in it or behind it */
/* For masks, which look millions of times: the ways of a clamped set begin at *first of the tables, by class of byte. -1: not
 * known yet, look; else twice the number of the clamped set (and one more if that is not the set itself). The tables are borrowed
 * until the next step, look or call of this. */
int32_t qmi_automaton_table(qmi_automaton *automaton, qmi_set set, size_t *first);
const int32_t *qmi_automaton_tables(const qmi_automaton *automaton);
const qmi_network *qmi_automaton_network(const qmi_automaton *automaton);
const qmi_alloc *qmi_automaton_alloc(const qmi_automaton *automaton);
uint32_t qmi_automaton_set_count(const qmi_automaton *automaton);

int64_t qmi_automaton_memory(const qmi_automaton *automaton);
/* Forgets all but these sets and what is behind them, whose numbers it changes. On failure nothing is changed. */
int32_t qmi_automaton_collect(qmi_automaton *automaton, qmi_set *const *kept, size_t count);

#endif
