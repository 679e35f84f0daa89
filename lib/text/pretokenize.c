/* The pre-tokenizer patterns of Qwen2 and Qwen3.5 as one automaton. */
#include "text/pretokenize.h"

#include <stdbool.h>
#include <string.h>

static const qmi_pretokenizer pretokenizers[] = {
    { "qwen2", QMI_CLASS_LETTER, QMI_CLASS_OTHER | QMI_CLASS_MARK },
    { "qwen35", QMI_CLASS_LETTER | QMI_CLASS_MARK, QMI_CLASS_OTHER },
};

const qmi_pretokenizer *qmi_pretokenizer_find(const char *name)
{
    for (size_t i = 0; i < sizeof pretokenizers / sizeof *pretokenizers; i++) {
        if (strcmp(pretokenizers[i].name, name) == 0)
            return &pretokenizers[i];
    }
    return NULL;
}

/* What is being cut, and the classes of the first 256 code points at hand. */
typedef struct cutter {
    const qmi_unicode *unicode;
    const uint8_t *low;
    const char *text;
    int64_t length;
} cutter;

/* Class of the code point at `at` < length, and its length. */
static inline uint8_t class_at(const cutter *cut, int64_t at, int32_t *step)
{
    uint8_t byte = (uint8_t)cut->text[at];
    if (byte < 0x80) {
        *step = 1;
        return cut->low[byte];
    }
    return qmi_unicode_properties(cut->unicode, qmi_unicode_decode(cut->text + at, step));
}

/* End of the run of code points of these classes that starts at `at`. */
static inline int64_t run_of(const cutter *cut, uint8_t classes, int64_t at)
{
    int32_t step = 0;
    while (at < cut->length && class_at(cut, at, &step) & classes)
        at += step;
    return at;
}

static inline bool is_newline(char byte)
{
    return byte == '\n' || byte == '\r';
}

static int64_t newlines(const cutter *cut, int64_t at)
{
    while (at < cut->length && is_newline(cut->text[at]))
        at++;
    return at;
}

/* Length of the contraction at `at`, where an apostrophe is; 0 if there is none. Ignoring case, U+017F is an s as well. */
static int32_t contraction(const cutter *cut, int64_t at)
{
    int64_t left = cut->length - at - 1;
    const char *text = cut->text + at + 1;
    char first = left >= 1 ? (char)(text[0] | 0x20) : 0, second = left >= 2 ? (char)(text[1] | 0x20) : 0;
    switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
        return 2;
    case 'r':
    case 'v':
        return second == 'e' ? 3 : 0;
    case 'l':
        return second == 'l' ? 3 : 0;
    default:
        return left >= 2 && memcmp(text, "\xc5\xbf", 2) == 0 ? 3 : 0;
    }
}

/* \s*[\r\n]+ | \s+(?!\S) | \s+ : a run of white space up to its last newline; else up to the last space before a word, which
 * goes with the word; else all of it. */
static int64_t space_piece(const cutter *cut, int64_t start)
{
    int64_t at = start, last = start, after_newline = start;
    int32_t step = 0;
    while (at < cut->length && class_at(cut, at, &step) & QMI_CLASS_SPACE) {
        last = at;
        at += step;
        if (is_newline(cut->text[last]))
            after_newline = at;
    }
    if (after_newline > start)
        return after_newline;
    return at < cut->length && last > start ? last : at;
}

int64_t qmi_pretokenize_next(const qmi_pretokenizer *pre, const qmi_unicode *unicode, const char *text, int64_t length,
                             int64_t start)
{
    const cutter cut = { unicode, unicode->pages[unicode->page_of[0]], text, length };
    int32_t step = 0, next_step = 0;
    uint8_t class = class_at(&cut, start, &step);
    int64_t next = start + step;
    if (text[start] == '\'') {
        int32_t short_form = contraction(&cut, start);
        if (short_form)
            return start + short_form;
    }
    if (class & pre->letters)
        return run_of(&cut, pre->letters, next);
    if (class & QMI_CLASS_NUMBER)
        return next;
    uint8_t next_class = next < length ? class_at(&cut, next, &next_step) : 0;
    if (next_class & pre->letters && !is_newline(text[start]))
        return run_of(&cut, pre->letters, next + next_step);
    if (class & pre->others || (text[start] == ' ' && next_class & pre->others))
        return newlines(&cut, run_of(&cut, pre->others, next));
    return space_piece(&cut, start);
}
