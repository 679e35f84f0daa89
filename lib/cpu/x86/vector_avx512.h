/* Vectors of 16 floats (AVX-512 F, BW, VL, DQ), under the names that the kernel bodies (*_tmpl.h) use: see vector_avx2.h. */
#ifndef QMI_CPU_X86_VECTOR_AVX512_H
#define QMI_CPU_X86_VECTOR_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define NAME(stem) qmi_avx512_##stem
#define LANES 16
typedef __m512 vector;

static inline vector v_zero(void) { return _mm512_setzero_ps(); }
static inline vector v_all(float x) { return _mm512_set1_ps(x); }
static inline vector v_add(vector a, vector b) { return _mm512_add_ps(a, b); }
static inline vector v_sub(vector a, vector b) { return _mm512_sub_ps(a, b); }
static inline vector v_mul(vector a, vector b) { return _mm512_mul_ps(a, b); }
static inline vector v_div(vector a, vector b) { return _mm512_div_ps(a, b); }
static inline vector v_fma(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
static inline vector v_min(vector a, vector b) { return _mm512_min_ps(a, b); }
static inline vector v_max(vector a, vector b) { return _mm512_max_ps(a, b); }
static inline vector v_abs(vector a) { return _mm512_abs_ps(a); }
static inline vector v_round(vector a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vector v_if_negative(vector a, vector yes, vector no)
{
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(a)), no, yes);
}

static inline vector v_scale(vector a, vector n) { return _mm512_scalef_ps(a, n); }

static inline vector v_load(const float *from) { return _mm512_loadu_ps(from); }
static inline void v_store(float *to, vector a) { _mm512_storeu_ps(to, a); }
static inline __mmask16 v_first(int64_t count) { return (__mmask16)((1u << count) - 1); }
static inline vector v_load_part(const float *from, int64_t count)
{
    return count == LANES ? v_load(from) : _mm512_maskz_loadu_ps(v_first(count), from);
}

static inline void v_store_part(float *to, vector a, int64_t count)
{
    if (count == LANES)
        v_store(to, a);
    else
        _mm512_mask_storeu_ps(to, v_first(count), a);
}

static inline vector v_load_half(const uint16_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static inline vector v_load_half_part(const uint16_t *from, int64_t count)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_first(count), from));
}

static inline void v_store_half_part(uint16_t *to, vector a, int64_t count)
{
    _mm256_mask_storeu_epi16(to, v_first(count), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vector v_from_bfloat(__m256i numbers)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

static inline vector v_load_bfloat(const uint16_t *from)
{
    return v_from_bfloat(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static inline vector v_load_bfloat_part(const uint16_t *from, int64_t count)
{
    return v_from_bfloat(_mm256_maskz_loadu_epi16(v_first(count), from));
}

static inline vector v_gather_part(const float *from, int32_t step, int64_t count)
{
    __m512i at = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                    _mm512_set1_epi32(step));
    return _mm512_mask_i32gather_ps(v_zero(), v_first(count), at, from, 4);
}

static inline __m256 v_fold_add(vector a) { return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); }
static inline float v_sum(vector a)
{
    __m256 y = v_fold_add(a);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

static inline float v_largest(vector a) { return _mm512_reduce_max_ps(a); }

#endif
