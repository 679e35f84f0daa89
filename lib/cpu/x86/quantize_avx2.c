/* Activations to 8-bit blocks (kernels.h), AVX2. Memory-bound even so; wider vectors gain nothing. */
#include <immintrin.h>
#include <math.h>
#include "cpu/x86/x86.h"

/* Largest magnitude of 32 values; NaN or infinity when one of them is not finite (as whole numbers, magnitudes keep their order,
 * and what is not finite comes last). */
static float largest_magnitude(const __m256 x[4])
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_and_si256(_mm256_castps_si256(x[0]), magnitude);
    for (int i = 1; i < 4; i++)
        m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
    __m128i n = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0x4e));
    n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(n));
}

void qmi_avx2_quantize(const float *x, void *row, int64_t columns, int64_t first, int64_t count)
{
    const __m256 most = _mm256_set1_ps(127), least = _mm256_set1_ps(-127);
    for (int64_t at = first; at < first + count; at += 32, x += 32) {
        float *scale = qmi_q8_scales(row, columns) + at / 32;
        int16_t *sums = qmi_q8_sums(row, columns) + at / 16;
        __m256 v[4];
        __m256i q[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_loadu_ps(x + 8 * i);
        float largest = largest_magnitude(v);
        *scale = isfinite(largest) ? largest / 127 : NAN;
        if (!(*scale > 0)) { /* zeros, numbers too small for a scale, or not finite */
            _mm256_storeu_si256((__m256i *)((char *)row + at), _mm256_setzero_si256());
            sums[0] = sums[1] = 0;
            continue;
        }
        __m256 by = _mm256_set1_ps(*scale);
        for (int i = 0; i < 4; i++)
            q[i] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(_mm256_div_ps(v[i], by), most), least));
        /* packing works within halves of a vector; the last step puts the 8 groups of 4 bytes back in order */
        __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)((char *)row + at), bytes);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes); /* 16 sums of 2: the first 8 of the first 16 values */
        __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        __m256i eights = _mm256_hadd_epi32(fours, fours);
        __m256i sixteens = _mm256_hadd_epi32(eights, eights);
        sums[0] = (int16_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(sixteens));
        sums[1] = (int16_t)_mm_cvtsi128_si32(_mm256_extracti128_si256(sixteens, 1));
    }
}
