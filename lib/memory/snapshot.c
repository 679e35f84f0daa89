/* Sessions on disk: saving, and what it shares with loading (snapshot_load.c). See snapshot.h. */
#include "memory/snapshot_file.h"

#include <string.h>
#include "base/error.h"

typedef qmi_snapshot_head head;
typedef qmi_snapshot_stream stream;
typedef qmi_snapshot_transfer transfer;

static uint32_t kv_of(const qmi_kv_layout *kv)
{
    return (uint32_t)kv->key_type | (uint32_t)kv->value_type << 8 | (uint32_t)kv->rotate_keys << 16 |
           (uint32_t)kv->rotate_values << 17 | (uint32_t)kv->window << 18;
}

qmi_snapshot_head qmi_snapshot_head_of(const qmi_snapshot_place *place)
{
    const qmi_kv_layout *kv = place->pages->layout;
    const qmi_state_layout *state = &place->states->layout;
    head h = { .version = QMI_SNAPSHOT_VERSION, .kv = kv_of(kv), .model = place->model, .page_tokens = kv->page_tokens,
               .page_bytes = kv->page_bytes, .value_offset = kv->value_offset, .recurrent_bytes = state->recurrent_bytes,
               .hidden_bytes = state->hidden_bytes, .logits_bytes = state->logits_bytes };
    memcpy(h.magic, QMI_SNAPSHOT_MAGIC, sizeof h.magic);
    return h;
}

int32_t qmi_snapshot_check_cancel(const stream *s)
{
    if (!s->place->cancel || !__atomic_load_n(s->place->cancel, __ATOMIC_ACQUIRE))
        return QM_OK;
    return qmi_fail(QM_ERROR_CANCELLED, "the job was cancelled");
}

int32_t qmi_snapshot_start(stream *s, const qmi_snapshot_place *place)
{
    *s = (stream){ .place = place };
    qmi_crc_start(&s->crc);
    s->piece = qmi_new(place->alloc, (size_t)QMI_SNAPSHOT_PIECE, 1, "a piece of a session's file");
    return s->piece ? QM_OK : QM_ERROR_MEMORY;
}

static int32_t read_device(void *argument)
{
    const transfer *t = argument;
    const qmi_page_pool *pool = t->s->place->pages;
    return pool->backend->read(pool->device, t->s->piece, t->address, t->bytes);
}

static int32_t put(stream *s, const void *data, int64_t bytes)
{
    s->sum = qmi_crc_add(&s->crc, s->sum, data, (size_t)bytes);
    return qmi_os_writer_put(&s->writer, data, bytes);
}

static int32_t put_sum(stream *s)
{
    uint32_t sum = s->sum;
    s->sum = 0;
    return qmi_os_writer_put(&s->writer, &sum, QMI_SNAPSHOT_SUM);
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
    int32_t code = qmi_snapshot_check_cancel(s);
    for (int64_t done = 0; done < bytes && code >= 0; done += QMI_SNAPSHOT_PIECE) {
        transfer t = { s, address + (qmi_address)done, bytes - done < QMI_SNAPSHOT_PIECE ? bytes - done : QMI_SNAPSHOT_PIECE };
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
    head h = qmi_snapshot_head_of(s->place);
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
    int32_t code = s ? qmi_snapshot_start(s, place) : QM_ERROR_MEMORY;
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
