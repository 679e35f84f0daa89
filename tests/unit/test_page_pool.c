/* Pages: taken as tables grow, shared, copied before they are written, given back. The bytes of a page are a mark of its own. */
#include "pool_device.h"

#include "memory/page_pool.h"

#define PAGE_TOKENS 64
static const qmi_kv_layout layout = { .page_tokens = PAGE_TOKENS, .page_bytes = 1024 };

typedef struct fixture {
    pool_device device;
    qmi_page_pool pool;
} fixture;

static void start(fixture *f, int64_t reserve, bool grows, int64_t memory_limit)
{
    pool_device_start(&f->device, memory_limit);
    assert_int_equal(qmi_page_pool_open(&f->pool, &layout, &qmi_cpu_backend, f->device.device, &f->device.alloc, reserve, grows),
                     QM_OK);
}

static void end(fixture *f)
{
    assert_int_equal(f->pool.free_count, f->pool.count); /* no page is left in use */
    qmi_page_pool_close(&f->pool);
    pool_device_end(&f->device);
}

/* Appends tokens as a session does: each writes its number into its page. */
static int32_t append(fixture *f, qmi_page_table *table, int64_t from, const int32_t *tokens, int64_t count)
{
    int32_t code = qmi_page_table_own(&f->pool, table, from, from, from + count);
    for (int64_t i = from; i < from + count && code >= 0; i++) {
        assert_int_equal(table->pages[i / PAGE_TOKENS]->references, 1);
        ((int32_t *)(uintptr_t)table->addresses[i / PAGE_TOKENS])[i % PAGE_TOKENS] = tokens[i - from];
    }
    if (code >= 0)
        qmi_page_table_note(&f->pool, table, from, tokens, count);
    return code;
}

static int64_t common(fixture *f, const qmi_page_table *table, int64_t length, const int32_t *tokens, int64_t count)
{
    const qmi_page_query query = qmi_page_query_start(&f->pool, tokens, count);
    return qmi_page_query_common(&query, table, length);
}

static void assert_table(fixture *f, const qmi_page_table *table, const int32_t *tokens, int64_t count)
{
    assert_int_equal(table->count, qmi_kv_pages_for(&layout, count));
    assert_int_equal(common(f, table, count, tokens, count), count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(((int32_t *)(uintptr_t)table->addresses[i / PAGE_TOKENS])[i % PAGE_TOKENS], tokens[i]);
}

static void fill(int32_t *tokens, int64_t count, int32_t first)
{
    for (int64_t i = 0; i < count; i++)
        tokens[i] = first + (int32_t)i;
}

static void copies_what_is_shared(void **state)
{
    (void)state;
    fixture f;
    int32_t one[300], other[300];
    qmi_page_table a = { 0 }, b = { 0 };
    start(&f, 10, false, 0);
    fill(one, 300, 0);
    fill(other, 300, 1000);
    assert_int_equal(append(&f, &a, 0, one, 150), QM_OK);
    assert_int_equal(qmi_page_table_share(&f.pool, &b, &a, 150), QM_OK);
    assert_int_equal(f.pool.free_count, 7);
    assert_int_equal(append(&f, &b, 150, other, 150), QM_OK);
    assert_int_equal(f.pool.free_count, 4); /* a copy of the third page, and two more */
    assert_ptr_equal(a.pages[1], b.pages[1]);
    assert_ptr_not_equal(a.pages[2], b.pages[2]);
    assert_int_equal(append(&f, &a, 150, one + 150, 42), QM_OK);
    assert_table(&f, &a, one, 192);
    memcpy(one + 150, other, 150 * sizeof *one); /* what b holds */
    assert_table(&f, &b, one, 300);
    qmi_page_table_free(&f.pool, &a);
    assert_table(&f, &b, one, 300);
    qmi_page_table_free(&f.pool, &b);
    end(&f);
}

/* At the edge of a page nothing has to be copied; a table may be shared with less than it holds, and with itself. */
static void shares_a_part(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[300];
    qmi_page_table a = { 0 }, b = { 0 };
    start(&f, 10, false, 0);
    fill(tokens, 300, 0);
    assert_int_equal(append(&f, &a, 0, tokens, 300), QM_OK);
    assert_int_equal(qmi_page_table_share(&f.pool, &b, &a, 128), QM_OK);
    assert_int_equal(b.count, 2);
    assert_int_equal(append(&f, &b, 128, tokens + 128, 10), QM_OK);
    assert_table(&f, &b, tokens, 138);
    assert_int_equal(qmi_page_table_share(&f.pool, &a, &a, 70), QM_OK);
    assert_table(&f, &a, tokens, 70);
    assert_int_equal(qmi_page_table_share(&f.pool, &a, &b, 0), QM_OK);
    assert_int_equal(a.count, 0);
    assert_int_equal(common(&f, &b, 138, tokens + 1, 138), 0);
    assert_int_equal(common(&f, &b, 100, tokens, 138), 100);
    qmi_page_table_cut(&f.pool, &b, 64);
    assert_int_equal(b.count, 1);
    qmi_page_table_free(&f.pool, &a);
    qmi_page_table_free(&f.pool, &b);
    end(&f);
}

/* A position may be written again in part, so what is there counts, also where it begins a page. */
static void keeps_what_counts(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[65];
    qmi_page_table a = { 0 }, b = { 0 };
    start(&f, 10, false, 0);
    fill(tokens, 65, 0);
    assert_int_equal(append(&f, &a, 0, tokens, 65), QM_OK);
    assert_int_equal(qmi_page_table_share(&f.pool, &b, &a, 65), QM_OK);
    assert_int_equal(qmi_page_table_own(&f.pool, &b, 64, 65, 70), QM_OK);
    assert_ptr_not_equal(a.pages[1], b.pages[1]);
    assert_table(&f, &b, tokens, 65);
    qmi_page_table_free(&f.pool, &a);
    qmi_page_table_free(&f.pool, &b);
    end(&f);
}

/* A pool that is used up leaves the table as it was. */
static void says_when_it_is_empty(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[640];
    qmi_page_table a = { 0 }, b = { 0 };
    start(&f, 8, false, 0);
    fill(tokens, 640, 0);
    assert_int_equal(append(&f, &a, 0, tokens, 330), QM_OK); /* 6 pages */
    assert_int_equal(qmi_page_table_share(&f.pool, &b, &a, 330), QM_OK);
    assert_int_equal(append(&f, &b, 330, tokens + 330, 200), QM_ERROR_MEMORY);
    assert_non_null(strstr(qmi_error_text(), "512 tokens"));
    assert_non_null(strstr(qmi_error_text(), "kv-memory"));
    assert_table(&f, &a, tokens, 330);
    assert_table(&f, &b, tokens, 330);
    qmi_page_table_free(&f.pool, &a);
    assert_int_equal(append(&f, &b, 330, tokens + 330, 180), QM_OK);
    assert_table(&f, &b, tokens, 510);
    qmi_page_table_free(&f.pool, &b);
    end(&f);
}

/* Grows to the device's last byte, and shrinks again but for what it started with and one block. */
static void grows_and_shrinks(void **state)
{
    (void)state;
    enum { LIMIT = 1 << 20 };
    static int32_t tokens[LIMIT / 16];
    fixture f;
    qmi_page_table a = { 0 };
    qmi_device_info info;
    start(&f, 2, true, LIMIT);
    fill(tokens, LIMIT / 16, 0);
    int64_t held = 0;
    while (append(&f, &a, held, tokens + held, PAGE_TOKENS) >= 0)
        held += PAGE_TOKENS;
    assert_non_null(strstr(qmi_error_text(), "the device has no more"));
    qmi_cpu_backend.info(f.device.device, &info);
    assert_true(info.memory_free < layout.page_bytes);
    assert_int_equal(f.pool.count, held / PAGE_TOKENS);
    assert_table(&f, &a, tokens, held);
    qmi_page_table_cut(&f.pool, &a, 100);
    assert_true(f.pool.count < held / PAGE_TOKENS);
    assert_table(&f, &a, tokens, 100);
    qmi_page_table_free(&f.pool, &a);
    end(&f);
}

typedef struct hoard {
    fixture *f;
    qmi_page_table table;
} hoard;

static bool give_up_hoard(void *user)
{
    hoard *h = user;
    bool had = h->table.count > 0;
    qmi_page_table_free(&h->f->pool, &h->table);
    return had;
}

/* What is only kept for later gives way, even where it shares the page that is being copied. */
static void reclaims(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[300];
    qmi_page_table a = { 0 };
    hoard h = { &f, { 0 } };
    start(&f, 3, false, 0);
    f.pool.reclaim = give_up_hoard;
    f.pool.user = &h;
    fill(tokens, 300, 0);
    assert_int_equal(append(&f, &a, 0, tokens, 150), QM_OK);
    assert_int_equal(qmi_page_table_share(&f.pool, &h.table, &a, 100), QM_OK);
    qmi_page_table_cut(&f.pool, &a, 90); /* the third page is free */
    assert_int_equal(append(&f, &a, 90, tokens + 90, 20), QM_OK);
    assert_int_equal(h.table.count, 2);
    assert_int_equal(append(&f, &a, 110, tokens + 110, 60), QM_OK);
    assert_int_equal(h.table.count, 0);
    assert_table(&f, &a, tokens, 170);
    assert_int_equal(append(&f, &a, 170, tokens + 170, 60), QM_ERROR_MEMORY);
    assert_table(&f, &a, tokens, 170);
    qmi_page_table_free(&f.pool, &a);
    end(&f);
}

static void survives_failing_allocations(void **state)
{
    (void)state;
    int32_t tokens[300];
    fill(tokens, 300, 0);
    for (int64_t n = 0, failed = 1; failed; n++) {
        fixture f;
        qmi_page_table a = { 0 }, b = { 0 };
        start(&f, 2, true, 0);
        assert_int_equal(append(&f, &a, 0, tokens, 100), QM_OK);
        f.device.counter.until_failure = n;
        int32_t code = qmi_page_table_share(&f.pool, &b, &a, 100);
        if (code >= 0)
            code = append(&f, &b, 100, tokens + 100, 200);
        failed = f.device.counter.failed;
        f.device.counter.until_failure = -1;
        assert_int_equal(code, failed ? QM_ERROR_MEMORY : QM_OK);
        assert_table(&f, &a, tokens, 100);
        assert_table(&f, &b, tokens, b.count == 0 ? 0 : failed ? 100 : 300);
        qmi_page_table_free(&f.pool, &a);
        qmi_page_table_free(&f.pool, &b);
        end(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_what_is_shared), cmocka_unit_test(shares_a_part), cmocka_unit_test(keeps_what_counts),
        cmocka_unit_test(says_when_it_is_empty),
        cmocka_unit_test(grows_and_shrinks),     cmocka_unit_test(reclaims),      cmocka_unit_test(survives_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
