/* Walks a program with all workers: op, barrier, op, barrier, ... */
#include "base/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/cpu_ops.h"

static const qmi_cpu_op *const op_table[QMI_OP_COUNT] = {
    [QMI_OP_EMBED] = &qmi_cpu_op_embed,     [QMI_OP_JOIN] = &qmi_cpu_op_join,
    [QMI_OP_PROJECT] = &qmi_cpu_op_project, [QMI_OP_GLU] = &qmi_cpu_op_glu,
    [QMI_OP_PROJECT_ADD] = &qmi_cpu_op_project_add,
    [QMI_OP_ATTEND] = &qmi_cpu_op_attend,   [QMI_OP_DELTA] = &qmi_cpu_op_delta,
    [QMI_OP_ROUTE] = &qmi_cpu_op_route,     [QMI_OP_EXPERTS] = &qmi_cpu_op_experts,
    [QMI_OP_LOGITS] = &qmi_cpu_op_logits,
};

qmi_cpu_needs qmi_cpu_run_needs(const qmi_program *program, int32_t rows, int32_t threads)
{
    qmi_cpu_needs needs = { 0, 0 };
    for (size_t i = 0; i < program->count; i++) {
        const qmi_op *op = &program->ops[i];
        qmi_cpu_room shared = { NULL, 0 }, own = { NULL, 0 };
        if (op_table[op->kind]->lay_out)
            op_table[op->kind]->lay_out(op, rows, threads, &shared, &own);
        if (needs.shared < shared.used)
            needs.shared = shared.used;
        if (needs.own < own.used)
            needs.own = own.used;
    }
    return needs;
}

typedef struct run_state {
    qmi_device *device;
    const qmi_program *program;
    const qmi_workspace *workspace;
    const qmi_batch *batch;
    qmi_cpu_needs needs;
    /* The first worker looks for a cancellation and tells the others at the op's last barrier. Two words in turn, since it may be
     * writing the next one while a late worker still reads this one. */
    bool stop[2];
} run_state;

/* Adds the time since *since to an op's; by the first worker only. */
static void note_time(qmi_device *device, qmi_op_kind kind, int64_t *since)
{
    int64_t now = qmi_os_time_ns();
    device->op_ns[kind] += now - *since;
    device->op_count[kind]++;
    *since = now;
}

static void walk(void *argument, int32_t index)
{
    run_state *run = argument;
    qmi_device *device = run->device;
    const bool noted = device->profile && index == 0;
    int64_t since = noted ? qmi_os_time_ns() : 0;
    qmi_cpu_worker worker = {
        .kernels = &device->kernels, .workspace = run->workspace, .program = run->program, .batch = run->batch,
        .pool = device->pool, .index = index, .threads = device->threads, .shared = device->scratch,
        .own = device->scratch + run->needs.shared + index * run->needs.own, .rotation.position = -1 };
    for (size_t i = 0; i < run->program->count; i++) {
        op_table[run->program->ops[i].kind]->run(&worker, &run->program->ops[i]);
        if (index == 0)
            run->stop[i & 1] = run->batch->cancel && __atomic_load_n(run->batch->cancel, __ATOMIC_RELAXED);
        qmi_cpu_pool_barrier(device->pool);
        if (noted)
            note_time(device, run->program->ops[i].kind, &since);
        if (run->stop[i & 1])
            return;
    }
}

int32_t qmi_cpu_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch)
{
    run_state run = { .device = device, .program = program, .workspace = workspace, .batch = batch,
                      .needs = qmi_cpu_run_needs(program, workspace->rows, device->threads) };
    if (run.needs.shared + device->threads * run.needs.own > device->scratch_size)
        return qmi_fail(QM_ERROR_STATE, "the device is not prepared for this program and batches of %d rows", workspace->rows);
    if (batch->count < 1 || batch->count > workspace->rows || batch->output_count > workspace->outputs)
        return qmi_fail(QM_ERROR_STATE, "a batch of %d rows and %d outputs does not fit a workspace for %d and %d", batch->count,
                        batch->output_count, workspace->rows, workspace->outputs);
    qmi_cpu_pool_run(device->pool, walk, &run);
    return run.stop[0] || run.stop[1] ? qmi_fail(QM_ERROR_CANCELLED, "cancelled") : QM_OK;
}
