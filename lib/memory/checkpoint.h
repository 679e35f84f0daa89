/* Checkpoints: what a model keeps of tokens it has computed, so that they need not be computed again.
 *
 * A recurrent state runs forwards only. To go back, or to begin with what another session has computed, a state that was kept
 * on the way is needed: a checkpoint is that state, with references to the pages of the tokens before it. Models without
 * recurrent state need no such thing inside a session; there a checkpoint only keeps the pages of sessions that are gone.
 *
 * Which are kept: as many states as the budget allows. The one to go is that which is worth least: the tokens that would have to
 * be computed again without it (back to the checkpoint before it), weighted by where it stands, by how long it was not used. So
 * what is long ago becomes sparse, and the places where a conversation may branch stay. The engine's thread's. */
#ifndef QMI_MEMORY_CHECKPOINT_H
#define QMI_MEMORY_CHECKPOINT_H

#include "memory/state.h"

typedef enum qmi_checkpoint_kind { /* in order of weight */
    QMI_CHECKPOINT_PASSED,  /* some tokens after the last one */
    QMI_CHECKPOINT_LEFT,    /* where a session was when it went elsewhere or was freed */
    QMI_CHECKPOINT_PROMPT,  /* the end of a prompt: another answer may follow */
    QMI_CHECKPOINT_TURN,    /* where a turn of the chat begins: what comes may be rendered anew */
} qmi_checkpoint_kind;

typedef struct qmi_checkpoint {
    int64_t length;         /* tokens */
    qmi_page_table pages;   /* theirs */
    qmi_state *state;       /* after them; NULL: the model has no recurrent state */
    qmi_checkpoint_kind kind;
    int64_t used;           /* time of the store when it was last made, met or used */
} qmi_checkpoint;

typedef struct qmi_checkpoints {
    qmi_page_pool *pages;
    qmi_state_pool *states;
    const qmi_alloc *alloc;
    qmi_checkpoint *list;   /* [limit] */
    int32_t count, limit;
    int64_t time;           /* checkpoints made so far */
} qmi_checkpoints;

/* limit: how many are kept; 0: none. Both pools then reclaim from here. */
int32_t qmi_checkpoints_open(qmi_checkpoints *store, qmi_page_pool *pages, qmi_state_pool *states, const qmi_alloc *alloc,
                             int32_t limit);
void qmi_checkpoints_close(qmi_checkpoints *store);

/* Keeps the first `length` tokens of `pages` with the state after them. Where there is no memory for it, it is not kept. */
void qmi_checkpoints_keep(qmi_checkpoints *store, const qmi_page_table *pages, int64_t length, qmi_state *state,
                          qmi_checkpoint_kind kind);
/* The one that saves most of computing tokens[0, count), and how many: those of a state only whole. NULL: none. */
qmi_checkpoint *qmi_checkpoints_find(qmi_checkpoints *store, qmi_page_query *query, int64_t *length);
/* Of those that hold a start of these tokens with a state at most `most`, in order, each with references of its own: half of them
 * the last ones where a turn begins, since an answer may have many behind its start; the others the last of all. */
int32_t qmi_checkpoints_collect(qmi_checkpoints *store, const int32_t *tokens, int64_t count, int32_t most, qmi_checkpoint *out,
                                int32_t *out_count);
/* The shortest that holds a start of at least `least` of these tokens, with a state, and lies where a turn begins; NULL: none. */
const qmi_checkpoint *qmi_checkpoints_first_turn(qmi_checkpoints *store, const int32_t *tokens, int64_t count, int64_t least);
void qmi_checkpoints_use(qmi_checkpoints *store, qmi_checkpoint *checkpoint); /* it was of use */

#endif
