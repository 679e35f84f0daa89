/* Ranks come together if they agree; whoever does not, does not come, falls silent or goes away is named on every rank. */
#include "ranks_scene.h"

#include "exchange/remote_message.h"

#define MODEL "oracle/qwen3.gguf"

/* The message of both sides names the rank and has the word. */
static void assert_named(const char *text, const char *name, const char *word)
{
    if (!strstr(text, name) || !strstr(text, word))
        fail_msg("\"%s\" should have \"%s\" and \"%s\"", text, name, word);
}

static void test_they_come_together_and_part(void **state)
{
    (void)state;
    driver d;
    rank_thread others[2] = { 0 };
    int32_t port = free_port();
    for (int32_t i = 0; i < 2; i++)
        start_rank(&others[i], i + 1, 3, port, "10", MODEL);
    assert_int_equal(start_driver(&d, 3, port, "10", MODEL), QM_OK);
    assert_int_equal(qmi_ranks_check(d.ranks), QM_OK);
    end_driver(&d);
    for (int32_t i = 0; i < 2; i++) {
        join_rank(&others[i]);
        assert_int_equal(others[i].code, QM_OK);
    }
}

/* One of two ranks differs: all three say which. */
static void assert_refused(void (*change)(qmi_rank_card *card), const char *model, const char *word)
{
    driver d;
    rank_thread others[2] = { 0 };
    int32_t port = free_port();
    others[1].change = change;
    start_rank(&others[0], 1, 3, port, "10", MODEL);
    start_rank(&others[1], 2, 3, port, "10", model);
    assert_true(start_driver(&d, 3, port, "10", MODEL) < 0);
    assert_null(d.ranks);
    assert_named(qmi_error_text(), "rank 2", word);
    end_driver(&d);
    for (int32_t i = 0; i < 2; i++) {
        join_rank(&others[i]);
        assert_true(others[i].code < 0);
        assert_named(others[i].text, "rank 2", word);
    }
}

static void older(qmi_rank_card *card)
{
    snprintf(card->version, sizeof card->version, "0.0.9");
}

static void other_build(qmi_rank_card *card)
{
    card->layout++;
}

static void other_option(qmi_rank_card *card)
{
    char *at = strstr(card->options, "kv-type=f16");
    assert_non_null(at);
    memcpy(at, "kv-type=q99", 11);
}

static void test_another_version_is_named(void **state)
{
    (void)state;
    assert_refused(older, MODEL, "version 0.0.9");
    assert_refused(other_build, MODEL, "another build");
}

static void test_another_file_is_named(void **state)
{
    (void)state;
    assert_refused(NULL, "oracle/qwen35.gguf", "qwen35.gguf");
}

static void test_another_option_is_named(void **state)
{
    (void)state;
    assert_refused(other_option, MODEL, "kv-type=q99");
}

static void test_who_does_not_come_is_named(void **state)
{
    (void)state;
    driver d;
    rank_thread other = { 0 };
    int32_t port = free_port();
    start_rank(&other, 1, 3, port, "10", MODEL);
    assert_int_equal(start_driver(&d, 3, port, "1", MODEL), QM_ERROR_OPTION); /* rank-timeout differs, which is told in the end */
    end_driver(&d);
    join_rank(&other);
    start_rank(&other, 1, 3, port, "1", MODEL);
    assert_int_equal(start_driver(&d, 3, port, "1", MODEL), QM_ERROR_DEVICE);
    assert_named(qmi_error_text(), "rank 2", "did not come");
    end_driver(&d);
    join_rank(&other);
    assert_int_equal(other.code, QM_ERROR_DEVICE);
    assert_named(other.text, "rank 2", "did not come");
}

static void test_nobody_to_call(void **state)
{
    (void)state;
    rank_thread other = { 0 };
    start_rank(&other, 1, 2, free_port(), "1", MODEL);
    join_rank(&other);
    assert_int_equal(other.code, QM_ERROR_DEVICE);
    assert_named(other.text, "rank 0", "within 1 s");
}

/* ---- ranks by hand ---- */

/* Calls rank 0 with its card and leaves the rest to the test. */
typedef struct raw_rank {
    qmi_os_thread *thread;
    int32_t port, socket;
    qmi_rank_card card;
} raw_rank;

static void call_raw(void *argument)
{
    raw_rank *r = argument;
    struct { uint32_t magic; uint16_t form, kind; int32_t code; uint32_t zero; int64_t bytes; } head = {
        0x514D5852u, 1, QMI_REMOTE_CARD, 0, 0, (int64_t)sizeof r->card };
    const qmi_os_part parts[] = { { &head, sizeof head }, { &r->card, sizeof r->card } };
    if (qmi_os_socket_connect("127.0.0.1", r->port, 10 * SECOND, &r->socket) >= 0)
        qmi_os_socket_send(r->socket, parts, 2, SECOND);
}

/* key NULL: that of the run. */
static void start_raw(raw_rank *r, int32_t rank, int32_t ranks, int32_t port, const char *timeout, const char *key)
{
    qmi_settings settings;
    qmi_parts parts;
    char path[512];
    *r = (raw_rank){ .port = port, .socket = -1 };
    start_settings(&settings, rank, ranks, port, timeout);
    path_of_model(MODEL, path);
    assert_int_equal(qmi_parts_open(path, &plain_alloc, &parts), QM_OK);
    assert_int_equal(qmi_rank_card_make(&settings, &parts, &r->card), QM_OK);
    qmi_parts_close(&parts, &plain_alloc);
    qmi_settings_end(&settings);
    if (key)
        strcpy(r->card.key, key);
    assert_int_equal(qmi_os_thread_start(&r->thread, call_raw, r, "raw"), QM_OK);
}

/* Waits for the end of the run, which comes by itself. */
static void wait_for_end(driver *d)
{
    int64_t end = qmi_os_time_ns() + 10 * SECOND;
    while (qmi_ranks_check(d->ranks) >= 0 && qmi_os_time_ns() < end)
        qmi_os_yield();
}

/* Rank 2 joins and then does what the test says; rank 1 and rank 0 both name it. */
static void assert_ends(void (*misbehave)(raw_rank *r), const char *word)
{
    driver d;
    rank_thread other = { 0 };
    raw_rank raw;
    int32_t port = free_port();
    start_rank(&other, 1, 3, port, "1", MODEL);
    start_raw(&raw, 2, 3, port, "1", NULL);
    assert_int_equal(start_driver(&d, 3, port, "1", MODEL), QM_OK);
    qmi_os_thread_join(&raw.thread);
    misbehave(&raw);
    wait_for_end(&d);
    assert_true(qmi_ranks_check(d.ranks) < 0);
    assert_named(qmi_error_text(), "rank 2", word);
    join_rank(&other);
    assert_true(other.code < 0);
    assert_named(other.text, "rank 2", word);
    end_driver(&d);
    qmi_os_socket_close(&raw.socket);
}

static void vanish(raw_rank *r)
{
    qmi_os_socket_close(&r->socket);
}

static void keep_silent(raw_rank *r)
{
    (void)r;
}

static void talk_nonsense(raw_rank *r)
{
    const qmi_os_part part = { "GET / HTTP/1.1\r\nHost: rank\r\n\r\n", 30 };
    qmi_os_socket_send(r->socket, &part, 1, SECOND);
}

static void send_too_much(raw_rank *r)
{
    struct { uint32_t magic; uint16_t form, kind; int32_t code; uint32_t zero; int64_t bytes; } head = {
        0x514D5852u, 1, QMI_REMOTE_REPLY, 0, 0, INT64_C(1) << 40 };
    const qmi_os_part part = { &head, sizeof head };
    qmi_os_socket_send(r->socket, &part, 1, SECOND);
}

static void test_who_vanishes_is_named(void **state)
{
    (void)state;
    assert_ends(vanish, "connection");
}

static void test_who_is_silent_is_named(void **state)
{
    (void)state;
    assert_ends(keep_silent, "silent");
}

static void test_who_talks_nonsense_is_named(void **state)
{
    (void)state;
    assert_ends(talk_nonsense, "something else");
    assert_ends(send_too_much, "bytes");
}

static void test_who_is_cancelled_is_named(void **state)
{
    (void)state;
    driver d;
    rank_thread others[2] = { 0 };
    int32_t port = free_port();
    for (int32_t i = 0; i < 2; i++)
        start_rank(&others[i], i + 1, 3, port, "10", MODEL);
    assert_int_equal(start_driver(&d, 3, port, "10", MODEL), QM_OK);
    __atomic_store_n(&others[0].cancel, 1, __ATOMIC_RELEASE);
    wait_for_end(&d);
    assert_int_equal(qmi_ranks_check(d.ranks), QM_ERROR_DEVICE);
    assert_named(qmi_error_text(), "rank 1", "cancelled");
    join_rank(&others[0]);
    join_rank(&others[1]);
    assert_int_equal(others[0].code, QM_ERROR_CANCELLED);
    assert_named(others[1].text, "rank 1", "cancelled");
    end_driver(&d);
}

/* Someone of another run, and someone who says nothing that is known, are sent away, and the run begins. */
static void test_strangers_are_sent_away(void **state)
{
    (void)state;
    driver d;
    rank_thread other = { 0 };
    raw_rank raw[2];
    int32_t port = free_port();
    for (int32_t i = 0; i < 2; i++)
        start_raw(&raw[i], 1, 2, port, "10", i ? "other" : "");
    start_rank(&other, 1, 2, port, "10", MODEL);
    int32_t code = start_driver(&d, 2, port, "10", MODEL);
    for (int32_t i = 0; i < 2; i++) {
        qmi_os_thread_join(&raw[i].thread);
        qmi_os_socket_close(&raw[i].socket);
    }
    assert_int_equal(code, QM_OK);
    end_driver(&d);
    join_rank(&other);
    assert_int_equal(other.code, QM_OK);
}

static void test_ids(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "host", "host:1", "host:1/", ":1/k", "host:/k", "host:0/k", "host:65536/k",
                                         "host:x/k" };
    qmi_rank_id id;
    assert_int_equal(qmi_rank_id_read("node1:7000/a key", &id), QM_OK);
    assert_string_equal(id.host, "node1");
    assert_int_equal(id.port, 7000);
    assert_string_equal(id.key, "a key");
    assert_int_equal(qmi_rank_id_read("[::1]:65535/k", &id), QM_OK);
    assert_string_equal(id.host, "::1");
    assert_int_equal(id.port, 65535);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(qmi_rank_id_read(wrong[i], &id), QM_ERROR_OPTION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_they_come_together_and_part),
        cmocka_unit_test(test_another_version_is_named),
        cmocka_unit_test(test_another_file_is_named),
        cmocka_unit_test(test_another_option_is_named),
        cmocka_unit_test(test_who_does_not_come_is_named),
        cmocka_unit_test(test_nobody_to_call),
        cmocka_unit_test(test_who_vanishes_is_named),
        cmocka_unit_test(test_who_is_silent_is_named),
        cmocka_unit_test(test_who_talks_nonsense_is_named),
        cmocka_unit_test(test_who_is_cancelled_is_named),
        cmocka_unit_test(test_strangers_are_sent_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
