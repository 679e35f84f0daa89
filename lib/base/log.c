/* The log hook: see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

void qmi_log_line(const qmi_log *log, int32_t level, const char *format, ...)
{
    char line[QMI_ERROR_SIZE];
    va_list arguments;
    if (!log->callback)
        return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    log->callback(level, line, log->user);
}
