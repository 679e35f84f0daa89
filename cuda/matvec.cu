/* PROJECT, GLU, PROJECT_ADD and LOGITS for up to 8 rows: how a job is cut into blocks, and its launch. */
#include "matvec_host.h"

static matvec_rows_function kernel_of(int32_t rows, bool pair)
{
    return rows == 1 ? matvec_rows_1(pair) : rows <= 4 ? matvec_rows_4(pair) : matvec_rows_8(pair);
}

/* ---- the cut ---- */

/* Bytes of a row: what a block's time goes by. */
static int64_t row_cost(const cuda_matrix *m)
{
    if (matvec_is_float(m->type))
        return (int64_t)m->blocks * (m->type == QMI_TYPE_F32 ? 128 : 64);
    int64_t eight = 0;
    for (int plane = 0; plane < QMI_CUDA_PLANES; plane++)
        eight += matvec_eight(m->type, plane);
    return (m->blocks * eight + 7) / 8;
}

/* Cuts the matrices so that each block has rows of about `cost` bytes; returns the number of blocks. */
static int64_t cut(matvec_job *job, int64_t cost)
{
    int64_t blocks = 0;
    for (int32_t i = 0; i < job->count; i++) {
        int64_t rows = cost / row_cost(&job->matrix[i]);
        if (rows < 1)
            rows = 1;
        if (rows > job->matrix[i].rows)
            rows = job->matrix[i].rows;
        job->per_block[i] = (int32_t)rows;
        job->first_block[i] = (int32_t)blocks;
        blocks += matvec_ceil(job->matrix[i].rows, rows);
    }
    job->first_block[job->count] = (int32_t)blocks;
    return blocks;
}

/* So many blocks, each with as equal a share of the bytes as whole rows allow. */
static void cut_evenly(matvec_job *job, int64_t blocks)
{
    int64_t low = 1, high = 0;
    for (int32_t i = 0; i < job->count; i++)
        high += row_cost(&job->matrix[i]) * job->matrix[i].rows;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (cut(job, middle) <= blocks)
            high = middle;
        else
            low = middle + 1;
    }
    cut(job, low);
}

static bool is_quantized(const matvec_job *job)
{
    for (int32_t i = 0; i < job->count + job->pair; i++)
        if (!matvec_is_float(job->matrix[i].type))
            return true;
    return false;
}

/* How many warps share a group of rows (matvec_unit): so that the busiest warp of a block of so many rows (pairs) has the fewest
 * units. */
static int32_t best_split(const matvec_job *job, int32_t rows, int32_t *units_of_best)
{
    const int32_t group = (job->in.count == 1 ? 4 : 2) / (job->pair ? 2 : 1), chunks = matvec_ceil(job->in.blocks, 32);
    int32_t best = 0, best_units = INT32_MAX;
    for (int32_t bits = 0; bits <= 3 && 1 << bits <= chunks; bits++) {
        const int32_t units = matvec_ceil(rows, (MATVEC_WARPS >> bits) * group) * matvec_ceil(chunks, 1 << bits);
        if (units < best_units) {
            best = bits;
            best_units = units;
        }
    }
    *units_of_best = best_units;
    return best;
}

/* Bytes of a warp's ring that serves all matrices. */
static int32_t ring_bytes(const matvec_job *job, int32_t fillers)
{
    const int32_t unit = job->in.count == 1 ? 4 : 2;
    int32_t bytes = 0;
    for (int32_t i = 0; i < job->count; i++) {
        const uint32_t type = job->matrix[i].type;
        if (matvec_is_float(type))
            continue;
        int32_t own = ring_depth(ring_most(type, unit, MATVEC_RING_BYTES), fillers) * unit * ring_row_bytes(type);
        bytes = own > bytes ? own : bytes;
    }
    return bytes;
}

/* The deepest ring that lets the next kernel into a processor's shared memory, or else any; the bytes of it, 0 where there is not
 * enough. Where a warp has few units the next kernel is likely a small one too. */
static int64_t plan_shared(const cuda_run *run, matvec_job *job, bool few_units)
{
    const int32_t rows = job->quantized ? job->in.count : 0, eighths[] = { few_units ? 5 : 4, 8 };
    for (int32_t i = 0; i < 2; i++)
        for (job->fillers = 0; job->fillers < 3; job->fillers++) {
            job->ring_bytes = ring_bytes(job, job->fillers);
            int64_t bytes = matvec_rows_shared(job->in.count, rows, job->in.blocks, job->ring_bytes);
            if (bytes <= matvec_eighths(run, eighths[i]))
                return bytes;
        }
    return 0;
}

/* One block a processor: its loads are deep enough, and the next kernel finds room beside it. Very large matrices take a few
 * blocks a processor, one after the other, as not all processors read equally fast. Float weights come without a ring, and two
 * blocks hide each other's loads. Returns the bytes of shared memory as plan_shared does. */
static int64_t plan(const cuda_run *run, matvec_job *job)
{
    int64_t rows = 0;
    for (int32_t i = 0; i < job->count; i++)
        rows += job->matrix[i].rows;
    const int32_t each = (int32_t)((rows + run->processors - 1) / run->processors);
    int32_t units, turns = 1;
    job->split_bits = best_split(job, each, &units);
    if (job->quantized)
        turns = units < 32 ? 1 : units > 64 ? 4 : units / 16;
    else if (job->in.count <= 4 && each > 2 * MATVEC_WARPS)
        turns = 2;
    cut_evenly(job, (int64_t)turns * run->processors);
    return plan_shared(run, job, units <= RING_DEPTH_MOST);
}

static bool launch_rows(const cuda_run *run, matvec_job *job)
{
    job->quantized = is_quantized(job);
    const int64_t shared = plan(run, job);
    for (int32_t i = 0; i < job->count; i++)
        if ((int64_t)job->matrix[i].rows * job->in.blocks > INT32_MAX)
            return false;
    if (!shared || (job->pair && job->matrix[0].type != job->matrix[1].type))
        return false;
    const dim3 blocks((uint32_t)job->first_block[job->count]);
    cuda_launch(run, blocks, dim3(MATVEC_THREADS), (size_t)shared, kernel_of(job->in.count, job->pair), *job);
    return true;
}

/* ---- ops ---- */

/* A job of some of the rows. */
static matvec_job part_of(const matvec_job *job, int32_t first, int32_t count)
{
    matvec_job part = *job;
    if (part.in.order)
        part.in.order += first;
    else
        part.in.rows += (int64_t)first * part.in.columns;
    for (int32_t i = 0; i < part.count; i++)
        part.out[i] += (int64_t)first * part.out_stride[i];
    part.in.count = count;
    if (first)
        part.normed = NULL;
    return part;
}

/* All rows at once if they fit, else half of them at a time, and so on. */
void matvec_launch(const cuda_run *run, const matvec_job *job)
{
    for (int32_t size = job->in.count; size > 0; size = size > 1 ? (size + 1) / 2 : 0) {
        int32_t done = 0;
        while (done < job->in.count) {
            int32_t left = job->in.count - done;
            matvec_job part = part_of(job, done, left < size ? left : size);
            if (!launch_rows(run, &part))
                break;
            done += part.in.count;
        }
        if (done == job->in.count)
            return;
    }
    matvec_launch_wide(run, job);
}

void cuda_matvec_project(const cuda_run *run, const qmi_op_project *op)
{
    matvec_job job = {};
    job.count = op->count;
    for (int32_t i = 0; i < op->count; i++) {
        job.matrix[i] = cuda_matrix_of(&op->matrix[i]);
        job.out[i] = cuda_slot(run, op->out[i]);
        job.out_stride[i] = job.matrix[i].rows;
    }
    job.in = matvec_input_of(run, op->in, &op->norm, &job.matrix[0], run->rows);
    matvec_launch(run, &job);
}

void cuda_matvec_glu(const cuda_run *run, const qmi_op_glu *op)
{
    matvec_job job = {};
    job.count = job.pair = 1;
    job.matrix[0] = cuda_matrix_of(&op->gate);
    job.matrix[1] = cuda_matrix_of(&op->up);
    job.out[0] = cuda_slot(run, op->out);
    job.out_stride[0] = job.matrix[0].rows;
    job.in = matvec_input_of(run, op->in, &op->norm, &job.matrix[0], run->rows);
    matvec_launch(run, &job);
}

void cuda_matvec_project_add(const cuda_run *run, const qmi_op_project_add *op)
{
    matvec_job job = {};
    job.count = 1;
    job.add = op->add;
    job.matrix[0] = cuda_matrix_of(&op->matrix);
    job.out[0] = cuda_slot(run, op->out);
    job.out_stride[0] = job.matrix[0].rows;
    job.in = matvec_input_of(run, op->in, NULL, &job.matrix[0], run->rows);
    matvec_launch(run, &job);
}

void cuda_matvec_logits(const cuda_run *run, const qmi_op_logits *op)
{
    matvec_job job = {};
    job.count = 1;
    job.matrix[0] = cuda_matrix_of(&op->output);
    job.out[0] = cuda_slot(run, op->logits);
    job.out_stride[0] = job.matrix[0].rows;
    job.in = matvec_input_of(run, op->in, &op->norm, &job.matrix[0], run->outputs);
    job.in.order = run->step.outputs;
    job.normed = cuda_slot(run, op->hidden);
    job.normed_count = run->rows;
    if (run->outputs > 0)
        matvec_launch(run, &job);
    else
        matvec_launch_wide(run, &job); /* the hidden rows alone */
}

/* ---- once a device ---- */

cudaError_t cuda_matvec_setup(void)
{
    int device, most = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    for (int32_t rows = 1; rows <= CUDA_VECTOR_ROWS; rows *= 2)
        for (int pair = 0; pair < 2 && error == cudaSuccess; pair++)
            error = matvec_raise_shared((const void *)kernel_of(rows, pair), most);
    return error == cudaSuccess ? matvec_experts_setup(most) : error;
}
