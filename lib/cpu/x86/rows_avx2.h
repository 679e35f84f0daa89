/* Vectors of 8 rows (AVX2), under the names that the products of quantized weights (dot_q8_tmpl.h) use; rows_avx512.h has them
 * for vectors of 16 rows. Lane r of a vector belongs to row r.
 *
 * What a name does is what its AVX2 form does; "word" is 4 bytes. */
#ifndef QMI_CPU_X86_ROWS_AVX2_H
#define QMI_CPU_X86_ROWS_AVX2_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define ROWS 8
/* Tokens together: their sums of whole numbers and of floats fill 10 of 16 registers, or 24 of 32; weights and what is between
 * are in the others. With sanitizers, which make much of every access, few and in plain functions: else this takes minutes to
 * compile. */
#ifdef QMI_SANITIZED
#define ROWS_INLINE
#define UNROLL
#define TOGETHER 2
#define EACH_COUNT(X) X(1) X(2)
#else
#define ROWS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16") /* loops of a fixed count, whose arrays are registers then */
#define TOGETHER 5
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5)
#endif
typedef __m256i ints;
typedef __m256 floats;

static inline ints i_load(const void *from) { return _mm256_load_si256(from); }
static inline void i_store(void *to, ints a) { _mm256_store_si256(to, a); }
static inline ints i_zero(void) { return _mm256_setzero_si256(); }
static inline ints i_all8(int8_t x) { return _mm256_set1_epi8(x); }
static inline ints i_all32(int32_t x) { return _mm256_set1_epi32(x); }
static inline ints i_and(ints a, ints b) { return _mm256_and_si256(a, b); }
static inline ints i_or(ints a, ints b) { return _mm256_or_si256(a, b); }
static inline ints i_or_of_and(ints a, ints b, ints c) { return i_or(a, i_and(b, c)); }
static inline ints i_xor(ints a, ints b) { return _mm256_xor_si256(a, b); }
static inline ints i_add32(ints a, ints b) { return _mm256_add_epi32(a, b); }
static inline ints i_sub32(ints a, ints b) { return _mm256_sub_epi32(a, b); }
static inline ints i_right16(ints a, int n) { return _mm256_srli_epi16(a, n); }
static inline ints i_left16(ints a, int n) { return _mm256_slli_epi16(a, n); }
static inline ints i_right32(ints a, int n) { return _mm256_srli_epi32(a, n); }
static inline ints i_left32(ints a, int n) { return _mm256_slli_epi32(a, n); }
static inline ints i_signed_right32(ints a, int n) { return _mm256_srai_epi32(a, n); }

/* 16 bytes in each part of 16. */
static inline ints i_pattern(const int8_t table[16])
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
}

static inline ints i_shuffle8(ints table, ints index) { return _mm256_shuffle_epi8(table, index); }

/* value's bytes where a's bytes have a bit of mask, else 0 */
static inline ints i_where(ints a, ints mask, ints value)
{
    return _mm256_andnot_si256(_mm256_cmpeq_epi8(_mm256_and_si256(a, mask), _mm256_setzero_si256()), value);
}

static inline floats f_zero(void) { return _mm256_setzero_ps(); }
static inline floats f_all(float x) { return _mm256_set1_ps(x); }
static inline floats f_load(const float *from) { return _mm256_load_ps(from); }
static inline void f_store(float *to, floats a) { _mm256_store_ps(to, a); }
static inline floats f_add(floats a, floats b) { return _mm256_add_ps(a, b); }
static inline floats f_mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
static inline floats f_fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline floats f_from(ints a) { return _mm256_cvtepi32_ps(a); }

/* Half floats, one after the other; and those in the low half of each lane. */
static inline floats f_halves(const uint16_t *from)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)from));
}

static inline floats f_low_halves(ints a)
{
    __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

/* out[r] = or += a[r], r < count */
static inline void f_write(float *out, floats a, int32_t count, bool add)
{
    if (count == ROWS) {
        _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), a) : a);
        return;
    }
    float lanes[ROWS];
    _mm256_storeu_ps(lanes, a);
    for (int32_t r = 0; r < count; r++)
        out[r] = add ? out[r] + lanes[r] : lanes[r];
}

/* 16 bytes of each row from `at` on: word j of row r to lane r of out[j]. */
static ROWS_INLINE void load_rows(const uint8_t *const row[ROWS], int64_t at, ints out[4])
{
    __m256i v[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(row[i] + at))),
                                       _mm_loadu_si128((const __m128i *)(const void *)(row[4 + i] + at)), 1);
    __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

#endif
