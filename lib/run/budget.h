/* How an answer ends: stop strings, budgets of answer and thinking. Works on text and counts; knows no engine.
 *
 * Stop strings are looked for in the answer's text as it is shown: across tokens, but not in thoughts, where they would cut a
 * thought about the answer, nor in tool calls. What ends first ends the answer; of those that end together the longest.
 *
 * Thoughts are ended by writing </think> and an empty line, after a newline if the thoughts do not end in one; thoughts with
 * nothing in them get the empty line that the chat format gives them. This happens when thinking-tokens are used up, at the end
 * of a line when thinking-soft are, or when asked for; but never inside a tool call, a code point or what may become a mark.
 * It makes no difference who opened the thoughts, the prompt or the model. */
#ifndef QMI_RUN_BUDGET_H
#define QMI_RUN_BUDGET_H

#include "base/options.h"
#include "text/answer.h"
#include "text/detokenize.h"

typedef struct qmi_budget qmi_budget;

typedef enum qmi_finish {
    QMI_FINISH_NONE, QMI_FINISH_END, QMI_FINISH_STOP, QMI_FINISH_LENGTH, QMI_FINISH_CONTEXT, QMI_FINISH_CANCELLED,
    QMI_FINISH_ERROR
} qmi_finish;

/* A piece that can be shown now: whole code points of one part. */
typedef void (*qmi_budget_piece)(qmi_answer_part part, const char *text, int64_t length, void *user);

/* inside_thoughts: the prompt ended inside an open <think>. QM_ERROR_OPTION when "stop" can't be read. */
int32_t qmi_budget_new(const qmi_settings *settings, const qmi_vocab *vocab, bool inside_thoughts, const qmi_alloc *alloc,
                       qmi_budget **out);
void qmi_budget_free(qmi_budget **budget);

/* One token was generated (and is appended to the session in any case). Emits what can be shown.
 * Returns QMI_FINISH_NONE to go on, _END (token ends the turn; it is not text), _STOP or _LENGTH. Negative: out of memory.
 * The file's end token, <|im_end|> and <|endoftext|> end the turn; with ignore-end they do not, and are no text either. */
int32_t qmi_budget_push(qmi_budget *budget, int32_t token, qmi_budget_piece piece, void *user);
/* Before sampling: the token that must come next instead of a sampled one (the end of thoughts being written), or -1. */
int32_t qmi_budget_forced(qmi_budget *budget);
/* The engine calls it in its own thread. Without effect when there is no thinking under way. */
void qmi_budget_end_thinking(qmi_budget *budget);
/* The answer is over: emits what was held back (unless a stop string matched). */
int32_t qmi_budget_end(qmi_budget *budget, qmi_budget_piece piece, void *user);

/* All text so far with its marks; zero-terminated; cut before a stop string. Borrowed until the next push or end. */
const char *qmi_budget_text(const qmi_budget *budget, int64_t *length);
/* Tokens of the thoughts themselves, without the marks and what was written to end them. */
int64_t qmi_budget_thought_tokens(const qmi_budget *budget);
/* Tokens that the answer may still have; INT64_MAX: any number. */
int64_t qmi_budget_room(const qmi_budget *budget);
bool qmi_budget_thinks(const qmi_budget *budget); /* inside the thoughts */
#define QMI_BUDGET_ENDS 3
void qmi_budget_ends(const qmi_vocab *vocab, int32_t ends[QMI_BUDGET_ENDS]); /* tokens that end the turn, -1: none */
const char *qmi_finish_name(qmi_finish finish); /* "end", "stop", "length", ...; "" for NONE; static */

#endif
