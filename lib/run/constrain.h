/* Keeps one answer within its constraint: which tokens may come, and how it ends while there is room.
 *
 * Thoughts are free, but do not end the turn. A thinking model that was not asked yet may open them with its first token.
 * Behind them the text has to fit, and the turn can end only where it is complete; where it cannot go on it ends.
 *
 * The room left is watched: before a token would leave too little for the shortest completion, that is written instead. So an
 * answer is cut only if its budget was too small from the start. */
#ifndef QMI_RUN_CONSTRAIN_H
#define QMI_RUN_CONSTRAIN_H

#include "run/budget.h"
#include "run/constraint.h"
#include "run/session.h"

typedef struct qmi_constrained qmi_constrained;

/* *out NULL: the session's settings ask for nothing. may_think: the model may open its thoughts itself. */
int32_t qmi_constrained_new(qm_session *session, bool inside_thoughts, bool may_think, const qmi_alloc *alloc,
                            qmi_constrained **out);
void qmi_constrained_free(qmi_constrained **constrained);

/* ---- for the engine's thread ---- */
/* The next token, for an answer that has room for `room` more. 1: *token; 0: the text is complete and there is no token to say
 * so; or a code. */
int32_t qmi_constrained_choose(qmi_constrained *constrained, qm_session *session, qmi_budget *budget, int64_t room,
                               int32_t *token);
/* The token was appended, and is in the budget's text. */
int32_t qmi_constrained_push(qmi_constrained *constrained, int32_t token, const qmi_budget *budget);
void qmi_constrained_end(qmi_constrained *constrained);

#endif
