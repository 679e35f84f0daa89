/* Inside the CUDA backend: the device, a run, and what each file of kernels offers.
 *
 * A run is one batch through a program. Its numbers (tokens, positions, page tables) are one block of memory that the host writes
 * and a first kernel copies to the card; kernels read them there, so the same list of launches serves every batch of the same
 * shape, and is recorded once as a CUDA graph. */
#ifndef QMI_CUDA_H
#define QMI_CUDA_H

#include <cuda_runtime.h>

extern "C" {
#include "backend/backend.h"
#include "base/error.h"
#include "layout.h"
#include "quant/quant.h"
}

/* ---- the batch on the card ---- */
typedef struct cuda_sequence {
    int32_t first, count;      /* rows */
    int32_t start;             /* position of its first row */
    int32_t page_first;        /* its page table begins at pages[page_first] */
    uint64_t state, next_state;
} cuda_sequence;

/* Pointers into the card's copy; all arrays have room for the largest batch. */
typedef struct cuda_step {
    const int32_t *tokens;     /* [rows] */
    const int32_t *sequence;   /* [rows], index of its sequence */
    const int32_t *position;   /* [rows], place in its sequence */
    const int32_t *outputs;    /* [outputs], rows whose logits are wanted */
    const cuda_sequence *sequences;
    const uint64_t *pages;
} cuda_step;

/* ---- a matrix as kernels see it ---- */
typedef struct cuda_matrix {
    const uint8_t *plane[QMI_CUDA_PLANES];
    uint32_t type;
    int32_t columns, rows;     /* rows of one expert */
    int32_t blocks;            /* of 32 columns, in a row */
} cuda_matrix;

static inline cuda_matrix cuda_matrix_of(const qmi_matrix *m)
{
    cuda_matrix out = {};
    qmi_cuda_planes planes;
    if (!m->data)
        return out;
    qmi_cuda_planes_of(m->type, m->columns, m->rows * m->count, &planes);
    for (int i = 0; i < QMI_CUDA_PLANES; i++)
        out.plane[i] = (const uint8_t *)m->data + planes.offset[i];
    out.type = m->type;
    out.columns = (int32_t)m->columns;
    out.rows = (int32_t)m->rows;
    out.blocks = (int32_t)((m->columns + QMI_CUDA_BLOCK - 1) / QMI_CUDA_BLOCK);
    return out;
}

/* ---- a run ---- */
typedef struct cuda_blas cuda_blas;
typedef struct cuda_run {
    cudaStream_t stream;
    cuda_step step;
    int32_t rows, outputs, sequences; /* of this batch, known to the host: sizes of launches */
    bool single;               /* every sequence has one row */
    bool packs, moves;         /* with a window: tokens leave it; a sequence's state moves */
    int32_t longest;           /* an upper bound of every row's position + 1 (rounded up when recorded as a graph) */
    int32_t processors;        /* multiprocessors */
    int32_t shared_most;       /* bytes of shared memory a block may have */
    int32_t capability;        /* 86, 90, ...: of the code that runs */
    bool linked;               /* programmatic dependent launch */
    const qmi_address *slots;
    qmi_joint_end *const *joints; /* of SUM ops, by number */
    uint8_t *scratch;          /* of this op: cuda_scratch_X(...) bytes */
    cuda_blas *blas;           /* the library for dense products (cuda_blas.h); NULL: there is none */
} cuda_run;

static inline float *cuda_slot(const cuda_run *run, qmi_slot slot)
{
    return slot == QMI_NO_SLOT ? NULL : (float *)run->slots[slot];
}

static inline const float *cuda_vector(const qmi_vector *v)
{
    return (const float *)v->data;
}

/* Rows from which an op goes to the matrix kernels (tensor cores) instead of the vector kernels. */
#define CUDA_VECTOR_ROWS 8

/* A launch with the run's stream and links: cuda_launch(run, grid, block, shared bytes, kernel, arguments...). The first failure of
 * a run is found by cudaGetLastError after its launches; what would come after it is not launched, as kernels take indices and
 * addresses from what others wrote. */
template <class... P, class... A>
static inline void cuda_launch(const cuda_run *run, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), A... arguments)
{
    if (cudaPeekAtLastError() != cudaSuccess)
        return;
#ifdef QMI_CUDA_EMULATED /* tests/emulator */
    emulator_call(run->stream, 1, grid, block, shared, run->linked, kernel, arguments...);
#else
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = run->stream;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = run->linked ? 1 : 0;
    cudaLaunchKernelEx(&config, kernel, P(arguments)...);
#endif
}

/* The same with clusters of `cluster` blocks beside each other along x, at most 8; from sm_90 on. */
template <class... P, class... A>
static inline void cuda_launch_cluster(const cuda_run *run, uint32_t cluster, dim3 grid, dim3 block, size_t shared,
                                       void (*kernel)(P...), A... arguments)
{
    if (cudaPeekAtLastError() != cudaSuccess)
        return;
#ifdef QMI_CUDA_EMULATED
    emulator_call(run->stream, (int)cluster, grid, block, shared, run->linked, kernel, arguments...);
#else
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2] = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = run->stream;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = attributes;
    config.numAttrs = run->linked ? 2 : 1;
    cudaLaunchKernelEx(&config, kernel, P(arguments)...);
#endif
}

/* ---- ops: launch onto run->stream. The scratch of an op is its own until the next op begins; `rows` there is the largest batch,
 * and the result holds for every smaller one. ---- */
void cuda_embed(const cuda_run *run, const qmi_op_embed *op);
void cuda_join(const cuda_run *run, const qmi_op_join *op);

/* Up to CUDA_VECTOR_ROWS rows: each weight is read once, for all of them. */
void cuda_matvec_project(const cuda_run *run, const qmi_op_project *op);
void cuda_matvec_glu(const cuda_run *run, const qmi_op_glu *op);
void cuda_matvec_project_add(const cuda_run *run, const qmi_op_project_add *op);
void cuda_matvec_route_experts(const cuda_run *run, const qmi_op_route *route, const qmi_op_experts *experts); /* either may be NULL */
void cuda_matvec_logits(const cuda_run *run, const qmi_op_logits *op);
int64_t cuda_scratch_matvec(const qmi_op *op, int32_t rows);

/* Any number of rows. */
void cuda_matmul_project(const cuda_run *run, const qmi_op_project *op);
void cuda_matmul_glu(const cuda_run *run, const qmi_op_glu *op);
void cuda_matmul_project_add(const cuda_run *run, const qmi_op_project_add *op);
void cuda_matmul_route(const cuda_run *run, const qmi_op_route *op);
void cuda_matmul_experts(const cuda_run *run, const qmi_op_experts *op);
void cuda_matmul_logits(const cuda_run *run, const qmi_op_logits *op);
int64_t cuda_scratch_matmul(const qmi_op *op, int32_t rows);
bool cuda_matmul_may_be_dense(const qmi_op *op, int32_t rows); /* by run->blas */

int64_t cuda_scratch_product(const qmi_op *op, int32_t rows); /* by either, for up to so many rows */

void cuda_attend(const cuda_run *run, const qmi_op_attend *op);
int64_t cuda_scratch_attend(const qmi_op_attend *op, int32_t rows);

void cuda_delta(const cuda_run *run, const qmi_op_delta *op);
int64_t cuda_scratch_delta(const qmi_op_delta *op, int32_t rows);

/* Raises kernels' limits of shared memory and the like, once a device; the kernels' first use in a graph must not do it. */
cudaError_t cuda_matvec_setup(void);
cudaError_t cuda_matmul_setup(void);
cudaError_t cuda_attend_setup(void);
cudaError_t cuda_delta_setup(void);

#endif
