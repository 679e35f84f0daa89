/* ROUTE and EXPERTS for up to 8 rows: launches. */
#include "matvec_experts.cuh"
#include "matvec_host.h"

static matvec_expert_kernels kernels_of(int32_t rows)
{
    return rows == 1 ? matvec_experts_1() : rows <= 4 ? matvec_experts_4() : matvec_experts_8();
}

/* ---- scratch: scores, then the gated activations ---- */

static int64_t scores_bytes(int64_t experts, int64_t rows)
{
    return (rows * matvec_score_stride(experts) * 4 + 255) / 256 * 256;
}

static int64_t inner_of(const qmi_op_experts *op)
{
    return op->up.data ? op->gate.rows : op->gate.rows / 2;
}

static int32_t act_stride(const qmi_op_experts *op)
{
    int64_t inner = inner_of(op), shared = op->shared_gate.data ? op->shared_gate.rows : 0;
    return (int32_t)(((shared > inner ? shared : inner) + 3) / 4 * 4);
}

int64_t cuda_scratch_matvec(const qmi_op *op, int32_t rows)
{
    if (rows > CUDA_VECTOR_ROWS)
        rows = CUDA_VECTOR_ROWS;
    if (op->kind == QMI_OP_ROUTE)
        return scores_bytes(op->route.router.rows, rows);
    if (op->kind == QMI_OP_EXPERTS)
        return scores_bytes(op->experts.gate.count, rows) + (int64_t)rows * (op->experts.top + 1) * act_stride(&op->experts) * 4;
    return 0;
}

/* ---- EXPERTS ---- */

static matvec_experts_job job_of(const cuda_run *run, const qmi_op_experts *op)
{
    matvec_experts_job job = {};
    job.gate = cuda_matrix_of(&op->gate);
    job.fused = !op->up.data;
    job.up = job.fused ? job.gate : cuda_matrix_of(&op->up);
    job.down = cuda_matrix_of(&op->down);
    job.shared_gate = cuda_matrix_of(&op->shared_gate);
    job.shared_up = cuda_matrix_of(&op->shared_up);
    job.shared_down = cuda_matrix_of(&op->shared_down);
    job.inner = (int32_t)inner_of(op);
    job.shared_inner = job.shared_gate.rows;
    job.in = matvec_input_of(run, op->hidden, NULL, &job.gate, run->rows);
    job.experts = (int32_t)op->gate.count;
    job.top = op->top;
    job.route = cuda_slot(run, op->route);
    job.act = (float *)(run->scratch + scores_bytes(op->gate.count, run->rows));
    job.act_stride = act_stride(op);
    job.out = cuda_slot(run, op->out);
    return job;
}

/* Types that the fast kernels can take: quantized, and gate's and up's the same. */
static bool is_regular(const matvec_experts_job *job)
{
    bool routed = !matvec_is_float(job->gate.type) && job->gate.type == job->up.type && !matvec_is_float(job->down.type);
    bool shared = !matvec_is_float(job->shared_gate.type) && job->shared_gate.type == job->shared_up.type &&
                  !matvec_is_float(job->shared_down.type);
    return routed && (shared || !job->shared_inner);
}

static int32_t larger_room(uint32_t a, uint32_t b, bool both, int32_t lanes)
{
    int32_t x = matvec_row_room(a, lanes), y = both ? matvec_row_room(b, lanes) : 0;
    return x > y ? x : y;
}

/* Launches of the two kernels. */
typedef struct experts_plan {
    matvec_experts_job gate, down;
    matvec_ring_plan gate_ring, down_ring;
    int32_t gate_blocks, down_blocks, lanes;
} experts_plan;

static bool plan_gate(const cuda_run *run, const matvec_expert_kernels *kernels, experts_plan *plan)
{
    matvec_experts_job *job = &plan->gate;
    int64_t pairs = (int64_t)job->in.count * job->top * job->inner + job->shared_inner;
    int64_t offset = kernels->choice_bytes + matvec_ring_offset(job->in.count, job->in.blocks);
    int32_t room = larger_room(job->gate.type, job->shared_gate.type, job->shared_inner > 0, MATVEC_LANES);
    job->tile = kernels->rows == 1 && pairs >= (int64_t)8 * MATVEC_WARPS * run->processors ? MATVEC_TILE_MAX : 2;
    if (!matvec_plan_ring(run, offset, room * job->tile, MATVEC_STAGES_MAX, &plan->gate_ring))
        return false;
    job->stages = plan->gate_ring.stages;
    job->stage_bytes = plan->gate_ring.bytes;
    plan->gate_blocks = pairs < (int64_t)run->processors ? (int32_t)pairs : run->processors;
    return true;
}

static bool plan_down(const cuda_run *run, const matvec_expert_kernels *kernels, experts_plan *plan)
{
    matvec_experts_job *job = &plan->down;
    int64_t blocks = (int64_t)job->top * job->down.blocks + (job->shared_inner ? job->shared_down.blocks : 0);
    int64_t offset = kernels->choice_bytes + job->in.count * blocks * (int64_t)sizeof(matvec_activation);
    plan->lanes = job->down.blocks <= 16 ? 16 : 32;
    int32_t batch = 2 * 32 / plan->lanes;
    int32_t room = larger_room(job->down.type, job->shared_down.type, job->shared_inner > 0, plan->lanes);
    int64_t stages = (int64_t)matvec_ceil((int64_t)job->in.count * job->top, batch) * matvec_ceil(job->down.blocks, plan->lanes) +
                     (job->shared_inner ? matvec_ceil(job->shared_down.blocks, plan->lanes) : 0);
    job->per_block = matvec_ceil(job->down.rows, run->processors);
    plan->down_blocks = matvec_ceil(job->down.rows, job->per_block);
    stages *= matvec_ceil(job->per_block, MATVEC_WARPS);
    if (stages > MATVEC_STAGES_MAX)
        stages = MATVEC_STAGES_MAX;
    if (!matvec_plan_ring(run, offset, room * batch, (int32_t)stages, &plan->down_ring))
        return false;
    job->stages = plan->down_ring.stages;
    job->stage_bytes = plan->down_ring.bytes;
    return true;
}

/* The job for some of the rows. */
static matvec_experts_job part_of(const matvec_experts_job *job, int32_t first, int32_t count)
{
    matvec_experts_job part = *job;
    part.in.rows += (int64_t)first * part.in.columns;
    part.in.count = count;
    if (part.scores)
        part.scores += (int64_t)first * part.score_stride;
    part.route += (int64_t)first * (2 * part.top + 1);
    part.act += (int64_t)first * (part.top + 1) * part.act_stride;
    part.out += (int64_t)first * part.down.rows;
    return part;
}

static bool plan_part(const cuda_run *run, const matvec_experts_job *job, experts_plan *plan)
{
    const matvec_expert_kernels kernels = kernels_of(job->in.count);
    plan->gate = plan->down = *job;
    return plan_gate(run, &kernels, plan) && plan_down(run, &kernels, plan);
}

/* Rows that fit into a launch: all, or half of them, and so on; 0: none. */
static int32_t rows_that_fit(const cuda_run *run, const matvec_experts_job *job)
{
    experts_plan plan;
    if (!is_regular(job))
        return 0;
    for (int32_t rows = job->in.count; rows > 0; rows = rows > 1 ? (rows + 1) / 2 : 0) {
        const matvec_experts_job part = part_of(job, 0, rows);
        if (plan_part(run, &part, &plan))
            return rows;
    }
    return 0;
}

static void launch_experts(const cuda_run *run, const matvec_experts_job *job, int32_t size)
{
    for (int32_t first = 0; first < job->in.count; first += size) {
        const matvec_experts_job part = part_of(job, first, job->in.count - first < size ? job->in.count - first : size);
        const matvec_expert_kernels kernels = kernels_of(part.in.count);
        experts_plan plan;
        plan_part(run, &part, &plan);
        const dim3 threads(MATVEC_THREADS);
        cuda_launch(run, dim3((uint32_t)plan.gate_blocks), threads, (size_t)plan.gate_ring.shared, kernels.gate, plan.gate);
        cuda_launch(run, dim3((uint32_t)plan.down_blocks), threads, (size_t)plan.down_ring.shared,
                    plan.lanes == 16 ? kernels.down16 : kernels.down32, plan.down);
    }
}

void cuda_matvec_route_experts(const cuda_run *run, const qmi_op_route *route, const qmi_op_experts *experts)
{
    matvec_experts_job job = {};
    int32_t size = 0;
    bool together = false; /* the experts' kernels choose */
    if (experts) {
        job = job_of(run, experts);
        size = rows_that_fit(run, &job);
    }
    if (route) {
        together = size == run->rows && route->router.rows <= MATVEC_CHOOSE_MAX;
        matvec_launch_scores(run, route, (float *)run->scratch);
        matvec_experts_job choice = {};
        choice.experts = (int32_t)route->router.rows;
        choice.top = route->top;
        choice.scores = (float *)run->scratch;
        choice.score_stride = matvec_score_stride(route->router.rows);
        choice.shared_scored = route->shared_gate.data != 0;
        choice.route = cuda_slot(run, route->route);
        if (together) {
            job.in = matvec_input_of(run, route->in, &route->norm, &job.gate, run->rows);
            job.scores = choice.scores;
            job.score_stride = choice.score_stride;
            job.shared_scored = choice.shared_scored;
        } else
            matvec_launch_choice(run, &choice);
    }
    if (experts && size)
        launch_experts(run, &job, size);
    else if (experts)
        matvec_launch_wide_experts(run, &job);
}

cudaError_t matvec_experts_setup(int32_t most)
{
    for (int32_t rows = 1; rows <= CUDA_VECTOR_ROWS; rows *= 2) {
        const matvec_expert_kernels kernels = kernels_of(rows);
        const void *functions[] = { (const void *)kernels.gate, (const void *)kernels.down16, (const void *)kernels.down32 };
        for (int i = 0; i < 3; i++) {
            cudaError_t error = matvec_raise_shared(functions[i], most);
            if (error != cudaSuccess)
                return error;
        }
    }
    return cudaSuccess;
}
