/* Weights on their way to the decode kernels. A warp copies the blocks of a few rows, one block a lane, to a slot of shared
 * memory of its own, several slots ahead: more bytes are under way than registers could hold, and a kernel that still waits for
 * its predecessor has them already. No other warp reads them, so no barrier is needed.
 *
 * How deep a ring is: most (a constant: cp.async waits for a constant number of groups), or a part of it where a block has less
 * shared memory: each slot is then followed by `fillers` empty groups. */
#ifndef QMI_CUDA_MATVEC_RING_CUH
#define QMI_CUDA_MATVEC_RING_CUH

#include "block.cuh"

#define RING_DEPTH_MOST 6

/* A slot has the rows' codes and high bits (layout.h), then their scales, then what eight blocks have together. Scales of two
 * bytes in types whose rows are no whole eights of blocks are copied with their neighbour, as copies have at least 4 bytes. */
constexpr __host__ __device__ bool ring_by_eights(uint32_t type)
{
    return type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K || type == QMI_TYPE_Q6_K || type == QMI_TYPE_IQ4_XS;
}

constexpr __host__ __device__ int ring_low_bytes(uint32_t type) /* codes, and so on, of a row: 32 blocks */
{
    return type == QMI_TYPE_Q8_0 ? 1024 : 512;
}

constexpr __host__ __device__ int ring_high_bytes(uint32_t type)
{
    return type == QMI_TYPE_Q5_0 || type == QMI_TYPE_Q5_K ? 128 : type == QMI_TYPE_Q6_K ? 256 : 0;
}

constexpr __host__ __device__ int ring_code_bytes(uint32_t type)
{
    return ring_low_bytes(type) + ring_high_bytes(type);
}

constexpr __host__ __device__ int ring_scale_bytes(uint32_t type)
{
    return type == QMI_TYPE_IQ4_XS ? 32 : ring_by_eights(type) ? 64 : 128;
}

constexpr __host__ __device__ int ring_last_bytes(uint32_t type) /* plane 3: a word for eight blocks */
{
    return type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K || type == QMI_TYPE_Q6_K ? 16 : 0;
}

constexpr __host__ __device__ int ring_row_bytes(uint32_t type)
{
    return ring_code_bytes(type) + ring_scale_bytes(type) + ring_last_bytes(type);
}

/* Slots of `rows` rows in so many bytes of a warp. */
constexpr __host__ __device__ int ring_most(uint32_t type, int rows, int bytes, int least = 2)
{
    const int slots = bytes / (rows * ring_row_bytes(type));
    return slots < least ? least : slots > RING_DEPTH_MOST ? RING_DEPTH_MOST : slots;
}

constexpr __host__ __device__ int ring_depth(int most, int fillers)
{
    return (most + fillers) / (1 + fillers);
}

static __device__ __forceinline__ void ring_commit(int fillers)
{
    chip_copy_commit();
#pragma unroll 1
    for (int i = 0; i < fillers; i++)
        chip_copy_commit();
}

/* Codes of row r of the slot's R: the lane's block is number i of the matrix; where it is not real, zeros are written. */
template <uint32_t T, int R>
static __device__ __forceinline__ void ring_fetch_codes(uint8_t *slot, int r, const uint8_t *const (&plane)[QMI_CUDA_PLANES],
                                                        uint32_t i, bool real)
{
    constexpr int low = ring_low_bytes(T), high = ring_high_bytes(T);
    const int lane = threadIdx.x & 31;
    uint8_t *to = slot + r * ring_code_bytes(T);
    chip_copy16(to + lane * 16, plane[0] + (uint64_t)i * (low / 32), real);
    if constexpr (T == QMI_TYPE_Q8_0)
        chip_copy16(to + 512 + lane * 16, plane[0] + (uint64_t)i * 32 + 16, real);
    if constexpr (high == 128)
        chip_copy4(to + low + lane * 4, plane[1] + (uint64_t)i * 4, real);
    if constexpr (high == 256)
        chip_copy8(to + low + lane * 8, plane[1] + (uint64_t)i * 8, real);
    if constexpr (!ring_by_eights(T))
        chip_copy4(slot + R * ring_code_bytes(T) + r * 128 + lane * 4, plane[2] + (uint64_t)(i & ~1u) * 2, real);
}

/* The rest of row r: of the eight blocks (number `eighth` of the slot's four) of which number i is the first. */
template <uint32_t T, int R>
static __device__ __forceinline__ void ring_fetch_eight(uint8_t *slot, int r, int eighth, const uint8_t *plane2,
                                                        const uint8_t *plane3, uint32_t i, bool real)
{
    uint8_t *to = slot + R * ring_code_bytes(T) + r * ring_scale_bytes(T);
    uint8_t *last = slot + R * (ring_code_bytes(T) + ring_scale_bytes(T));
    if constexpr (T == QMI_TYPE_IQ4_XS)
        chip_copy8(to + eighth * 8, plane2 + i, real);
    else
        chip_copy16(to + eighth * 16, plane2 + (uint64_t)i * 2, real);
    if constexpr (T == QMI_TYPE_Q6_K)
        chip_copy4(last + r * 16 + eighth * 4, plane3 + (uint64_t)(i >> 4) * 4, real);
    else if constexpr (ring_last_bytes(T) > 0)
        chip_copy4(last + r * 16 + eighth * 4, plane3 + (uint64_t)(i >> 3) * 4, real);
}

/* Row r's block of the lane, number i of its matrix. */
template <uint32_t T, int R> static __device__ __forceinline__ void ring_take(block<T> &w, const uint8_t *slot, int r, uint32_t i)
{
    constexpr int low = ring_low_bytes(T), high = ring_high_bytes(T);
    const int lane = threadIdx.x & 31;
    const uint8_t *from = slot + r * ring_code_bytes(T), *scales = slot + R * ring_code_bytes(T) + r * ring_scale_bytes(T);
    const uint8_t *last = slot + R * (ring_code_bytes(T) + ring_scale_bytes(T)) + r * 16 + (lane >> 3) * 4;
    if constexpr (T == QMI_TYPE_Q8_0) {
        w.q[0] = *(const uint4 *)(from + lane * 16);
        w.q[1] = *(const uint4 *)(from + 512 + lane * 16);
    } else
        w.q = *(const uint4 *)(from + lane * 16);
    if constexpr (high == 128)
        w.high = *(const uint32_t *)(from + low + lane * 4);
    if constexpr (high == 256)
        w.high = *(const uint2 *)(from + low + lane * 8);
    if constexpr (T == QMI_TYPE_IQ4_XS)
        w.scales = *(const uint2 *)(scales + (lane & ~7));
    else if constexpr (T == QMI_TYPE_Q6_K) {
        w.scales = *(const uint16_t *)(scales + lane * 2);
        w.d = *(const uint32_t *)last >> (i & 8) * 2;
    } else if constexpr (ring_by_eights(T)) {
        w.mins = *(const uint16_t *)(scales + lane * 2);
        w.d = *(const uint32_t *)last;
    } else
        w.d = *(const uint32_t *)(scales + lane * 4) >> (i & 1) * 16;
}

/* A unit of R rows. Row r is number r / M of those of matrix r % M; lane 0 has blocks i, i + next, ... of the first matrix, and
 * those `second_after` further of the second. So many rows of each are real, and so many blocks of them are left. */
template <uint32_t T, int R, int M>
static __device__ __forceinline__ void ring_fetch(uint8_t *slot, const cuda_matrix &first, const cuda_matrix &second, uint32_t i,
                                                  uint32_t next, uint32_t second_after, int rows, int left)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < R; r++)
        ring_fetch_codes<T, R>(slot, r, M == 2 && (r & 1) ? second.plane : first.plane,
                               i + r / M * next + (M == 2 && (r & 1) ? second_after : 0) + lane, r / M < rows && lane < left);
    if constexpr (ring_by_eights(T))
        if (lane < 4 * R) { /* four lanes a row */
            const int r = lane >> 2, eighth = lane & 3;
            const bool other = M == 2 && (r & 1);
            const uint32_t at = i + r / M * next + (other ? second_after : 0) + 8 * eighth;
            ring_fetch_eight<T, R>(slot, r, eighth, other ? second.plane[2] : first.plane[2],
                                   other ? second.plane[3] : first.plane[3], at, r / M < rows && 8 * eighth < left);
        }
}

#endif
