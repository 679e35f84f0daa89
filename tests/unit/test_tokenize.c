/* The whole way from text to tokens, on a vocabulary small enough to reason about; the real ones are in tests/oracle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "base/error.h"
#include "base/os.h"
#include "failing_alloc.h"
#include "small_vocab.h"
#include "text/detokenize.h"
#include "text/unicode.h"

static const qmi_alloc alloc = { 0 };
static small_vocab small;
static qmi_vocab *vocab;
static int32_t the, end_mark, think; /* tokens */

static int set_up(void **state)
{
    (void)state;
    small_vocab_start(&small, "qwen35");
    small_vocab_merge(&small, "h", "e");
    the = small_vocab_merge(&small, "t", "he");
    end_mark = small_vocab_token(&small, "<|im_end|>", QMI_TOKEN_CONTROL);
    think = small_vocab_token(&small, "<think>", QMI_TOKEN_USER_DEFINED);
    return qmi_vocab_new(small_vocab_source(&small), &alloc, &(qmi_log){ 0 }, &vocab);
}

static int tear_down(void **state)
{
    (void)state;
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
    return 0;
}

static void assert_ids(const char *text, int32_t special, const int32_t *expected, size_t count)
{
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, text, (int64_t)strlen(text), special, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, count);
    if (count)
        assert_memory_equal(ids.data, expected, count * sizeof *expected);
    qmi_delete(&alloc, ids.data);
}
#define ASSERT_IDS(text, special, ...) \
    assert_ids(text, special, (const int32_t[]){ __VA_ARGS__ }, sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t))

static void test_special_modes(void **state)
{
    (void)state;
    assert_ids("", QM_SPECIAL_ALL, NULL, 0);
    ASSERT_IDS("the the", QM_SPECIAL_NONE, the, ' ', the);
    ASSERT_IDS("t'he", QM_SPECIAL_NONE, 't', '\'', 256); /* no merge over the cut */
    ASSERT_IDS("<think>", QM_SPECIAL_NONE, '<', 't', 'h', 'i', 'n', 'k', '>');
    ASSERT_IDS("the<think>the<|im_end|>", QM_SPECIAL_ALL, the, think, the, end_mark);
    ASSERT_IDS("<think><|im_end|>", QM_SPECIAL_USER, think, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
}

/* Each stretch between added tokens is normalised and cut alone: a mark after one meets nothing. */
static void test_stretches_are_separate(void **state)
{
    (void)state;
    ASSERT_IDS("e\u0301", QM_SPECIAL_ALL, 0xc3, 0xa9);
    ASSERT_IDS("<think\u226f", QM_SPECIAL_ALL, '<', 't', 'h', 'i', 'n', 'k', 0xe2, 0x89, 0xaf); /* > with U+0338, composed */
    ASSERT_IDS("<think>\u0338", QM_SPECIAL_ALL, think, 0xcc, 0xb8);
    ASSERT_IDS("<think>\u0338", QM_SPECIAL_NONE, '<', 't', 'h', 'i', 'n', 'k', 0xe2, 0x89, 0xaf);
    ASSERT_IDS("e<think>\u0301", QM_SPECIAL_ALL, 'e', think, 0xcc, 0x81);
}

/* No token that touches a literal stretch is recognised, and text is merged across its ends as ever. */
static void test_literal_stretches(void **state)
{
    (void)state;
    const char *text = "<think>the<think><|im_end|><think>"; /* 0, 7, 10, 17, 27 .. 34 */
    const struct qmi_stretch stretches[] = { { 8, 12 }, { 12, 17 }, { 20, 34 } };
    const qmi_stretches literal = { (struct qmi_stretch *)stretches, 3, 3 };
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize_around(vocab, text, 34, QM_SPECIAL_ALL, &literal, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, 1 + 1 + 7 + 10 + 7);
    assert_int_equal(ids.data[0], think);
    assert_int_equal(ids.data[1], the);
    for (size_t i = 2; i < ids.count; i++)
        assert_int_equal(ids.data[i], (unsigned char)text[10 + i - 2]);
    qmi_delete(&alloc, ids.data);
}

static void test_appends_and_keeps_what_was_there(void **state)
{
    (void)state;
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, "the", 3, QM_SPECIAL_NONE, &alloc, &ids), QM_OK);
    assert_int_equal(qmi_tokenize(vocab, "<think>x", 8, QM_SPECIAL_ALL, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, 3);
    assert_int_equal(qmi_tokenize(vocab, "good\n\xed\xa0\x80", 8, QM_SPECIAL_NONE, &alloc, &ids), QM_ERROR_TEXT);
    assert_non_null(strstr(qmi_error_text(), "byte 0xed at offset 5"));
    assert_int_equal(qmi_tokenize(vocab, "x", 1, 3, &alloc, &ids), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_tokenize(vocab, "x", -1, QM_SPECIAL_NONE, &alloc, &ids), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_tokenize(vocab, NULL, 0, QM_SPECIAL_NONE, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, 3);
    assert_int_equal(ids.data[0], the);
    assert_int_equal(ids.data[1], think);
    assert_int_equal(ids.data[2], 'x');
    qmi_delete(&alloc, ids.data);
}

/* Random text of old characters: back again gives its NFC, as utf8proc has it. Long enough texts use the cache. */
static void test_back_again_is_nfc(void **state)
{
    (void)state;
    static const uint32_t pool[] = {
        't', 'h', 'e', ' ', '\n', '\'', '1', '<', '.', 0x301, 0x323, 0xe9, 0x4e2d, 0x1f642, 0x3000, 0xac00, 0x11a8,
    };
    static char text[4 * 6000 + 1], back[3 * sizeof text];
    uint64_t seed = 3;
    for (size_t round = 0; round < 60; round++) {
        size_t length = 0, count = round % 10 == 0 ? 6000 : 1 + round;
        for (size_t i = 0; i < count; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            length += (size_t)qmi_unicode_encode(pool[(seed >> 33) % (sizeof pool / sizeof *pool)], text + length);
        }
        text[length] = 0;
        utf8proc_uint8_t *expected = utf8proc_NFC((const utf8proc_uint8_t *)text);
        assert_non_null(expected);
        qmi_ids ids = { 0 };
        assert_int_equal(qmi_tokenize(vocab, text, (int64_t)length, QM_SPECIAL_NONE, &alloc, &ids), QM_OK);
        int64_t back_length = qmi_detokenize(vocab, ids.data, (int64_t)ids.count, false, back, sizeof back);
        assert_int_equal(back_length, strlen((const char *)expected));
        assert_string_equal(back, (const char *)expected);
        qmi_delete(&alloc, ids.data);
        free(expected);
    }
}

static void test_memory_may_fail_anywhere(void **state)
{
    (void)state;
    static char text[5000];
    memset(text, 'a', sizeof text); /* a long piece, a cache, and with the end a text to normalise */
    memcpy(text + sizeof text - 30, "<think> the e\xcc\x81 the <think> the ", 30);
    for (int64_t n = 0;; n++) {
        failing_alloc failing = { .until_failure = n };
        qmi_alloc hook = failing_hook(&failing);
        qmi_ids ids = { 0 };
        int32_t code = qmi_tokenize(vocab, text, sizeof text, QM_SPECIAL_ALL, &hook, &ids);
        qmi_delete(&hook, ids.data);
        assert_int_equal(failing.live, 0);
        if (code == QM_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(code, QM_ERROR_MEMORY);
        assert_int_equal(ids.count, 0);
    }
}

/* ---- threads ---- */

#define THREADS 4

typedef struct shared_work {
    char text[500 * 17]; /* of the sample below */
    qmi_ids expected;
    int32_t faults[THREADS];
} shared_work;

typedef struct worker {
    shared_work *shared;
    int32_t index;
} worker;

/* No cmocka here: its assertions belong to the main thread. */
static void tokenize_often(void *argument)
{
    worker *own = argument;
    shared_work *shared = own->shared;
    for (int32_t round = 0; round < 20; round++) {
        qmi_ids ids = { 0 };
        int32_t code = qmi_tokenize(vocab, shared->text, sizeof shared->text, QM_SPECIAL_ALL, &alloc, &ids);
        if (code < 0 || ids.count != shared->expected.count ||
            memcmp(ids.data, shared->expected.data, ids.count * sizeof *ids.data) != 0 ||
            qmi_vocab_find(vocab, "<think>", 7) != think || qmi_vocab_find(vocab, "thee", 4) != -1)
            shared->faults[own->index]++;
        qmi_delete(&alloc, ids.data);
    }
}

static void test_threads_share_a_vocabulary(void **state)
{
    (void)state;
    static const char sample[] = "the <think>1 e\xcc\x81\n";
    static shared_work shared;
    qmi_os_thread *threads[THREADS] = { NULL };
    worker workers[THREADS];
    for (size_t i = 0; i < sizeof shared.text; i++)
        shared.text[i] = sample[i % (sizeof sample - 1)];
    assert_int_equal(sizeof shared.text % (sizeof sample - 1), 0); /* it ends with a whole character */
    assert_int_equal(qmi_tokenize(vocab, shared.text, sizeof shared.text, QM_SPECIAL_ALL, &alloc, &shared.expected), QM_OK);
    for (int32_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){ &shared, i };
        assert_int_equal(qmi_os_thread_start(&threads[i], tokenize_often, &workers[i], "tokenize"), QM_OK);
    }
    for (int32_t i = 0; i < THREADS; i++)
        qmi_os_thread_join(&threads[i]);
    for (int32_t i = 0; i < THREADS; i++)
        assert_int_equal(shared.faults[i], 0);
    qmi_delete(&alloc, shared.expected.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_special_modes),
        cmocka_unit_test(test_stretches_are_separate),
        cmocka_unit_test(test_literal_stretches),
        cmocka_unit_test(test_appends_and_keeps_what_was_there),
        cmocka_unit_test(test_back_again_is_nfc),
        cmocka_unit_test(test_memory_may_fail_anywhere),
        cmocka_unit_test(test_threads_share_a_vocabulary),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
