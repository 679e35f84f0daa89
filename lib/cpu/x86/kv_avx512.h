/* Codes of stored keys and values as a vector of 16 floats: see kv_avx2.h. A code of four bits chooses from a register. */
#ifndef QMI_CPU_X86_KV_AVX512_H
#define QMI_CPU_X86_KV_AVX512_H

#include <string.h>
#include "cpu/x86/vector_avx512.h"

static inline __m512i kv_low(const uint8_t *low, int half) /* in the lowest four bits, which are all that a choice looks at */
{
    return _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)low)), (unsigned)(4 * half));
}

static inline vector kv_choose(__m512i codes, float zero)
{
    const vector numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(codes, v_sub(numbers, v_all(zero)));
}

static inline void kv_codes_q8_0(const uint8_t *low, const uint8_t *high, int half, vector to[1])
{
    (void)high;
    to[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(low + 16 * half))));
}

static inline void kv_codes_q4_0(const uint8_t *low, const uint8_t *high, int half, vector to[1])
{
    (void)high;
    to[0] = kv_choose(kv_low(low, half), 8);
}

static inline void kv_codes_q5(const uint8_t *low, const uint8_t *high, int half, vector to[1])
{
    uint16_t bits;
    memcpy(&bits, high + 2 * half, sizeof bits);
    vector x = kv_choose(kv_low(low, half), 16);
    to[0] = _mm512_mask_add_ps(x, bits, x, v_all(16));
}

static inline void kv_codes_q6(const uint8_t *low, const uint8_t *high, int half, vector to[1])
{
    const vector sixteens = _mm512_setr_ps(0, 16, 32, 48, 0, 16, 32, 48, 0, 16, 32, 48, 0, 16, 32, 48);
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)high);
    __m512i twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(bytes, bytes));
    __m512i places = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2),
                                      _mm512_set1_epi32(4 * half));
    to[0] = v_add(kv_choose(kv_low(low, half), 32), _mm512_permutexvar_ps(_mm512_srlv_epi32(twice, places), sixteens));
}

/* code - 3 / 2 of two bits, which are the lowest of four. */
static inline vector kv_choose_of_four(__m512i codes)
{
    const vector levels = _mm512_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f,
                                         -1.5f, -0.5f, 0.5f, 1.5f);
    return _mm512_permutexvar_ps(codes, levels);
}

static inline void kv_codes_q2(const uint8_t *low, const uint8_t *high, int half, vector to[1])
{
    (void)high;
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)low);
    __m512i twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(bytes, bytes));
    __m512i places = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2),
                                      _mm512_set1_epi32(4 * half));
    to[0] = kv_choose_of_four(_mm512_srlv_epi32(twice, places));
}

/* Of sixteen tokens of a channel of a group. */
static inline void kv_levels_q2(const uint8_t *codes, int quarter, vector to[1])
{
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)codes));
    to[0] = kv_choose_of_four(_mm512_srli_epi32(bytes, (unsigned)(2 * quarter)));
}

static inline vector v_swap(vector x, int n)
{
    return n == 1 ? _mm512_permute_ps(x, 0xb1) : n == 2 ? _mm512_permute_ps(x, 0x4e)
           : n == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1) : _mm512_shuffle_f32x4(x, x, 0x4e);
}

static inline vector v_negate_odd(vector x, int n)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 odd = _mm512_test_epi32_mask(lanes, _mm512_set1_epi32(n));
    return _mm512_mask_xor_ps(x, odd, x, v_all(-0.0f));
}

/* The sums of 16 vectors' lanes, each in the order of v_sum: halves together, then quarters, then within four lanes. */
static inline vector v_sum_each(const vector x[16])
{
    vector four[4];
    for (int i = 0; i < 4; i++) { /* of the vectors i, i + 4, i + 8, i + 12, four lanes each */
        vector ab = v_add(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xee));
        vector cd = v_add(_mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x44), _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xee));
        four[i] = v_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    vector pq = v_add(_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
    vector rs = v_add(_mm512_unpacklo_ps(four[2], four[3]), _mm512_unpackhi_ps(four[2], four[3]));
    __m512d p = _mm512_castps_pd(pq), r = _mm512_castps_pd(rs);
    return v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(p, r)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, r)));
}

static inline __m128 v_fold(vector a)
{
    __m256 y = v_fold_add(a);
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}

#endif
