/* Bodies of the products of quantized weights with Q8 activations (kernels.h), on vectors of 32 bytes.
 *
 * Included by an instance that defines NAME(stem) and
 *     DOT_BYTES(u, s)   8 x int32: sums of 4 products of unsigned bytes u and signed bytes s; no sum of two exceeds 32767
 * Tested with _mm256_maddubs_epi16 (AVX2) and _mm256_dpbusd_epi32 (AVX-512 VNNI).
 *
 * A sub-block of 32 weights gives 8 whole numbers, which are exact, so either way of adding them up gives the same bits. They are
 * scaled and added to 8 partial sums, even and odd sub-blocks apart, in the order of the columns; what the format subtracts
 * (minima, offsets) is summed apart in the same way. So a (row, token) is the same whatever is computed along. */
#include <immintrin.h>
#include <string.h>
#include "cpu/kernels.h"
#include "quant/quant_blocks.h"

#define TOKENS_TOGETHER 4 /* tokens that share a row's unpacked weights */
#define INLINE static inline __attribute__((always_inline))

typedef struct q8_input { /* an input row taken apart */
    const int8_t *values;
    const float *scales;
    const int16_t *sums;
} q8_input;

typedef struct q8_sums { /* of a (row, token) */
    __m256 even, odd, less;
} q8_sums;

INLINE __m256i load_bytes(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

INLINE __m128i load_16_bytes(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

INLINE __m256 dot_as_float(__m256i unsigned_bytes, __m256i signed_bytes)
{
    return _mm256_cvtepi32_ps(DOT_BYTES(unsigned_bytes, signed_bytes));
}

INLINE __m256 lane(__m256 of_eight, int index)
{
    return _mm256_permutevar8x32_ps(of_eight, _mm256_set1_epi32(index));
}

INLINE void add_product(q8_sums *sums, int sub_block, __m256 product, __m256 scale)
{
    if (sub_block % 2)
        sums->odd = _mm256_fmadd_ps(product, scale, sums->odd);
    else
        sums->even = _mm256_fmadd_ps(product, scale, sums->even);
}

INLINE q8_input input_of(const qmi_cpu_tile *tile, int32_t token)
{
    char *row = (char *)tile->inputs + (tile->order ? tile->order[token] : token) * tile->input_bytes;
    return (q8_input){ (const int8_t *)row, qmi_q8_scales(row, tile->columns), qmi_q8_sums(row, tile->columns) };
}

INLINE void finish(const qmi_cpu_tile *tile, int32_t row, int32_t token, q8_sums sums)
{
    __m256 all = _mm256_sub_ps(_mm256_add_ps(sums.even, sums.odd), sums.less);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    float sum = _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    float *out = tile->out + token * tile->out_stride + row;
    *out = tile->add ? *out + sum : sum;
}

/* Defines the kernel of a format from `blocks(row, count, columns, inputs, sums)`, which does a whole row for `count` tokens. */
#define DEFINE_DOT(type, blocks) \
    INLINE void row_##type(const qmi_cpu_tile *tile, int32_t row, int32_t first, const int count) \
    { \
        q8_input inputs[TOKENS_TOGETHER]; \
        q8_sums sums[TOKENS_TOGETHER]; \
        for (int t = 0; t < count; t++) { \
            inputs[t] = input_of(tile, first + t); \
            sums[t] = (q8_sums){ _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() }; \
        } \
        blocks((const char *)tile->weights + row * tile->row_bytes, count, tile->columns, inputs, sums); \
        for (int t = 0; t < count; t++) \
            finish(tile, row, first + t, sums[t]); \
    } \
    void NAME(dot_##type)(const qmi_cpu_tile *tile) \
    { \
        int32_t t = 0; \
        for (; t + TOKENS_TOGETHER <= tile->tokens; t += TOKENS_TOGETHER) \
            for (int32_t row = 0; row < tile->rows; row++) \
                row_##type(tile, row, t, TOKENS_TOGETHER); \
        for (; t < tile->tokens; t++) \
            for (int32_t row = 0; row < tile->rows; row++) \
                row_##type(tile, row, t, 1); \
    }

INLINE float half_at(const uint8_t *half)
{
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return _cvtsh_ss(bits);
}

/* ---- blocks of 32 with one scale ---- */

/* count tokens with one block of signed weights w: |w| 's bytes, with w's signs on the activations */
INLINE void add_signed(__m256i w, float scale, int64_t block, const int count, const q8_input *inputs, q8_sums *sums)
{
    __m256i magnitude = _mm256_abs_epi8(w);
    for (int t = 0; t < count; t++) {
        __m256i x = _mm256_sign_epi8(load_bytes(inputs[t].values + 32 * block), w);
        add_product(&sums[t], (int)(block & 1), dot_as_float(magnitude, x), _mm256_set1_ps(scale * inputs[t].scales[block]));
    }
}

INLINE void blocks_q8_0(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q8_0 *block = row;
    for (int64_t b = 0; b < columns / 32; b++)
        add_signed(load_bytes(block[b].q), half_at(block[b].d), b, count, inputs, sums);
}
DEFINE_DOT(q8_0, blocks_q8_0)

/* 32 halves of 16 bytes: the low ones, then the high ones */
INLINE __m256i half_bytes(const uint8_t q[16])
{
    __m128i pairs = load_16_bytes(q);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(pairs), _mm_srli_epi16(pairs, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

INLINE void blocks_q4_0(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q4_0 *block = row;
    for (int64_t b = 0; b < columns / 32; b++)
        add_signed(_mm256_sub_epi8(half_bytes(block[b].q), _mm256_set1_epi8(8)), half_at(block[b].d), b, count, inputs, sums);
}
DEFINE_DOT(q4_0, blocks_q4_0)

INLINE void blocks_q5_0(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q5_0 *block = row;
    /* byte i gets bit i of the four: each byte spread over 8 lanes, one bit of it kept, made all ones or none */
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bits = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    for (int64_t b = 0; b < columns / 32; b++) {
        __m256i high = _mm256_shuffle_epi8(_mm256_set1_epi32((int)qmi_load_u32(block[b].high)), spread);
        __m256i clear = _mm256_cmpeq_epi8(_mm256_and_si256(high, bits), _mm256_setzero_si256());
        /* q - 16: the low bits where the fifth is set, 16 less where not */
        __m256i w = _mm256_sub_epi8(half_bytes(block[b].q), _mm256_and_si256(clear, _mm256_set1_epi8(16)));
        add_signed(w, half_at(block[b].d), b, count, inputs, sums);
    }
}
DEFINE_DOT(q5_0, blocks_q5_0)

/* the levels of IQ4_NL and IQ4_XS, a fact of the formats */
INLINE __m256i levels_of(__m256i q)
{
    const __m128i levels = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), q);
}

INLINE void blocks_iq4_nl(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_iq4_nl *block = row;
    for (int64_t b = 0; b < columns / 32; b++)
        add_signed(levels_of(half_bytes(block[b].q)), half_at(block[b].d), b, count, inputs, sums);
}
DEFINE_DOT(iq4_nl, blocks_iq4_nl)

INLINE void blocks_iq4_xs(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_iq4_xs *block = row;
    for (int64_t b = 0; b < columns / 256; b++) {
        float d = half_at(block[b].d);
        uint32_t high = qmi_load_u16(block[b].scales_high);
        for (int j = 0; j < 8; j++) {
            int scale = (block[b].scales_low[j / 2] >> 4 * (j % 2) & 15) | (int)(high >> 2 * j & 3) << 4;
            add_signed(levels_of(half_bytes(block[b].q + 16 * j)), d * (float)(scale - 32), 8 * b + j, count, inputs, sums);
        }
    }
}
DEFINE_DOT(iq4_xs, blocks_iq4_xs)

/* ---- Q4_K and Q5_K: super-blocks of 8 sub-blocks with scales and minima ---- */

/* The 8 scales and 8 minima of a super-block, as floats times d and dmin. Layout: qmi_q4_k_scale. */
INLINE void super_scales(const uint8_t bytes[12], float d, float dmin, __m256 *scales, __m256 *minima)
{
    uint32_t a = qmi_load_u32(bytes), b = qmi_load_u32(bytes + 4), c = qmi_load_u32(bytes + 8);
    uint64_t scale = (a & 0x3f3f3f3f) | (uint64_t)((c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)) << 32;
    uint64_t minimum = (b & 0x3f3f3f3f) | (uint64_t)((c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)) << 32;
    *scales = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)scale))), _mm256_set1_ps(d));
    *minima = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)minimum))), _mm256_set1_ps(dmin));
}

/* One super-block of unsigned weights w[8] with one token; at: its first column. */
INLINE void add_super(const __m256i w[8], __m256 scales, __m256 minima, int64_t at, q8_input input, q8_sums *sums)
{
    __m256 input_scales = _mm256_loadu_ps(input.scales + at / 32);
    __m256 both = _mm256_mul_ps(scales, input_scales);
    for (int j = 0; j < 8; j++)
        add_product(sums, j, dot_as_float(w[j], load_bytes(input.values + at + 32 * j)), lane(both, j));
    __m256i values = _mm256_madd_epi16(load_bytes(input.sums + at / 16), _mm256_set1_epi16(1)); /* sums of 32 */
    sums->less = _mm256_fmadd_ps(_mm256_cvtepi32_ps(values), _mm256_mul_ps(minima, input_scales), sums->less);
}

INLINE void blocks_q4_k(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q4_k *block = row;
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t at = 0; at < columns; at += 256, block++) {
        __m256 scales, minima;
        __m256i w[8];
        super_scales(block->scales, half_at(block->d), half_at(block->dmin), &scales, &minima);
        for (int c = 0; c < 4; c++) {
            __m256i pairs = load_bytes(block->q + 32 * c);
            w[2 * c] = _mm256_and_si256(pairs, low);
            w[2 * c + 1] = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
        }
        for (int t = 0; t < count; t++)
            add_super(w, scales, minima, at, inputs[t], &sums[t]);
    }
}
DEFINE_DOT(q4_k, blocks_q4_k)

INLINE void blocks_q5_k(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q5_k *block = row;
    const __m256i low = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
    for (int64_t at = 0; at < columns; at += 256, block++) {
        __m256 scales, minima;
        __m256i w[8], high = load_bytes(block->high);
        super_scales(block->scales, half_at(block->d), half_at(block->dmin), &scales, &minima);
        for (int c = 0; c < 4; c++) { /* bit j of `high` moved to bit 4: shifts of 16-bit lanes, neighbours' bits masked off */
            __m256i pairs = load_bytes(block->q + 32 * c);
            __m256i even = c < 2 ? _mm256_slli_epi16(high, 4 - 2 * c) : _mm256_srli_epi16(high, 2 * c - 4);
            __m256i odd = c < 2 ? _mm256_slli_epi16(high, 3 - 2 * c) : _mm256_srli_epi16(high, 2 * c - 3);
            w[2 * c] = _mm256_or_si256(_mm256_and_si256(pairs, low), _mm256_and_si256(even, fifth));
            w[2 * c + 1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), low), _mm256_and_si256(odd, fifth));
        }
        for (int t = 0; t < count; t++)
            add_super(w, scales, minima, at, inputs[t], &sums[t]);
    }
}
DEFINE_DOT(q5_k, blocks_q5_k)

/* ---- Q6_K: 16 sub-blocks of 16 ---- */

/* Of a super-block's 16 scales, numbers 2 j and 2 j + 1, each in 4 lanes: those of the two halves of 32 weights. */
INLINE __m256 two_scales(__m256 low, __m256 high, int j)
{
    const __m256i within = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_ps(j < 4 ? low : high, _mm256_add_epi32(within, _mm256_set1_epi32(2 * (j % 4))));
}

INLINE void unpack_q6_k(const qmi_block_q6_k *block, __m256i w[8])
{
    const __m256i low = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
    for (int h = 0; h < 2; h++) {
        __m256i a = load_bytes(block->low + 64 * h), b = load_bytes(block->low + 64 * h + 32);
        __m256i high = load_bytes(block->high + 32 * h);
        w[4 * h] = _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16(high, 4), two));
        w[4 * h + 1] = _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16(high, 2), two));
        w[4 * h + 2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), low), _mm256_and_si256(high, two));
        w[4 * h + 3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), low),
                                       _mm256_and_si256(_mm256_srli_epi16(high, 2), two));
    }
}

INLINE void blocks_q6_k(const void *row, const int count, int64_t columns, const q8_input *inputs, q8_sums *sums)
{
    const qmi_block_q6_k *block = row;
    for (int64_t at = 0; at < columns; at += 256, block++) {
        __m256i w[8];
        __m256 d = _mm256_set1_ps(half_at(block->d));
        __m128i scales = load_16_bytes(block->scales);
        __m256 low = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales)));
        __m256 high = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(scales, 8))));
        unpack_q6_k(block, w);
        for (int t = 0; t < count; t++) {
            __m256 x = _mm256_loadu_ps(inputs[t].scales + at / 32);
            /* each input scale serves two sub-blocks */
            __m256 low_x = _mm256_mul_ps(low, _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)));
            __m256 high_x = _mm256_mul_ps(high, _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)));
            for (int j = 0; j < 8; j++)
                add_product(&sums[t], j, dot_as_float(w[j], load_bytes(inputs[t].values + at + 32 * j)),
                            two_scales(low_x, high_x, j));
            /* weights are q - 32: 32 times the sums of 16 activations come off */
            __m256i by_16 = load_bytes(inputs[t].sums + at / 16);
            __m256 first = _mm256_cvtepi32_ps(_mm256_slli_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(by_16)), 5));
            __m256 second = _mm256_cvtepi32_ps(_mm256_slli_epi32(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(by_16, 1)), 5));
            sums[t].less = _mm256_fmadd_ps(first, low_x, sums[t].less);
            sums[t].less = _mm256_fmadd_ps(second, high_x, sums[t].less);
        }
    }
}
DEFINE_DOT(q6_k, blocks_q6_k)
