/* Looks at every access to memory that kernels make, when their files were compiled with g++ -fsanitize=thread: the calls that
 * it puts before loads and stores end here (and the program is not linked with the sanitizer's own library).
 *
 * Found: races in a block, on shared and on the card's memory; races between the blocks of a launch; accesses round an
 * allocation; what a kernel touches before chip_wait_for_previous() although another kernel may still write it.
 *
 * Order within a block is by vector clocks (Lamport; Mattern 1989): thread a's access at a's time t happened before what b does
 * now if b's clock for a is at least t. __syncthreads, named barriers and __syncwarp pass clocks on; shuffles and votes do not,
 * as they order no memory. The blocks of a cluster count as one. Blocks of a launch are ordered by atomics on the same address
 * only. */
#include "emulator_inside.h"

#include <algorithm>
#include <map>
#include <memory>

#include <stdarg.h>
#include <sys/mman.h>

#define CELL 4   /* bytes that are looked at as one */
#define WARPS 32 /* of a block, at most */
#define BARRIERS (EMULATOR_CLUSTER * EMULATOR_BARRIERS + 2) /* of the blocks; the cluster's in turn */

bool emulator_checks;

struct access { /* the last of its kind */
    uint32_t launch, block, time;
    uint16_t thread;
    uint8_t bytes; /* which of the cell, a bit each */
    bool atomic;
    const void *pc;
};

struct cell {
    struct access write, read, other_read; /* other_read: by another thread than read */
};

struct shared_cell {
    struct access write;
    uint32_t turn;
    int first;                                 /* thread of the block that reads it */
    uint32_t readers[WARPS], read_time[WARPS]; /* lanes that read at that time of theirs */
    uint8_t read_bytes;                        /* that each of them read */
    const void *pc;                            /* of the last read */
};

typedef std::vector<uint32_t> clock_values;
typedef std::shared_ptr<const clock_values> shared_clock; /* lanes of a warp often know the same */

static struct {
    uint32_t launch, chain;            /* number of this launch; the first that may still run beside it */
    std::vector<const void *> kernels; /* by launch */
    int64_t block;
    int threads, block_threads;
    /* Thread i's clock for thread j: max(floor, known[i][j]), of itself: now[i]. */
    uint32_t floor, now[EMULATOR_THREADS];
    shared_clock known[EMULATOR_THREADS];
    clock_values barrier[BARRIERS];
    bool waited[EMULATOR_THREADS];
    bool early;                        /* a thread let the next launch start and hadn't waited for the one before */
    std::vector<const void *> calls[EMULATOR_THREADS];
    /* Shared memory: what the launch gave, and the place of all `__shared__` variables. */
    uint32_t turn;                     /* of blocks; a cell of an older one is empty */
    uintptr_t start[2];
    size_t bytes[2];
    std::vector<struct shared_cell> shared[2];
    std::vector<bool> in_variable;     /* cells of shared[1] */
    std::map<uintptr_t, struct cell *> cells; /* by allocation */
    std::map<uintptr_t, size_t> cell_counts;
    std::map<uintptr_t, std::vector<bool>> atomics; /* address -> blocks whose work it passes on */
    std::map<int64_t, std::vector<bool>> ordered;   /* block -> blocks that came before it */
} check = { 0, 1, { NULL }, 0, 0, 0, 0, {}, {}, {}, {}, false, {}, 0, {}, {}, {}, {}, {}, {}, {}, {} };

/* ---- order ---- */
static uint32_t clock_of(int thread, int other)
{
    if (thread == other)
        return check.now[thread];
    const shared_clock &k = check.known[thread];
    return k ? std::max(check.floor, (*k)[(size_t)other]) : check.floor;
}

static void join(clock_values &into, int thread)
{
    if (into.empty())
        into.resize((size_t)check.threads, check.floor);
    if (check.known[thread])
        for (size_t i = 0; i < into.size(); i++)
            into[i] = std::max(into[i], (*check.known[thread])[i]);
    into[(size_t)thread] = std::max(into[(size_t)thread], check.now[thread]);
}

void emulator_check_barrier_all(int threads)
{
    uint32_t most = 0;
    for (int i = 0; i < threads; i++)
        most = std::max(most, check.now[i]);
    check.floor = most;
    for (int i = 0; i < threads; i++) {
        check.now[i] = most + 1;
        check.known[i].reset();
    }
}

void emulator_check_arrive(int barrier, int thread)
{
    join(check.barrier[barrier], thread);
    check.now[thread]++;
}

void emulator_check_leave(int barrier, int thread)
{
    clock_values all = check.barrier[barrier];
    join(all, thread);
    check.known[thread] = std::make_shared<clock_values>(std::move(all));
}

void emulator_check_reset(int barrier)
{
    check.barrier[barrier].clear();
}

void emulator_check_warp(int first, uint32_t mask)
{
    clock_values all;
    const clock_values *last = NULL;
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1))
            continue;
        if (all.empty() || check.known[first + i].get() != last)
            join(all, first + i);
        last = check.known[first + i].get();
        all[(size_t)(first + i)] = std::max(all[(size_t)(first + i)], check.now[first + i]);
    }
    const shared_clock same = std::make_shared<clock_values>(std::move(all));
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            check.known[first + i] = same;
            check.now[first + i]++;
        }
}

static bool before(const struct access &a, int thread) /* in the same block */
{
    return a.time <= clock_of(thread, a.thread);
}

/* An atomic passes on what its block and those before have done; see the limits in the file's comment. */
static void pass_on(uintptr_t address)
{
    std::vector<bool> &at = check.atomics[address], &mine = check.ordered[check.block];
    const size_t size = std::max(std::max(at.size(), mine.size()), (size_t)check.block + 1);
    at.resize(size);
    mine.resize(size);
    mine[(size_t)check.block] = true;
    for (size_t i = 0; i < size; i++)
        at[i] = mine[i] = at[i] || mine[i];
}

static bool block_before(uint32_t block)
{
    const std::vector<bool> &mine = check.ordered[check.block];
    return block < mine.size() && mine[block];
}

/* ---- what happens ---- */
void emulator_check_unlinked(void)
{
    check.chain = check.launch + 1;
}

void emulator_check_launch(const void *kernel, bool linked)
{
    check.launch++;
    if (!linked)
        check.chain = check.launch;
    else if (!check.early) /* the predecessor let it start when the launches before were complete, so only itself may still run */
        check.chain = std::max(check.chain, check.launch - 1);
    check.early = false;
    check.kernels.push_back(kernel);
    check.atomics.clear();
    check.ordered.clear();
}

void emulator_check_block(int64_t block, int threads, int block_threads, uint8_t *shared, size_t bytes,
                          const std::vector<emulator_variable> &variables)
{
    check.block = block;
    check.threads = threads;
    check.block_threads = block_threads;
    check.floor = 0;
    for (int i = 0; i < threads; i++) {
        check.now[i] = 1;
        check.known[i].reset();
        check.waited[i] = false;
        check.calls[i].clear();
    }
    uintptr_t lowest = UINTPTR_MAX, end = 0;
    for (const emulator_variable &v : variables) {
        lowest = std::min(lowest, (uintptr_t)v.address);
        end = std::max(end, (uintptr_t)v.address + v.bytes);
    }
    check.turn++;
    check.start[0] = (uintptr_t)shared;
    check.bytes[0] = bytes;
    check.start[1] = lowest / CELL * CELL;
    check.bytes[1] = end ? end - check.start[1] : 0;
    for (int i = 0; i < 2; i++)
        if (check.shared[i].size() * CELL < check.bytes[i])
            check.shared[i].resize((check.bytes[i] + CELL - 1) / CELL);
    check.in_variable.assign((check.bytes[1] + CELL - 1) / CELL, false);
    for (const emulator_variable &v : variables)
        for (uintptr_t at = (uintptr_t)v.address; at < (uintptr_t)v.address + v.bytes; at += CELL)
            check.in_variable[(at - check.start[1]) / CELL] = true;
}

void emulator_check_waited(int thread)
{
    check.waited[thread] = true;
}

void emulator_check_let_next_start(int thread)
{
    if (!check.waited[thread])
        check.early = true;
}

static uint8_t *map_cells(size_t count)
{
    void *p = mmap(NULL, count * sizeof(struct cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        emulator_fault("no memory to look at accesses");
    return (uint8_t *)p;
}

void emulator_check_released(uintptr_t allocation)
{
    auto i = check.cells.find(allocation);
    if (i == check.cells.end())
        return;
    munmap((void *)i->second, check.cell_counts[allocation] * sizeof(struct cell));
    check.cells.erase(i);
}

void emulator_check_overwritten(const void *p, size_t bytes)
{
    size_t size;
    const uintptr_t start = emulator_allocation(p, &size);
    auto i = check.cells.find(start);
    if (!start || i == check.cells.end())
        return;
    const size_t first = ((uintptr_t)p - start) / CELL, last = ((uintptr_t)p - start + bytes + CELL - 1) / CELL;
    for (size_t c = first; c < last && c < check.cell_counts[start]; c++)
        i->second[c] = {};
}

/* ---- faults ---- */
static std::string place_now(int thread, const void *pc)
{
    std::string out = emulator_place(pc);
    const std::vector<const void *> &calls = check.calls[thread];
    for (size_t i = calls.size(); i-- > 1 && i + 4 > calls.size();) {
        const std::string place = emulator_place(calls[i]);
        if (place.find("std::") == std::string::npos)
            out += "\n    called from " + place;
    }
    return out;
}

static void race(const char *what, const void *p, const char *kind, const struct access &a, bool write, const void *pc)
{
    const std::string then = emulator_place(a.pc), now = place_now(emulator_running(), pc);
    emulator_fault("race on %s at %p: it %s\n    here: %s\n    after thread %d of block %u %s\n    there: %s", what, p,
                   write ? "writes" : "reads", now.c_str(), a.thread, a.block, kind, then.c_str());
}

/* A cell has one record of each kind, so where threads write different bytes of it only the last one is remembered. */
static void record(struct access *last, const struct access &now)
{
    const bool same = last->launch == now.launch && last->block == now.block && last->thread == now.thread &&
                      last->time == now.time;
    const uint8_t bytes = same ? last->bytes : 0;
    *last = now;
    last->bytes |= bytes;
}

/* ---- shared memory ---- */
static void look_shared(struct shared_cell *c, const void *p, const struct access &now, bool write)
{
    const int thread = now.thread;
    if (c->write.launch && c->write.bytes & now.bytes && !before(c->write, thread) && !(now.atomic && c->write.atomic))
        race("shared memory", p, "wrote", c->write, write, now.pc);
    if (!write) {
        const int warp = thread % check.block_threads >> 5;
        c->first = thread / check.block_threads * check.block_threads;
        if (c->read_bytes != now.bytes)
            memset(c->readers, 0, sizeof c->readers);
        c->read_bytes = now.bytes;
        if (c->read_time[warp] != now.time)
            c->readers[warp] = 0;
        c->read_time[warp] = now.time;
        c->readers[warp] |= UINT32_C(1) << (thread & 31);
        c->pc = now.pc;
        return;
    }
    for (int w = 0; w * 32 < check.block_threads && c->read_bytes & now.bytes && !now.atomic; w++)
        for (uint32_t lanes = c->read_time[w] > check.floor ? c->readers[w] : 0; lanes; lanes &= lanes - 1) {
            const struct access read = { check.launch, (uint32_t)check.block, c->read_time[w],
                                         (uint16_t)(c->first + w * 32 + __builtin_ctz(lanes)), c->read_bytes, false, c->pc };
            if (!before(read, thread))
                race("shared memory", p, "read", read, true, now.pc);
        }
    record(&c->write, now);
}

/* ---- the card's memory ---- */
/* Is it of this launch, of some of the same bytes, and not ordered before what the thread does now? */
static bool clashes(const struct access &a, const struct access &now)
{
    if (a.launch != now.launch || !(a.bytes & now.bytes) || (a.atomic && now.atomic))
        return false;
    return a.block == now.block ? !before(a, now.thread) : !block_before(a.block);
}

static void look_global(struct cell *c, const void *p, const struct access &now, bool write)
{
    const int thread = now.thread;
    if (!check.waited[thread] && write)
        emulator_fault("writes the card's memory at %p before chip_wait_for_previous()\n    at %s", p,
                       place_now(thread, now.pc).c_str());
    if (!check.waited[thread] && c->write.launch != now.launch && c->write.launch >= check.chain && c->write.launch)
        emulator_fault("reads what %s wrote, at %p, before chip_wait_for_previous()\n    at %s",
                       emulator_kernel_name(check.kernels[c->write.launch]), p, place_now(thread, now.pc).c_str());
    if (clashes(c->write, now))
        race("the card's memory", p, "wrote", c->write, write, now.pc);
    if (!write) {
        if (c->read.block != now.block || c->read.thread != now.thread)
            c->other_read = c->read;
        record(&c->read, now);
        return;
    }
    for (const struct access *read : { &c->read, &c->other_read })
        if (!now.atomic && clashes(*read, now))
            race("the card's memory", p, "read", *read, true, now.pc);
    record(&c->write, now);
}

static struct shared_cell *shared_cell_of(uintptr_t p)
{
    for (int i = 0; i < 2; i++)
        if (p - check.start[i] < check.bytes[i]) {
            const size_t cell = (p - check.start[i]) / CELL;
            struct shared_cell *c = &check.shared[i][cell];
            if (i == 1 && !check.in_variable[cell])
                return NULL;
            if (c->turn != check.turn) {
                *c = {};
                c->turn = check.turn;
            }
            return c;
        }
    return NULL;
}

/* Where the card's memory that has the address begins, 0: nowhere; most accesses go where the last ones went. */
static uintptr_t find_memory(const void *p, size_t *size, struct cell **cells)
{
    static struct { uintptr_t start; size_t size; struct cell *cells; } recent[4];
    static int next;
    static uint64_t changes;
    if (changes != emulator_allocation_changes) {
        changes = emulator_allocation_changes;
        memset(recent, 0, sizeof recent);
    }
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)p - recent[i].start < recent[i].size) {
            *size = recent[i].size;
            *cells = recent[i].cells;
            return recent[i].start;
        }
    const uintptr_t start = emulator_allocation(p, size);
    if (!start)
        return 0;
    struct cell *&found = check.cells[start];
    if (!found) {
        check.cell_counts[start] = (*size + CELL - 1) / CELL;
        found = (struct cell *)map_cells(check.cell_counts[start]);
    }
    *cells = found;
    recent[next] = { start, *size, found };
    next = (next + 1) % 4;
    return start;
}

/* Those of the cell at `cell` that are in bytes [first, first + count). */
static uint8_t bytes_of(uintptr_t cell, uintptr_t first, size_t count)
{
    const uintptr_t begin = std::max(cell, first) - cell, end = std::min(cell + CELL, first + count) - cell;
    return (uint8_t)((1u << end) - (1u << begin));
}

void emulator_check_access(const void *p, size_t bytes, bool write, bool atomic, const void *pc)
{
    const int thread = emulator_running();
    const uintptr_t first = (uintptr_t)p;
    if (thread < 0 || !emulator_checks || emulator_on_stack(p))
        return;
    struct access now = { check.launch, (uint32_t)check.block, check.now[thread], (uint16_t)thread, 0, atomic, pc };
    struct shared_cell *s = shared_cell_of(first);
    if (s) {
        for (uintptr_t at = first / CELL * CELL; at < first + bytes; at += CELL)
            if ((s = shared_cell_of(std::max(at, first)))) {
                now.bytes = bytes_of(at, first, bytes);
                look_shared(s, (const void *)at, now, write);
            }
        return;
    }
    size_t size;
    struct cell *cells;
    const uintptr_t start = find_memory(p, &size, &cells);
    if (!start)
        return;
    if (first < start || first + bytes > start + size)
        emulator_fault("%s %zu bytes at %td of an allocation of %zu bytes\n    at %s", write ? "writes" : "reads", bytes,
                       (ptrdiff_t)(first - start), size, place_now(thread, pc).c_str());
    if (atomic)
        pass_on(first);
    for (size_t c = (first - start) / CELL; c * CELL < first - start + bytes; c++) {
        now.bytes = bytes_of(start + c * CELL, first, bytes);
        look_global(&cells[c], (const void *)(start + c * CELL), now, write);
    }
}

/* ---- what the compiler calls ---- */
#define HERE __builtin_return_address(0)
extern "C" {
void __tsan_init(void) { emulator_checks = true; }
void __tsan_func_entry(const void *pc) { if (emulator_running() >= 0) check.calls[emulator_running()].push_back(pc); }
void __tsan_func_exit(void)
{
    if (emulator_running() >= 0 && !check.calls[emulator_running()].empty())
        check.calls[emulator_running()].pop_back();
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_read_range(const void *p, size_t n) { emulator_check_access(p, n, false, false, HERE); }
void __tsan_write_range(const void *p, size_t n) { emulator_check_access(p, n, true, false, HERE); }
#define SIZED(n) \
    void __tsan_read##n(const void *p) { emulator_check_access(p, n, false, false, HERE); } \
    void __tsan_write##n(const void *p) { emulator_check_access(p, n, true, false, HERE); } \
    void __tsan_unaligned_read##n(const void *p) { emulator_check_access(p, n, false, false, HERE); } \
    void __tsan_unaligned_write##n(const void *p) { emulator_check_access(p, n, true, false, HERE); } \
    void __tsan_volatile_read##n(const void *p) { emulator_check_access(p, n, false, false, HERE); } \
    void __tsan_volatile_write##n(const void *p) { emulator_check_access(p, n, true, false, HERE); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)

/* std::atomic and the like of host code. */
#define ATOMIC(bits, T) \
    T __tsan_atomic##bits##_load(const T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
    void __tsan_atomic##bits##_store(T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_exchange(T *p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_fetch_add(T *p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_fetch_sub(T *p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_fetch_or(T *p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_fetch_and(T *p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##bits##_compare_exchange_val(T *p, T expected, T v, int, int) \
    { \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return expected; \
    } \
    int __tsan_atomic##bits##_compare_exchange_strong(T *p, T *expected, T v, int, int) \
    { \
        return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
