/* The CUDA runtime's view of one made-up card: what it is and can, errors, and failures on demand. */
#include "emulator_runtime.h"

#include <stdarg.h>

struct emulator_card_state emulator_card;
thread_local cudaError_t emulator_last_error;
thread_local int emulator_thread_captures;

/* ---- errors ---- */
cudaError_t emulator_failed(cudaError_t error, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "emulator: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    return emulator_last_error = error;
}

int64_t emulator_setting(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

bool emulator_counted_down(int64_t *count)
{
    return *count > 0 && --*count == 0;
}

void emulator_begin(void)
{
    if (emulator_card.started)
        return;
    emulator_card.started = true;
    emulator_card.zero.blocking = true;
    emulator_card.fail_allocation = emulator_setting("QMI_EMULATOR_FAIL_ALLOCATION", 0);
    emulator_card.fail_call = emulator_setting("QMI_EMULATOR_FAIL_CALL", 0);
}

void emulator_fail(int64_t allocation, int64_t call)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    emulator_begin();
    emulator_card.fail_allocation = allocation;
    emulator_card.fail_call = call;
}

void emulator_lose(bool lost)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    emulator_card.lost = lost;
}

size_t emulator_allocated(void)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    return emulator_card.used;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = emulator_last_error;
    emulator_last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return emulator_last_error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" :
           error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" :
           error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration" : "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" :
           error == cudaErrorInvalidValue ? "invalid argument" :
           error == cudaErrorInvalidConfiguration ? "invalid configuration argument" :
           error == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing" : "unknown error";
}

/* ---- the card ---- */
int emulator_capability(void) { return (int)emulator_setting("QMI_EMULATOR_CAPABILITY", 90); }
size_t emulator_memory_total(void) { return (size_t)emulator_setting("QMI_EMULATOR_MEMORY", (int64_t)8 << 30); }
int emulator_shared_most(void) /* of a block; CUDA C++ Programming Guide, technical specifications per compute capability */
{
    const int c = emulator_capability();
    return c == 80 || c == 87 ? 163 << 10 : c == 90 || c == 100 ? 227 << 10 : 99 << 10;
}
static int processors(void) { return (int)emulator_setting("QMI_EMULATOR_PROCESSORS", 4); }

/* All cards' memory is one here. */
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int)
{
    CALL();
    *can = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned)
{
    CALL();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    CALL();
    *count = (int)emulator_setting("QMI_EMULATOR_DEVICES", 1);
    return *count ? cudaSuccess : emulator_last_error = cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device)
{
    CALL();
    if (device < 0 || device >= emulator_setting("QMI_EMULATOR_DEVICES", 1))
        return emulator_failed(cudaErrorInvalidDevice, "no device %d", device);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    CALL();
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device)
{
    CALL();
    (void)device;
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "emulated card");
    out->totalGlobalMem = emulator_memory_total();
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = (size_t)emulator_shared_most();
    out->sharedMemPerMultiprocessor = (size_t)emulator_shared_most() + 1024;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->warpSize = 32;
    out->maxThreadsPerBlock = 1024;
    out->maxThreadsPerMultiProcessor = emulator_capability() == 86 ? 1536 : 2048;
    out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    out->maxGridSize[0] = INT32_MAX;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->major = emulator_capability() / 10;
    out->minor = emulator_capability() % 10;
    out->multiProcessorCount = processors();
    out->canMapHostMemory = out->unifiedAddressing = out->concurrentKernels = 1;
    out->l2CacheSize = 8 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    CALL();
    (void)device;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = emulator_capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = emulator_capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = processors(); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulator_shared_most(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = emulator_shared_most() + 1024; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = emulator_capability() == 86 ? 1536 : 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 8 << 20; break;
    case cudaDevAttrCanMapHostMemory: case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: *value = 1; break;
    case cudaDevAttrIntegrated: case cudaDevAttrCooperativeLaunch: case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    default: return emulator_failed(cudaErrorInvalidValue, "device attribute %d is not emulated", (int)attribute);
    }
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceSetLimit(enum cudaLimit, size_t) { return cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    CALL();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    if (value < 0 || (size_t)value + emulator_static_shared(kernel) > (size_t)emulator_shared_most())
        return emulator_failed(cudaErrorInvalidValue, "%s: %d bytes of shared memory; the card has %d",
                               emulator_kernel_name(kernel), value, emulator_shared_most());
    emulator_card.shared_limits[kernel] = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel)
{
    CALL();
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->sharedSizeBytes = emulator_static_shared(kernel);
    out->maxDynamicSharedSizeBytes = emulator_card.shared_limits.count(kernel) ? emulator_card.shared_limits[kernel] : 48 << 10;
    out->binaryVersion = out->ptxVersion = emulator_capability();
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared)
{
    CALL();
    *blocks = min(16, (emulator_capability() == 86 ? 1536 : 2048) / max(threads, 1));
    if (shared)
        *blocks = min(*blocks, (int)((size_t)emulator_shared_most() / shared));
    return cudaSuccess;
}
