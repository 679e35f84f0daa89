/* Text to tokens: added tokens in the raw text, then for each stretch between them NFC, pieces, merges. */
#include "text/vocab.h"

#include "base/error.h"
#include "text/vocab_tables.h"

typedef struct tokenizer { /* of one call */
    const qmi_vocab *vocab;
    const qmi_alloc *alloc;
    qmi_nfc nfc;
    qmi_bpe_work work;
    qmi_ids *out;
} tokenizer;

static int32_t add_stretch(tokenizer *tok, const char *text, int64_t length)
{
    const qmi_vocab *vocab = tok->vocab;
    int32_t code = qmi_unicode_nfc(vocab->unicode, text, length, tok->alloc, &tok->nfc, &text, &length);
    for (int64_t at = 0; at < length && code == QM_OK;) {
        int64_t end = qmi_pretokenize_next(vocab->pre, vocab->unicode, text, length, at);
        code = qmi_bpe_encode(&vocab->bpe, &tok->work, text + at, end - at, tok->alloc, tok->out);
        at = end;
    }
    return code;
}

static int32_t add_token(tokenizer *tok, int32_t token)
{
    void *array = tok->out->data;
    int32_t code = qmi_reserve(tok->alloc, &array, &tok->out->capacity, tok->out->count + 1, sizeof token, "tokens");
    tok->out->data = array;
    if (code == QM_OK)
        tok->out->data[tok->out->count++] = token;
    return code;
}

int32_t qmi_tokenize(const qmi_vocab *vocab, const char *text, int64_t length, int32_t special, const qmi_alloc *alloc,
                     qmi_ids *out)
{
    return qmi_tokenize_around(vocab, text, length, special, NULL, alloc, out);
}

int32_t qmi_tokenize_around(const qmi_vocab *vocab, const char *text, int64_t length, int32_t special,
                            const qmi_stretches *literal, const qmi_alloc *alloc, qmi_ids *out)
{
    if (length < 0 || special < QM_SPECIAL_NONE || special > QM_SPECIAL_ALL)
        return qmi_fail(QM_ERROR_ARGUMENT, "tokenize: length %lld or special %d is out of range", (long long)length, special);
    if (length == 0)
        return QM_OK;
    int64_t invalid = qmi_unicode_find_invalid(text, length);
    if (invalid >= 0)
        return qmi_fail(QM_ERROR_TEXT, "the text is not UTF-8: byte 0x%02x at offset %lld", (uint8_t)text[invalid],
                        (long long)invalid);
    size_t count_before = out->count;
    tokenizer tok = { .vocab = vocab, .alloc = alloc, .out = out };
    qmi_added_match match = { 0, 0, -1 };
    int32_t code = qmi_bpe_work_init(&tok.work, length, alloc);
    int64_t at = 0;
    while (code == QM_OK && qmi_added_next(&vocab->added, special, text, length, literal, at, &match)) {
        code = add_stretch(&tok, text + at, match.start - at);
        if (code == QM_OK)
            code = add_token(&tok, match.token);
        at = match.end;
    }
    if (code == QM_OK)
        code = add_stretch(&tok, text + at, length - at);
    qmi_bpe_work_clear(&tok.work, alloc);
    qmi_nfc_clear(alloc, &tok.nfc);
    if (code < 0)
        out->count = count_before;
    return code;
}
