/* Sums of times by kind of op: see cuda_profile.h. */
#include "cuda_profile.h"
#include "chip.cuh"

#define OPS_MOST 4096
#define OP_LAUNCH_US 10 /* of the host, for an op of a few kernels and an event, at most */

typedef struct cuda_profile_sum {
    int64_t ops;
    double milliseconds;
} cuda_profile_sum;

struct cuda_profile {
    cudaEvent_t events[OPS_MOST + 1];
    uint8_t kinds[OPS_MOST];
    int32_t made, used;
    cuda_profile_sum sums[2][QMI_OP_COUNT]; /* of runs with few rows, with many */
    int64_t runs[2], rows[2];
};

int32_t cuda_profile_new(const qmi_alloc *alloc, cuda_profile **out)
{
    *out = (cuda_profile *)qmi_new(alloc, 1, sizeof **out, "sums of times");
    return *out ? QM_OK : QM_ERROR_MEMORY;
}

static void log_sums(const cuda_profile *profile, int many, const qmi_log *log)
{
    double all = 0;
    if (profile->runs[many] == 0)
        return;
    for (int kind = 0; kind < QMI_OP_COUNT; kind++)
        all += profile->sums[many][kind].milliseconds;
    qmi_log_line(log, QM_LOG_INFO, "profile: %lld runs of %s rows (%lld rows), %.1f us a run", (long long)profile->runs[many],
                 many ? "many" : "few", (long long)profile->rows[many], 1e3 * all / (double)profile->runs[many]);
    for (int kind = 0; kind < QMI_OP_COUNT; kind++) {
        const cuda_profile_sum *sum = &profile->sums[many][kind];
        if (sum->ops)
            qmi_log_line(log, QM_LOG_INFO, "profile: %-12s %6.1f ops a run, %9.2f us an op, %10.1f us a run, %5.1f %%",
                         qmi_op_name((qmi_op_kind)kind), (double)sum->ops / (double)profile->runs[many],
                         1e3 * sum->milliseconds / (double)sum->ops, 1e3 * sum->milliseconds / (double)profile->runs[many],
                         100 * sum->milliseconds / (all > 0 ? all : 1));
    }
}

void cuda_profile_free(cuda_profile **pointer, const qmi_alloc *alloc, const qmi_log *log)
{
    cuda_profile *profile = *pointer;
    if (!profile)
        return;
    log_sums(profile, 0, log);
    log_sums(profile, 1, log);
    for (int i = 0; i < profile->made; i++)
        (void)cudaEventDestroy(profile->events[i]);
    qmi_delete(alloc, profile);
    *pointer = NULL;
}

/* Keeps the card busy while the host launches what is to be timed, so that no op waits for its launch. */
static __global__ void hold(int microseconds)
{
    chip_let_next_start();
    chip_wait_for_previous();
    for (int i = 0; i < microseconds; i++)
        __nanosleep(1000);
}

static cudaError_t record(cuda_profile *profile, const cuda_run *run)
{
    if (profile->used == profile->made) {
        cudaError_t error = cudaEventCreate(&profile->events[profile->made]);
        if (error != cudaSuccess)
            return error;
        profile->made++;
    }
    return cudaEventRecord(profile->events[profile->used++], run->stream);
}

cudaError_t cuda_profile_start(cuda_profile *profile, const cuda_run *run, const qmi_program *program)
{
    profile->used = 0;
    cuda_launch(run, dim3(1), dim3(1), 0, hold, (int)(program->count < 1000 ? program->count * OP_LAUNCH_US : 10000));
    return record(profile, run);
}

cudaError_t cuda_profile_mark(cuda_profile *profile, const cuda_run *run, qmi_op_kind kind)
{
    if (profile->used > OPS_MOST)
        return cudaSuccess; /* so many are a sample of the run */
    profile->kinds[profile->used - 1] = (uint8_t)kind;
    return record(profile, run);
}

cudaError_t cuda_profile_finish(cuda_profile *profile, const cuda_run *run)
{
    const int many = run->rows > CUDA_VECTOR_ROWS;
    profile->runs[many]++;
    profile->rows[many] += run->rows;
    for (int i = 0; i + 1 < profile->used; i++) {
        float milliseconds = 0;
        cudaError_t error = cudaEventElapsedTime(&milliseconds, profile->events[i], profile->events[i + 1]);
        if (error != cudaSuccess)
            return error;
        profile->sums[many][profile->kinds[i]].ops++;
        profile->sums[many][profile->kinds[i]].milliseconds += milliseconds;
    }
    return cudaSuccess;
}
