/* Codes of stored keys and values as vectors of 8 floats: sixteen at a time, half `half` of a block. low, high: the block's parts
 * of its planes (quant/kv_type.h). */
#ifndef QMI_CPU_X86_KV_AVX2_H
#define QMI_CPU_X86_KV_AVX2_H

#include "cpu/x86/vector_avx2.h"

static inline __m256i kv_bytes(const uint8_t *from)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
}

static inline __m256i kv_low(const uint8_t *low, int half, int i)
{
    return _mm256_and_si256(_mm256_srli_epi32(kv_bytes(low + 8 * i), 4 * half), _mm256_set1_epi32(15));
}

static inline vector kv_number(__m256i code, int zero)
{
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(zero)));
}

static inline void kv_codes_q8_0(const uint8_t *low, const uint8_t *high, int half, vector to[2])
{
    (void)high;
    for (int i = 0; i < 2; i++)
        to[i] = _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(low + 16 * half + 8 * i))));
}

static inline void kv_codes_q4_0(const uint8_t *low, const uint8_t *high, int half, vector to[2])
{
    (void)high;
    for (int i = 0; i < 2; i++)
        to[i] = kv_number(kv_low(low, half, i), 8);
}

static inline void kv_codes_q5(const uint8_t *low, const uint8_t *high, int half, vector to[2])
{
    int32_t bits;
    memcpy(&bits, high, sizeof bits);
    for (int i = 0; i < 2; i++) {
        const __m256i places = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(16 * half + 8 * i));
        __m256i bit = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(bits), places), _mm256_set1_epi32(1));
        to[i] = kv_number(_mm256_or_si256(kv_low(low, half, i), _mm256_slli_epi32(bit, 4)), 16);
    }
}

static inline void kv_codes_q6(const uint8_t *low, const uint8_t *high, int half, vector to[2])
{
    for (int i = 0; i < 2; i++) {
        __m256i bits = _mm256_and_si256(_mm256_srli_epi32(kv_bytes(high), 4 * half + 2 * i), _mm256_set1_epi32(3));
        to[i] = kv_number(_mm256_or_si256(kv_low(low, half, i), _mm256_slli_epi32(bits, 4)), 32);
    }
}

/* code - 3 / 2 of two bits. */
static inline vector kv_level(__m256i bytes, int place)
{
    __m256i code = _mm256_and_si256(_mm256_srli_epi32(bytes, place), _mm256_set1_epi32(3));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(1.5f));
}

static inline void kv_codes_q2(const uint8_t *low, const uint8_t *high, int half, vector to[2])
{
    (void)high;
    for (int i = 0; i < 2; i++)
        to[i] = kv_level(kv_bytes(low), 4 * half + 2 * i);
}

/* Of sixteen tokens of a channel of a group. */
static inline void kv_levels_q2(const uint8_t *codes, int quarter, vector to[2])
{
    for (int i = 0; i < 2; i++)
        to[i] = kv_level(kv_bytes(codes + 8 * i), 2 * quarter);
}

/* 0, 1, 2 or 4 places on: lane i gets lane i ^ n. */
static inline vector v_swap(vector x, int n)
{
    return n == 1 ? _mm256_permute_ps(x, 0xb1) : n == 2 ? _mm256_permute_ps(x, 0x4e) : _mm256_permute2f128_ps(x, x, 1);
}

static inline vector v_negate_odd(vector x, int n) /* lanes i with i & n */
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i odd = _mm256_cmpgt_epi32(_mm256_and_si256(lanes, _mm256_set1_epi32(n)), _mm256_setzero_si256());
    return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(odd, 31)));
}

/* The sums of 8 vectors' lanes, each in the order of v_sum. */
static inline vector v_sum_each(const vector x[8])
{
    vector four[4];
    for (int i = 0; i < 4; i++) /* of the vectors i and i + 4, four lanes each */
        four[i] = v_add(_mm256_permute2f128_ps(x[i], x[i + 4], 0x20), _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
    vector pq = v_add(_mm256_unpacklo_ps(four[0], four[1]), _mm256_unpackhi_ps(four[0], four[1]));
    vector rs = v_add(_mm256_unpacklo_ps(four[2], four[3]), _mm256_unpackhi_ps(four[2], four[3]));
    __m256d p = _mm256_castps_pd(pq), r = _mm256_castps_pd(rs);
    return v_add(_mm256_castpd_ps(_mm256_unpacklo_pd(p, r)), _mm256_castpd_ps(_mm256_unpackhi_pd(p, r)));
}

/* The halves of a vector added, as the first step of v_sum. */
static inline __m128 v_fold(vector a)
{
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}

#endif
