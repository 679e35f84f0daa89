/* The pages of one session: taken when the session is made, so that a context that was promised is there. */
#ifndef QMI_MEMORY_KV_PAGES_H
#define QMI_MEMORY_KV_PAGES_H

#include "backend/backend.h"
#include "memory/kv_format.h"

typedef struct qmi_kv_pages {
    qmi_address block;     /* all pages of this session, one after another */
    qmi_address *table;    /* [count], the address of each page: what a batch's sequence gets */
    int64_t count;
} qmi_kv_pages;

int32_t qmi_kv_pages_new(const qmi_kv_layout *layout, int64_t tokens, const qmi_backend *backend, qmi_device *device,
                         const qmi_alloc *alloc, qmi_kv_pages *out);
void qmi_kv_pages_free(qmi_kv_pages *pages, const qmi_backend *backend, qmi_device *device, const qmi_alloc *alloc);
/* Copies the pages that hold the first `tokens` tokens. `to` has at least as many. */
int32_t qmi_kv_pages_copy(const qmi_kv_layout *layout, const qmi_kv_pages *from, const qmi_kv_pages *to, int64_t tokens,
                          const qmi_backend *backend, qmi_device *device);

#endif
