/* Attention: keys and values of every type (quant/kv_type.h), copied to tiles of halves in shared memory and appended from heads
 * of floats there; and turning heads. Codes become halves without loss, their products with the scale are rounded to halves. */
#ifndef QMI_CUDA_ATTEND_TYPES_CUH
#define QMI_CUDA_ATTEND_TYPES_CUH

#include "attend.cuh"

static __device__ __forceinline__ constexpr bool attend_quantized(int type)
{
    return type >= QMI_KV_Q8_0;
}

/* Bytes of a block's part of the planes of low and of high bits. */
static __device__ __forceinline__ constexpr int attend_low(int type)
{
    return type == QMI_KV_Q8_0 ? 32 : type == QMI_KV_Q2 ? 8 : 16;
}

static __device__ __forceinline__ constexpr int attend_high(int type)
{
    return type == QMI_KV_Q6 ? 8 : type == QMI_KV_Q5 ? 4 : 0;
}

static __device__ __forceinline__ constexpr int attend_bits(int type)
{
    return type == QMI_KV_Q8_0 ? 8 : type == QMI_KV_Q6 ? 6 : type == QMI_KV_Q5 ? 5 : type == QMI_KV_Q2 ? 2 : 4;
}

/* Of a head of whole blocks. */
static __device__ __forceinline__ constexpr int attend_record_bytes(int type, int size)
{
    return attend_quantized(type) ? size / QMI_KV_BLOCK * (attend_low(type) + attend_high(type) + 2)
         : type == QMI_KV_F32 ? 4 * size : 2 * size;
}

static __device__ __forceinline__ float attend_bfloat(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

/* The nearest bfloat16, ties to even. */
static __device__ __forceinline__ float attend_rounded_bfloat(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return x == x ? __uint_as_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u) : x;
}

/* One value of a record of `size`. */
static __device__ __forceinline__ float attend_value(int type, uint64_t record, int size, int i)
{
    if (type == QMI_KV_F32)
        return ((const float *)record)[i];
    if (type == QMI_KV_F16)
        return __half2float(((const __half *)record)[i]);
    if (type == QMI_KV_BF16)
        return attend_bfloat(((const uint16_t *)record)[i]);
    const uint8_t *bytes = (const uint8_t *)record;
    const int blocks = (size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK, block = i / QMI_KV_BLOCK, n = i % QMI_KV_BLOCK;
    const uint8_t *high = bytes + blocks * attend_low(type);
    const float scale = __half2float(*(const __half *)(high + blocks * attend_high(type) + 2 * block));
    if (type == QMI_KV_Q8_0)
        return scale * (float)(int8_t)bytes[i];
    if (type == QMI_KV_Q2)
        return scale * ((float)(bytes[8 * block + n % 8] >> 2 * (n / 8) & 3) - 1.5f);
    int code = bytes[16 * block + n % 16] >> (n & 16) / 4 & 15;
    if (type == QMI_KV_Q6)
        code |= (high[8 * block + n % 8] >> 2 * (n / 8) & 3) << 4;
    else if (type == QMI_KV_Q5)
        code |= (high[4 * block + n / 8] >> n % 8 & 1) << 4;
    return scale * (float)(code - (1 << (attend_bits(type) - 1)));
}

/* The code whose code - 3 / 2 is nearest. */
static __device__ __forceinline__ int attend_nearest_of_four(float x)
{
    return x < 0 ? (x < -1 ? 0 : 1) : x < 1 ? 2 : 3;
}

/* Two bits, of which a block has `count` numbers (kv_type.c says how). */
static __device__ __forceinline__ float attend_pack_two_bits(uint64_t record, int blocks, int block, int count, float x,
                                                             bool writes, int lane)
{
    const bool bad = __any_sync(~0u, !(fabsf(x) <= 3.402823466e38f)), real = lane < count;
    float wanted = chip_warp_sum(fabsf(x)) * (1.25f / (float)count);
    for (int round = 0; round < 5 && wanted > 0; round++) {
        const float level = real ? (float)attend_nearest_of_four(x / wanted) - 1.5f : 0;
        const float product = chip_warp_sum(level * x), square = chip_warp_sum(level * level);
        wanted = product / square;
    }
    __half scale = __float2half_rn(wanted);
    const float d = __half2float(scale);
    const bool spoilt = bad || !(fabsf(d) <= 65504.f);
    if (spoilt)
        scale = __ushort_as_half(0x7E00);
    const int code = spoilt || !(d > 0) || !real ? 0 : attend_nearest_of_four(x / d);
    const int a = __shfl_down_sync(~0u, code, 8), b = __shfl_down_sync(~0u, code, 16), c = __shfl_down_sync(~0u, code, 24);
    if (writes && lane < 8)
        ((uint8_t *)record)[8 * block + lane] = (uint8_t)(code | a << 2 | b << 4 | c << 6);
    if (writes && lane == 0)
        *(__half *)((uint8_t *)record + 8 * blocks + 2 * block) = scale;
    return __half2float(scale) * ((float)code - 1.5f);
}

/* A lane has a number of a block (of those beyond the head: 0): stored in the record of `blocks` where `writes`. Returns what
 * was stored. All lanes of a warp together. */
static __device__ __forceinline__ float attend_pack(int type, uint64_t record, int blocks, int block, float x, bool writes,
                                                    int lane)
{
    const int bits = attend_bits(type), half = 1 << (bits - 1);
    const float most = chip_warp_max(fabsf(x));
    const bool bad = __any_sync(~0u, !(fabsf(x) <= 3.402823466e38f)); /* a NaN is passed over by the maximum */
    const int first = __ffs((int)__ballot_sync(~0u, fabsf(x) == most)) - 1;
    const float extreme = __shfl_sync(~0u, x, first < 0 ? 0 : first);
    float wanted = type == QMI_KV_Q8_0 ? most / 127.f : extreme / (float)-half;
    __half scale = __float2half_rn(wanted);
    float d = __half2float(scale);
    const bool spoilt = bad || !(fabsf(d) <= 65504.f);
    if (spoilt)
        scale = __ushort_as_half(0x7E00);
    const float q = spoilt || d == 0 ? 0 : fmaxf(fminf(rintf(x * (1.f / d)), (float)(half - 1)), (float)-half);
    const int code = type == QMI_KV_Q8_0 ? (int)q : (int)q + half;
    uint8_t *low = (uint8_t *)record + block * attend_low(type);
    uint8_t *high = (uint8_t *)record + blocks * attend_low(type) + block * attend_high(type);
    if (type == QMI_KV_Q8_0) {
        if (writes)
            low[lane] = (uint8_t)code;
    } else {
        const int above = __shfl_down_sync(~0u, code, 16);
        if (writes && lane < 16)
            low[lane] = (uint8_t)((code & 15) | (above & 15) << 4);
    }
    if (type == QMI_KV_Q6) {
        const int top = code >> 4, a = __shfl_down_sync(~0u, top, 8), b = __shfl_down_sync(~0u, top, 16),
                  c = __shfl_down_sync(~0u, top, 24);
        if (writes && lane < 8)
            high[lane] = (uint8_t)(top | a << 2 | b << 4 | c << 6);
    } else if (type == QMI_KV_Q5) {
        const uint32_t tops = __ballot_sync(~0u, code >> 4 & 1);
        if (writes && lane < 4)
            high[lane] = (uint8_t)(tops >> 8 * lane);
    }
    if (writes && lane == 0)
        *(__half *)((uint8_t *)record + blocks * (attend_low(type) + attend_high(type)) + 2 * block) = scale;
    return __half2float(scale) * q;
}

/* A warp stores a head of shared memory, and leaves what it has stored there. */
static __device__ __forceinline__ void attend_append_head(int type, uint64_t record, float *head, int size, bool writes, int lane)
{
    const int blocks = (size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK;
    for (int block = 0; block < blocks; block++) {
        const int i = block * QMI_KV_BLOCK + lane;
        float x = i < size ? head[i] : 0;
        if (type == QMI_KV_Q2)
            x = attend_pack_two_bits(record, blocks, block, min(size - block * QMI_KV_BLOCK, QMI_KV_BLOCK), x, writes, lane);
        else if (attend_quantized(type))
            x = attend_pack(type, record, blocks, block, x, writes, lane);
        else if (type == QMI_KV_F16)
            x = __half2float(attend_half(x));
        else if (type == QMI_KV_BF16)
            x = attend_rounded_bfloat(x);
        if (i >= size)
            continue;
        head[i] = x;
        if (writes && type == QMI_KV_F32)
            ((float *)record)[i] = x;
        else if (writes && type == QMI_KV_F16)
            ((__half *)record)[i] = __float2half_rn(x);
        else if (writes && type == QMI_KV_BF16)
            ((uint16_t *)record)[i] = (uint16_t)(__float_as_uint(x) >> 16);
    }
    __syncwarp();
}

/* ---- turning: x H S / sqrt(m), or back ---- */

static __device__ __forceinline__ float attend_sign(int i)
{
    return __popc((uint32_t)i * 0x9E3779B1u) & 1 ? -1.f : 1.f;
}

/* A warp and a head in shared memory, of any size. */
static __device__ __forceinline__ void attend_spread_any(float *head, int size, bool back, int lane)
{
    const int run = size & -size;
    const float factor = 1.f / sqrtf((float)run);
    __syncwarp();
    for (int i = lane; i < size; i += QMI_WARP)
        head[i] *= factor * (back ? 1.f : attend_sign(i & (run - 1)));
    for (int apart = 1; apart < run; apart *= 2) {
        __syncwarp();
        for (int pair = lane; pair < size / 2; pair += QMI_WARP) {
            const int i = 2 * (pair & ~(apart - 1)) + (pair & (apart - 1));
            const float x = head[i], y = head[i + apart];
            head[i] = x + y;
            head[i + apart] = x - y;
        }
    }
    __syncwarp();
    if (back)
        for (int i = lane; i < size; i += QMI_WARP)
            head[i] *= attend_sign(i & (run - 1));
    __syncwarp();
}

/* The same in registers: lane l has the values l, l + 32, ... */
template <int D> static __device__ __forceinline__ void attend_spread(float *head, bool back, int lane)
{
    constexpr int own = D / QMI_WARP;
    static_assert((D & (D - 1)) == 0, "one run");
    const float factor = 1.f / sqrtf((float)D);
    float x[own];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < own; k++)
        x[k] = head[lane + QMI_WARP * k] * factor * (back ? 1.f : attend_sign(lane + QMI_WARP * k));
#pragma unroll
    for (int apart = 1; apart < QMI_WARP; apart *= 2)
#pragma unroll
        for (int k = 0; k < own; k++) {
            const float y = __shfl_xor_sync(~0u, x[k], apart);
            x[k] = lane & apart ? y - x[k] : x[k] + y;
        }
#pragma unroll
    for (int apart = 1; apart < own; apart *= 2)
#pragma unroll
        for (int k = 0; k < own; k++)
            if (!(k & apart)) {
                const float a = x[k], b = x[k + apart];
                x[k] = a + b;
                x[k + apart] = a - b;
            }
#pragma unroll
    for (int k = 0; k < own; k++)
        head[lane + QMI_WARP * k] = x[k] * (back ? attend_sign(lane + QMI_WARP * k) : 1.f);
    __syncwarp();
}

/* ---- tiles ---- */

/* Four bytes of a record of heads of D: those of 64 lie at multiples of four only. */
template <int D> static __device__ __forceinline__ uint2 attend_eight(const uint8_t *from)
{
    if constexpr (D % 128 == 0)
        return *(const uint2 *)from;
    else
        return make_uint2(((const uint32_t *)from)[0], ((const uint32_t *)from)[1]);
}

/* Codes in the bytes of `codes`, less `zero`, times the scale: 1024 + code is a half that has the code in its low bits. */
static __device__ __forceinline__ uint4 attend_scaled(uint2 codes, int zero, __half scale)
{
    const __half2 one = __floats2half2_rn(1, 1), nothing = __floats2half2_rn(0, 0), by = __halves2half2(scale, scale);
    const __half2 base = __floats2half2_rn((float)(-1024 - zero), (float)(-1024 - zero));
    uint32_t pairs[4] = { __byte_perm(codes.x, 0x64646464u, 0x4140), __byte_perm(codes.x, 0x64646464u, 0x4342),
                          __byte_perm(codes.y, 0x64646464u, 0x4140), __byte_perm(codes.y, 0x64646464u, 0x4342) };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const __half2 x = __hfma2(__hfma2(*(const __half2 *)&pairs[i], one, base), by, nothing);
        pairs[i] = *(const uint32_t *)&x;
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

/* Eight codes of two bits in bits 4 and 5 of the bytes, less 3 / 2: 64 + code is a half that has the code there. */
static __device__ __forceinline__ uint4 attend_levels(uint2 codes)
{
    const __half2 one = __floats2half2_rn(1, 1), base = __floats2half2_rn(-65.5f, -65.5f);
    const uint32_t x = codes.x & 0x30303030u, y = codes.y & 0x30303030u;
    uint32_t pairs[4] = { __byte_perm(x, 0x54545454u, 0x4140), __byte_perm(x, 0x54545454u, 0x4342),
                          __byte_perm(y, 0x54545454u, 0x4140), __byte_perm(y, 0x54545454u, 0x4342) };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const __half2 level = __hfma2(*(const __half2 *)&pairs[i], one, base);
        pairs[i] = *(const uint32_t *)&level;
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

static __device__ __forceinline__ uint32_t attend_multiply_add(uint32_t x, uint32_t by, uint32_t more)
{
    const __half2 y = __hfma2(*(const __half2 *)&x, *(const __half2 *)&by, *(const __half2 *)&more);
    return *(const uint32_t *)&y;
}

/* Codes of two bits at `place` (0 .. 3) of each byte, moved to the bits 4 and 5. */
static __device__ __forceinline__ uint32_t attend_two_bits(uint32_t codes, int place)
{
    return place < 3 ? codes << (4 - 2 * place) : codes >> 2;
}

/* What values 8 piece .. 8 piece + 7 of a record are made of: loaded apart from unpacking, so that several are on their way. */
struct attend_raw {
    uint4 low, more; /* numbers or codes; f32: the other four numbers, q6 and q5: high bits */
    __half scale;
};

template <int TYPE, int D> static __device__ __forceinline__ attend_raw attend_load(uint64_t record, int piece)
{
    const uint8_t *bytes = (const uint8_t *)record;
    constexpr int blocks = D / QMI_KV_BLOCK, low = attend_low(TYPE), high = attend_high(TYPE);
    const int block = piece >> 2, quarter = piece & 3;
    attend_raw raw = {};
    if constexpr (!attend_quantized(TYPE)) {
        raw.low = *(const uint4 *)(bytes + (TYPE == QMI_KV_F32 ? 32 : 16) * piece);
        if constexpr (TYPE == QMI_KV_F32)
            raw.more = *(const uint4 *)(bytes + 32 * piece + 16);
        return raw;
    }
    const int at = TYPE == QMI_KV_Q8_0 ? 8 * piece : low * block + (low == 16 ? 8 * (quarter & 1) : 0);
    const uint2 c = attend_eight<D>(bytes + at);
    raw.low.x = c.x;
    raw.low.y = c.y;
    if constexpr (TYPE == QMI_KV_Q6) {
        const uint2 h = attend_eight<D>(bytes + blocks * low + 8 * block);
        raw.more.x = h.x;
        raw.more.y = h.y;
    }
    if constexpr (TYPE == QMI_KV_Q5)
        raw.more.x = bytes[blocks * low + 4 * block + quarter];
    raw.scale = *(const __half *)(bytes + blocks * (low + high) + 2 * block);
    return raw;
}

/* As halves. */
template <int TYPE> static __device__ __forceinline__ uint4 attend_unpacked(const attend_raw &raw, int piece)
{
    const int quarter = piece & 3;
    if constexpr (TYPE == QMI_KV_F16)
        return raw.low;
    if constexpr (TYPE == QMI_KV_F32)
        return make_uint4(attend_halves(__uint_as_float(raw.low.x), __uint_as_float(raw.low.y)),
                          attend_halves(__uint_as_float(raw.low.z), __uint_as_float(raw.low.w)),
                          attend_halves(__uint_as_float(raw.more.x), __uint_as_float(raw.more.y)),
                          attend_halves(__uint_as_float(raw.more.z), __uint_as_float(raw.more.w)));
    if constexpr (TYPE == QMI_KV_BF16) {
        const uint32_t w[4] = { raw.low.x, raw.low.y, raw.low.z, raw.low.w };
        uint32_t h[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            h[i] = attend_halves(attend_bfloat(w[i] & 0xffff), attend_bfloat(w[i] >> 16));
        return make_uint4(h[0], h[1], h[2], h[3]);
    }
    uint2 c = make_uint2(raw.low.x, raw.low.y);
    if constexpr (TYPE == QMI_KV_Q8_0)
        return attend_scaled(make_uint2(c.x ^ 0x80808080u, c.y ^ 0x80808080u), 128, raw.scale); /* bytes from -128 on */
    if constexpr (TYPE == QMI_KV_Q2) {
        const uint4 level = attend_levels(make_uint2(attend_two_bits(c.x, quarter), attend_two_bits(c.y, quarter)));
        const uint32_t by = attend_pair(__half2float(raw.scale), __half2float(raw.scale));
        return make_uint4(attend_multiply_add(level.x, by, 0), attend_multiply_add(level.y, by, 0),
                          attend_multiply_add(level.z, by, 0), attend_multiply_add(level.w, by, 0));
    }
    const int shift = 4 * (quarter >> 1);
    c = make_uint2(c.x >> shift & 0x0f0f0f0fu, c.y >> shift & 0x0f0f0f0fu);
    if constexpr (TYPE == QMI_KV_Q6) {
        c.x |= (raw.more.x >> 2 * quarter & 0x03030303u) << 4;
        c.y |= (raw.more.y >> 2 * quarter & 0x03030303u) << 4;
    }
    if constexpr (TYPE == QMI_KV_Q5) {
        const uint32_t h = raw.more.x;
        c.x |= ((h & 1) | (h & 2) << 7 | (h & 4) << 14 | (h & 8) << 21) << 4;
        c.y |= ((h >> 4 & 1) | (h >> 4 & 2) << 7 | (h >> 4 & 4) << 14 | (h >> 4 & 8) << 21) << 4;
    }
    return attend_scaled(c, 1 << (attend_bits(TYPE) - 1), raw.scale);
}

/* `first`: the record of the first of COUNT tokens, which lie one after the other. */
template <int TYPE, int D, int ROWS, int COUNT>
static __device__ __forceinline__ void attend_fetch_type(__half *tile, int first_row, uint64_t first, int real, int lane)
{
    constexpr int pieces = D / 8, together = QMI_WARP / pieces, bytes = attend_record_bytes(TYPE, D), deep = 4;
    const int piece = lane % pieces;
#pragma unroll 1
    for (int from = 0; from < COUNT; from += deep * together) {
        attend_raw raw[deep];
#pragma unroll
        for (int i = 0; i < deep; i++) {
            const int row = from + i * together + lane / pieces;
            if (i * together < COUNT && row < real)
                raw[i] = attend_load<TYPE, D>(first + (uint64_t)(row * bytes), piece);
        }
#pragma unroll
        for (int i = 0; i < deep; i++) {
            const int row = from + i * together + lane / pieces;
            if (i * together < COUNT)
                *(uint4 *)(tile + attend_piece<ROWS>(first_row + row, piece)) =
                    row < real ? attend_unpacked<TYPE>(raw[i], piece) : make_uint4(0, 0, 0, 0);
        }
    }
}

/* COUNT heads of halves, the first `real` of which exist, to rows first_row ... Lane r has the address of the r'th. Wait for them
 * like cp.async. */
template <int D, int ROWS, int COUNT>
static __device__ __forceinline__ void attend_fetch_halves(__half *tile, int first_row, uint64_t address, int real, int lane)
{
    constexpr int pieces = D / 8, together = QMI_WARP / pieces;
#pragma unroll
    for (int i = 0; i < COUNT; i += together) {
        const int row = i + lane / pieces, piece = lane % pieces;
        const uint64_t from = __shfl_sync(~0u, (unsigned long long)address, row) + 16 * piece;
        chip_copy16(tile + attend_piece<ROWS>(first_row + row, piece), (const void *)from, row < real);
    }
}

/* Where a group's channel has its codes among the others': in shared memory so that eight lanes load from different banks. */
template <bool SHARED> static __device__ __forceinline__ int attend_channel(int channel)
{
    return SHARED ? channel ^ (channel >> 3 & 7) : channel;
}

/* COUNT (8 or 16) tokens of a group of keys of q2 to rows first_row ...; a warp together. Their codes lie at `place` (0 .. 3) of
 * the first COUNT bytes that a channel has behind `codes`. */
template <int D, int ROWS, int COUNT, bool SHARED>
static __device__ __forceinline__ void attend_unpack_group(__half *tile, int first_row, const uint8_t *codes,
                                                           const uint8_t *scales, int place, int lane)
{
    constexpr int pieces = D / 8, together = QMI_WARP / pieces, words = COUNT / 4, stride = SHARED ? COUNT : QMI_KV_GROUP / 4;
    const int piece = lane % pieces, own = lane / pieces; /* tokens own, own + together, ... */
    const uint4 s = *(const uint4 *)(scales + 16 * piece), z = *(const uint4 *)(scales + 2 * D + 16 * piece);
    const uint32_t by[4] = { s.x, s.y, s.z, s.w }, centre[4] = { z.x, z.y, z.z, z.w };
    uint32_t channel[8][words];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if constexpr (COUNT == 16) {
            const uint4 c = *(const uint4 *)(codes + stride * attend_channel<SHARED>(8 * piece + i));
            channel[i][0] = c.x, channel[i][1] = c.y, channel[i][2] = c.z, channel[i][3] = c.w;
        } else {
            const uint2 c = *(const uint2 *)(codes + stride * attend_channel<SHARED>(8 * piece + i));
            channel[i][0] = c.x, channel[i][1] = c.y;
        }
#pragma unroll
        for (int j = 0; j < words; j++)
            channel[i][j] = attend_two_bits(channel[i][j], place);
    }
    const __half2 one = __floats2half2_rn(1, 1), base = __floats2half2_rn(-65.5f, -65.5f);
#pragma unroll
    for (int j = 0; j < COUNT; j += together) {
        const int row = j + own;
        const uint32_t byte = (uint32_t)row & 3, select = byte | (4 + byte) << 8; /* of a channel, and of the next one */
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t codes = __byte_perm(channel[2 * i][j / 4], channel[2 * i + 1][j / 4], select | select << 4);
            const uint32_t half = chip_pick(codes, 0x00300030u, 0x54005400u);
            const __half2 level = __hfma2(*(const __half2 *)&half, one, base);
            pairs[i] = attend_multiply_add(*(const uint32_t *)&level, by[i], centre[i]);
        }
        *(uint4 *)(tile + attend_piece<ROWS>(first_row + row, piece)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}

/* Copies COUNT tokens of D values, of which the first `real` exist (the others: zeros), to rows first_row ... Lane r holds the
 * place of the first_row + r'th; a warp copies them all. Of types but halves they lie one after the other. Halves arrive like
 * cp.async: wait for them. */
template <int T, int D, int ROWS, int COUNT>
static __device__ __forceinline__ void attend_fetch(const attend_arguments &a, __half *tile, int first_row, attend_place place,
                                                    bool value, int real, int lane)
{
    static_assert(T == ATTEND_HALVES || T == ATTEND_ANY, "what becomes a tile of halves on its way");
    if constexpr (T == ATTEND_HALVES)
        attend_fetch_halves<D, ROWS, COUNT>(tile, first_row, attend_address<T>(a, place, value), real, lane);
    else {
        const uint64_t own = attend_address<T>(a, place, value), first = __shfl_sync(~0u, (unsigned long long)own, 0);
        switch (value ? a.value_type : a.key_type) {
        case QMI_KV_F32: attend_fetch_type<QMI_KV_F32, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_F16: attend_fetch_type<QMI_KV_F16, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_BF16: attend_fetch_type<QMI_KV_BF16, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_Q8_0: attend_fetch_type<QMI_KV_Q8_0, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_Q6: attend_fetch_type<QMI_KV_Q6, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_Q5: attend_fetch_type<QMI_KV_Q5, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        case QMI_KV_Q2: attend_fetch_type<QMI_KV_Q2, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        default: attend_fetch_type<QMI_KV_Q4_0, D, ROWS, COUNT>(tile, first_row, first, real, lane); break;
        }
    }
}

/* The first `real` records of a run that starts at a multiple of 16 bytes, as they are. Wait for them like cp.async. */
static __device__ __forceinline__ void attend_fetch_codes(uint8_t *to_shared, uint64_t from, int bytes, int lane)
{
    for (int i = 16 * lane; i + 16 <= bytes; i += 16 * QMI_WARP)
        chip_copy16(to_shared + i, (const void *)(from + i), true);
    const int rest = (bytes & ~15) + 4 * lane; /* what lies behind may be written now */
    if (rest < bytes)
        *(uint32_t *)(to_shared + rest) = *(const uint32_t *)(from + rest);
}

/* COUNT (8 or 16) tokens of a group of keys of q2, from its token `token` on: all channels' codes, then scales and centres. Wait
 * for them like cp.async. */
template <int D, int COUNT>
static __device__ __forceinline__ void attend_copy_group(uint8_t *to_shared, const uint8_t *group, int token, int lane)
{
#pragma unroll
    for (int i = 0; i < D; i += QMI_WARP) {
        uint8_t *to = to_shared + COUNT * attend_channel<true>(i + lane);
        const uint8_t *from = group + 16 * (i + lane) + (token & 15);
        if (COUNT == 16)
            chip_copy16(to, from, true);
        else
            chip_copy8(to, from, true);
    }
    for (int i = lane; i < D / 4; i += QMI_WARP)
        chip_copy16(to_shared + COUNT * D + 16 * i, group + 16 * (D + i), true);
}

template <int TYPE, int D, int ROWS, int COUNT>
static __device__ __forceinline__ void attend_unpack_type(__half *tile, int first_row, const uint8_t *records, int real, int lane)
{
    constexpr int pieces = D / 8, together = QMI_WARP / pieces, bytes = attend_record_bytes(TYPE, D);
#pragma unroll 4 /* kernels' code is not in the processor's cache when a token's turn comes */
    for (int i = 0; i < COUNT; i += together) {
        const int row = i + lane / pieces, piece = lane % pieces;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row < real)
            x = attend_unpacked<TYPE>(attend_load<TYPE, D>((uint64_t)(records + row * bytes), piece), piece);
        *(uint4 *)(tile + attend_piece<ROWS>(first_row + row, piece)) = x;
    }
}

/* COUNT records in shared memory, of which the first `real` exist, to rows first_row ... of a tile of halves; a warp together.
 * FLOATS: of types that are not quantized, too. */
template <int D, int ROWS, int COUNT, bool FLOATS>
static __device__ __forceinline__ void attend_unpack(int type, __half *tile, int first, const uint8_t *records, int real,
                                                     int lane)
{
    if (FLOATS && type == QMI_KV_F32)
        attend_unpack_type<QMI_KV_F32, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (FLOATS && type == QMI_KV_F16)
        attend_unpack_type<QMI_KV_F16, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (FLOATS && type == QMI_KV_BF16)
        attend_unpack_type<QMI_KV_BF16, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (type == QMI_KV_Q8_0)
        attend_unpack_type<QMI_KV_Q8_0, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (type == QMI_KV_Q6)
        attend_unpack_type<QMI_KV_Q6, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (type == QMI_KV_Q5)
        attend_unpack_type<QMI_KV_Q5, D, ROWS, COUNT>(tile, first, records, real, lane);
    else if (type == QMI_KV_Q2)
        attend_unpack_type<QMI_KV_Q2, D, ROWS, COUNT>(tile, first, records, real, lane);
    else
        attend_unpack_type<QMI_KV_Q4_0, D, ROWS, COUNT>(tile, first, records, real, lane);
    __syncwarp();
}

#endif
