/* The emulator itself: its warps, blocks, tensor cores, streams and memory do what CUDA's do, and faulty kernels are found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <sys/wait.h>
#include <unistd.h>

#include "chip.cuh"
#include "cuda.h"

static cuda_run run;

static int make_run(void **)
{
    run = {};
    return cudaStreamCreateWithFlags(&run.stream, cudaStreamNonBlocking) != 0;
}

static int end_run(void **)
{
    return cudaStreamDestroy(run.stream) != 0;
}

template <class T> static T *on_card(size_t count)
{
    T *p = NULL;
    assert_int_equal(cudaMalloc(&p, count * sizeof(T)), 0);
    return p;
}

/* Waits, and moves the memory's content to `to`. */
template <class T> static void take(T *to, T *p, size_t count)
{
    assert_int_equal(cudaStreamSynchronize(run.stream), 0);
    assert_int_equal(cudaMemcpy(to, p, count * sizeof(T), cudaMemcpyDeviceToHost), 0);
    assert_int_equal(cudaFree(p), 0);
    assert_int_equal(cudaGetLastError(), 0);
}

/* ---- warps ---- */
enum { FROM, FROM_8, UP, DOWN, DOWN_16, XOR, BALLOT, ANY, ALL, MOST, HALF_SUM, MATCH, RESULTS };

static __global__ void warp_operations(int *out)
{
    const int lane = (int)threadIdx.x, value = 100 + lane;
    const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    chip_wait_for_previous();
    out += lane * RESULTS;
    out[FROM] = __shfl_sync(~0u, value, 5);
    out[FROM_8] = __shfl_sync(~0u, value, 5, 8);
    out[UP] = __shfl_up_sync(~0u, value, 3);
    out[DOWN] = __shfl_down_sync(~0u, value, 3);
    out[DOWN_16] = __shfl_down_sync(~0u, value, 3, 16);
    out[XOR] = __shfl_xor_sync(~0u, value, 9);
    out[BALLOT] = (int)__ballot_sync(~0u, lane % 3 == 0);
    out[ANY] = __any_sync(half, lane == 3);
    out[ALL] = __all_sync(half, lane < 20);
    out[MOST] = __reduce_max_sync(~0u, (lane * 7) % 32 - 40);
    out[HALF_SUM] = (int)__reduce_add_sync(half, (unsigned)lane);
    out[MATCH] = (int)__match_any_sync(~0u, lane % 4);
}

static void test_warps(void **)
{
    int out[32][RESULTS], *p = on_card<int>(32 * RESULTS);
    uint32_t thirds = 0;
    cuda_launch(&run, dim3(1), dim3(32), 0, warp_operations, p);
    take(out[0], p, 32 * RESULTS);
    for (int i = 0; i < 32; i += 3)
        thirds |= UINT32_C(1) << i;
    for (int i = 0; i < 32; i++) {
        assert_int_equal(out[i][FROM], 105);
        assert_int_equal(out[i][FROM_8], 100 + i / 8 * 8 + 5);
        assert_int_equal(out[i][UP], 100 + (i < 3 ? i : i - 3));
        assert_int_equal(out[i][DOWN], 100 + (i > 28 ? i : i + 3));
        assert_int_equal(out[i][DOWN_16], 100 + (i % 16 > 12 ? i : i + 3));
        assert_int_equal(out[i][XOR], 100 + (i ^ 9));
        assert_int_equal((uint32_t)out[i][BALLOT], thirds);
        assert_int_equal(out[i][ANY], i < 16);
        assert_int_equal(out[i][ALL], i < 16);
        assert_int_equal(out[i][MOST], 31 - 40);
        assert_int_equal(out[i][HALF_SUM], i < 16 ? 120 : 376);
        assert_int_equal((uint32_t)out[i][MATCH], UINT32_C(0x11111111) << (i % 4));
    }
}

/* ---- blocks: every thread passes a value on to its neighbour, round the block ---- */
#define THREADS 192
#define ROUNDS 50

static __global__ void pass_round(int *out)
{
    __shared__ int mail[THREADS];
    CHIP_SHARED(int, sums);
    const int i = (int)threadIdx.x;
    int value = (int)(blockIdx.x * 1000) + i, odd = 0;
    chip_wait_for_previous();
    sums[i] = 0;
    for (int n = 0; n < ROUNDS; n++) {
        mail[(i + 1) % THREADS] = value;
        __syncthreads();
        value = mail[i];
        sums[i] += value;
        odd = __syncthreads_count(value & 1);
    }
    out += (blockIdx.x * THREADS + i) * 3;
    out[0] = value;
    out[1] = sums[i];
    out[2] = odd;
}

static void test_blocks(void **)
{
    int out[4][THREADS][3], *p = on_card<int>(4 * THREADS * 3);
    cuda_launch(&run, dim3(4), dim3(THREADS), THREADS * sizeof(int), pass_round, p);
    take(out[0][0], p, 4 * THREADS * 3);
    for (int b = 0; b < 4; b++)
        for (int i = 0; i < THREADS; i++) {
            int sum = 0;
            for (int n = 1; n <= ROUNDS; n++)
                sum += b * 1000 + (i - n + THREADS) % THREADS;
            assert_int_equal(out[b][i][0], b * 1000 + (i - ROUNDS + THREADS) % THREADS);
            assert_int_equal(out[b][i][1], sum);
            assert_int_equal(out[b][i][2], THREADS / 2);
        }
}

/* Threads that have ended don't count any more. The last block to come adds up what all have left. */
static __global__ void ends_early(int *out, int *parts, int *arrived)
{
    __shared__ int last;
    chip_wait_for_previous();
    if (threadIdx.x >= 40)
        return;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = (int)blockIdx.x + 1;
        __threadfence();
        last = atomicAdd(arrived, 1) == (int)gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 39)
        return;
    __threadfence();
    *out = 0;
    for (unsigned i = 0; i < gridDim.x; i++)
        *out += parts[i];
}

static void test_last_block(void **)
{
    int out, *p = on_card<int>(1), *parts = on_card<int>(10), *arrived = on_card<int>(1);
    assert_int_equal(cudaMemset(arrived, 0, sizeof *arrived), 0);
    cuda_launch(&run, dim3(10), dim3(64), 0, ends_early, p, parts, arrived);
    take(&out, p, 1);
    assert_int_equal(out, 55);
    cudaFree(parts);
    cudaFree(arrived);
}

/* ---- tensor cores, fed by cp.async and ldmatrix: c = a b, a [16][16], b [8][16] (its columns), c [16][8] ---- */
static __global__ void multiply(const __half *a, const __half *b, const __nv_bfloat16 *a_wide, const __nv_bfloat16 *b_wide,
                                float *out)
{
    __shared__ __align__(16) __half rows[24][16];
    const int lane = (int)threadIdx.x, g = lane >> 2, t = lane & 3;
    float c[4] = { 0, 0, 0, 0 }, d[4] = { 0, 0, 0, 0 };
    uint32_t pieces[4], fragment[4];
    chip_wait_for_previous();
    for (int i = lane; i < 48; i += 32) /* 16 bytes each */
        chip_copy16(&rows[i / 2][8 * (i & 1)], (i < 32 ? a : b - 256) + 8 * i, true);
    chip_copy_commit();
    chip_copy_wait<0>();
    __syncthreads();
    /* matrices: a's upper left, lower left, upper right, lower right */
    chip_load_matrices(fragment, &rows[lane & 15][8 * (lane >> 4)]);
    chip_load_matrices(pieces, &rows[16 + (lane & 7)][8 * (lane >> 3 & 1)]);
    chip_mma_half(c, fragment, pieces[0], pieces[1]);
    for (int i = 0; i < 4; i++)
        fragment[i] = *(const uint32_t *)(a_wide + 16 * (g + 8 * (i & 1)) + 2 * t + 8 * (i >> 1));
    chip_mma_bfloat(d, fragment, *(const uint32_t *)(b_wide + 16 * g + 2 * t), *(const uint32_t *)(b_wide + 16 * g + 2 * t + 8));
    for (int i = 0; i < 4; i++) {
        const int at = 8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1);
        out[at] = c[i];
        out[128 + at] = d[i];
    }
}

static void test_tensor_cores(void **)
{
    __half a[16][16], b[8][16], *pa = on_card<__half>(256), *pb = on_card<__half>(128);
    __nv_bfloat16 wide_a[16][16], wide_b[8][16], *qa = on_card<__nv_bfloat16>(256), *qb = on_card<__nv_bfloat16>(128);
    float out[2][16][8], *p = on_card<float>(256);
    for (int k = 0; k < 16; k++) {
        for (int m = 0; m < 16; m++)
            a[m][k] = __float2half((float)(m - 2 * k)), wide_a[m][k] = __float2bfloat16((float)(m - 2 * k));
        for (int n = 0; n < 8; n++)
            b[n][k] = __float2half((float)(n * k - 5)), wide_b[n][k] = __float2bfloat16((float)(n * k - 5));
    }
    cudaMemcpy(pa, a, sizeof a, cudaMemcpyHostToDevice);
    cudaMemcpy(pb, b, sizeof b, cudaMemcpyHostToDevice);
    cudaMemcpy(qa, wide_a, sizeof wide_a, cudaMemcpyHostToDevice);
    cudaMemcpy(qb, wide_b, sizeof wide_b, cudaMemcpyHostToDevice);
    cuda_launch(&run, dim3(1), dim3(32), 0, multiply, pa, pb, qa, qb, p);
    take(out[0][0], p, 256);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            int sum = 0; /* small integers: exact in all formats */
            for (int k = 0; k < 16; k++)
                sum += (m - 2 * k) * (n * k - 5);
            assert_int_equal((int)out[0][m][n], sum);
            assert_int_equal((int)out[1][m][n], sum);
        }
    cudaFree(pa);
    cudaFree(pb);
    cudaFree(qa);
    cudaFree(qb);
}

/* ---- streams, graphs, memory ---- */
static __global__ void add_one(int *p)
{
    chip_wait_for_previous();
    *p += 1;
}

static void test_graph(void **)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    int *pinned, *p = on_card<int>(1), out;
    void *none;
    assert_int_equal(cudaMallocHost((void **)&pinned, sizeof(int)), 0);
    assert_int_equal(cudaStreamBeginCapture(run.stream, cudaStreamCaptureModeThreadLocal), 0);
    cudaMemcpyAsync(p, pinned, sizeof(int), cudaMemcpyHostToDevice, run.stream);
    cuda_launch(&run, dim3(1), dim3(1), 0, add_one, p);
    assert_int_equal(cudaMalloc(&none, 4), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(run.stream, &graph), 0);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), 0);
    assert_int_equal(cudaGraphDestroy(graph), 0);
    cudaGetLastError();
    *pinned = 41;
    assert_int_equal(cudaGraphLaunch(exec, run.stream), 0);
    *pinned = 9; /* too early: the stream has not read it */
    cudaStreamSynchronize(run.stream);
    cudaMemcpy(&out, p, sizeof out, cudaMemcpyDeviceToHost);
    assert_int_equal(out, 10);
    cudaGraphLaunch(exec, run.stream);
    assert_int_equal(cudaGraphExecDestroy(exec), 0);
    cudaFreeHost(pinned);
    take(&out, p, 1);
    assert_int_equal(out, 10);
}

static void test_events(void **)
{
    cudaStream_t other;
    cudaEvent_t event;
    int *p = on_card<int>(1), out = 5;
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaMemcpyAsync(p, &out, sizeof out, cudaMemcpyHostToDevice, other); /* pageable: read now */
    out = 0;
    cudaEventRecord(event, other);
    cudaStreamWaitEvent(run.stream, event, 0);
    cuda_launch(&run, dim3(1), dim3(1), 0, add_one, p);
    take(&out, p, 1);
    assert_int_equal(out, 6);
    cudaEventDestroy(event);
    cudaStreamDestroy(other);
}

static void test_memory(void **)
{
    size_t available, total, less;
    uint8_t bytes[100], *p;
    void *none;
    cudaMemGetInfo(&available, &total);
    p = on_card<uint8_t>(100);
    cudaMemGetInfo(&less, &total);
    assert_int_equal(available - less, 100);
    cudaMemcpy(bytes, p, 100, cudaMemcpyDeviceToHost);
    for (int i = 0; i < 100; i++)
        assert_int_equal(bytes[i], 0xFF);
    assert_int_equal(cudaMemcpy(p + 1, bytes, 100, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMalloc(&none, total), cudaErrorMemoryAllocation);
    assert_null(none);
    emulator_fail(2, 0);
    assert_int_equal(cudaMalloc(&none, 1), 0);
    cudaFree(none);
    assert_int_equal(cudaMalloc(&none, 1), cudaErrorMemoryAllocation);
    cudaGetLastError();
    cudaFree(p);
    assert_int_equal(emulator_allocated(), 0);
}

static void test_launches(void **)
{
    int *p = on_card<int>(1);
    cuda_launch(&run, dim3(1, 65536), dim3(1), 0, add_one, p);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    cuda_launch(&run, dim3(1), dim3(1025), 0, add_one, p);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    cuda_launch(&run, dim3(1), dim3(1), 49153, add_one, p);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000), 0);
    cudaMemset(p, 0, 4);
    cuda_launch(&run, dim3(1), dim3(1), 50000, add_one, p);
    assert_int_equal(cudaGetLastError(), 0);
    cudaStreamSynchronize(run.stream);
    cudaFree(p);
}

/* ---- clusters ---- */
enum { IN_ORDER, BEFORE_BEGIN, WITHOUT_WAITING };

/* Each thread gives its number to the next block's thread. */
static __global__ void to_next_block(int how, int blocks, float *out)
{
    CHIP_SHARED(float, mail);
    const int i = (int)threadIdx.x, block = (int)blockIdx.x % blocks;
    chip_wait_for_previous();
    if (how != BEFORE_BEGIN) {
        chip_cluster_arrive();
        chip_cluster_wait();
    }
    chip_cluster_store(&mail[i], (block + 1) % blocks, (float)(blockIdx.x * 100 + threadIdx.x));
    chip_cluster_arrive();
    if (how != WITHOUT_WAITING)
        chip_cluster_wait();
    __syncthreads();
    out[blockIdx.x * 40 + i] = mail[i];
}

static void test_clusters(void **)
{
    float out[6 * 40], *p = on_card<float>(6 * 40);
    run.capability = 90;
    cuda_launch_cluster(&run, 3, dim3(6), dim3(40), 160, to_next_block, (int)IN_ORDER, 3, p);
    take(out, p, 6 * 40);
    for (int i = 0; i < 6 * 40; i++) {
        const int block = i / 40, from = block / 3 * 3 + (block % 3 + 2) % 3;
        assert_true(out[i] == (float)(from * 100 + i % 40));
    }
    cuda_launch_cluster(&run, 4, dim3(6), dim3(40), 160, to_next_block, (int)IN_ORDER, 4, p);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

/* ---- faults: a child process runs into each, and says so ---- */
enum { DEADLOCK, MIXED, MASKED, NEVER_WAITS, TOO_FAR, ODD_ADDRESS, RACE_SHARED, RACE_WARP, RACE_BLOCKS, TOO_EARLY, AFTER_EARLY,
       AFTER_LATE, TOO_LATE, NO_COPY_WAIT, CLUSTER_EARLY, CLUSTER_RACE, NO_FAULT };

static __global__ void faulty(int what, int *p)
{
    __shared__ __align__(16) int mail[128];
    const int i = (int)threadIdx.x;
    if (what == TOO_EARLY || what == AFTER_EARLY || what == AFTER_LATE)
        mail[i] = p[i];
    if (what != NEVER_WAITS)
        chip_wait_for_previous();
    if (what == DEADLOCK && i < 32)
        __syncthreads();
    else if (what == DEADLOCK)
        __syncwarp(~0u), emulator_barrier(1, 128, true, "here", 1);
    if (what == MIXED && (i & 1))
        __syncwarp();
    else if (what == MIXED)
        p[i] = __shfl_sync(~0u, i, 0);
    if (what == MASKED && i < 32 && (i & 1))
        p[i] = __shfl_sync(0xaaaaaaaau, i, 0);
    if (what == TOO_FAR)
        mail[i] = p[i + 64];
    if (what == ODD_ADDRESS)
        mail[i] = (int)chip_load8(p + 1).x;
    if (what == RACE_SHARED)
        mail[i] = i, p[i] = mail[i ^ 64];
    if (what == RACE_WARP) {
        mail[i] = i;
        p[i] = mail[i ^ 1];
    }
    if (what == RACE_BLOCKS)
        p[i] = (int)blockIdx.x;
    if (what == TOO_LATE) {
        mail[i] = i;
        __syncthreads();
        p[i] = mail[127 - i];
        mail[i] = 0;
    }
    if (what == NO_COPY_WAIT) {
        if (i < 32)
            chip_copy16(mail + 4 * i, p, false);
        chip_copy_commit();
        __syncthreads();
        p[i] = mail[i];
    }
    if (what == NO_FAULT) {
        ((int8_t *)mail)[i] = 1; /* bytes beside each other are no race */
        __syncthreads();
        mail[i] = i;
        __syncwarp();
        p[i] = mail[i ^ 1];
        __syncthreads();
        mail[i] = p[127 - i];
    }
}

/* Lets the next kernel start before or after its own wait: only then what the kernel before this one did is seen there. */
static __global__ void between(bool early)
{
    if (early)
        chip_let_next_start();
    chip_wait_for_previous();
    if (!early)
        chip_let_next_start();
}

/* Whether the words are in what the child says. */
static bool fault_says(int what, const char *words)
{
    int ends[2], status;
    char text[4096];
    size_t size = 0;
    ssize_t count;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (!child) {
        int *p = on_card<int>(128);
        cudaMemset(p, 0, 512);
        dup2(ends[1], 2);
        run.linked = what == TOO_EARLY || what == AFTER_EARLY || what == AFTER_LATE;
        if (run.linked)
            cuda_launch(&run, dim3(1), dim3(128), 0, faulty, (int)NO_FAULT, p);
        if (what == AFTER_EARLY || what == AFTER_LATE)
            cuda_launch(&run, dim3(1), dim3(32), 0, between, what == AFTER_EARLY);
        run.capability = 90;
        if (what == CLUSTER_EARLY || what == CLUSTER_RACE)
            cuda_launch_cluster(&run, 2, dim3(2), dim3(40), 160, to_next_block,
                                (int)(what == CLUSTER_EARLY ? BEFORE_BEGIN : WITHOUT_WAITING), 2, (float *)p);
        else
            cuda_launch(&run, dim3(2), dim3(128), 0, faulty, what, p);
        cudaStreamSynchronize(run.stream);
        fprintf(stderr, "nothing found");
        _exit(0);
    }
    close(ends[1]);
    while (size < sizeof text - 1 && (count = read(ends[0], text + size, sizeof text - 1 - size)) > 0)
        size += (size_t)count;
    text[size] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    if (!strstr(text, words))
        print_message("%s\n", text);
    return strstr(text, words) != NULL;
}

static void test_faults(void **)
{
    assert_true(fault_says(DEADLOCK, "deadlock"));
    assert_true(fault_says(MIXED, "__syncwarp of lanes ffffffff"));
    assert_true(fault_says(MASKED, "outside of the mask"));
    assert_true(fault_says(NEVER_WAITS, "chip_wait_for_previous"));
    assert_true(fault_says(ODD_ADDRESS, "no multiple"));
    assert_true(fault_says(TOO_FAR, "of an allocation of 512 bytes"));
    assert_true(fault_says(RACE_SHARED, "race on shared memory"));
    assert_true(fault_says(RACE_WARP, "race on shared memory"));
    assert_true(fault_says(RACE_BLOCKS, "race on the card's memory"));
    assert_true(fault_says(TOO_EARLY, "before chip_wait_for_previous()"));
    assert_true(fault_says(AFTER_EARLY, "before chip_wait_for_previous()"));
    assert_true(fault_says(AFTER_LATE, "nothing found"));
    assert_true(fault_says(TOO_LATE, "race on shared memory"));
    assert_true(fault_says(NO_COPY_WAIT, "race on shared memory"));
    assert_true(fault_says(CLUSTER_EARLY, "may not have begun"));
    assert_true(fault_says(CLUSTER_RACE, "race on shared memory"));
    assert_true(fault_says(NO_FAULT, "race on the card's memory")); /* two blocks write the same */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_warps, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_blocks, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_last_block, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_tensor_cores, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_graph, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_events, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_memory, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_launches, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_clusters, make_run, end_run),
        cmocka_unit_test_setup_teardown(test_faults, make_run, end_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
