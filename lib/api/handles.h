/* What the public functions share: the options handle, and the checks of their arguments. */
#ifndef QMI_API_HANDLES_H
#define QMI_API_HANDLES_H

#include <string.h>
#include "base/error.h"
#include "base/options.h"

struct qm_options {
    qmi_settings settings;
};

static inline int32_t qmi_handles_null(const char *argument)
{
    return qmi_fail(QM_ERROR_ARGUMENT, "%s is null", argument);
}

/* A buffer of `size` for results: NULL is fine when nothing fits into it. */
static inline int32_t qmi_handles_buffer(const void *buffer, int64_t size, const char *argument)
{
    if (size < 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "the size of %s is %lld", argument, (long long)size);
    return size > 0 && !buffer ? qmi_handles_null(argument) : QM_OK;
}

/* A text with an explicit length in bytes; -1 becomes the length up to the zero. */
static inline int32_t qmi_handles_text(const char *text, int64_t *length, const char *argument)
{
    if (*length < -1)
        return qmi_fail(QM_ERROR_ARGUMENT, "the length of %s is %lld; -1 means up to the zero byte", argument,
                        (long long)*length);
    if (!text && *length != 0)
        return qmi_handles_null(argument);
    if (*length == -1)
        *length = (int64_t)strlen(text);
    return QM_OK;
}

/* snprintf rules: copies what fits, adds a zero, returns the whole length. */
static inline int64_t qmi_handles_give(const char *from, int64_t length, char *text, int64_t size)
{
    if (size > 0) {
        size_t fits = (size_t)(length < size ? length : size - 1);
        if (fits)
            memcpy(text, from, fits);
        text[fits] = 0;
    }
    return length;
}

#endif
