/* The CPU's device: what the functions of its backend table share. */
#ifndef QMI_CPU_CPU_BACKEND_H
#define QMI_CPU_CPU_BACKEND_H

#include "backend/backend.h"
#include "cpu/cpu_pool.h"
#include "cpu/kernels.h"

struct qmi_device {
    qmi_alloc alloc;
    qmi_log log;
    qmi_cpu_kernels kernels;
    qmi_cpu_pool *pool;
    int32_t threads;
    int64_t memory_limit, memory_used; /* bytes; limit 0: none */
    char *scratch;                     /* shared part, then each worker's own */
    int64_t scratch_size;
    bool profile;
    int64_t op_ns[QMI_OP_COUNT], op_count[QMI_OP_COUNT]; /* with profile: of all runs */
};

/* What a program needs of scratch at most, over its ops. */
typedef struct qmi_cpu_needs {
    int64_t shared, own;
} qmi_cpu_needs;

qmi_cpu_needs qmi_cpu_run_needs(const qmi_program *program, int32_t rows, int32_t threads);
int32_t qmi_cpu_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch);

/* cpu_read_rate.c: measured for some 0.3 s. */
int64_t qmi_cpu_read_rate(qmi_device *device);

#endif
