/* Stop strings: reading the option, and finding them at the end of a text that grows. */
#ifndef QMI_RUN_STOP_H
#define QMI_RUN_STOP_H

#include "text/chat.h"

typedef struct qmi_stops {
    qmi_string *items;
    size_t count, capacity;
} qmi_stops;

/* The option's text: one string, or several as a JSON array. It is taken as JSON when it begins with [ and then a quotation mark
 * or ], so that "[END]" is a string. All-zero before; free it also after a failure (QM_ERROR_OPTION, QM_ERROR_MEMORY). */
int32_t qmi_stops_read(const char *option, const qmi_alloc *alloc, qmi_stops *stops);
void qmi_stops_free(qmi_stops *stops, const qmi_alloc *alloc);

/* Length of the longest stop string that the text ends with, 0: none. */
size_t qmi_stops_match(const qmi_stops *stops, const char *text, size_t length);
/* How many bytes at the end of the text could be the start of a stop string. */
size_t qmi_stops_hold(const qmi_stops *stops, const char *text, size_t length);

#endif
