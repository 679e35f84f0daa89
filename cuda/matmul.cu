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
static void set_shared(matmul_shape *shape, int64_t columns)
{
    int32_t shares = MATMUL_WARPS / shape->row_warps, instance = shape->tokens <= 16 ? 16 : shape->tokens <= 32 ? 32 : 128;
    int32_t held = shape->groups ? shape->tokens : instance;
    const int32_t row_bytes = MATMUL_CHUNK * (int32_t)sizeof(__half);
    int32_t sums = (shares - 1) * shape->row_warps * instance * QMI_WARP * (int32_t)sizeof(float);
    shape->stages = shape->groups && shares == 1 ? 4 : MATMUL_STAGES;
    shape->stage_bytes = held * shares * row_bytes;
    shape->shared = shape->few ? held * matmul_ceil(columns, MATMUL_CHUNK) * row_bytes : shape->stages * shape->stage_bytes;
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
    double rounds = matmul_ceil(work->part[0].a.columns, MATMUL_CHUNK * shares);
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
            matmul_shape shape = { groups, work->part[0].from != NULL, size, row_warps, 0, 0, 0 };
            set_shared(&shape, work->part[0].a.columns);
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

static void start(const cuda_run *run, matmul_work *work, uint32_t type, int32_t tokens)
{
    const matmul_shape shape = choose_shape(run, work, type, tokens);
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

bool matmul_few_columns(const cuda_run *run, int64_t columns)
{
    matmul_shape shape = { false, true, 16, MATMUL_WARPS, 0, 0, 0 };
    set_shared(&shape, columns);
    return 2 * (shape.shared + SHARED_OWN) <= run->shared_most; /* two blocks a multiprocessor */
}

void matmul_launch(const cuda_run *run, const matmul_part *parts, int32_t count, int32_t tokens)
{
    bool done[MATMUL_PARTS] = { false };
    for (int32_t i = 0; i < count; i++) {
        matmul_work work = {};
        for (int32_t j = i; j < count; j++) {
            if (done[j] || parts[j].a.type != parts[i].a.type || parts[j].a.columns != parts[i].a.columns)
                continue;
            work.part[work.parts++] = parts[j];
            done[j] = true;
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
