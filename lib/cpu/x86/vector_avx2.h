/* Vectors of 8 floats (AVX2, FMA, F16C), under the names that the kernel bodies (*_tmpl.h) use. */
#ifndef QMI_CPU_X86_VECTOR_AVX2_H
#define QMI_CPU_X86_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define NAME(stem) qmi_avx2_##stem
#define LANES 8
typedef __m256 vector;

static inline vector v_zero(void) { return _mm256_setzero_ps(); }
static inline vector v_all(float x) { return _mm256_set1_ps(x); }
static inline vector v_add(vector a, vector b) { return _mm256_add_ps(a, b); }
static inline vector v_sub(vector a, vector b) { return _mm256_sub_ps(a, b); }
static inline vector v_mul(vector a, vector b) { return _mm256_mul_ps(a, b); }
static inline vector v_div(vector a, vector b) { return _mm256_div_ps(a, b); }
static inline vector v_fma(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); } /* a b + c */
static inline vector v_min(vector a, vector b) { return _mm256_min_ps(a, b); } /* b where either is NaN */
static inline vector v_max(vector a, vector b) { return _mm256_max_ps(a, b); }
static inline vector v_abs(vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vector v_round(vector a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* where a < 0 (sign bit): yes, else no */
static inline vector v_if_negative(vector a, vector yes, vector no) { return _mm256_blendv_ps(no, yes, a); }

/* a 2^n for whole n in -254 .. 127, gradual underflow included: in two factors that are both normal numbers. */
static inline vector v_scale(vector a, vector n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return v_mul(v_mul(a, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high));
}

static inline vector v_load(const float *from) { return _mm256_loadu_ps(from); }
static inline void v_store(float *to, vector a) { _mm256_storeu_ps(to, a); }

static inline __m256i v_first(int64_t count) /* lanes below count */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Of the first `count` lanes, 0 .. LANES; the others are zero, and not touched in memory. The test for all lanes is for loops
 * that pass them as a constant or nearly always. */
static inline vector v_load_part(const float *from, int64_t count)
{
    return count == LANES ? v_load(from) : _mm256_maskload_ps(from, v_first(count));
}

static inline void v_store_part(float *to, vector a, int64_t count)
{
    if (count == LANES)
        v_store(to, a);
    else
        _mm256_maskstore_ps(to, v_first(count), a);
}

static inline vector v_load_half(const uint16_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

static inline vector v_load_bfloat(const uint16_t *from)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)),
                                                 16));
}

static inline vector v_load_half_part(const uint16_t *from, int64_t count)
{
    uint16_t whole[LANES] = { 0 };
    memcpy(whole, from, (size_t)count * sizeof *from);
    return v_load_half(whole);
}

static inline vector v_load_bfloat_part(const uint16_t *from, int64_t count)
{
    uint16_t whole[LANES] = { 0 };
    memcpy(whole, from, (size_t)count * sizeof *from);
    return v_load_bfloat(whole);
}

static inline void v_store_half_part(uint16_t *to, vector a, int64_t count)
{
    uint16_t whole[LANES];
    _mm_storeu_si128((__m128i *)(void *)whole, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    memcpy(to, whole, (size_t)count * sizeof *to);
}

/* from[0], from[step], from[2 step] ... of the first `count` lanes */
static inline vector v_gather_part(const float *from, int32_t step, int64_t count)
{
    __m256i at = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(step));
    return _mm256_mask_i32gather_ps(v_zero(), from, at, _mm256_castsi256_ps(v_first(count)), 4);
}

static inline float v_sum(vector a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

static inline float v_largest(vector a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

#endif
