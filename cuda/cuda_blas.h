/* cuBLAS, where it is installed: opened at run time for large dense products, whose weights dense.cu unpacks for it. Without it all
 * is computed by kernels of this backend. */
#ifndef QMI_CUDA_BLAS_H
#define QMI_CUDA_BLAS_H

#include <cuda_fp16.h>

#include "cuda.h"

/* out[n][stride] (+)= alpha * (rows of b) . (rows of a), of k halves. */
typedef struct cuda_product {
    const __half *a, *b;       /* [rows][k], [n][b_stride] */
    float *out;
    int32_t rows, n, k, b_stride, stride;
    float alpha;
    bool add;
} cuda_product;

struct cuda_blas {
    void *handle, *workspace;
    int32_t (*multiply)(cuda_blas *blas, const cuda_product *product); /* 0: it is launched */
};

/* Looks for the library, once a process. */
bool cuda_blas_is_there(void);
#ifdef QMI_CUDA_EMULATED
extern bool cuda_blas_emulated; /* a test's products take its place */
#endif
/* NULL with QM_OK where the library does not work: what it was for goes on without it. `workspace`: CUDA_BLAS_WORKSPACE bytes. */
int32_t cuda_blas_new(const qmi_alloc *alloc, cudaStream_t stream, void *workspace, cuda_blas **out);
void cuda_blas_free(cuda_blas **blas, const qmi_alloc *alloc);

#define CUDA_BLAS_WORKSPACE ((int64_t)32 << 20)

#endif
