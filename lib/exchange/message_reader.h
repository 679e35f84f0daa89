/* Reading a message's bytes in order, and never behind its end. */
#ifndef QMI_EXCHANGE_MESSAGE_READER_H
#define QMI_EXCHANGE_MESSAGE_READER_H

#include <string.h>
#include "base/error.h"

typedef struct qmi_reader {
    const uint8_t *at;
    int64_t left;
    bool short_of;                  /* something was not there */
} qmi_reader;

static inline void qmi_take(qmi_reader *r, void *to, int64_t bytes)
{
    if (bytes > r->left) {
        r->short_of = true;
        memset(to, 0, (size_t)bytes);
        return;
    }
    memcpy(to, r->at, (size_t)bytes);
    r->at += bytes;
    r->left -= bytes;
}

/* An array where it lies in the message; NULL when it is not whole. A message's bytes begin at a multiple of 8, and what needs
 * that stands before what does not. */
static inline const void *qmi_take_array(qmi_reader *r, int64_t count, size_t size)
{
    const void *array = r->at;
    if (count < 0 || count > r->left / (int64_t)size) {
        r->short_of = true;
        return NULL;
    }
    r->at += count * (int64_t)size;
    r->left -= count * (int64_t)size;
    return array;
}

static inline int32_t qmi_reader_check(const qmi_reader *r, const char *what)
{
    if (!r->short_of && r->left == 0)
        return QM_OK;
    return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent a message (%s) that is %s", what, r->short_of ? "cut" : "too long");
}

#endif
