/* Rows of blocks; see blocks.h. */
#include "blocks.h"

#include <stdlib.h>

const char *blocks_prefix(part_kind kind)
{
    return kind == PART_THOUGHT ? "rs_" : kind == PART_TEXT ? "msg_" : "fc_";
}

static void begin_block(blocks *b, part_kind kind, size_t call)
{
    blocks_finish(b);
    b->list = server_grow(b->list, b->count + 1, sizeof *b->list);
    block *fresh = &b->list[b->count++];
    *fresh = (block){ .kind = kind, .call = call };
    make_id(fresh->id, sizeof fresh->id, blocks_prefix(kind));
    if (b->writer)
        b->writer->begin(b, b->count - 1);
}

void blocks_on_part(part_kind kind, size_t call, const char *text, size_t length, void *user)
{
    blocks *b = user;
    if (kind == PART_CALL) {
        begin_block(b, kind, call);
        return;
    }
    part_kind wanted = kind == PART_ARGUMENTS ? PART_CALL : kind;
    if (!b->count || b->list[b->count - 1].kind != wanted || b->list[b->count - 1].ended)
        begin_block(b, wanted, call);
    buffer_add(&b->list[b->count - 1].text, text, length);
    if (b->writer)
        b->writer->more(b, b->count - 1, text, length);
}

void blocks_finish(blocks *b)
{
    if (!b->count || b->list[b->count - 1].ended)
        return;
    b->list[b->count - 1].ended = 1;
    if (b->writer)
        b->writer->end(b, b->count - 1);
}

void blocks_free(void *state)
{
    blocks *b = state;
    for (size_t i = 0; i < b->count; i++)
        buffer_free(&b->list[i].text);
    free(b->list);
    json_decref(b->echo);
    reply_free(b->r);
    free(b);
}
