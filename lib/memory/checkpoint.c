/* Checkpoints: see checkpoint.h. */
#include "memory/checkpoint.h"

#include <string.h>

static const double weights[] = { [QMI_CHECKPOINT_PASSED] = 1, [QMI_CHECKPOINT_LEFT] = 2, [QMI_CHECKPOINT_PROMPT] = 2,
                                  [QMI_CHECKPOINT_TURN] = 8 };

static void count_pages(qmi_checkpoint *checkpoint, int32_t more)
{
    for (int64_t i = 0; i < checkpoint->pages.count; i++)
        checkpoint->pages.pages[i]->kept += more;
}

static void remove_at(qmi_checkpoints *store, int32_t index)
{
    qmi_checkpoint *checkpoint = &store->list[index];
    count_pages(checkpoint, -1);
    qmi_page_table_free(store->pages, &checkpoint->pages);
    qmi_state_release(store->states, &checkpoint->state);
    *checkpoint = store->list[--store->count];
}

/* ---- which one is worth least ---- */

/* Are the tokens of `a` the first ones of `b`? A page stands in tables only behind the same pages, so one tells of all before it.
 * The page of the last token may have been copied since; its tokens are compared. */
static bool is_before(const qmi_checkpoints *store, const qmi_checkpoint *a, const qmi_checkpoint *b)
{
    int64_t page_tokens = store->pages->layout->page_tokens, last = (a->length - 1) / page_tokens;
    int64_t rest = a->length - last * page_tokens;
    if (a->length > b->length || (last > 0 && a->pages.pages[last - 1] != b->pages.pages[last - 1]))
        return false;
    return memcmp(a->pages.pages[last]->tokens, b->pages.pages[last]->tokens, (size_t)rest * sizeof(int32_t)) == 0;
}

static double worth(const qmi_checkpoints *store, const qmi_checkpoint *checkpoint)
{
    int64_t before = 0;
    for (int32_t i = 0; i < store->count; i++) {
        const qmi_checkpoint *other = &store->list[i];
        if (other != checkpoint && other->length > before && is_before(store, other, checkpoint))
            before = other->length;
    }
    return (double)(checkpoint->length - before) * weights[checkpoint->kind] / (double)(1 + store->time - checkpoint->used);
}

typedef bool (*condition)(const qmi_checkpoint *checkpoint);

/* Removes the one that is worth least of those that fulfil a condition; false when there is none. */
static bool remove_least(qmi_checkpoints *store, condition fits)
{
    int32_t least = -1;
    double least_worth = 0;
    for (int32_t i = 0; i < store->count; i++) {
        if (!fits(&store->list[i]))
            continue;
        double value = worth(store, &store->list[i]);
        if (least < 0 || value < least_worth) {
            least = i;
            least_worth = value;
        }
    }
    if (least >= 0)
        remove_at(store, least);
    return least >= 0;
}

static bool is_any(const qmi_checkpoint *checkpoint)
{
    (void)checkpoint;
    return true;
}

/* The last page of a checkpoint tells: who has it has all before it. */
static bool has_page_alone(const qmi_checkpoint *checkpoint)
{
    return checkpoint->pages.pages[checkpoint->pages.count - 1]->references == 1;
}

static bool shares_with_no_session(const qmi_checkpoint *checkpoint)
{
    const qmi_page *last = checkpoint->pages.pages[checkpoint->pages.count - 1];
    return last->kept == last->references;
}

static bool has_state_alone(const qmi_checkpoint *checkpoint)
{
    return checkpoint->state && checkpoint->state->references == 1;
}

static bool reclaim_page(void *user)
{
    return remove_least(user, has_page_alone) || remove_least(user, shares_with_no_session);
}

static bool reclaim_state(void *user)
{
    return remove_least(user, has_state_alone);
}

/* ---- use ---- */

int32_t qmi_checkpoints_open(qmi_checkpoints *store, qmi_page_pool *pages, qmi_state_pool *states, const qmi_alloc *alloc,
                             int32_t limit)
{
    *store = (qmi_checkpoints){ .pages = pages, .states = states, .alloc = alloc, .limit = limit };
    store->list = qmi_new(alloc, (size_t)limit, sizeof *store->list, "checkpoints");
    if (!store->list)
        return QM_ERROR_MEMORY;
    pages->reclaim = reclaim_page;
    states->reclaim = reclaim_state;
    pages->user = states->user = store;
    return QM_OK;
}

void qmi_checkpoints_close(qmi_checkpoints *store)
{
    while (store->count > 0)
        remove_at(store, store->count - 1);
    if (store->list)
        qmi_delete(store->alloc, store->list);
    *store = (qmi_checkpoints){ 0 };
}

void qmi_checkpoints_use(qmi_checkpoints *store, qmi_checkpoint *checkpoint)
{
    checkpoint->used = store->time;
}

/* One of the same tokens, if there is one. */
static qmi_checkpoint *find_same(qmi_checkpoints *store, const qmi_checkpoint *checkpoint)
{
    for (int32_t i = 0; i < store->count; i++)
        if (store->list[i].length == checkpoint->length && is_before(store, &store->list[i], checkpoint))
            return &store->list[i];
    return NULL;
}

void qmi_checkpoints_keep(qmi_checkpoints *store, const qmi_page_table *pages, int64_t length, qmi_state *state,
                          qmi_checkpoint_kind kind)
{
    qmi_checkpoint fresh = { .length = length, .pages = *pages, .kind = kind, .used = ++store->time };
    if (store->limit == 0 || length == 0)
        return;
    qmi_checkpoint *same = find_same(store, &fresh);
    if (same) {
        same->used = store->time;
        same->kind = kind > same->kind ? kind : same->kind;
        return;
    }
    fresh.pages = (qmi_page_table){ 0 };
    if (qmi_page_table_share(store->pages, &fresh.pages, pages, length) < 0)
        return;
    while (store->count >= store->limit)
        remove_least(store, is_any);
    if (store->states->layout.recurrent_bytes)
        fresh.state = qmi_state_retain(state);
    count_pages(&fresh, 1);
    store->list[store->count++] = fresh;
}

qmi_checkpoint *qmi_checkpoints_find(qmi_checkpoints *store, qmi_page_query *query, int64_t *length)
{
    qmi_checkpoint *best = NULL;
    *length = 0;
    for (int32_t i = 0; i < store->count; i++) {
        qmi_checkpoint *checkpoint = &store->list[i];
        if (checkpoint->state && checkpoint->length > query->count)
            continue;
        int64_t common = qmi_page_query_common(query, &checkpoint->pages, checkpoint->length);
        if (common > *length && (!checkpoint->state || common == checkpoint->length)) {
            best = checkpoint;
            *length = common;
        }
    }
    return best;
}

static bool holds_start(const qmi_checkpoint *checkpoint, const qmi_page_query *query)
{
    return checkpoint->length <= query->count &&
           qmi_page_query_common(query, &checkpoint->pages, checkpoint->length) == checkpoint->length;
}

/* Of those with a state that hold a start of the query's tokens and are at least of that kind, the longest that is shorter than
 * `below`; NULL: none. */
static const qmi_checkpoint *longest_below(const qmi_checkpoints *store, const qmi_page_query *query, int64_t below,
                                           qmi_checkpoint_kind kind)
{
    const qmi_checkpoint *best = NULL;
    for (int32_t i = 0; i < store->count; i++) {
        const qmi_checkpoint *checkpoint = &store->list[i];
        if (checkpoint->state && checkpoint->length < below && checkpoint->kind >= kind &&
            (!best || checkpoint->length > best->length) && holds_start(checkpoint, query))
            best = checkpoint;
    }
    return best;
}

/* Puts it into its place in the list, unless one of that length is there. */
static int32_t insert(qmi_checkpoints *store, const qmi_checkpoint *found, qmi_checkpoint *out, int32_t *count)
{
    int32_t at = *count;
    while (at > 0 && out[at - 1].length >= found->length)
        at--;
    if (at < *count && out[at].length == found->length)
        return QM_OK;
    memmove(out + at + 1, out + at, (size_t)(*count - at) * sizeof *out);
    out[at] = *found;
    out[at].pages = (qmi_page_table){ 0 };
    out[at].state = qmi_state_retain(found->state);
    ++*count;
    return qmi_page_table_share(store->pages, &out[at].pages, &found->pages, found->length);
}

int32_t qmi_checkpoints_collect(qmi_checkpoints *store, const int32_t *tokens, int64_t count, int32_t most, qmi_checkpoint *out,
                                int32_t *out_count)
{
    const qmi_page_query query = qmi_page_query_start(store->pages, tokens, count);
    const struct {
        qmi_checkpoint_kind kind;
        int32_t most;
    } rounds[] = { { QMI_CHECKPOINT_TURN, most / 2 }, { QMI_CHECKPOINT_PASSED, most } };
    *out_count = 0;
    for (int i = 0; i < 2; i++) {
        int64_t below = count + 1;
        for (const qmi_checkpoint *found; *out_count < rounds[i].most &&
                                          (found = longest_below(store, &query, below, rounds[i].kind)) != NULL;) {
            int32_t code = insert(store, found, out, out_count);
            if (code < 0)
                return code;
            below = found->length;
        }
    }
    return QM_OK;
}

const qmi_checkpoint *qmi_checkpoints_first_turn(qmi_checkpoints *store, const int32_t *tokens, int64_t count, int64_t least)
{
    const qmi_page_query query = qmi_page_query_start(store->pages, tokens, count);
    const qmi_checkpoint *first = NULL;
    for (int32_t i = 0; i < store->count; i++) {
        const qmi_checkpoint *checkpoint = &store->list[i];
        if (checkpoint->state && checkpoint->kind == QMI_CHECKPOINT_TURN && checkpoint->length >= least &&
            (!first || checkpoint->length < first->length) && holds_start(checkpoint, &query))
            first = checkpoint;
    }
    return first;
}
