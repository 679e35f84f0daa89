/* Tokens back to text, all at once or as a stream that never splits a code point. */
#ifndef QMI_TEXT_DETOKENIZE_H
#define QMI_TEXT_DETOKENIZE_H

#include "text/vocab.h"

/* All bytes, snprintf rules (see qm_detokenize). */
int64_t qmi_detokenize(const qmi_vocab *vocab, const int32_t *tokens, int64_t count, bool skip_special, char *text, int64_t size);

/* Stream: bytes of an unfinished code point wait for the next token; what can never become one is replaced by U+FFFD
 * (maximal subparts, as Unicode 16 chapter 3.9 recommends). All-zero at the start. */
typedef struct qmi_detokenizer {
    uint8_t pending[4];
    int32_t pending_count;
} qmi_detokenizer;
#define QMI_DETOKENIZE_EXTRA 12 /* a token of n bytes gives at most 3 * n + this many */

/* Writes complete code points to `text` and returns their length in bytes. `bytes` are a token's. */
int64_t qmi_detokenizer_push(qmi_detokenizer *stream, const char *bytes, int64_t length, char *text);
int64_t qmi_detokenizer_end(qmi_detokenizer *stream, char *text); /* what is still pending, as U+FFFD */

#endif
