/* Sums between cards by NCCL, which is opened when it is first needed (NCCL documentation, "Communicator Creation and Management
 * Functions" and "Collective Communication Functions"); its header need not be installed. A sum is put into the device's stream
 * between its kernels, so nobody on the host waits for it. */
#include "cuda_device.h"
#include "cuda_exchange.h"

extern "C" {
#include "base/os.h"
}

#include <pthread.h>
#include <string.h>

enum { SUCCESS = 0, IN_PROGRESS = 7, FLOAT32 = 7, SUM = 0 }; /* ncclSuccess, ncclInProgress, ncclFloat32, ncclSum of its header */
#define LOOK_NS 1000000 /* how often who waits looks, once it has waited for so long without a pause */

typedef struct nccl_id { /* ncclUniqueId, which goes by value */
    char bytes[QMI_JOINT_ID];
} nccl_id;

/* ncclConfig_t as of 2.14; later versions take the shorter one by its size, and defaults for the rest. */
typedef struct nccl_config {
    size_t size;
    unsigned int magic, version;
    int blocking; /* 0: calls return at once, and nccl_state says when they are done */
} nccl_config;
#define CONFIG_MAGIC 0xcafebeefu
#define CONFIG_VERSION 21400u

static struct {
    void *library;
    int (*get_id)(nccl_id *id);
    int (*init)(void **circle, int ranks, nccl_id id, int rank, const nccl_config *config);
    int (*state)(void *circle, int *state);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int operation, void *circle, cudaStream_t stream);
    int (*abort)(void *circle);
    int (*destroy)(void *circle);
    const char *(*error_text)(int code);
} calls;

typedef struct nccl_end {
    qmi_joint_end base;
    void *circle;        /* ncclComm_t */
    int64_t timeout_ns;
    qmi_os_mutex *mutex; /* held while the circle is asked for something */
    qmi_os_condition *changed; /* nobody signals it: it is for waiting a moment */
} nccl_end;

static void find(void)
{
    static const char *const names[] = { "libnccl.so.2", "libnccl.so" };
    for (const char *name : names)
        if (!calls.library && qmi_os_library_open(name, &calls.library) < 0)
            calls.library = NULL;
    if (!calls.library)
        return;
    *(void **)&calls.get_id = qmi_os_library_symbol(calls.library, "ncclGetUniqueId");
    *(void **)&calls.init = qmi_os_library_symbol(calls.library, "ncclCommInitRankConfig");
    *(void **)&calls.state = qmi_os_library_symbol(calls.library, "ncclCommGetAsyncError");
    *(void **)&calls.all_reduce = qmi_os_library_symbol(calls.library, "ncclAllReduce");
    *(void **)&calls.abort = qmi_os_library_symbol(calls.library, "ncclCommAbort");
    *(void **)&calls.destroy = qmi_os_library_symbol(calls.library, "ncclCommDestroy");
    *(void **)&calls.error_text = qmi_os_library_symbol(calls.library, "ncclGetErrorString");
    if (!calls.get_id || !calls.init || !calls.state || !calls.all_reduce || !calls.abort || !calls.destroy ||
        !calls.error_text) {
        qmi_os_library_close(calls.library);
        calls.library = NULL;
    }
}

static int32_t need_library(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, find);
    if (calls.library)
        return QM_OK;
    return qmi_fail(QM_ERROR_DEVICE, "libnccl.so.2, 2.14 or later, is not installed (package libnccl2, or nvidia-nccl of "
                    "pip with its folder in LD_LIBRARY_PATH)");
}

static int32_t fail(const char *what, int code)
{
    return qmi_fail(QM_ERROR_DEVICE, "NCCL: %s: %s", what, calls.error_text(code));
}

static int32_t make_id(qmi_device *device, uint8_t id[QMI_JOINT_ID])
{
    nccl_id made;
    int32_t code = need_library();
    (void)device;
    if (code < 0)
        return code;
    int result = calls.get_id(&made);
    if (result != SUCCESS)
        return fail("ncclGetUniqueId", result);
    memcpy(id, made.bytes, sizeof made.bytes);
    return QM_OK;
}

static void abort_end(qmi_joint_end *end)
{
    nccl_end *e = (nccl_end *)end;
    if (__atomic_exchange_n(&end->aborted, 1, __ATOMIC_ACQ_REL))
        return;
    qmi_os_mutex_lock(e->mutex); /* it is gone then: nobody asks it any more */
    calls.abort(e->circle);
    qmi_os_mutex_unlock(e->mutex);
}

/* What was begun is done, or has failed, or takes too long: a rank may have died just now. With the mutex held. */
static int32_t settle(nccl_end *e, int result, const char *what, const int32_t *cancel)
{
    const int64_t start = qmi_os_time_ns();
    while (result == IN_PROGRESS) {
        int state = SUCCESS;
        if (qmi_os_time_ns() - start > LOOK_NS)
            (void)qmi_os_condition_wait(e->changed, e->mutex, LOOK_NS);
        if (__atomic_load_n(&e->base.aborted, __ATOMIC_ACQUIRE) || (cancel && __atomic_load_n(cancel, __ATOMIC_ACQUIRE)))
            return qmi_fail(QM_ERROR_CANCELLED, "NCCL: %s: another device has given up", what);
        result = calls.state(e->circle, &state);
        if (result == SUCCESS)
            result = state;
        if (result == IN_PROGRESS && e->timeout_ns >= 0 && qmi_os_time_ns() - start > e->timeout_ns)
            return qmi_fail(QM_ERROR_DEVICE, "NCCL: %s: the other ranks did not come within %.3g s (option exchange-timeout)",
                            what, (double)e->timeout_ns * 1e-9);
    }
    return result == SUCCESS ? QM_OK : fail(what, result);
}

static void leave(qmi_joint_end **end)
{
    nccl_end *e = (nccl_end *)*end;
    if (!e)
        return;
    const qmi_alloc alloc = e->base.device->alloc;
    if (e->circle && !e->base.aborted && cuda_enter(e->base.device) >= 0)
        calls.destroy(e->circle);
    qmi_os_condition_free(&e->changed);
    qmi_os_mutex_free(&e->mutex);
    qmi_delete(&alloc, e);
    *end = NULL;
}

static int32_t join(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out)
{
    static const nccl_config config = { sizeof config, CONFIG_MAGIC, CONFIG_VERSION, 0 };
    nccl_id given;
    *out = NULL;
    int32_t code = need_library();
    if (code >= 0)
        code = cuda_enter(device);
    if (code < 0)
        return code;
    nccl_end *e = (nccl_end *)qmi_new(&device->alloc, 1, sizeof *e, "a part in NCCL's circle");
    if (!e)
        return QM_ERROR_MEMORY;
    e->base.joint = &qmi_cuda_nccl;
    e->base.device = device;
    e->timeout_ns = terms->timeout_ns;
    code = qmi_os_mutex_new(&e->mutex);
    if (code >= 0)
        code = qmi_os_condition_new(&e->changed);
    *out = &e->base;
    if (code >= 0) {
        memcpy(given.bytes, id, sizeof given.bytes);
        qmi_os_mutex_lock(e->mutex);
        code = settle(e, calls.init(&e->circle, terms->ranks, given, terms->rank, &config), "joining", terms->cancel);
        qmi_os_mutex_unlock(e->mutex);
        if (code < 0 && e->circle)
            abort_end(&e->base);
    }
    if (code < 0)
        leave(out);
    return code;
}

static int32_t sum(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count)
{
    nccl_end *e = (nccl_end *)end;
    int32_t code = cuda_enter(end->device);
    if (code < 0)
        return code;
    qmi_os_mutex_lock(e->mutex);
    if (__atomic_load_n(&end->aborted, __ATOMIC_ACQUIRE)) {
        code = qmi_fail(QM_ERROR_DEVICE, "NCCL: the circle was given up");
    } else {
        int result = calls.all_reduce((const void *)from, (void *)to, (size_t)count, FLOAT32, SUM, e->circle,
                                      end->device->stream);
        code = settle(e, result, "summing", NULL);
    }
    qmi_os_mutex_unlock(e->mutex);
    return code;
}

extern "C" const qmi_joint qmi_cuda_nccl = { "nccl", false, false, make_id, join, sum, abort_end, leave };
