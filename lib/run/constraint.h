/* What options grammar and json-schema ask of answers, made ready once: all sessions of a model that ask for the same share it.
 *
 * A model keeps the last few, so that a server may give each request the text of its schema anew. Getting and releasing is for
 * any thread; matching is for the engine's thread. */
#ifndef QMI_RUN_CONSTRAINT_H
#define QMI_RUN_CONSTRAINT_H

#include "run/engine.h"
#include "text/token_mask.h"

typedef struct qmi_match { /* a text under way */
    qmi_set set;
    struct qmi_match *next; /* of the constraint's */
} qmi_match;

typedef struct qmi_constraint {
    struct qmi_constraint *next;
    int32_t references;      /* guarded by the model's mutex for constraints, like the list */
    uint64_t used;           /* when it was asked for last */
    char *key;
    qmi_network *network;
    uint32_t root;           /* rules: of the answer ... */
    uint32_t root_behind;    /* ... and of an answer behind thoughts, whose empty line is not part of it */
    const qmi_token_trie *trie;
    /* the engine's thread's */
    qmi_automaton *automaton;
    qmi_token_masks *masks;
    qmi_match *matches;
} qmi_constraint;

/* *out NULL: the settings ask for nothing. QM_ERROR_OPTION names what is wrong with grammar or schema. */
int32_t qmi_constraint_get(qm_model *model, const qmi_settings *settings, qmi_constraint **out);
void qmi_constraint_release(qm_model *model, qmi_constraint **constraint);

int32_t qmi_constraints_open(qm_model *model);
void qmi_constraints_close(qm_model *model); /* also after a failure; all are released */

/* ---- for the engine's thread ---- */
/* Begins a match, which leaves before it ends. */
int32_t qmi_constraint_join(qmi_constraint *constraint, bool behind_thoughts, qmi_match *match);
void qmi_constraint_leave(qmi_constraint *constraint, qmi_match *match);
/* Keeps its memory within bounds; between two steps of a match. */
int32_t qmi_constraint_tidy(qmi_constraint *constraint);

#endif
