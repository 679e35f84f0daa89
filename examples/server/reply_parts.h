/* An answer taken apart while it comes: thoughts, text, and tool calls with their arguments, as what is new each time.
 *
 * Newlines between text and a call are the chat format's, so those at the end of the text are held back until it is known what
 * follows. Of a call in Qwen3.5's format the name is told as soon as it is known, and each argument when it is complete; a call
 * in Qwen3's format comes whole. Arguments are JSON text in pieces, each going on where the last one ended. */
#ifndef SERVER_REPLY_PARTS_H
#define SERVER_REPLY_PARTS_H

#include <qwenmoe.h>

#include "text_buffer.h"

typedef enum part_kind { PART_THOUGHT, PART_TEXT, PART_CALL, PART_ARGUMENTS } part_kind;

typedef struct call_part {
    char id[40];
    char *name;
    text_buffer arguments;
} call_part;

typedef struct reply_parts {
    const qm_model *model;
    const char *tools;              /* JSON or NULL; the owner's */
    text_buffer thought, text, raw; /* raw: of the calls that are not complete yet */
    size_t looked_to;               /* of `raw`: what of it was looked at as the beginning of a call */
    size_t newlines;                /* held back at the end of `text` */
    call_part *calls;
    size_t call_count;
    int open;   /* the last call is not complete */
    int broken; /* a call went on in another way than it began */
} reply_parts;

/* What is new: text of a kind, or (PART_CALL) the call of this number, whose arguments follow. */
typedef void (*part_callback)(part_kind kind, size_t call, const char *text, size_t length, void *user);

void parts_start(reply_parts *parts, const qm_model *model, const char *tools);
void parts_add(reply_parts *parts, int32_t piece_kind, const char *text, size_t length, part_callback callback, void *user);
void parts_finish(reply_parts *parts, part_callback callback, void *user);
void parts_free(reply_parts *parts);

#endif
