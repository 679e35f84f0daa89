/* More products of a warp group (chip_group.cuh): with a in shared memory, too, and with b as attention has its values.
 *
 *   chip_group_multiply_tiles<N>(sums, a, b, add)      a: chip_group_rows of 64 rows of 64 halves, b: of N; add: to sums
 *   chip_group_multiply_turned<N, STRIP>(sums, a, b)   b: chip_group_strips<STRIP> of 16 rows (k) of N halves
 *
 * A row of N halves is cut into strips of 64: a strip holds 128 bytes of each row, one after another from a multiple of 1024,
 * with unit u of 16 bytes of row r at u ^ (r & 7); strips are STRIP bytes apart. chip_group_step goes on by 32 bytes for the next
 * k 16 of rows, by 16 * 128 for that of strips. */
#ifndef QMI_CUDA_CHIP_GROUP_TILES_CUH
#define QMI_CUDA_CHIP_GROUP_TILES_CUH

#include "chip_group.cuh"

#ifdef QMI_CUDA_EMULATED

template <int STRIP> static inline uint64_t chip_group_strips(const void *shared) { return (uint64_t)(uintptr_t)shared; }

/* Bits 4-6 of an address are flipped by its bits 7-9. */
template <class V> static inline V chip_group_value(uint64_t at)
{
    at ^= (at >> 7 & 7) << 4;
    return *(const V *)(uintptr_t)at;
}

template <int N> static inline void chip_group_multiply_tiles(float *sums, uint64_t a, uint64_t b, bool add)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, t = lane & 3;
    uint32_t rows[4];
    for (int i = 0; i < 4; i++)
        rows[i] = chip_group_value<uint32_t>(a + (uint64_t)((16 * warp + g + 8 * (i & 1)) * 128 + 4 * t + 16 * (i >> 1)));
    for (int i = 0; !add && i < N / 2; i++)
        sums[i] = 0;
    chip_group_multiply<N>(sums, rows, b);
}

template <int N, int STRIP> static inline void chip_group_multiply_turned(float *sums, const uint32_t a[4], uint64_t b)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    for (int i = 0; i < N / 8; i++) {
        uint32_t pair[2];
        for (int j = 0; j < 2; j++) {
            const uint64_t at = b + (uint64_t)(i / 8 * STRIP + (2 * t + 8 * j) * 128 + i % 8 * 16 + 2 * g);
            pair[j] = chip_group_value<uint16_t>(at) | (uint32_t)chip_group_value<uint16_t>(at + 128) << 16;
        }
        chip_mma_half(sums + 4 * i, a, pair[0], pair[1]);
    }
}

#elif CHIP_HAS_GROUPS

/* As chip_group_rows; STRIP / 16 from 64 columns to the next (PTX ISA, strides of matrices whose rows are not along k). */
template <int STRIP> static __device__ __forceinline__ uint64_t chip_group_strips(const void *shared)
{
    return (uint64_t)((chip_shared_address(shared) & 0x3ffff) >> 4) | (uint64_t)(STRIP / 16) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

#define CHIP_S8(i) \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), "+f"(s[i + 7])
#define CHIP_S32(i) CHIP_S8(i), CHIP_S8(i + 8), CHIP_S8(i + 16), CHIP_S8(i + 24)
#define CHIP_S64(i) CHIP_S32(i), CHIP_S32(i + 32)
#define CHIP_L32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
    ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CHIP_L64 \
    CHIP_L32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
    ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CHIP_L128 \
    CHIP_L64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

template <int N> static __device__ __forceinline__ void chip_group_multiply_tiles(float *s, uint64_t a, uint64_t b, bool add)
{
    static_assert(N == 64, "as many columns as are written out here");
    asm volatile("{.reg .pred p;\nsetp.ne.b32 p,%34,0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" CHIP_L32
                 "},%32,%33,p,1,1,0,0;}"
                 : CHIP_S32(0)
                 : "l"(a), "l"(b), "r"((int)add));
}

#define CHIP_GROUP_TURNED(n, list, a0, a1, a2, a3, b0, ...) \
    asm volatile("{.reg .pred p;\nsetp.ne.b32 p,1,0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" list "},{%" #a0 \
                 ",%" #a1 ",%" #a2 ",%" #a3 "},%" #b0 ",p,1,1,1;}" \
                 : __VA_ARGS__ \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <int N, int STRIP>
static __device__ __forceinline__ void chip_group_multiply_turned(float *s, const uint32_t a[4], uint64_t b)
{
    static_assert(N == 64 || N == 128 || N == 256, "as many columns as are written out here");
    if constexpr (N == 64)
        CHIP_GROUP_TURNED(64, CHIP_L32, 32, 33, 34, 35, 36, CHIP_S32(0));
    else if constexpr (N == 128)
        CHIP_GROUP_TURNED(128, CHIP_L64, 64, 65, 66, 67, 68, CHIP_S64(0));
    else
        CHIP_GROUP_TURNED(256, CHIP_L128, 128, 129, 130, 131, 132, CHIP_S64(0), CHIP_S64(64));
}

#undef CHIP_S8
#undef CHIP_S32
#undef CHIP_S64
#undef CHIP_L32
#undef CHIP_L64
#undef CHIP_L128
#undef CHIP_GROUP_TURNED

#endif
#endif
