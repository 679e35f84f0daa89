/* What differs between chips, and the few instructions that CUDA C++ has no name for. */
#ifndef QMI_CUDA_CHIP_CUH
#define QMI_CUDA_CHIP_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define QMI_WARP 32

/* ---- what only the card's compiler and instructions can do. A CPU build of the kernels (QMI_CUDA_EMULATED, tests/emulator) brings the
 * same functions in C++ with it: whoever adds one here adds it to tests/emulator/emulator_chip.h. ---- */
#ifndef QMI_CUDA_EMULATED

/* Shared memory whose size the launch gives: CHIP_SHARED(float, name); once a kernel. */
#define CHIP_SHARED(type, name) \
    extern __shared__ uint4 chip_shared_memory[]; \
    type *name = (type *)chip_shared_memory

/* ---- programmatic dependent launch (sm_90 and later; elsewhere kernels simply follow each other) ----
 * A kernel calls chip_let_next_start() first, fetches what no kernel of the run writes but the first (weights, the step,
 * recurrent state before its own layer), then chip_wait_for_previous() before it reads or writes anything else: as kernels let
 * their successor start before they have waited, any number of them may be in flight. Every kernel of the backend must wait, also
 * one that needs nothing: its successor relies on it. Where a kernel lets the next one start only after its wait, that one may
 * read before waiting (by __ldcg: an L1 cache may hold older values) what was written up to the kernel before the two. */
static __device__ __forceinline__ void chip_let_next_start(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ void chip_wait_for_previous(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- loads of weights: read once, so they should not push other things out of L1. Not as read-only data (ld.global.nc): the assembler
 * moves such loads behind the wait for the previous kernel, and then nothing is fetched while that one still runs. ---- */
static __device__ __forceinline__ uint4 chip_load16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

static __device__ __forceinline__ uint2 chip_load8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

static __device__ __forceinline__ uint32_t chip_load4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.u32 %0,[%1];" : "=r"(v) : "l"(p));
    return v;
}

static __device__ __forceinline__ uint32_t chip_load2(const void *p)
{
    unsigned short v;
    asm volatile("ld.global.u16 %0,[%1];" : "=h"(v) : "l"(p));
    return v;
}

/* ---- copies to shared memory that do not pass through registers ---- */
static __device__ __forceinline__ uint32_t chip_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes; where `real` is false zeros are written and nothing is read. */
static __device__ __forceinline__ void chip_copy16(void *to_shared, const void *from, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(chip_shared_address(to_shared)), "l"(from), "r"(real ? 16 : 0));
}

/* 8 and 4 bytes. */
static __device__ __forceinline__ void chip_copy8(void *to_shared, const void *from, bool real)
{
    asm volatile("cp.async.ca.shared.global [%0],[%1],8,%2;" ::"r"(chip_shared_address(to_shared)), "l"(from), "r"(real ? 8 : 0));
}

static __device__ __forceinline__ void chip_copy4(void *to_shared, const void *from, bool real)
{
    asm volatile("cp.async.ca.shared.global [%0],[%1],4,%2;" ::"r"(chip_shared_address(to_shared)), "l"(from), "r"(real ? 4 : 0));
}

static __device__ __forceinline__ void chip_copy_commit(void)
{
    asm volatile("cp.async.commit_group;");
}

template <int LEFT> static __device__ __forceinline__ void chip_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* x, of which the compiler knows nothing before this place: what is computed from it stays behind. */
static __device__ __forceinline__ int chip_here(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* ---- words that card and host share (memory of the host) ----
 * What the block did before its last barrier is seen by the host that sees the value. */
static __device__ __forceinline__ void chip_tell_host(uint64_t *word, uint64_t value)
{
    __threadfence_system();
    asm volatile("st.release.sys.global.u64 [%0],%1;" ::"l"(word), "l"(value) : "memory");
}

/* Looks until the word is at least `least`, or for limit_ns; returns what it was last. What the host wrote before it is seen. */
static __device__ __forceinline__ uint64_t chip_hear_host(const uint64_t *word, uint64_t least, uint64_t limit_ns)
{
    uint64_t value, start, now;
    asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(start));
    do {
        asm volatile("ld.acquire.sys.global.u64 %0,[%1];" : "=l"(value) : "l"(word) : "memory");
        asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(now));
    } while (value < least && now - start < limit_ns);
    return value;
}

/* The card's clock. */
static __device__ __forceinline__ uint64_t chip_nanoseconds(void)
{
    uint64_t now;
    asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(now));
    return now;
}

/* ---- products ---- */
static __device__ __forceinline__ int chip_dot4(uint32_t codes, uint32_t values, int sum) /* unsigned codes, signed values */
{
    int d;
    asm("dp4a.u32.s32 %0,%1,%2,%3;" : "=r"(d) : "r"(codes), "r"(values), "r"(sum));
    return d;
}

/* c += a b: a is 16 x 16 (4 registers), b 16 x 8 (2), c 16 x 8 float. With lane = 4 g + t: a0 (row g, k 2t, 2t+1), a1 (row g+8, same k),
 * a2 (row g, k 2t+8, 2t+9), a3 (row g+8, same); b0 (k 2t, 2t+1, column g), b1 (k 2t+8, 2t+9, column g);
 * c0, c1 (row g, columns 2t, 2t+1), c2, c3 (row g+8). PTX ISA, section on mma.m16n8k16. */
static __device__ __forceinline__ void chip_mma_half(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void chip_mma_bfloat(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Products of bytes, a unsigned or signed, b signed, sums of 32-bit integers: as chip_mma_half, but a0, a1 are values 4t .. 4t+3 of
 * rows g and g+8, a2, a3 values 16+4t .. of them; b0, b1 likewise (PTX ISA, mma.m16n8k32). The half of it takes k 16. */
template <bool SIGNED>
static __device__ __forceinline__ void chip_mma_bytes(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    if constexpr (SIGNED)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void chip_mma_bytes_half(int c[4], uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

/* Four 8 x 8 matrices of halves from shared memory: lanes 8 i .. 8 i + 7 give the addresses of the eight rows (16 bytes each) of matrix
 * i, and out[i] of lane 4 g + t is values 2 t, 2 t + 1 of its row g (PTX ISA, ldmatrix): what an mma takes as b. */
static __device__ __forceinline__ void chip_load_matrices(uint32_t out[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(chip_shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed: out[i] of lane 4 g + t is rows 2 t, 2 t + 1 of its column g. */
static __device__ __forceinline__ void chip_load_matrices_turned(uint32_t out[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(chip_shared_address(row))
                 : "memory");
}

/* An 8 x 8 matrix of halves, lane 4 g + t holding columns 2 t, 2 t + 1 of row g, transposed (PTX ISA, movmatrix). */
static __device__ __forceinline__ uint32_t chip_turn_matrix(uint32_t pair)
{
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(out) : "r"(pair));
    return out;
}

/* Two floats as a pair of halves, a in the low one; what is too large becomes the largest. */
static __device__ __forceinline__ uint32_t chip_pack_half(float a, float b)
{
    uint32_t pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0,%1,%2;" : "=r"(pair) : "f"(b), "f"(a));
    return pair;
}

/* ---- blocks of a cluster (sm_90 and later; kernels that use them are launched by cuda_launch_cluster) ----
 * A barrier in two halves: what was done before arriving, also in another block's shared memory, is seen after waiting. All
 * threads of all blocks take part. Another block's shared memory may be written once it has begun (after a first barrier) and
 * until it has waited for the last. */
static __device__ __forceinline__ void chip_cluster_arrive(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void chip_cluster_wait(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

static __device__ constexpr bool chip_has_clusters(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return false;
#else
    return true;
#endif
}

/* Stores where `own` is, in the shared memory of the cluster's block `rank`. */
static __device__ __forceinline__ void chip_cluster_store(float *own, int rank, float value)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(address) : "r"(chip_shared_address(own)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0],%1;" ::"r"(address), "f"(value) : "memory");
#else
    (void)own, (void)rank, (void)value;
#endif
}

/* 2^x; results below the smallest normal number are 0. */
static __device__ __forceinline__ float chip_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

/* ---- arithmetic ---- */
static __device__ __forceinline__ int chip_dot4_signed(uint32_t codes, uint32_t values, int sum)
{
    return __dp4a((int)codes, (int)values, sum);
}

/* (bits & mask) | rest in one instruction; the compiler takes two where mask and rest are constants, as only one fits in it. */
static __device__ __forceinline__ uint32_t chip_pick(uint32_t bits, uint32_t mask, uint32_t rest)
{
#ifdef QMI_CUDA_EMULATED
    return (bits & mask) | rest;
#else
    uint32_t out;
    asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(out) : "r"(bits), "r"(mask), "r"(rest));
    return out;
#endif
}

static __device__ __forceinline__ float chip_half_low(uint32_t pair)
{
    return __half2float(__ushort_as_half((unsigned short)(pair & 0xffff)));
}

static __device__ __forceinline__ float chip_half_high(uint32_t pair)
{
    return __half2float(__ushort_as_half((unsigned short)(pair >> 16)));
}

/* The division by the reciprocal of the hardware: exact to 2 ulp, 0 where the divisor is beyond 2^126. */
static __device__ __forceinline__ float chip_silu(float x)
{
    return __fdividef(x, 1.f + __expf(-x));
}

static __device__ __forceinline__ float chip_sigmoid(float x)
{
    return __fdividef(1.f, 1.f + __expf(-x));
}

static __device__ __forceinline__ float chip_warp_sum(float x)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        x += __shfl_xor_sync(~0u, x, o);
    return x;
}

static __device__ __forceinline__ float chip_warp_max(float x)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}

#endif
