/* An answer as the newer interfaces show it: a row of blocks (thoughts, text, calls), each begun, continued and ended. */
#ifndef SERVER_BLOCKS_H
#define SERVER_BLOCKS_H

#include "reply.h"

typedef struct block {
    part_kind kind; /* PART_THOUGHT, PART_TEXT or PART_CALL */
    char id[40];
    size_t call;      /* number in the reply's parts */
    text_buffer text; /* of a call: its arguments */
    int ended;
} block;

typedef struct blocks blocks;

/* Writers of a stream; all NULL where nothing is streamed. */
typedef struct block_writer {
    void (*begin)(blocks *blocks, size_t index);
    void (*more)(blocks *blocks, size_t index, const char *text, size_t length);
    void (*end)(blocks *blocks, size_t index);
} block_writer;

struct blocks {
    reply *r;
    const block_writer *writer; /* NULL: nothing is streamed */
    text_buffer *out;
    block *list;
    size_t count;
    int64_t sequence; /* of events */
    json_t *echo;     /* what of the request the reply repeats; or NULL */
};

void blocks_on_part(part_kind kind, size_t call, const char *text, size_t length,
                    void *user);           /* part_callback; user: the blocks */
void blocks_finish(blocks *blocks);        /* ends the last one */
void blocks_free(void *state);             /* with the reply and the blocks themselves */
const char *blocks_prefix(part_kind kind); /* of ids */

#endif
