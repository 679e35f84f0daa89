/* What OpenAI's two older interfaces share. */
#ifndef SERVER_OPENAI_H
#define SERVER_OPENAI_H

#include "reply.h"

const char *openai_finish(const reply *r, int32_t answer);
json_t *openai_usage(reply *r);
/* Whether the stream shall end with the usage. */
int openai_wants_usage(const json_t *body);

/* Chat: settings of answers that calls and schemas constrain, shared with the responses interface. */
int openai_read_format(generation *g, const json_t *format);
/* "tool_choice" as text in *choice, borrowed from the body. */
int openai_read_choice(generation *g, const json_t *choice, const char **out);
/* "none", "minimal": no thoughts; other efforts: thoughts. */
int openai_read_effort(generation *g, const char *effort);

#endif
