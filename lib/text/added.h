/* Finds added tokens ("<|im_start|>") in raw text: the leftmost, and of those that start there the longest. */
#ifndef QMI_TEXT_ADDED_H
#define QMI_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include "base/alloc.h"

#define QMI_ADDED_LENGTH_MAX 1024 /* bytes; bounds the time a place in the text can take */

typedef struct qmi_added_token {
    const char *text; /* borrowed from the vocabulary */
    uint32_t length;  /* 1 .. QMI_ADDED_LENGTH_MAX */
    int32_t token;
    bool user_defined;
} qmi_added_token;

/* Sorted by text: the tokens that begin with some prefix are neighbours, which makes the array a trie without nodes. */
typedef struct qmi_added {
    qmi_added_token *tokens;
    size_t count, capacity;
    bool starts[256]; /* whether one begins with this byte */
} qmi_added;

typedef struct qmi_added_match {
    int64_t start, end; /* in the text */
    int32_t token;
} qmi_added_match;

int32_t qmi_added_append(qmi_added *added, qmi_added_token token, const qmi_alloc *alloc);
void qmi_added_sort(qmi_added *added); /* after the last append; of equal texts the lowest token stays */
void qmi_added_clear(qmi_added *added, const qmi_alloc *alloc);

/* Stretches of a text, ascending and apart. */
typedef struct qmi_stretches {
    struct qmi_stretch { int64_t start, end; } *data;
    size_t count, capacity;
} qmi_stretches;

/* special: QM_SPECIAL_*. The first match at or after `from` that touches none of the stretches `literal` (NULL: none); false if
 * there is none. */
bool qmi_added_next(const qmi_added *added, int32_t special, const char *text, int64_t length, const qmi_stretches *literal,
                    int64_t from, qmi_added_match *match);
int32_t qmi_added_find(const qmi_added *added, const char *text, int64_t length); /* exactly this text; -1: none */

#endif
