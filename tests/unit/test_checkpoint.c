/* Checkpoints: which one is found, which one has to go, and that pages and states go with it. */
#include "pool_device.h"

#include "memory/checkpoint.h"

#define PAGE_TOKENS 64
static const qmi_kv_layout layout = { .page_tokens = PAGE_TOKENS, .page_bytes = 1024 };
static const qmi_state_layout recurrent = { .recurrent_bytes = 128, .logits_bytes = 64, .bytes = 192 };
static const qmi_state_layout attention = { .logits_bytes = 64, .bytes = 64 };

typedef struct fixture {
    pool_device device;
    qmi_page_pool pages;
    qmi_state_pool states;
    qmi_checkpoints store;
} fixture;

static void start(fixture *f, const qmi_state_layout *state, int64_t pages, int32_t limit)
{
    pool_device_start(&f->device, 0);
    assert_int_equal(qmi_page_pool_open(&f->pages, &layout, &qmi_cpu_backend, f->device.device, &f->device.alloc, pages, false),
                     QM_OK);
    assert_int_equal(qmi_state_pool_open(&f->states, state, &qmi_cpu_backend, f->device.device, &f->device.alloc), QM_OK);
    assert_int_equal(qmi_checkpoints_open(&f->store, &f->pages, &f->states, &f->device.alloc, limit), QM_OK);
}

static void end(fixture *f)
{
    qmi_checkpoints_close(&f->store);
    assert_int_equal(f->pages.free_count, f->pages.count);
    assert_int_equal(f->states.free_count, f->states.count);
    qmi_page_pool_close(&f->pages);
    qmi_state_pool_close(&f->states);
    pool_device_end(&f->device);
}

/* What a session holds. */
typedef struct held {
    qmi_page_table pages;
    int64_t count;
} held;

static void append(fixture *f, held *s, const int32_t *tokens, int64_t count)
{
    assert_int_equal(qmi_page_table_own(&f->pages, &s->pages, s->count, s->count, s->count + count), QM_OK);
    qmi_page_table_note(&f->pages, &s->pages, s->count, tokens, count);
    s->count += count;
}

static void keep(fixture *f, const held *s, qmi_checkpoint_kind kind)
{
    qmi_state *state;
    assert_int_equal(qmi_state_take(&f->states, &state), QM_OK);
    qmi_checkpoints_keep(&f->store, &s->pages, s->count, state, kind);
    qmi_state_release(&f->states, &state);
}

/* The length that is found for some tokens. */
static int64_t find(fixture *f, const int32_t *tokens, int64_t count)
{
    int64_t length;
    qmi_page_query query = qmi_page_query_start(&f->pages, tokens, count);
    const qmi_checkpoint *found = qmi_checkpoints_find(&f->store, &query, &length);
    assert_int_equal(found != NULL, length > 0);
    return length;
}

static void fill(int32_t *tokens, int64_t count, int32_t first)
{
    for (int64_t i = 0; i < count; i++)
        tokens[i] = first + (int32_t)i;
}

static void finds_the_longest(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[400];
    held a = { 0 };
    start(&f, &recurrent, 20, 10);
    fill(tokens, 400, 0);
    assert_int_equal(find(&f, tokens, 400), 0);
    for (int i = 0; i < 3; i++) {
        append(&f, &a, tokens + a.count, 100);
        keep(&f, &a, QMI_CHECKPOINT_PASSED);
    }
    assert_int_equal(find(&f, tokens, 400), 300);
    assert_int_equal(find(&f, tokens, 299), 200);
    assert_int_equal(find(&f, tokens, 100), 100);
    assert_int_equal(find(&f, tokens, 99), 0);
    tokens[250] = -1;
    assert_int_equal(find(&f, tokens, 400), 200);
    tokens[0] = -1;
    assert_int_equal(find(&f, tokens, 400), 0);
    keep(&f, &a, QMI_CHECKPOINT_TURN); /* the same tokens again */
    assert_int_equal(f.store.count, 3);
    qmi_page_table_free(&f.pages, &a.pages);
    end(&f);
}

static void finds_parts_without_recurrent_state(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[300];
    held a = { 0 };
    start(&f, &attention, 20, 10);
    fill(tokens, 300, 0);
    append(&f, &a, tokens, 300);
    keep(&f, &a, QMI_CHECKPOINT_LEFT);
    qmi_page_table_free(&f.pages, &a.pages);
    assert_int_equal(find(&f, tokens, 170), 170);
    tokens[130] = -1;
    assert_int_equal(find(&f, tokens, 300), 130);
    assert_int_equal(f.states.free_count, f.states.count); /* no state is kept */
    end(&f);
}

/* What is long ago becomes sparse; where turns begin, and the last ones, stay. */
static void drops_the_least(void **state)
{
    (void)state;
    enum { COUNT = 100, EACH = 64 };
    static int32_t tokens[COUNT * EACH];
    fixture f;
    held a = { 0 };
    start(&f, &recurrent, COUNT + 10, 12);
    fill(tokens, COUNT * EACH, 0);
    for (int i = 0; i < COUNT; i++) {
        append(&f, &a, tokens + a.count, EACH);
        keep(&f, &a, i == 4 || i == 39 ? QMI_CHECKPOINT_TURN : QMI_CHECKPOINT_PASSED);
    }
    assert_int_equal(f.store.count, 12);
    int64_t early = 0, late = 0;
    bool turn = false;
    for (int32_t i = 0; i < f.store.count; i++) {
        early += f.store.list[i].length <= COUNT * EACH / 2;
        late += f.store.list[i].length > COUNT * EACH / 2;
        turn |= f.store.list[i].length == 40 * EACH;
    }
    assert_true(early >= 1 && late > early && turn);
    assert_int_equal(find(&f, tokens, COUNT * EACH), COUNT * EACH);
    assert_true(find(&f, tokens, COUNT * EACH - 1) >= (COUNT - 3) * EACH);
    qmi_page_table_free(&f.pages, &a.pages);
    end(&f);
}

/* A page that is needed is taken from checkpoints of sessions that are gone, and from no others: they would free none. */
static void gives_pages_back(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[640], others[640];
    held a = { 0 }, b = { 0 };
    start(&f, &recurrent, 10, 10);
    fill(tokens, 640, 0);
    fill(others, 640, 1000);
    append(&f, &a, tokens, 256);
    keep(&f, &a, QMI_CHECKPOINT_PASSED);
    append(&f, &b, others, 128);
    keep(&f, &b, QMI_CHECKPOINT_TURN);
    append(&f, &b, others + 128, 64);
    keep(&f, &b, QMI_CHECKPOINT_TURN);
    qmi_page_table_free(&f.pages, &b.pages);
    append(&f, &a, tokens + 256, 3 * 64); /* all 10 pages are in use */
    assert_int_equal(f.store.count, 3);
    append(&f, &a, tokens + 64 * 7, 64);
    assert_int_equal(f.store.count, 2);
    assert_int_equal(find(&f, others, 640), 128);
    append(&f, &a, tokens + 64 * 8, 64 * 2);
    assert_int_equal(f.store.count, 1);
    assert_int_equal(find(&f, others, 640), 0);
    assert_int_equal(find(&f, tokens, 640), 256);
    qmi_page_table_cut(&f.pages, &a.pages, 0);
    qmi_page_table_free(&f.pages, &a.pages);
    end(&f);
}

static void keeps_none_without_a_budget(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[100];
    held a = { 0 };
    start(&f, &recurrent, 10, 0);
    fill(tokens, 100, 0);
    append(&f, &a, tokens, 100);
    keep(&f, &a, QMI_CHECKPOINT_TURN);
    assert_int_equal(find(&f, tokens, 100), 0);
    qmi_page_table_free(&f.pages, &a.pages);
    end(&f);
}

/* Where the device has no memory for another state, one that is only kept is given up. */
static void gives_states_back(void **state)
{
    (void)state;
    fixture f;
    int32_t tokens[300];
    held a = { 0 };
    qmi_state *mine[3];
    start(&f, &recurrent, 10, 10);
    fill(tokens, 300, 0);
    for (int i = 0; i < 3; i++) {
        append(&f, &a, tokens + a.count, 100);
        keep(&f, &a, QMI_CHECKPOINT_PASSED);
    }
    assert_int_equal(f.states.count, 3);
    f.device.counter.until_failure = 0;
    for (int i = 0; i < 3; i++)
        assert_int_equal(qmi_state_take(&f.states, &mine[i]), QM_OK);
    assert_int_equal(f.store.count, 0);
    assert_int_equal(qmi_state_take(&f.states, &(qmi_state *){ NULL }), QM_ERROR_MEMORY);
    f.device.counter.until_failure = -1;
    for (int i = 0; i < 3; i++)
        qmi_state_release(&f.states, &mine[i]);
    qmi_page_table_free(&f.pages, &a.pages);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_the_longest), cmocka_unit_test(finds_parts_without_recurrent_state),
        cmocka_unit_test(drops_the_least),   cmocka_unit_test(gives_pages_back),
        cmocka_unit_test(keeps_none_without_a_budget), cmocka_unit_test(gives_states_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
