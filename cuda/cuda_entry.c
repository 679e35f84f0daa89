/* The one symbol of the shared object, and the table behind it. Messages go to the library that opened it, so that there is one a
 * thread, whoever failed. */
#include "cuda_backend.h"
#include "cuda_exchange.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const qmi_backend_host *host;

/* ---- base/error.h ---- */

int32_t qmi_fail(int32_t code, const char *format, ...)
{
    char text[QMI_ERROR_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return host->fail(code, "%s", text);
}

int32_t qmi_fail_within(int32_t code, const char *prefix)
{
    return host->fail(code, "%s: %s", prefix, host->error_text());
}

const char *qmi_error_text(void)
{
    return host->error_text();
}

void qmi_error_copy(char out[QMI_ERROR_SIZE])
{
    snprintf(out, QMI_ERROR_SIZE, "%s", host->error_text());
}

void qmi_error_restore(const char *message)
{
    host->fail(0, "%s", message);
}

/* ---- the table ---- */

static const qmi_joint *const joints[] = { &qmi_cuda_peer, &qmi_cuda_pinned, &qmi_cuda_nccl, NULL };

static const qmi_backend backend = {
    .abi = QMI_BACKEND_ABI,
    .name = "cuda",
    .device_count = qmi_cuda_device_count,
    .open = qmi_cuda_open,
    .close = qmi_cuda_close,
    .info = qmi_cuda_info,
    .allocate = qmi_cuda_allocate,
    .release = qmi_cuda_release,
    .matrix_bytes = qmi_cuda_matrix_bytes,
    .upload_start = qmi_cuda_upload_start,
    .upload = qmi_cuda_upload,
    .upload_rows = qmi_cuda_upload_rows,
    .lend = qmi_cuda_lend,
    .upload_finish = qmi_cuda_upload_finish,
    .write = qmi_cuda_write,
    .read = qmi_cuda_read,
    .copy = qmi_cuda_copy,
    .clear = qmi_cuda_clear,
    .scratch_bytes = qmi_cuda_scratch_bytes,
    .prepare = qmi_cuda_prepare,
    .run = qmi_cuda_run,
    .set_helper = qmi_cuda_set_helper,
    .joints = joints,
};

__attribute__((visibility("default"))) const qmi_backend *qmi_backend_entry(int32_t abi, const qmi_backend_host *given);

const qmi_backend *qmi_backend_entry(int32_t abi, const qmi_backend_host *given)
{
    if (abi != QMI_BACKEND_ABI)
        return NULL;
    __atomic_store_n(&host, given, __ATOMIC_RELEASE); /* each caller of a process gives the same */
    return &backend;
}
