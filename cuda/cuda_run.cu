/* A batch through a program: its numbers go to the card, then each op launches its kernels. Batches of one row a sequence
 * (decoding) come again and again in the same shape; their launches are recorded as a graph the second time, and replayed from
 * then on. */
#include "cuda_device.h"
#include "chip.cuh"
#include "cuda_exchange.h"
#include "pick.h"

extern "C" {
#include "cuda_backend.h"
}

#include <string.h>

#define ROWS_MOST (1 << 20)        /* keeps sizes of scratch within 64 bits, given the limits of op.h */
#define STEP_LEAST 4096            /* bytes of a step that a graph copies at least */
#define STEP_ROOM ((int64_t)1 << 18) /* a prompt's chunk of 4096 rows, with half a million tokens behind it */
#define LONGEST_LEAST 256
#define COPY_THREADS 256

static int64_t power_of_two(int64_t least, int64_t value)
{
    int64_t power = least;
    while (power < value)
        power *= 2;
    return power;
}

/* ---- the batch's numbers ---- */

/* Offsets in bytes of the step's arrays, each at a multiple of 16; they depend on the batch's shape alone, except for
 * the last. */
typedef struct step_layout {
    int64_t tokens, sequence, position, outputs, sequences, pages, bytes;
} step_layout;

static int64_t after(int64_t offset, int64_t count, int64_t size)
{
    return (offset + count * size + 15) & ~INT64_C(15);
}

static int64_t pages_of(const qmi_sequence *sequence, int32_t page_tokens)
{
    return page_tokens ? (sequence->start + sequence->count + page_tokens - 1) / page_tokens : 0;
}

static step_layout lay_out(const qmi_batch *batch, int32_t page_tokens)
{
    step_layout at = {};
    int64_t pages = 0;
    for (int32_t i = 0; i < batch->sequence_count; i++)
        pages += pages_of(&batch->sequences[i], page_tokens);
    at.sequence = after(at.tokens, batch->count, sizeof(int32_t));
    at.position = after(at.sequence, batch->count, sizeof(int32_t));
    at.outputs = after(at.position, batch->count, sizeof(int32_t));
    at.sequences = after(at.outputs, batch->output_count, sizeof(int32_t));
    at.pages = after(at.sequences, batch->sequence_count, sizeof(cuda_sequence));
    at.bytes = after(at.pages, pages, sizeof(uint64_t));
    return at;
}

static void fill(uint8_t *room, const step_layout *at, const qmi_batch *batch, int32_t page_tokens)
{
    int32_t *sequence = (int32_t *)(room + at->sequence), *position = (int32_t *)(room + at->position);
    cuda_sequence *sequences = (cuda_sequence *)(room + at->sequences);
    uint64_t *pages = (uint64_t *)(room + at->pages);
    int32_t page_first = 0;
    memcpy(room + at->tokens, batch->tokens, (size_t)batch->count * sizeof(int32_t));
    if (batch->output_count)
        memcpy(room + at->outputs, batch->outputs, (size_t)batch->output_count * sizeof(int32_t));
    for (int32_t i = 0; i < batch->sequence_count; i++) {
        const qmi_sequence *from = &batch->sequences[i];
        const int64_t count = pages_of(from, page_tokens);
        const cuda_sequence to = { from->first, from->count, (int32_t)from->start, page_first, from->state, from->next_state };
        sequences[i] = to;
        for (int32_t j = 0; j < from->count; j++) {
            sequence[from->first + j] = i;
            position[from->first + j] = (int32_t)from->start + j;
        }
        if (count)
            memcpy(pages + page_first, from->pages, (size_t)count * sizeof(uint64_t));
        page_first += (int32_t)count;
    }
}

static cuda_step step_at(const uint8_t *card, const step_layout *at)
{
    cuda_step step;
    step.tokens = (const int32_t *)(card + at->tokens);
    step.sequence = (const int32_t *)(card + at->sequence);
    step.position = (const int32_t *)(card + at->position);
    step.outputs = (const int32_t *)(card + at->outputs);
    step.sequences = (const cuda_sequence *)(card + at->sequences);
    step.pages = (const uint64_t *)(card + at->pages);
    return step;
}

/* 16 bytes a thread, all loads under way at once: one trip over the bus. */
static __global__ void __launch_bounds__(COPY_THREADS) begin_step(const uint4 *from, uint4 *to, int count)
{
    const int i = blockIdx.x * COPY_THREADS + threadIdx.x;
    chip_let_next_start();
    chip_wait_for_previous();
    if (i < count)
        to[i] = __ldcv(from + i);
}

cudaError_t cuda_run_attributes(struct cudaFuncAttributes *out)
{
    return cudaFuncGetAttributes(out, begin_step);
}

static void free_step_room(qmi_device *device)
{
    cuda_step_room *room = &device->step;
    (void)cudaFreeHost(room->host);
    cuda_give(device, room->card, room->bytes);
    memset(room, 0, sizeof *room);
}

static int32_t make_step_room(qmi_device *device, int64_t bytes)
{
    cuda_step_room *room = &device->step;
    void *mapped = NULL, *card = NULL;
    if (bytes <= room->bytes)
        return QM_OK;
    cuda_run_drop_graphs(device, NULL); /* they have its address */
    free_step_room(device);
    bytes = power_of_two(STEP_ROOM, bytes);
    int32_t code = cuda_check(device, cudaHostAlloc((void **)&room->host, (size_t)bytes, cudaHostAllocMapped), "pinned memory");
    if (code >= 0)
        code = cuda_check(device, cudaHostGetDevicePointer(&mapped, room->host, 0), "mapping pinned memory");
    if (code >= 0)
        code = cuda_take(device, bytes, "the numbers of a batch", &card);
    if (code < 0) {
        free_step_room(device);
        return code;
    }
    memset(room->host, 0, (size_t)bytes);
    room->mapped = (const uint8_t *)mapped;
    room->card = (uint8_t *)card;
    room->bytes = bytes;
    return QM_OK;
}

static void free_picks_room(qmi_device *device)
{
    (void)cudaFreeHost(device->picks);
    device->picks = device->picks_mapped = NULL;
    device->picks_room = 0;
}

static int32_t make_picks_room(qmi_device *device, int32_t outputs)
{
    void *mapped = NULL;
    if (outputs <= device->picks_room)
        return QM_OK;
    cuda_run_drop_graphs(device, NULL);
    free_picks_room(device);
    outputs = (int32_t)power_of_two(CUDA_PICK_OUTPUTS, outputs);
    const size_t bytes = (size_t)outputs * QMI_PICKS_MAX * sizeof *device->picks;
    int32_t code = cuda_check(device, cudaHostAlloc((void **)&device->picks, bytes, cudaHostAllocMapped), "pinned memory");
    if (code >= 0)
        code = cuda_check(device, cudaHostGetDevicePointer(&mapped, device->picks, 0), "mapping pinned memory");
    if (code < 0) {
        free_picks_room(device);
        return code;
    }
    device->picks_mapped = (qmi_pick *)mapped;
    device->picks_room = outputs;
    return QM_OK;
}

int32_t cuda_run_open(qmi_device *device)
{
    int32_t code = make_step_room(device, STEP_ROOM);
    return code < 0 ? code : make_picks_room(device, CUDA_PICK_OUTPUTS);
}

void cuda_run_close(qmi_device *device)
{
    cuda_run_drop_graphs(device, NULL);
    free_step_room(device);
    free_picks_room(device);
    cuda_blas_free(&device->blas, &device->alloc);
    cuda_give(device, device->blas_workspace, CUDA_BLAS_WORKSPACE);
}

/* ---- scratch ---- */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t cuda_scratch_product(const qmi_op *op, int32_t rows)
{
    const int32_t few = rows < CUDA_VECTOR_ROWS ? rows : CUDA_VECTOR_ROWS;
    return larger(cuda_scratch_matvec(op, few), rows > few ? cuda_scratch_matmul(op, rows) : 0);
}

static int64_t op_scratch(const qmi_op *op, int32_t rows)
{
    switch (op->kind) {
    case QMI_OP_EMBED:
    case QMI_OP_JOIN:
    case QMI_OP_SUM:
        return 0;
    case QMI_OP_ATTEND:
        return cuda_scratch_attend(&op->attend, rows);
    case QMI_OP_DELTA:
        return cuda_scratch_delta(&op->delta, rows);
    case QMI_OP_EXPERTS:
        return larger(cuda_help_scratch(&op->experts, rows), cuda_scratch_product(op, rows));
    default: return cuda_scratch_product(op, rows);
    }
}

static int64_t picks_scratch(const qmi_op *op, int32_t rows)
{
    const int32_t outputs = rows < CUDA_PICK_OUTPUTS ? rows : CUDA_PICK_OUTPUTS;
    return op->kind == QMI_OP_LOGITS ? cuda_scratch_pick(op->logits.output.rows, outputs) : 0;
}

extern "C" int64_t qmi_cuda_scratch_bytes(const qmi_program *program, int32_t rows, int32_t threads)
{
    int64_t bytes = 0;
    (void)threads;
    if (rows < 1 || rows > ROWS_MOST)
        return qmi_fail(QM_ERROR_ARGUMENT, "batches of %d rows are out of range (1 .. %d)", rows, ROWS_MOST);
    for (size_t i = 0; i < program->count; i++) {
        const qmi_op *op = &program->ops[i];
        if (op->kind == QMI_OP_ATTEND && op->attend.moments)
            return qmi_fail(QM_ERROR_UNSUPPORTED, "corrections of keys are fitted by the CPU; set device to cpu");
        bytes = larger(bytes, larger(op_scratch(op, rows), picks_scratch(op, rows)));
    }
    return bytes;
}

/* Scratch holds nothing between runs, so the old one goes first. */
static int32_t make_scratch(qmi_device *device, int64_t bytes)
{
    void *scratch = NULL;
    if (bytes <= device->scratch_bytes)
        return QM_OK;
    cuda_run_drop_graphs(device, NULL);
    cuda_give(device, device->scratch, device->scratch_bytes);
    device->scratch = NULL;
    device->scratch_bytes = 0;
    int32_t code = cuda_take(device, bytes, "the scratch of the kernels", &scratch);
    if (code < 0)
        return code;
    device->scratch = (uint8_t *)scratch;
    device->scratch_bytes = bytes;
    return QM_OK;
}

static cuda_prepared *find_prepared(qmi_device *device, const qmi_program *program)
{
    for (size_t i = 0; i < device->prepared_count; i++)
        if (device->prepared[i].program == program)
            return &device->prepared[i];
    return NULL;
}

static int32_t note_prepared(qmi_device *device, const qmi_program *program, int32_t rows)
{
    cuda_prepared *entry = find_prepared(device, program);
    if (!entry) {
        void *list = device->prepared;
        int32_t code = qmi_reserve(&device->alloc, &list, &device->prepared_capacity, device->prepared_count + 1, sizeof *entry,
                                   "the list of programs");
        if (code < 0)
            return code;
        device->prepared = (cuda_prepared *)list;
        entry = &device->prepared[device->prepared_count++];
        memset(entry, 0, sizeof *entry);
    }
    entry->program = program;
    entry->rows = rows;
    entry->page_tokens = entry->window = 0;
    entry->circles = 0;
    for (size_t i = 0; i < program->count; i++)
        if (program->ops[i].kind == QMI_OP_ATTEND) {
            entry->page_tokens = program->ops[i].attend.page_tokens;
            entry->window = program->ops[i].attend.window;
        } else if (program->ops[i].kind == QMI_OP_SUM) {
            entry->circles |= UINT64_C(1) << program->ops[i].sum.circle;
        }
    return cuda_lend_prepare(device, program, rows, &entry->lent);
}

/* Whether some op of the program may go to the library: those that take room for it. */
static bool wants_blas(const qmi_program *program, int32_t rows)
{
    for (size_t i = 0; i < program->count; i++)
        if (cuda_matmul_may_be_dense(&program->ops[i], rows))
            return true;
    return false;
}

static int32_t make_blas(qmi_device *device)
{
    if (device->blas || !cuda_blas_is_there())
        return QM_OK;
    int32_t code = cuda_take(device, CUDA_BLAS_WORKSPACE, "cuBLAS", &device->blas_workspace);
    if (code >= 0)
        code = cuda_blas_new(&device->alloc, device->stream, device->blas_workspace, &device->blas);
    if (!device->blas) {
        cuda_give(device, device->blas_workspace, CUDA_BLAS_WORKSPACE);
        device->blas_workspace = NULL;
    }
    return code;
}

extern "C" int32_t qmi_cuda_prepare(qmi_device *device, const qmi_program *program, int32_t rows)
{
    int64_t bytes = qmi_cuda_scratch_bytes(program, rows, 0);
    if (bytes < 0)
        return (int32_t)bytes;
    int32_t code = cuda_enter(device);
    cuda_run_drop_graphs(device, program); /* it may be another one at the same address */
    if (code >= 0)
        code = make_scratch(device, bytes);
    if (code >= 0 && wants_blas(program, rows))
        code = make_blas(device);
    return code < 0 ? code : note_prepared(device, program, rows);
}

/* ---- launching ---- */

static void launch_picks(const cuda_run *run, const qmi_op_logits *op, qmi_pick *out)
{
    cuda_run part = *run;
    const int64_t width = op->output.rows;
    for (int32_t first = 0; first < run->outputs; first += CUDA_PICK_OUTPUTS) {
        part.outputs = run->outputs - first < CUDA_PICK_OUTPUTS ? run->outputs - first : CUDA_PICK_OUTPUTS;
        cuda_pick(&part, cuda_slot(run, op->logits) + first * width, width, out + (int64_t)first * QMI_PICKS_MAX);
    }
}

static void launch_few(const cuda_run *run, const qmi_op *op)
{
    switch (op->kind) {
    case QMI_OP_PROJECT: cuda_matvec_project(run, &op->project); break;
    case QMI_OP_GLU: cuda_matvec_glu(run, &op->glu); break;
    case QMI_OP_PROJECT_ADD: cuda_matvec_project_add(run, &op->project_add); break;
    case QMI_OP_ROUTE: cuda_matvec_route_experts(run, &op->route, NULL); break;
    case QMI_OP_EXPERTS: cuda_matvec_route_experts(run, NULL, &op->experts); break;
    default: cuda_matvec_logits(run, &op->logits); break;
    }
}

static void launch_many(const cuda_run *run, const qmi_op *op)
{
    switch (op->kind) {
    case QMI_OP_PROJECT: cuda_matmul_project(run, &op->project); break;
    case QMI_OP_GLU: cuda_matmul_glu(run, &op->glu); break;
    case QMI_OP_PROJECT_ADD: cuda_matmul_project_add(run, &op->project_add); break;
    case QMI_OP_ROUTE: cuda_matmul_route(run, &op->route); break;
    case QMI_OP_EXPERTS: cuda_matmul_experts(run, &op->experts); break;
    default: cuda_matmul_logits(run, &op->logits); break;
    }
}

static void launch_sum(const cuda_run *run, const qmi_program *program, const qmi_op_sum *op)
{
    cuda_sum(run, run->joints[op->circle], cuda_slot(run, op->from), cuda_slot(run, op->to),
             run->rows * program->slots[op->to].width);
}

/* Launches ops[i], and with it those that go together; returns the index of the last one. */
static size_t launch_op(const cuda_run *run, const qmi_program *program, size_t i, qmi_pick *picks)
{
    const qmi_op *op = &program->ops[i];
    const bool few = run->rows <= CUDA_VECTOR_ROWS;
    switch (op->kind) {
    case QMI_OP_EMBED: cuda_embed(run, &op->embed); return i;
    case QMI_OP_JOIN: cuda_join(run, &op->join); return i;
    case QMI_OP_ATTEND: cuda_attend(run, &op->attend); return i;
    case QMI_OP_DELTA: cuda_delta(run, &op->delta); return i;
    case QMI_OP_SUM: launch_sum(run, program, &op->sum); return i;
    default: break;
    }
    if (few && op->kind == QMI_OP_ROUTE && i + 1 < program->count && op[1].kind == QMI_OP_EXPERTS) {
        cuda_matvec_route_experts(run, &op->route, &op[1].experts);
        return i + 1;
    }
    if (few)
        launch_few(run, op);
    else
        launch_many(run, op);
    if (op->kind == QMI_OP_LOGITS && picks && run->outputs)
        launch_picks(run, &op->logits, picks);
    return i;
}

/* What a run is made of. */
typedef struct cuda_work {
    const qmi_program *program;
    cuda_lent *lent; /* with lent matrices: the ops that run; else NULL */
    bool helped;     /* these are computed by the host */
    bool recorded;   /* into a graph */
    const qmi_batch *batch;
    int64_t step_bytes;
    qmi_pick *picks; /* NULL: not wanted */
    uint64_t circles; /* of its sums */
} cuda_work;

/* When all is done: whether the sums came to something. */
static int32_t check_sums(const cuda_run *run, uint64_t circles)
{
    int32_t code = QM_OK;
    for (int i = 0; circles >> i && code >= 0; i++)
        if (circles >> i & 1)
            code = cuda_sum_check(run->joints[i]);
    return code;
}

static void launch_begin(const qmi_device *device, const cuda_run *run, int64_t bytes)
{
    const int count = (int)(bytes / 16);
    cuda_launch(run, dim3((count + COPY_THREADS - 1) / COPY_THREADS), dim3(COPY_THREADS), 0, begin_step,
                (const uint4 *)device->step.mapped, (uint4 *)device->step.card, count);
}

static bool is_cancelled(const qmi_batch *batch)
{
    return batch->cancel && __atomic_load_n(batch->cancel, __ATOMIC_RELAXED);
}

/* Keeps the host from running ahead of the card by more than CUDA_AHEAD layers, so that a wish to cancel is seen in time. */
static cudaError_t keep_pace(qmi_device *device, int32_t layers)
{
    const cudaEvent_t event = device->ahead[layers % CUDA_AHEAD];
    cudaError_t error = layers < CUDA_AHEAD ? cudaSuccess : cudaEventSynchronize(event);
    return error == cudaSuccess ? cudaEventRecord(event, device->stream) : error;
}

/* Whether op i, or the one that is launched with it, has lent matrices that did not come yet; `next`: those that come next. */
static bool wants_lent(const cuda_run *run, const cuda_work *work, size_t i, size_t next)
{
    if (!work->lent || next == work->lent->list_count)
        return false;
    const size_t op = work->lent->list[next].op;
    return op == i || (op == i + 1 && run->rows <= CUDA_VECTOR_ROWS && work->lent->ops[i].kind == QMI_OP_ROUTE);
}

/* Launches op i, and with it those that go together, among them lent ones, of which `*lent` were launched before. Returns the
 * index of the last one in *last. */
static int32_t launch_lent(qmi_device *device, const cuda_run *run, const cuda_work *work, const qmi_program *program, size_t i,
                           size_t *lent, size_t *last)
{
    int32_t code = QM_OK;
    *last = i;
    if (!wants_lent(run, work, i, *lent)) {
        *last = launch_op(run, program, i, work->picks);
    } else if (!work->helped) {
        code = cuda_lend_arrive(device, work->lent, *lent);
        if (code >= 0) {
            *last = launch_op(run, program, i, work->picks);
            code = cuda_lend_leave(device, (*lent)++);
        }
    } else if (program->ops[i].kind == QMI_OP_ROUTE) {
        launch_few(run, &program->ops[i]); /* alone: the host wants what it writes */
    } else if (work->recorded) {
        cuda_help_record(device, run, work->lent, (*lent)++);
    } else {
        code = cuda_help_now(device, run, work->lent, (*lent)++, work->program, work->batch->cancel);
    }
    return code;
}

/* Launch after launch. QM_ERROR_CANCELLED when the batch says so. */
static int32_t walk(qmi_device *device, const cuda_run *run, const cuda_work *work)
{
    qmi_program program = *work->program;
    size_t lent = 0; /* ops with lent matrices that were launched */
    int32_t code = QM_OK;
    const bool paced = work->batch->cancel && run->rows > CUDA_VECTOR_ROWS;
    cudaError_t error = cudaSuccess;
    cuda_run first = *run;
    int32_t layers = 0;
    first.linked = false; /* it starts when the step is there: kernels may read that before they wait for their predecessor */
    launch_begin(device, run, work->step_bytes);
    if (device->profile)
        error = cuda_profile_start(device->profile, run, work->program);
    if (work->lent)
        program.ops = work->lent->ops;
    if (work->lent && !work->helped)
        code = cuda_lend_start(device, work->lent);
    for (size_t i = 0; i < program.count && error == cudaSuccess && code >= 0; i++) {
        if (paced && i > 0 && program.ops[i].layer != program.ops[i - 1].layer) {
            error = keep_pace(device, layers++);
            if (is_cancelled(work->batch))
                return QM_ERROR_CANCELLED;
        }
        code = launch_lent(device, i == 0 ? &first : run, work, &program, i, &lent, &i);
        if (device->profile && code >= 0)
            error = cuda_profile_mark(device->profile, run, program.ops[i].kind);
    }
    if (code < 0)
        return code;
    return cuda_check(device, error == cudaSuccess ? cudaGetLastError() : error, "launching kernels");
}

/* ---- graphs ---- */

static void free_graph(cuda_graph *graph)
{
    if (graph->exec)
        (void)cudaGraphExecDestroy(graph->exec);
    memset(graph, 0, sizeof *graph);
}

void cuda_run_drop_graphs(qmi_device *device, const qmi_program *program)
{
    for (int i = 0; i < CUDA_GRAPHS; i++)
        if (!program || device->graphs[i].key.program == program)
            free_graph(&device->graphs[i]);
}

/* The graph with that key; else the one that was not used for the longest time, made free for it. */
static cuda_graph *find_graph(qmi_device *device, const cuda_graph_key *key)
{
    cuda_graph *oldest = &device->graphs[0];
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        cuda_graph *graph = &device->graphs[i];
        if (memcmp(&graph->key, key, sizeof *key) == 0)
            return graph;
        if (graph->used < oldest->used)
            oldest = graph;
    }
    free_graph(oldest);
    return oldest;
}

/* Records what the walk launches. Other threads may use the card meanwhile. */
static int32_t record(qmi_device *device, const cuda_run *run, cuda_work *work, cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    int32_t code = cuda_check(device, cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal),
                              "recording a graph");
    if (code < 0)
        return code;
    work->recorded = true;
    code = walk(device, run, work);
    work->recorded = false;
    cudaError_t error = cudaStreamEndCapture(device->stream, &graph);
    if (code >= 0)
        code = cuda_check(device, error, "recording a graph");
    if (code >= 0)
        code = cuda_check(device, cudaGraphInstantiate(out, graph, 0), "making a graph");
    if (graph)
        (void)cudaGraphDestroy(graph);
    return code;
}

/* A shape's first run is launched directly: many shapes come only once, and the driver loads kernels then. */
static int32_t replay(qmi_device *device, cuda_run *run, cuda_work *work)
{
    cuda_graph_key key;
    memset(&key, 0, sizeof key); /* padding too: keys are compared as bytes */
    run->longest = (int32_t)power_of_two(LONGEST_LEAST, run->longest);
    work->step_bytes = power_of_two(STEP_LEAST, work->step_bytes);
    key.program = work->program;
    memcpy(key.slots, run->slots, sizeof key.slots);
    key.step_bytes = work->step_bytes;
    key.rows = run->rows;
    key.outputs = run->outputs;
    key.longest = run->longest;
    key.picks = work->picks != NULL;
    key.packs = run->packs;
    key.moves = run->moves;
    cuda_graph *graph = find_graph(device, &key);
    const bool first = !graph->key.program;
    int32_t code = QM_OK;
    graph->key = key;
    graph->used = ++device->runs;
    if (first)
        return walk(device, run, work);
    if (!graph->exec)
        code = record(device, run, work, &graph->exec);
    if (code < 0 && !device->lost) {
        qmi_log_line(&device->log, QM_LOG_WARNING, "computing goes on without graphs, which is slower: %s", qmi_error_text());
        device->no_graphs = true;
        return walk(device, run, work);
    }
    if (code >= 0 && work->helped)
        cuda_help_begin(device);
    if (code >= 0)
        code = cuda_check(device, cudaGraphLaunch(graph->exec, device->stream), "launching a graph");
    return code < 0 || !work->helped ? code : cuda_help_serve(device, work->lent, work->program, work->batch);
}

/* ---- a run ---- */

/* What the batch does to windows. */
static void look_at_windows(const qmi_batch *batch, int32_t window, cuda_run *run)
{
    for (int32_t i = 0; i < batch->sequence_count && window; i++) {
        const qmi_sequence *s = &batch->sequences[i];
        run->packs = run->packs || qmi_kv_packed(window, s->start + s->count) > qmi_kv_packed(window, s->start);
        run->moves = run->moves || s->state != s->next_state;
    }
}

static cuda_run start_run(const qmi_device *device, const qmi_workspace *workspace, const qmi_batch *batch, const step_layout *at)
{
    cuda_run run = {};
    run.stream = device->stream;
    run.step = step_at(device->step.card, at);
    run.rows = batch->count;
    run.outputs = batch->output_count;
    run.sequences = batch->sequence_count;
    run.single = batch->sequence_count == batch->count;
    for (int32_t i = 0; i < batch->sequence_count; i++)
        run.longest = (int32_t)larger(run.longest, batch->sequences[i].start + batch->sequences[i].count);
    run.processors = device->processors;
    run.shared_most = device->shared_most;
    run.capability = device->capability;
    run.linked = device->capability >= 90;
    run.slots = workspace->slots;
    run.joints = batch->joints;
    run.scratch = device->scratch;
    run.blas = device->blas;
    return run;
}

static int32_t check_batch(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch,
                           cuda_prepared **out)
{
    cuda_prepared *prepared = find_prepared(device, program);
    if (!prepared || prepared->rows < batch->count)
        return qmi_fail(QM_ERROR_STATE, "the device is not prepared for this program and batches of %d rows", batch->count);
    if (batch->count < 1 || batch->count > workspace->rows || batch->output_count > workspace->outputs)
        return qmi_fail(QM_ERROR_STATE, "a batch of %d rows and %d outputs does not fit a workspace for %d and %d", batch->count,
                        batch->output_count, workspace->rows, workspace->outputs);
    *out = prepared;
    return QM_OK;
}

static int32_t finish(qmi_device *device, const cuda_run *run, const cuda_work *work, int32_t code)
{
    /* also after a failure: what was launched reads the numbers of this batch */
    char text[QMI_ERROR_SIZE];
    if (code < 0)
        qmi_error_copy(text);
    int32_t waited = cuda_check(device, cudaStreamSynchronize(device->stream), "computing");
    if (code == QM_ERROR_CANCELLED && waited >= 0)
        return qmi_fail(QM_ERROR_CANCELLED, "cancelled");
    if (code >= 0 && waited >= 0 && work->helped)
        waited = cuda_help_end(device);
    if (code < 0)
        qmi_error_restore(text);
    if (code >= 0)
        code = waited;
    if (code >= 0)
        code = check_sums(run, work->circles);
    if (code >= 0 && device->profile)
        code = cuda_check(device, cuda_profile_finish(device->profile, run), "timing");
    if (code >= 0 && work->picks)
        memcpy(work->batch->picks, device->picks, (size_t)run->outputs * QMI_PICKS_MAX * sizeof *device->picks);
    return code;
}

extern "C" int32_t qmi_cuda_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace,
                                const qmi_batch *batch)
{
    cuda_prepared *prepared = NULL;
    int32_t code = cuda_enter(device);
    if (code >= 0)
        code = check_batch(device, program, workspace, batch, &prepared);
    if (code < 0)
        return code;
    const int32_t page_tokens = prepared->page_tokens;
    const step_layout at = lay_out(batch, page_tokens);
    code = make_step_room(device, power_of_two(STEP_LEAST, at.bytes));
    if (code >= 0 && batch->picks)
        code = make_picks_room(device, batch->output_count);
    if (code < 0)
        return code;
    fill(device->step.host, &at, batch, page_tokens);
    cuda_run run = start_run(device, workspace, batch, &at);
    look_at_windows(batch, prepared->window, &run);
    cuda_work work = {};
    work.program = program;
    work.lent = prepared->lent.ops ? &prepared->lent : NULL;
    work.helped = work.lent && batch->count <= device->help.table.rows;
    work.batch = batch;
    work.step_bytes = at.bytes;
    work.picks = batch->picks ? device->picks_mapped : NULL;
    work.circles = prepared->circles;
    if (work.helped && (code = cuda_cache_begin(device, work.lent)) < 0)
        return code;
    if (run.single && !device->profile && !device->no_graphs && (!work.lent || work.helped))
        code = is_cancelled(batch) ? QM_ERROR_CANCELLED : replay(device, &run, &work);
    else
        code = walk(device, &run, &work);
    if (work.lent && !work.helped)
        code = cuda_lend_end(device, code);
    code = finish(device, &run, &work, code);
    if (code >= 0 && work.helped)
        cuda_cache_end(device, work.lent);
    return code;
}
