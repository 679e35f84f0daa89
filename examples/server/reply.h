/* From a task to a reply: what all interfaces have in common. */
#ifndef SERVER_REPLY_H
#define SERVER_REPLY_H

#include "generation.h"
#include "reply_parts.h"

/* A task being answered. */
typedef struct reply {
    generation g;
    task *task;
    reply_parts parts[ANSWERS_MOST];
    json_t *tokens[ANSWERS_MOST]; /* log probabilities, as logprob_entry makes them; NULL: not asked for */
    int32_t ended;                /* answers */
    int begun;                    /* for streams: what comes first was sent */
} reply;

/* Takes over the generation, submits it and starts the parts. Otherwise replies, and *result is what the handler returns. */
reply *reply_start(generation *g, request *request, enum MHD_Result *result);
/* The same from the start: parses the body and submits what `read` makes of it. *body is then the caller's to json_decref. */
reply *reply_begin(request *request, int (*read)(generation *g, json_t *body), json_t **body, enum MHD_Result *result);
void reply_free(reply *r);          /* cancels what has not ended */
void reply_end_stream(void *state); /* the same, for reply_stream */

/* Waits for all answers to end, feeding their parts. */
void reply_collect(reply *r, request *request, part_callback callback, void *user);
void reply_ignore_part(part_kind kind, size_t call, const char *text, size_t length, void *user);
/* 0 if the answer is one (perhaps cut short), else the status of the error that it is instead, with its code and words. */
int reply_failure(const reply *r, int32_t answer, const char **code, const char **message);
/* reply_failure of any of the answers as a reply; 0 if there is none. */
int reply_if_failed(reply *r, request *request, enum MHD_Result *result);

/* Streams: the next event goes to *event, for task_event_free. 1: there is one; 0: none came for some seconds, and a comment that
 * keeps the connection alive was written; -1: all have ended. */
int reply_next(reply *r, text_buffer *out, task_event **event);
void event_write(text_buffer *out, const char *name,
                 json_t *data); /* an event of that name, or without; takes over the reference */

json_t *logprob_entry(const qm_model *model, const task_token *token);  /* OpenAI's chat; NULL for tokens without text */
void reply_add_tokens(reply *r, const task_event *event, json_t *also); /* to r->tokens, and to `also` unless NULL */

int64_t reply_answer_tokens(const reply *r);
json_t *reply_timings(reply *r); /* llama.cpp's names */

#endif
