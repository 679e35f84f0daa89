/* Blocks of threads on the CPU: each thread is a fiber with a stack of its own; one that waits gives way to the next that is
 * ready. */
#include "emulator_inside.h"

#include <mutex>

#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK_BYTES ((size_t)128 << 10)
#define SHARED_MOST ((size_t)256 << 10)
#define BARRIERS 16

struct copy {
    void *to;
    const void *from;
    size_t size, zeros;
    int group;
    const void *pc; /* who asked for it */
};

enum state { READY, IN_WARP, AT_BARRIER, FINISHED };

struct fiber {
    void *stack;                    /* its pointer, while it doesn't run */
    emulator_position position;
    int index;
    enum state state;
    const char *name, *file;        /* what it waits in */
    int line;
    uint32_t mask;
    int barrier;
    emulator_combine combine;
    emulator_lane lane;
    bool waited;                    /* for the kernel before */
    int group;                      /* of the next cp.async */
    std::vector<struct copy> copies;
};

struct barrier {
    int arrived, waiting, predicates, result;
    const char *name, *file;
    int line;
};

static struct {
    std::mutex mutex;
    uint8_t *stacks, *shared_end;
    void *scheduler;                /* its stack pointer */
    struct fiber fibers[EMULATOR_THREADS];
    int threads, live;
    int ready[EMULATOR_THREADS], ready_first, ready_count;
    uint32_t in_warp[EMULATOR_THREADS / 32];
    struct barrier barriers[BARRIERS];
    struct fiber *running;
    const std::function<void()> *body;
    const void *kernel;
    const std::vector<emulator_variable> *variables; /* of shared memory */
    size_t shared;
    uint64_t seed, random;
} emulator;

const emulator_position *emulator_self;

/* ---- faults ---- */
static bool same_wait(const struct fiber *a, const struct fiber *b)
{
    if (a->state != b->state)
        return false;
    return a->state == FINISHED || a->state == READY ||
           (a->name == b->name && a->line == b->line && a->mask == b->mask && a->barrier == b->barrier);
}

/* Each kind of waiting once, with the threads that are in it. */
static void list_waiting(void)
{
    bool listed[EMULATOR_THREADS];
    memset(listed, 0, sizeof listed);
    for (int i = 0; i < emulator.threads; i++) {
        const struct fiber *a = &emulator.fibers[i];
        int count = 0;
        if (listed[i])
            continue;
        fprintf(stderr, "  threads");
        for (int j = i; j < emulator.threads; j++) {
            int last = j;
            if (listed[j] || !same_wait(a, &emulator.fibers[j]))
                continue;
            while (last + 1 < emulator.threads && same_wait(a, &emulator.fibers[last + 1]))
                last++;
            if (++count <= 8)
                fprintf(stderr, last > j ? " %d-%d" : " %d", j, last);
            for (; j <= last; j++)
                listed[j] = true;
        }
        fprintf(stderr, count > 8 ? " ...: " : ": ");
        if (a->state == FINISHED)
            fprintf(stderr, "finished\n");
        else if (a->state == READY)
            fprintf(stderr, "ready\n");
        else if (a->state == IN_WARP)
            fprintf(stderr, "in %s of lanes %08x at %s:%d\n", a->name, a->mask, a->file, a->line);
        else
            fprintf(stderr, "at %s, barrier %d, %s:%d\n", a->name, a->barrier, a->file, a->line);
    }
}

void emulator_fault(const char *format, ...)
{
    va_list arguments;
    fflush(stdout);
    if (emulator.running) {
        const emulator_position *p = &emulator.running->position;
        fprintf(stderr, "emulator: %s, block (%u,%u,%u) of (%u,%u,%u), thread (%u,%u,%u) of (%u,%u,%u): ",
                emulator_kernel_name(emulator.kernel), p->block.x, p->block.y, p->block.z, p->grid_size.x, p->grid_size.y,
                p->grid_size.z, p->thread.x, p->thread.y, p->thread.z, p->block_size.x, p->block_size.y, p->block_size.z);
    } else if (emulator.kernel)
        fprintf(stderr, "emulator: %s: ", emulator_kernel_name(emulator.kernel));
    else
        fprintf(stderr, "emulator: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    if (emulator.kernel)
        list_waiting();
    signal(SIGSEGV, SIG_DFL);
    abort();
}

static void on_segment_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (!emulator.running) {
        signal(number, SIG_DFL);
        return;
    }
    emulator_fault("access to %p, which is no memory", info->si_addr);
}

/* ---- switching ---- */
#if !defined(__x86_64__)
#error "the emulator's switch of stacks is written for x86-64"
#endif
extern "C" void emulator_switch(void **from, void *to);
asm(".text\n"
    ".type emulator_switch,@function\n"
    "emulator_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size emulator_switch,.-emulator_switch\n");

static uint64_t random_next(void) /* splitmix64 */
{
    uint64_t x = emulator.random += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

static void make_ready(struct fiber *f)
{
    f->state = READY;
    emulator.ready[(emulator.ready_first + emulator.ready_count++) % EMULATOR_THREADS] = f->index;
}

static struct fiber *next_ready(void)
{
    if (!emulator.ready_count)
        return NULL;
    int *first = &emulator.ready[emulator.ready_first];
    if (emulator.seed) {
        const int by = (int)(random_next() % (uint64_t)emulator.ready_count);
        int *other = &emulator.ready[(emulator.ready_first + by) % EMULATOR_THREADS], i = *other;
        *other = *first;
        *first = i;
    }
    emulator.ready_first = (emulator.ready_first + 1) % EMULATOR_THREADS;
    emulator.ready_count--;
    return &emulator.fibers[*first];
}

/* The running fiber waits (or has ended): on to the next; without one, the scheduler looks whether all have ended. */
static void give_way(void)
{
    struct fiber *self = emulator.running, *next = next_ready();
    if (next == self)
        return;
    emulator.running = next;
    emulator_self = next ? &next->position : NULL;
    emulator_switch(&self->stack, next ? next->stack : emulator.scheduler);
}

void emulator_yield(void)
{
    make_ready(emulator.running);
    give_way();
}

static void release(int id, struct barrier *b)
{
    b->result = b->predicates;
    b->arrived = b->waiting = b->predicates = 0;
    if (emulator_checks && id == 0)
        emulator_check_barrier_all(emulator.threads);
    for (int i = 0; i < emulator.threads; i++)
        if (emulator.fibers[i].state == AT_BARRIER && emulator.fibers[i].barrier == id) {
            if (emulator_checks && id != 0)
                emulator_check_leave(id, i);
            make_ready(&emulator.fibers[i]);
        }
}

static void fiber_main(void)
{
    struct fiber *self = emulator.running;
    (*emulator.body)();
    emulator_copy_wait(0);
    self->state = FINISHED;
    emulator.live--;
    if (emulator.live && emulator.barriers[0].arrived == emulator.live) /* threads that have ended count as arrived */
        release(0, &emulator.barriers[0]);
    give_way();
}

/* ---- waiting for each other ---- */
static void wait_as(enum state state, const char *name, const char *file, int line)
{
    struct fiber *self = emulator.running;
    self->state = state;
    self->name = name;
    self->file = file;
    self->line = line;
    give_way();
}

void emulator_warp(const char *name, emulator_combine combine, uint32_t mask, const emulator_lane *lane, const char *file,
                   int line)
{
    struct fiber *self = emulator.running;
    const int warp = self->index >> 5, i = self->index & 31;
    struct fiber *lanes = &emulator.fibers[warp * 32];
    uint32_t *waiting = &emulator.in_warp[warp];
    const char *bad = NULL;
    if (!(mask >> i & 1))
        emulator_fault("%s at %s:%d: lane %d is not in its mask %08x", name, file, line, i, mask);
    self->mask = mask;
    self->combine = combine;
    self->lane = *lane;
    self->name = name;
    self->file = file;
    self->line = line;
    *waiting |= UINT32_C(1) << i;
    bool complete = (*waiting & mask) == mask;
    for (uint32_t left = complete ? mask : *waiting & mask; left; left &= left - 1) {
        const struct fiber *other = &lanes[__builtin_ctz(left)];
        if (other->combine == combine && other->mask == mask && other->line == line && strcmp(other->file, file) == 0) {
            if (!complete && other != self)
                break; /* the others were compared with this one */
            continue;
        }
        if (other->mask >> i & 1)
            emulator_fault("%s of lanes %08x at %s:%d, but lane %d is in %s of lanes %08x at %s:%d", name, mask, file, line,
                           other->index & 31, other->name, other->mask, other->file, other->line);
        complete = false; /* it is still in an operation of other lanes */
    }
    if (!complete) {
        wait_as(IN_WARP, name, file, line);
        return;
    }
    emulator_lane all[32];
    for (int j = 0; j < 32; j++)
        if (mask >> j & 1)
            all[j] = lanes[j].lane;
    if (combine)
        combine(all, mask, &bad);
    else if (emulator_checks)
        emulator_check_warp(warp * 32, mask);
    if (bad)
        emulator_fault("%s at %s:%d: %s", name, file, line, bad);
    *waiting &= ~mask;
    for (int j = 0; j < 32; j++)
        if (mask >> j & 1 && j != i)
            make_ready(&lanes[j]);
    if (emulator.seed && (random_next() & 1))
        emulator_yield();
}

static int arrive(int id, int count, bool wait, int predicate, const char *name, const char *file, int line)
{
    struct barrier *b = &emulator.barriers[id];
    struct fiber *self = emulator.running;
    b->predicates += predicate != 0;
    if (++b->arrived > count)
        emulator_fault("%s at %s:%d: %d threads arrived at barrier %d for %d", name, file, line, b->arrived, id, count);
    if (emulator_checks && id != 0)
        emulator_check_arrive(id, self->index);
    if (b->arrived == count) {
        release(id, b);
        if (emulator_checks && id != 0) {
            if (wait)
                emulator_check_leave(id, self->index);
            emulator_check_reset(id);
        }
        const int result = b->result;
        if (emulator.seed && (random_next() & 1))
            emulator_yield();
        return result;
    }
    if (!wait)
        return 0;
    self->barrier = id;
    wait_as(AT_BARRIER, name, file, line);
    return b->result; /* nobody can complete the barrier again before this thread arrives at it */
}

int emulator_block(const char *name, int predicate, const char *file, int line)
{
    struct barrier *b = &emulator.barriers[0];
    if (b->arrived && (b->line != line || strcmp(b->file, file) != 0))
        emulator_fault("%s at %s:%d, but other threads are in %s at %s:%d", name, file, line, b->name, b->file, b->line);
    b->name = name;
    b->file = file;
    b->line = line;
    return arrive(0, emulator.live, true, predicate, name, file, line);
}

void emulator_barrier(int id, int count, bool wait, const char *file, int line)
{
    if (id < 1 || id >= BARRIERS)
        emulator_fault("%s:%d: barrier %d; the named ones are 1 to %d", file, line, id, BARRIERS - 1);
    if (count < 32 || count % 32 || count > emulator.threads)
        emulator_fault("%s:%d: a barrier of %d threads; they come in warps", file, line, count);
    arrive(id, count, wait, 0, "a named barrier", file, line);
}

uint32_t emulator_active(void)
{
    const int warp = emulator.running->index >> 5;
    uint32_t mask = 0;
    for (int j = 0; j < 32 && warp * 32 + j < emulator.threads; j++)
        mask |= (uint32_t)(emulator.fibers[warp * 32 + j].state != FINISHED) << j;
    return mask;
}

int emulator_lane_index(void)
{
    return emulator.running->index & 31;
}

int emulator_running(void)
{
    return emulator.running ? emulator.running->index : -1;
}

void emulator_touch(const void *p, size_t bytes, bool write, bool atomic)
{
    if (emulator_checks)
        emulator_check_access(p, bytes, write, atomic, __builtin_return_address(0));
}

void emulator_waited(void)
{
    if (emulator_checks)
        emulator_check_waited(emulator.running->index);
    emulator.running->waited = true;
}

void *emulator_shared(void)
{
    return emulator.shared_end - (emulator.shared + 127) / 128 * 128;
}

/* ---- cp.async ---- */
static void look_at_copy(const struct copy *c)
{
    if (!emulator_checks)
        return;
    emulator_check_access(c->from, c->size, false, false, c->pc);
    emulator_check_access(c->to, c->size + c->zeros, true, false, c->pc);
}

static void copy_now(const struct copy *c)
{
    memcpy(c->to, c->from, c->size);
    memset((char *)c->to + c->size, 0, c->zeros);
}

void emulator_copy(void *to, const void *from, size_t size, size_t zeros)
{
    const struct copy c = { to, from, size, zeros, emulator.running->group, __builtin_return_address(0) };
    look_at_copy(&c); /* it may arrive from now on */
    if (emulator.seed & 1)
        copy_now(&c);
    emulator.running->copies.push_back(c);
}

void emulator_copy_commit(void)
{
    emulator.running->group++;
}

void emulator_copy_wait(int left)
{
    struct fiber *self = emulator.running;
    size_t done = 0;
    while (done < self->copies.size() && self->copies[done].group < self->group - left) {
        const struct copy *c = &self->copies[done++];
        look_at_copy(c); /* and until now */
        if (!(emulator.seed & 1))
            copy_now(c);
    }
    self->copies.erase(self->copies.begin(), self->copies.begin() + (ptrdiff_t)done);
}

/* ---- launching ---- */
static void *map_guarded(size_t bytes) /* the last page can't be touched */
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *p = mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        emulator_fault("no memory for %zu bytes", bytes);
    mprotect((char *)p + bytes, page, PROT_NONE);
    return p;
}

static void start(void)
{
    static uint8_t signal_stack[64 << 10];
    const char *seed = getenv("QMI_EMULATOR_SEED");
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    stack_t stack = {};
    struct sigaction action = {};
    if (emulator.stacks)
        return;
    emulator.seed = seed ? strtoull(seed, NULL, 10) : 0;
    emulator.random = emulator.seed;
    emulator.stacks = (uint8_t *)map_guarded(EMULATOR_THREADS * STACK_BYTES);
    for (int i = 0; i < EMULATOR_THREADS; i++)
        mprotect(emulator.stacks + (size_t)i * STACK_BYTES, page, PROT_NONE);
    emulator.shared_end = (uint8_t *)map_guarded(SHARED_MOST) + SHARED_MOST;
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, NULL);
    action.sa_sigaction = on_segment_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
}

static void prepare_fiber(int i, uint3 block, dim3 block_size, dim3 grid_size)
{
    struct fiber *f = &emulator.fibers[i];
    void **top = (void **)(emulator.stacks + (size_t)(i + 1) * STACK_BYTES);
    /* As a call leaves it: return address (none) where the stack pointer is 8 past a multiple of 16. */
    *--top = NULL;
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = NULL;
    f->stack = top;
    f->index = i;
    f->position.thread.x = (unsigned)i % block_size.x;
    f->position.thread.y = (unsigned)i / block_size.x % block_size.y;
    f->position.thread.z = (unsigned)i / (block_size.x * block_size.y);
    f->position.block = block;
    f->position.block_size = block_size;
    f->position.grid_size = grid_size;
    f->waited = false;
    f->group = 0;
    f->copies.clear();
    make_ready(f);
}

static void run_block(uint3 block, dim3 block_size, dim3 grid_size)
{
    bool waited = false;
    emulator.threads = emulator.live = (int)(block_size.x * block_size.y * block_size.z);
    emulator.ready_first = emulator.ready_count = 0;
    memset(emulator.in_warp, 0, sizeof emulator.in_warp);
    memset(emulator.barriers, 0, sizeof emulator.barriers);
    memset(emulator_shared(), EMULATOR_FRESH, (emulator.shared + 127) / 128 * 128);
    for (const emulator_variable &v : *emulator.variables)
        memset(v.address, EMULATOR_FRESH, v.bytes);
    if (emulator_checks)
        emulator_check_block(block.x + (int64_t)grid_size.x * (block.y + (int64_t)grid_size.y * block.z), emulator.threads,
                             (uint8_t *)emulator_shared(), emulator.shared, *emulator.variables);
    for (int i = 0; i < emulator.threads; i++)
        prepare_fiber(i, block, block_size, grid_size);
    emulator.running = next_ready();
    emulator_self = &emulator.running->position;
    emulator_switch(&emulator.scheduler, emulator.running->stack);
    if (emulator.live)
        emulator_fault("deadlock: no thread of block (%u,%u,%u) can go on", block.x, block.y, block.z);
    for (int i = 0; i < emulator.threads; i++)
        waited |= emulator.fibers[i].waited;
    if (!waited)
        emulator_fault("no thread of block (%u,%u,%u) called chip_wait_for_previous()", block.x, block.y, block.z);
}

void emulator_execute(const void *kernel, dim3 grid, dim3 block, size_t shared, bool linked, const std::function<void()> &body)
{
    std::lock_guard<std::mutex> lock(emulator.mutex);
    const int64_t blocks = (int64_t)grid.x * grid.y * grid.z;
    std::vector<uint32_t> order;
    start();
    emulator.kernel = kernel;
    emulator.body = &body;
    emulator.shared = shared;
    emulator.variables = &emulator_shared_variables(kernel);
    if (emulator_checks)
        emulator_check_launch(kernel, linked);
    if (getenv("QMI_EMULATOR_TRACE"))
        fprintf(stderr, "emulator: %s<<<(%u,%u,%u), (%u,%u,%u), %zu>>>\n", emulator_kernel_name(kernel), grid.x, grid.y, grid.z,
                block.x, block.y, block.z, shared);
    if (emulator.seed) {
        order.resize((size_t)blocks);
        for (size_t i = 0; i < order.size(); i++) { /* inside-out shuffle */
            const size_t j = random_next() % (i + 1);
            order[i] = order[j];
            order[j] = (uint32_t)i;
        }
    }
    for (int64_t i = 0; i < blocks; i++) {
        const uint32_t b = emulator.seed ? order[(size_t)i] : (uint32_t)i;
        const uint3 at = { b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y) };
        run_block(at, block, grid);
    }
    emulator.kernel = NULL;
}
