/* Cuts normalised text into the pieces inside which byte-pair merges happen.
 *
 * The reference cuts by a regular expression whose alternatives are tried in order at each place:
 *     (?i:'s|'t|'re|'ve|'m|'ll|'d)  |  [^\r\n\p{L}\p{N}]?LETTERS+  |  \p{N}  |  " "?[^\sLETTERS\p{N}]+[\r\n]*
 *     |  \s*[\r\n]+  |  \s+(?!\S)  |  \s+
 * LETTERS is \p{L} for "qwen2", [\p{L}\p{M}] for "qwen35". Here it is a hand-written automaton: linear time, no backtracking. */
#ifndef QMI_TEXT_PRETOKENIZE_H
#define QMI_TEXT_PRETOKENIZE_H

#include "text/unicode.h"

typedef struct qmi_pretokenizer {
    const char *name;  /* as tokenizer.ggml.pre has it */
    uint8_t letters;   /* mask of QMI_CLASS_* */
    uint8_t others;    /* mask of what is neither letter nor number nor space */
} qmi_pretokenizer;

const qmi_pretokenizer *qmi_pretokenizer_find(const char *name); /* NULL: unknown */

/* End of the piece that starts at `start` < length. The text is well-formed and `start` is a piece's start. */
int64_t qmi_pretokenize_next(const qmi_pretokenizer *pre, const qmi_unicode *unicode, const char *text, int64_t length,
                             int64_t start);

#endif
