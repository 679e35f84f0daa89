/* Unicode as the tokenizer needs it: UTF-8, the classes \p{L} \p{M} \p{N} and White_Space, and the normal form NFC.
 *
 * Classes are those of Unicode 16, normal forms those of Unicode 9, as the reference tokenizer has them, whatever version
 * utf8proc has (see unicode_versions.h). So no row of the reference vectors differs, those tagged edge-unicode included:
 * tried with utf8proc 2.5, 2.7, 2.8 and 2.11, which have Unicode 13, 14, 15 and 17. */
#ifndef QMI_TEXT_UNICODE_H
#define QMI_TEXT_UNICODE_H

#include <stddef.h>
#include "base/alloc.h"

/* Property byte of a code point: its class, and what NFC has to do about it. */
enum {
    QMI_CLASS_OTHER = 1,   /* one bit each, so that a set of classes is a mask */
    QMI_CLASS_LETTER = 2,  /* \p{L} */
    QMI_CLASS_MARK = 4,    /* \p{M} */
    QMI_CLASS_NUMBER = 8,  /* \p{N} */
    QMI_CLASS_SPACE = 16,  /* White_Space */
    QMI_CLASS_ANY = 31,
    QMI_NFC_MARK = 32,     /* has a combining class: only its order matters */
    QMI_NFC_CHANGES = 64,  /* decomposes, or composes with what is before it */
};

/* Two levels: 4352 pages of 256 code points, equal pages shared (about 90 KB in all). Read-only once made. */
typedef struct qmi_unicode {
    uint16_t page_of[0x110000 >> 8];
    uint8_t (*pages)[256];
    size_t page_count, page_capacity;
} qmi_unicode;

int32_t qmi_unicode_new(const qmi_alloc *alloc, qmi_unicode **out);
void qmi_unicode_free(const qmi_alloc *alloc, qmi_unicode **unicode);

static inline uint8_t qmi_unicode_properties(const qmi_unicode *unicode, uint32_t code_point)
{
    return unicode->pages[unicode->page_of[code_point >> 8]][code_point & 255];
}

/* Offset of the first byte of the first ill-formed sequence (Unicode 16, table 3-7), -1: all is UTF-8. */
int64_t qmi_unicode_find_invalid(const char *text, int64_t length);

/* The code point at `text`, which is well-formed; its length in bytes to *length. */
static inline uint32_t qmi_unicode_decode(const char *text, int32_t *length)
{
    const uint8_t *byte = (const uint8_t *)text;
    if (byte[0] < 0x80) {
        *length = 1;
        return byte[0];
    }
    if (byte[0] < 0xe0) {
        *length = 2;
        return (byte[0] & 0x1fu) << 6 | (byte[1] & 0x3fu);
    }
    if (byte[0] < 0xf0) {
        *length = 3;
        return (byte[0] & 0x0fu) << 12 | (byte[1] & 0x3fu) << 6 | (byte[2] & 0x3fu);
    }
    *length = 4;
    return (byte[0] & 0x07u) << 18 | (byte[1] & 0x3fu) << 12 | (byte[2] & 0x3fu) << 6 | (byte[3] & 0x3fu);
}

int32_t qmi_unicode_encode(uint32_t code_point, char text[4]); /* returns the length */

/* Memory that a normalisation works in; all zero at the start, kept for the next one. */
typedef struct qmi_nfc {
    char *text;             /* the result, when it differs from the input */
    size_t length, capacity;
    int32_t *code_points;   /* of one run */
    size_t code_point_count, code_point_capacity;
    int32_t *order;         /* room to sort a long run of marks */
    size_t order_capacity;
} qmi_nfc;

/* NFC of well-formed text. *result is `text` itself when it is in that form already, else work->text (valid until the next
 * call with the same work). Time is linear in the length. */
int32_t qmi_unicode_nfc(const qmi_unicode *unicode, const char *text, int64_t length, const qmi_alloc *alloc, qmi_nfc *work,
                        const char **result, int64_t *result_length);
void qmi_nfc_clear(const qmi_alloc *alloc, qmi_nfc *work);

#endif
