/* Vocabularies from sound arrays and from damaged ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "small_vocab.h"

static const qmi_alloc alloc = { 0 };

typedef struct kept_log {
    int32_t lines, level;
    char last[QMI_ERROR_SIZE];
} kept_log;

static void keep_line(int32_t level, const char *line, void *user)
{
    kept_log *log = user;
    log->lines++;
    log->level = level;
    snprintf(log->last, sizeof log->last, "%s", line);
}

/* 256 bytes, "he" 256, "th" 257, "the" 258, then the added ones from 259. */
static void make_small(small_vocab *small)
{
    small_vocab_start(small, "qwen35");
    small_vocab_merge(small, "h", "e");
    small_vocab_merge(small, "t", "h");
    small_vocab_merge(small, "t", "he");
    small_vocab_token(small, "<|im_end|>", QMI_TOKEN_CONTROL);
    small_vocab_token(small, "<think>", QMI_TOKEN_USER_DEFINED);
    small_vocab_token(small, "<|fim_prefix|>", QMI_TOKEN_CONTROL);
    small_vocab_token(small, "[PAD262]", QMI_TOKEN_UNUSED);
    small_vocab_token(small, "\u4e2d th", QMI_TOKEN_NORMAL); /* not in GPT-2's alphabet: kept as it is */
    small_vocab_token(small, "", QMI_TOKEN_CONTROL);
    small->source.eos = 259;
    small->source.pad = 262;
}

static void test_facts(void **state)
{
    (void)state;
    small_vocab small;
    make_small(&small);
    kept_log kept = { 0 };
    const qmi_log log = { keep_line, &kept };
    qmi_vocab *vocab = NULL;
    assert_int_equal(qmi_vocab_new(small_vocab_source(&small), &alloc, &log, &vocab), QM_OK);
    small_vocab_free(&small); /* nothing of the source is needed any more */
    assert_int_equal(kept.lines, 0);
    assert_int_equal(qmi_vocab_size(vocab), 265);
    assert_int_equal(qmi_vocab_eos(vocab), 259);
    assert_int_equal(qmi_vocab_pad(vocab), 262);
    static const struct {
        int32_t token, kind;
        bool hidden;
        const char *bytes;
    } rows[] = {
        { 'a', QMI_TOKEN_NORMAL, false, "a" }, { ' ', QMI_TOKEN_NORMAL, false, " " }, { '\n', QMI_TOKEN_NORMAL, false, "\n" },
        { 0x7f, QMI_TOKEN_NORMAL, false, "\x7f" }, { 0xa0, QMI_TOKEN_NORMAL, false, "\xa0" },
        { 0xad, QMI_TOKEN_NORMAL, false, "\xad" },
        { 0xff, QMI_TOKEN_NORMAL, false, "\xff" }, { 258, QMI_TOKEN_NORMAL, false, "the" },
        { 259, QMI_TOKEN_CONTROL, true, "<|im_end|>" }, { 260, QMI_TOKEN_USER_DEFINED, false, "<think>" },
        { 261, QMI_TOKEN_CONTROL, false, "<|fim_prefix|>" }, { 262, QMI_TOKEN_UNUSED, false, "" },
        { 263, QMI_TOKEN_NORMAL, false, "\u4e2d th" }, { 264, QMI_TOKEN_CONTROL, true, "" },
        { -1, QMI_TOKEN_UNUSED, true, "" }, { 265, QMI_TOKEN_UNUSED, true, "" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t length = -1;
        const char *bytes = qmi_vocab_bytes(vocab, rows[i].token, &length);
        assert_int_equal(qmi_vocab_kind(vocab, rows[i].token), rows[i].kind);
        assert_int_equal(qmi_vocab_hidden(vocab, rows[i].token), rows[i].hidden);
        assert_int_equal(length, strlen(rows[i].bytes));
        assert_memory_equal(bytes, rows[i].bytes, (size_t)length);
    }
    int64_t zero = -1;
    assert_int_equal(*qmi_vocab_bytes(vocab, 0, &zero), 0);
    assert_int_equal(zero, 1);
    assert_int_equal(qmi_vocab_find(vocab, "the", 3), 258);
    assert_int_equal(qmi_vocab_find(vocab, "\xff", 1), 255);
    assert_int_equal(qmi_vocab_find(vocab, "<think>", 7), 260);
    assert_int_equal(qmi_vocab_find(vocab, "<think", 6), -1);
    assert_int_equal(qmi_vocab_find(vocab, "[PAD262]", 8), -1);
    assert_int_equal(qmi_vocab_find(vocab, "", 0), -1);
    qmi_vocab_free(&vocab);
    assert_null(vocab);
    qmi_vocab_free(&vocab);
}

static void test_all_normal_without_types(void **state)
{
    (void)state;
    small_vocab small;
    make_small(&small);
    small_vocab_source(&small);
    small.source.types = NULL;
    small.source.type_count = 0;
    qmi_vocab *vocab = NULL;
    assert_int_equal(qmi_vocab_new(&small.source, &alloc, &(qmi_log){ 0 }, &vocab), QM_OK);
    assert_int_equal(qmi_vocab_kind(vocab, 259), QMI_TOKEN_NORMAL);
    assert_int_equal(qmi_vocab_find(vocab, "<|im_end|>", 10), 259);
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, "<|im_end|>", 10, QM_SPECIAL_ALL, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, 10); /* nothing was added */
    qmi_delete(&alloc, ids.data);
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
}

/* What a damaged file may have; each is refused with a code and a message that holds this. */
static void assert_refused(small_vocab *small, int32_t code, const char *message)
{
    qmi_vocab *vocab = (qmi_vocab *)small;
    assert_int_equal(qmi_vocab_new(&small->source, &alloc, &(qmi_log){ 0 }, &vocab), code);
    assert_null(vocab);
    if (!strstr(qmi_error_text(), message))
        fail_msg("\"%s\" does not say \"%s\"", qmi_error_text(), message);
    small_vocab_free(small);
}

static void test_damaged_sources(void **state)
{
    (void)state;
    small_vocab s;
#define DAMAGED(change, code, message) (make_small(&s), small_vocab_source(&s), change, assert_refused(&s, code, message))
    DAMAGED(s.source.pre = "gpt-4o", QM_ERROR_UNSUPPORTED, "\"gpt-4o\"");
    DAMAGED(s.source.pre = NULL, QM_ERROR_FORMAT, "tokenizer.ggml.pre");
    DAMAGED(s.source.tokens = NULL, QM_ERROR_FORMAT, "tokenizer.ggml.tokens");
    DAMAGED(s.source.token_count = 0, QM_ERROR_FORMAT, "tokenizer.ggml.tokens");
    DAMAGED(s.source.token_count = -5, QM_ERROR_FORMAT, "tokenizer.ggml.tokens");
    DAMAGED(s.source.token_count = INT64_MAX, QM_ERROR_FORMAT, "9223372036854775807");
    DAMAGED(s.source.type_count = 17, QM_ERROR_FORMAT, "17 entries for 265");
    DAMAGED(s.source.merge_count = -1, QM_ERROR_FORMAT, "tokenizer.ggml.merges");
    DAMAGED(s.source.merge_count = INT64_MAX, QM_ERROR_FORMAT, "tokenizer.ggml.merges");
    DAMAGED(s.source.merges = NULL, QM_ERROR_FORMAT, "tokenizer.ggml.merges");
    DAMAGED(s.source.eos = 265, QM_ERROR_FORMAT, "tokenizer.ggml.eos_token_id is 265");
    DAMAGED(s.source.pad = -2, QM_ERROR_FORMAT, "tokenizer.ggml.padding_token_id is -2");
    DAMAGED(memset(s.tokens.bytes, 0xff, 8), QM_ERROR_FORMAT, "string 0 of 18446744073709551615 bytes");
    DAMAGED(memset(s.merges.bytes, 0xff, 8), QM_ERROR_FORMAT, "tokenizer.ggml.merges: string 0");
    DAMAGED(s.types.bytes[4 * 3] = 7, QM_ERROR_FORMAT, "token 3 has type 7");
    DAMAGED(s.types.bytes[4 * 4] = 0, QM_ERROR_FORMAT, "token 4 has type 0");
    DAMAGED(s.types.bytes[4 * 5 + 3] = 0x80, QM_ERROR_FORMAT, "token 5 has type -2147483647");
    DAMAGED(s.tokens.bytes[8] = 0xff, QM_ERROR_FORMAT, "token 0 is not UTF-8");
    DAMAGED(s.merges.bytes[8 + 1] = '_', QM_ERROR_FORMAT, "merge 0 is not two texts");
    DAMAGED(s.merges.bytes[8] = ' ', QM_ERROR_FORMAT, "merge 0 is not two texts");
    DAMAGED((s.merges.bytes[8 + 1] = 'x', s.merges.bytes[8 + 2] = ' '), QM_ERROR_FORMAT, "merge 0 is not two texts");
    DAMAGED(s.merges.bytes[8 + 2] = 0xff, QM_ERROR_FORMAT, "merge 0 is not UTF-8");
#undef DAMAGED
    make_small(&s);
    char text[1100];
    memset(text, '<', sizeof text - 1);
    text[sizeof text - 1] = 0;
    small_vocab_token(&s, text, QMI_TOKEN_CONTROL);
    small_vocab_source(&s);
    assert_refused(&s, QM_ERROR_FORMAT, "added token 265 has 1099 bytes");
}

/* A merge that can't happen is left out, and the others keep their order. */
static void test_merges_of_unknown_tokens_are_ignored(void **state)
{
    (void)state;
    small_vocab small;
    small_vocab_start(&small, "qwen2");
    put_text(&small.merges, "a b"); /* no token "ab" */
    put_text(&small.merges, "q\u4e2d x"); /* no byte looks like that */
    small.source.merge_count = 2;
    int32_t bc = small_vocab_merge(&small, "b", "c");
    kept_log kept = { 0 };
    const qmi_log log = { keep_line, &kept };
    qmi_vocab *vocab = NULL;
    assert_int_equal(qmi_vocab_new(small_vocab_source(&small), &alloc, &log, &vocab), QM_OK);
    assert_int_equal(kept.lines, 1);
    assert_int_equal(kept.level, QM_LOG_WARNING);
    assert_non_null(strstr(kept.last, "2 of 3"));
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, "abc", 3, QM_SPECIAL_NONE, &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.data[0], 'a');
    assert_int_equal(ids.data[1], bc);
    qmi_delete(&alloc, ids.data);
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
}

static void test_few_bytes_are_warned_about(void **state)
{
    (void)state;
    small_vocab small = { .source = { .pre = "qwen2", .eos = -1, .pad = -1 } };
    small_vocab_token(&small, "a", QMI_TOKEN_NORMAL);
    kept_log kept = { 0 };
    const qmi_log log = { keep_line, &kept };
    qmi_vocab *vocab = NULL;
    assert_int_equal(qmi_vocab_new(small_vocab_source(&small), &alloc, &log, &vocab), QM_OK);
    assert_int_equal(kept.lines, 1);
    assert_non_null(strstr(kept.last, "255 of 256"));
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, "ab", 2, QM_SPECIAL_NONE, &alloc, &ids), QM_ERROR_TEXT);
    assert_int_equal(ids.count, 0);
    qmi_delete(&alloc, ids.data);
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
}

static void test_memory_may_fail_anywhere(void **state)
{
    (void)state;
    small_vocab small;
    make_small(&small);
    for (int64_t n = 0;; n++) {
        failing_alloc failing = { .until_failure = n };
        qmi_alloc hook = failing_hook(&failing);
        qmi_vocab *vocab = NULL;
        int32_t code = qmi_vocab_new(small_vocab_source(&small), &hook, &(qmi_log){ 0 }, &vocab);
        assert_int_equal(vocab != NULL, code == QM_OK);
        qmi_vocab_free(&vocab);
        assert_int_equal(failing.live, 0);
        if (code == QM_OK) {
            assert_true(n > 8);
            break;
        }
        assert_int_equal(code, QM_ERROR_MEMORY);
    }
    small_vocab_free(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts),
        cmocka_unit_test(test_all_normal_without_types),
        cmocka_unit_test(test_damaged_sources),
        cmocka_unit_test(test_merges_of_unknown_tokens_are_ignored),
        cmocka_unit_test(test_few_bytes_are_warned_about),
        cmocka_unit_test(test_memory_may_fail_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
