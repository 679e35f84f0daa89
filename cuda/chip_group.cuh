/* Matrix products of a warp group (four warps, 128 threads) on sm_90a: wgmma, whose b is read from shared memory by the tensor
 * cores themselves, and which runs beside what the warps do next (PTX ISA, asynchronous warpgroup level matrix instructions).
 *   chip_group_fence();                         registers and sums are ready
 *   chip_group_multiply<N>(sums, a, rows);      any number of times
 *   chip_group_commit();
 *   chip_group_wait<LEFT>();                    all but the last LEFT commits are done: their a may be overwritten
 *
 * a and sums as in chip_mma_half, each warp having 16 of the 64 rows: sums[4 i .. 4 i + 3] are columns 8 i .. 8 i + 7. b: N
 * rows (of tokens) of 64 halves in shared memory, 128 bytes each, one after another from a multiple of 1024; unit u of 16 bytes
 * of row r lies at u ^ (r & 7). Bytes that threads wrote there are seen after chip_group_publish() by those who wrote them, and
 * a barrier. */
#ifndef QMI_CUDA_CHIP_GROUP_CUH
#define QMI_CUDA_CHIP_GROUP_CUH

#include "chip.cuh"

/* Whether this compilation is for a chip that has them. */
#if defined(QMI_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CHIP_HAS_GROUPS 1
#else
#define CHIP_HAS_GROUPS 0
#endif

#ifdef QMI_CUDA_EMULATED

/* Each warp multiplies its own rows; at once, so that missing waits are not seen. */
static inline void chip_group_fence(void) {}
static inline void chip_group_commit(void) {}
template <int LEFT> static inline void chip_group_wait(void) {}
static inline void chip_group_publish(void) {}
static inline void chip_group_keep(uint32_t *, int) {}
static inline void chip_group_keep(float *, int) {}

static inline uint64_t chip_group_rows(const void *shared) { return (uint64_t)(uintptr_t)shared; }
static inline uint64_t chip_group_step(uint64_t rows, int bytes) { return rows + (uint64_t)bytes; }

/* Columns 8 i .. of k 16 by one mma: the bytes of row r are at an address whose bits 4-6 are flipped by its bits 7-9. */
template <int N> static inline void chip_group_multiply(float *sums, const uint32_t a[4], uint64_t rows)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    for (int i = 0; i < N / 8; i++) {
        uint32_t b[2];
        for (int j = 0; j < 2; j++) {
            uint64_t at = rows + (uint64_t)((8 * i + g) * 128 + 4 * t + 16 * j);
            at ^= (at >> 7 & 7) << 4;
            b[j] = *(const uint32_t *)(uintptr_t)at;
        }
        chip_mma_half(sums + 4 * i, a, b[0], b[1]);
    }
}

#elif CHIP_HAS_GROUPS

static __device__ __forceinline__ void chip_group_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void chip_group_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int LEFT> static __device__ __forceinline__ void chip_group_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

static __device__ __forceinline__ void chip_group_publish(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Registers that the tensor cores use until here, or from here on: keeps the compiler from moving their uses across. */
static __device__ __forceinline__ void chip_group_keep(uint32_t *a, int count)
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+r"(a[i])::"memory");
}

static __device__ __forceinline__ void chip_group_keep(float *sums, int count)
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}

/* The descriptor (PTX ISA, matrix descriptor): address / 16; 1024 / 16 from eight rows to the next; swizzle of 128 bytes. */
static __device__ __forceinline__ uint64_t chip_group_rows(const void *shared)
{
    return (uint64_t)((chip_shared_address(shared) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* The same, so many bytes further on: 32 for the next k 16. */
static __device__ __forceinline__ uint64_t chip_group_step(uint64_t rows, int bytes)
{
    return rows + (uint64_t)(bytes >> 4);
}

#define CHIP_S8(i) \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), "+f"(s[i + 7])
#define CHIP_L0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define CHIP_L1 CHIP_L0 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define CHIP_L2 CHIP_L1 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define CHIP_L3 CHIP_L2 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define CHIP_L4 CHIP_L3 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define CHIP_L5 CHIP_L4 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define CHIP_L6 CHIP_L5 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define CHIP_L7 CHIP_L6 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define CHIP_GROUP_MULTIPLY(n, list, a0, a1, a2, a3, b, ...) \
    asm volatile("{.reg .pred p;\nsetp.ne.b32 p,1,0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" list "},{%" #a0 \
                 ",%" #a1 ",%" #a2 ",%" #a3 "},%" #b ",p,1,1,0;}" \
                 : __VA_ARGS__ \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows))

template <int N> static __device__ __forceinline__ void chip_group_multiply(float *s, const uint32_t a[4], uint64_t rows)
{
    static_assert(N % 16 == 0 && N >= 16 && N <= 128, "as many columns as are written out here");
    if constexpr (N == 16)
        CHIP_GROUP_MULTIPLY(16, CHIP_L0, 8, 9, 10, 11, 12, CHIP_S8(0));
    else if constexpr (N == 32)
        CHIP_GROUP_MULTIPLY(32, CHIP_L1, 16, 17, 18, 19, 20, CHIP_S8(0), CHIP_S8(8));
    else if constexpr (N == 48)
        CHIP_GROUP_MULTIPLY(48, CHIP_L2, 24, 25, 26, 27, 28, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16));
    else if constexpr (N == 64)
        CHIP_GROUP_MULTIPLY(64, CHIP_L3, 32, 33, 34, 35, 36, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16), CHIP_S8(24));
    else if constexpr (N == 80)
        CHIP_GROUP_MULTIPLY(80, CHIP_L4, 40, 41, 42, 43, 44, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16), CHIP_S8(24), CHIP_S8(32));
    else if constexpr (N == 96)
        CHIP_GROUP_MULTIPLY(96, CHIP_L5, 48, 49, 50, 51, 52, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16), CHIP_S8(24), CHIP_S8(32),
                            CHIP_S8(40));
    else if constexpr (N == 112)
        CHIP_GROUP_MULTIPLY(112, CHIP_L6, 56, 57, 58, 59, 60, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16), CHIP_S8(24), CHIP_S8(32),
                            CHIP_S8(40), CHIP_S8(48));
    else
        CHIP_GROUP_MULTIPLY(128, CHIP_L7, 64, 65, 66, 67, 68, CHIP_S8(0), CHIP_S8(8), CHIP_S8(16), CHIP_S8(24), CHIP_S8(32),
                            CHIP_S8(40), CHIP_S8(48), CHIP_S8(56));
}

#undef CHIP_S8
#undef CHIP_L0
#undef CHIP_L1
#undef CHIP_L2
#undef CHIP_L3
#undef CHIP_L4
#undef CHIP_L5
#undef CHIP_L6
#undef CHIP_L7
#undef CHIP_GROUP_MULTIPLY

#endif
#endif
