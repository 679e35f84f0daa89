/* Sums of two to four cards of one process by kernels of their own, which write what they have where the others see it, look for
 * what the others have written, and add it in the order of the ranks: the same bits on each card. Two ways:
 *
 *   pinned   into the host's memory, which every card sees
 *   peer     few values likewise; many into the memory of each of the others, where the cards can reach it
 *
 * Few values go as words of 8 bytes, a value and the number of the sum, which arrive together: who sees the number has the value,
 * so a sum takes one way there and no fence. (On two H200 such words took 5.5 us by the host's memory, and 4 to 60 us, from one
 * process to the next, by the other's.) Many go in pieces, each with a number that is written behind it.
 *
 * Each block deals with the same block of the other cards alone, and counts its sums by itself. It uses two places in turn, which
 * is enough: a card that begins its sum n has the others' n - 1, so these have begun that one and are done with n - 2.
 *
 * Within a graph that is all. Elsewhere the host's threads meet before and after each launch, when their cards are idle:
 * a kernel that is launched for the first time is loaded, for which CUDA may wait until the card is idle, and hold up other
 * threads' launches; so no kernel may wait for one that is not launched yet.
 *
 * Whoever waits looks now and then at a word that ends waiting, and at the clock. Cards may share one (for tests): the kernels
 * are small, so that there is room for those that they wait for, and there they let none that comes after them take it. */
#include "cuda_device.h"
#include "cuda_exchange.h"
#include "chip.cuh"

extern "C" {
#include "base/os.h"
}

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define RANKS_MOST 4
#define SMALL_THREADS 256
#define SMALL_EACH 2                              /* values of a thread */
#define SMALL_VALUES (SMALL_THREADS * SMALL_EACH) /* of a block */
#define SMALL_BLOCKS 64
#define BULK_THREADS 512
#define BULK_EACH 8
#define BULK_VALUES (BULK_THREADS * BULK_EACH)    /* of a piece */
#define BULK_BLOCKS 32
#define LOOKS 64                                  /* between two looks at the clock */
#define JOIN_LOOK_NS 5000000                      /* how often who waits for others to join looks at the cancel word */
#define FOR_EVER (UINT64_C(1) << 63)

/* What one card writes for another: few values, and many. */
typedef struct sum_slip {
    uint64_t words[SMALL_BLOCKS][2][SMALL_VALUES];
} sum_slip;

typedef struct sum_room {
    float values[BULK_BLOCKS][2][BULK_VALUES];
    uint32_t numbers[BULK_BLOCKS][32];            /* each in a line of its own */
} sum_room;

/* In the host's memory, which all cards see. */
typedef struct sum_words {
    int32_t stop;                                 /* nobody waits any more */
    int32_t late[RANKS_MOST];                     /* of each rank: 1 + the one that did not come in time */
} sum_words;

typedef struct sum_part {                         /* a card's, for its kernels */
    const sum_slip *slips[RANKS_MOST - 1];        /* of the others, in the order of ranks */
    const sum_room *in[RANKS_MOST - 1];
    sum_slip *slip;                               /* its own */
    sum_room *out[RANKS_MOST - 1];
    int32_t outs, rank;
    bool apart;                                   /* no other has the same card */
    uint32_t *turns;                              /* [SMALL_BLOCKS + BULK_BLOCKS]: sums that each block has made */
    sum_words *words;
    uint64_t patience;                            /* ns */
} sum_part;

typedef struct sum_circle {
    struct sum_circle *next;
    uint8_t id[QMI_JOINT_ID];
    int32_t ranks, joined, left;
    int32_t failed;
    sum_words *words;                             /* pinned, as what follows */
    sum_slip *slips;                              /* one of each rank */
    sum_room *rooms;                              /* likewise; NULL: by peer */
    sum_room *own[RANKS_MOST];                    /* peer: on each rank's card, one of each rank */
    qmi_device *devices[RANKS_MOST];
    int64_t met[RANKS_MOST];                      /* atomic: how often each rank's thread has come to where all meet */
    int64_t given[RANKS_MOST];                    /* in the emulator, likewise the streams */
} sum_circle;

typedef struct sum_end {
    qmi_joint_end base;
    sum_circle *circle;
    sum_part part;
    int32_t ranks;
} sum_end;

static struct {
    pthread_once_t once;
    int32_t code;                                 /* of making what follows, once for the process */
    qmi_os_mutex *mutex;                          /* guards the list and all circles */
    qmi_os_condition *changed;
    sum_circle *list;
    int64_t made;
} circles = { PTHREAD_ONCE_INIT, 0, NULL, NULL, NULL, 0 };

/* ---- kernels ---- */

/* A launch does both; the emulator, whose kernels can't wait for each other, one after the other. */
enum { GIVE = 1, TAKE = 2 };

static __device__ __forceinline__ uint64_t see(const uint64_t *word)
{
    return *(const volatile uint64_t *)word;
}

/* Not there after so many looks: is there a reason to wait no longer? missing: the rank that is waited for. */
static __device__ bool gives_up(const sum_part &p, int looks, uint64_t *start, int missing)
{
    if (looks % LOOKS)
        return false;
    if (*(volatile int32_t *)&p.words->stop)
        return true;
    const uint64_t now = chip_nanoseconds();
    if (!*start)
        *start = now;
    if (now - *start < p.patience)
        return false;
    *(volatile int32_t *)&p.words->late[p.rank] = 1 + missing;
    *(volatile int32_t *)&p.words->stop = 1;
    return true;
}

static __device__ __forceinline__ float value_of(uint64_t word)
{
    return __uint_as_float((uint32_t)word);
}

/* others: values of the other ranks. */
template <int RANKS> static __device__ __forceinline__ float add_in_order(int rank, float own, const float *others)
{
    float sum = rank == 0 ? own : others[0];
#pragma unroll
    for (int r = 1; r < RANKS; r++)
        sum += r == rank ? own : others[r < rank && r < RANKS - 1 ? r : r - 1];
    return sum;
}

template <int RANKS>
static __global__ void __launch_bounds__(SMALL_THREADS) sum_small(const sum_part p, float *from, float *to, int count, int phases)
{
    if (p.apart)
        chip_let_next_start();
    chip_wait_for_previous();
    const int block = blockIdx.x, first = block * SMALL_VALUES + threadIdx.x;
    const uint32_t turn = p.turns[block] + 1;
    uint64_t got[RANKS - 1][SMALL_EACH], start = 0;
    float own[SMALL_EACH];
    bool there = !(phases & TAKE);
#pragma unroll
    for (int k = 0; k < SMALL_EACH; k++) {
        const int i = first + k * SMALL_THREADS;
        own[k] = i < count ? from[i] : 0;
        if (i < count && (phases & GIVE))
            *(volatile uint64_t *)&p.slip->words[block][turn & 1][threadIdx.x + k * SMALL_THREADS] =
                (uint64_t)turn << 32 | __float_as_uint(own[k]);
    }
    for (int looks = 1; !there; looks++) {
        int missing = -1;
#pragma unroll
        for (int j = 0; j < RANKS - 1; j++)
#pragma unroll
            for (int k = 0; k < SMALL_EACH; k++)
                if (first + k * SMALL_THREADS < count)
                    got[j][k] = see(&p.slips[j]->words[block][turn & 1][threadIdx.x + k * SMALL_THREADS]);
#pragma unroll
        for (int j = 0; j < RANKS - 1; j++)
#pragma unroll
            for (int k = 0; k < SMALL_EACH; k++)
                if (first + k * SMALL_THREADS < count && (uint32_t)(got[j][k] >> 32) != turn)
                    missing = j;
        there = missing < 0;
        if (!there && gives_up(p, looks, &start, missing + (missing >= p.rank)))
            break;
    }
#pragma unroll
    for (int k = 0; k < SMALL_EACH; k++) {
        const int i = first + k * SMALL_THREADS;
        float others[RANKS - 1];
        if (!(phases & TAKE) || i >= count)
            continue;
#pragma unroll
        for (int j = 0; j < RANKS - 1; j++)
            others[j] = there ? value_of(got[j][k]) : 0;
        to[i] = add_in_order<RANKS>(p.rank, own[k], others);
        if (from != to)
            from[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0 && (phases & TAKE))
        p.turns[block] = turn;
    if (!p.apart)
        chip_let_next_start();
}

/* Waits for the number of a piece, and whoever calls it at the block's next barrier. */
template <int RANKS> static __device__ bool pieces_there(const sum_part &p, int block, uint32_t turn)
{
    uint64_t start = 0;
    for (int j = 0; j < RANKS - 1; j++)
        for (int looks = 1; (int32_t)(*(const volatile uint32_t *)&p.in[j]->numbers[block][0] - turn) < 0; looks++)
            if (gives_up(p, looks, &start, j + (j >= p.rank)))
                return false;
    __threadfence_system();
    return true;
}

/* Pieces first, first + 1, ... before `end`, a block each in turn. */
template <int RANKS>
static __global__ void __launch_bounds__(BULK_THREADS) sum_bulk(const sum_part p, float *from, float *to, int64_t count,
                                                                int64_t first, int64_t end, int phases)
{
    __shared__ bool there;
    if (p.apart)
        chip_let_next_start();
    chip_wait_for_previous();
    const int block = blockIdx.x;
    uint32_t turn = p.turns[SMALL_BLOCKS + block];
    bool going = true;
    for (int64_t piece = first + block; piece < end && going; piece += gridDim.x) {
        const int64_t at = piece * BULK_VALUES, left = count - at;
        const int n = left < BULK_VALUES ? (int)left : BULK_VALUES;
        turn++;
        for (int i = threadIdx.x; i < n && (phases & GIVE); i += BULK_THREADS)
            for (int o = 0; o < RANKS - 1; o++)
                if (o < p.outs)
                    *(volatile float *)&p.out[o]->values[block][turn & 1][i] = from[at + i];
        __syncthreads();
        if (threadIdx.x == 0 && (phases & GIVE)) {
            __threadfence_system();
            for (int o = 0; o < RANKS - 1; o++)
                if (o < p.outs)
                    *(volatile uint32_t *)&p.out[o]->numbers[block][0] = turn;
        }
        if (threadIdx.x == 0)
            there = phases & TAKE ? pieces_there<RANKS>(p, block, turn) : false;
        __syncthreads();
        going = there;
#pragma unroll
        for (int k = 0; k < BULK_EACH; k++) {
            const int i = threadIdx.x + k * BULK_THREADS;
            float others[RANKS - 1];
            if (!going || i >= n)
                continue;
#pragma unroll
            for (int j = 0; j < RANKS - 1; j++)
                others[j] = *(const volatile float *)&p.in[j]->values[block][turn & 1][i];
            to[at + i] = add_in_order<RANKS>(p.rank, from[at + i], others);
            if (from != to)
                from[at + i] = 0;
        }
        __syncthreads(); /* `there` is written again */
    }
    if (threadIdx.x == 0 && (phases & TAKE))
        p.turns[SMALL_BLOCKS + block] = turn;
    if (!p.apart)
        chip_let_next_start();
}

#define SMALL_KERNELS { sum_small<2>, sum_small<3>, sum_small<4> } /* by ranks - 2 */
#define BULK_KERNELS { sum_bulk<2>, sum_bulk<3>, sum_bulk<4> }

static void launch_small(const cuda_run *run, const sum_end *e, float *from, float *to, int64_t count, int phases)
{
    const dim3 grid((uint32_t)((count + SMALL_VALUES - 1) / SMALL_VALUES)), block(SMALL_THREADS);
    void (*const kernels[])(const sum_part, float *, float *, int, int) = SMALL_KERNELS;
    cuda_launch(run, grid, block, 0, kernels[e->ranks - 2], e->part, from, to, (int)count, phases);
}

static void launch_bulk(const cuda_run *run, const sum_end *e, float *from, float *to, int64_t count, int64_t first, int64_t end,
                        int phases)
{
    const dim3 grid((uint32_t)(end - first < BULK_BLOCKS ? end - first : BULK_BLOCKS)), block(BULK_THREADS);
    void (*const kernels[])(const sum_part, float *, float *, int64_t, int64_t, int64_t, int) = BULK_KERNELS;
    cuda_launch(run, grid, block, 0, kernels[e->ranks - 2], e->part, from, to, count, first, end, phases);
}

/* In the stream, one after the other. */
static void launch(const cuda_run *run, const sum_end *e, float *from, float *to, int64_t count)
{
    const int64_t pieces = (count + BULK_VALUES - 1) / BULK_VALUES;
    const bool small = count <= SMALL_BLOCKS * SMALL_VALUES;
#ifdef QMI_CUDA_EMULATED
    for (int64_t first = 0; first < pieces; first += small ? pieces : BULK_BLOCKS) {
        const int64_t end = first + BULK_BLOCKS < pieces ? first + BULK_BLOCKS : pieces;
        for (int phase = GIVE; phase <= TAKE; phase++) {
            if (phase == TAKE)
                emulator_meet(run->stream, e->circle->given, e->ranks, e->part.rank, &e->part.words->stop,
                              e->part.patience);
            if (small)
                launch_small(run, e, from, to, count, phase);
            else
                launch_bulk(run, e, from, to, count, first, end, phase);
        }
    }
#else
    if (small)
        launch_small(run, e, from, to, count, GIVE | TAKE);
    else
        launch_bulk(run, e, from, to, count, 0, pieces, GIVE | TAKE);
#endif
}

static bool is_stopped(const sum_end *e)
{
    return __atomic_load_n(&e->part.words->stop, __ATOMIC_ACQUIRE) != 0;
}

/* Waits for the other ranks' threads. False: they do not come. */
static bool meet(const sum_end *e)
{
    sum_circle *c = e->circle;
    const int64_t turn = __atomic_add_fetch(&c->met[e->part.rank], 1, __ATOMIC_ACQ_REL), start = qmi_os_time_ns();
    for (int r = 0; r < e->ranks; r++)
        while (__atomic_load_n(&c->met[r], __ATOMIC_ACQUIRE) < turn) {
            if (is_stopped(e))
                return false;
            if ((uint64_t)(qmi_os_time_ns() - start) > e->part.patience) {
                __atomic_store_n(&e->part.words->late[e->part.rank], 1 + r, __ATOMIC_RELEASE);
                __atomic_store_n(&e->part.words->stop, 1, __ATOMIC_RELEASE);
                return false;
            }
            qmi_os_yield();
        }
    return !is_stopped(e);
}

void cuda_sum(const cuda_run *run, qmi_joint_end *end, float *from, float *to, int64_t count)
{
    const sum_end *e = (const sum_end *)end;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (count <= 0)
        return;
    (void)cudaStreamIsCapturing(run->stream, &status);
    const bool meets = status == cudaStreamCaptureStatusNone;
    if (meets && (cudaStreamSynchronize(run->stream) != cudaSuccess || !meet(e)))
        return;
    launch(run, e, from, to, count);
    if (meets)
        (void)meet(e);
}

int32_t cuda_sum_check(qmi_joint_end *end)
{
    const sum_end *e = (const sum_end *)end;
    const int32_t late = __atomic_load_n(&e->part.words->late[e->part.rank], __ATOMIC_ACQUIRE);
    if (late)
        return qmi_fail(QM_ERROR_DEVICE, "device %d of those that sum with it did not come within %.3g s (option "
                        "exchange-timeout)", late - 1, (double)e->part.patience * 1e-9);
    if (__atomic_load_n(&e->part.words->stop, __ATOMIC_ACQUIRE))
        return qmi_fail(QM_ERROR_DEVICE, "a sum was given up by another device");
    return QM_OK;
}

/* ---- circles ---- */

static void make_mutex(void)
{
    circles.code = qmi_os_mutex_new(&circles.mutex);
    if (circles.code >= 0)
        circles.code = qmi_os_condition_new(&circles.changed);
}

static int32_t make_id(qmi_device *, uint8_t id[QMI_JOINT_ID])
{
    memset(id, 0, QMI_JOINT_ID);
    (void)pthread_once(&circles.once, make_mutex);
    if (circles.code < 0)
        return qmi_fail(circles.code, "no mutex for sums between devices");
    qmi_os_mutex_lock(circles.mutex);
    snprintf((char *)id, QMI_JOINT_ID, "circle %lld", (long long)++circles.made);
    qmi_os_mutex_unlock(circles.mutex);
    return QM_OK;
}

/* With the mutex held. */
static sum_circle *find_circle(const uint8_t id[QMI_JOINT_ID])
{
    sum_circle *c = circles.list;
    while (c && memcmp(c->id, id, QMI_JOINT_ID) != 0)
        c = c->next;
    return c;
}

static void free_circle(sum_circle *c, const qmi_alloc *alloc)
{
    sum_circle **at = &circles.list;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    (void)cudaFreeHost(c->words);
    (void)cudaFreeHost(c->slips);
    (void)cudaFreeHost(c->rooms);
    qmi_delete(alloc, c);
}

static int32_t pin(qmi_device *device, size_t bytes, void **out)
{
    int32_t code = cuda_check(device, cudaHostAlloc(out, bytes, cudaHostAllocMapped | cudaHostAllocPortable), "pinned memory");
    if (code >= 0)
        memset(*out, 0, bytes);
    else
        *out = NULL;
    return code;
}

/* The circle of that name, made by the first of its ranks. With the mutex held. */
static int32_t enter_circle(qmi_device *device, const uint8_t id[QMI_JOINT_ID], int32_t ranks, bool peer, sum_circle **out)
{
    int32_t code = QM_OK;
    sum_circle *c = *out = find_circle(id);
    if (c)
        return c->failed ? qmi_fail(QM_ERROR_CANCELLED, "another device could not join") : QM_OK;
    c = (sum_circle *)qmi_new(&device->alloc, 1, sizeof *c, "a circle of devices");
    if (!c)
        return QM_ERROR_MEMORY;
    memcpy(c->id, id, QMI_JOINT_ID);
    c->ranks = ranks;
    c->next = circles.list;
    circles.list = *out = c;
    code = pin(device, sizeof *c->words, (void **)&c->words);
    if (code >= 0)
        code = pin(device, (size_t)ranks * sizeof *c->slips, (void **)&c->slips);
    if (code >= 0 && !peer)
        code = pin(device, (size_t)ranks * sizeof *c->rooms, (void **)&c->rooms);
    if (code < 0)
        free_circle(c, &device->alloc);
    return code;
}

/* Waits until all ranks are there. With the mutex held. */
static int32_t await_others(sum_circle *c, const qmi_joint_terms *terms)
{
    const int64_t start = qmi_os_time_ns();
    int32_t code = QM_OK;
    qmi_os_condition_signal_all(circles.changed);
    while (c->joined < c->ranks && code >= 0) {
        if (c->failed || (terms->cancel && __atomic_load_n(terms->cancel, __ATOMIC_ACQUIRE)))
            code = qmi_fail(QM_ERROR_CANCELLED, "another device could not join");
        else if (terms->timeout_ns >= 0 && qmi_os_time_ns() - start > terms->timeout_ns)
            code = qmi_fail(QM_ERROR_DEVICE, "%d of %d devices that sum came within %.3g s (option exchange-timeout)", c->joined,
                            c->ranks, (double)terms->timeout_ns * 1e-9);
        else
            (void)qmi_os_condition_wait(circles.changed, circles.mutex, JOIN_LOOK_NS);
    }
    return code;
}

static int32_t reach(qmi_device *device, const qmi_device *other)
{
    int can = 0;
    if (other->index == device->index)
        return QM_OK;
    int32_t code = cuda_check(device, cudaDeviceCanAccessPeer(&can, device->index, other->index), "asking for access to a card");
    if (code >= 0 && !can)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "card %d can't access the memory of card %d", device->index, other->index);
    cudaError_t error = code < 0 ? cudaSuccess : cudaDeviceEnablePeerAccess(other->index, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
        return QM_OK;
    }
    return code < 0 ? code : cuda_check(device, error, "access to another card");
}

/* Where the others write for this one, and where it writes. */
static int32_t connect(sum_end *e, int32_t rank)
{
    sum_circle *c = e->circle;
    int32_t code = QM_OK;
    e->part.apart = true;
    for (int32_t r = 0, j = 0; r < c->ranks && code >= 0; r++) {
        if (r == rank)
            continue;
        if (!c->rooms)
            code = reach(e->base.device, c->devices[r]);
        e->part.apart = e->part.apart && c->devices[r]->index != e->base.device->index;
        e->part.slips[j] = &c->slips[r];
        e->part.in[j] = c->rooms ? &c->rooms[r] : &c->own[rank][r];
        e->part.out[j] = c->rooms ? &c->rooms[rank] : &c->own[r][rank];
        j++;
    }
    e->part.slip = &c->slips[rank];
    e->part.outs = c->rooms ? 1 : c->ranks - 1;
    return code;
}

/* Loads the kernels. */
static int32_t prepare(qmi_device *device)
{
    void (*const small[])(const sum_part, float *, float *, int, int) = SMALL_KERNELS;
    void (*const bulk[])(const sum_part, float *, float *, int64_t, int64_t, int64_t, int) = BULK_KERNELS;
    struct cudaFuncAttributes facts;
    int32_t code = QM_OK;
    for (int i = 0; i < RANKS_MOST - 1 && code >= 0; i++) {
        code = cuda_check(device, cudaFuncGetAttributes(&facts, small[i]), "loading the kernels");
        if (code >= 0)
            code = cuda_check(device, cudaFuncGetAttributes(&facts, bulk[i]), "loading the kernels");
    }
    return code;
}

static int32_t take_cleared(qmi_device *device, int64_t bytes, void **out)
{
    int32_t code = cuda_take(device, bytes, "sums with other devices", out);
    if (code >= 0)
        code = cuda_check(device, cudaMemsetAsync(*out, 0, (size_t)bytes, device->stream), "clearing memory");
    if (code >= 0)
        code = cuda_check(device, cudaStreamSynchronize(device->stream), "clearing memory");
    return code;
}

#define TURNS_BYTES ((int64_t)((SMALL_BLOCKS + BULK_BLOCKS) * sizeof(uint32_t)))

/* Nothing of the circle is under way: a step has ended for all before one of them leaves. */
static void leave(qmi_joint_end **end)
{
    sum_end *e = (sum_end *)*end;
    if (!e)
        return;
    qmi_device *device = e->base.device;
    sum_circle *c = e->circle;
    const qmi_alloc alloc = device->alloc;
    (void)cuda_enter(device);
    cuda_run_drop_graphs(device, NULL); /* they have the circle's addresses */
    (void)cudaStreamSynchronize(device->stream);
    cuda_give(device, e->part.turns, TURNS_BYTES);
    qmi_os_mutex_lock(circles.mutex);
    if (c) {
        cuda_give(device, c->own[e->part.rank], c->ranks * (int64_t)sizeof(sum_room));
        c->own[e->part.rank] = NULL;
        c->failed = 1; /* for whoever has not come yet */
        if (++c->left == c->joined)
            free_circle(c, &alloc);
    }
    qmi_os_mutex_unlock(circles.mutex);
    qmi_delete(&alloc, e);
    *end = NULL;
}

static int32_t join(const qmi_joint *joint, qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms,
                    bool peer, qmi_joint_end **out)
{
    void *turns = NULL, *own = NULL;
    *out = NULL;
    int32_t code = cuda_enter(device);
    if (code >= 0 && (terms->ranks < 2 || terms->ranks > RANKS_MOST))
        code = qmi_fail(QM_ERROR_UNSUPPORTED, "%s sums of two to %d devices, and these are %d", joint->name, RANKS_MOST,
                        terms->ranks);
    if (code < 0)
        return code;
    sum_end *e = (sum_end *)qmi_new(&device->alloc, 1, sizeof *e, "a part in a circle");
    if (!e)
        return QM_ERROR_MEMORY;
    e->base.joint = joint;
    e->base.device = device;
    e->ranks = terms->ranks;
    e->part.rank = terms->rank;
    e->part.patience = terms->timeout_ns < 0 ? FOR_EVER : (uint64_t)terms->timeout_ns;
    code = prepare(device);
    if (code >= 0)
        code = take_cleared(device, TURNS_BYTES, &turns);
    if (code >= 0 && peer)
        code = take_cleared(device, terms->ranks * (int64_t)sizeof(sum_room), &own);
    e->part.turns = (uint32_t *)turns;
    qmi_os_mutex_lock(circles.mutex);
    if (code >= 0)
        code = enter_circle(device, id, terms->ranks, peer, &e->circle);
    if (code >= 0) {
        e->circle->own[terms->rank] = (sum_room *)own;
        e->circle->devices[terms->rank] = device;
        e->circle->joined++;
        e->part.words = e->circle->words;
    } else {
        e->circle = NULL;
        cuda_give(device, own, terms->ranks * (int64_t)sizeof(sum_room));
    }
    if (code >= 0)
        code = await_others(e->circle, terms);
    qmi_os_mutex_unlock(circles.mutex);
    if (code >= 0)
        code = connect(e, terms->rank);
    *out = &e->base;
    if (code < 0)
        leave(out);
    return code;
}

static int32_t join_peer(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out)
{
    return join(&qmi_cuda_peer, device, id, terms, true, out);
}

static int32_t join_pinned(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out)
{
    return join(&qmi_cuda_pinned, device, id, terms, false, out);
}

static int32_t sum(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count)
{
    qmi_device *device = end->device;
    cuda_run run = {};
    int32_t code = cuda_enter(device);
    if (code < 0)
        return code;
    run.stream = device->stream;
    if (count > 0)
        launch(&run, (const sum_end *)end, (float *)from, (float *)to, count);
    return cuda_check(device, cudaGetLastError(), "launching a sum");
}

static void abort_end(qmi_joint_end *end)
{
    sum_end *e = (sum_end *)end;
    __atomic_store_n(&e->part.words->stop, 1, __ATOMIC_RELEASE);
}

extern "C" const qmi_joint qmi_cuda_peer = { "peer", true, true, make_id, join_peer, sum, abort_end, leave };
extern "C" const qmi_joint qmi_cuda_pinned = { "pinned", true, true, make_id, join_pinned, sum, abort_end, leave };
