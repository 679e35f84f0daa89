/* A grammar made ready to match: a network of places, over bytes.
 *
 * Each rule is a nondeterministic automaton; a place is where one can stand in it. From a place one goes on by a byte, freely
 * to other places, or into another rule and from its end to a place behind. A repetition with numbers is a rule of its own
 * whose places stand with a count: it is not unrolled, so {0,100000} costs no more than {0,9}.
 *
 * Rules that can come back to their own start without a byte (left recursion) are refused, so that following all free ways
 * ends. */
#ifndef QMI_TEXT_GRAMMAR_NETWORK_H
#define QMI_TEXT_GRAMMAR_NETWORK_H

#include "text/grammar.h"

typedef uint32_t qmi_place;

typedef enum qmi_place_kind {
    QMI_PLACE_BYTES,  /* first, second: its edges */
    QMI_PLACE_SPLIT,  /* first, second: its targets */
    QMI_PLACE_CALL,   /* into the rule `first`, then to the place `second` */
    QMI_PLACE_LOOP,   /* before one more, or the end, of the counted loop `first` */
    QMI_PLACE_STEP,   /* behind one of it */
    QMI_PLACE_END,    /* of a rule */
    QMI_PLACE_ACCEPT, /* the text is complete */
    QMI_PLACE_EXIT    /* what comes behind is not known (used to look at a rule alone) */
} qmi_place_kind;

enum { QMI_THE_END, QMI_THE_ACCEPT, QMI_THE_EXIT }; /* those places, of which there is one each */

#define QMI_NO_LOOP UINT32_MAX
#define QMI_FAR UINT64_MAX /* a number of bytes: no text leads there */

typedef struct qmi_network_place {
    qmi_place_kind kind;
    uint32_t first, second;
    uint32_t loop;      /* the counted loop that it is in, QMI_NO_LOOP: none */
    uint64_t bytes;     /* fewest bytes from here to the end of its rule, or in a loop to its STEP; QMI_FAR */
} qmi_network_place;

typedef struct qmi_network_edge {
    uint8_t low, high;
    qmi_place to;
} qmi_network_edge;

typedef struct qmi_network_loop {
    uint32_t least, most; /* QMI_GRAMMAR_ENDLESS */
    qmi_place entry, body;
} qmi_network_loop;

typedef struct qmi_network_rule {
    qmi_place entry;
    uint32_t rank;      /* a rule that another one begins with has a higher rank than that one */
    uint32_t name;      /* number of the grammar's rule that it belongs to */
} qmi_network_rule;

typedef struct qmi_network {
    qmi_alloc alloc;
    qmi_network_place *places;
    size_t place_count, place_capacity;
    qmi_network_edge *edges;
    size_t edge_count, edge_capacity;
    qmi_place *targets;
    size_t target_count, target_capacity;
    qmi_network_loop *loops;
    size_t loop_count, loop_capacity;
    qmi_network_rule *rules;
    size_t rule_count, rule_capacity;
    uint8_t classes[256]; /* bytes that no edge tells apart have the same */
    uint8_t examples[256]; /* one byte of each class */
    int32_t class_count;
} qmi_network;

/* From a grammar whose rules are all defined; `roots` are the rules that texts start with. QM_ERROR_OPTION: left recursion, no
 * text at all from a root, or too large. */
int32_t qmi_network_new(const qmi_grammar *grammar, const uint32_t *roots, size_t root_count, const qmi_alloc *alloc,
                        qmi_network **out);
void qmi_network_free(qmi_network **network);

/* Whether the text of a rule may be empty. */
static inline bool qmi_network_nullable(const qmi_network *network, uint32_t rule)
{
    return network->places[network->rules[rule].entry].bytes == 0;
}

#endif
