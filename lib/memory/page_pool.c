/* The pages of a device's keys and values: see page_pool.h. */
#include "memory/page_pool.h"

#include <inttypes.h>
#include <string.h>
#include "base/error.h"

/* The pool grows by this much: seldom enough that growing costs nothing a token, and little beside a device's memory. */
#define GROWTH_BYTES ((int64_t)64 << 20)

struct qmi_page_block {
    qmi_page_block *next;
    qmi_address memory;
    int64_t count, used;
    bool reserved;           /* of the plan: stays */
    int32_t *tokens;         /* [count][page_tokens] */
    qmi_page pages[];
};

/* ---- blocks ---- */

static void push_free(qmi_page_pool *pool, qmi_page *page)
{
    page->previous = NULL;
    page->next = pool->free;
    if (pool->free)
        pool->free->previous = page;
    pool->free = page;
    pool->free_count++;
}

static void unlink_free(qmi_page_pool *pool, qmi_page *page)
{
    if (page->previous)
        page->previous->next = page->next;
    else
        pool->free = page->next;
    if (page->next)
        page->next->previous = page->previous;
    page->next = page->previous = NULL;
    pool->free_count--;
}

static int32_t add_block(qmi_page_pool *pool, int64_t count, bool reserved)
{
    const qmi_kv_layout *layout = pool->layout;
    const qmi_content content = { .kind = QMI_CONTENT_PAGES };
    if (layout->page_bytes && count > INT64_MAX / 2 / layout->page_bytes)
        return qmi_fail(QM_ERROR_MEMORY, "keys and values of %" PRId64 " tokens are more than this machine can address; lower "
                        "context", count * layout->page_tokens);
    qmi_page_block *block = qmi_new(pool->alloc, 1, sizeof *block + (size_t)count * sizeof block->pages[0], "pages");
    if (!block)
        return QM_ERROR_MEMORY;
    *block = (qmi_page_block){ .count = count, .reserved = reserved };
    block->tokens = qmi_new(pool->alloc, (size_t)(count * layout->page_tokens), sizeof *block->tokens, "tokens of pages");
    int32_t code = block->tokens ? QM_OK : QM_ERROR_MEMORY;
    if (code >= 0 && layout->page_bytes)
        code = qmi_backend_allocate(pool->backend, pool->device, &content, count * layout->page_bytes, "keys and values",
                                    &block->memory);
    if (code < 0) {
        qmi_delete(pool->alloc, block->tokens);
        qmi_delete(pool->alloc, block);
        return code;
    }
    block->next = pool->blocks;
    pool->blocks = block;
    pool->count += count;
    for (int64_t i = count; i-- > 0;) { /* so that they are taken in ascending order */
        block->pages[i] = (qmi_page){ .address = block->memory + (qmi_address)(i * layout->page_bytes), .block = block,
                                      .tokens = block->tokens + i * layout->page_tokens };
        push_free(pool, &block->pages[i]);
    }
    return QM_OK;
}

static void remove_block(qmi_page_pool *pool, qmi_page_block *block)
{
    qmi_page_block **link = &pool->blocks;
    while (*link != block)
        link = &(*link)->next;
    *link = block->next;
    for (int64_t i = 0; i < block->count; i++)
        unlink_free(pool, &block->pages[i]);
    pool->count -= block->count;
    if (block->memory)
        pool->backend->release(pool->device, block->memory);
    qmi_delete(pool->alloc, block->tokens);
    qmi_delete(pool->alloc, block);
}

int32_t qmi_page_pool_open(qmi_page_pool *pool, const qmi_kv_layout *layout, const qmi_backend *backend, qmi_device *device,
                           const qmi_alloc *alloc, int64_t reserve, bool grows)
{
    *pool = (qmi_page_pool){ .layout = layout, .backend = backend, .device = device, .alloc = alloc, .grows = grows };
    return reserve > 0 ? add_block(pool, reserve, true) : QM_OK;
}

void qmi_page_pool_close(qmi_page_pool *pool)
{
    while (pool->blocks)
        remove_block(pool, pool->blocks);
    *pool = (qmi_page_pool){ 0 };
}

/* ---- taking and giving back ---- */

/* A block more, as large as the device gives. */
static int32_t grow(qmi_page_pool *pool)
{
    int64_t bytes = pool->layout->page_bytes, count = bytes == 0 || bytes > GROWTH_BYTES ? 1 : GROWTH_BYTES / bytes;
    int32_t code = QM_ERROR_MEMORY;
    for (; count > 0 && code == QM_ERROR_MEMORY; count /= 2)
        code = add_block(pool, count, false);
    return code;
}

static int32_t fail_empty(const qmi_page_pool *pool)
{
    return qmi_fail(QM_ERROR_MEMORY, "no memory is left for keys and values: the sessions' %" PRId64 " tokens fill %" PRId64
                    " bytes%s; free or rewind a session, or %s", pool->count * pool->layout->page_tokens,
                    pool->count * pool->layout->page_bytes, pool->grows ? ", and the device has no more" : " (option kv-memory)",
                    pool->grows ? "use shorter ones" : "set kv-memory higher");
}

/* clean: zero-filled, since what was never written may be read along and masked; else its bytes are undefined. */
static int32_t take(qmi_page_pool *pool, bool clean, qmi_page **out)
{
    *out = NULL;
    /* What is only kept for later gives way before the pool grows. */
    while (!pool->free && pool->reclaim && pool->reclaim(pool->user))
        continue;
    int32_t code = pool->free ? QM_OK : pool->grows ? grow(pool) : QM_ERROR_MEMORY;
    if (code < 0)
        return code == QM_ERROR_MEMORY ? fail_empty(pool) : code;
    if (clean && pool->layout->page_bytes)
        code = pool->backend->clear(pool->device, pool->free->address, pool->layout->page_bytes);
    if (code < 0)
        return code;
    *out = pool->free;
    unlink_free(pool, *out);
    (*out)->references = 1;
    (*out)->block->used++;
    return QM_OK;
}

static bool is_spare(const qmi_page_block *block)
{
    return block->used == 0 && !block->reserved;
}

static void drop(qmi_page_pool *pool, qmi_page *page)
{
    qmi_page_block *block = page->block;
    if (--page->references > 0)
        return;
    push_free(pool, page);
    block->used--;
    /* One empty block is kept, so that a session at the edge of one does not have it allocated again and again. */
    if (!is_spare(block))
        return;
    for (const qmi_page_block *other = pool->blocks; other; other = other->next)
        if (other != block && is_spare(other)) {
            remove_block(pool, block);
            return;
        }
}

/* ---- page tables ---- */

static int32_t reserve(qmi_page_pool *pool, qmi_page_table *table, int64_t count)
{
    if (count <= table->capacity)
        return QM_OK;
    int64_t capacity = table->capacity + table->capacity / 2 > count ? table->capacity + table->capacity / 2 : count;
    size_t old = (size_t)table->count, wanted = (size_t)capacity;
    qmi_page **pages = qmi_new(pool->alloc, wanted, sizeof *pages, "a page table");
    qmi_address *addresses = pages ? qmi_new(pool->alloc, wanted, sizeof *addresses, "a page table") : NULL;
    if (!addresses) {
        qmi_delete(pool->alloc, pages);
        return QM_ERROR_MEMORY;
    }
    if (old > 0) {
        memcpy(pages, table->pages, old * sizeof *pages);
        memcpy(addresses, table->addresses, old * sizeof *addresses);
    }
    qmi_delete(pool->alloc, table->pages);
    qmi_delete(pool->alloc, table->addresses);
    table->pages = pages;
    table->addresses = addresses;
    table->capacity = capacity;
    return QM_OK;
}

static void drop_from(qmi_page_pool *pool, qmi_page_table *table, int64_t count)
{
    while (table->count > count)
        drop(pool, table->pages[--table->count]);
}

void qmi_page_table_free(qmi_page_pool *pool, qmi_page_table *table)
{
    drop_from(pool, table, 0);
    qmi_delete(pool->alloc, table->pages);
    qmi_delete(pool->alloc, table->addresses);
    *table = (qmi_page_table){ 0 };
}

/* A page of the table's own instead of a shared one. kept: how many of its tokens count; not above 0: none. */
static int32_t separate(qmi_page_pool *pool, qmi_page_table *table, int64_t index, int64_t kept)
{
    qmi_page *shared = table->pages[index], *page;
    int32_t code = take(pool, kept <= 0, &page);
    if (code < 0)
        return code;
    if (kept > 0 && pool->layout->page_bytes)
        code = pool->backend->copy(pool->device, page->address, shared->address, pool->layout->page_bytes);
    if (code < 0) {
        drop(pool, page);
        return code;
    }
    memcpy(page->tokens, shared->tokens, (size_t)pool->layout->page_tokens * sizeof *page->tokens);
    table->pages[index] = page;
    table->addresses[index] = page->address;
    drop(pool, shared);
    return QM_OK;
}

int32_t qmi_page_table_own(qmi_page_pool *pool, qmi_page_table *table, int64_t from, int64_t held, int64_t to)
{
    int64_t before = table->count, page_tokens = pool->layout->page_tokens, needed = qmi_kv_pages_for(pool->layout, to);
    int32_t code = reserve(pool, table, needed);
    for (int64_t i = from / page_tokens; i < before && i < needed && code >= 0; i++)
        if (table->pages[i]->references > 1)
            code = separate(pool, table, i, held - i * page_tokens);
    while (table->count < needed && code >= 0) {
        qmi_page *page;
        code = take(pool, true, &page);
        if (code < 0)
            break;
        table->pages[table->count] = page;
        table->addresses[table->count++] = page->address;
    }
    if (code < 0)
        drop_from(pool, table, before);
    return code;
}

void qmi_page_table_cut(qmi_page_pool *pool, qmi_page_table *table, int64_t tokens)
{
    drop_from(pool, table, qmi_kv_pages_for(pool->layout, tokens));
}

int32_t qmi_page_table_share(qmi_page_pool *pool, qmi_page_table *to, const qmi_page_table *from, int64_t tokens)
{
    int64_t count = qmi_kv_pages_for(pool->layout, tokens);
    int32_t code = reserve(pool, to, count);
    if (code < 0)
        return code;
    for (int64_t i = 0; i < count; i++)
        from->pages[i]->references++; /* first, since some may be in both */
    drop_from(pool, to, 0);
    if (count > 0) {
        memcpy(to->pages, from->pages, (size_t)count * sizeof *to->pages);
        memcpy(to->addresses, from->addresses, (size_t)count * sizeof *to->addresses);
    }
    to->count = count;
    return QM_OK;
}

int32_t qmi_page_table_pick(qmi_page_pool *pool, qmi_page_table *to, const qmi_page_table *from, const int32_t *indices,
                            int64_t count)
{
    int32_t code = reserve(pool, to, count);
    for (int64_t i = 0; i < count && code >= 0; i++) {
        to->pages[i] = from->pages[indices[i]];
        to->addresses[i] = to->pages[i]->address;
        to->pages[i]->references++;
        to->count++;
    }
    return code;
}

void qmi_page_table_note(const qmi_page_pool *pool, qmi_page_table *table, int64_t from, const int32_t *tokens, int64_t count)
{
    int64_t page_tokens = pool->layout->page_tokens;
    for (int64_t i = 0; i < count; i++)
        table->pages[(from + i) / page_tokens]->tokens[(from + i) % page_tokens] = tokens[i];
}

qmi_page_query qmi_page_query_start(qmi_page_pool *pool, const int32_t *tokens, int64_t count)
{
    return (qmi_page_query){ .number = ++pool->asked, .page_tokens = pool->layout->page_tokens, .tokens = tokens,
                             .count = count };
}

int64_t qmi_page_query_common(const qmi_page_query *query, const qmi_page_table *table, int64_t length)
{
    int64_t page_tokens = query->page_tokens, most = length < query->count ? length : query->count, common = 0;
    for (int64_t i = 0; common < most && common == i * page_tokens; i++) {
        qmi_page *page = table->pages[i];
        int64_t left = query->count - i * page_tokens;
        if (page->asked != query->number) {
            page->asked = query->number;
            page->agreed = 0;
            while (page->agreed < page_tokens && page->agreed < left &&
                   page->tokens[page->agreed] == query->tokens[i * page_tokens + page->agreed])
                page->agreed++;
        }
        common += page->agreed;
    }
    return common < most ? common : most;
}
