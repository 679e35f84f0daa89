/* Tokens to bytes, and bytes to whole code points as they come. */
#include "text/detokenize.h"

#include <string.h>
#include "base/error.h"

int64_t qmi_detokenize(const qmi_vocab *vocab, const int32_t *tokens, int64_t count, bool skip_special, char *text, int64_t size)
{
    if (count < 0 || size < 0 || (count > 0 && !tokens) || (size > 0 && !text))
        return qmi_fail(QM_ERROR_ARGUMENT, "detokenize: %lld tokens to a text of %lld bytes, or a null pointer", (long long)count,
                        (long long)size);
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || tokens[i] >= qmi_vocab_size(vocab))
            return qmi_fail(QM_ERROR_ARGUMENT, "detokenize: token %d at index %lld is not one of the vocabulary's %d", tokens[i],
                            (long long)i, qmi_vocab_size(vocab));
        if (skip_special && qmi_vocab_hidden(vocab, tokens[i]))
            continue;
        int64_t length;
        const char *bytes = qmi_vocab_bytes(vocab, tokens[i], &length);
        int64_t room = size - 1 - total; /* the zero needs one */
        if (room > 0)
            memcpy(text + total, bytes, (size_t)(length < room ? length : room));
        total += length;
    }
    if (size > 0)
        text[total < size - 1 ? total : size - 1] = 0;
    return total;
}

/* ---- stream ---- */

static int64_t put_replacement(char *text)
{
    memcpy(text, "\xef\xbf\xbd", 3); /* U+FFFD */
    return 3;
}

/* Bytes of the sequence that `lead` starts, 0 if it starts none (Unicode 16, table 3-7). */
static int32_t sequence_length(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
}

/* Whether `byte` can follow the pending ones, which begin a well-formed sequence. */
static bool continues(const qmi_detokenizer *stream, uint8_t byte)
{
    uint8_t lead = stream->pending[0], low = 0x80, high = 0xbf;
    if (stream->pending_count == 1) {
        low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    }
    return byte >= low && byte <= high;
}

/* A byte with nothing pending. */
static int64_t start_sequence(qmi_detokenizer *stream, uint8_t byte, char *text)
{
    int32_t length = sequence_length(byte);
    if (length == 0)
        return put_replacement(text);
    if (length == 1) {
        text[0] = (char)byte;
        return 1;
    }
    stream->pending[0] = byte;
    stream->pending_count = 1;
    return 0;
}

int64_t qmi_detokenizer_push(qmi_detokenizer *stream, const char *bytes, int64_t length, char *text)
{
    int64_t written = 0;
    for (int64_t i = 0; i < length; i++) {
        uint8_t byte = (uint8_t)bytes[i];
        if (stream->pending_count == 0) {
            written += start_sequence(stream, byte, text + written);
        } else if (continues(stream, byte)) {
            stream->pending[stream->pending_count++] = byte;
            if (stream->pending_count == sequence_length(stream->pending[0])) {
                memcpy(text + written, stream->pending, (size_t)stream->pending_count);
                written += stream->pending_count;
                stream->pending_count = 0;
            }
        } else { /* the pending bytes are a maximal subpart: one U+FFFD */
            stream->pending_count = 0;
            written += put_replacement(text + written);
            written += start_sequence(stream, byte, text + written);
        }
    }
    return written;
}

int64_t qmi_detokenizer_end(qmi_detokenizer *stream, char *text)
{
    int64_t written = stream->pending_count > 0 ? put_replacement(text) : 0;
    stream->pending_count = 0;
    return written;
}
