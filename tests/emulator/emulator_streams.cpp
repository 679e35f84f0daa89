/* Streams, events, graphs and launches. What a stream is given runs as late as the rules allow, when somebody waits for it: so
 * a host that touches a buffer too early is found. */
#include "emulator_runtime.h"

#include <sched.h>

/* ---- streams ---- */
cudaStream_t emulator_stream(cudaStream_t stream)
{
    return stream && stream != cudaStreamLegacy ? stream : &emulator_card.zero;
}

/* Lets other threads work with the card. */
static void stand_aside(void)
{
    emulator_card.mutex.unlock();
    sched_yield();
    emulator_card.mutex.lock();
}

void emulator_meet(cudaStream_t stream, int64_t *given, int ranks, int rank, const int32_t *stop, uint64_t patience_ns)
{
    emulator_enqueue(emulator_stream(stream), [=]() {
        const int64_t turn = ++given[rank];
        const uint64_t start = chip_nanoseconds();
        stream->meeting = true;
        for (int i = 0; i < ranks; i++)
            while (given[i] < turn && !__atomic_load_n(stop, __ATOMIC_ACQUIRE) && chip_nanoseconds() - start < patience_ns)
                stand_aside();
        stream->meeting = false;
    });
}

void emulator_drain(cudaStream_t stream, cudaEvent_t until, int64_t number)
{
    while (stream->meeting)
        stand_aside();
    while (!stream->items.empty() && !(until && until->reached >= number)) {
        struct emulator_item item = stream->items.front();
        stream->items.pop_front();
        if (item.wait && item.wait->reached < item.number)
            emulator_drain(item.wait->stream, item.wait, item.number);
        if (item.reach)
            item.reach->reached = item.number;
        if (item.run)
            item.run();
    }
    emulator_check_unlinked();
}

void emulator_drain_all(void)
{
    for (cudaStream_t s : emulator_card.streams)
        emulator_drain(s, NULL, 0);
    emulator_drain(&emulator_card.zero, NULL, 0);
}

void emulator_drain_blocking(void)
{
    for (cudaStream_t s : emulator_card.streams)
        if (s->blocking)
            emulator_drain(s, NULL, 0);
    emulator_drain(&emulator_card.zero, NULL, 0);
}

void emulator_enqueue(cudaStream_t stream, const emulator_work &run)
{
    if (stream->capture)
        stream->capture->nodes.push_back(run);
    else if (stream == &emulator_card.zero) {
        emulator_drain_blocking();
        run();
    } else
        stream->items.push_back({ run, NULL, NULL, 0 });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    CALL();
    *out = new CUstream_st();
    (*out)->blocking = !(flags & cudaStreamNonBlocking);
    emulator_card.streams.insert(*out);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) { return cudaStreamCreateWithFlags(out, flags); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return cudaSuccess; }

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    if (!emulator_card.streams.count(stream))
        return emulator_failed(cudaErrorInvalidResourceHandle, "cudaStreamDestroy of what is no stream");
    emulator_drain(stream, NULL, 0);
    emulator_card.streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CALL();
    NOT_CAPTURING("cudaStreamSynchronize");
    if (emulator_stream(stream) == &emulator_card.zero)
        emulator_drain_blocking();
    else
        emulator_drain(stream, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    std::unique_lock<std::recursive_mutex> lock(emulator_card.mutex, std::try_to_lock);
    return lock ? cudaStreamSynchronize(stream) : cudaErrorNotReady; /* another thread waits for a stream */
}

cudaError_t cudaDeviceSynchronize(void)
{
    CALL();
    NOT_CAPTURING("cudaDeviceSynchronize");
    emulator_drain_all();
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *user)
{
    CALL();
    emulator_enqueue(emulator_stream(stream), [=]() { function(user); });
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
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    if (event->reached < event->recorded)
        emulator_drain(event->stream, event, event->recorded);
    for (cudaStream_t s : emulator_card.streams) /* who waits for it waits no longer */
        for (emulator_item &item : s->items) {
            item.wait = item.wait == event ? NULL : item.wait;
            item.reach = item.reach == event ? NULL : item.reach;
        }
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CALL();
    cudaStream_t s = emulator_stream(stream);
    event->capture = s->capture;
    if (s->capture)
        return cudaSuccess;
    event->stream = s;
    event->recorded++;
    if (s == &emulator_card.zero) {
        emulator_drain_blocking();
        event->reached = event->recorded;
    } else
        s->items.push_back({ emulator_work(), event, NULL, event->recorded });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    CALL();
    cudaStream_t s = emulator_stream(stream);
    if (event->capture) { /* joins the capture: nodes stand in the order of the calls, which is one of those allowed */
        s->capture = event->capture;
        return cudaSuccess;
    }
    if (event->reached < event->recorded)
        s->items.push_back({ emulator_work(), NULL, event, event->recorded });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CALL();
    if (event->reached < event->recorded)
        emulator_drain(event->stream, event, event->recorded);
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
        emulator_card.captures += by;
    else if (stream->mode == cudaStreamCaptureModeThreadLocal)
        emulator_thread_captures += by;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    CALL();
    if (emulator_stream(stream) == &emulator_card.zero || stream->capture)
        return emulator_failed(cudaErrorStreamCaptureUnsupported, "this stream can't begin a capture");
    stream->capture = new CUgraph_st();
    stream->origin = true;
    stream->mode = mode;
    count_capture(stream, 1);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    cudaGraph_t graph = stream->capture;
    *out = NULL;
    if (!graph || !stream->origin)
        return emulator_failed(cudaErrorIllegalState, "no capture began in this stream");
    for (cudaStream_t s : emulator_card.streams)
        if (s->capture == graph) {
            s->capture = NULL;
            s->origin = false;
        }
    count_capture(stream, -1);
    if (emulator_counted_down(&emulator_card.fail_call)) {
        delete graph;
        return emulator_last_error = cudaErrorUnknown;
    }
    *out = graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out)
{
    CALL();
    *out = emulator_stream(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
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
    for (const emulator_work &node : graph->nodes)
        emulator_enqueue(emulator_stream(stream), node);
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info)
{
    CALL();
    emulator_drain_all();
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
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    emulator_drain_all();
    delete graph;
    return cudaSuccess;
}

/* ---- launches ---- */
void emulator_launch(cudaStream_t stream, const void *kernel, int cluster, dim3 grid, dim3 block, size_t shared, bool linked,
                     const emulator_work &body)
{
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex);
    const bool raised = emulator_card.shared_limits.count(kernel) != 0;
    const size_t usual = (size_t)48 << 10, limit = raised ? max((size_t)emulator_card.shared_limits[kernel], usual) : usual;
    const size_t fixed = emulator_static_shared(kernel);
    emulator_begin();
    if (emulator_counted_down(&emulator_card.fail_call)) {
        emulator_last_error = cudaErrorUnknown;
        return;
    }
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !block.x || !block.y || !block.z || block.z > 64 ||
        (uint64_t)block.x * block.y * block.z > 1024) {
        emulator_failed(cudaErrorInvalidConfiguration, "%s: a grid of %u x %u x %u blocks of %u x %u x %u threads",
                        emulator_kernel_name(kernel), grid.x, grid.y, grid.z, block.x, block.y, block.z);
        return;
    }
    if (cluster > 1 && (emulator_capability() < 90 || cluster > EMULATOR_CLUSTER || grid.x % (unsigned)cluster)) {
        emulator_failed(cudaErrorInvalidConfiguration, "%s: clusters of %d blocks in a grid of %u", emulator_kernel_name(kernel),
                        cluster, grid.x);
        return;
    }
    if (shared > limit || (shared + fixed > usual && !raised) || shared + fixed > (size_t)emulator_shared_most()) {
        emulator_failed(cudaErrorInvalidValue, "%s: %zu bytes of shared memory and %zu of variables; it was allowed %zu",
                        emulator_kernel_name(kernel), shared, fixed, limit);
        return;
    }
    emulator_enqueue(emulator_stream(stream), [=]() { emulator_execute(kernel, cluster, grid, block, shared, linked, body); });
}
