/* A model file on disk: one GGUF, or several parts named NAME-00001-of-0000N.gguf, mapped and read as one.
 *
 * The first part's metadata counts. Each part has split.count and split.no (from 0), which must agree with its name; the first
 * one's split.tensors.count must agree with the tensors of all. */
#ifndef QMI_FILE_GGUF_PARTS_H
#define QMI_FILE_GGUF_PARTS_H

#include "base/os.h"
#include "file/gguf.h"

#define QMI_PARTS_MAX 512

typedef struct qmi_parts {
    int32_t count;
    char **paths;      /* count of each */
    qmi_os_map *maps;
    qmi_gguf *headers; /* each part's own */
    qmi_gguf gguf;     /* values and value_order of the first header; tensors of all, in the parts' order */
    int64_t bytes;     /* of all files */
} qmi_parts;

/* Any part may be named. All-zero *out on failure; messages name the file. */
int32_t qmi_parts_open(const char *path, const qmi_alloc *alloc, qmi_parts *out);
void qmi_parts_close(qmi_parts *parts, const qmi_alloc *alloc); /* accepts an all-zero one; leaves it so */

/* QM_ERROR_FILE when a file has become shorter since it was opened: its weights must no longer be read. A microsecond a part;
 * to be asked before each piece of work. See qmi_os_map on what remains. */
int32_t qmi_parts_check(const qmi_parts *parts);

/* Reads all weights into the page cache, in steps, calling progress("load", done, total) after each; QM_ERROR_CANCELLED if it
 * says so. progress may be NULL. */
int32_t qmi_parts_read_ahead(const qmi_parts *parts, qm_progress_callback progress, void *user);
int32_t qmi_parts_lock(qmi_parts *parts); /* keeps them in RAM */

/* A number that tells files of models apart: of their headers and of the start of each tensor. */
int32_t qmi_parts_identify(const qmi_parts *parts, uint64_t *out);

#endif
