/* Thread-local error messages: see error.h. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[QMI_ERROR_SIZE];

/* Shortens text that vsnprintf may have cut in the middle of a UTF-8 sequence. */
static void end_at_code_point(char text[QMI_ERROR_SIZE])
{
    size_t length = strlen(text), start = length;
    if (length < QMI_ERROR_SIZE - 1)
        return;
    while (start > 0 && length - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80)
        start--;
    if (start == 0)
        return;
    unsigned char lead = (unsigned char)text[start - 1];
    size_t needed = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (lead >= 0xC0 && length - start < needed)
        text[start - 1] = 0;
}

int32_t qmi_fail(int32_t code, const char *format, ...)
{
    char text[QMI_ERROR_SIZE]; /* apart, since an argument may be the present message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    end_at_code_point(text);
    memcpy(message, text, sizeof text);
    return code;
}

int32_t qmi_fail_within(int32_t code, const char *prefix)
{
    return qmi_fail(code, "%s: %s", prefix, message);
}

const char *qmi_error_text(void)
{
    return message;
}

void qmi_error_copy(char out[QMI_ERROR_SIZE])
{
    memcpy(out, message, QMI_ERROR_SIZE);
}

void qmi_error_restore(const char *text)
{
    qmi_fail(0, "%s", text);
}
