/* What several verbs need: messages, files, finding and loading the model, texts as tokens. */
#ifndef QWENMOE_COMMON_H
#define QWENMOE_COMMON_H

#include <stddef.h>

#include <jansson.h>

#include "arguments.h"

extern const char *program_name; /* "qwenmoe"; another program that is built from these files sets its own */

int complain(const char *format, ...) __attribute__((format(printf, 1, 2))); /* "program: ..." on stderr; EXIT_FAILED */
int complain_library(void);                                                  /* the same with the library's last message */

void *allocate(int64_t count, size_t size);            /* zeroed; ends the program if there is no memory */
void *grow(void *pointer, int64_t count, size_t size); /* realloc in the same way */

/* A whole file; "-" is standard input. One zero byte follows the text. EXIT_OK or EXIT_FAILED after a message. */
int read_file(const char *path, char **out, int64_t *length);
/* The words with a blank between them; the caller's to free. */
char *join_words(char **words, int count);
/* The prompt of a verb: its words, else the file of --file, else standard input. */
int read_prompt(const arguments *arguments, char **out, int64_t *length);
int print_json(json_t *value); /* indented, to stdout; takes over the reference; EXIT_OK or EXIT_FAILED */

/* The model's path, in a static buffer: --model, $QWENMOE_MODEL, the build folder's, the installed one. NULL after a message. */
const char *find_model(const arguments *arguments);
/* Loads it with progress. EXIT_OK, EXIT_FAILED or EXIT_INTERRUPTED after a message. With option rank above 0 follows rank 0 to its
 * end instead, and is EXIT_DONE then. */
int load_model(const arguments *arguments, qm_model **out);
/* Only tokenizer and chat format. */
int load_vocabulary(arguments *arguments, qm_model **out);
/* Facts of a model; 0 or "?" when it has none of that name. */
int64_t model_number(const qm_model *model, const char *name);
const char *model_text(const qm_model *model, const char *name, char *text, int64_t size); /* returns text */

typedef struct token_list {
    int32_t *ids; /* freed by its owner */
    int64_t count;
} token_list;

/* Appends the text's tokens. */
int tokens_append(token_list *list, const qm_model *model, const char *text, int64_t length, int32_t special);

/* A message {"role", "content"} at the end of the array. Text that is not UTF-8 is refused. */
int message_append(json_t *messages, const char *role, const char *content, int64_t length);
/* The messages in the model's chat format, up to where the assistant goes on. thinking: -1 by default, 0, 1.
 * *thinks tells whether the prompt ends inside the thoughts. */
int tokens_of_messages(const qm_model *model, json_t *messages, int thinking, token_list *out, int *thinks);

#endif
