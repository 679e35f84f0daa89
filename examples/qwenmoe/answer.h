/* Watches a job: streams its text to standard output, stops it on Ctrl-C, and sums up its speed. */
#ifndef QWENMOE_ANSWER_H
#define QWENMOE_ANSWER_H

#include <qwenmoe.h>

#include "terminal.h"

/* How an answer is shown, and what came of it. Zero it before setting the first two. */
typedef struct answer {
    int hide_thoughts;
    terminal_style style; /* of the answer itself */
    int stopped;          /* by Ctrl-C */
    int in_line;          /* the text printed did not end with a newline */
    double prompt_tokens, reused_tokens, prompt_seconds;
    double answer_tokens, thought_tokens, answer_seconds, first_seconds;
} answer;

/* Waits for the end of a job, printing what it generates. QM_JOB_DONE or its code; being stopped by Ctrl-C is not a failure.
 * Numbers add to those already in `view`. */
int32_t answer_watch(qm_job *job, answer *view);
/* Whether the session can hold a prompt of `prompt` tokens and the whole answer budget beside it. EXIT_OK, or EXIT_FAILED after a
 * message with the numbers. */
int answer_check_room(const qm_session *session, int64_t prompt);
/* Appends the prompt to an empty session and generates: checks the room, submits, watches, frees the job. EXIT_OK, EXIT_FAILED
 * after a message, or EXIT_INTERRUPTED. */
int answer_generate(qm_session *session, const int32_t *prompt, int64_t count, answer *view);
/* "prompt 123 tokens, 456.7 tokens/s; ..." on stderr. */
void answer_print_speed(const answer *view);

#endif
