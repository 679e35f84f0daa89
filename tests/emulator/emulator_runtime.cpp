/* The functions of the CUDA runtime that the backend calls, for one made-up card whose memory is the host's. What a stream is
 * given runs as late as the rules allow, when somebody waits for it: so a host that touches a buffer too early is found. */
#include "emulator_inside.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT 256 /* of cudaMalloc */

typedef std::function<void()> work;

/* What a stream has still to do: work, or an event that it reaches (number), or one that it waits for. */
struct item {
    work run;
    cudaEvent_t reach, wait;
    int64_t number;
};

struct CUgraph_st { std::vector<work> nodes; };
struct CUgraphExec_st { std::vector<work> nodes; };
struct CUstream_st {
    bool blocking;             /* waits for, and is waited for by, the stream 0 */
    cudaGraph_t capture;       /* being recorded */
    bool origin;               /* the capture began here */
    enum cudaStreamCaptureMode mode;
    std::deque<struct item> items;
};
struct CUevent_st {
    int64_t recorded, reached;
    cudaStream_t stream;
    cudaGraph_t capture;
};

struct allocation {
    size_t bytes, mapped;
    uint8_t *map;
    bool host;                 /* pinned */
};

static struct {
    std::recursive_mutex mutex;
    std::map<uintptr_t, struct allocation> allocations;
    std::map<const void *, int> shared_limits;
    std::set<cudaStream_t> streams;
    struct CUstream_st zero;
    int captures;
    size_t used;
    int64_t fail_allocation, fail_call; /* 0: none, n: the n-th from now */
    bool started;
} card;

static thread_local cudaError_t last_error;
static thread_local int thread_captures; /* that this thread began */

/* ---- errors ---- */
static cudaError_t failed(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
static cudaError_t failed(cudaError_t error, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "emulator: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    return last_error = error;
}

static int64_t setting(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

static bool counted_down(int64_t *count)
{
    return *count > 0 && --*count == 0;
}

/* Each call begins with this: takes the lock, and fails where it was asked to. */
#define CALL() \
    std::lock_guard<std::recursive_mutex> lock(card.mutex); \
    begin(); \
    if (counted_down(&card.fail_call)) \
        return last_error = cudaErrorUnknown

static void begin(void)
{
    if (card.started)
        return;
    card.started = true;
    card.zero.blocking = true;
    card.fail_allocation = setting("QMI_EMULATOR_FAIL_ALLOCATION", 0);
    card.fail_call = setting("QMI_EMULATOR_FAIL_CALL", 0);
}

void emulator_fail(int64_t allocation, int64_t call)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    begin();
    card.fail_allocation = allocation;
    card.fail_call = call;
}

size_t emulator_allocated(void)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    return card.used;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
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
static int capability(void) { return (int)setting("QMI_EMULATOR_CAPABILITY", 90); }
static size_t memory_total(void) { return (size_t)setting("QMI_EMULATOR_MEMORY", (int64_t)8 << 30); }
static int shared_most(void) { return capability() >= 90 ? 227 << 10 : capability() == 80 ? 163 << 10 : 99 << 10; }
static int processors(void) { return (int)setting("QMI_EMULATOR_PROCESSORS", 4); }

cudaError_t cudaGetDeviceCount(int *count)
{
    CALL();
    *count = (int)setting("QMI_EMULATOR_DEVICES", 1);
    return *count ? cudaSuccess : last_error = cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device)
{
    CALL();
    if (device < 0 || device >= setting("QMI_EMULATOR_DEVICES", 1))
        return failed(cudaErrorInvalidDevice, "no device %d", device);
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
    out->totalGlobalMem = memory_total();
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = (size_t)shared_most();
    out->sharedMemPerMultiprocessor = (size_t)shared_most() + 1024;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->warpSize = 32;
    out->maxThreadsPerBlock = 1024;
    out->maxThreadsPerMultiProcessor = capability() == 86 ? 1536 : 2048;
    out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    out->maxGridSize[0] = INT32_MAX;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->major = capability() / 10;
    out->minor = capability() % 10;
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
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = processors(); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_most(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_most() + 1024; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = capability() == 86 ? 1536 : 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 8 << 20; break;
    case cudaDevAttrCanMapHostMemory: case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: *value = 1; break;
    case cudaDevAttrIntegrated: case cudaDevAttrCooperativeLaunch: case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    default: return failed(cudaErrorInvalidValue, "device attribute %d is not emulated", (int)attribute);
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
    if (value < 0 || (size_t)value + emulator_static_shared(kernel) > (size_t)shared_most())
        return failed(cudaErrorInvalidValue, "%s: %d bytes of shared memory; the card has %d", emulator_kernel_name(kernel),
                      value, shared_most());
    card.shared_limits[kernel] = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel)
{
    CALL();
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->maxDynamicSharedSizeBytes = card.shared_limits.count(kernel) ? card.shared_limits[kernel] : 48 << 10;
    out->binaryVersion = out->ptxVersion = capability();
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared)
{
    CALL();
    *blocks = min(16, (capability() == 86 ? 1536 : 2048) / max(threads, 1));
    if (shared)
        *blocks = min(*blocks, (int)((size_t)shared_most() / shared));
    return cudaSuccess;
}

/* ---- streams ---- */
static cudaStream_t stream_of(cudaStream_t stream)
{
    return stream && stream != cudaStreamLegacy ? stream : &card.zero;
}

static void drain(cudaStream_t stream, cudaEvent_t until, int64_t number)
{
    while (!stream->items.empty() && !(until && until->reached >= number)) {
        struct item item = stream->items.front();
        stream->items.pop_front();
        if (item.wait && item.wait->reached < item.number)
            drain(item.wait->stream, item.wait, item.number);
        if (item.reach)
            item.reach->reached = item.number;
        if (item.run)
            item.run();
    }
    emulator_check_unlinked();
}

static void drain_all(void)
{
    for (cudaStream_t s : card.streams)
        drain(s, NULL, 0);
    drain(&card.zero, NULL, 0);
}

static void drain_blocking(void)
{
    for (cudaStream_t s : card.streams)
        if (s->blocking)
            drain(s, NULL, 0);
    drain(&card.zero, NULL, 0);
}

/* Gives work to a stream, or to the graph that it records. */
static void enqueue(cudaStream_t stream, const work &run)
{
    if (stream->capture)
        stream->capture->nodes.push_back(run);
    else if (stream == &card.zero) {
        drain_blocking();
        run();
    } else
        stream->items.push_back({ run, NULL, NULL, 0 });
}

/* For calls that a capture forbids: one of mode "global" to all threads, one of mode "thread local" to its own. */
#define NOT_CAPTURING(what) \
    do { \
        if (card.captures || thread_captures) \
            return failed(cudaErrorStreamCaptureUnsupported, "%s while a stream is captured", what); \
    } while (0)

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    CALL();
    *out = new CUstream_st();
    (*out)->blocking = !(flags & cudaStreamNonBlocking);
    card.streams.insert(*out);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) { return cudaStreamCreateWithFlags(out, flags); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return cudaSuccess; }

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    if (!card.streams.count(stream))
        return failed(cudaErrorInvalidResourceHandle, "cudaStreamDestroy of what is no stream");
    drain(stream, NULL, 0);
    card.streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CALL();
    NOT_CAPTURING("cudaStreamSynchronize");
    if (stream_of(stream) == &card.zero)
        drain_blocking();
    else
        drain(stream, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    return cudaStreamSynchronize(stream);
}

cudaError_t cudaDeviceSynchronize(void)
{
    CALL();
    NOT_CAPTURING("cudaDeviceSynchronize");
    drain_all();
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *user)
{
    CALL();
    enqueue(stream_of(stream), [=]() { function(user); });
    return cudaSuccess;
}

/* ---- events ---- */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned)
{
    CALL();
    *out = new CUevent_st();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    if (event->reached < event->recorded)
        drain(event->stream, event, event->recorded);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CALL();
    cudaStream_t s = stream_of(stream);
    event->capture = s->capture;
    if (s->capture)
        return cudaSuccess;
    event->stream = s;
    event->recorded++;
    if (s == &card.zero) {
        drain_blocking();
        event->reached = event->recorded;
    } else
        s->items.push_back({ work(), event, NULL, event->recorded });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    CALL();
    cudaStream_t s = stream_of(stream);
    if (event->capture) { /* joins the capture: nodes stand in the order of the calls, which is one of those allowed */
        s->capture = event->capture;
        return cudaSuccess;
    }
    if (event->reached < event->recorded)
        s->items.push_back({ work(), NULL, event, event->recorded });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CALL();
    if (event->reached < event->recorded)
        drain(event->stream, event, event->recorded);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t)
{
    CALL();
    *milliseconds = 1;
    return cudaSuccess;
}

/* ---- graphs ---- */
static void count_capture(cudaStream_t stream, int by)
{
    if (stream->mode == cudaStreamCaptureModeGlobal)
        card.captures += by;
    else if (stream->mode == cudaStreamCaptureModeThreadLocal)
        thread_captures += by;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    CALL();
    if (stream_of(stream) == &card.zero || stream->capture)
        return failed(cudaErrorStreamCaptureUnsupported, "this stream can't begin a capture");
    stream->capture = new CUgraph_st();
    stream->origin = true;
    stream->mode = mode;
    count_capture(stream, 1);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    cudaGraph_t graph = stream->capture;
    *out = NULL;
    if (!graph || !stream->origin)
        return failed(cudaErrorIllegalState, "no capture began in this stream");
    for (cudaStream_t s : card.streams)
        if (s->capture == graph) {
            s->capture = NULL;
            s->origin = false;
        }
    count_capture(stream, -1);
    if (counted_down(&card.fail_call)) {
        delete graph;
        return last_error = cudaErrorUnknown;
    }
    *out = graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out)
{
    CALL();
    *out = stream_of(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    CALL();
    *out = new CUgraphExec_st();
    (*out)->nodes = graph->nodes;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    CALL();
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    CALL();
    for (const work &node : graph->nodes)
        enqueue(stream_of(stream), node);
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info)
{
    CALL();
    drain_all();
    exec->nodes = graph->nodes;
    if (info)
        info->result = cudaGraphExecUpdateSuccess;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count)
{
    CALL();
    *count = graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    drain_all();
    delete graph;
    return cudaSuccess;
}

/* ---- memory ---- */
/* The allocation that `p` lies in. */
static const struct allocation *allocation_of(const void *p, uintptr_t *start)
{
    auto i = card.allocations.upper_bound((uintptr_t)p);
    if (i == card.allocations.begin())
        return NULL;
    --i;
    if ((uintptr_t)p >= i->first + i->second.bytes)
        return NULL;
    *start = i->first;
    return &i->second;
}

uintptr_t emulator_allocation(const void *p, size_t *bytes)
{
    auto i = card.allocations.upper_bound((uintptr_t)p + 2 * ALIGNMENT); /* also what lies a little before or after it */
    while (i != card.allocations.begin()) {
        --i;
        if ((uintptr_t)p < (uintptr_t)i->second.map)
            continue;
        if ((uintptr_t)p >= (uintptr_t)i->second.map + i->second.mapped || i->second.host)
            return 0;
        *bytes = i->second.bytes;
        return i->first;
    }
    return 0;
}

static cudaError_t allocate(void **out, size_t bytes, bool host)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct allocation a = { bytes, 0, NULL, host };
    *out = NULL;
    if (!bytes)
        return cudaSuccess;
    NOT_CAPTURING("an allocation");
    if (counted_down(&card.fail_allocation) || (!host && card.used + bytes > memory_total()))
        return last_error = cudaErrorMemoryAllocation;
    /* [ zone | memory | zone ][ page that can't be touched ] */
    const size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, room = (rounded + ALIGNMENT + page - 1) / page * page;
    a.mapped = room + page;
    a.map = (uint8_t *)mmap(NULL, a.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a.map == MAP_FAILED)
        return last_error = cudaErrorMemoryAllocation;
    mprotect(a.map + room, page, PROT_NONE);
    memset(a.map, EMULATOR_FRESH, room);
    uint8_t *p = a.map + room - rounded;
    card.allocations[(uintptr_t)p] = a;
    if (!host)
        card.used += bytes;
    *out = p;
    return cudaSuccess;
}

static cudaError_t release(void *p, bool host)
{
    auto i = card.allocations.find((uintptr_t)p);
    if (!p)
        return cudaSuccess;
    NOT_CAPTURING("a release of memory");
    if (i == card.allocations.end() || i->second.host != host)
        return failed(cudaErrorInvalidValue, "release of %p, which is no %s memory", p, host ? "pinned" : "card's");
    drain_all();
    const struct allocation a = i->second;
    const uint8_t *end = a.map + a.mapped - (size_t)sysconf(_SC_PAGESIZE);
    for (const uint8_t *q = a.map; q < end; q++)
        if (*q != EMULATOR_FRESH && !(q >= (uint8_t *)p && q < (uint8_t *)p + a.bytes))
            emulator_fault("byte %td of an allocation of %zu bytes was written", q - (uint8_t *)p, a.bytes);
    if (!host)
        card.used -= a.bytes;
    emulator_check_released(i->first);
    card.allocations.erase(i);
    munmap(a.map, a.mapped);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes) { CALL(); return allocate(out, bytes, false); }
cudaError_t cudaMallocHost(void **out, size_t bytes) { CALL(); return allocate(out, bytes, true); }
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) { CALL(); return allocate(out, bytes, true); }
cudaError_t cudaFree(void *p) { std::lock_guard<std::recursive_mutex> lock(card.mutex); return release(p, false); }
cudaError_t cudaFreeHost(void *p) { std::lock_guard<std::recursive_mutex> lock(card.mutex); return release(p, true); }

cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned)
{
    CALL();
    uintptr_t start;
    const struct allocation *a = allocation_of(host, &start);
    if (!a || !a->host)
        return failed(cudaErrorInvalidValue, "%p is no pinned memory", host);
    *out = host;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *, size_t, unsigned) { CALL(); return cudaSuccess; }
cudaError_t cudaHostUnregister(void *) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    CALL();
    *total = memory_total();
    *available = *total - card.used;
    return cudaSuccess;
}

/* The card's side of a copy must lie in one allocation; the host's must not be the card's memory. */
static cudaError_t check_range(const void *p, size_t bytes, bool on_card, const char *what)
{
    uintptr_t start = 0;
    const struct allocation *a = allocation_of(p, &start);
    if (on_card && (!a || (uintptr_t)p - start + bytes > a->bytes))
        return failed(cudaErrorInvalidValue, "%s: %zu bytes at %p are not in one allocation", what, bytes, p);
    if (!on_card && a && !a->host)
        return failed(cudaErrorInvalidValue, "%s: %p is the card's memory", what, p);
    return cudaSuccess;
}

/* A copy or fill in a stream: kernels after it wait for it in any case. */
static void move(void *to, const void *from, size_t bytes)
{
    emulator_check_unlinked();
    emulator_check_overwritten(to, bytes);
    memmove(to, from, bytes);
}

static void fill(void *p, int value, size_t bytes)
{
    emulator_check_unlinked();
    emulator_check_overwritten(p, bytes);
    memset(p, value, bytes);
}

static cudaError_t check_copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaError_t e = cudaSuccess;
    if (kind == cudaMemcpyDefault || !bytes)
        return e;
    e = check_range(to, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, "copy to");
    return e ? e : check_range(from, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, "copy from");
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    CALL();
    NOT_CAPTURING("cudaMemcpy");
    cudaError_t e = check_copy(to, from, bytes, kind);
    if (e)
        return e;
    drain_blocking();
    move(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    CALL();
    cudaStream_t s = stream_of(stream);
    uintptr_t start;
    const bool pageable_from = !allocation_of(from, &start), pageable_to = !allocation_of(to, &start);
    cudaError_t e = check_copy(to, from, bytes, kind);
    if (e)
        return e;
    if (pageable_from && !s->capture) { /* such memory is read before the call returns */
        auto kept = std::make_shared<std::vector<uint8_t>>((const uint8_t *)from, (const uint8_t *)from + bytes);
        enqueue(s, [=]() { move(to, kept->data(), bytes); });
    } else
        enqueue(s, [=]() { move(to, from, bytes); });
    if (pageable_to && !s->capture) /* and written before it returns */
        drain(s, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    CALL();
    cudaError_t e = bytes ? check_range(p, bytes, true, "cudaMemset") : cudaSuccess;
    if (e)
        return e;
    enqueue(stream_of(stream), [=]() { fill(p, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes)
{
    CALL();
    NOT_CAPTURING("cudaMemset");
    cudaError_t e = bytes ? check_range(p, bytes, true, "cudaMemset") : cudaSuccess;
    if (e)
        return e;
    drain_blocking();
    fill(p, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p)
{
    CALL();
    uintptr_t start;
    const struct allocation *a = allocation_of(p, &start);
    memset(out, 0, sizeof *out);
    out->type = !a ? cudaMemoryTypeUnregistered : a->host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    out->devicePointer = a ? (void *)p : NULL;
    out->hostPointer = a && a->host ? (void *)p : NULL;
    return cudaSuccess;
}

/* ---- launches ---- */
void emulator_launch(cudaStream_t stream, const void *kernel, int cluster, dim3 grid, dim3 block, size_t shared, bool linked,
                     const work &body)
{
    std::lock_guard<std::recursive_mutex> lock(card.mutex);
    const size_t limit = card.shared_limits.count(kernel) ? (size_t)max(card.shared_limits[kernel], 48 << 10) : (size_t)48 << 10;
    const size_t fixed = emulator_static_shared(kernel);
    begin();
    if (counted_down(&card.fail_call)) {
        last_error = cudaErrorUnknown;
        return;
    }
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !block.x || !block.y || !block.z || block.z > 64 ||
        (uint64_t)block.x * block.y * block.z > 1024) {
        failed(cudaErrorInvalidConfiguration, "%s: a grid of %u x %u x %u blocks of %u x %u x %u threads",
               emulator_kernel_name(kernel), grid.x, grid.y, grid.z, block.x, block.y, block.z);
        return;
    }
    if (cluster > 1 && (capability() < 90 || cluster > EMULATOR_CLUSTER || grid.x % (unsigned)cluster)) {
        failed(cudaErrorInvalidConfiguration, "%s: clusters of %d blocks in a grid of %u", emulator_kernel_name(kernel), cluster,
               grid.x);
        return;
    }
    if (shared > limit || (shared + fixed > (size_t)48 << 10 && !card.shared_limits.count(kernel)) ||
        shared + fixed > (size_t)shared_most()) {
        failed(cudaErrorInvalidValue, "%s: %zu bytes of shared memory and %zu of variables; it was allowed %zu",
               emulator_kernel_name(kernel), shared, fixed, limit);
        return;
    }
    enqueue(stream_of(stream), [=]() { emulator_execute(kernel, cluster, grid, block, shared, linked, body); });
}
