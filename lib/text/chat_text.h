/* Text as the chat code handles it: views into text that belongs to someone else, and a writer that grows a qmi_string. */
#ifndef QMI_TEXT_CHAT_TEXT_H
#define QMI_TEXT_CHAT_TEXT_H

#include <stdbool.h>
#include "text/chat.h"

/* A stretch of UTF-8; borrowed. */
typedef struct qmi_view {
    const char *data;
    size_t length;
} qmi_view;

#define QMI_NOT_FOUND SIZE_MAX

qmi_view qmi_view_of(const char *text);                       /* zero-terminated */
qmi_view qmi_view_from(qmi_view view, size_t start);          /* what follows `start` */
qmi_view qmi_view_cut(qmi_view view, size_t start, size_t end);
bool qmi_view_starts(qmi_view view, const char *text);
bool qmi_view_ends(qmi_view view, const char *text);
size_t qmi_view_find(qmi_view view, const char *text);        /* first place, or QMI_NOT_FOUND */
size_t qmi_view_find_last(qmi_view view, const char *text);
qmi_view qmi_view_strip(qmi_view view);                       /* as Python's str.strip(): Unicode blanks and U+001C..1F */
qmi_view qmi_view_strip_newlines(qmi_view view, bool left, bool right); /* "\n" only, any number */

/* Appends to `out`. After the first allocation that fails nothing more happens and `failed` says so: check it once, at the end
 * (the message is set by then). */
typedef struct qmi_writer {
    qmi_string *out;
    const qmi_alloc *alloc;
    bool failed;
} qmi_writer;

void qmi_write(qmi_writer *writer, qmi_view view);
void qmi_write_text(qmi_writer *writer, const char *text);    /* zero-terminated */
/* The same with everything that is not UTF-8 replaced by U+FFFD (maximal subparts, Unicode 16 chapter 3.9). */
void qmi_write_lossy(qmi_writer *writer, qmi_view view);

/* Bytes of the well-formed code point at the view's start, else 0, and then *bad is the length of its maximal subpart. */
size_t qmi_view_code_point(qmi_view view, size_t *bad);

qmi_view qmi_string_view(const qmi_string *string);

#endif
