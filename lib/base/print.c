/* See print.h. */
#include "base/print.h"

#include <stdarg.h>
#include <stdio.h>

void qmi_put(qmi_print *print, const char *format, ...)
{
    va_list arguments;
    int64_t left = print->size > print->length ? print->size - print->length : 0;
    va_start(arguments, format);
    int n = vsnprintf(left ? print->text + print->length : NULL, (size_t)left, format, arguments);
    va_end(arguments);
    print->length += n > 0 ? n : 0;
}
