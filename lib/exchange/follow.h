/* The other side of remote.h: a rank that executes on its device what rank 0 asks for, until rank 0 leaves or one of them
 * fails. */
#ifndef QMI_EXCHANGE_FOLLOW_H
#define QMI_EXCHANGE_FOLLOW_H

#include "base/options.h"
#include "exchange/link.h"
#include "file/gguf_parts.h"

/* parts: of the model, open while this goes on. settings: device, threads and the like are this rank's own. cancel: read
 * atomically; NULL: never. QM_OK when rank 0 has ended in peace. */
int32_t qmi_follow(qmi_link *link, const qmi_parts *parts, const qmi_settings *settings, const int32_t *cancel);

#endif
