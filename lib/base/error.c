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

/* Length of the well-formed UTF-8 sequence at `s` (Unicode 16, table 3-7), 0 if there is none. */
static size_t sequence_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    const size_t length = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    const unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((s[i] & 0xC0) != 0x80) /* also at the final zero: nothing is read beyond it */
            return 0;
    return length;
}

/* Names and values from files end up in messages, and messages on terminals and in logs: control characters, which could steer
 * a terminal, and bytes that are not UTF-8 become '?'. */
static void make_printable(char *text)
{
    unsigned char *s = (unsigned char *)text;
    while (*s) {
        const size_t length = sequence_length(s);
        if (length == 0 || *s < 0x20 || *s == 0x7F || (s[0] == 0xC2 && s[1] < 0xA0))
            memset(s, '?', length ? length : 1);
        s += length ? length : 1;
    }
}

int32_t qmi_fail(int32_t code, const char *format, ...)
{
    char text[QMI_ERROR_SIZE]; /* apart, since an argument may be the present message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    end_at_code_point(text);
    make_printable(text);
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
