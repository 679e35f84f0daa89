/* The card as a backend: finding and opening it, its memory, and copies. */
#include "cuda_device.h"

extern "C" {
#include "cuda_backend.h"
}

#include <stdio.h>
#include <string.h>

#define CAPABILITY_LEAST 80
#define BOUNCE_BYTES ((int64_t)1 << 20)
/* What the driver takes for itself once kernels run: their code, stacks, graphs. */
#define FIXED_BYTES ((int64_t)32 << 20)
/* Prefill gains until here: weights are then read seldom beside the arithmetic. */
#define CHUNK_HIGH 4096
#define CHUNK_LOW 1024

/* ---- errors ---- */

/* Some errors stay with the process: then any call says so. */
static bool is_lost(qmi_device *device)
{
    cudaError_t state = device->stream ? cudaStreamQuery(device->stream) : cudaSuccess;
    (void)cudaGetLastError();
    return state != cudaSuccess && state != cudaErrorNotReady && state != cudaErrorStreamCaptureUnsupported;
}

int32_t cuda_check(qmi_device *device, cudaError_t error, const char *doing)
{
    if (error == cudaSuccess)
        return QM_OK;
    (void)cudaGetLastError(); /* forget it, if it can be forgotten */
    if (error == cudaErrorMemoryAllocation && !is_lost(device))
        return qmi_fail(QM_ERROR_MEMORY, "card %d: out of memory: %s", device->index, doing);
    qmi_fail(QM_ERROR_DEVICE, "card %d: %s failed: %s", device->index, doing, cudaGetErrorString(error));
    if (!device->lost && is_lost(device)) {
        device->lost = QM_ERROR_DEVICE;
        qmi_fail(QM_ERROR_DEVICE, "card %d is lost: %s failed: %s; load the model again in a new process", device->index, doing,
                 cudaGetErrorString(error));
        qmi_error_copy(device->lost_text);
    }
    return QM_ERROR_DEVICE;
}

int32_t cuda_enter(qmi_device *device)
{
    if (device->lost)
        return qmi_fail(device->lost, "%s", device->lost_text);
    (void)cudaGetLastError(); /* what an earlier call left behind is no failure of this one */
    return cuda_check(device, cudaSetDevice(device->index), "binding a thread to it");
}

/* ---- finding and opening ---- */

extern "C" int32_t qmi_cuda_device_count(void)
{
    int count = 0, driver = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0)
        return count;
    (void)cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        driver = 0;
    (void)cudaGetLastError();
    if (error == cudaSuccess || error == cudaErrorNoDevice)
        qmi_fail(QM_ERROR_DEVICE, "there is no NVIDIA card, or CUDA_VISIBLE_DEVICES hides it");
    else if (driver == 0)
        qmi_fail(QM_ERROR_DEVICE, "there is no NVIDIA driver; install it (nvidia-smi shows whether it works)");
    else if (error == cudaErrorInsufficientDriver)
        qmi_fail(QM_ERROR_DEVICE, "the NVIDIA driver serves CUDA %d.%d, and this backend was built with CUDA %d.%d; install a "
                 "newer driver", driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    else
        qmi_fail(QM_ERROR_DEVICE, "CUDA cannot be used: %s", cudaGetErrorString(error));
    return 0;
}

/* Is it one of those that the kernels were compiled for? */
static int32_t find_code(qmi_device *device, const struct cudaDeviceProp *facts)
{
    struct cudaFuncAttributes code;
    int32_t capability = 10 * facts->major + facts->minor;
    if (capability < CAPABILITY_LEAST)
        return qmi_fail(QM_ERROR_DEVICE, "card %d (%s) has compute capability %d.%d; %d.%d (Ampere) or later is needed",
                        device->index, facts->name, facts->major, facts->minor, CAPABILITY_LEAST / 10, CAPABILITY_LEAST % 10);
    cudaError_t error = cuda_run_attributes(&code);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
        error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidPtx) {
        (void)cudaGetLastError();
        return qmi_fail(QM_ERROR_DEVICE, "card %d (%s, compute capability %d.%d): the CUDA backend was built without code for "
                        "it; build it with -Dgpu_arch=native or all, or install a newer driver", device->index, facts->name,
                        facts->major, facts->minor);
    }
    if (error != cudaSuccess)
        return cuda_check(device, error, "loading the kernels");
    device->capability = code.ptxVersion; /* code for an older card, compiled by the driver, has the older one's features */
    device->processors = facts->multiProcessorCount;
    device->shared_most = (int32_t)facts->sharedMemPerBlockOptin;
    device->memory_total = (int64_t)facts->totalGlobalMem;
    snprintf(device->name, sizeof device->name, "%.127s", facts->name);
    return QM_OK;
}

static int32_t set_up_kernels(qmi_device *device)
{
    cudaError_t (*const setups[])(void) = { cuda_matvec_setup, cuda_matmul_setup, cuda_attend_setup, cuda_delta_setup };
    int32_t code = QM_OK;
    for (size_t i = 0; i < sizeof setups / sizeof *setups && code >= 0; i++)
        code = cuda_check(device, setups[i](), "setting up the kernels");
    return code;
}

static int32_t make_events(qmi_device *device)
{
    int32_t code = QM_OK;
    for (int i = 0; i < CUDA_AHEAD && code >= 0; i++)
        code = cuda_check(device, cudaEventCreateWithFlags(&device->ahead[i], cudaEventDisableTiming | cudaEventBlockingSync),
                          "making an event");
    return code;
}

static int32_t open_card(qmi_device *device, bool profile)
{
    struct cudaDeviceProp facts;
    int32_t count = qmi_cuda_device_count();
    if (count == 0)
        return QM_ERROR_DEVICE;
    if (device->index < 0 || device->index >= count)
        return qmi_fail(QM_ERROR_DEVICE, "there is no card %d; this process sees %d, the first of which is 0",
                        device->index, count);
    int32_t code = cuda_check(device, cudaGetDeviceProperties(&facts, device->index), "asking what it is");
    if (code >= 0)
        code = cuda_enter(device);
    if (code >= 0)
        code = find_code(device, &facts);
    if (code >= 0)
        code = cuda_check(device, cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking), "making a stream");
    if (code >= 0)
        code = make_events(device);
    if (code >= 0)
        code = cuda_check(device, cudaMallocHost((void **)&device->bounce, BOUNCE_BYTES), "pinned memory");
    if (code >= 0)
        code = set_up_kernels(device);
    if (code >= 0)
        code = cuda_run_open(device);
    if (code >= 0 && profile)
        code = cuda_profile_new(&device->alloc, &device->profile);
    return code;
}

extern "C" int32_t qmi_cuda_open(const qmi_device_settings *settings, qmi_device **out)
{
    *out = NULL;
    qmi_device *device = (qmi_device *)qmi_new(&settings->alloc, 1, sizeof *device, "CUDA device");
    if (!device)
        return QM_ERROR_MEMORY;
    device->alloc = settings->alloc;
    device->log = settings->log;
    device->index = settings->index;
    device->memory_limit = settings->memory_limit;
    int32_t code = open_card(device, settings->profile);
    if (code < 0) {
        qmi_cuda_close(&device);
        return code;
    }
    qmi_log_line(&device->log, QM_LOG_INFO, "CUDA: card %d, %s, %d multiprocessors, code for compute capability %d.%d",
                 device->index, device->name, device->processors, device->capability / 10, device->capability % 10);
    *out = device;
    return QM_OK;
}

/* Also for a lost device, where the calls fail and the driver has freed everything. */
extern "C" void qmi_cuda_close(qmi_device **pointer)
{
    qmi_device *device = *pointer;
    if (!device)
        return;
    const qmi_alloc alloc = device->alloc;
    (void)cudaSetDevice(device->index);
    cuda_uploader_abandon(&device->uploader);
    cuda_lend_close(device);
    cuda_help_log(device);
    cuda_help_close(device);
    if (device->stream)
        (void)cudaStreamSynchronize(device->stream);
    cuda_profile_free(&device->profile, &alloc, &device->log);
    cuda_run_close(device);
    for (size_t i = 0; i < device->block_count; i++)
        (void)cudaFree(device->blocks[i].address);
    (void)cudaFree(device->scratch);
    (void)cudaFreeHost(device->bounce);
    for (int i = 0; i < CUDA_AHEAD; i++)
        if (device->ahead[i])
            (void)cudaEventDestroy(device->ahead[i]);
    if (device->stream)
        (void)cudaStreamDestroy(device->stream);
    (void)cudaGetLastError();
    qmi_delete(&alloc, device->blocks);
    for (size_t i = 0; i < device->prepared_count; i++)
        cuda_lend_forget(device, &device->prepared[i].lent);
    qmi_delete(&alloc, device->prepared);
    qmi_delete(&alloc, device);
    *pointer = NULL;
}

extern "C" void qmi_cuda_info(qmi_device *device, qmi_device_info *out)
{
    size_t available = 0, total = 0;
    qmi_device_info info = {};
    info.threads = 1;
    info.memory_total = device->memory_total;
    info.memory_fixed = FIXED_BYTES;
    info.picks = true;
    info.chunk_low = CHUNK_LOW;
    info.chunk_high = CHUNK_HIGH;
    if (cuda_enter(device) >= 0 && cudaMemGetInfo(&available, &total) == cudaSuccess)
        info.memory_free = (int64_t)available;
    if (device->memory_limit > 0 && device->memory_limit < info.memory_total)
        info.memory_total = device->memory_limit;
    if (device->memory_limit > 0 && device->memory_limit - device->memory_used < info.memory_free)
        info.memory_free = device->memory_limit - device->memory_used;
    snprintf(info.name, sizeof info.name, "%s", device->name);
    snprintf(info.isa, sizeof info.isa, "sm_%d", device->capability);
    *out = info;
}

/* ---- memory ---- */

static int32_t count_memory(qmi_device *device, int64_t bytes, const char *what)
{
    if (bytes < 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "%s: %lld bytes cannot be allocated", what, (long long)bytes);
    if (device->memory_limit > 0 && bytes > device->memory_limit - device->memory_used)
        return qmi_fail(QM_ERROR_MEMORY, "%s: %lld bytes do not fit: the memory limit is %lld bytes, of which %lld are in use",
                        what, (long long)bytes, (long long)device->memory_limit, (long long)device->memory_used);
    device->memory_used += bytes;
    return QM_OK;
}

int32_t cuda_take(qmi_device *device, int64_t bytes, const char *what, void **out)
{
    char doing[128];
    *out = NULL;
    int32_t code = count_memory(device, bytes, what);
    if (code < 0)
        return code;
    snprintf(doing, sizeof doing, "%lld bytes for %s", (long long)bytes, what);
    code = cuda_check(device, cudaMalloc(out, bytes ? (size_t)bytes : 1), doing);
    if (code < 0) {
        *out = NULL;
        device->memory_used -= bytes;
    }
    return code;
}

void cuda_give(qmi_device *device, void *address, int64_t bytes)
{
    if (!address)
        return;
    (void)cudaFree(address);
    device->memory_used -= bytes;
}

/* Memory that lies in the list of blocks. */
static int32_t take_block(qmi_device *device, int64_t bytes, const char *what, void **out)
{
    void *blocks = device->blocks;
    int32_t code = qmi_reserve(&device->alloc, &blocks, &device->block_capacity, device->block_count + 1, sizeof *device->blocks,
                               "the list of the card's memory");
    device->blocks = (cuda_block *)blocks;
    if (code >= 0)
        code = cuda_take(device, bytes, what, out);
    if (code < 0)
        return code;
    const cuda_block block = { *out, bytes };
    device->blocks[device->block_count++] = block;
    return QM_OK;
}

extern "C" void qmi_cuda_release(qmi_device *device, qmi_address address)
{
    if (!address)
        return;
    (void)cuda_enter(device);
    for (size_t i = 0; i < device->block_count; i++)
        if ((qmi_address)device->blocks[i].address == address) {
            cuda_give(device, device->blocks[i].address, device->blocks[i].bytes);
            device->blocks[i] = device->blocks[--device->block_count];
            return;
        }
}

extern "C" int32_t qmi_cuda_allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out)
{
    void *address = NULL;
    *out = 0;
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = take_block(device, bytes, what, &address);
    if (code < 0)
        return code;
    *out = (qmi_address)address;
    code = cuda_check(device, cudaMemsetAsync(address, 0, (size_t)bytes, device->stream), "clearing memory");
    if (code < 0) {
        qmi_cuda_release(device, *out);
        *out = 0;
    }
    return code;
}

extern "C" int32_t qmi_cuda_write(qmi_device *device, qmi_address to, const void *from, int64_t bytes)
{
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = cuda_check(device, cudaMemcpyAsync((void *)to, from, (size_t)bytes, cudaMemcpyHostToDevice, device->stream),
                          "copying to it");
    if (code >= 0) /* `from` is the caller's again */
        code = cuda_check(device, cudaStreamSynchronize(device->stream), "copying to it");
    return code;
}

extern "C" int32_t qmi_cuda_read(qmi_device *device, void *to, qmi_address from, int64_t bytes)
{
    int32_t code = cuda_enter(device);
    for (int64_t at = 0; at < bytes && code >= 0; at += BOUNCE_BYTES) {
        size_t part = (size_t)(bytes - at < BOUNCE_BYTES ? bytes - at : BOUNCE_BYTES);
        code = cuda_check(device, cudaMemcpyAsync(device->bounce, (const void *)(from + at), part, cudaMemcpyDeviceToHost,
                                                  device->stream), "reading from it");
        if (code >= 0)
            code = cuda_check(device, cudaStreamSynchronize(device->stream), "reading from it");
        if (code >= 0)
            memcpy((char *)to + at, device->bounce, part);
    }
    return code;
}

extern "C" int32_t qmi_cuda_copy(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes)
{
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = cuda_check(device, cudaMemcpyAsync((void *)to, (const void *)from, (size_t)bytes, cudaMemcpyDeviceToDevice,
                                                  device->stream), "copying within it");
    return code;
}

extern "C" int32_t qmi_cuda_clear(qmi_device *device, qmi_address at, int64_t bytes)
{
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = cuda_check(device, cudaMemsetAsync((void *)at, 0, (size_t)bytes, device->stream), "clearing memory");
    return code;
}

/* ---- weights ---- */

extern "C" int64_t qmi_cuda_matrix_bytes(uint32_t *type, int64_t columns, int64_t rows)
{
    qmi_cuda_planes planes;
    *type = qmi_cuda_type(*type);
    qmi_cuda_planes_of(*type, columns, rows, &planes);
    return (planes.bytes + QMI_CUDA_PLANE_ALIGN - 1) / QMI_CUDA_PLANE_ALIGN * QMI_CUDA_PLANE_ALIGN;
}

/* Readers' memory on the card counts too while they have it; where little is left, smaller pieces do. */
int32_t cuda_start_uploader(qmi_device *device, const cuda_upload_files *files, cuda_uploader **out, int64_t *bytes)
{
    cuda_upload_settings settings = {};
    settings.device = device->index;
    settings.threads = files->threads;
    settings.maps = files->list;
    settings.map_count = files->count;
    settings.alloc = device->alloc;
    settings.piece = CUDA_UPLOAD_PIECE;
    int64_t staging = cuda_uploader_staging(&settings);
    while (device->memory_limit > 0 && staging > device->memory_limit - device->memory_used && settings.piece > 1 << 16) {
        settings.piece /= 2;
        staging = cuda_uploader_staging(&settings);
    }
    *bytes = 0;
    int32_t code = count_memory(device, staging, "the upload of weights");
    if (code < 0)
        return code;
    *bytes = staging;
    code = cuda_uploader_new(&settings, out);
    if (code < 0)
        device->memory_used -= staging;
    return code;
}

static void end_uploader(qmi_device *device)
{
    device->memory_used -= device->staging;
    device->staging = 0;
}

extern "C" int32_t qmi_cuda_upload_start(qmi_device *device, int64_t bytes, const qmi_os_map *files, int32_t file_count)
{
    void *weights = NULL;
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = take_block(device, bytes, "the weights", &weights);
    if (code < 0)
        return code;
    device->weights = (uint8_t *)weights;
    device->weights_bytes = bytes;
    device->weights_used = 0;
    const cuda_upload_files from = { files, file_count, 0 };
    code = cuda_start_uploader(device, &from, &device->uploader, &device->staging);
    return code < 0 ? code : cuda_lend_files(device, files, file_count);
}

/* data NULL: rows of the source. */
static int32_t upload_from(qmi_device *device, const void *data, const qmi_row_source *source, qmi_matrix *matrix)
{
    uint32_t type = matrix->type;
    int64_t rows = matrix->rows * matrix->count, bytes = qmi_cuda_matrix_bytes(&type, matrix->columns, rows);
    int32_t code = cuda_enter(device);
    if (code < 0)
        return code;
    if (!device->uploader || bytes > device->weights_bytes - device->weights_used)
        return qmi_fail(QM_ERROR_STATE, "weights of %lld bytes are more than was said before uploading", (long long)bytes);
    uint8_t *to = device->weights + device->weights_used;
    code = data ? cuda_uploader_add(device->uploader, data, matrix->type, matrix->columns, rows, to)
                : cuda_uploader_add_rows(device->uploader, source, matrix->type, matrix->columns, rows, to);
    if (code < 0)
        return code;
    device->weights_used += bytes;
    matrix->type = type;
    matrix->data = (qmi_address)to;
    return QM_OK;
}

extern "C" int32_t qmi_cuda_upload(qmi_device *device, const void *data, qmi_matrix *matrix)
{
    return upload_from(device, data, NULL, matrix);
}

extern "C" int32_t qmi_cuda_upload_rows(qmi_device *device, const qmi_row_source *source, qmi_matrix *matrix)
{
    return upload_from(device, NULL, source, matrix);
}

extern "C" int32_t qmi_cuda_upload_finish(qmi_device *device, qm_progress_callback progress, void *user, const int32_t *cancel)
{
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = cuda_uploader_finish(&device->uploader, progress, user, cancel);
    end_uploader(device);
    return code;
}
