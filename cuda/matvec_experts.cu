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
    job.width = job.top * job.down.blocks + (job.shared_inner ? job.shared_down.blocks : 0);
    job.inverse_inner = 1.f / (float)job.inner;
    job.inverse_down = 1.f / (float)job.down.blocks;
    job.inverse_width = 1.f / (float)job.width;
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

/* ---- shared memory: the choice, sums, rings, activation blocks ---- */

#define GATE_EIGHTHS 5 /* of a processor's, for gate and up */

static int32_t ring_bytes(uint32_t type, int32_t rows, int32_t budget, int32_t least, int32_t fillers)
{
    return ring_depth(ring_most(type, rows, budget, least), fillers) * rows * ring_row_bytes(type);
}

/* Sets the ring's sizes for gate and up. */
static int64_t gate_shared(const matvec_expert_kernels *kernels, matvec_experts_job *job, int32_t fillers)
{
    const int32_t chunks = matvec_ceil(job->in.blocks, 32);
    job->fillers = fillers;
    job->shared_slots = job->shared_inner ? chunks < MATVEC_SHARED_SLOTS ? chunks : MATVEC_SHARED_SLOTS : 0;
    if (fillers > 1 && job->shared_slots)
        job->shared_slots = 1;
    job->shared_ring_bytes = job->shared_slots ? job->shared_slots * 2 * ring_row_bytes(job->shared_gate.type) : 0;
    job->ring_bytes = ring_bytes(job->gate.type, job->in.count == 1 ? 4 : 2, MATVEC_GATE_RING, 2, fillers);
    return kernels->choice_bytes + matvec_squares_bytes(kernels->rows) +
           (int64_t)MATVEC_WARPS * (job->ring_bytes + job->shared_ring_bytes) +
           (int64_t)job->in.count * job->in.blocks * (int64_t)sizeof(matvec_activation);
}

/* ... for down. */
static int64_t down_shared(const matvec_expert_kernels *kernels, matvec_experts_job *job, int32_t fillers)
{
    const int32_t unit = job->in.count == 1 ? matvec_down_unit<1>() : 1;
    job->fillers = fillers;
    job->ring_bytes = ring_bytes(job->down.type, unit, MATVEC_DOWN_RING, 1, fillers);
    if (job->shared_inner) {
        int32_t own = ring_bytes(job->shared_down.type, unit, MATVEC_DOWN_RING, 1, fillers);
        job->ring_bytes = own > job->ring_bytes ? own : job->ring_bytes;
    }
    return kernels->choice_bytes + 2 * matvec_squares_bytes(kernels->rows) + (int64_t)MATVEC_WARPS * job->ring_bytes +
           (int64_t)job->in.count * job->width * (int64_t)sizeof(matvec_activation);
}

/* The deepest rings with which both kernels fit into a processor's shared memory, or else one; the job's sizes are then set. 0:
 * none fits. */
static int64_t plan_shared(const cuda_run *run, matvec_experts_job *job, int32_t eighths,
                           int64_t (*shared)(const matvec_expert_kernels *, matvec_experts_job *, int32_t))
{
    const matvec_expert_kernels kernels = kernels_of(job->in.count);
    for (int32_t most = eighths; most <= 8; most += 8 - eighths)
        for (int32_t fillers = 0; fillers < 3; fillers++) {
            const int64_t bytes = shared(&kernels, job, fillers);
            if (bytes <= matvec_eighths(run, most))
                return bytes;
        }
    return 0;
}

static bool fits(const cuda_run *run, matvec_experts_job job)
{
    const int64_t pairs = (int64_t)job.in.count * job.top * job.inner, blocks = (int64_t)job.in.count * job.width;
    const int64_t gate_blocks = (int64_t)job.experts * job.gate.rows * job.in.blocks;
    const int64_t down_blocks = (int64_t)job.experts * job.down.rows * job.down.blocks;
    if (gate_blocks > INT32_MAX || down_blocks > INT32_MAX || job.inner % 2)
        return false;
    return pairs < MATVEC_DIVIDE_MOST && blocks < MATVEC_DIVIDE_MOST && plan_shared(run, &job, GATE_EIGHTHS, gate_shared) &&
           plan_shared(run, &job, 8 - GATE_EIGHTHS, down_shared);
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

/* Rows that fit into a launch: all, or half of them, and so on; 0: none. */
static int32_t rows_that_fit(const cuda_run *run, const matvec_experts_job *job)
{
    if (!is_regular(job))
        return 0;
    for (int32_t rows = job->in.count; rows > 0; rows = rows > 1 ? (rows + 1) / 2 : 0) {
        const matvec_experts_job part = part_of(job, 0, rows);
        if (fits(run, part))
            return rows;
    }
    return 0;
}

/* How many warps share a row of the result: so that a block's busiest warp has the fewest units. */
static int32_t best_split(int32_t rows, int32_t chunks)
{
    int32_t best = 0, best_units = INT32_MAX;
    for (int32_t bits = 0; bits <= 2 && 1 << bits <= chunks; bits++) {
        int32_t units = matvec_ceil(rows, MATVEC_WARPS >> bits) * matvec_ceil(chunks, 1 << bits);
        if (units < best_units) {
            best = bits;
            best_units = units;
        }
    }
    return best;
}

/* One block a processor, so that the next kernel finds room beside it. */
static void launch_experts(const cuda_run *run, const matvec_experts_job *job, int32_t size)
{
    const int32_t most = run->processors;
    const dim3 threads(MATVEC_THREADS);
    for (int32_t first = 0; first < job->in.count; first += size) {
        matvec_experts_job part = part_of(job, first, job->in.count - first < size ? job->in.count - first : size);
        const matvec_expert_kernels kernels = kernels_of(part.in.count);
        const int64_t pairs = (int64_t)part.in.count * part.top * part.inner + part.shared_inner;
        const int32_t gates = matvec_ceil(pairs, MATVEC_WARPS);
        int64_t shared = plan_shared(run, &part, GATE_EIGHTHS, gate_shared);
        cuda_launch(run, dim3((uint32_t)(gates < most ? gates : most)), threads, (size_t)shared, kernels.gate, part);
        part.split_bits = best_split(matvec_ceil(part.down.rows, most), matvec_ceil(part.width, 32));
        shared = plan_shared(run, &part, 8 - GATE_EIGHTHS, down_shared);
        const int32_t downs = matvec_ceil(part.down.rows, MATVEC_WARPS >> part.split_bits);
        cuda_launch(run, dim3((uint32_t)(downs < most ? downs : most)), threads, (size_t)shared, kernels.down, part);
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
        const void *functions[] = { (const void *)kernels.gate, (const void *)kernels.down };
        for (int i = 0; i < 2; i++) {
            cudaError_t error = matvec_raise_shared(functions[i], most);
            if (error != cudaSuccess)
                return error;
        }
    }
    return cudaSuccess;
}
