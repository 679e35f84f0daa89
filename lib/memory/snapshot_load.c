/* Sessions on disk: loading, and looking into a file. See snapshot.h. */
#include "memory/snapshot_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"

typedef qmi_snapshot_head head;
typedef qmi_snapshot_stream stream;
typedef qmi_snapshot_transfer transfer;

static int64_t state_bytes(const head *h)
{
    return h->recurrent_bytes + h->hidden_bytes + h->logits_bytes;
}

/* Of the whole file; the parts are in their ranges. */
static int64_t file_bytes(const head *h)
{
    return (int64_t)sizeof *h + h->tokens * 4 + h->extra + h->table_bytes + 4 * QMI_SNAPSHOT_SUM +
           h->states * (state_bytes(h) + QMI_SNAPSHOT_SUM) + h->pages * (h->page_bytes + QMI_SNAPSHOT_SUM);
}

static int32_t write_device(void *argument)
{
    const transfer *t = argument;
    const qmi_page_pool *pool = t->s->place->pages;
    return pool->backend->write(pool->device, t->address, t->s->piece, t->bytes);
}

/* ---- loading ---- */

static int32_t get(stream *s, void *to, int64_t bytes)
{
    int32_t code = qmi_os_map_read(&s->file, s->at, to, bytes);
    if (code >= 0)
        s->sum = qmi_crc_add(&s->crc, s->sum, to, (size_t)bytes);
    s->at += bytes;
    return code;
}

static int32_t get_sum(stream *s, const char *what)
{
    uint32_t made = s->sum, found = 0;
    s->sum = 0;
    int32_t code = qmi_os_map_read(&s->file, s->at, &found, QMI_SNAPSHOT_SUM);
    s->at += QMI_SNAPSHOT_SUM;
    if (code >= 0 && made != found)
        code = qmi_fail(QM_ERROR_FORMAT, "its %s before byte %" PRId64 " is damaged: the checksum is %08" PRIx32 ", not %08"
                        PRIx32, what, s->at, made, found);
    return code;
}

static int32_t get_all(stream *s, void *to, int64_t bytes, const char *what)
{
    int32_t code = bytes > 0 ? get(s, to, bytes) : QM_OK;
    return code < 0 ? code : get_sum(s, what);
}

static int32_t get_device(stream *s, qmi_address address, int64_t bytes)
{
    int32_t code = qmi_snapshot_check_cancel(s);
    for (int64_t done = 0; done < bytes && code >= 0; done += QMI_SNAPSHOT_PIECE) {
        transfer t = { s, address + (qmi_address)done, bytes - done < QMI_SNAPSHOT_PIECE ? bytes - done : QMI_SNAPSHOT_PIECE };
        code = get(s, s->piece, t.bytes);
        if (code >= 0)
            code = s->place->call(s->place->user, write_device, &t);
    }
    return code;
}

static int32_t fail_kv(uint32_t kv)
{
    uint32_t key = kv & 255, value = kv >> 8 & 255;
    if (key >= QMI_KV_TYPES || value >= QMI_KV_TYPES)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "its keys and values are of types that this version does not have");
    char window[32] = "";
    if (kv >> 18)
        snprintf(window, sizeof window, ", kv-window %" PRIu32, kv >> 18);
    return qmi_fail(QM_ERROR_UNSUPPORTED, "its keys and values are of another type; load the model with the options key-type %s, "
                    "value-type %s%s and kv-rotation %s", qmi_kv_formats[key].name, qmi_kv_formats[value].name, window,
                    kv >> 17 & 1 ? "on" : kv >> 16 & 1 ? "keys" : "off");
}

static int32_t check_head(const stream *s, const head *h, int64_t context)
{
    const head ours = qmi_snapshot_head_of(s->place);
    if (h->model != ours.model)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "it is a session of another model");
    if (h->hidden_bytes != ours.hidden_bytes)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "it was saved %s multi-token prediction; load the model with option mtp %s",
                        h->hidden_bytes ? "with" : "without", h->hidden_bytes ? "1" : "0");
    if (h->kv != ours.kv)
        return fail_kv(h->kv);
    if (h->page_tokens != ours.page_tokens || h->page_bytes != ours.page_bytes ||
        h->value_offset != ours.value_offset)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "its keys and values are laid out otherwise: pages of %" PRId64
                        " tokens in %" PRId64 " bytes, and here %" PRId64 " in %" PRId64,
                        h->page_tokens, h->page_bytes, ours.page_tokens, ours.page_bytes);
    if (h->recurrent_bytes != ours.recurrent_bytes || h->logits_bytes != ours.logits_bytes)
        return qmi_fail(QM_ERROR_FORMAT, "its states are not those of the model");
    if (h->tokens > context)
        return qmi_fail(QM_ERROR_CONTEXT, "it holds %" PRId64 " tokens, and the session's context is %" PRId64
                        "; set option context higher", h->tokens, context);
    if (h->tokens < 0 || h->extra < 0 || h->table_bytes < 4 || h->table_bytes % 4 || h->states < 0 || h->pages < 0 ||
        h->checkpoints < 0 || h->extra > s->file.size || h->table_bytes > s->file.size ||
        h->states > QMI_SNAPSHOT_CHECKPOINTS + 1 || h->pages > s->file.size || h->checkpoints > QMI_SNAPSHOT_CHECKPOINTS ||
        (h->page_bytes && h->pages > s->file.size / h->page_bytes))
        return qmi_fail(QM_ERROR_FORMAT, "its head has sizes that are out of range");
    if (file_bytes(h) != s->file.size)
        return qmi_fail(QM_ERROR_FORMAT, "it has %" PRId64 " bytes, and should have %" PRId64, s->file.size, file_bytes(h));
    return QM_OK;
}

static int32_t get_head(stream *s, head *h, int64_t context)
{
    if (s->file.size < (int64_t)sizeof *h + QMI_SNAPSHOT_SUM)
        return qmi_fail(QM_ERROR_FORMAT, "it has %" PRId64 " bytes, too few for a session", s->file.size);
    int32_t code = get(s, h, sizeof *h);
    if (code < 0)
        return code;
    if (memcmp(h->magic, QMI_SNAPSHOT_MAGIC, sizeof h->magic) != 0)
        return qmi_fail(QM_ERROR_FORMAT, "it is not the file of a session");
    if (h->version != QMI_SNAPSHOT_VERSION)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "it is of version %" PRIu32 "; this library reads version %d", h->version,
                        QMI_SNAPSHOT_VERSION);
    code = get_sum(s, "head");
    return code < 0 ? code : check_head(s, h, context);
}

/* What the file's numbers stand for: all its pages and states, which then go into tables. */
typedef struct arrival {
    stream *s;
    const head *head;
    qmi_page_table pages;
    qmi_state *states[QMI_SNAPSHOT_CHECKPOINTS + 1];
    int32_t *tables;
    qmi_snapshot *out;
} arrival;

static int32_t take_room(void *argument)
{
    arrival *a = argument;
    const qmi_snapshot_place *place = a->s->place;
    int32_t code = qmi_page_table_own(place->pages, &a->pages, 0, 0, a->head->pages * a->head->page_tokens);
    for (int64_t i = 0; i < a->head->states && code >= 0; i++)
        code = qmi_state_take(place->states, &a->states[i]);
    return code;
}

static int32_t give_room_back(void *argument)
{
    arrival *a = argument;
    qmi_page_table_free(a->s->place->pages, &a->pages);
    for (int i = 0; i <= QMI_SNAPSHOT_CHECKPOINTS; i++)
        qmi_state_release(a->s->place->states, &a->states[i]);
    return QM_OK;
}

static int32_t fail_tables(void)
{
    return qmi_fail(QM_ERROR_FORMAT, "its tables contradict each other");
}

/* One table of the section, for so many tokens; *at moves behind it. */
static int32_t fill_table(arrival *a, int64_t *at, int64_t tokens, qmi_page_table *table)
{
    qmi_page_pool *pool = a->s->place->pages;
    int64_t count = qmi_kv_pages_for(pool->layout, tokens), words = a->head->table_bytes / 4;
    if (count > words - *at)
        return fail_tables();
    for (int64_t i = *at; i < *at + count; i++)
        if (a->tables[i] < 0 || a->tables[i] >= a->head->pages)
            return fail_tables();
    int32_t code = qmi_page_table_pick(pool, table, &a->pages, a->tables + *at, count);
    *at += count;
    if (code >= 0)
        qmi_page_table_note(pool, table, 0, a->out->tokens, tokens);
    return code;
}

static int32_t find_state(arrival *a, int32_t index, bool needed, qmi_state **out)
{
    if (index == -1 && !needed)
        return QM_OK;
    if (index < 0 || index >= a->head->states)
        return fail_tables();
    *out = qmi_state_retain(a->states[index]);
    return QM_OK;
}

static int32_t fill_tables(void *argument)
{
    arrival *a = argument;
    qmi_snapshot *out = a->out;
    bool recurrent = a->head->recurrent_bytes > 0 && out->count > 0;
    int64_t at = 1, words = a->head->table_bytes / 4;
    int32_t code = find_state(a, a->tables[0], recurrent, &out->state);
    if (code >= 0)
        code = fill_table(a, &at, out->count, &out->pages);
    for (int64_t i = 0; i < a->head->checkpoints && code >= 0; i++) {
        qmi_checkpoint *checkpoint = &out->checkpoints[i];
        int32_t kind = at + 4 <= words ? a->tables[at + 2] : -1;
        if (kind < QMI_CHECKPOINT_PASSED || kind > QMI_CHECKPOINT_TURN)
            return fail_tables();
        memcpy(&checkpoint->length, a->tables + at, sizeof checkpoint->length);
        checkpoint->kind = (qmi_checkpoint_kind)kind;
        if (checkpoint->length < 1 || checkpoint->length > out->count)
            return fail_tables();
        out->checkpoint_count++;
        code = find_state(a, a->tables[at + 3], true, &checkpoint->state);
        at += 4;
        if (code >= 0)
            code = fill_table(a, &at, checkpoint->length, &checkpoint->pages);
    }
    return code < 0 || at == words ? code : fail_tables();
}

/* Tokens of another vocabulary cannot be in the file of this model, but an id out of range would be trusted from here on. */
static int32_t check_tokens(const qmi_snapshot *snapshot, int64_t vocabulary)
{
    for (int64_t i = 0; i < snapshot->count; i++)
        if (snapshot->tokens[i] < 0 || snapshot->tokens[i] >= vocabulary)
            return qmi_fail(QM_ERROR_FORMAT, "its token %" PRId64 " is %" PRId32 ", which the model does not have", i,
                            snapshot->tokens[i]);
    return QM_OK;
}

static int32_t get_lists(arrival *a)
{
    const head *h = a->head;
    qmi_snapshot *out = a->out;
    const qmi_alloc *alloc = a->s->place->alloc;
    out->tokens = qmi_new(alloc, (size_t)h->tokens, sizeof *out->tokens, "tokens of a session");
    out->extra = qmi_new(alloc, (size_t)h->extra + 1, 1, "settings of a session");
    a->tables = qmi_new(alloc, (size_t)h->table_bytes, 1, "tables of a session's file");
    if (!out->tokens || !out->extra || !a->tables)
        return QM_ERROR_MEMORY;
    out->count = h->tokens;
    out->extra_size = h->extra;
    int32_t code = get_all(a->s, out->tokens, h->tokens * 4, "tokens");
    if (code >= 0)
        code = get_all(a->s, out->extra, h->extra, "settings");
    if (code >= 0)
        code = get_all(a->s, a->tables, h->table_bytes, "tables");
    return code < 0 ? code : check_tokens(out, h->logits_bytes / (int64_t)sizeof(float));
}

static int32_t get_device_parts(arrival *a)
{
    const head *h = a->head;
    int32_t code = QM_OK;
    for (int64_t i = 0; i < h->states && code >= 0; i++) {
        code = get_device(a->s, a->states[i]->recurrent, h->recurrent_bytes);
        if (code >= 0)
            code = get_device(a->s, a->states[i]->hidden, h->hidden_bytes);
        if (code >= 0)
            code = get_device(a->s, a->states[i]->logits, h->logits_bytes);
        if (code >= 0)
            code = get_sum(a->s, "state");
    }
    for (int64_t i = 0; i < h->pages && code >= 0; i++) {
        code = get_device(a->s, a->pages.addresses[i], h->page_bytes);
        if (code >= 0)
            code = get_sum(a->s, "page");
    }
    return code;
}

static int32_t get_snapshot(stream *s, int64_t context, qmi_snapshot *out)
{
    const qmi_snapshot_place *place = s->place;
    head h;
    int32_t code = get_head(s, &h, context);
    if (code < 0)
        return code;
    arrival a = { .s = s, .head = &h, .out = out };
    code = get_lists(&a);
    if (code >= 0)
        code = place->call(place->user, take_room, &a);
    if (code >= 0)
        code = get_device_parts(&a);
    if (code >= 0)
        code = place->call(place->user, fill_tables, &a);
    place->call(place->user, give_room_back, &a);
    qmi_delete(place->alloc, a.tables);
    return code;
}

int32_t qmi_snapshot_load(const qmi_snapshot_place *place, const char *path, int64_t context, qmi_snapshot *out)
{
    stream *s = qmi_new(place->alloc, 1, sizeof *s, "a session's file");
    *out = (qmi_snapshot){ 0 };
    int32_t code = s ? qmi_snapshot_start(s, place) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = qmi_os_map_open(path, &s->file);
    if (code >= 0) {
        code = get_snapshot(s, context, out);
        if (code < 0)
            qmi_fail_within(code, path);
        qmi_os_map_close(&s->file);
    }
    if (code < 0)
        qmi_snapshot_free(place, out);
    if (s)
        qmi_delete(place->alloc, s->piece);
    qmi_delete(place->alloc, s);
    return code;
}

/* ---- looking into a file ---- */

uint64_t qmi_snapshot_identity(const qmi_snapshot_place *place)
{
    const head ours = qmi_snapshot_head_of(place); /* the sizes of what a file holds are zero in it */
    return qmi_fnv_add(QMI_FNV_START, &ours, sizeof ours);
}

/* The longest start of the tokens after which the file has a state; of models that need none, the longest start. */
static int64_t usable(const arrival *a, const int32_t *tokens, int64_t count)
{
    const head *h = a->head;
    int64_t common = 0, best = 0, words = h->table_bytes / 4;
    while (common < count && common < h->tokens && a->out->tokens[common] == tokens[common])
        common++;
    if (h->recurrent_bytes == 0 || common == h->tokens)
        return common;
    int64_t at = 1 + qmi_kv_pages_for(a->s->place->pages->layout, h->tokens);
    for (int64_t i = 0, length; i < h->checkpoints && at >= 1 && at + 4 <= words; i++) {
        memcpy(&length, a->tables + at, sizeof length);
        if (length < 1 || length > h->tokens)
            break; /* loading will say so */
        best = length <= common && length > best ? length : best;
        at += 4 + qmi_kv_pages_for(a->s->place->pages->layout, length);
    }
    return best;
}

int64_t qmi_snapshot_probe(const qmi_snapshot_place *place, const char *path, const int32_t *tokens, int64_t count)
{
    qmi_snapshot found = { 0 };
    head h;
    stream *s = qmi_new(place->alloc, 1, sizeof *s, "a session's file");
    int64_t code = s ? qmi_snapshot_start(s, place) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = qmi_os_map_open(path, &s->file);
    if (code >= 0) {
        code = get_head(s, &h, INT64_MAX);
        arrival a = { .s = s, .head = &h, .out = &found };
        if (code >= 0)
            code = get_lists(&a);
        if (code >= 0)
            code = usable(&a, tokens, count);
        qmi_delete(place->alloc, a.tables);
        qmi_os_map_close(&s->file);
    }
    qmi_delete(place->alloc, found.tokens);
    qmi_delete(place->alloc, found.extra);
    if (s)
        qmi_delete(place->alloc, s->piece);
    qmi_delete(place->alloc, s);
    return code;
}
