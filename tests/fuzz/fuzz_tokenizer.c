/* Fuzz target: any bytes as text for a small vocabulary, and any bytes as the arrays of a vocabulary.
 *
 * Input: a byte of settings (bits 0-1: special mode; 2: pre-tokenizer; 3: the vocabulary comes from the input as well; 4-7: an
 * allocation that fails), with bit 3 the vocabulary (see put_strings), then text. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/failing_alloc.h"
#include "../unit/small_vocab.h"
#include "base/error.h"
#include "text/detokenize.h"
#include "text/unicode.h"

static void require(bool condition)
{
    if (!condition)
        abort();
}

/* ---- a fixed vocabulary, made once for each pre-tokenizer ---- */

static const qmi_alloc plain_alloc = { 0 };
static qmi_unicode *unicode;
static qmi_vocab *fixed[2];

static void make_fixed(void)
{
    static const char *const merges[][2] = {
        { "a", "a" }, { "aa", "aa" }, { "h", "e" }, { "t", "h" }, { "t", "he" }, { "th", "e" }, { "a", "b" }, { "b", "a" },
        { "ab", "ab" }, { "(", ")" }, { "aaaa", "a" }, { "i", "n" }, { "<", "|" }, { "|", ">" }, { "a", "the" },
    };
    require(qmi_unicode_new(&plain_alloc, &unicode) == QM_OK);
    for (int32_t i = 0; i < 2; i++) {
        small_vocab small;
        small_vocab_start(&small, i ? "qwen35" : "qwen2");
        for (size_t m = 0; m < sizeof merges / sizeof *merges; m++)
            small_vocab_merge(&small, merges[m][0], merges[m][1]);
        small_vocab_token(&small, "<|im_end|>", QMI_TOKEN_CONTROL);
        small_vocab_token(&small, "<|im|>", QMI_TOKEN_CONTROL);
        small_vocab_token(&small, "<think>", QMI_TOKEN_USER_DEFINED);
        small_vocab_token(&small, "\u00e9\u0301", QMI_TOKEN_USER_DEFINED);
        small_vocab_token(&small, "[PAD]", QMI_TOKEN_UNUSED);
        require(qmi_vocab_new(small_vocab_source(&small), &plain_alloc, &(qmi_log){ 0 }, &fixed[i]) == QM_OK);
        small_vocab_free(&small);
    }
}

/* ---- properties ---- */

/* Bytes in two pushes give what they give in one: whole code points. */
static void check_stream(const char *bytes, int64_t length, int64_t cut)
{
    char *whole = malloc((size_t)(3 * length + QMI_DETOKENIZE_EXTRA));
    char *parts = malloc((size_t)(3 * length + 3 * QMI_DETOKENIZE_EXTRA));
    require(whole && parts);
    qmi_detokenizer stream = { 0 };
    int64_t whole_length = qmi_detokenizer_push(&stream, bytes, length, whole);
    whole_length += qmi_detokenizer_end(&stream, whole + whole_length);
    int64_t parts_length = qmi_detokenizer_push(&stream, bytes, cut, parts);
    require(qmi_unicode_find_invalid(parts, parts_length) < 0);
    parts_length += qmi_detokenizer_push(&stream, bytes + cut, length - cut, parts + parts_length);
    parts_length += qmi_detokenizer_end(&stream, parts + parts_length);
    require(parts_length == whole_length && memcmp(whole, parts, (size_t)whole_length) == 0);
    if (qmi_unicode_find_invalid(bytes, length) < 0)
        require(whole_length == length && memcmp(whole, bytes, (size_t)length) == 0);
    free(whole);
    free(parts);
}

/* With no added token in it, text comes back as its NFC. */
static void check_back(const qmi_vocab *vocab, const char *text, int64_t length, const qmi_ids *ids)
{
    qmi_nfc work = { 0 };
    const char *normal;
    int64_t normal_length;
    require(qmi_unicode_nfc(unicode, text, length, &plain_alloc, &work, &normal, &normal_length) == QM_OK);
    char *back = malloc((size_t)normal_length + 1);
    require(back != NULL);
    require(qmi_detokenize(vocab, ids->data, (int64_t)ids->count, false, back, normal_length + 1) == normal_length);
    require(memcmp(back, normal, (size_t)normal_length) == 0);
    free(back);
    qmi_nfc_clear(&plain_alloc, &work);
}

/* all_bytes: whether the vocabulary has a token for each byte. */
static void check_text(const qmi_vocab *vocab, bool all_bytes, const char *text, int64_t length, int32_t special,
                       int64_t until_failure)
{
    failing_alloc failing = { .until_failure = until_failure };
    const qmi_alloc alloc = failing_hook(&failing);
    qmi_ids ids = { 0 };
    int32_t code = qmi_tokenize(vocab, text, length, special, &alloc, &ids);
    bool valid = qmi_unicode_find_invalid(text, length) < 0;
    require(code == QM_OK || (code == QM_ERROR_MEMORY && until_failure >= 0) || (code == QM_ERROR_TEXT && !(valid && all_bytes)));
    require(valid || code != QM_OK);
    if (code == QM_OK && special == QM_SPECIAL_NONE && all_bytes)
        check_back(vocab, text, length, &ids);
    if (code != QM_OK)
        require(ids.count == 0 && qmi_error_text()[0] != 0);
    for (size_t i = 0; i < ids.count; i++)
        require(ids.data[i] >= 0 && ids.data[i] < qmi_vocab_size(vocab));
    qmi_delete(&alloc, ids.data);
    require(failing.live == 0);
}

/* ---- a vocabulary from the input ---- */

typedef struct input {
    const uint8_t *at, *end;
} input;

static uint8_t next_byte(input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

/* A byte of count, then for each string a byte of length and the bytes. */
static int64_t put_strings(input *in, writer *strings)
{
    int64_t count = next_byte(in);
    for (int64_t i = 0; i < count; i++) {
        size_t length = next_byte(in) & 63;
        if (length > (size_t)(in->end - in->at))
            length = (size_t)(in->end - in->at);
        put_u64(strings, length);
        put(strings, in->at, length);
        in->at += length;
    }
    return count;
}

static void check_vocabulary(input *in, const char *pre, int32_t special, int64_t until_failure)
{
    writer tokens = { 0 }, merges = { 0 }, types = { 0 };
    failing_alloc failing = { .until_failure = until_failure };
    const qmi_alloc alloc = failing_hook(&failing);
    qmi_vocab_source source = { .pre = pre };
    source.eos = (int8_t)next_byte(in);
    source.pad = (int8_t)next_byte(in);
    source.token_count = put_strings(in, &tokens);
    source.merge_count = put_strings(in, &merges);
    source.tokens = tokens.bytes;
    source.merges = merges.bytes;
    source.type_count = source.token_count;
    for (int64_t i = 0; i < source.type_count; i++)
        put_u32(&types, next_byte(in));
    source.types = (const int32_t *)(const void *)types.bytes;
    qmi_vocab *vocab = NULL;
    int32_t code = qmi_vocab_new(&source, &alloc, &(qmi_log){ 0 }, &vocab);
    require(code == QM_OK || code == QM_ERROR_FORMAT || (code == QM_ERROR_MEMORY && until_failure >= 0));
    if (code == QM_OK) {
        check_text(vocab, false, (const char *)in->at, in->end - in->at, special, -1);
        for (int32_t token = -1; token <= qmi_vocab_size(vocab); token++) {
            int64_t length;
            const char *bytes = qmi_vocab_bytes(vocab, token, &length);
            int32_t found = qmi_vocab_find(vocab, bytes, length);
            require(found >= -1 && found < qmi_vocab_size(vocab));
        }
    } else {
        require(!vocab && qmi_error_text()[0] != 0);
    }
    qmi_vocab_free(&vocab);
    require(failing.live == 0);
    free(tokens.bytes);
    free(merges.bytes);
    free(types.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = { data, data + size };
    if (!unicode)
        make_fixed();
    uint8_t settings = next_byte(&in);
    int32_t special = (settings & 3) % 3;
    int64_t until_failure = (settings >> 4) - 1;
    bool qwen35 = settings & 4;
    if (settings & 8) {
        check_vocabulary(&in, qwen35 ? "qwen35" : "qwen2", special, until_failure);
        return 0;
    }
    int64_t length = in.end - in.at;
    const char *text = length ? (const char *)in.at : "";
    check_text(fixed[qwen35], true, text, length, special, until_failure);
    check_stream(text, length, length ? length / 3 : 0);
    return 0;
}
