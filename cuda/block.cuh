/* The arithmetic of each number format on the card: a block of 32 weights (layout.h) is loaded into registers, and then either
 * multiplied with activations of 8 bits (decode) or unpacked to half floats (tensor cores).
 *
 *   block<TYPE> w;
 *   block_load(w, matrix, i);              i = row * matrix.blocks + block
 *   sum += block_dot(w, i, activations);   quantized types
 *   block_unpack(w, i, halves);            all types; weight * block_gain<TYPE>()
 */
#ifndef QMI_CUDA_BLOCK_CUH
#define QMI_CUDA_BLOCK_CUH

#include "chip.cuh"
#include "cuda.h"

/* 32 activations as q * scale, q in -127 .. 127: values 0-15 in `low`, 16-31 in `high`. sums: of q over each half, as two int16. */
struct block_activation {
    uint4 low, high;
    float scale;
    uint32_t sums;
};

/* Unpacked weights of quantized types are multiplied by this, so that small scales stay clear of half's subnormal numbers; divide the
 * products' sum by it. */
#define BLOCK_GAIN 64.f
#define BLOCK_GAIN_FLOAT 1.f
template <uint32_t T> __device__ constexpr float block_gain(void)
{
    return T == QMI_TYPE_F16 || T == QMI_TYPE_BF16 || T == QMI_TYPE_F32 ? BLOCK_GAIN_FLOAT : BLOCK_GAIN;
}

template <uint32_t T> __host__ __device__ constexpr bool block_is_float(void)
{
    return T == QMI_TYPE_F32 || T == QMI_TYPE_F16 || T == QMI_TYPE_BF16;
}

template <uint32_t T> struct block;
template <> struct block<QMI_TYPE_F32> { uint4 q[8]; };
template <> struct block<QMI_TYPE_F16> { uint4 q[4]; };
template <> struct block<QMI_TYPE_BF16> { uint4 q[4]; };
template <> struct block<QMI_TYPE_Q8_0> { uint4 q[2]; uint32_t d; };
template <> struct block<QMI_TYPE_Q4_0> { uint4 q; uint32_t d; };
template <> struct block<QMI_TYPE_IQ4_NL> { uint4 q; uint32_t d; };
template <> struct block<QMI_TYPE_Q5_0> { uint4 q; uint32_t high, d; };
template <> struct block<QMI_TYPE_Q4_K> { uint4 q; uint32_t mins, d; };
template <> struct block<QMI_TYPE_Q5_K> { uint4 q; uint32_t mins, d, high; };
template <> struct block<QMI_TYPE_Q6_K> { uint4 q; uint2 high; uint32_t scales, d; };
template <> struct block<QMI_TYPE_IQ4_XS> { uint4 q; uint2 scales; };

/* ---- loading ---- */

/* Where blocks are: number i of the matrix, or number b of the row whose first block is `first`: there the address has a part for
 * the block and one for the row, so that rows may share the former. eight: of what eight blocks have together; `first` is then a
 * multiple of eight. */
struct block_index {
    int64_t i;
    __device__ __forceinline__ const uint8_t *one(const uint8_t *plane, int bytes) const { return plane + i * bytes; }
    __device__ __forceinline__ const uint8_t *eight(const uint8_t *plane, int bytes) const { return plane + (i >> 3) * bytes; }
};

struct block_of_row {
    int64_t first;
    int b;
    __device__ __forceinline__ const uint8_t *one(const uint8_t *plane, int bytes) const
    {
        return plane + (int64_t)b * bytes + first * bytes;
    }
    __device__ __forceinline__ const uint8_t *eight(const uint8_t *plane, int bytes) const
    {
        return plane + (b >> 3) * bytes + (bytes >= 8 ? first * (bytes / 8) : first / (8 / bytes));
    }
};

template <uint32_t T, class AT> static __device__ __forceinline__ void block_load_at(block<T> &w, const cuda_matrix &m, const AT &at)
{
    if constexpr (T == QMI_TYPE_F32 || T == QMI_TYPE_F16 || T == QMI_TYPE_BF16 || T == QMI_TYPE_Q8_0) {
        constexpr int count = sizeof w.q / 16;
#pragma unroll
        for (int j = 0; j < count; j++)
            w.q[j] = chip_load16(at.one(m.plane[0], 16 * count) + 16 * j);
        if constexpr (T == QMI_TYPE_Q8_0)
            w.d = chip_load2(at.one(m.plane[2], 2));
    } else {
        w.q = chip_load16(at.one(m.plane[0], 16));
        if constexpr (T == QMI_TYPE_Q4_0 || T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_Q5_0)
            w.d = chip_load2(at.one(m.plane[2], 2));
        if constexpr (T == QMI_TYPE_Q5_0 || T == QMI_TYPE_Q5_K)
            w.high = chip_load4(at.one(m.plane[1], 4));
        if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) {
            w.mins = chip_load2(at.one(m.plane[2], 2));
            w.d = chip_load4(at.eight(m.plane[3], 4));
        }
        if constexpr (T == QMI_TYPE_Q6_K) {
            w.high = chip_load8(at.one(m.plane[1], 8));
            w.scales = chip_load2(at.one(m.plane[2], 2)); /* two int8, of the block's halves */
            w.d = chip_load2(at.eight(m.plane[3], 2));
        }
        if constexpr (T == QMI_TYPE_IQ4_XS)
            w.scales = chip_load8(at.eight(m.plane[2], 8));
    }
}

template <uint32_t T> static __device__ __forceinline__ void block_load(block<T> &w, const cuda_matrix &m, int64_t i)
{
    block_load_at(w, m, block_index{ i });
}

/* The matrix from its block i on; formats with scales of 8 blocks: i is a multiple of 8. */
template <uint32_t T> static __device__ __forceinline__ cuda_matrix block_from(const cuda_matrix &m, int64_t i)
{
    cuda_matrix from = m;
    if constexpr (T == QMI_TYPE_F32 || T == QMI_TYPE_F16 || T == QMI_TYPE_BF16 || T == QMI_TYPE_Q8_0)
        from.plane[0] += i * (int)(sizeof(block<T>::q));
    else
        from.plane[0] += i * 16;
    if constexpr (T == QMI_TYPE_Q5_0 || T == QMI_TYPE_Q5_K)
        from.plane[1] += i * 4;
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
        from.plane[3] += (i >> 3) * 4;
    if constexpr (T == QMI_TYPE_Q6_K) {
        from.plane[1] += i * 8;
        from.plane[3] += (i >> 3) * 2;
    }
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K || T == QMI_TYPE_Q6_K || T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 ||
                  T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
        from.plane[2] += i * 2;
    if constexpr (T == QMI_TYPE_IQ4_XS)
        from.plane[2] += i;
    return from;
}

/* ---- pieces ---- */

/* Scale and minimum from their bytes and d and dmin. A byte in the low bits of 2^23 is that number more: no conversion. */
static __device__ __forceinline__ void block_mins(uint32_t mins, uint32_t d, float *scale, float *minimum)
{
    *scale = chip_half_low(d) * (__uint_as_float(__byte_perm(mins, 0x4b000000u, 0x7540)) - 8388608.f);
    *minimum = chip_half_high(d) * (__uint_as_float(__byte_perm(mins, 0x4b000000u, 0x7541)) - 8388608.f);
}

static __device__ __forceinline__ float block_iq4_xs_scale(uint2 scales, int b)
{
    int s = ((scales.y >> (4 * b)) & 15) | (((scales.x >> (16 + 2 * b)) & 3) << 4);
    return chip_half_low(scales.x) * (float)(s - 32);
}

/* The 16 values of IQ4_NL and IQ4_XS (GGUF: kvalues_iq4nl), four to a word. The low four codes of `codes` select bytes; the
 * selector of prmt has three bits, so both halves of the table are looked up and the fourth bit chooses. */
static __device__ __forceinline__ uint32_t block_iq4_look_up(uint32_t codes)
{
    constexpr uint32_t t0 = 0xbfad9881, t1 = 0xf6eaddcf, t2 = 0x26190d01, t3 = 0x71594535;
    uint32_t three = codes & 0x7777;
    return __byte_perm(__byte_perm(t0, t1, three), __byte_perm(t2, t3, three), 0x3210 | ((codes >> 1) & 0x4444));
}

/* Word of 8 codes -> the values of its low halves and of its high halves. */
static __device__ __forceinline__ void block_iq4_values(uint32_t word, uint32_t *low, uint32_t *high)
{
    uint32_t a = block_iq4_look_up(word), b = block_iq4_look_up(word >> 16);
    *low = __byte_perm(a, b, 0x6420);
    *high = __byte_perm(a, b, 0x7531);
}

/* Codes of word k (0-3: values 4 k ..., 4-7: 16 + 4 (k - 4) ...) as four bytes. */
static __device__ __forceinline__ uint32_t block_word(const uint4 &q, int k)
{
    return k == 0 ? q.x : k == 1 ? q.y : k == 2 ? q.z : q.w;
}

template <uint32_t T> static __device__ __forceinline__ uint32_t block_codes(const block<T> &w, int k)
{
    if constexpr (T == QMI_TYPE_Q8_0)
        return block_word(w.q[k >> 2], k & 3);
    else {
        uint32_t c = (block_word(w.q, k & 3) >> (k & 4)) & 0x0f0f0f0fu;
        if constexpr (T == QMI_TYPE_Q5_0 || T == QMI_TYPE_Q5_K)
            c |= ((w.high >> k) & 0x01010101u) << 4;
        if constexpr (T == QMI_TYPE_Q6_K)
            c |= (((k < 4 ? w.high.x : w.high.y) >> (2 * (k & 3))) & 0x03030303u) << 4;
        return c;
    }
}

/* ---- product with activations of 8 bits ---- */

template <uint32_t T> static __device__ __forceinline__ float block_dot(const block<T> &w, int64_t i, const block_activation &a)
{
    static_assert(T != QMI_TYPE_F32 && T != QMI_TYPE_F16 && T != QMI_TYPE_BF16, "these are multiplied as floats");
    const int sum_low = (int)(int16_t)(a.sums & 0xffff), sum_high = (int)a.sums >> 16;
    int low = 0, high = 0;
    if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t l, h;
            block_iq4_values(block_word(w.q, k), &l, &h);
            low = chip_dot4_signed(l, block_word(a.low, k), low);
            high = chip_dot4_signed(h, block_word(a.high, k), high);
        }
    } else if constexpr (T == QMI_TYPE_Q8_0) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            low = chip_dot4_signed(block_codes(w, k), block_word(a.low, k), low);
            high = chip_dot4_signed(block_codes(w, k + 4), block_word(a.high, k), high);
        }
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            low = chip_dot4(block_codes(w, k), block_word(a.low, k), low);
            high = chip_dot4(block_codes(w, k + 4), block_word(a.high, k), high);
        }
    }
    if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_IQ4_NL)
        return chip_half_low(w.d) * a.scale * (float)(low + high);
    if constexpr (T == QMI_TYPE_IQ4_XS)
        return block_iq4_xs_scale(w.scales, (int)(i & 7)) * a.scale * (float)(low + high);
    if constexpr (T == QMI_TYPE_Q4_0)
        return chip_half_low(w.d) * a.scale * (float)(low + high - 8 * (sum_low + sum_high));
    if constexpr (T == QMI_TYPE_Q5_0)
        return chip_half_low(w.d) * a.scale * (float)(low + high - 16 * (sum_low + sum_high));
    if constexpr (T == QMI_TYPE_Q6_K) {
        int s_low = (int)(int8_t)(w.scales & 0xff), s_high = (int)(int8_t)(w.scales >> 8);
        return chip_half_low(w.d) * a.scale * (float)(s_low * (low - 32 * sum_low) + s_high * (high - 32 * sum_high));
    }
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) {
        float scale, minimum;
        block_mins(w.mins, w.d, &scale, &minimum);
        return a.scale * (scale * (float)(low + high) - minimum * (float)(sum_low + sum_high));
    }
    return 0;
}

/* ---- as floats: the values of dequant.c ---- */

template <uint32_t T> static __device__ __forceinline__ void block_values(const block<T> &w, int64_t i, float out[32])
{
    if constexpr (T == QMI_TYPE_F32) {
#pragma unroll
        for (int v = 0; v < 32; v++)
            out[v] = __uint_as_float(block_word(w.q[v >> 2], v & 3));
    } else if constexpr (T == QMI_TYPE_F16 || T == QMI_TYPE_BF16) {
#pragma unroll
        for (int v = 0; v < 32; v += 2) {
            uint32_t pair = block_word(w.q[v >> 3], (v >> 1) & 3);
            out[v] = T == QMI_TYPE_F16 ? chip_half_low(pair) : __uint_as_float(pair << 16);
            out[v + 1] = T == QMI_TYPE_F16 ? chip_half_high(pair) : __uint_as_float(pair & 0xffff0000u);
        }
    } else {
        float scale = 0, scale_high = 0, minimum = 0;
        if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
            scale = scale_high = chip_half_low(w.d);
        if constexpr (T == QMI_TYPE_IQ4_XS)
            scale = scale_high = block_iq4_xs_scale(w.scales, (int)(i & 7));
        if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) {
            block_mins(w.mins, w.d, &scale, &minimum);
            scale_high = scale;
        }
        if constexpr (T == QMI_TYPE_Q6_K) {
            scale = chip_half_low(w.d) * (float)(int8_t)(w.scales & 0xff);
            scale_high = chip_half_low(w.d) * (float)(int8_t)(w.scales >> 8);
        }
        constexpr bool table = T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS, is_signed = table || T == QMI_TYPE_Q8_0;
        constexpr int offset = T == QMI_TYPE_Q4_0 ? 8 : T == QMI_TYPE_Q5_0 ? 16 : T == QMI_TYPE_Q6_K ? 32 : 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            uint32_t codes;
            if constexpr (table) {
                uint32_t low, high;
                block_iq4_values(block_word(w.q, k & 3), &low, &high);
                codes = k < 4 ? low : high;
            } else
                codes = block_codes(w, k);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t byte = (codes >> (8 * j)) & 255;
                int code = is_signed ? (int)(int8_t)byte : (int)byte - offset;
                out[4 * k + j] = (k < 4 ? scale : scale_high) * (float)code - minimum;
            }
        }
    }
}

/* ---- unpacking to half floats ----
 * Sixteen pairs, in the order in which they fall out of the words: pairs 4 k .. 4 k + 3 (k < 4) are values
 *   (4 k, 4 k + 2), (4 k + 1, 4 k + 3), (16 + 4 k, 16 + 4 k + 2), (16 + 4 k + 1, 16 + 4 k + 3)
 * and activations for tensor cores are stored in the same order: block_place(v) is where value v of a block goes. */
static __device__ __forceinline__ int block_place(int value)
{
    int k = (value & 15) >> 2, j = value & 3;
    return 8 * k + 4 * (value >> 4) + 2 * (j & 1) + (j >> 1);
}

static __device__ __forceinline__ __half2 block_pair(uint32_t bits)
{
    return *(__half2 *)&bits;
}

static __device__ __forceinline__ uint32_t block_bits(__half2 pair)
{
    return *(uint32_t *)&pair;
}

/* Bytes (0, 2) and (1, 3) of `codes`, each 0 .. 255, as half pairs 1024 + code: the code lies in the low bits of 0x6400. */
static __device__ __forceinline__ void block_bytes(uint32_t codes, __half2 *even, __half2 *odd)
{
    *even = block_pair(__byte_perm(codes, 0x64646464u, 0x4240));
    *odd = block_pair(__byte_perm(codes, 0x64646464u, 0x4341));
}

static __device__ __forceinline__ __half2 block_scale(float scale)
{
    return __half2half2(__float2half_rn(fminf(fmaxf(scale, -65504.f), 65504.f)));
}

static __device__ __forceinline__ uint32_t block_float_pair(uint32_t a, uint32_t b) /* bits of two floats */
{
    return block_bits(__floats2half2_rn(fminf(fmaxf(__uint_as_float(a), -65504.f), 65504.f), fminf(fmaxf(__uint_as_float(b), -65504.f), 65504.f)));
}

/* What all values of a block are multiplied with: code * scale (of its half) + minimum. Nothing for types without scales. */
struct block_factors {
    __half2 scale[2], minimum;
};

template <uint32_t T> static __device__ __forceinline__ block_factors block_factors_of(const block<T> &w, int64_t i)
{
    block_factors f = {};
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) { /* block_mins on halves: each product is rounded once, as there */
        const __half2 most = __half2half2(__ushort_as_half(0x7bff)), gains = __floats2half2_rn(block_gain<T>(), -block_gain<T>());
        __half2 pair = __hsub2(block_pair(__byte_perm(w.mins, 0x64646464u, 0x4140)), __half2half2(__float2half_rn(1024.f)));
        pair = __hmul2(__hmul2(pair, gains), block_pair(w.d));
        pair = __hmax2(__hmin2(pair, most), __hneg2(most));
        f.scale[0] = f.scale[1] = __low2half2(pair);
        f.minimum = __high2half2(pair);
    } else if constexpr (T != QMI_TYPE_F32 && T != QMI_TYPE_F16 && T != QMI_TYPE_BF16) {
        constexpr float gain = block_gain<T>();
        float scale = 0, scale_high = 0;
        if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
            scale = scale_high = chip_half_low(w.d);
        if constexpr (T == QMI_TYPE_IQ4_XS)
            scale = scale_high = block_iq4_xs_scale(w.scales, (int)(i & 7));
        if constexpr (T == QMI_TYPE_Q6_K) {
            scale = chip_half_low(w.d) * (float)(int8_t)(w.scales & 0xff);
            scale_high = chip_half_low(w.d) * (float)(int8_t)(w.scales >> 8);
        }
        f.scale[0] = block_scale(scale * gain);
        f.scale[1] = T == QMI_TYPE_Q6_K ? block_scale(scale_high * gain) : f.scale[0];
    }
    return f;
}

/* Pairs 4 k .. 4 k + 3, a quarter of the block. */
template <uint32_t T>
static __device__ __forceinline__ void block_unpack_quarter(const block<T> &w, const block_factors &f, int k, uint32_t out[4])
{
    if constexpr (T == QMI_TYPE_F16 || T == QMI_TYPE_BF16 || T == QMI_TYPE_F32) { /* four values, then those 16 later */
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if constexpr (T == QMI_TYPE_F32) {
                const uint4 &v = w.q[k + 4 * half];
                out[2 * half] = block_float_pair(v.x, v.z);
                out[2 * half + 1] = block_float_pair(v.y, v.w);
            } else { /* words hold values (2 n, 2 n + 1) */
                const uint4 &v = w.q[2 * half + (k >> 1)];
                uint32_t a = block_word(v, 2 * (k & 1)), b = block_word(v, 2 * (k & 1) + 1);
                out[2 * half] = T == QMI_TYPE_F16 ? __byte_perm(a, b, 0x5410) : block_float_pair(a << 16, b << 16);
                out[2 * half + 1] = T == QMI_TYPE_F16 ? __byte_perm(a, b, 0x7632) : block_float_pair(a & 0xffff0000u, b & 0xffff0000u);
            }
        }
    } else if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q4_0) {
        /* Nibbles of bytes 0 and 2 (then 1 and 3) as they stand: 1024 + code, and 1024 + 16 code for the high ones. */
        constexpr float offset = T == QMI_TYPE_Q4_0 ? 8.f : 0.f;
        const __half2 zero = __half2half2(__float2half_rn(-1024.f - offset)), sixteenth = __half2half2(__float2half_rn(0.0625f));
        const __half2 zero_high = __half2half2(__float2half_rn(-64.f - offset));
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const uint32_t word = block_word(w.q, k) >> (8 * odd);
            __half2 low = __hadd2(block_pair(chip_pick(word, 0x000f000fu, 0x64006400u)), zero);
            __half2 high = __hfma2(block_pair(chip_pick(word, 0x00f000f0u, 0x64006400u)), sixteenth, zero_high);
            out[odd] = block_bits(T == QMI_TYPE_Q4_K ? __hfma2(low, f.scale[0], f.minimum) : __hmul2(low, f.scale[0]));
            out[2 + odd] = block_bits(T == QMI_TYPE_Q4_K ? __hfma2(high, f.scale[0], f.minimum) : __hmul2(high, f.scale[0]));
        }
    } else {
        constexpr bool bytes = T == QMI_TYPE_Q8_0 || T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS; /* signed values, moved by 128 */
        constexpr float offset =
            1024.f + (bytes ? 128.f : T == QMI_TYPE_Q5_0 ? 16.f : T == QMI_TYPE_Q6_K ? 32.f : 0.f);
        const __half2 zero = __half2half2(__float2half_rn(offset));
        uint32_t codes[2];
        if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS)
            block_iq4_values(block_word(w.q, k), &codes[0], &codes[1]);
        else {
            codes[0] = block_codes(w, k);
            codes[1] = block_codes(w, k + 4);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __half2 even, odd;
            block_bytes(bytes ? codes[half] ^ 0x80808080u : codes[half], &even, &odd);
            even = __hsub2(even, zero);
            odd = __hsub2(odd, zero);
            if constexpr (T == QMI_TYPE_Q5_K) {
                even = __hfma2(even, f.scale[half], f.minimum);
                odd = __hfma2(odd, f.scale[half], f.minimum);
            } else {
                even = __hmul2(even, f.scale[half]);
                odd = __hmul2(odd, f.scale[half]);
            }
            out[2 * half] = block_bits(even);
            out[2 * half + 1] = block_bits(odd);
        }
    }
}

/* Floats: what rounding them to halves loses. */
static __device__ __forceinline__ void block_rest(block<QMI_TYPE_F32> &w)
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        uint32_t v[4] = { w.q[j].x, w.q[j].y, w.q[j].z, w.q[j].w };
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float x = fminf(fmaxf(__uint_as_float(v[i]), -65504.f), 65504.f);
            v[i] = __float_as_uint(x - __half2float(__float2half_rn(x)));
        }
        w.q[j] = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

template <uint32_t T> static __device__ __forceinline__ void block_unpack(const block<T> &w, int64_t i, uint32_t out[16])
{
    const block_factors f = block_factors_of(w, i);
#pragma unroll
    for (int k = 0; k < 4; k++)
        block_unpack_quarter(w, f, k, out + 4 * k);
}

#endif
