/* A model file on disk: one GGUF, or several parts named NAME-00001-of-0000N.gguf, mapped and read as one.
 *
 * The first part's metadata counts; split.count, split.no and split.tensors.count are checked. */
#ifndef QMI_FILE_GGUF_PARTS_H
#define QMI_FILE_GGUF_PARTS_H

#include "base/os.h"
#include "file/gguf.h"

#define QMI_PARTS_MAX 512

typedef struct qmi_parts {
    int32_t count;
    qmi_os_map *maps;  /* count of them */
    qmi_gguf gguf;     /* values of the first part, tensors of all */
    qmi_gguf *headers; /* each part's own, whose memory `gguf` points into */
    int64_t bytes;     /* of all files */
} qmi_parts;

/* Any part may be named. All-zero *out on failure; messages name the file. */
int32_t qmi_parts_open(const char *path, const qmi_alloc *alloc, qmi_parts *out);
void qmi_parts_close(qmi_parts *parts, const qmi_alloc *alloc);

/* Reads all weights into the page cache, in steps, calling progress("load", done, total); QM_ERROR_CANCELLED if it says so. */
int32_t qmi_parts_read_ahead(const qmi_parts *parts, qm_progress_callback progress, void *user);
int32_t qmi_parts_lock(qmi_parts *parts); /* keeps them in RAM */

#endif
