/* Views and the growing writer: see chat_text.h. */
#include "text/chat_text.h"

#include <string.h>
#include "base/error.h"

qmi_view qmi_view_of(const char *text)
{
    return (qmi_view){ text, strlen(text) };
}

qmi_view qmi_view_from(qmi_view view, size_t start)
{
    return (qmi_view){ view.data + start, view.length - start };
}

qmi_view qmi_view_cut(qmi_view view, size_t start, size_t end)
{
    return (qmi_view){ view.data + start, end - start };
}

bool qmi_view_starts(qmi_view view, const char *text)
{
    size_t length = strlen(text);
    return view.length >= length && memcmp(view.data, text, length) == 0;
}

bool qmi_view_ends(qmi_view view, const char *text)
{
    size_t length = strlen(text);
    return view.length >= length && memcmp(view.data + view.length - length, text, length) == 0;
}

size_t qmi_view_find(qmi_view view, const char *text)
{
    for (size_t at = 0; at < view.length; at++) {
        const char *hit = memchr(view.data + at, text[0], view.length - at);
        if (!hit)
            break;
        at = (size_t)(hit - view.data);
        if (qmi_view_starts(qmi_view_from(view, at), text))
            return at;
    }
    return QMI_NOT_FOUND;
}

size_t qmi_view_find_last(qmi_view view, const char *text)
{
    for (size_t at = view.length; at-- > 0;)
        if (view.data[at] == text[0] && qmi_view_starts(qmi_view_from(view, at), text))
            return at;
    return QMI_NOT_FOUND;
}

/* ---- blanks ---- */

/* What str.isspace() is true for, as of Unicode 16. */
static bool is_blank(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Length of the blank that starts at p, or 0. All blanks lie below U+10000, so that 3 bytes are the most. */
static size_t blank_at(const char *p, size_t length)
{
    const unsigned char *b = (const unsigned char *)p;
    if (length >= 1 && b[0] < 0x80)
        return is_blank(b[0]) ? 1 : 0;
    if (length >= 2 && b[0] >= 0xC2 && b[0] < 0xE0)
        return is_blank((b[0] & 0x1Fu) << 6 | (b[1] & 0x3Fu)) ? 2 : 0;
    if (length >= 3 && b[0] >= 0xE0 && b[0] < 0xF0)
        return is_blank((b[0] & 0x0Fu) << 12 | (b[1] & 0x3Fu) << 6 | (b[2] & 0x3Fu)) ? 3 : 0;
    return 0;
}

qmi_view qmi_view_strip(qmi_view view)
{
    size_t blank;
    while (view.length && (blank = blank_at(view.data, view.length)) > 0)
        view = qmi_view_from(view, blank);
    while (view.length) {
        size_t start = view.length - 1;
        while (start > 0 && view.length - start < 4 && ((unsigned char)view.data[start] & 0xC0) == 0x80)
            start--;
        blank = blank_at(view.data + start, view.length - start);
        if (!blank || start + blank != view.length)
            break;
        view.length = start;
    }
    return view;
}

qmi_view qmi_view_strip_newlines(qmi_view view, bool left, bool right)
{
    while (left && view.length && view.data[0] == '\n')
        view = qmi_view_from(view, 1);
    while (right && view.length && view.data[view.length - 1] == '\n')
        view.length--;
    return view;
}

/* ---- UTF-8 ---- */

size_t qmi_view_code_point(qmi_view view, size_t *bad)
{
    const unsigned char *b = (const unsigned char *)view.data;
    if (b[0] < 0x80)
        return 1;
    /* Table 3-7 of Unicode 16: lead byte, the range of the second byte, and how many follow. */
    size_t following = b[0] >= 0xF0 ? 3 : b[0] >= 0xE0 ? 2 : 1;
    unsigned char low = 0x80, high = 0xBF;
    *bad = 1;
    if (b[0] < 0xC2 || b[0] > 0xF4)
        return 0;
    if (b[0] == 0xE0)
        low = 0xA0;
    if (b[0] == 0xED)
        high = 0x9F;
    if (b[0] == 0xF0)
        low = 0x90;
    if (b[0] == 0xF4)
        high = 0x8F;
    for (size_t i = 1; i <= following; i++) {
        if (i >= view.length || b[i] < low || b[i] > high)
            return 0;
        low = 0x80;
        high = 0xBF;
        *bad = i + 1;
    }
    return following + 1;
}

/* ---- writer ---- */

void qmi_write(qmi_writer *writer, qmi_view view)
{
    qmi_string *out = writer->out;
    if (writer->failed)
        return;
    void *data = out->data;
    size_t needed = out->length + view.length + 1;
    if (needed < view.length || qmi_reserve(writer->alloc, &data, &out->capacity, needed, 1, "chat text") < 0) {
        writer->failed = true;
        return;
    }
    out->data = data;
    if (view.length)
        memcpy(out->data + out->length, view.data, view.length);
    out->length += view.length;
    out->data[out->length] = 0;
}

void qmi_write_text(qmi_writer *writer, const char *text)
{
    qmi_write(writer, qmi_view_of(text));
}

void qmi_write_lossy(qmi_writer *writer, qmi_view view)
{
    size_t good = 0; /* bytes checked and not yet written */
    while (good < view.length) {
        size_t bad = 0, size = qmi_view_code_point(qmi_view_from(view, good), &bad);
        if (size) {
            good += size;
            continue;
        }
        qmi_write(writer, qmi_view_cut(view, 0, good));
        qmi_write_text(writer, "\xEF\xBF\xBD");
        view = qmi_view_from(view, good + bad);
        good = 0;
    }
    qmi_write(writer, view);
}

qmi_view qmi_string_view(const qmi_string *string)
{
    return (qmi_view){ string->data ? string->data : "", string->length };
}

void qmi_string_free(qmi_string *string, const qmi_alloc *alloc)
{
    qmi_delete(alloc, string->data);
    *string = (qmi_string){ 0 };
}
