/* Runs the kernels of cuda/ on the CPU: force-included before a .cu file that g++ compiles as C++ (no nvcc, no card; the
 * headers of the CUDA toolkit are needed). The other files here are linked with it: emulator.cpp (blocks and threads),
 * emulator_copy.cpp (cp.async), emulator_card.cpp, emulator_memory.cpp, emulator_streams.cpp (the CUDA runtime's functions),
 * emulator_symbols.cpp (names), emulator_check.cpp (accesses to memory).
 *
 *   E=tests/emulator
 *   FLAGS="-O1 -g -std=c++17 -x c++ -DQMI_CUDA_EMULATED -I$E -Icuda -Ilib -Iinclude -isystem /usr/local/cuda/include
 *          -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -include $E/emulator.h"
 *   g++ $FLAGS -fsanitize=thread -c cuda/embed.cu -o embed.o        (likewise a test's .cu)
 *   g++ $FLAGS -c $E/emulator.cpp -o emulator.o                     (likewise the others; without -fsanitize)
 *   g++ test.o embed.o emulator*.o cuda_layout.o libqwenmoe_objects.a -lm -ldl -lpthread -o test && ./test   (without -fsanitize)
 *
 * Threads of a block are fibers, switched only where they wait for each other; blocks run one after another. Found and
 * reported, with the kernel's name: deadlocks, lanes of a warp in different operations, shuffles from lanes that aren't there,
 * kernels that never wait for their predecessor, accesses past an allocation (by a guard page behind it). Fresh memory, shared
 * memory too, is filled with 0xFF bytes (NaN). Copies of cp.async arrive as late as they may, and streams work only when
 * somebody waits for them. With -fsanitize=thread (it needs not be, and makes everything some five times slower) each access of
 * a kernel is looked at: races in a block on shared memory, within and between blocks on the card's memory, accesses out of
 * bounds, accesses before chip_wait_for_previous(); the report has file and line of both sides. Environment:
 *   QMI_EMULATOR_SEED=N       N > 0: threads and blocks in random order; odd N: cp.async copies at once
 *   QMI_EMULATOR_TRACE=1      each launch on stderr
 *   QMI_EMULATOR_CAPABILITY=86 | 90 (default), QMI_EMULATOR_MEMORY=bytes, QMI_EMULATOR_PROCESSORS=n, QMI_EMULATOR_DEVICES=n
 *   QMI_EMULATOR_FAIL_ALLOCATION=n, QMI_EMULATOR_FAIL_CALL=n: the n-th fails
 * Not there: kernels whose blocks wait for each other (but for clusters'), TMA. `__shared__` takes no `static` before it. */
#ifndef QMI_EMULATOR_H
#define QMI_EMULATOR_H

/* The toolkit's headers first: their definitions of __device__ and the like are empty under g++. */
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <chrono>
#include <functional>
#include <thread>
#include <tuple>
#include <type_traits>

#undef __shared__
#define __shared__ static thread_local /* so that they can be told from other variables */
#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif
#define __builtin_assume(x) ((void)0)

/* Of functions here: their accesses are none of the kernel's (emulator_check.cpp). */
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread")))

/* ---- threads ---- */
#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* The same all the time for a fiber. */
uint3 emulator_thread_index(void) __attribute__((const));
uint3 emulator_block_index(void) __attribute__((const));
uint3 emulator_block_size(void) __attribute__((const));
uint3 emulator_grid_size(void) __attribute__((const));
#define threadIdx emulator_thread_index()
#define blockIdx emulator_block_index()
#define blockDim emulator_block_size()
#define gridDim emulator_grid_size()
static const int warpSize = 32;

/* One lane's part in an operation of a warp. */
typedef struct emulator_lane {
    const void *in;
    void *out;
    size_t size;
    int argument, width;
} emulator_lane;

/* Does the operation for the lanes of `mask`, once all have arrived. `bad` names a fault, or stays NULL. None at all:
 * __syncwarp. */
typedef void (*emulator_combine)(emulator_lane *lanes, uint32_t mask, const char **bad);

void emulator_warp(const char *name, emulator_combine combine, uint32_t mask, const emulator_lane *lane, const char *file,
                   int line);
int emulator_block(const char *name, int predicate, const char *file, int line); /* number of threads whose predicate is not 0 */
/* Named barrier: `count` threads arrive; those with wait stay until all have. */
void emulator_barrier(int id, int count, bool wait, const char *file, int line);
/* The barrier of a cluster's blocks, in two halves; and where another block has what this one has at `own` of its shared
 * memory. */
void emulator_cluster_arrive(const char *file, int line);
void emulator_cluster_wait(const char *file, int line);
void *emulator_cluster_address(void *own, int rank, const char *file, int line);
uint32_t emulator_active(void);
int emulator_lane_index(void);
void emulator_yield(void);
void emulator_fault(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void *emulator_shared(void);      /* dynamic shared memory */
void emulator_waited(void);       /* the kernel waited for its predecessor */
void emulator_let_next_start(void);
void emulator_copy(void *to, const void *from, size_t size, size_t zeros); /* cp.async */
void emulator_copy_commit(void);
void emulator_copy_wait(int left);

/* An access to memory that the compiler doesn't see: of a warp operation, an atomic. */
void emulator_touch(const void *p, size_t bytes, bool write, bool atomic);

/* Launches; in a stream that is being captured, records. */
void emulator_launch(cudaStream_t stream, const void *kernel, int cluster, dim3 grid, dim3 block, size_t shared, bool linked,
                     const std::function<void()> &body);
const char *emulator_kernel_name(const void *kernel);

/* Several streams, each by a thread of its own: counts given[rank] up, and the stream goes on when the others' are as high, *stop is
 * not 0, or so much time is over. In place of kernels that wait for those of other streams. */
void emulator_meet(cudaStream_t stream, int64_t *given, int ranks, int rank, const int32_t *stop, uint64_t patience_ns);

/* For tests: the n-th allocation, the n-th call of the runtime from now fails (0: none); bytes of the card now allocated. Also
 * QMI_EMULATOR_FAIL_ALLOCATION, QMI_EMULATOR_FAIL_CALL from the start. */
extern "C" void emulator_fail(int64_t allocation, int64_t call);
extern "C" void emulator_lose(bool lost); /* every call of the runtime fails, as after a fault on a card, until it is false */
extern "C" size_t emulator_allocated(void);

/* While there is one, a thread waits for the stream, as a card would work by itself. */
struct emulator_ahead {
    explicit emulator_ahead(cudaStream_t stream) : waiter([stream]() { /* of two calls one may be told to fail */
        if (cudaStreamSynchronize(stream) != cudaSuccess)
            (void)cudaStreamSynchronize(stream);
    }) {}
    ~emulator_ahead() { waiter.join(); }
    std::thread waiter;
};

/* The toolkit has these templates for nvcc only. */
template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), enum cudaFuncAttribute attribute, int value)
{
    return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}
template <class... P> static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, void (*kernel)(P...))
{
    return cudaFuncGetAttributes(out, (const void *)kernel);
}
template <class... P>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*kernel)(P...), int threads,
                                                                        size_t shared)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)kernel, threads, shared);
}

template <class... P, class... A>
EMULATOR_UNSEEN static inline void emulator_call(cudaStream_t stream, int cluster, dim3 grid, dim3 block, size_t shared,
                                                 bool linked, void (*kernel)(P...), A... arguments)
{
    static_assert((sizeof(P) + ... + 0) <= 4096, "a kernel's parameters have at most 4096 bytes");
    std::tuple<P...> values{ P(arguments)... };
    emulator_launch(stream, (const void *)kernel, cluster, grid, block, shared, linked, [=]() { std::apply(kernel, values); });
}

/* ---- barriers ---- */
static inline void __syncthreads(EMULATOR_PLACE) { emulator_block("__syncthreads", 0, file, line); }
static inline int __syncthreads_count(int p, EMULATOR_PLACE) { return emulator_block("__syncthreads_count", p, file, line); }
static inline int __syncthreads_or(int p, EMULATOR_PLACE) { return emulator_block("__syncthreads_or", p, file, line) != 0; }
static inline int __syncthreads_and(int p, EMULATOR_PLACE) { return emulator_block("__syncthreads_and", !p, file, line) == 0; }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) {}
static inline void __nanosleep(unsigned) { emulator_yield(); }
static inline uint32_t __activemask(void) { return emulator_active(); }
#define __trap() emulator_fault("__trap at %s:%d", __FILE__, __LINE__)

EMULATOR_UNSEEN static inline void __syncwarp(uint32_t mask = ~0u, EMULATOR_PLACE)
{
    emulator_lane lane = {};
    emulator_warp("__syncwarp", NULL, mask, &lane, file, line);
}

/* ---- shuffles (CUDA C++ Programming Guide, warp shuffle functions) ---- */
enum { EMULATOR_SHUFFLE_FROM, EMULATOR_SHUFFLE_UP, EMULATOR_SHUFFLE_DOWN, EMULATOR_SHUFFLE_XOR };

template <int KIND> EMULATOR_UNSEEN static void emulator_shuffle(emulator_lane *lanes, uint32_t mask, const char **bad)
{
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1))
            continue;
        const int width = lanes[i].width, first = i & ~(width - 1), last = first + width - 1, n = lanes[i].argument;
        int from = KIND == EMULATOR_SHUFFLE_FROM ? first + (n & (width - 1)) : KIND == EMULATOR_SHUFFLE_UP ? i - n :
                   KIND == EMULATOR_SHUFFLE_DOWN ? i + n : i ^ n;
        if ((KIND == EMULATOR_SHUFFLE_UP && from < first) || (KIND != EMULATOR_SHUFFLE_UP && from > last))
            from = i;
        if (!(mask >> from & 1))
            *bad = "a lane reads from one outside of the mask";
        else
            memcpy(lanes[i].out, lanes[from].in, lanes[i].size);
    }
}

template <int KIND, class T>
EMULATOR_UNSEEN static inline T emulator_shuffled(const char *name, uint32_t mask, T value, int argument, int width,
                                                  const char *file, int line)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    T out = value;
    emulator_lane lane = { &value, &out, sizeof value, argument, width };
    emulator_warp(name, emulator_shuffle<KIND>, mask, &lane, file, line);
    return out;
}

template <class T> static inline T __shfl_sync(uint32_t mask, T value, int from, int width = 32, EMULATOR_PLACE)
{
    return emulator_shuffled<EMULATOR_SHUFFLE_FROM>("__shfl_sync", mask, value, from, width, file, line);
}
template <class T> static inline T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, EMULATOR_PLACE)
{
    return emulator_shuffled<EMULATOR_SHUFFLE_UP>("__shfl_up_sync", mask, value, (int)by, width, file, line);
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32, EMULATOR_PLACE)
{
    return emulator_shuffled<EMULATOR_SHUFFLE_DOWN>("__shfl_down_sync", mask, value, (int)by, width, file, line);
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T value, int with, int width = 32, EMULATOR_PLACE)
{
    return emulator_shuffled<EMULATOR_SHUFFLE_XOR>("__shfl_xor_sync", mask, value, with, width, file, line);
}

/* ---- votes and reductions ---- */
EMULATOR_UNSEEN static inline void emulator_vote(emulator_lane *lanes, uint32_t mask, const char **)
{
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++)
        votes |= (uint32_t)(mask >> i & 1 && *(const int *)lanes[i].in) << i;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            *(uint32_t *)lanes[i].out = votes;
}

EMULATOR_UNSEEN static inline uint32_t emulator_votes(const char *name, uint32_t mask, int predicate, const char *file, int line)
{
    uint32_t out = 0;
    emulator_lane lane = { &predicate, &out, sizeof predicate, 0, 32 };
    emulator_warp(name, emulator_vote, mask, &lane, file, line);
    return out;
}

static inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATOR_PLACE)
{
    return emulator_votes("__ballot_sync", mask, predicate, file, line);
}
static inline int __any_sync(uint32_t mask, int predicate, EMULATOR_PLACE)
{
    return emulator_votes("__any_sync", mask, predicate, file, line) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate, EMULATOR_PLACE)
{
    return emulator_votes("__all_sync", mask, predicate, file, line) == mask;
}

template <class T> EMULATOR_UNSEEN static void emulator_match(emulator_lane *lanes, uint32_t mask, const char **)
{
    for (int i = 0; i < 32; i++) {
        uint32_t same = 0;
        if (!(mask >> i & 1))
            continue;
        for (int j = 0; j < 32; j++)
            same |= (uint32_t)(mask >> j & 1 && memcmp(lanes[i].in, lanes[j].in, sizeof(T)) == 0) << j;
        *(uint32_t *)lanes[i].out = same;
    }
}

template <class T> EMULATOR_UNSEEN static inline uint32_t __match_any_sync(uint32_t mask, T value, EMULATOR_PLACE)
{
    uint32_t out = 0;
    emulator_lane lane = { &value, &out, sizeof value, 0, 32 };
    emulator_warp("__match_any_sync", emulator_match<T>, mask, &lane, file, line);
    return out;
}

#define EMULATOR_REDUCE(name, T, expression) \
    EMULATOR_UNSEEN static inline void emulator_##name##_##T(emulator_lane *lanes, uint32_t mask, const char **) \
    { \
        T a = 0; \
        bool any = false; \
        for (int i = 0; i < 32; i++) { \
            if (!(mask >> i & 1)) \
                continue; \
            T b = *(const T *)lanes[i].in; \
            a = any ? (T)(expression) : b; \
            any = true; \
        } \
        for (int i = 0; i < 32; i++) \
            if (mask >> i & 1) \
                *(T *)lanes[i].out = a; \
    } \
    EMULATOR_UNSEEN static inline T name(uint32_t mask, T value, EMULATOR_PLACE) \
    { \
        T out = 0; \
        emulator_lane lane = { &value, &out, sizeof value, 0, 32 }; \
        emulator_warp(#name, emulator_##name##_##T, mask, &lane, file, line); \
        return out; \
    }
EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
EMULATOR_REDUCE(__reduce_add_sync, int, (unsigned)a + (unsigned)b)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATOR_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, a & b)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
EMULATOR_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMULATOR_REDUCE

#include "emulator_math.h"
#include "emulator_chip.h"

#endif
