/* Unpacking of a piece of weights, ROWS rows by up to 256 columns, for dot_q8_tmpl.h, which includes it.
 *
 * All formats that keep two numbers in a byte do so with low and high halves. Shifts are those of 16-bit lanes: bits of the
 * neighbour byte come in, and are masked off. Layouts: quant/quant_blocks.h. */

INLINE void put(q8_weights *to, int group, ints q)
{
    i_store(to->bytes[group], q);
}

INLINE ints low_half(ints pairs)
{
    return i_and(pairs, i_all8(15));
}

INLINE ints high_half(ints pairs)
{
    return i_and(i_right16(pairs, 4), i_all8(15));
}

/* Byte `index` of each word. */
INLINE ints byte_of(ints words, int index)
{
    ints moved = index > 0 ? i_right32(words, 8 * index) : words;
    return index < 3 ? i_and(moved, i_all32(255)) : moved;
}

/* ---- blocks of 32 with one scale ---- */

/* Copies the half floats at byte `at` of each block to where they are a vector; they are read when the rest is done. */
INLINE void collect_scales(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, int32_t block_bytes, q8_weights *to)
{
    for (int r = 0; r < ROWS; r++)
        for (int32_t b = 0; b < blocks; b++)
            memcpy(&to->halves[b][r], row[r] + at + b * block_bytes, sizeof to->halves[b][r]);
}

static void finish_scales(int32_t blocks, q8_weights *to)
{
    for (int32_t b = 0; b < blocks; b++)
        f_store(to->scales[b], f_halves(to->halves[b]));
}

static void unpack_q8_0(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    const ints turn = i_all8(EIGHT_BITS_SIGNED ? 0 : -128);
    collect_scales(row, at, blocks, sizeof(qmi_block_q8_0), to);
    for (int32_t b = 0; b < blocks; b++) {
        ints q[8];
        int64_t from = at + b * (int64_t)sizeof(qmi_block_q8_0) + (int64_t)offsetof(qmi_block_q8_0, q);
        load_rows(row, from, q);
        load_rows(row, from + 16, q + 4);
        for (int j = 0; j < 8; j++)
            put(to, 8 * b + j, i_xor(q[j], turn));
    }
    finish_scales(blocks, to);
}

static void unpack_q4_0(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    collect_scales(row, at, blocks, sizeof(qmi_block_q4_0), to);
    for (int32_t b = 0; b < blocks; b++) {
        ints q[4];
        load_rows(row, at + b * (int64_t)sizeof(qmi_block_q4_0) + (int64_t)offsetof(qmi_block_q4_0, q), q);
        for (int j = 0; j < 4; j++) {
            put(to, 8 * b + j, low_half(q[j]));
            put(to, 8 * b + 4 + j, high_half(q[j]));
        }
    }
    finish_scales(blocks, to);
}

static void unpack_q5_0(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    /* bits 8 i to 8 i + 7 of a word belong to bytes 0-3 of group 2 i and of group 2 i + 1 */
    const ints even = i_all32(0x08040201), odd = i_all32((int32_t)0x80402010), fifth = i_all8(16);
    collect_scales(row, at, blocks, sizeof(qmi_block_q5_0), to);
    for (int r = 0; r < ROWS; r++)
        for (int32_t b = 0; b < blocks; b++)
            memcpy(&to->words[b][r], row[r] + at + b * (int64_t)sizeof(qmi_block_q5_0) + offsetof(qmi_block_q5_0, high),
                   sizeof to->words[b][r]);
    for (int32_t b = 0; b < blocks; b++) {
        ints q[4], high = i_load(to->words[b]);
        load_rows(row, at + b * (int64_t)sizeof(qmi_block_q5_0) + (int64_t)offsetof(qmi_block_q5_0, q), q);
        for (int j = 0; j < 8; j++) {
            int8_t same[16];
            for (int i = 0; i < 16; i++)
                same[i] = (int8_t)(i / 4 * 4 + j / 2);
            ints four = j < 4 ? low_half(q[j]) : high_half(q[j - 4]);
            put(to, 8 * b + j, i_or(four, i_where(i_shuffle8(high, i_pattern(same)), j % 2 ? odd : even, fifth)));
        }
    }
    finish_scales(blocks, to);
}

/* The levels of IQ4_NL and IQ4_XS, a fact of the formats. */
static const int8_t iq4_levels[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

INLINE void put_levels(q8_weights *to, int32_t block, const ints q[4])
{
    const ints levels = i_xor(i_pattern(iq4_levels), i_all8(EIGHT_BITS_SIGNED ? 0 : -128));
    for (int j = 0; j < 4; j++) {
        put(to, 8 * block + j, i_shuffle8(levels, low_half(q[j])));
        put(to, 8 * block + 4 + j, i_shuffle8(levels, high_half(q[j])));
    }
}

static void unpack_iq4_nl(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    collect_scales(row, at, blocks, sizeof(qmi_block_iq4_nl), to);
    for (int32_t b = 0; b < blocks; b++) {
        ints q[4];
        load_rows(row, at + b * (int64_t)sizeof(qmi_block_iq4_nl) + (int64_t)offsetof(qmi_block_iq4_nl, q), q);
        put_levels(to, b, q);
    }
    finish_scales(blocks, to);
}

/* head: words 0 .. 3 of a block: d and scales_high; scales_low; what follows is not looked at */
INLINE void put_scales_iq4_xs(const ints head[4], q8_weights *to)
{
    floats d = f_low_halves(head[0]);
    UNROLL
    for (int j = 0; j < 8; j++) {
        ints low = i_and(i_right32(head[1], 4 * j), i_all32(15));
        ints high = i_and(i_right32(head[0], 16 + 2 * j), i_all32(3));
        ints scale = i_sub32(i_or(low, i_left32(high, 4)), i_all32(32));
        f_store(to->scales[j], f_mul(d, f_from(scale)));
    }
}

INLINE void scales_iq4_xs(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    (void)blocks; /* a whole super-block, here and below */
    ints head[4];
    load_rows(row, at, head);
    put_scales_iq4_xs(head, to);
}

static void unpack_iq4_xs(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    scales_iq4_xs(row, at, blocks, to);
    for (int32_t b = 0; b < blocks; b++) {
        ints q[4];
        load_rows(row, at + (int64_t)offsetof(qmi_block_iq4_xs, q) + 16 * b, q);
        put_levels(to, b, q);
    }
}

/* ---- Q4_K and Q5_K: super-blocks of 8 sub-blocks with scales and minima ---- */

/* Both begin with d, dmin and 12 bytes of scales and minima, laid out as qmi_q4_k_scale tells. */
INLINE void put_scales_super(const ints head[4], q8_weights *to)
{
    const ints six = i_all8(63), four = i_all8(15), top = i_all8(0x30);
    floats d = f_low_halves(head[0]), less = f_mul(f_low_halves(i_right32(head[0], 16)), f_all(-1));
    ints scales[2] = { i_and(head[1], six), i_or_of_and(i_and(head[3], four), i_right16(head[1], 2), top) };
    ints minima[2] = { i_and(head[2], six), i_or_of_and(i_and(i_right16(head[3], 4), four), i_right16(head[2], 2), top) };
    UNROLL
    for (int j = 0; j < 8; j++) {
        f_store(to->scales[j], f_mul(d, f_from(byte_of(scales[j / 4], j % 4))));
        f_store(to->minima[j], f_mul(less, f_from(byte_of(minima[j / 4], j % 4))));
    }
}

INLINE void scales_super(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    (void)blocks;
    ints head[4];
    load_rows(row, at, head);
    put_scales_super(head, to);
}

static void unpack_q4_k(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    scales_super(row, at, blocks, to);
    for (int c = 0; c < 4; c++) {
        ints q[8];
        load_rows(row, at + (int64_t)offsetof(qmi_block_q4_k, q) + 32 * c, q);
        load_rows(row, at + (int64_t)offsetof(qmi_block_q4_k, q) + 32 * c + 16, q + 4);
        for (int j = 0; j < 8; j++) {
            put(to, 16 * c + j, low_half(q[j]));
            put(to, 16 * c + 8 + j, high_half(q[j]));
        }
    }
}

static void unpack_q5_k(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    const ints fifth = i_all8(16);
    ints high[8];
    scales_super(row, at, blocks, to);
    load_rows(row, at + (int64_t)offsetof(qmi_block_q5_k, high), high);
    load_rows(row, at + (int64_t)offsetof(qmi_block_q5_k, high) + 16, high + 4);
    UNROLL
    for (int c = 0; c < 4; c++) {
        ints q[8];
        load_rows(row, at + (int64_t)offsetof(qmi_block_q5_k, q) + 32 * c, q);
        load_rows(row, at + (int64_t)offsetof(qmi_block_q5_k, q) + 32 * c + 16, q + 4);
        for (int j = 0; j < 8; j++) { /* bits 2 c and 2 c + 1 of `high` moved to bit 4 */
            ints even = c < 2 ? i_left16(high[j], 4 - 2 * c) : i_right16(high[j], 2 * c - 4);
            ints odd = c < 2 ? i_left16(high[j], 3 - 2 * c) : i_right16(high[j], 2 * c - 3);
            put(to, 16 * c + j, i_or_of_and(low_half(q[j]), even, fifth));
            put(to, 16 * c + 8 + j, i_or_of_and(high_half(q[j]), odd, fifth));
        }
    }
}

/* ---- Q6_K: 16 sub-blocks of 16 ---- */

INLINE void put_scales_q6_k(floats d, const ints scales[4], q8_weights *to)
{
    UNROLL
    for (int j = 0; j < 16; j++) {
        ints scale = i_signed_right32(i_left32(scales[j / 4], 24 - 8 * (j % 4)), 24);
        f_store(to->scales[j], f_mul(d, f_from(scale)));
    }
}

INLINE void scales_q6_k(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    ints last[4], scales[4];
    (void)blocks;
    load_rows(row, at + (int64_t)sizeof(qmi_block_q6_k) - 16, last); /* which ends with d */
    load_rows(row, at + (int64_t)offsetof(qmi_block_q6_k, scales), scales);
    put_scales_q6_k(f_low_halves(i_right32(last[3], 16)), scales, to);
}

static void unpack_q6_k(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to)
{
    const ints two = i_all8(0x30);
    scales_q6_k(row, at, blocks, to);
    for (int h = 0; h < 2; h++) {
        ints high[8];
        load_rows(row, at + (int64_t)offsetof(qmi_block_q6_k, high) + 32 * h, high);
        load_rows(row, at + (int64_t)offsetof(qmi_block_q6_k, high) + 32 * h + 16, high + 4);
        UNROLL
        for (int half = 0; half < 2; half++) { /* of the 64 low bytes */
            ints q[8];
            load_rows(row, at + 64 * h + 32 * half, q);
            load_rows(row, at + 64 * h + 32 * half + 16, q + 4);
            for (int j = 0; j < 8; j++) { /* the two bits: 0-1 and 4-5 of a byte of `high` for the first half, 2-3 and 6-7 */
                ints first = half ? i_left16(high[j], 2) : i_left16(high[j], 4);
                ints second = half ? i_right16(high[j], 2) : high[j];
                put(to, 32 * h + 8 * half + j, i_or_of_and(low_half(q[j]), first, two));
                put(to, 32 * h + 16 + 8 * half + j, i_or_of_and(high_half(q[j]), second, two));
            }
        }
    }
}
