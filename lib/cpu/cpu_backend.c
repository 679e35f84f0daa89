/* The CPU as a backend: devices, memory, and the table of functions. Addresses are pointers, and weights stay where they are. */
#include "cpu/cpu_backend.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "cpu/cpu_features.h"
#include "cpu/cpu_ops.h"

static int32_t device_count(void)
{
    return 1;
}

static void log_times(const qmi_device *device)
{
    for (int kind = 0; kind < QMI_OP_COUNT; kind++) {
        int64_t count = device->op_count[kind];
        double us = (double)device->op_ns[kind] / 1e3;
        if (count)
            qmi_log_line(&device->log, QM_LOG_INFO, "CPU: %-12s %9lld runs, %10.3f ms, %9.2f us each",
                         qmi_op_name((qmi_op_kind)kind), (long long)count, us / 1e3, us / (double)count);
    }
}

static void close_device(qmi_device **device)
{
    if (!*device)
        return;
    qmi_alloc alloc = (*device)->alloc;
    log_times(*device);
    qmi_cpu_pool_free(&alloc, &(*device)->pool);
    qmi_delete(&alloc, (*device)->scratch);
    qmi_delete(&alloc, *device);
    *device = NULL;
}

static int32_t open_device(const qmi_device_settings *settings, qmi_device **out)
{
    *out = NULL;
    if (settings->index != 0)
        return qmi_fail(QM_ERROR_DEVICE, "device cpu:%d: there is one CPU, cpu:0", settings->index);
    qmi_device *device = qmi_new(&settings->alloc, 1, sizeof *device, "CPU device");
    if (!device)
        return QM_ERROR_MEMORY;
    device->alloc = settings->alloc;
    device->log = settings->log;
    device->memory_limit = settings->memory_limit;
    device->profile = settings->profile;
    device->threads = settings->threads ? settings->threads : qmi_os_processor_count();
    if (!settings->threads && device->threads > QMI_CPU_THREADS_MAX)
        device->threads = QMI_CPU_THREADS_MAX;
    qmi_cpu_kernels_fill(&device->kernels, qmi_cpu_features_chosen(settings->isa));
    int32_t code = qmi_cpu_pool_new(&device->alloc, device->threads, settings->pin, &device->pool);
    if (code < 0) {
        close_device(&device);
        return code;
    }
    qmi_log_line(&device->log, QM_LOG_INFO, "CPU: %d threads, kernels %s", device->threads, device->kernels.isa);
    *out = device;
    return QM_OK;
}

static void info(qmi_device *device, qmi_device_info *out)
{
    *out = (qmi_device_info){ .threads = device->threads, .memory_total = qmi_os_memory_total(),
                              .memory_free = qmi_os_memory_available(), .shares_host = true, .mapped = true,
                              .chunk_low = QMI_CPU_BATCH, .chunk_high = QMI_CPU_BATCH };
    qmi_cpu_features_name(out->name, sizeof out->name);
    snprintf(out->isa, sizeof out->isa, "%s", device->kernels.isa);
    if (device->memory_limit > 0 && device->memory_limit < out->memory_total)
        out->memory_total = device->memory_limit;
    if (device->memory_limit > 0 && device->memory_limit - device->memory_used < out->memory_free)
        out->memory_free = device->memory_limit - device->memory_used;
}

/* ---- Memory: each block has its size before it, for the sum ---- */

static int32_t reserve(qmi_device *device, int64_t bytes, const char *what)
{
    if (bytes < 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "%s: %lld bytes cannot be allocated", what, (long long)bytes);
    if (device->memory_limit > 0 && bytes > device->memory_limit - device->memory_used)
        return qmi_fail(QM_ERROR_MEMORY, "%s: %lld bytes do not fit: the memory limit is %lld bytes, of which %lld are in use",
                        what, (long long)bytes, (long long)device->memory_limit, (long long)device->memory_used);
    device->memory_used += bytes;
    return QM_OK;
}

static int32_t allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out)
{
    *out = 0;
    int32_t code = reserve(device, bytes, what);
    if (code < 0)
        return code;
    char *block = qmi_new(&device->alloc, (size_t)bytes + QMI_ALIGNMENT, 1, what);
    if (!block) {
        device->memory_used -= bytes;
        return QM_ERROR_MEMORY;
    }
    memcpy(block, &bytes, sizeof bytes);
    *out = (qmi_address)(uintptr_t)(block + QMI_ALIGNMENT);
    return QM_OK;
}

static void release(qmi_device *device, qmi_address address)
{
    if (!address)
        return;
    char *block = (char *)(uintptr_t)address - QMI_ALIGNMENT;
    int64_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    device->memory_used -= bytes;
    qmi_delete(&device->alloc, block);
}

static int32_t upload(qmi_device *device, const void *data, qmi_matrix *matrix)
{
    (void)device;
    matrix->data = (qmi_address)(uintptr_t)data;
    return QM_OK;
}

static int32_t write_memory(qmi_device *device, qmi_address to, const void *from, int64_t bytes)
{
    (void)device;
    memcpy((void *)(uintptr_t)to, from, (size_t)bytes);
    return QM_OK;
}

static int32_t read_memory(qmi_device *device, void *to, qmi_address from, int64_t bytes)
{
    (void)device;
    memcpy(to, (const void *)(uintptr_t)from, (size_t)bytes);
    return QM_OK;
}

static int32_t copy_memory(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes)
{
    (void)device;
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, (size_t)bytes);
    return QM_OK;
}

static int32_t clear_memory(qmi_device *device, qmi_address at, int64_t bytes)
{
    (void)device;
    memset((void *)(uintptr_t)at, 0, (size_t)bytes);
    return QM_OK;
}

/* ---- Scratch ---- */

static int64_t scratch_bytes(const qmi_program *program, int32_t rows, int32_t threads)
{
    if (rows < 1 || rows > QMI_CPU_ROWS_MAX || threads < 1 || threads > QMI_CPU_THREADS_MAX)
        return qmi_fail(QM_ERROR_ARGUMENT, "batches of %d rows with %d threads are out of range (1 .. %d, 1 .. %d)", rows,
                        threads, QMI_CPU_ROWS_MAX, QMI_CPU_THREADS_MAX);
    qmi_cpu_needs needs = qmi_cpu_run_needs(program, rows, threads);
    return needs.shared + threads * needs.own;
}

static int32_t prepare(qmi_device *device, const qmi_program *program, int32_t rows)
{
    int64_t bytes = scratch_bytes(program, rows, device->threads);
    if (bytes < 0)
        return (int32_t)bytes;
    if (bytes <= device->scratch_size)
        return QM_OK;
    /* Scratch holds nothing between runs, so the old one goes first. */
    device->memory_used -= device->scratch_size;
    qmi_delete(&device->alloc, device->scratch);
    device->scratch = NULL;
    device->scratch_size = 0;
    int32_t code = reserve(device, bytes, "scratch of the CPU");
    if (code < 0)
        return code;
    device->scratch = qmi_new(&device->alloc, (size_t)bytes, 1, "scratch of the CPU");
    if (!device->scratch) {
        device->memory_used -= bytes;
        return QM_ERROR_MEMORY;
    }
    device->scratch_size = bytes;
    return QM_OK;
}

const qmi_backend qmi_cpu_backend = {
    .abi = QMI_BACKEND_ABI,
    .name = "cpu",
    .device_count = device_count,
    .open = open_device,
    .close = close_device,
    .info = info,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .lend = upload,
    .write = write_memory,
    .read = read_memory,
    .copy = copy_memory,
    .clear = clear_memory,
    .scratch_bytes = scratch_bytes,
    .prepare = prepare,
    .run = qmi_cpu_run,
    .read_rate = qmi_cpu_read_rate,
};
