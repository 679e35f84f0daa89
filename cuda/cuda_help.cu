/* Lent experts that the host computes: see cuda_help.h. */
#include "cuda_device.h"
#include "chip.cuh"

extern "C" {
#include "cuda_backend.h"
}

#include <string.h>

#define HELP_THREADS 512
#define HELP_BLOCKS 16             /* of an answer, at most: each looks for it, over the bus */
#define LOOK_NS INT64_C(2000000000) /* how often a host that waits for a question asks whether the card is lost */
#define SPIN_NS INT64_C(2000000)   /* how long it does nothing but wait: between two questions of a token are some 30 us */
#define LATE_NS INT64_C(5000000000) /* by which a card is more patient than the host */

extern "C" void qmi_cuda_set_helper(qmi_device *device, const qmi_helper *helper)
{
    device->help.table = *helper;
}

/* ---- room ---- */

static int64_t line(int64_t bytes)
{
    return (bytes + 127) / 128 * 128;
}

void cuda_help_log(const qmi_device *device)
{
    const cuda_help *help = &device->help;
    const double count = (double)(help->answers ? help->answers : 1) * 1e3;
    if (help->answers)
        qmi_log_line(&device->log, QM_LOG_INFO, "CUDA: card %d asked the CPU %lld times for experts: %.1f us each, and %.1f from "
                     "an answer to the next question of a token", device->index, (long long)help->answers,
                     (double)help->computing_ns / count, (double)help->waiting_ns / count);
}

void cuda_help_close(qmi_device *device)
{
    cuda_help *help = &device->help;
    (void)cudaFreeHost(help->words);
    if (help->asked)
        (void)cudaEventDestroy(help->asked);
    cuda_give(device, help->own, help->own_bytes);
    help->own = NULL;
    help->words = help->mapped = NULL;
    help->asked = NULL;
    help->bytes = 0;
}

int32_t cuda_help_room(qmi_device *device, int32_t rows, const qmi_op_experts *op)
{
    cuda_help *help = &device->help;
    void *mapped = NULL, *own = NULL;
    if (rows > help->table.rows)
        rows = help->table.rows;
    const int64_t width = line(rows * op->gate.columns * (int64_t)sizeof(float));
    const int64_t route = line(rows * (2 * op->top + 1) * (int64_t)sizeof(float));
    const int64_t head = line(sizeof(cuda_help_words)), bytes = head + 2 * width + route;
    if (!help->table.compute || bytes <= help->bytes)
        return QM_OK;
    cuda_run_drop_graphs(device, NULL); /* they have its address */
    cuda_help_close(device);
    int32_t code = cuda_check(device, cudaHostAlloc((void **)&help->words, (size_t)bytes, cudaHostAllocMapped), "pinned memory");
    if (code >= 0)
        code = cuda_check(device, cudaHostGetDevicePointer(&mapped, help->words, 0), "mapping pinned memory");
    if (code >= 0)
        code = cuda_take(device, route, "routes to experts", &own);
    help->own = (float *)own;
    help->own_bytes = route;
    if (code >= 0)
        code = cuda_check(device, cudaEventCreateWithFlags(&help->asked, cudaEventDisableTiming), "making an event");
    if (code < 0) {
        cuda_help_close(device);
        return code;
    }
    memset(help->words, 0, (size_t)bytes);
    help->mapped = (cuda_help_words *)mapped;
    help->bytes = bytes;
    help->hidden = head;
    help->out = head + width;
    help->route = head + 2 * width;
    return QM_OK;
}

/* ---- kernels ---- */

typedef struct ask_work {
    const float *hidden, *route;         /* [rows][columns], [rows][2 top + 1] */
    float *to_hidden, *to_route;
    const int32_t *table;                /* of the cache: expert -> slot or -1; or NULL */
    /* The card's own route: to the cache's slots, [rows][2 top + 1]; without, to the shared expert as the only one, [rows][3]. */
    float *own;
    uint64_t *asked;
    uint32_t number;                     /* 0: the host waits for an event */
    int32_t rows, columns, top, slots;
} ask_work;

static __device__ void route_choice(const ask_work &work, int64_t row, int k)
{
    const int each = 2 * work.top + 1;
    const int64_t at = row * each + k;
    const float choice = work.route[at];
    const int slot = work.table ? work.table[(int)choice] : -1;
    work.to_route[at] = slot < 0 ? choice : -1 - choice;
    if (work.table) {
        work.own[at] = (float)(slot < 0 ? work.slots : slot);
        work.own[at + work.top] = slot < 0 ? 0 : work.route[at + work.top];
    }
}

static __global__ void __launch_bounds__(HELP_THREADS) ask_kernel(const __grid_constant__ ask_work work)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int64_t first = (int64_t)blockIdx.x * HELP_THREADS + threadIdx.x, step = (int64_t)gridDim.x * HELP_THREADS;
    const int64_t count = (int64_t)work.rows * work.columns;
    if (work.columns % 4 == 0)
        for (int64_t i = first; i < count / 4; i += step)
            ((float4 *)work.to_hidden)[i] = ((const float4 *)work.hidden)[i];
    else
        for (int64_t i = first; i < count; i += step)
            work.to_hidden[i] = work.hidden[i];
    const int each = 2 * work.top + 1;
    for (int64_t i = first; i < (int64_t)work.rows * each; i += step) {
        const int64_t row = i / each;
        const int k = (int)(i - row * each);
        if (k < work.top) {
            route_choice(work, row, k);
            continue;
        }
        work.to_route[i] = work.route[i];
        if (k < each - 1)
            continue;
        if (work.table)
            work.own[i] = work.route[i];
        else {
            work.own[3 * row] = work.own[3 * row + 2] = 0;
            work.own[3 * row + 1] = work.route[i];
        }
    }
    if (work.number == 0)
        return;
    __syncthreads();
    if (threadIdx.x == 0)
        chip_tell_host(work.asked, work.number);
}

typedef struct add_work {
    cuda_help_words *words;
    const float *from;
    float *to;
    int64_t count;
    uint64_t limit_ns;
    uint32_t number;                     /* 0: the answer is there */
} add_work;

static __global__ void __launch_bounds__(HELP_THREADS) add_kernel(const __grid_constant__ add_work work)
{
    __shared__ bool there;
    chip_let_next_start();
    chip_wait_for_previous();
    if (work.number) {
        if (threadIdx.x == 0) {
            const uint64_t seen = chip_hear_host(&work.words->answered, work.number, work.limit_ns);
            there = seen >= work.number && seen < CUDA_HELP_STOPPED;
            if (seen < work.number)
                chip_tell_host(&work.words->late, 1);
        }
        __syncthreads();
        if (!there)
            return;
    }
    const int64_t first = (int64_t)blockIdx.x * HELP_THREADS + threadIdx.x, step = (int64_t)gridDim.x * HELP_THREADS;
    if (work.count % 4 == 0)
        for (int64_t i = first; i < work.count / 4; i += step) {
            const float4 more = __ldcv((const float4 *)work.from + i);
            float4 x = ((float4 *)work.to)[i];
            ((float4 *)work.to)[i] = make_float4(x.x + more.x, x.y + more.y, x.z + more.z, x.w + more.w);
        }
    else
        for (int64_t i = first; i < work.count; i += step)
            work.to[i] += __ldcv(work.from + i);
}

/* ---- launches ---- */

static const qmi_op_experts *op_of(const cuda_lent *lent, size_t k)
{
    return &lent->ops[lent->list[k].op].experts;
}

/* The shared expert as an op of one expert, which is chosen by all. */
static qmi_op shared_op(const qmi_op_experts *op)
{
    qmi_op alone = {};
    alone.kind = QMI_OP_EXPERTS;
    alone.experts = *op;
    alone.experts.top = 1;
    alone.experts.gate = op->shared_gate;
    alone.experts.up = op->shared_up;
    alone.experts.down = op->shared_down;
    alone.experts.shared_gate.data = alone.experts.shared_up.data = alone.experts.shared_down.data = 0;
    return alone;
}

/* Those of the cache have as many experts as there are, or fewer, and need no more than all of them. */
int64_t cuda_help_scratch(const qmi_op_experts *op, int32_t rows)
{
    const qmi_op alone = shared_op(op);
    return op->shared_gate.data ? cuda_scratch_product(&alone, rows) : 0;
}

static void launch_ask(const qmi_device *device, const cuda_run *run, const cuda_lent *lent, size_t k, uint32_t number)
{
    const cuda_help *help = &device->help;
    const cuda_cache *cache = &lent->cache;
    const qmi_op_experts *op = op_of(lent, k);
    uint8_t *mapped = (uint8_t *)help->mapped;
    const ask_work work = { cuda_slot(run, op->hidden), cuda_slot(run, op->route), (float *)(mapped + help->hidden),
                            (float *)(mapped + help->route), cache->ops ? cache->card_table + k * cache->experts : NULL,
                            help->own, &help->mapped->asked, number, run->rows, (int32_t)op->gate.columns, op->top,
                            cache->slots };
    const int32_t blocks = number ? 1 : run->rows < HELP_BLOCKS ? run->rows : HELP_BLOCKS;
    cuda_launch(run, dim3((uint32_t)blocks), dim3(HELP_THREADS), 0, ask_kernel, work);
}

/* What the card computes itself. */
static void launch_own(const qmi_device *device, const cuda_run *run, const cuda_lent *lent, size_t k)
{
    const cuda_cache *cache = &lent->cache;
    const qmi_op_experts *op = op_of(lent, k);
    qmi_op_experts part = *op;
    qmi_address slots[QMI_SLOTS_MAX];
    cuda_run own = *run;
    if (cache->ops) {
        part.gate = cache->ops[k].gate;
        part.up = cache->ops[k].up;
        part.down = cache->ops[k].down;
    } else if (op->shared_gate.data) {
        part = shared_op(op).experts;
    } else {
        return;
    }
    memcpy(slots, run->slots, sizeof slots);
    slots[op->route] = (qmi_address)device->help.own;
    own.slots = slots;
    if (run->rows <= CUDA_VECTOR_ROWS)
        cuda_matvec_route_experts(&own, NULL, &part);
    else
        cuda_matmul_experts(&own, &part);
}

static void launch_add(const qmi_device *device, const cuda_run *run, const qmi_op_experts *op, uint32_t number)
{
    const cuda_help *help = &device->help;
    const int64_t timeout = help->table.timeout_ns, limit = timeout < 0 ? INT64_MAX : timeout + LATE_NS;
    const add_work work = { help->mapped, (const float *)((const uint8_t *)help->mapped + help->out), cuda_slot(run, op->out),
                            run->rows * op->down.rows, (uint64_t)limit, number };
    const int32_t blocks = run->rows < HELP_BLOCKS ? run->rows : HELP_BLOCKS;
    cuda_launch(run, dim3((uint32_t)blocks), dim3(HELP_THREADS), 0, add_kernel, work);
}

/* ---- the host's part ---- */

/* Whether the host has anything to compute. */
static bool is_wanted(const float *route, int32_t rows, int32_t top)
{
    for (int32_t row = 0; row < rows; row++)
        for (int32_t k = 0; k < top; k++)
            if (route[row * (2 * top + 1) + k] >= 0)
                return true;
    return false;
}

static int32_t compute(const qmi_device *device, cuda_lent *lent, size_t k, const qmi_program *program, int32_t rows,
                       const int32_t *cancel)
{
    const cuda_help *help = &device->help;
    const qmi_op_experts *op = op_of(lent, k);
    uint8_t *host = (uint8_t *)help->words;
    const qmi_help question = { (const float *)(host + help->hidden), (const float *)(host + help->route),
                                (float *)(host + help->out), rows, cancel };
    if (lent->cache.ops)
        cuda_cache_note(lent, k, question.route, rows, op->top);
    if (!is_wanted(question.route, rows, op->top)) {
        memset(question.out, 0, (size_t)(rows * op->down.rows) * sizeof *question.out);
        return QM_OK;
    }
    return help->table.compute(help->table.user, program, lent->list[k].op, &question);
}

int32_t cuda_help_now(qmi_device *device, const cuda_run *run, cuda_lent *lent, size_t k, const qmi_program *program,
                      const int32_t *cancel)
{
    const qmi_op_experts *op = op_of(lent, k);
    launch_ask(device, run, lent, k, 0);
    int32_t code = cuda_check(device, cudaEventRecord(device->help.asked, run->stream), "an event");
    launch_own(device, run, lent, k);
    if (code >= 0)
        code = cuda_check(device, cudaEventSynchronize(device->help.asked), "computing");
    if (code >= 0)
        code = compute(device, lent, k, program, run->rows, cancel);
    if (code >= 0)
        launch_add(device, run, op, 0);
    return code;
}

void cuda_help_record(qmi_device *device, const cuda_run *run, const cuda_lent *lent, size_t k)
{
    const qmi_op_experts *op = op_of(lent, k);
    launch_ask(device, run, lent, k, (uint32_t)k + 1);
    launch_own(device, run, lent, k);
    launch_add(device, run, op, (uint32_t)k + 1);
}

void cuda_help_begin(qmi_device *device)
{
    cuda_help_words *words = device->help.words;
    words->asked = words->late = 0;
    __atomic_store_n(&words->answered, 0, __ATOMIC_RELEASE);
}

/* Until the card has asked question `number`. No call of the runtime but rarely: it might wait for somebody who waits for the
 * card. */
static int32_t wait_asked(qmi_device *device, uint64_t number, const int32_t *cancel)
{
    const cuda_help *help = &device->help;
    const int64_t limit = help->table.timeout_ns, start = qmi_os_time_ns();
    int64_t looked = start;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if (__atomic_load_n(&help->words->asked, __ATOMIC_ACQUIRE) >= number)
                return QM_OK;
            qmi_os_spin_pause();
        }
        const int64_t now = qmi_os_time_ns();
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
            return QM_ERROR_CANCELLED;
        if (limit >= 0 && now - start > limit)
            return qmi_fail(QM_ERROR_DEVICE, "card %d did not ask for experts within %.3g s", device->index,
                            (double)limit * 1e-9);
        if (now - looked > LOOK_NS) {
            const cudaError_t state = cudaStreamQuery(device->stream);
            looked = now;
            if (state != cudaErrorNotReady && __atomic_load_n(&help->words->asked, __ATOMIC_ACQUIRE) < number)
                return state == cudaSuccess ? qmi_fail(QM_ERROR_DEVICE, "card %d has ended without its experts", device->index)
                                            : cuda_check(device, state, "computing");
        }
        if (now - start > SPIN_NS)
            qmi_os_yield();
    }
}

int32_t cuda_help_serve(qmi_device *device, cuda_lent *lent, const qmi_program *program, const qmi_batch *batch)
{
    cuda_help *help = &device->help;
    int32_t code = QM_OK;
    int64_t asked, answered = 0;
#ifdef QMI_CUDA_EMULATED
    const emulator_ahead ahead(device->stream); /* its streams work only while somebody waits for them */
#endif
    for (size_t k = 0; k < lent->list_count && code >= 0; k++) {
        code = wait_asked(device, k + 1, batch->cancel);
        asked = qmi_os_time_ns();
        if (code >= 0)
            code = compute(device, lent, k, program, batch->count, batch->cancel);
        __atomic_store_n(&help->words->answered, code < 0 ? CUDA_HELP_STOPPED : k + 1, __ATOMIC_RELEASE);
        help->waiting_ns += k > 0 ? asked - answered : 0;
        answered = qmi_os_time_ns();
        help->computing_ns += answered - asked;
        help->answers++;
    }
    return code;
}

int32_t cuda_help_end(qmi_device *device)
{
    cuda_help_words *words = device->help.words;
    if (!words->late)
        return QM_OK;
    words->late = 0;
    return qmi_fail(QM_ERROR_DEVICE, "card %d waited too long for experts that the CPU computes (option exchange-timeout)",
                    device->index);
}
