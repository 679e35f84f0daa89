/* Finding cuBLAS, and its calls (cuBLAS documentation, cublasGemmEx); its header need not be installed. */
#include "cuda_blas.h"

extern "C" {
#include "base/os.h"
}

#include <pthread.h>

enum { OP_N = 0, OP_T = 1, COMPUTE_32F = 68, ALGORITHM_DEFAULT = -1, REAL_32F = 0, REAL_16F = 2 }; /* of the library's header */

static struct {
    void *library;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *workspace, size_t bytes);
    int (*gemm)(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm);
} calls;

#ifdef QMI_CUDA_EMULATED

bool cuda_blas_emulated;
bool cuda_blas_is_there(void)
{
    return cuda_blas_emulated;
}

#else

static void find(void)
{
    static const char *const names[] = { "libcublas.so.13", "libcublas.so.12", "libcublas.so",
                                         "/usr/local/cuda/lib64/libcublas.so" };
    for (const char *name : names)
        if (!calls.library && qmi_os_library_open(name, &calls.library) < 0)
            calls.library = NULL;
    if (!calls.library)
        return;
    *(void **)&calls.create = qmi_os_library_symbol(calls.library, "cublasCreate_v2");
    *(void **)&calls.destroy = qmi_os_library_symbol(calls.library, "cublasDestroy_v2");
    *(void **)&calls.set_stream = qmi_os_library_symbol(calls.library, "cublasSetStream_v2");
    *(void **)&calls.set_workspace = qmi_os_library_symbol(calls.library, "cublasSetWorkspace_v2");
    *(void **)&calls.gemm = qmi_os_library_symbol(calls.library, "cublasGemmEx");
    if (!calls.create || !calls.destroy || !calls.set_stream || !calls.set_workspace || !calls.gemm) {
        qmi_os_library_close(calls.library);
        calls.library = NULL;
        calls.create = NULL;
    }
}

bool cuda_blas_is_there(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, find);
    return calls.library != NULL;
}

#endif

/* The library counts columns first: its a is the transposed [k][rows], its c [rows][n]. */
static int32_t multiply(cuda_blas *blas, const cuda_product *p)
{
    const float beta = p->add ? 1 : 0;
    return calls.gemm(blas->handle, OP_T, OP_N, p->rows, p->n, p->k, &p->alpha, p->a, REAL_16F, p->k, p->b, REAL_16F, p->b_stride,
                      &beta, p->out, REAL_32F, p->stride, COMPUTE_32F, ALGORITHM_DEFAULT);
}

int32_t cuda_blas_new(const qmi_alloc *alloc, cudaStream_t stream, void *workspace, cuda_blas **out)
{
    *out = NULL;
    if (!calls.create)
        return QM_OK;
    cuda_blas *blas = (cuda_blas *)qmi_new(alloc, 1, sizeof *blas, "a handle of cuBLAS");
    if (!blas)
        return QM_ERROR_MEMORY;
    blas->workspace = workspace;
    blas->multiply = multiply;
    if (calls.create(&blas->handle) != 0)
        blas->handle = NULL;
    if (!blas->handle || calls.set_stream(blas->handle, stream) != 0 ||
        calls.set_workspace(blas->handle, workspace, CUDA_BLAS_WORKSPACE) != 0)
        cuda_blas_free(&blas, alloc);
    *out = blas;
    (void)cudaGetLastError();
    return QM_OK;
}

void cuda_blas_free(cuda_blas **pointer, const qmi_alloc *alloc)
{
    cuda_blas *blas = *pointer;
    if (blas && blas->handle)
        calls.destroy(blas->handle);
    qmi_delete(alloc, blas);
    *pointer = NULL;
}
