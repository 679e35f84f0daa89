/* The dense ops for many rows, and the launching of products. */
#include "matmul.cuh"
#include "chip.cuh"

/* ---- launching ---- */

int32_t matmul_tokens(int32_t rows)
{
    return rows <= 16 ? 16 : rows <= 32 ? 32 : 128;
}

static int32_t stages_of(int32_t tokens)
{
    return tokens >= 128 ? 3 : 4;
}

/* Sums that warps exchange when they share out k take no more than the stages. */
static int32_t shared_of(int32_t tokens, int32_t row_warps)
{
    return stages_of(tokens) * tokens * MATMUL_CHUNK * (int32_t)sizeof(__half) * (MATMUL_WARPS / row_warps);
}

static int32_t grid_of(const matmul_part *part, int32_t row_warps)
{
    return matmul_ceil(part->rows, row_warps * (part->mode == MATMUL_GLU ? 16 : 32)) * part->token_tiles;
}

/* How many warps lie along the rows. Fewer make more and smaller blocks: for the last wave to be full, and, where bytes count,
 * for enough loads to be under way; but each block reads the activations of its tokens anew. */
static int32_t choose_row_warps(const cuda_run *run, const matmul_work *work, int32_t tokens)
{
    int32_t best = MATMUL_WARPS;
    double best_time = 1e30;
    for (int32_t row_warps = MATMUL_WARPS; row_warps >= 2; row_warps /= 2) {
        int32_t shares = MATMUL_WARPS / row_warps, resident = tokens >= 128 ? 1 : 2, blocks = 0;
        int32_t chunks = matmul_ceil(work->part[0].a.columns, MATMUL_CHUNK);
        if (shared_of(tokens, row_warps) > run->shared_most)
            break;
        for (int32_t p = 0; p < work->parts; p++)
            blocks += grid_of(&work->part[p], row_warps);
        double waves = matmul_ceil(blocks, run->processors * resident);
        /* 4: starting and storing, 2: the exchange of sums */
        double rounds = matmul_ceil(chunks, shares) + 4 + (shares > 1 ? 2 : 0);
        if (waves * rounds < best_time) {
            best_time = waves * rounds;
            best = row_warps;
        }
    }
    return best;
}

static void start(const cuda_run *run, matmul_work *work, uint32_t type, int32_t tokens)
{
    int32_t blocks = 0;
    work->row_warps = choose_row_warps(run, work, tokens);
    for (int32_t p = 0; p < work->parts; p++) {
        matmul_part *part = &work->part[p];
        part->row_tiles = matmul_ceil(part->rows, work->row_warps * (part->mode == MATMUL_GLU ? 16 : 32));
        part->first_block = blocks;
        blocks += part->row_tiles * part->token_tiles;
    }
    int32_t shared = shared_of(tokens, work->row_warps);
    work->stage_bytes = shared / stages_of(tokens);
    if (!blocks)
        return;
    switch (type) {
#define START(name) case QMI_TYPE_##name: matmul_start_##name(run, work, tokens, blocks, shared); break;
    MATMUL_TYPES(START)
#undef START
    }
}

void matmul_launch(const cuda_run *run, const matmul_part *parts, int32_t count, int32_t tokens)
{
    bool done[MATMUL_PARTS] = { false };
    for (int32_t i = 0; i < count; i++) {
        matmul_work work = {};
        for (int32_t j = i; j < count; j++) {
            if (done[j] || parts[j].a.type != parts[i].a.type || parts[j].a.columns != parts[i].a.columns)
                continue;
            matmul_part *part = &work.part[work.parts++];
            *part = parts[j];
            if (!part->tiles)
                part->token_tiles = matmul_ceil(part->tokens, tokens);
            done[j] = true;
        }
        if (work.parts)
            start(run, &work, parts[i].a.type, tokens);
    }
}

cudaError_t cuda_matmul_setup(void)
{
    int device, most;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
#define SETUP(name) \
    if (code == cudaSuccess) \
        code = matmul_setup_##name(most - 2048); /* the kernel has some shared memory of its own */
    MATMUL_TYPES(SETUP)
#undef SETUP
    return code;
}

/* ---- silu(gate) * up, where the two are of different types and so come from two products ---- */

static __global__ void glu_kernel(const float *gate, const float *up, float *out, int64_t count)
{
    chip_let_next_start();
    chip_wait_for_previous();
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = chip_silu(gate[i]) * up[i];
}

void matmul_glu_apart(const cuda_run *run, const float *gate, const float *up, float *out, int64_t count)
{
    int64_t blocks = (count + 1023) / 1024;
    cuda_launch(run, dim3((unsigned)(blocks < 8192 ? blocks : 8192)), dim3(256), 0, glu_kernel, gate, up, out, count);
}

/* ---- ops ---- */

static convert_part converting(const cuda_run *run, qmi_slot in, const qmi_norm *norm, int64_t columns, const matmul_input *to)
{
    convert_part part = {};
    part.from = cuda_slot(run, in);
    part.columns = (int32_t)columns;
    part.rows = run->rows;
    part.weight = norm ? cuda_vector(&norm->weight) : NULL;
    part.epsilon = norm ? norm->epsilon : 0;
    part.to = *to;
    return part;
}

static matmul_part product(const cuda_run *run, const qmi_matrix *matrix, const matmul_input *in, float *out, matmul_mode mode)
{
    matmul_part part = {};
    part.a = cuda_matrix_of(matrix);
    part.rows = part.out_stride = (int32_t)matrix->rows;
    part.in = *in;
    part.out = out;
    part.mode = mode;
    part.tokens = run->rows;
    return part;
}

void cuda_matmul_project(const cuda_run *run, const qmi_op_project *op)
{
    matmul_room room = { run->scratch, 0 };
    int64_t columns = op->matrix[0].columns;
    matmul_input in = matmul_take_input(&room, run->rows, matmul_stride(columns));
    convert_part convert = converting(run, op->in, &op->norm, columns, &in);
    matmul_part parts[QMI_PROJECT_MAX];
    cuda_convert(run, &convert, 1);
    for (int32_t i = 0; i < op->count; i++)
        parts[i] = product(run, &op->matrix[i], &in, cuda_slot(run, op->out[i]), MATMUL_STORE);
    matmul_launch(run, parts, op->count, matmul_tokens(run->rows));
}

void cuda_matmul_project_add(const cuda_run *run, const qmi_op_project_add *op)
{
    matmul_room room = { run->scratch, 0 };
    matmul_input in = matmul_take_input(&room, run->rows, matmul_stride(op->matrix.columns));
    convert_part convert = converting(run, op->in, NULL, op->matrix.columns, &in);
    matmul_part part = product(run, &op->matrix, &in, cuda_slot(run, op->out), op->add ? MATMUL_ADD : MATMUL_STORE);
    cuda_convert(run, &convert, 1);
    matmul_launch(run, &part, 1, matmul_tokens(run->rows));
}

typedef struct glu_room {
    matmul_input in;
    float *gate, *up; /* [n][F], only for different types */
} glu_room;

static glu_room glu_lay_out(const qmi_op_glu *op, int32_t rows, matmul_room *room)
{
    glu_room out = {};
    out.in = matmul_take_input(room, rows, matmul_stride(op->gate.columns));
    if (op->gate.type != op->up.type) {
        out.gate = (float *)matmul_take(room, rows * op->gate.rows, sizeof(float));
        out.up = (float *)matmul_take(room, rows * op->gate.rows, sizeof(float));
    }
    return out;
}

void cuda_matmul_glu(const cuda_run *run, const qmi_op_glu *op)
{
    matmul_room room = { run->scratch, 0 };
    glu_room at = glu_lay_out(op, run->rows, &room);
    convert_part convert = converting(run, op->in, &op->norm, op->gate.columns, &at.in);
    int32_t tokens = matmul_tokens(run->rows);
    float *out = cuda_slot(run, op->out);
    cuda_convert(run, &convert, 1);
    if (op->gate.type == op->up.type) {
        matmul_part part = product(run, &op->gate, &at.in, out, MATMUL_GLU);
        part.b = cuda_matrix_of(&op->up);
        matmul_launch(run, &part, 1, tokens);
    } else {
        matmul_part parts[2] = { product(run, &op->gate, &at.in, at.gate, MATMUL_STORE),
                                 product(run, &op->up, &at.in, at.up, MATMUL_STORE) };
        matmul_launch(run, parts, 2, tokens);
        matmul_glu_apart(run, at.gate, at.up, out, run->rows * op->gate.rows);
    }
}

void cuda_matmul_logits(const cuda_run *run, const qmi_op_logits *op)
{
    matmul_room room = { run->scratch, 0 };
    matmul_input in = matmul_take_input(&room, run->rows, matmul_stride(op->output.columns));
    convert_part convert = converting(run, op->in, &op->norm, op->output.columns, &in);
    matmul_part part = product(run, &op->output, &in, cuda_slot(run, op->logits), MATMUL_STORE);
    convert.normed = cuda_slot(run, op->hidden);
    cuda_convert(run, &convert, 1);
    part.tokens = run->outputs;
    part.gather = run->step.outputs;
    matmul_launch(run, &part, 1, matmul_tokens(run->outputs));
}

int64_t cuda_scratch_matmul(const qmi_op *op, int32_t rows)
{
    matmul_room room = {};
    switch (op->kind) {
    case QMI_OP_PROJECT: matmul_take_input(&room, rows, matmul_stride(op->project.matrix[0].columns)); break;
    case QMI_OP_PROJECT_ADD: matmul_take_input(&room, rows, matmul_stride(op->project_add.matrix.columns)); break;
    case QMI_OP_GLU: glu_lay_out(&op->glu, rows, &room); break;
    case QMI_OP_LOGITS: matmul_take_input(&room, rows, matmul_stride(op->logits.output.columns)); break;
    case QMI_OP_ROUTE: return route_scratch(&op->route, rows);
    case QMI_OP_EXPERTS: return experts_scratch(&op->experts, rows);
    default: break;
    }
    return room.used;
}
