/* Between the host's parts of the decode kernels: sizes of launches. */
#ifndef QMI_CUDA_MATVEC_HOST_H
#define QMI_CUDA_MATVEC_HOST_H

#include "matvec_experts.cuh"
#include "matvec_rows.cuh"

static inline int32_t matvec_ceil(int64_t a, int64_t b)
{
    return (int32_t)((a + b - 1) / b);
}

static inline matvec_input matvec_input_of(const cuda_run *run, qmi_slot in, const qmi_norm *norm, const cuda_matrix *matrix,
                                           int32_t count)
{
    matvec_input input = {};
    input.rows = cuda_slot(run, in);
    if (norm && norm->weight.data) {
        input.norm = cuda_vector(&norm->weight);
        input.epsilon = norm->epsilon;
    }
    input.columns = matrix->columns;
    input.inverse_columns = 1.f / (float)matrix->columns;
    input.blocks = matrix->blocks;
    input.count = count;
    return input;
}

/* Shared memory of a block that takes so many eighths of a processor's; each block costs the processor 1024 bytes more. */
static inline int64_t matvec_eighths(const cuda_run *run, int32_t eighths)
{
    return ((int64_t)run->shared_most + 1024) * eighths / 8 - 1024;
}

/* Lets a kernel have all of a block's shared memory. All kernels ask for the same split of shared memory and L1 cache: a
 * multiprocessor that must change it lets no kernel begin beside another. */
static inline cudaError_t matvec_raise_shared(const void *kernel, int32_t most)
{
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    return error != cudaSuccess ? error :
           cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

/* ---- matvec_rows_N.cu, matvec_experts_N.cu: kernels for up to N rows ---- */
typedef void (*matvec_rows_function)(const matvec_job job);
typedef void (*matvec_experts_function)(const matvec_experts_job job);

typedef struct matvec_expert_kernels {
    int32_t rows, choice_bytes;
    matvec_experts_function gate, down;
} matvec_expert_kernels;

matvec_rows_function matvec_rows_1(bool pair);
matvec_rows_function matvec_rows_4(bool pair);
matvec_rows_function matvec_rows_8(bool pair);
matvec_expert_kernels matvec_experts_1(void);
matvec_expert_kernels matvec_experts_4(void);
matvec_expert_kernels matvec_experts_8(void);

/* ---- matvec.cu ---- */
/* Does a job of PROJECT's kind, however many launches it takes; its in, matrix, out, out_stride, count, pair, add, normed are
 * set. */
void matvec_launch(const cuda_run *run, const matvec_job *job);

/* ---- matvec_route.cu ---- */
int32_t matvec_score_stride(int64_t experts); /* floats a row: the experts' scores, then the shared expert's gate */
void matvec_launch_scores(const cuda_run *run, const qmi_op_route *op, float *scores);
void matvec_launch_choice(const cuda_run *run, const matvec_experts_job *job);

/* ---- matvec_experts.cu ---- */
cudaError_t matvec_experts_setup(int32_t most);

/* ---- matvec_wide.cu: kernels that hold no rows in shared memory, for what the others can't take ---- */
void matvec_launch_wide(const cuda_run *run, const matvec_job *job);
void matvec_launch_wide_experts(const cuda_run *run, const matvec_experts_job *job);

#endif
