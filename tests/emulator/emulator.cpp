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
#define BARRIERS EMULATOR_BARRIERS
#define CLUSTER_BARRIER (EMULATOR_CLUSTER * BARRIERS) /* and the next one, in turn: after those of the blocks */

struct position {
    uint3 thread, block, block_size, grid_size;
};

enum state { READY, IN_WARP, AT_BARRIER, FINISHED };

struct fiber {
    void *stack;                    /* its pointer, while it doesn't run */
    struct position position;
    int index, block;               /* of the cluster */
    enum state state;
    const char *name, *file;        /* what it waits in */
    int line;
    uint32_t mask;
    int barrier;
    emulator_combine combine;
    emulator_lane lane;
    bool waited;                    /* for the kernel before */
    int cluster_turns;              /* how often it arrived at the cluster's barrier */
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
    int blocks, block_threads, live[EMULATOR_CLUSTER]; /* of a cluster; one block, where there is none */
    int threads;                    /* of all */
    int ready[EMULATOR_THREADS], ready_first, ready_count;
    uint32_t in_warp[EMULATOR_THREADS / 32];
    struct barrier barriers[CLUSTER_BARRIER]; /* of each block */
    int cluster_arrived, cluster_turns;
    struct fiber *running;
    const std::function<void()> *body;
    const void *kernel;
    const std::vector<emulator_variable> *variables; /* of shared memory */
    size_t shared;
    uint64_t seed, random;
} emulator;

static thread_local bool executes;           /* this thread of the host; the code of others has nothing to do with the kernel */
static const struct position *self_position; /* of the running fiber */

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
        const struct position *p = &emulator.running->position;
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
    self_position = next ? &next->position : NULL;
    emulator_switch(&self->stack, next ? next->stack : emulator.scheduler);
}

void emulator_yield(void)
{
    make_ready(emulator.running);
    give_way();
}

/* All threads that run wait at it: the check has a shorter way for that. */
static bool of_all(int id)
{
    return id == 0 && emulator.blocks == 1;
}

static void release(int id, struct barrier *b)
{
    b->result = b->predicates;
    b->arrived = b->waiting = b->predicates = 0;
    if (emulator_checks && of_all(id))
        emulator_check_barrier_all(emulator.threads);
    for (int i = 0; i < emulator.threads; i++)
        if (emulator.fibers[i].state == AT_BARRIER && emulator.fibers[i].barrier == id) {
            if (emulator_checks && !of_all(id))
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
    const int live = --emulator.live[self->block], id = self->block * BARRIERS;
    if (live && emulator.barriers[id].arrived == live) /* threads that have ended count as arrived */
        release(id, &emulator.barriers[id]);
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
        if (other->combine == combine && other->mask == mask && other->line == line &&
            (other->file == file || strcmp(other->file, file) == 0)) {
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
    if (emulator_checks && !of_all(id))
        emulator_check_arrive(id, self->index);
    if (b->arrived == count) {
        release(id, b);
        if (emulator_checks && !of_all(id)) {
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
    const int block = emulator.running->block, id = block * BARRIERS;
    struct barrier *b = &emulator.barriers[id];
    if (b->arrived && (b->line != line || strcmp(b->file, file) != 0))
        emulator_fault("%s at %s:%d, but other threads are in %s at %s:%d", name, file, line, b->name, b->file, b->line);
    b->name = name;
    b->file = file;
    b->line = line;
    return arrive(id, emulator.live[block], true, predicate, name, file, line);
}

void emulator_barrier(int id, int count, bool wait, const char *file, int line)
{
    if (id < 1 || id >= BARRIERS)
        emulator_fault("%s:%d: barrier %d; the named ones are 1 to %d", file, line, id, BARRIERS - 1);
    if (count < 32 || count % 32 || count > emulator.block_threads)
        emulator_fault("%s:%d: a barrier of %d threads; they come in warps", file, line, count);
    arrive(emulator.running->block * BARRIERS + id, count, wait, 0, "a named barrier", file, line);
}

void emulator_cluster_arrive(const char *file, int line)
{
    struct fiber *self = emulator.running;
    const int id = CLUSTER_BARRIER + self->cluster_turns % 2; /* the other one's clocks may still be needed */
    if (self->cluster_turns++ != emulator.cluster_turns)
        emulator_fault("%s:%d: arrives at the cluster's barrier, but never waited for it", file, line);
    if (emulator_checks && emulator.cluster_arrived == 0)
        emulator_check_reset(id);
    if (emulator_checks)
        emulator_check_arrive(id, self->index);
    if (++emulator.cluster_arrived < emulator.threads)
        return;
    emulator.cluster_arrived = 0;
    emulator.cluster_turns++;
    for (int i = 0; i < emulator.threads; i++)
        if (emulator.fibers[i].state == AT_BARRIER && emulator.fibers[i].barrier == CLUSTER_BARRIER)
            make_ready(&emulator.fibers[i]);
}

void emulator_cluster_wait(const char *file, int line)
{
    struct fiber *self = emulator.running;
    if (!self->cluster_turns)
        emulator_fault("%s:%d: waits for the cluster's barrier, at which it did not arrive", file, line);
    if (emulator.cluster_turns < self->cluster_turns) {
        self->barrier = CLUSTER_BARRIER;
        wait_as(AT_BARRIER, "the cluster's barrier", file, line);
    }
    if (emulator_checks)
        emulator_check_leave(CLUSTER_BARRIER + (self->cluster_turns - 1) % 2, self->index);
}

static uint8_t *shared_of(int block)
{
    return emulator.shared_end - (size_t)(block + 1) * ((emulator.shared + 127) / 128 * 128);
}

void *emulator_cluster_address(void *own, int rank, const char *file, int line)
{
    struct fiber *self = emulator.running;
    const size_t at = (size_t)((uint8_t *)own - shared_of(self->block));
    if (rank < 0 || rank >= emulator.blocks)
        emulator_fault("%s:%d: block %d of a cluster of %d", file, line, rank, emulator.blocks);
    if (at >= emulator.shared)
        emulator_fault("%s:%d: %p is not in the block's shared memory", file, line, own);
    if (!emulator.cluster_turns && emulator.blocks > 1)
        emulator_fault("%s:%d: the other block may not have begun", file, line);
    return shared_of(rank) + at;
}

uint3 emulator_thread_index(void) { return self_position->thread; }
uint3 emulator_block_index(void) { return self_position->block; }
uint3 emulator_block_size(void) { return self_position->block_size; }
uint3 emulator_grid_size(void) { return self_position->grid_size; }

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

bool emulator_on_stack(const void *p)
{
    return (size_t)((const uint8_t *)p - emulator.stacks) < EMULATOR_THREADS * STACK_BYTES;
}

int emulator_running(void)
{
    return executes && emulator.running ? emulator.running->index : -1;
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

void emulator_let_next_start(void)
{
    if (emulator_checks)
        emulator_check_let_next_start(emulator.running->index);
}

void *emulator_shared(void)
{
    return shared_of(emulator.running->block);
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
    emulator_copies_at_once = seed && strtoull(seed, NULL, 10) % 2 == 1;
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

static void prepare_fiber(int i, uint3 first_block, dim3 block_size, dim3 grid_size)
{
    const unsigned thread = (unsigned)(i % emulator.block_threads);
    struct fiber *f = &emulator.fibers[i];
    void **top = (void **)(emulator.stacks + (size_t)(i + 1) * STACK_BYTES);
    /* As a call leaves it: return address (none) where the stack pointer is 8 past a multiple of 16. */
    *--top = NULL;
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = NULL;
    f->stack = top;
    f->index = i;
    f->block = i / emulator.block_threads;
    f->position.thread.x = thread % block_size.x;
    f->position.thread.y = thread / block_size.x % block_size.y;
    f->position.thread.z = thread / (block_size.x * block_size.y);
    f->position.block = first_block;
    f->position.block.x += (unsigned)f->block;
    f->position.block_size = block_size;
    f->position.grid_size = grid_size;
    f->waited = false;
    f->cluster_turns = 0;
    emulator_copy_start(i);
    make_ready(f);
}

/* The blocks of a cluster, beside each other from `block` on; they run together. */
static void run_blocks(int blocks, uint3 block, dim3 block_size, dim3 grid_size)
{
    const size_t shared = (emulator.shared + 127) / 128 * 128;
    bool waited[EMULATOR_CLUSTER] = {};
    emulator.blocks = blocks;
    emulator.block_threads = (int)(block_size.x * block_size.y * block_size.z);
    emulator.threads = blocks * emulator.block_threads;
    for (int i = 0; i < blocks; i++)
        emulator.live[i] = emulator.block_threads;
    emulator.ready_first = emulator.ready_count = 0;
    emulator.cluster_arrived = emulator.cluster_turns = 0;
    memset(emulator.in_warp, 0, sizeof emulator.in_warp);
    memset(emulator.barriers, 0, sizeof emulator.barriers);
    memset(shared_of(blocks - 1), EMULATOR_FRESH, (size_t)blocks * shared);
    for (const emulator_variable &v : *emulator.variables)
        memset(v.address, EMULATOR_FRESH, v.bytes);
    if (emulator_checks)
        emulator_check_block(block.x + (int64_t)grid_size.x * (block.y + (int64_t)grid_size.y * block.z), emulator.threads,
                             emulator.block_threads, shared_of(blocks - 1), (size_t)(blocks - 1) * shared + emulator.shared,
                             *emulator.variables);
    for (int i = 0; i < emulator.threads; i++)
        prepare_fiber(i, block, block_size, grid_size);
    emulator.running = next_ready();
    self_position = &emulator.running->position;
    emulator_switch(&emulator.scheduler, emulator.running->stack);
    for (int i = 0; i < emulator.threads; i++) {
        if (emulator.fibers[i].state != FINISHED)
            emulator_fault("deadlock: no thread of block (%u,%u,%u) can go on", block.x, block.y, block.z);
        waited[emulator.fibers[i].block] |= emulator.fibers[i].waited;
    }
    for (int i = 0; i < blocks; i++)
        if (!waited[i])
            emulator_fault("no thread of block (%u,%u,%u) called chip_wait_for_previous()", block.x + (unsigned)i, block.y,
                           block.z);
}

void emulator_execute(const void *kernel, int cluster, dim3 grid, dim3 block, size_t shared, bool linked,
                      const std::function<void()> &body)
{
    std::lock_guard<std::mutex> lock(emulator.mutex);
    const uint32_t width = grid.x / (unsigned)cluster;
    const int64_t clusters = (int64_t)width * grid.y * grid.z;
    std::vector<uint32_t> order;
    start();
    if (cluster > 1 && emulator_static_shared(kernel))
        emulator_fault("%s has `__shared__` variables; blocks of a cluster would have them in common here",
                       emulator_kernel_name(kernel));
    if ((size_t)cluster * (shared + 128) > SHARED_MOST)
        emulator_fault("%s: no room for %d times %zu bytes of shared memory", emulator_kernel_name(kernel), cluster, shared);
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
        order.resize((size_t)clusters);
        for (size_t i = 0; i < order.size(); i++) { /* inside-out shuffle */
            const size_t j = random_next() % (i + 1);
            order[i] = order[j];
            order[j] = (uint32_t)i;
        }
    }
    executes = true;
    for (int64_t i = 0; i < clusters; i++) {
        const uint32_t c = emulator.seed ? order[(size_t)i] : (uint32_t)i;
        const uint3 at = { c % width * (unsigned)cluster, c / width % grid.y, c / (width * grid.y) };
        run_blocks(cluster, at, block, grid);
    }
    executes = false;
    emulator.kernel = NULL;
}
