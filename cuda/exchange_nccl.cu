/* Sums between cards by NCCL, which is opened when it is first needed (NCCL documentation, "Communicator Creation and Management
 * Functions" and "Collective Communication Functions"); its header need not be installed. A sum is put into the device's stream
 * between its kernels, so nobody on the host waits for it. */
#include "cuda_device.h"
#include "exchange_nccl.h"

extern "C" {
#include "base/os.h"
}

#include <pthread.h>
#include <string.h>

enum { SUCCESS = 0, FLOAT32 = 7, SUM = 0 }; /* ncclSuccess, ncclFloat32, ncclSum of the library's header */

typedef struct nccl_id { /* ncclUniqueId, which goes by value */
    char bytes[QMI_JOINT_ID];
} nccl_id;

static struct {
    void *library;
    int (*get_id)(nccl_id *id);
    int (*init)(void **circle, int ranks, nccl_id id, int rank);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int operation, void *circle, cudaStream_t stream);
    int (*abort)(void *circle);
    int (*destroy)(void *circle);
    const char *(*error_text)(int code);
} calls;

struct qmi_joint_end {
    qmi_device *device;
    void *circle;        /* ncclComm_t */
    int32_t aborted;     /* atomic */
};

static void find(void)
{
    static const char *const names[] = { "libnccl.so.2", "libnccl.so" };
    for (const char *name : names)
        if (!calls.library && qmi_os_library_open(name, &calls.library) < 0)
            calls.library = NULL;
    if (!calls.library)
        return;
    *(void **)&calls.get_id = qmi_os_library_symbol(calls.library, "ncclGetUniqueId");
    *(void **)&calls.init = qmi_os_library_symbol(calls.library, "ncclCommInitRank");
    *(void **)&calls.all_reduce = qmi_os_library_symbol(calls.library, "ncclAllReduce");
    *(void **)&calls.abort = qmi_os_library_symbol(calls.library, "ncclCommAbort");
    *(void **)&calls.destroy = qmi_os_library_symbol(calls.library, "ncclCommDestroy");
    *(void **)&calls.error_text = qmi_os_library_symbol(calls.library, "ncclGetErrorString");
    if (!calls.get_id || !calls.init || !calls.all_reduce || !calls.abort || !calls.destroy || !calls.error_text) {
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
    return qmi_fail(QM_ERROR_DEVICE, "libnccl.so.2 is not installed (package libnccl2, or nvidia-nccl of pip with its folder in "
                    "LD_LIBRARY_PATH)");
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

static int32_t join(qmi_device *device, const uint8_t id[QMI_JOINT_ID], int32_t rank, int32_t ranks, qmi_joint_end **out)
{
    nccl_id given;
    *out = NULL;
    int32_t code = need_library();
    if (code >= 0)
        code = cuda_enter(device);
    if (code < 0)
        return code;
    qmi_joint_end *end = (qmi_joint_end *)qmi_new(&device->alloc, 1, sizeof *end, "a part in NCCL's circle");
    if (!end)
        return QM_ERROR_MEMORY;
    end->device = device;
    memcpy(given.bytes, id, sizeof given.bytes);
    int result = calls.init(&end->circle, ranks, given, rank);
    if (result != SUCCESS) {
        qmi_delete(&device->alloc, end);
        return fail("ncclCommInitRank", result);
    }
    *out = end;
    return QM_OK;
}

static int32_t sum(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count)
{
    int32_t code = cuda_enter(end->device);
    if (code < 0)
        return code;
    if (__atomic_load_n(&end->aborted, __ATOMIC_ACQUIRE))
        return qmi_fail(QM_ERROR_DEVICE, "NCCL: the circle was given up");
    int result = calls.all_reduce((const void *)from, (void *)to, (size_t)count, FLOAT32, SUM, end->circle, end->device->stream);
    return result == SUCCESS ? QM_OK : fail("ncclAllReduce", result);
}

static void abort_end(qmi_joint_end *end)
{
    if (!__atomic_exchange_n(&end->aborted, 1, __ATOMIC_ACQ_REL))
        calls.abort(end->circle);
}

static void leave(qmi_joint_end **end)
{
    if (!*end)
        return;
    const qmi_alloc alloc = (*end)->device->alloc;
    if (!(*end)->aborted && cuda_enter((*end)->device) >= 0)
        calls.destroy((*end)->circle);
    qmi_delete(&alloc, *end);
    *end = NULL;
}

extern "C" const qmi_joint qmi_cuda_joint = { "nccl", make_id, join, sum, abort_end, leave };
