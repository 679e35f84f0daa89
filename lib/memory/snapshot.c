/* Sessions on disk: see snapshot.h. */
#include "memory/snapshot.h"

#include <inttypes.h>
#include <string.h>
#include "base/checksum.h"
#include "base/error.h"
#include "base/os.h"

#define PIECE ((int64_t)8 << 20) /* bytes between device and file at a time, so that other sessions wait for no more */

static const char magic[8] = { 'Q', 'M', ' ', 's', 'e', 's', 's', '\n' };

/* ---- the head ---- */

typedef struct head {
    char magic[8];
    uint32_t version, kv; /* kv_of */
    uint64_t model;
    int64_t page_tokens, page_bytes, value_offset, recurrent_bytes, hidden_bytes, logits_bytes;
    int64_t tokens, extra, table_bytes, states, pages, checkpoints;
} head;

_Static_assert(sizeof(head) == 120, "the head has no gaps, so that it is written as it lies");

static uint32_t kv_of(const qmi_kv_layout *kv)
{
    return (uint32_t)kv->key_type | (uint32_t)kv->value_type << 8 | (uint32_t)kv->rotate_keys << 16 |
           (uint32_t)kv->rotate_values << 17;
}

static head make_head(const qmi_snapshot_place *place)
{
    const qmi_kv_layout *kv = place->pages->layout;
    const qmi_state_layout *state = &place->states->layout;
    head h = { .version = QMI_SNAPSHOT_VERSION, .kv = kv_of(kv), .model = place->model, .page_tokens = kv->page_tokens,
               .page_bytes = kv->page_bytes, .value_offset = kv->value_offset, .recurrent_bytes = state->recurrent_bytes,
               .hidden_bytes = state->hidden_bytes, .logits_bytes = state->logits_bytes };
    memcpy(h.magic, magic, sizeof magic);
    return h;
}

static int64_t state_bytes(const head *h)
{
    return h->recurrent_bytes + h->hidden_bytes + h->logits_bytes;
}

#define SUM 4 /* bytes of a checksum */

/* Of the whole file; the parts are in their ranges. */
static int64_t file_bytes(const head *h)
{
    return (int64_t)sizeof *h + SUM + h->tokens * 4 + SUM + h->extra + SUM + h->table_bytes + SUM +
           h->states * (state_bytes(h) + SUM) + h->pages * (h->page_bytes + SUM);
}

/* ---- both ways ---- */

typedef struct stream {
    const qmi_snapshot_place *place;
    qmi_crc crc;
    uint32_t sum;
    uint8_t *piece;        /* [PIECE] */
    qmi_os_writer writer;
    qmi_os_map file;
    int64_t at;            /* of reading */
} stream;

typedef struct transfer { /* between a device and the host */
    const stream *s;
    qmi_address address;
    int64_t bytes;
} transfer;

static int32_t read_device(void *argument)
{
    const transfer *t = argument;
    const qmi_page_pool *pool = t->s->place->pages;
    return pool->backend->read(pool->device, t->s->piece, t->address, t->bytes);
}

static int32_t write_device(void *argument)
{
    const transfer *t = argument;
    const qmi_page_pool *pool = t->s->place->pages;
    return pool->backend->write(pool->device, t->address, t->s->piece, t->bytes);
}

static int32_t check_cancel(const stream *s)
{
    if (!s->place->cancel || !__atomic_load_n(s->place->cancel, __ATOMIC_ACQUIRE))
        return QM_OK;
    return qmi_fail(QM_ERROR_CANCELLED, "the job was cancelled");
}

static int32_t start_stream(stream *s, const qmi_snapshot_place *place)
{
    *s = (stream){ .place = place };
    qmi_crc_start(&s->crc);
    s->piece = qmi_new(place->alloc, (size_t)PIECE, 1, "a piece of a session's file");
    return s->piece ? QM_OK : QM_ERROR_MEMORY;
}

/* ---- saving ---- */

static int32_t put(stream *s, const void *data, int64_t bytes)
{
    s->sum = qmi_crc_add(&s->crc, s->sum, data, (size_t)bytes);
    return qmi_os_writer_put(&s->writer, data, bytes);
}

static int32_t put_sum(stream *s)
{
    uint32_t sum = s->sum;
    s->sum = 0;
    return qmi_os_writer_put(&s->writer, &sum, SUM);
}

static int32_t put_all(stream *s, const void *data, int64_t bytes)
{
    int32_t code = bytes > 0 ? put(s, data, bytes) : QM_OK;
    return code < 0 ? code : put_sum(s);
}

#define ALL INT64_MAX

/* held: tokens of a page that are written as they are; ALL: it is no page. */
static int32_t put_device(stream *s, qmi_address address, int64_t bytes, int64_t held)
{
    int32_t code = check_cancel(s);
    for (int64_t done = 0; done < bytes && code >= 0; done += PIECE) {
        transfer t = { s, address + (qmi_address)done, bytes - done < PIECE ? bytes - done : PIECE };
        code = s->place->call(s->place->user, read_device, &t);
        if (code >= 0 && held != ALL)
            qmi_kv_clear_behind(s->place->pages->layout, held, s->piece, done, t.bytes);
        if (code >= 0)
            code = put(s, s->piece, t.bytes);
    }
    return code;
}

static int32_t put_state(stream *s, const qmi_state *state)
{
    const qmi_state_layout *layout = &s->place->states->layout;
    int32_t code = put_device(s, state->recurrent, layout->recurrent_bytes, ALL);
    if (code >= 0)
        code = put_device(s, state->hidden, layout->hidden_bytes, ALL);
    if (code >= 0)
        code = put_device(s, state->logits, layout->logits_bytes, ALL);
    return code < 0 ? code : put_sum(s);
}

/* The things of which several tables and checkpoints speak, each once. */
typedef struct inventory {
    qmi_page **pages;
    int64_t *held;   /* tokens from the start of each page on that are the session's; may be more than a page has */
    const qmi_state *states[QMI_SNAPSHOT_CHECKPOINTS + 1];
    int64_t page_count, state_count;
    int32_t *tables; /* the section of that name */
    int64_t table_words;
} inventory;

static int32_t index_of_page(inventory *all, qmi_page *page, int64_t likely)
{
    if (likely < all->page_count && all->pages[likely] == page)
        return (int32_t)likely;
    int64_t i = 0;
    while (i < all->page_count && all->pages[i] != page)
        i++;
    if (i == all->page_count)
        all->pages[all->page_count++] = page;
    return (int32_t)i;
}

static int32_t index_of_state(inventory *all, const qmi_state *state)
{
    int32_t i = 0;
    if (!state)
        return -1;
    while (i < all->state_count && all->states[i] != state)
        i++;
    if (i == all->state_count)
        all->states[all->state_count++] = state;
    return i;
}

static void list_pages(inventory *all, const qmi_page_table *table, int64_t tokens, int64_t page_tokens)
{
    for (int64_t i = 0; i < table->count; i++) {
        int32_t index = index_of_page(all, table->pages[i], i);
        int64_t held = tokens - i * page_tokens;
        all->tables[all->table_words++] = index;
        if (all->held[index] < held)
            all->held[index] = held;
    }
}

static int32_t take_inventory(const qmi_snapshot_place *place, const qmi_snapshot *snapshot, inventory *all)
{
    int64_t pages = snapshot->pages.count, page_tokens = place->pages->layout->page_tokens, words;
    *all = (inventory){ 0 };
    for (int32_t i = 0; i < snapshot->checkpoint_count; i++)
        pages += snapshot->checkpoints[i].pages.count;
    words = 1 + pages + 4 * snapshot->checkpoint_count;
    all->pages = qmi_new(place->alloc, (size_t)pages, sizeof *all->pages, "pages of a session's file");
    all->held = qmi_new(place->alloc, (size_t)pages, sizeof *all->held, "pages of a session's file");
    all->tables = qmi_new(place->alloc, (size_t)words, sizeof *all->tables, "tables of a session's file");
    if (!all->pages || !all->held || !all->tables)
        return QM_ERROR_MEMORY;
    all->tables[all->table_words++] = index_of_state(all, snapshot->state);
    list_pages(all, &snapshot->pages, snapshot->count, page_tokens);
    for (int32_t i = 0; i < snapshot->checkpoint_count; i++) {
        const qmi_checkpoint *checkpoint = &snapshot->checkpoints[i];
        memcpy(all->tables + all->table_words, &checkpoint->length, sizeof checkpoint->length);
        all->tables[all->table_words + 2] = (int32_t)checkpoint->kind;
        all->tables[all->table_words + 3] = index_of_state(all, checkpoint->state);
        all->table_words += 4;
        list_pages(all, &checkpoint->pages, checkpoint->length, page_tokens);
    }
    return QM_OK;
}

static int32_t put_snapshot(stream *s, const qmi_snapshot *snapshot, const inventory *all)
{
    head h = make_head(s->place);
    h.tokens = snapshot->count;
    h.extra = snapshot->extra_size;
    h.table_bytes = all->table_words * 4;
    h.states = all->state_count;
    h.pages = all->page_count;
    h.checkpoints = snapshot->checkpoint_count;
    int32_t code = put_all(s, &h, sizeof h);
    if (code >= 0)
        code = put_all(s, snapshot->tokens, snapshot->count * 4);
    if (code >= 0)
        code = put_all(s, snapshot->extra, snapshot->extra_size);
    if (code >= 0)
        code = put_all(s, all->tables, all->table_words * 4);
    for (int64_t i = 0; i < all->state_count && code >= 0; i++)
        code = put_state(s, all->states[i]);
    for (int64_t i = 0; i < all->page_count && code >= 0; i++) {
        code = put_device(s, all->pages[i]->address, h.page_bytes, all->held[i]);
        if (code >= 0)
            code = put_sum(s);
    }
    return code;
}

int32_t qmi_snapshot_save(const qmi_snapshot_place *place, const qmi_snapshot *snapshot, const char *path)
{
    stream *s = qmi_new(place->alloc, 1, sizeof *s, "a session's file");
    inventory all = { 0 };
    int32_t code = s ? start_stream(s, place) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = take_inventory(place, snapshot, &all);
    if (code >= 0)
        code = qmi_os_writer_open(path, &s->writer);
    if (code >= 0) {
        code = put_snapshot(s, snapshot, &all);
        if (code >= 0)
            code = qmi_os_writer_finish(&s->writer);
        else
            qmi_os_writer_abandon(&s->writer);
    }
    qmi_delete(place->alloc, all.pages);
    qmi_delete(place->alloc, all.held);
    qmi_delete(place->alloc, all.tables);
    if (s)
        qmi_delete(place->alloc, s->piece);
    qmi_delete(place->alloc, s);
    return code;
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
    int32_t code = qmi_os_map_read(&s->file, s->at, &found, SUM);
    s->at += SUM;
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
    int32_t code = check_cancel(s);
    for (int64_t done = 0; done < bytes && code >= 0; done += PIECE) {
        transfer t = { s, address + (qmi_address)done, bytes - done < PIECE ? bytes - done : PIECE };
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
    return qmi_fail(QM_ERROR_UNSUPPORTED, "its keys and values are of another type; load the model with the options key-type %s, "
                    "value-type %s and kv-rotation %s", qmi_kv_formats[key].name, qmi_kv_formats[value].name,
                    kv >> 17 & 1 ? "on" : kv >> 16 & 1 ? "keys" : "off");
}

static int32_t check_head(const stream *s, const head *h, int64_t context)
{
    const head ours = make_head(s->place);
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
    if (s->file.size < (int64_t)sizeof *h + SUM)
        return qmi_fail(QM_ERROR_FORMAT, "it has %" PRId64 " bytes, too few for a session", s->file.size);
    int32_t code = get(s, h, sizeof *h);
    if (code < 0)
        return code;
    if (memcmp(h->magic, magic, sizeof magic) != 0)
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
    int32_t code = s ? start_stream(s, place) : QM_ERROR_MEMORY;
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
    const head ours = make_head(place); /* the sizes of what a file holds are zero in it */
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
    int64_t code = s ? start_stream(s, place) : QM_ERROR_MEMORY;
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

typedef struct departure {
    const qmi_snapshot_place *place;
    qmi_snapshot *snapshot;
} departure;

static int32_t give_back(void *argument)
{
    const departure *d = argument;
    qmi_snapshot *snapshot = d->snapshot;
    qmi_page_table_free(d->place->pages, &snapshot->pages);
    qmi_state_release(d->place->states, &snapshot->state);
    for (int32_t i = 0; i < snapshot->checkpoint_count; i++) {
        qmi_page_table_free(d->place->pages, &snapshot->checkpoints[i].pages);
        qmi_state_release(d->place->states, &snapshot->checkpoints[i].state);
    }
    return QM_OK;
}

void qmi_snapshot_free(const qmi_snapshot_place *place, qmi_snapshot *snapshot)
{
    place->call(place->user, give_back, &(departure){ place, snapshot });
    qmi_delete(place->alloc, snapshot->tokens);
    qmi_delete(place->alloc, snapshot->extra);
    *snapshot = (qmi_snapshot){ 0 };
}
