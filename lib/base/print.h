/* Text written by snprintf's rules in several steps. */
#ifndef QMI_BASE_PRINT_H
#define QMI_BASE_PRINT_H

#include <stdint.h>
#include "base/error.h"

typedef struct qmi_print {
    char *text;     /* NULL with size 0: only the length is wanted */
    int64_t size;
    int64_t length; /* of the whole text so far, also of what has no room */
} qmi_print;

void qmi_put(qmi_print *print, const char *format, ...) QMI_PRINTF(2, 3);

#endif
