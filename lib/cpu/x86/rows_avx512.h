/* Vectors of 16 rows (AVX-512 F, BW, VL, DQ, VNNI), under the names that dot_q8_tmpl.h uses: see rows_avx2.h. */
#ifndef QMI_CPU_X86_ROWS_AVX512_H
#define QMI_CPU_X86_ROWS_AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define ROWS 16
#ifdef QMI_SANITIZED
#define ROWS_INLINE __attribute__((unused)) /* not every file calls all of them */
#define UNROLL
#define TOGETHER 2
#define EACH_COUNT(X) X(1) X(2)
#else
#define ROWS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16") /* loops of a fixed count, whose arrays are registers then */
#define TOGETHER 12
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#endif
typedef __m512i ints;
typedef __m512 floats;

static inline ints i_load(const void *from) { return _mm512_load_si512(from); }
static inline void i_store(void *to, ints a) { _mm512_store_si512(to, a); }
static inline ints i_zero(void) { return _mm512_setzero_si512(); }
static inline ints i_all8(int8_t x) { return _mm512_set1_epi8(x); }
static inline ints i_all32(int32_t x) { return _mm512_set1_epi32(x); }
static inline ints i_and(ints a, ints b) { return _mm512_and_si512(a, b); }
static inline ints i_or(ints a, ints b) { return _mm512_or_si512(a, b); }
static inline ints i_or_of_and(ints a, ints b, ints c) { return _mm512_ternarylogic_epi32(a, b, c, 0xF8); }
static inline ints i_xor(ints a, ints b) { return _mm512_xor_si512(a, b); }
static inline ints i_add32(ints a, ints b) { return _mm512_add_epi32(a, b); }
static inline ints i_sub32(ints a, ints b) { return _mm512_sub_epi32(a, b); }
static inline ints i_right16(ints a, int n) { return _mm512_srli_epi16(a, (unsigned)n); }
static inline ints i_left16(ints a, int n) { return _mm512_slli_epi16(a, (unsigned)n); }
static inline ints i_right32(ints a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }
static inline ints i_left32(ints a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
static inline ints i_signed_right32(ints a, int n) { return _mm512_srai_epi32(a, (unsigned)n); }
static inline ints i_pattern(const int8_t table[16])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
}

static inline ints i_shuffle8(ints table, ints index) { return _mm512_shuffle_epi8(table, index); }
static inline ints i_where(ints a, ints mask, ints value)
{
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(a, mask), value);
}

static inline floats f_zero(void) { return _mm512_setzero_ps(); }
static inline floats f_all(float x) { return _mm512_set1_ps(x); }
static inline floats f_load(const float *from) { return _mm512_load_ps(from); }
static inline void f_store(float *to, floats a) { _mm512_store_ps(to, a); }
static inline floats f_add(floats a, floats b) { return _mm512_add_ps(a, b); }
static inline floats f_mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
static inline floats f_fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline floats f_from(ints a) { return _mm512_cvtepi32_ps(a); }
static inline floats f_halves(const uint16_t *from)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)from));
}

static inline floats f_low_halves(ints a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }

/* out[r] = or += a[r] for r < count */
static inline void f_write(float *out, floats a, int32_t count, bool add)
{
    __mmask16 some = (__mmask16)(0xFFFFu >> (ROWS - count));
    if (add)
        a = _mm512_add_ps(_mm512_maskz_loadu_ps(some, out), a);
    _mm512_mask_storeu_ps(out, some, a);
}

/* 16 bytes of each row from `at` on: word j of row r to lane r of out[j]. */
static ROWS_INLINE void load_rows(const uint8_t *const row[ROWS], int64_t at, ints out[4])
{
    __m512i v[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(row[i] + at)));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00F0, _mm_loadu_si128((const __m128i *)(const void *)(row[4 + i] + at)));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0F00, _mm_loadu_si128((const __m128i *)(const void *)(row[8 + i] + at)));
        v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xF000, _mm_loadu_si128((const __m128i *)(const void *)(row[12 + i] + at)));
    }
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

/* sum + products of 4 unsigned bytes of weights and 4 signed ones of a token, in each lane. */
static inline ints i_dot(ints sum, ints weights, ints values) { return _mm512_dpbusd_epi32(sum, weights, values); }

#endif
