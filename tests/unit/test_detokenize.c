/* Tokens to text: all at once by snprintf's rules, and as a stream of whole code points. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "small_vocab.h"
#include "text/detokenize.h"

static const qmi_alloc alloc = { 0 };
static small_vocab small;
static qmi_vocab *vocab;

/* "he" 256, a control token 257, a user-defined one 258, an unused one 259 */
static int set_up(void **state)
{
    (void)state;
    small_vocab_start(&small, "qwen2");
    small_vocab_merge(&small, "h", "e");
    small_vocab_token(&small, "<|im_end|>", QMI_TOKEN_CONTROL);
    small_vocab_token(&small, "<think>", QMI_TOKEN_USER_DEFINED);
    small_vocab_token(&small, "[PAD]", QMI_TOKEN_UNUSED);
    return qmi_vocab_new(small_vocab_source(&small), &alloc, &(qmi_log){ 0 }, &vocab);
}

static int tear_down(void **state)
{
    (void)state;
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
    return 0;
}

static void test_snprintf_rules(void **state)
{
    (void)state;
    const int32_t tokens[] = { 't', 256, 257, 258, 259, 0xc3 };
    char text[32];
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, false, NULL, 0), 21);
    memset(text, 'x', sizeof text);
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, false, text, sizeof text), 21);
    assert_string_equal(text, "the<|im_end|><think>\xc3");
    assert_int_equal(text[22], 'x');
    memset(text, 'x', sizeof text);
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, false, text, 22), 21);
    assert_string_equal(text, "the<|im_end|><think>\xc3");
    memset(text, 'x', sizeof text);
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, false, text, 8), 21);
    assert_memory_equal(text, "the<|im\0x", 9);
    memset(text, 'x', sizeof text);
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, false, text, 1), 21);
    assert_memory_equal(text, "\0x", 2);
    assert_int_equal(qmi_detokenize(vocab, tokens, 6, true, text, sizeof text), 11);
    assert_string_equal(text, "the<think>\xc3");
    assert_int_equal(qmi_detokenize(vocab, NULL, 0, true, text, sizeof text), 0);
    assert_string_equal(text, "");
}

static void test_bad_arguments(void **state)
{
    (void)state;
    char text[8];
    assert_int_equal(qmi_detokenize(vocab, (const int32_t[]){ 'a', 260 }, 2, false, text, sizeof text), QM_ERROR_ARGUMENT);
    assert_non_null(strstr(qmi_error_text(), "token 260 at index 1"));
    assert_int_equal(qmi_detokenize(vocab, (const int32_t[]){ -1 }, 1, true, text, sizeof text), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_detokenize(vocab, NULL, 1, false, text, sizeof text), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_detokenize(vocab, NULL, -1, false, text, sizeof text), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_detokenize(vocab, NULL, 0, false, NULL, 5), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_detokenize(vocab, NULL, 0, false, text, -1), QM_ERROR_ARGUMENT);
}

/* Feeds `text` in pieces of `step` bytes; each piece's buffer is as large as promised and no larger. */
static void stream(const char *text, int64_t length, int64_t step, char *out)
{
    qmi_detokenizer detokenizer = { 0 };
    int64_t written = 0;
    for (int64_t at = 0; at < length; at += step) {
        int64_t count = length - at < step ? length - at : step;
        char *room = malloc((size_t)(3 * count + QMI_DETOKENIZE_EXTRA));
        assert_non_null(room);
        int64_t got = qmi_detokenizer_push(&detokenizer, text + at, count, room);
        assert_in_range(got, 0, 3 * count + QMI_DETOKENIZE_EXTRA);
        memcpy(out + written, room, (size_t)got);
        written += got;
        free(room);
        assert_true(got == 0 || (detokenizer.pending_count < 4 && ((uint8_t)out[written - 1] < 0x80 || got >= 2)));
    }
    written += qmi_detokenizer_end(&detokenizer, out + written);
    assert_int_equal(detokenizer.pending_count, 0);
    out[written] = 0;
}

#define R "\ufffd"

static void test_stream_in_any_pieces(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *text;
    } rows[] = {
        { "plain", "plain" },
        { "\u00e9\u4e2d\U0001f642!", "\u00e9\u4e2d\U0001f642!" },
        /* The Unicode Standard 16, tables 3-8 to 3-11 */
        { "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", R R R R R R R R "A" },
        { "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", R R R R R R R R "A" },
        { "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", R R R R R "A" R R "B" },
        { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A" },
        { "x\xf0\x9f\x99", "x" R },
        { "\xf0\x9f\xf0\x9f\x99\x82", R "\U0001f642" },
        { "\xc3\xc3\xa9", R "\u00e9" },
        { "\xe2\x82", R },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t length = (int64_t)strlen(rows[i].bytes);
        for (int64_t step = 1; step <= length; step++) {
            char out[128];
            stream(rows[i].bytes, length, step, out);
            assert_string_equal(out, rows[i].text);
        }
    }
}

/* A code point comes with its last byte, not before. */
static void test_stream_waits_for_whole_code_points(void **state)
{
    (void)state;
    qmi_detokenizer detokenizer = { 0 };
    char out[32];
    assert_int_equal(qmi_detokenizer_push(&detokenizer, "a\xf0\x9f", 3, out), 1);
    assert_int_equal(qmi_detokenizer_push(&detokenizer, "\x99", 1, out), 0);
    assert_int_equal(qmi_detokenizer_push(&detokenizer, "\x82z", 2, out), 5);
    assert_memory_equal(out, "\U0001f642z", 5);
    assert_int_equal(qmi_detokenizer_end(&detokenizer, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snprintf_rules),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_stream_in_any_pieces),
        cmocka_unit_test(test_stream_waits_for_whole_code_points),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
