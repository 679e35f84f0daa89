/* The dense ops for many rows, and the launching of products. */
#include "matmul.cuh"
#include "chip.cuh"

/* ---- launching ---- */

#define GROUP_CAPABILITY 90 /* warp groups multiply: sm_90a and no other */
#define SHARED_OWN 2048     /* the kernels have some shared memory of their own */
#define GROUP_ALIGN 1024    /* and may have to skip some of what they are given */

static bool built_for_groups; /* by cuda_matmul_setup */

static int32_t rows_of_block(const matmul_part *part, int32_t row_warps)
{
    return row_warps * (part->mode == MATMUL_GLU ? 16 : 32);
}

static int32_t blocks_of(const matmul_part *part, const matmul_shape *shape)
{
    int32_t tiles = part->tiles ? part->token_tiles : matmul_ceil(part->tokens, shape->tokens);
    return matmul_ceil(part->rows, rows_of_block(part, shape->row_warps)) * tiles;
}

/* Shared memory: stages of activations; at the end, sums that warps which share out k exchange. */
static void set_shared(matmul_shape *shape)
{
    int32_t shares = MATMUL_WARPS / shape->row_warps, instance = shape->tokens <= 16 ? 16 : shape->tokens <= 32 ? 32 : 128;
    int32_t held = shape->groups ? shape->tokens : instance;
    const int32_t row_bytes = MATMUL_CHUNK * (int32_t)sizeof(__half);
    int32_t sums = (shares - 1) * shape->row_warps * instance * QMI_WARP * (int32_t)sizeof(float);
    shape->stages = shape->groups && shares == 1 ? 4 : MATMUL_STAGES;
    shape->stage_bytes = held * shares * row_bytes;
    shape->shared = shape->stages * shape->stage_bytes;
    shape->shared = (shape->shared > sums ? shape->shared : sums) + (shape->groups ? GROUP_ALIGN : 0);
}

/* Clocks of a launch, roughly: whole waves of blocks, each of so many rounds. A round takes the time of the multiplications
 * (128 x 256 x 128 in 2048 clocks by groups, on 8 warps 0.6 of that rate) and of what does not overlap; a block takes some
 * thousands to start and to store. */
static double clocks_of(const cuda_run *run, const matmul_work *work, const matmul_shape *shape)
{
    int32_t shares = MATMUL_WARPS / shape->row_warps, blocks = 0;
    for (int32_t p = 0; p < work->parts; p++)
        blocks += blocks_of(&work->part[p], shape);
    double rounds = matmul_ceil((int64_t)work->part[0].a.columns * work->part[0].passes, MATMUL_CHUNK * shares);
    double round = shape->groups ? 500 + 16 * shape->tokens : 600 + 26 * shape->tokens;
    bool two = shape->tokens <= 32 && 2 * (shape->shared + SHARED_OWN) <= run->shared_most;
    double waves = matmul_ceil(blocks, run->processors * (two ? 2 : 1));
    return waves * (rounds * round + 4000 + (shares > 1 ? 1500 : 0));
}

/* Tiles of fewer tokens and fewer warps along the rows make more and smaller blocks: for the last wave to be full, and, where
 * bytes count, for enough loads to be under way; but each block reads the activations of its tokens, or the weights of its
 * rows, anew. tokens: of tiles that are listed already, else the most. */
static matmul_shape choose_shape(const cuda_run *run, const matmul_work *work, uint32_t type, int32_t tokens)
{
    matmul_shape best = {};
    double best_clocks = 0;
    bool listed = false, groups = built_for_groups && run->capability == GROUP_CAPABILITY && tokens > 32 && type != QMI_TYPE_F32;
    for (int32_t p = 0; p < work->parts; p++)
        listed |= work->part[p].tiles != NULL;
    for (int32_t size = tokens; size > (tokens > 32 ? 32 : tokens / 2); size /= 2)
        for (int32_t row_warps = MATMUL_WARPS; row_warps >= (groups ? 4 : tokens > 32 ? 2 : 1); row_warps /= 2) {
            matmul_shape shape = { groups, false, size, row_warps, 0, 0, 0 };
            set_shared(&shape);
            double clocks = clocks_of(run, work, &shape);
            if (shape.shared + SHARED_OWN > run->shared_most || (listed && size != tokens))
                continue;
            if (!best.tokens || clocks < best_clocks) {
                best = shape;
                best_clocks = clocks;
            }
        }
    return best;
}

/* Of the kernel for few tokens: their bytes; at the end, sums that warps which share out k exchange, or the tile's results. */
static int32_t few_shared(int32_t blocks, int32_t row_warps)
{
    const int32_t tokens = MATMUL_FEW_TOKENS * matmul_few_row_bytes(blocks) + 32;
    const int32_t sums = (MATMUL_WARPS - row_warps) * MATMUL_FEW_TOKENS * QMI_WARP * (int32_t)sizeof(float);
    const int32_t tile = MATMUL_FEW_TOKENS * 16 * row_warps * (int32_t)sizeof(float);
    return tokens > sums && tokens > tile ? tokens : sums > tile ? sums : tile;
}

/* As clocks_of: a round takes 16 warps 1500 clocks at least, a block 3000 to begin and to end. */
static matmul_shape choose_few_shape(const cuda_run *run, const matmul_work *work)
{
    matmul_shape best = {};
    double best_clocks = 0;
    for (int32_t row_warps = MATMUL_WARPS; row_warps >= 2; row_warps /= 2) {
        const int32_t blocks = matmul_ceil(work->part[0].a.columns, QMI_CUDA_BLOCK);
        matmul_shape shape = { false, true, MATMUL_FEW_TOKENS, row_warps, 0, 0, few_shared(blocks, row_warps) };
        int32_t count = 0;
        for (int32_t p = 0; p < work->parts; p++)
            count += blocks_of(&work->part[p], &shape);
        const double waves = 0.5 + (double)count / (2 * run->processors);
        const double clocks = waves * (1500.0 * matmul_ceil(blocks, 4 * (MATMUL_WARPS / row_warps)) + 3000);
        if (!best.tokens || clocks < best_clocks) {
            best = shape;
            best_clocks = clocks;
        }
    }
    return best;
}

static void start(const cuda_run *run, matmul_work *work, uint32_t type, int32_t tokens)
{
    const matmul_shape shape = work->part[0].bytes ? choose_few_shape(run, work) : choose_shape(run, work, type, tokens);
    int32_t blocks = 0;
    work->row_warps = shape.row_warps;
    work->tile_tokens = shape.tokens;
    work->stages = shape.stages;
    work->stage_bytes = shape.stage_bytes;
    for (int32_t p = 0; p < work->parts; p++) {
        matmul_part *part = &work->part[p];
        part->row_tiles = matmul_ceil(part->rows, rows_of_block(part, shape.row_warps));
        if (!part->tiles)
            part->token_tiles = matmul_ceil(part->tokens, shape.tokens);
        part->first_block = blocks;
        blocks += part->row_tiles * part->token_tiles;
    }
    if (!blocks)
        return;
    switch (type) {
#define START(name) case QMI_TYPE_##name: matmul_start_##name(run, work, &shape, blocks); break;
    MATMUL_TYPES(START)
#undef START
    }
}

bool matmul_few_takes(const cuda_run *run, const qmi_matrix *matrix)
{
    const int32_t blocks = matmul_ceil(matrix->columns, QMI_CUDA_BLOCK);
    return matmul_passes(matrix->type) == 1 && 2 * (few_shared(blocks, 2) + SHARED_OWN) <= run->shared_most; /* two together */
}

/* The rows of a part from `first` on. */
static matmul_part rest_of(const matmul_part *part, int32_t first)
{
    matmul_part rest = *part;
    for (int i = 0; i < QMI_CUDA_PLANES; i++) {
        rest.a.plane[i] += qmi_cuda_plane_bytes(part->a.type, i, part->a.columns, first);
        if (part->mode == MATMUL_GLU)
            rest.b.plane[i] += qmi_cuda_plane_bytes(part->b.type, i, part->b.columns, first);
    }
    rest.out += first;
    rest.rows -= first;
    return rest;
}

void matmul_launch(const cuda_run *run, const matmul_part *given, int32_t count, int32_t tokens)
{
    bool done[MATMUL_PARTS] = { false };
    matmul_part parts[MATMUL_PARTS];
    for (int32_t i = 0; i < count; i++) {
        const int32_t rows = matmul_is_dense(run, &given[i]) ? matmul_multiply_dense(run, &given[i]) : 0;
        done[i] = rows == given[i].rows;
        parts[i] = done[i] ? given[i] : rest_of(&given[i], rows);
    }
    for (int32_t i = 0; i < count; i++) {
        matmul_work work = {};
        for (int32_t j = i; j < count; j++) {
            if (done[j] || done[i] || parts[j].a.type != parts[i].a.type || parts[j].a.columns != parts[i].a.columns)
                continue;
            work.part[work.parts++] = parts[j];
            done[j] = j > i;
        }
        if (work.parts)
            start(run, &work, parts[i].a.type, tokens);
    }
}

int32_t matmul_tokens(int32_t rows)
{
    return rows <= 16 ? 16 : rows <= 32 ? 32 : 128;
}

cudaError_t cuda_matmul_setup(void)
{
    int device, most;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code == cudaSuccess)
        code = route_setup();
#define SETUP(name) \
    if (code == cudaSuccess) \
        code = matmul_setup_##name(most - SHARED_OWN, &built_for_groups);
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

/* The most that any of the matrices needs; those that need less take the first part of a row. */
static int32_t most_passes(const qmi_matrix *matrices, int32_t count)
{
    int32_t most = 1;
    for (int32_t i = 0; i < count; i++)
        most = matmul_passes(matrices[i].type) > most ? matmul_passes(matrices[i].type) : most;
    return most;
}

/* Converts the rows of a slot; normed: also to be stored as floats, or NULL. */
static matmul_input convert(const cuda_run *run, matmul_room *room, qmi_slot in, const qmi_norm *norm, const qmi_matrix *matrices,
                            int32_t count, float *normed)
{
    convert_part part = {};
    part.to = matmul_take_input(room, run->rows, matrices[0].columns, most_passes(matrices, count));
    part.from = cuda_slot(run, in);
    part.columns = (int32_t)matrices[0].columns;
    part.rows = run->rows;
    part.weight = norm ? cuda_vector(&norm->weight) : NULL;
    part.epsilon = norm ? norm->epsilon : 0;
    part.normed = normed;
    cuda_convert(run, &part, 1);
    return part.to;
}

static matmul_part product(const cuda_run *run, const qmi_matrix *matrix, const matmul_input *in, float *out, matmul_mode mode)
{
    matmul_part part = {};
    part.a = cuda_matrix_of(matrix);
    part.rows = part.out_stride = (int32_t)matrix->rows;
    part.in = *in;
    part.passes = matmul_passes(matrix->type);
    part.out = out;
    part.mode = mode;
    part.tokens = run->rows;
    return part;
}

/* The larger of the matrices' rooms, for one after another. */
static matmul_dense take_dense(const qmi_matrix *matrices, int32_t count, int32_t rows, matmul_room *room)
{
    int32_t largest = 0;
    for (int32_t i = 1; i < count; i++)
        if (matmul_passes(matrices[i].type) * matrices[i].rows > matmul_passes(matrices[largest].type) * matrices[largest].rows)
            largest = i;
    return matmul_take_dense(room, &matrices[largest], rows, false);
}

/* For one of them: small ones stay with the kernels, together. */
static matmul_dense dense_for(const qmi_matrix *matrix, const matmul_dense *dense)
{
    const matmul_dense none = {};
    return matrix->rows < MATMUL_DENSE_ROWS ? none : *dense;
}

void cuda_matmul_project(const cuda_run *run, const qmi_op_project *op)
{
    matmul_room room = { run->scratch, 0 };
    const matmul_input in = convert(run, &room, op->in, &op->norm, op->matrix, op->count, NULL);
    const matmul_dense dense = take_dense(op->matrix, op->count, run->rows, &room);
    matmul_part parts[QMI_PROJECT_MAX];
    for (int32_t i = 0; i < op->count; i++) {
        parts[i] = product(run, &op->matrix[i], &in, cuda_slot(run, op->out[i]), MATMUL_STORE);
        parts[i].dense = dense_for(&op->matrix[i], &dense);
    }
    matmul_launch(run, parts, op->count, matmul_tokens(run->rows));
}

void cuda_matmul_project_add(const cuda_run *run, const qmi_op_project_add *op)
{
    matmul_room room = { run->scratch, 0 };
    const matmul_input in = convert(run, &room, op->in, NULL, &op->matrix, 1, NULL);
    matmul_part part = product(run, &op->matrix, &in, cuda_slot(run, op->out), op->add ? MATMUL_ADD : MATMUL_STORE);
    part.dense = matmul_take_dense(&room, &op->matrix, run->rows, false);
    matmul_launch(run, &part, 1, matmul_tokens(run->rows));
}

/* Gate's and up's products where they are of different types. */
static void take_glu(const qmi_op_glu *op, int32_t rows, matmul_room *room, float **gate, float **up)
{
    *gate = *up = NULL;
    if (op->gate.type == op->up.type)
        return;
    *gate = (float *)matmul_take(room, rows * op->gate.rows, sizeof(float));
    *up = (float *)matmul_take(room, rows * op->gate.rows, sizeof(float));
}

void cuda_matmul_glu(const cuda_run *run, const qmi_op_glu *op)
{
    matmul_room room = { run->scratch, 0 };
    const qmi_matrix both[2] = { op->gate, op->up };
    const matmul_input in = convert(run, &room, op->in, &op->norm, both, 2, NULL);
    const int32_t tokens = matmul_tokens(run->rows);
    float *out = cuda_slot(run, op->out), *gate, *up;
    take_glu(op, run->rows, &room, &gate, &up);
    if (!gate) {
        matmul_part part = product(run, &op->gate, &in, out, MATMUL_GLU);
        part.b = cuda_matrix_of(&op->up);
        part.dense = matmul_take_dense(&room, &op->gate, run->rows, true);
        matmul_launch(run, &part, 1, tokens);
    } else {
        matmul_part parts[2] = { product(run, &op->gate, &in, gate, MATMUL_STORE), product(run, &op->up, &in, up, MATMUL_STORE) };
        const matmul_dense dense = take_dense(both, 2, run->rows, &room);
        parts[0].dense = dense_for(&op->gate, &dense);
        parts[1].dense = dense_for(&op->up, &dense);
        matmul_launch(run, parts, 2, tokens);
        matmul_glu_apart(run, gate, up, out, run->rows * op->gate.rows);
    }
}

void cuda_matmul_logits(const cuda_run *run, const qmi_op_logits *op)
{
    matmul_room room = { run->scratch, 0 };
    const matmul_input in = convert(run, &room, op->in, &op->norm, &op->output, 1, cuda_slot(run, op->hidden));
    matmul_part part = product(run, &op->output, &in, cuda_slot(run, op->logits), MATMUL_STORE);
    part.tokens = run->outputs;
    part.gather = run->step.outputs;
    matmul_launch(run, &part, 1, matmul_tokens(run->outputs));
}

int64_t cuda_scratch_matmul(const qmi_op *op, int32_t rows)
{
    matmul_room room = {};
    switch (op->kind) {
    case QMI_OP_PROJECT: {
        const qmi_op_project *project = &op->project;
        matmul_take_input(&room, rows, project->matrix[0].columns, most_passes(project->matrix, project->count));
        take_dense(project->matrix, project->count, rows, &room);
        break;
    }
    case QMI_OP_PROJECT_ADD:
        matmul_take_input(&room, rows, op->project_add.matrix.columns, matmul_passes(op->project_add.matrix.type));
        matmul_take_dense(&room, &op->project_add.matrix, rows, false);
        break;
    case QMI_OP_GLU: {
        const qmi_matrix both[2] = { op->glu.gate, op->glu.up };
        float *gate, *up;
        matmul_take_input(&room, rows, op->glu.gate.columns, most_passes(both, 2));
        take_glu(&op->glu, rows, &room, &gate, &up);
        if (op->glu.gate.type == op->glu.up.type)
            matmul_take_dense(&room, &op->glu.gate, rows, true);
        else
            take_dense(both, 2, rows, &room);
        break;
    }
    case QMI_OP_LOGITS: matmul_take_input(&room, rows, op->logits.output.columns, matmul_passes(op->logits.output.type)); break;
    case QMI_OP_ROUTE: return route_scratch(&op->route, rows);
    case QMI_OP_EXPERTS: return experts_scratch(&op->experts, rows);
    default: break;
    }
    return room.used;
}

bool cuda_matmul_may_be_dense(const qmi_op *op, int32_t rows)
{
    matmul_room room = {};
    switch (op->kind) {
    case QMI_OP_PROJECT: return take_dense(op->project.matrix, op->project.count, rows, &room).bytes > 0;
    case QMI_OP_PROJECT_ADD: return matmul_take_dense(&room, &op->project_add.matrix, rows, false).bytes > 0;
    case QMI_OP_GLU: return matmul_take_dense(&room, &op->glu.gate, rows, true).bytes > 0;
    default: return false;
    }
}
