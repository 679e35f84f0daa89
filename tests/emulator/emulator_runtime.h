/* Inside of the emulated CUDA runtime: emulator_card.cpp, emulator_streams.cpp, emulator_memory.cpp. */
#ifndef QMI_EMULATOR_RUNTIME_H
#define QMI_EMULATOR_RUNTIME_H

#include "emulator_inside.h"

#include <deque>
#include <map>
#include <mutex>
#include <set>

typedef std::function<void()> emulator_work;

/* What a stream has still to do: work, or an event that it reaches (number), or one that it waits for. */
struct emulator_item {
    emulator_work run;
    cudaEvent_t reach, wait;
    int64_t number;
};

struct CUgraph_st { std::vector<emulator_work> nodes; };
struct CUgraphExec_st { std::vector<emulator_work> nodes; };
struct CUstream_st {
    bool blocking;             /* waits for, and is waited for by, the stream 0 */
    cudaGraph_t capture;       /* being recorded */
    bool origin;               /* the capture began here */
    enum cudaStreamCaptureMode mode;
    std::deque<struct emulator_item> items;
    bool meeting;              /* the thread that drains it waits for other threads, without the lock */
};
struct CUevent_st {
    int64_t recorded, reached;
    cudaStream_t stream;
    cudaGraph_t capture;
};

struct emulator_memory {
    size_t bytes, mapped;
    uint8_t *map;
    bool host;                 /* pinned */
};

struct emulator_card_state {
    std::recursive_mutex mutex;
    std::map<uintptr_t, struct emulator_memory> memory; /* by its start */
    std::map<const void *, int> shared_limits;          /* of kernels */
    std::set<cudaStream_t> streams;
    struct CUstream_st zero;
    int captures;
    size_t used;
    int64_t fail_allocation, fail_call; /* 0: none, n: the n-th from now */
    bool lost;
    bool started;
};
extern struct emulator_card_state emulator_card;
extern thread_local cudaError_t emulator_last_error;
extern thread_local int emulator_thread_captures; /* that this thread began */

/* Each call begins with this: takes the lock, and fails where it was asked to. */
#define CALL() \
    std::lock_guard<std::recursive_mutex> lock(emulator_card.mutex); \
    emulator_begin(); \
    if (emulator_card.lost) \
        return emulator_last_error = cudaErrorIllegalAddress; \
    if (emulator_counted_down(&emulator_card.fail_call)) \
        return emulator_last_error = cudaErrorUnknown

/* For calls that a capture forbids: one of mode "global" to all threads, one of mode "thread local" to its own. */
#define NOT_CAPTURING(what) \
    do { \
        if (emulator_card.captures || emulator_thread_captures) \
            return emulator_failed(cudaErrorStreamCaptureUnsupported, "%s while a stream is captured", what); \
    } while (0)

/* emulator_card.cpp */
void emulator_begin(void);
cudaError_t emulator_failed(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
int64_t emulator_setting(const char *name, int64_t otherwise); /* of the environment */
bool emulator_counted_down(int64_t *count);
size_t emulator_memory_total(void);
int emulator_shared_most(void);
int emulator_capability(void);

/* emulator_streams.cpp */
cudaStream_t emulator_stream(cudaStream_t stream); /* 0 too */
void emulator_drain(cudaStream_t stream, cudaEvent_t until, int64_t number); /* until NULL: all */
void emulator_drain_all(void);
void emulator_drain_blocking(void);
/* Gives work to a stream, or to the graph that it records. */
void emulator_enqueue(cudaStream_t stream, const emulator_work &run);

#endif
