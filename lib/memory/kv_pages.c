/* The pages of one session: see kv_pages.h. */
#include "memory/kv_pages.h"

#include <inttypes.h>
#include "base/error.h"

int32_t qmi_kv_pages_new(const qmi_kv_layout *layout, int64_t tokens, const qmi_backend *backend, qmi_device *device,
                         const qmi_alloc *alloc, qmi_kv_pages *out)
{
    int64_t count = qmi_kv_pages_for(layout, tokens);
    *out = (qmi_kv_pages){ .count = count };
    if (layout->page_bytes && count > INT64_MAX / 2 / layout->page_bytes)
        return qmi_fail(QM_ERROR_MEMORY,
                        "keys and values of %" PRId64 " tokens are more than this machine can address; lower context", tokens);
    out->table = qmi_new(alloc, (size_t)count, sizeof *out->table, "a session's page table");
    if (!out->table)
        return QM_ERROR_MEMORY;
    int32_t code = QM_OK;
    if (layout->page_bytes)
        code = backend->allocate(device, count * layout->page_bytes, "a session's keys and values", &out->block);
    if (code < 0) {
        qmi_kv_pages_free(out, backend, device, alloc);
        return code;
    }
    for (int64_t i = 0; i < count; i++)
        out->table[i] = out->block + (qmi_address)(i * layout->page_bytes);
    return QM_OK;
}

void qmi_kv_pages_free(qmi_kv_pages *pages, const qmi_backend *backend, qmi_device *device, const qmi_alloc *alloc)
{
    if (pages->block)
        backend->release(device, pages->block);
    qmi_delete(alloc, pages->table);
    *pages = (qmi_kv_pages){ 0 };
}

int32_t qmi_kv_pages_copy(const qmi_kv_layout *layout, const qmi_kv_pages *from, const qmi_kv_pages *to, int64_t tokens,
                          const qmi_backend *backend, qmi_device *device)
{
    int64_t bytes = qmi_kv_pages_for(layout, tokens) * layout->page_bytes;
    return bytes ? backend->copy(device, to->block, from->block, bytes) : QM_OK;
}
