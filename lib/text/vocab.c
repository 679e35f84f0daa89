/* Makes a vocabulary from the arrays of a file's header: decodes token texts, indexes them, resolves the merges. */
#include "text/vocab.h"

#include <string.h>
#include "base/error.h"
#include "text/vocab_tables.h"

/* ---- the file's arrays: u64 length and bytes, one after another ---- */

typedef struct string_reader {
    const uint8_t *at;
} string_reader;

static uint64_t next_length(string_reader *reader)
{
    uint64_t length = 0;
    for (int32_t i = 7; i >= 0; i--)
        length = length << 8 | reader->at[i];
    reader->at += 8;
    return length;
}

static const char *next_text(string_reader *reader, uint64_t length)
{
    const char *text = (const char *)reader->at;
    reader->at += length;
    return text;
}

/* Sum and maximum of the lengths of `count` strings; QM_ERROR_FORMAT when the sum passes 32 bits, in which offsets are kept. */
static int32_t measure(const uint8_t *strings, int64_t count, const char *name, size_t *total, size_t *longest)
{
    string_reader reader = { strings };
    uint64_t sum = 0, maximum = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t length = next_length(&reader);
        if (length > UINT32_MAX - sum)
            return qmi_fail(QM_ERROR_FORMAT, "%s: string %lld of %llu bytes makes the texts longer than 4 GB in all", name,
                            (long long)i, (unsigned long long)length);
        next_text(&reader, length);
        sum += length;
        maximum = length > maximum ? length : maximum;
    }
    *total = (size_t)sum;
    *longest = (size_t)maximum;
    return QM_OK;
}

/* ---- GPT-2's table: each byte as a visible character ----
 * Printable characters of Latin-1 stand for themselves; the 68 other bytes, in their order, are U+0100 and following. */
static int32_t byte_of(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int32_t)c;
    if (c >= 0x100 && c <= 0x120) /* 0x00 .. 0x20 */
        return (int32_t)(c - 0x100);
    if (c >= 0x121 && c <= 0x142) /* 0x7f .. 0xa0 */
        return (int32_t)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

/* Bytes that well-formed text stands for, to `bytes` (at most `length`); their number, or -1 if a character stands for none. */
static int64_t visible_to_bytes(const char *text, int64_t length, char *bytes)
{
    int64_t count = 0;
    for (int64_t at = 0; at < length;) {
        int32_t step;
        int32_t byte = byte_of(qmi_unicode_decode(text + at, &step));
        if (byte < 0)
            return -1;
        bytes[count++] = (char)byte;
        at += step;
    }
    return count;
}

/* ---- index of normal tokens by their bytes ---- */

static uint32_t hash_bytes(const char *bytes, size_t length)
{
    uint64_t hash = length * 0x9e3779b97f4a7c15u;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0xc2b2ae3d27d4eb4fu;
        hash ^= hash >> 32;
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < length; i++)
        tail = tail << 8 | (uint8_t)bytes[i];
    hash = (hash ^ tail) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
    hash *= 0xd6e8feb86659fd93u;
    return (uint32_t)(hash >> 32);
}

/* The slot with these bytes, or the free one where they belong. */
static qmi_vocab_slot *find_slot(const qmi_vocab *vocab, uint32_t hash, const char *bytes, size_t length)
{
    for (size_t slot = hash & vocab->slot_mask;; slot = (slot + 1) & vocab->slot_mask) {
        qmi_vocab_slot *found = &vocab->slots[slot];
        if (found->token < 0)
            return found;
        if (found->hash != hash)
            continue;
        uint32_t start = vocab->offsets[found->token];
        if (vocab->offsets[found->token + 1] - start == length && memcmp(vocab->bytes + start, bytes, length) == 0)
            return found;
    }
}

static int32_t make_index(qmi_vocab *vocab)
{
    size_t slots = 16;
    while (slots < 2 * (size_t)vocab->size)
        slots *= 2;
    vocab->slots = qmi_new(&vocab->alloc, slots, sizeof *vocab->slots, "token texts");
    if (!vocab->slots)
        return QM_ERROR_MEMORY;
    vocab->slot_mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        vocab->slots[i].token = -1;
    return QM_OK;
}

/* ---- tokens ---- */

/* Marks that converters call control tokens for their look, though the reference tokenizer has them as text. */
static bool is_text_mark(const char *text, size_t length)
{
    static const char *const marks[] = { "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                                         "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>" };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (strlen(marks[i]) == length && memcmp(marks[i], text, length) == 0)
            return true;
    }
    return false;
}

static int32_t kind_of(const qmi_vocab_source *source, int64_t token, int32_t *kind)
{
    *kind = QMI_TOKEN_NORMAL;
    if (source->types)
        memcpy(kind, (const uint8_t *)source->types + token * 4, 4);
    if (*kind < QMI_TOKEN_NORMAL || *kind > QMI_TOKEN_BYTE)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.token_type: token %lld has type %d, known are 1 to 6", (long long)token,
                        *kind);
    return QM_OK;
}

static bool is_added(int32_t kind)
{
    return kind == QMI_TOKEN_CONTROL || kind == QMI_TOKEN_USER_DEFINED || kind == QMI_TOKEN_UNKNOWN;
}

static int32_t add_added(qmi_vocab *vocab, int32_t token, int32_t kind, const char *text, size_t length)
{
    if (kind != QMI_TOKEN_USER_DEFINED && !is_text_mark(text, length))
        vocab->kinds[token] |= QMI_VOCAB_HIDDEN;
    if (length == 0)
        return QM_OK;
    if (length > QMI_ADDED_LENGTH_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.tokens: added token %d has %zu bytes of text, at most %d are supported",
                        token, length, QMI_ADDED_LENGTH_MAX);
    const qmi_added_token added = { text, (uint32_t)length, token, kind == QMI_TOKEN_USER_DEFINED };
    return qmi_added_append(&vocab->added, added, &vocab->alloc);
}

/* Puts one token's bytes at *end of the table. A normal token's text that GPT-2's table does not cover is kept as it is. */
static int32_t add_token(qmi_vocab *vocab, int32_t token, int32_t kind, const char *text, size_t length, size_t *end)
{
    char *bytes = vocab->bytes + *end;
    vocab->offsets[token] = (uint32_t)*end;
    vocab->kinds[token] = (uint8_t)kind;
    if (kind == QMI_TOKEN_UNUSED)
        return QM_OK;
    if (qmi_unicode_find_invalid(text, (int64_t)length) >= 0)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.tokens: the text of token %d is not UTF-8", token);
    int64_t count = is_added(kind) ? -1 : visible_to_bytes(text, (int64_t)length, bytes);
    if (count < 0) {
        memcpy(bytes, text, length);
        *end += length;
        return is_added(kind) ? add_added(vocab, token, kind, bytes, length) : QM_OK;
    }
    *end += (size_t)count;
    vocab->offsets[token + 1] = (uint32_t)*end; /* find_slot compares lengths */
    if (count > 0) {
        uint32_t hash = hash_bytes(bytes, (size_t)count);
        qmi_vocab_slot *slot = find_slot(vocab, hash, bytes, (size_t)count);
        if (slot->token < 0)
            *slot = (qmi_vocab_slot){ hash, token };
    }
    return QM_OK;
}

static int32_t read_tokens(qmi_vocab *vocab, const qmi_vocab_source *source)
{
    size_t total = 0, longest = 0, end = 0, size = (size_t)source->token_count;
    int32_t code = measure(source->tokens, source->token_count, "tokenizer.ggml.tokens", &total, &longest);
    if (code < 0)
        return code;
    vocab->size = (int32_t)size;
    vocab->bytes = qmi_new(&vocab->alloc, total, 1, "token texts");
    vocab->offsets = qmi_new(&vocab->alloc, size + 1, sizeof *vocab->offsets, "token texts");
    vocab->kinds = qmi_new(&vocab->alloc, size, 1, "token types");
    if (!vocab->bytes || !vocab->offsets || !vocab->kinds)
        return QM_ERROR_MEMORY;
    code = make_index(vocab);
    string_reader reader = { source->tokens };
    for (int32_t token = 0; token < vocab->size && code == QM_OK; token++) {
        int32_t kind;
        uint64_t length = next_length(&reader);
        const char *text = next_text(&reader, length);
        code = kind_of(source, token, &kind);
        if (code == QM_OK)
            code = add_token(vocab, token, kind, text, (size_t)length, &end);
    }
    vocab->offsets[size] = (uint32_t)end;
    qmi_added_sort(&vocab->added);
    return code;
}

/* ---- merges ---- */

typedef struct merge_faults { /* merges that name a token the vocabulary lacks: they cannot happen and are left out */
    int64_t count, first;
} merge_faults;

static uint32_t find_normal(const qmi_vocab *vocab, const char *bytes, size_t length)
{
    const qmi_vocab_slot *slot = find_slot(vocab, hash_bytes(bytes, length), bytes, length);
    return slot->token < 0 ? QMI_NO_TOKEN : (uint32_t)slot->token;
}

/* `room` holds the bytes of both sides. */
static int32_t add_merge(qmi_vocab *vocab, int64_t index, const char *text, size_t length, char *room, merge_faults *faults)
{
    const char *space = length ? memchr(text, ' ', length) : NULL;
    if (!space || space == text || space == text + length - 1)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.merges: merge %lld is not two texts with a space between",
                        (long long)index);
    if (qmi_unicode_find_invalid(text, (int64_t)length) >= 0)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.merges: merge %lld is not UTF-8", (long long)index);
    qmi_merge merge = { QMI_NO_TOKEN, QMI_NO_TOKEN, (uint32_t)index, QMI_NO_TOKEN };
    int64_t left = visible_to_bytes(text, space - text, room);
    int64_t right = left < 0 ? -1 : visible_to_bytes(space + 1, text + length - space - 1, room + left);
    if (right >= 0) {
        merge.left = find_normal(vocab, room, (size_t)left);
        merge.right = find_normal(vocab, room + left, (size_t)right);
        merge.result = find_normal(vocab, room, (size_t)(left + right));
    }
    if (merge.left == QMI_NO_TOKEN || merge.right == QMI_NO_TOKEN || merge.result == QMI_NO_TOKEN) {
        if (faults->count++ == 0)
            faults->first = index;
        return QM_OK;
    }
    qmi_bpe_add(&vocab->bpe, merge);
    return QM_OK;
}

static int32_t read_merges(qmi_vocab *vocab, const qmi_vocab_source *source, const qmi_log *log)
{
    size_t total = 0, longest = 0;
    merge_faults faults = { 0, 0 };
    int32_t code = measure(source->merges, source->merge_count, "tokenizer.ggml.merges", &total, &longest);
    if (code < 0)
        return code;
    code = qmi_bpe_init(&vocab->bpe, (size_t)source->merge_count, &vocab->alloc);
    if (code < 0)
        return code;
    char *room = qmi_new(&vocab->alloc, longest, 1, "merges");
    if (!room)
        return QM_ERROR_MEMORY;
    string_reader reader = { source->merges };
    for (int64_t i = 0; i < source->merge_count && code == QM_OK; i++) {
        uint64_t length = next_length(&reader);
        const char *text = next_text(&reader, length);
        code = add_merge(vocab, i, text, (size_t)length, room, &faults);
    }
    qmi_delete(&vocab->alloc, room);
    if (code == QM_OK && faults.count > 0)
        qmi_log_line(log, QM_LOG_WARNING,
                     "tokenizer.ggml.merges: %lld of %lld name tokens that are not there and are ignored, first number %lld",
                     (long long)faults.count, (long long)source->merge_count, (long long)faults.first);
    return code;
}

static void find_byte_tokens(qmi_vocab *vocab, const qmi_log *log)
{
    int32_t missing = 0;
    for (int32_t byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        vocab->bpe.byte_tokens[byte] = find_normal(vocab, &text, 1);
        missing += vocab->bpe.byte_tokens[byte] == QMI_NO_TOKEN;
    }
    /* 13 bytes (0xc0, 0xc1, 0xf5 .. 0xff) are never part of UTF-8: a vocabulary may do without them. */
    if (missing > 13)
        qmi_log_line(log, QM_LOG_WARNING, "tokenizer.ggml.tokens: %d of 256 bytes have no token; text with them cannot be read",
                     missing);
}

/* ---- making and freeing ---- */

static int32_t check_id(const qmi_vocab_source *source, int64_t id, const char *key)
{
    if (id < -1 || id >= source->token_count)
        return qmi_fail(QM_ERROR_FORMAT, "%s is %lld, but the vocabulary has %lld tokens", key, (long long)id,
                        (long long)source->token_count);
    return QM_OK;
}

static int32_t check_source(const qmi_vocab_source *source)
{
    if (!source->tokens || source->token_count < 1)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.tokens is missing or empty");
    if (source->token_count > INT32_MAX / 4)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.tokens has %lld tokens, more than any model",
                        (long long)source->token_count);
    if (source->types && source->type_count != source->token_count)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.token_type has %lld entries for %lld tokens",
                        (long long)source->type_count, (long long)source->token_count);
    if (source->merge_count < 0 || source->merge_count > INT32_MAX / 4 || (source->merge_count > 0 && !source->merges))
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.merges has %lld merges, which is not possible",
                        (long long)source->merge_count);
    int32_t code = check_id(source, source->eos, "tokenizer.ggml.eos_token_id");
    return code < 0 ? code : check_id(source, source->pad, "tokenizer.ggml.padding_token_id");
}

int32_t qmi_vocab_new(const qmi_vocab_source *source, const qmi_alloc *alloc, const qmi_log *log, qmi_vocab **out)
{
    *out = NULL;
    int32_t code = check_source(source);
    if (code < 0)
        return code;
    if (!source->pre)
        return qmi_fail(QM_ERROR_FORMAT, "tokenizer.ggml.pre is missing: it names how text is cut (\"qwen2\", \"qwen35\")");
    const qmi_pretokenizer *pre = qmi_pretokenizer_find(source->pre);
    if (!pre)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "tokenizer.ggml.pre is \"%.64s\"; supported are \"qwen2\" and \"qwen35\"",
                        source->pre);
    qmi_vocab *vocab = qmi_new(alloc, 1, sizeof *vocab, "vocabulary");
    if (!vocab)
        return QM_ERROR_MEMORY;
    vocab->alloc = *alloc;
    vocab->pre = pre;
    vocab->eos = (int32_t)source->eos;
    vocab->pad = (int32_t)source->pad;
    code = read_tokens(vocab, source);
    if (code == QM_OK)
        code = read_merges(vocab, source, log);
    if (code == QM_OK)
        code = qmi_unicode_new(alloc, &vocab->unicode);
    if (code == QM_OK) {
        find_byte_tokens(vocab, log);
        *out = vocab;
    } else {
        qmi_vocab_free(&vocab);
    }
    return code;
}

void qmi_vocab_free(qmi_vocab **vocab)
{
    if (!*vocab)
        return;
    qmi_vocab *old = *vocab;
    const qmi_alloc alloc = old->alloc;
    qmi_delete(&alloc, old->bytes);
    qmi_delete(&alloc, old->offsets);
    qmi_delete(&alloc, old->kinds);
    qmi_delete(&alloc, old->slots);
    qmi_bpe_clear(&old->bpe, &alloc);
    qmi_added_clear(&old->added, &alloc);
    qmi_unicode_free(&alloc, &old->unicode);
    qmi_delete(&alloc, old);
    *vocab = NULL;
}

/* ---- questions ---- */

int32_t qmi_vocab_size(const qmi_vocab *vocab)
{
    return vocab->size;
}

int32_t qmi_vocab_eos(const qmi_vocab *vocab)
{
    return vocab->eos;
}

int32_t qmi_vocab_pad(const qmi_vocab *vocab)
{
    return vocab->pad;
}

int32_t qmi_vocab_kind(const qmi_vocab *vocab, int32_t token)
{
    return token < 0 || token >= vocab->size ? QMI_TOKEN_UNUSED : vocab->kinds[token] & QMI_VOCAB_KIND;
}

bool qmi_vocab_hidden(const qmi_vocab *vocab, int32_t token)
{
    return token < 0 || token >= vocab->size || vocab->kinds[token] & QMI_VOCAB_HIDDEN;
}

const char *qmi_vocab_bytes(const qmi_vocab *vocab, int32_t token, int64_t *length)
{
    if (token < 0 || token >= vocab->size) {
        *length = 0;
        return "";
    }
    *length = vocab->offsets[token + 1] - vocab->offsets[token];
    return vocab->bytes + vocab->offsets[token];
}

int32_t qmi_vocab_find(const qmi_vocab *vocab, const char *text, int64_t length)
{
    if (length <= 0)
        return -1;
    int32_t added = qmi_added_find(&vocab->added, text, length);
    return added >= 0 ? added : find_slot(vocab, hash_bytes(text, (size_t)length), text, (size_t)length)->token;
}
