/* What a request asks to be generated: its prompt as tokens, its settings as options of the library, how many answers.
 *
 * A function that can fail returns 0, or -1 with the error filled in. */
#ifndef SERVER_GENERATION_H
#define SERVER_GENERATION_H

#include <jansson.h>

#include "http.h"

typedef struct generation_error {
    int status;       /* HTTP's */
    const char *code; /* OpenAI's word for it, or NULL */
    char message[640];
} generation_error;

typedef struct generation { /* zeroed by generation_start */
    server *server;
    qm_options *options;
    int32_t *tokens; /* the prompt */
    int64_t count;
    char *tools;           /* JSON, or NULL */
    int32_t thinking;      /* -1: as the chat format has it, 0, 1 */
    int64_t answer_tokens; /* asked for; -1: not said */
    int64_t seed;
    int32_t answers, logprobs, urgent;
    int64_t decode_ms;
    int64_t indent;  /* the answer ends before a line that is indented by less; 0: no line is */
    int prompt_only; /* nothing is generated */
    int stream;
    int64_t created;
    char id[40];
    generation_error error;
} generation;

/* The request's body as a JSON object, in *body for json_decref. */
int generation_start(generation *g, request *request, json_t **body);
void generation_end(generation *g);
int generation_fail(generation *g, int status, const char *code, const char *format, ...) __attribute__((format(printf, 4, 5)));
enum MHD_Result generation_reply_error(const generation *g, request *request);

/* Checks the type of a member that may be missing or null: 't'ext, 'i'nteger, 'n'umber, 'b'ool, 'a'rray, 'o'bject. */
int generation_check(generation *g, const json_t *body, const char *key, char type);
int generation_set(generation *g, const char *option, const char *value);
/* The settings of sampling, by all the names that the interfaces have for them, and "stream". */
int generation_read_settings(generation *g, const json_t *body);
/* "stop" or the like: a text, or an array of texts. */
int generation_read_stop(generation *g, const json_t *stop, const char *key);
/* "n" and "best_of"... of the answers */
int generation_read_answers(generation *g, const json_t *body);
/* Options of constrained answers: a schema (an object, or true for "any object"), or the tools' own. */
int generation_set_schema(generation *g, const json_t *schema);
/* tools: as OpenAI's chat has them, or NULL. choice: "auto", "none", "required" or a function's name. */
int generation_set_tools(generation *g, json_t *tools, const char *choice, int parallel);

/* The prompt. */
int generation_add_text(generation *g, const char *text, size_t length, int32_t special);
int generation_add_tokens(generation *g, const json_t *ids);
int generation_add_mark(generation *g, const char *mark); /* fails when the vocabulary does not have it */
/* Messages as OpenAI's chat has them (changed on the way): to the prompt, or their text to *out. */
int generation_add_messages(generation *g, json_t *messages);
int generation_render_messages(generation *g, json_t *messages, text_buffer *out);
/* <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle; what is too long loses what is farthest from the gap. */
int generation_add_gap(generation *g, const char *prefix, const char *suffix, const char *middle);

/* Checks that the prompt leaves room, and submits it. *refused tells why it was not taken, if the error's status is 0. */
int generation_submit(generation *g, request *request, task **out, submit_result *refused);
/* The error or refusal of generation_submit as a reply. */
enum MHD_Result generation_reply_refused(const generation *g, request *request, submit_result refused);

#endif
