/* Products with few tokens, as when decoding, for dot_q8_tmpl.h, which includes it:
 * vectors of 256 bits.
 *
 * Unpacking rows into lanes is not worth while then, and memory gives most to who reads row after row. So the whole numbers of
 * each row's sub-blocks are made along the row, of vectors of 32 columns, and turned into lanes when ROWS rows have theirs: the
 * same numbers, which go the same way on.
 *
 * An instance defines DOT_BYTES(u, s): 8 x int32, sums of 4 products of unsigned bytes u and signed bytes s; no sum of two
 * exceeds 32767. */

INLINE __m256i load_bytes(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

/* 32 halves of 16 bytes: the low ones, then the high ones */
INLINE __m256i half_bytes(const uint8_t q[16])
{
    __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)q);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(pairs), _mm_srli_epi16(pairs, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

INLINE __m256i low_bytes(__m256i pairs)
{
    return _mm256_and_si256(pairs, _mm256_set1_epi8(15));
}

INLINE __m256i high_bytes(__m256i pairs)
{
    return low_bytes(_mm256_srli_epi16(pairs, 4));
}

/* ---- a piece of a row: w[b] has the columns of block b, as q8_weights has its bytes ---- */

INLINE void row_q8_0(const uint8_t *row, __m256i w[8])
{
    for (int32_t b = 0; b < 8; b++)
        w[b] = _mm256_xor_si256(load_bytes(((const qmi_block_q8_0 *)row)[b].q), _mm256_set1_epi8(EIGHT_BITS_SIGNED ? 0 : -128));
}

INLINE void row_q4_0(const uint8_t *row, __m256i w[8])
{
    for (int32_t b = 0; b < 8; b++)
        w[b] = half_bytes(((const qmi_block_q4_0 *)row)[b].q);
}

INLINE void row_q5_0(const uint8_t *row, __m256i w[8])
{
    /* byte i gets bit i of the four: each byte spread over 8 lanes, one bit of it kept, made 16 or 0 */
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bits = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    for (int32_t b = 0; b < 8; b++) {
        const qmi_block_q5_0 *block = (const qmi_block_q5_0 *)row + b;
        __m256i high = _mm256_shuffle_epi8(_mm256_set1_epi32((int)qmi_load_u32(block->high)), spread);
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bits), bits);
        w[b] = _mm256_or_si256(half_bytes(block->q), _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
}

INLINE __m256i levels_of(__m256i q)
{
    __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)iq4_levels));
    return _mm256_shuffle_epi8(_mm256_xor_si256(levels, _mm256_set1_epi8(EIGHT_BITS_SIGNED ? 0 : -128)), q);
}

INLINE void row_iq4_nl(const uint8_t *row, __m256i w[8])
{
    for (int32_t b = 0; b < 8; b++)
        w[b] = levels_of(half_bytes(((const qmi_block_iq4_nl *)row)[b].q));
}

INLINE void row_iq4_xs(const uint8_t *row, __m256i w[8])
{
    for (int32_t b = 0; b < 8; b++)
        w[b] = levels_of(half_bytes(((const qmi_block_iq4_xs *)row)->q + 16 * b));
}

INLINE void row_q4_k(const uint8_t *row, __m256i w[8])
{
    for (int c = 0; c < 4; c++) {
        __m256i pairs = load_bytes(((const qmi_block_q4_k *)row)->q + 32 * c);
        w[2 * c] = low_bytes(pairs);
        w[2 * c + 1] = high_bytes(pairs);
    }
}

INLINE void row_q5_k(const uint8_t *row, __m256i w[8])
{
    const qmi_block_q5_k *block = (const qmi_block_q5_k *)row;
    const __m256i fifth = _mm256_set1_epi8(16), high = load_bytes(block->high);
    for (int c = 0; c < 4; c++) { /* bits 2 c and 2 c + 1 of `high` moved to bit 4 */
        __m256i pairs = load_bytes(block->q + 32 * c);
        __m256i even = c < 2 ? _mm256_slli_epi16(high, 4 - 2 * c) : _mm256_srli_epi16(high, 2 * c - 4);
        __m256i odd = c < 2 ? _mm256_slli_epi16(high, 3 - 2 * c) : _mm256_srli_epi16(high, 2 * c - 3);
        w[2 * c] = _mm256_or_si256(low_bytes(pairs), _mm256_and_si256(even, fifth));
        w[2 * c + 1] = _mm256_or_si256(high_bytes(pairs), _mm256_and_si256(odd, fifth));
    }
}

INLINE void row_q6_k(const uint8_t *row, __m256i w[8])
{
    const qmi_block_q6_k *block = (const qmi_block_q6_k *)row;
    const __m256i two = _mm256_set1_epi8(0x30);
    for (int h = 0; h < 2; h++) {
        __m256i a = load_bytes(block->low + 64 * h), b = load_bytes(block->low + 64 * h + 32);
        __m256i high = load_bytes(block->high + 32 * h);
        w[4 * h] = _mm256_or_si256(low_bytes(a), _mm256_and_si256(_mm256_slli_epi16(high, 4), two));
        w[4 * h + 1] = _mm256_or_si256(low_bytes(b), _mm256_and_si256(_mm256_slli_epi16(high, 2), two));
        w[4 * h + 2] = _mm256_or_si256(high_bytes(a), _mm256_and_si256(high, two));
        w[4 * h + 3] = _mm256_or_si256(high_bytes(b), _mm256_and_si256(_mm256_srli_epi16(high, 2), two));
    }
}

/* ---- its whole numbers ---- */

/* Pairs of lanes added, of a to the lower half and of b to the upper, within each 16 bytes. */
INLINE __m256i add_pairs(__m256i a, __m256i b)
{
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    __m256 even = _mm256_shuffle_ps(x, y, 0x88), odd = _mm256_shuffle_ps(x, y, 0xDD);
    return _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd));
}

/* The same of numbers that fit 16 bits, where it is half the shuffles. */
INLINE __m256i add_short_pairs(__m256i a, __m256i b)
{
    return _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1));
}

/* bits: of the weights. With n, a sum of 4 products is up to (2^n - 1) * 127 * 4: 16 bits hold it when n is 6, and two when 5.
 * to[b]: sums of block b; or of its first and second 16 columns, which go to to[8 (b / 4) + b % 4] and 4 behind it. */
INLINE void sum_blocks(const bool of_16, const int bits, const __m256i w[8], const q8_input *x, int32_t *to)
{
    __m256i sums[8];
    UNROLL
    for (int b = 0; b < 8; b++) {
        __m256i values = load_bytes(x->values + 32 * b);
        if (bits == 8 && EIGHT_BITS_SIGNED)
            sums[b] = DOT_BYTES(_mm256_abs_epi8(w[b]), _mm256_sign_epi8(values, w[b]));
        else
            sums[b] = DOT_BYTES(w[b], values);
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        sums[i] = bits <= 6 ? add_short_pairs(sums[2 * i], sums[2 * i + 1]) : add_pairs(sums[2 * i], sums[2 * i + 1]);
    __m256i low = bits <= 5 ? add_short_pairs(sums[0], sums[1]) : add_pairs(sums[0], sums[1]);
    __m256i high = bits <= 5 ? add_short_pairs(sums[2], sums[3]) : add_pairs(sums[2], sums[3]);
    if (of_16) {
        _mm256_storeu_si256((__m256i *)(void *)to, low);
        _mm256_storeu_si256((__m256i *)(void *)(to + 8), high);
    } else {
        _mm256_storeu_si256((__m256i *)(void *)to, _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                                                                    _mm256_permute2x128_si256(low, high, 0x31)));
    }
}

#define UNITS_OF_BLOCKS NULL
#define UNITS_OF_SUPER NULL

/* ---- from there on as multiply_few ---- */

#define DEFINE_BLOCK_SCALES(stem) \
    INLINE void scales_##stem(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to) \
    { \
        collect_scales(row, at, blocks, sizeof(qmi_block_##stem), to); \
        finish_scales(blocks, to); \
    }
DEFINE_BLOCK_SCALES(q8_0)
DEFINE_BLOCK_SCALES(q4_0)
DEFINE_BLOCK_SCALES(q5_0)
DEFINE_BLOCK_SCALES(iq4_nl)

INLINE void scale_piece(const bool of_16, const bool minima, const q8_weights *w, const int32_t (*numbers)[16], const q8_input *x,
                        const int32_t sub_blocks, floats *sum, floats *less)
{
    const uint8_t *row[ROWS];
    ints products[16];
    const int most = of_16 ? 16 : 8;
    for (int r = 0; r < ROWS; r++)
        row[r] = (const uint8_t *)numbers[r];
    for (int i = 0; i < (of_16 ? 4 : 2); i++)
        load_rows(row, 16 * i, products + 4 * i);
    UNROLL
    for (int s = 0; s < most; s++) {
        if (s >= sub_blocks)
            break;
        ints whole = products[of_16 ? 8 * (s / 8) + 4 * (s % 2) + s / 2 % 4 : s];
        whole = minima ? whole : i_add32(whole, i_all32(x->start[s]));
        *sum = f_fma(f_from(whole), f_mul(f_load(w->scales[s]), f_all(x->scales[s * (of_16 ? 16 : 32) / 32])), *sum);
    }
    UNROLL
    for (int s = 0; s < 8; s++) {
        if (!minima || s >= sub_blocks)
            break;
        *less = f_fma(f_load(w->minima[s]), f_all(x->sums[s]), *less);
    }
}

typedef void row_of(const uint8_t *row, __m256i w[8]);
typedef void unpack_scales(const uint8_t *const row[ROWS], int64_t at, int32_t blocks, q8_weights *to);

INLINE void multiply_rows(row_of *read, unpack_scales *scales, const bool of_16, const bool minima, const int bits,
                          const int32_t piece_bytes, const q8_few *few, const int tokens, q8_sums *to)
{
    q8_weights weights;
    _Alignas(32) int32_t numbers[TOKENS_FEW][ROWS][16];
    floats sum[TOKENS_FEW], less[TOKENS_FEW];
    const q8_input *x = few->inputs;
    const uint8_t *ahead = few->ahead;
    for (int t = 0; t < tokens; t++) {
        sum[t] = f_load(to[t].sum);
        less[t] = f_load(to[t].less);
    }
    for (int32_t p = 0; p < few->pieces; p++, x += tokens) {
        for (int r = 0; r < ROWS; r++, ahead += piece_bytes) {
            __m256i w[8];
            fetch(ahead, piece_bytes);
            read(few->rows[r] + p * piece_bytes, w);
            for (int32_t t = 0; t < tokens; t++)
                sum_blocks(of_16, bits, w, &x[t], numbers[t][r]);
        }
        scales(few->rows, p * piece_bytes, few->blocks, &weights);
        for (int t = 0; t < tokens; t++)
            scale_piece(of_16, minima, &weights, numbers[t], &x[t], few->blocks * (of_16 ? 2 : 1), &sum[t], &less[t]);
    }
    for (int t = 0; t < tokens; t++) {
        f_store(to[t].sum, sum[t]);
        f_store(to[t].less, less[t]);
    }
}

#define DEFINE_MULTIPLY_ROWS(stem, scales, of_16, minima, bits, piece_bytes) \
    static void multiply_rows_##stem(const q8_few *few, int32_t tokens, q8_sums *sums) \
    { \
        if (tokens == 1) \
            multiply_rows(row_##stem, scales, of_16, minima, bits, piece_bytes, few, 1, sums); \
        else \
            multiply_rows(row_##stem, scales, of_16, minima, bits, piece_bytes, few, 2, sums); \
    }
DEFINE_MULTIPLY_ROWS(q8_0, scales_q8_0, false, false, 8, 8 * sizeof(qmi_block_q8_0))
DEFINE_MULTIPLY_ROWS(q4_0, scales_q4_0, false, false, 4, 8 * sizeof(qmi_block_q4_0))
DEFINE_MULTIPLY_ROWS(q5_0, scales_q5_0, false, false, 5, 8 * sizeof(qmi_block_q5_0))
DEFINE_MULTIPLY_ROWS(iq4_nl, scales_iq4_nl, false, false, 8, 8 * sizeof(qmi_block_iq4_nl))
DEFINE_MULTIPLY_ROWS(iq4_xs, scales_iq4_xs, false, false, 8, sizeof(qmi_block_iq4_xs))
DEFINE_MULTIPLY_ROWS(q4_k, scales_super, false, true, 4, sizeof(qmi_block_q4_k))
DEFINE_MULTIPLY_ROWS(q5_k, scales_super, false, true, 5, sizeof(qmi_block_q5_k))
DEFINE_MULTIPLY_ROWS(q6_k, scales_q6_k, true, false, 6, sizeof(qmi_block_q6_k))
