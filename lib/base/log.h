/* The log of a handle: a hook of the host, silent without one. The library itself never prints. */
#ifndef QMI_BASE_LOG_H
#define QMI_BASE_LOG_H

#include "base/error.h"

typedef struct qmi_log {
    qm_log_callback callback; /* NULL: nothing is logged */
    void *user;
} qmi_log;

/* level: QM_LOG_DEBUG .. QM_LOG_WARNING. The line has no newline and is cut at QMI_ERROR_SIZE. */
void qmi_log_line(const qmi_log *log, int32_t level, const char *format, ...) QMI_PRINTF(3, 4);

#endif
