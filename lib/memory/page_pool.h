/* The pages of a device's keys and values, which all sessions of a model share.
 *
 * The pool takes blocks of pages from the backend: one at the start, whose pages were promised by the plan and stay, and more
 * as sessions grow, which go back when they are empty. A page is counted: every page table that it is in holds one reference.
 *
 *   block:  | page | page | page | ...     tables:  session A  -> page 0, page 1, page 2
 *                                                   session B  -> page 0, page 1, page 5     (a fork that went on)
 *
 * A page in one table only may be written by that table's owner; a shared one never changes, since whoever appends to it
 * gets a copy first. The page knows the tokens it was computed from, so that prefixes can be compared without asking who made
 * them. Everything here is the engine's thread's, or belongs to a model that has no thread (yet). */
#ifndef QMI_MEMORY_PAGE_POOL_H
#define QMI_MEMORY_PAGE_POOL_H

#include "backend/backend.h"
#include "memory/kv_format.h"

typedef struct qmi_page_block qmi_page_block;

typedef struct qmi_page {
    qmi_address address;
    int32_t references;      /* page tables it is in; 0: free */
    int32_t kept;            /* those of them that are checkpoints' */
    int64_t asked;           /* the query that compared its tokens last, and how many of them agreed */
    int32_t agreed;
    int32_t *tokens;         /* [page_tokens] that its keys and values belong to, as far as they were written */
    qmi_page_block *block;
    struct qmi_page *next, *previous; /* among the free ones */
} qmi_page;

/* Called when there is no free page: gives back something that nobody needs; false when there is nothing. */
typedef bool (*qmi_reclaim)(void *user);

typedef struct qmi_page_pool {
    const qmi_kv_layout *layout;
    const qmi_backend *backend;
    qmi_device *device;
    const qmi_alloc *alloc;
    qmi_reclaim reclaim;     /* NULL: none */
    void *user;
    qmi_page_block *blocks;
    qmi_page *free;
    bool grows;              /* beyond the pages it started with, as far as the device has memory */
    int64_t asked;           /* queries so far */
    int64_t count, free_count; /* pages it has, and how many of them are free */
} qmi_page_pool;

/* reserve: pages that are taken now and kept. */
int32_t qmi_page_pool_open(qmi_page_pool *pool, const qmi_kv_layout *layout, const qmi_backend *backend, qmi_device *device,
                           const qmi_alloc *alloc, int64_t reserve, bool grows);
void qmi_page_pool_close(qmi_page_pool *pool); /* no page is in use; also after a failed or no opening */

/* A page table: of a session, or of a checkpoint. */
typedef struct qmi_page_table {
    qmi_page **pages;        /* [count] */
    qmi_address *addresses;  /* [count], what a batch's sequence gets */
    int64_t count, capacity;
} qmi_page_table;

void qmi_page_table_free(qmi_page_pool *pool, qmi_page_table *table);
/* Makes ready for writing at the positions [from, to), where those below `held` already hold something that counts: takes the
 * pages that are missing, and copies shared ones. QM_ERROR_MEMORY when there is none left, naming the numbers; the table then
 * holds what it held. */
int32_t qmi_page_table_own(qmi_page_pool *pool, qmi_page_table *table, int64_t from, int64_t held, int64_t to);
void qmi_page_table_cut(qmi_page_pool *pool, qmi_page_table *table, int64_t tokens); /* drops pages behind them */
/* Makes `to` hold the pages of the first `tokens` tokens of `from`, shared. Unchanged on failure. */
int32_t qmi_page_table_share(qmi_page_pool *pool, qmi_page_table *to, const qmi_page_table *from, int64_t tokens);
/* Fills an empty table with pages of another, shared, in any order. */
int32_t qmi_page_table_pick(qmi_page_pool *pool, qmi_page_table *to, const qmi_page_table *from, const int32_t *indices,
                            int64_t count);
/* Notes which tokens were written from position `from` on; their pages are the table's own. */
void qmi_page_table_note(const qmi_page_pool *pool, qmi_page_table *table, int64_t from, const int32_t *tokens, int64_t count);
/* Which of many tables begin with tokens[0, count)? Each page is compared once, however many tables it is in. */
typedef struct qmi_page_query {
    int64_t number;
    int32_t page_tokens;
    const int32_t *tokens;
    int64_t count;
} qmi_page_query;

qmi_page_query qmi_page_query_start(qmi_page_pool *pool, const int32_t *tokens, int64_t count);
/* How many of them the table's first `length` tokens begin with. */
int64_t qmi_page_query_common(const qmi_page_query *query, const qmi_page_table *table, int64_t length);

#endif
