/* Products with few tokens, as when decoding, for dot_q8_tmpl.h, which includes it: vectors of 512 bits.
 *
 * Of each row's piece the products are added up to what rows have in lanes only as far as it takes no lane to another 16 bytes;
 * ROWS rows together are then turned so that a vector has a sub-block of each row. The whole numbers are those of dot_q8_tmpl.h
 * and go the same way on.
 *
 * A piece is multiplied as four vectors of columns, w[0] .. w[3], whose order suits the format; the activations are packed in
 * the same one. What w[0], w[1] and w[2], w[3] have in one lane of 16 bytes is of one sub-block, but for Q8_0 and Q6_K. */

_Static_assert(!EIGHT_BITS_SIGNED, "the products are those of unsigned weights");

INLINE ints load_bytes(const void *from)
{
    return _mm512_loadu_si512(from);
}

INLINE __m256i load_half_vector(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

typedef struct q8_piece { /* of ROWS rows: the whole numbers of each token, and what scales are made of */
    _Alignas(64) int32_t numbers[TOKENS_FEW][ROWS][16];
    uint8_t heads[ROWS][16];
    _Alignas(32) uint16_t d[ROWS];
} q8_piece;

/* 16 bytes of each of four blocks from one on */
INLINE ints load_four(const uint8_t *q, int32_t block_bytes)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)q));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(q + block_bytes)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(q + 2 * block_bytes)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(q + 3 * block_bytes)), 3);
}

/* Units of 16 columns in the order of w[0] .. w[3]. */
static const uint8_t units_of_blocks[16] = { 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15 };
static const uint8_t units_of_super[16] = { 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15 };
#define UNITS_OF_BLOCKS units_of_blocks
#define UNITS_OF_SUPER units_of_super

/* ---- a piece of a row ---- */

INLINE void row_q4_0(const uint8_t *row, ints w[4])
{
    for (int i = 0; i < 2; i++) {
        const qmi_block_q4_0 *block = (const qmi_block_q4_0 *)row + 4 * i;
        ints pairs = load_four(block->q, sizeof *block);
        w[2 * i] = low_half(pairs);
        w[2 * i + 1] = high_half(pairs);
    }
}

INLINE void row_q5_0(const uint8_t *row, ints w[4])
{
    /* byte i of a block gets bit i of the four: bytes spread over 8 lanes, one bit of each kept, made 16 or 0 */
    const ints low = _mm512_set4_epi32(0x01010101, 0x01010101, 0, 0), high = i_add32(low, i_all8(2));
    const ints bits = _mm512_set1_epi64((int64_t)0x8040201008040201);
    for (int i = 0; i < 2; i++) {
        const qmi_block_q5_0 *block = (const qmi_block_q5_0 *)row + 4 * i;
        ints pairs = load_four(block->q, sizeof *block);
        ints fifth = load_four(block->high, sizeof *block); /* and 12 bytes more */
        w[2 * i] = i_or(low_half(pairs), i_where(i_shuffle8(fifth, low), bits, i_all8(16)));
        w[2 * i + 1] = i_or(high_half(pairs), i_where(i_shuffle8(fifth, high), bits, i_all8(16)));
    }
}

INLINE ints levels_of(ints q)
{
    return i_shuffle8(i_xor(i_pattern(iq4_levels), i_all8(-128)), q);
}

INLINE void row_iq4_nl(const uint8_t *row, ints w[4])
{
    for (int i = 0; i < 2; i++) {
        const qmi_block_iq4_nl *block = (const qmi_block_iq4_nl *)row + 4 * i;
        ints pairs = load_four(block->q, sizeof *block);
        w[2 * i] = levels_of(low_half(pairs));
        w[2 * i + 1] = levels_of(high_half(pairs));
    }
}

INLINE void row_iq4_xs(const uint8_t *row, ints w[4])
{
    for (int i = 0; i < 2; i++) {
        ints pairs = load_bytes(((const qmi_block_iq4_xs *)row)->q + 64 * i);
        w[2 * i] = levels_of(low_half(pairs));
        w[2 * i + 1] = levels_of(high_half(pairs));
    }
}

/* Of the four chunks of 64 columns: the bytes of 16 columns, whose low halves are of the even sub-block. */
INLINE void row_q4_k(const uint8_t *row, ints w[4])
{
    const uint8_t *q = ((const qmi_block_q4_k *)row)->q;
    ints a = load_bytes(q), b = load_bytes(q + 64);
    ints first = _mm512_shuffle_i64x2(a, b, 0x88), second = _mm512_shuffle_i64x2(a, b, 0xDD);
    w[0] = low_half(first);
    w[1] = low_half(second);
    w[2] = high_half(first);
    w[3] = high_half(second);
}

INLINE ints four_times(const uint8_t *from)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)from));
}

INLINE void row_q5_k(const uint8_t *row, ints w[4])
{
    const qmi_block_q5_k *block = (const qmi_block_q5_k *)row;
    /* bits 2 c and 2 c + 1 turned to bit 4 in the lane of chunk c; what comes from other bytes is masked off */
    const ints even = _mm512_set_epi32(30, 30, 30, 30, 0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4);
    const ints odd = _mm512_set_epi32(29, 29, 29, 29, 31, 31, 31, 31, 1, 1, 1, 1, 3, 3, 3, 3), fifth = i_all8(16);
    ints a = load_bytes(block->q), b = load_bytes(block->q + 64);
    ints first = _mm512_shuffle_i64x2(a, b, 0x88), second = _mm512_shuffle_i64x2(a, b, 0xDD);
    ints high = four_times(block->high), high_second = four_times(block->high + 16);
    w[0] = i_or_of_and(low_half(first), _mm512_rolv_epi32(high, even), fifth);
    w[1] = i_or_of_and(low_half(second), _mm512_rolv_epi32(high_second, even), fifth);
    w[2] = i_or_of_and(high_half(first), _mm512_rolv_epi32(high, odd), fifth);
    w[3] = i_or_of_and(high_half(second), _mm512_rolv_epi32(high_second, odd), fifth);
}

INLINE void row_q6_k(const uint8_t *row, ints w[4])
{
    const qmi_block_q6_k *block = (const qmi_block_q6_k *)row;
    /* likewise to bits 4 and 5, in the first and the second 32 columns of 64 */
    const ints low = _mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4);
    const ints top = _mm512_set_epi32(30, 30, 30, 30, 30, 30, 30, 30, 0, 0, 0, 0, 0, 0, 0, 0), two = i_all8(0x30);
    for (int h = 0; h < 2; h++) {
        ints pairs = load_bytes(block->low + 64 * h);
        ints high = _mm512_broadcast_i64x4(load_half_vector(block->high + 32 * h));
        w[2 * h] = i_or_of_and(low_half(pairs), _mm512_rolv_epi32(high, low), two);
        w[2 * h + 1] = i_or_of_and(high_half(pairs), _mm512_rolv_epi32(high, top), two);
    }
}

/* ---- its whole numbers ---- */

/* Pairs of lanes added, of a to the lower half and of b to the upper, within each 16 bytes. */
INLINE ints add_pairs(ints a, ints b)
{
    __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return i_add32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
}

/* The same of numbers that fit 16 bits. */
INLINE ints add_short_pairs(ints a, ints b)
{
    return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
}

/* bits: of the weights. A sum of 8 products is up to (2^bits - 1) * 127 * 8, which 16 bits hold when there are 5, and two of them
 * when there are 4. Two numbers of each of two sub-blocks in 16 bytes. */
INLINE ints sum_split(const int bits, const ints w[4], const ints x[4])
{
    ints a = i_dot(i_dot(i_zero(), w[0], x[0]), w[1], x[1]);
    ints b = i_dot(i_dot(i_zero(), w[2], x[2]), w[3], x[3]);
    return bits <= 5 ? add_short_pairs(a, b) : add_pairs(a, b);
}

/* 16 numbers. Of 6 bits, so a sum of 4 products fits 16 bits. */
INLINE ints sum_q6_k(const ints w[4], const ints x[4])
{
    ints sums[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        sums[i] = i_dot(i_zero(), w[i], x[i]);
    return add_pairs(add_short_pairs(sums[0], sums[1]), add_short_pairs(sums[2], sums[3]));
}

INLINE __m256i add_pairs_256(__m256i a, __m256i b)
{
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    __m256 even = _mm256_shuffle_ps(x, y, 0x88), odd = _mm256_shuffle_ps(x, y, 0xDD);
    return _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd));
}

/* Blocks of Q8_0 are not together, so vectors have one each: 8 numbers. */
INLINE __m256i sum_q8_0(const __m256i w[8], const __m256i x[8])
{
    __m256i sums[8];
    UNROLL
    for (int b = 0; b < 8; b++)
        sums[b] = _mm256_dpbusd_epi32(_mm256_setzero_si256(), w[b], x[b]);
    UNROLL
    for (int i = 0; i < 4; i++)
        sums[i] = add_pairs_256(sums[2 * i], sums[2 * i + 1]);
    __m256i low = add_pairs_256(sums[0], sums[1]), high = add_pairs_256(sums[2], sums[3]);
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

/* ---- what scales are made of: 16 bytes of each piece ---- */

/* The half floats of 8 blocks. */
INLINE __m128i halves_of(const uint8_t *row, const int block_bytes)
{
    __m128i a = _mm_cvtsi32_si128((int)qmi_load_u16(row)), b = _mm_cvtsi32_si128((int)qmi_load_u16(row + 4 * block_bytes));
    a = _mm_insert_epi16(a, (int)qmi_load_u16(row + block_bytes), 1);
    b = _mm_insert_epi16(b, (int)qmi_load_u16(row + 5 * block_bytes), 1);
    a = _mm_insert_epi16(a, (int)qmi_load_u16(row + 2 * block_bytes), 2);
    b = _mm_insert_epi16(b, (int)qmi_load_u16(row + 6 * block_bytes), 2);
    a = _mm_insert_epi16(a, (int)qmi_load_u16(row + 3 * block_bytes), 3);
    b = _mm_insert_epi16(b, (int)qmi_load_u16(row + 7 * block_bytes), 3);
    return _mm_unpacklo_epi64(a, b);
}

INLINE __m128i head_of_18(const uint8_t *row)
{
    return halves_of(row, 18);
}

INLINE __m128i head_q5_0(const uint8_t *row)
{
    return halves_of(row, sizeof(qmi_block_q5_0));
}

INLINE __m128i head_of_super(const uint8_t *row)
{
    return _mm_loadu_si128((const __m128i *)(const void *)row);
}

/* ---- a piece of ROWS rows ---- */

/* Where row r's head lies, so that its words are turned as load_rows turns them; Q8_0's numbers likewise. */
INLINE int32_t slot_of(int32_t r)
{
    return r % 4 * 4 + r / 4;
}

/* Where the sums of rows r (even) and r + 1 lie, so that turn_pairs gives ascending rows. */
INLINE int32_t pair_of(int32_t r)
{
    return r / 4 + r / 2 % 2 * 4;
}

INLINE void put_head(__m128i head, int32_t r, q8_piece *to)
{
    _mm_store_si128((__m128i *)(void *)to->heads[slot_of(r)], head);
}

typedef __m128i head_of(const uint8_t *row);
typedef void row_of(const uint8_t *row, ints w[4]);

INLINE void load_values(const q8_input *x, const int tokens, ints values[TOKENS_FEW][4])
{
    UNROLL
    for (int t = 0; t < tokens; t++)
        UNROLL
        for (int i = 0; i < 4; i++)
            values[t][i] = i_load(x[t].values + 64 * i);
}

INLINE void sum_rows_split(row_of *read, head_of *head, const int bits, const int32_t piece_bytes, const q8_few *few, int64_t at,
                           const uint8_t *ahead, const q8_input *x, const int tokens, q8_piece *to)
{
    ints values[TOKENS_FEW][4], w[4], even[TOKENS_FEW];
    load_values(x, tokens, values);
    for (int r = 0; r < ROWS; r += 2, ahead += 2 * piece_bytes) {
        const uint8_t *a = few->rows[r] + at, *b = few->rows[r + 1] + at;
        fetch(ahead, 2 * piece_bytes);
        put_head(head(a), r, to);
        read(a, w);
        UNROLL
        for (int t = 0; t < tokens; t++)
            even[t] = sum_split(bits, w, values[t]);
        put_head(head(b), r + 1, to);
        read(b, w);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            ints odd = sum_split(bits, w, values[t]);
            i_store(to->numbers[t][pair_of(r)], bits <= 4 ? add_short_pairs(even[t], odd) : add_pairs(even[t], odd));
        }
    }
}

typedef void rows_of(const q8_few *few, int64_t at, const uint8_t *ahead, const q8_input *x, const int tokens, q8_piece *to);

#define DEFINE_SUM_ROWS(stem, head, bits, piece_bytes) \
    INLINE void sum_rows_##stem(const q8_few *few, int64_t at, const uint8_t *ahead, const q8_input *x, const int tokens, \
                                q8_piece *to) \
    { \
        sum_rows_split(row_##stem, head, bits, piece_bytes, few, at, ahead, x, tokens, to); \
    }
DEFINE_SUM_ROWS(q4_0, head_of_18, 4, 8 * sizeof(qmi_block_q4_0))
DEFINE_SUM_ROWS(q5_0, head_q5_0, 5, 8 * sizeof(qmi_block_q5_0))
DEFINE_SUM_ROWS(iq4_nl, head_of_18, 8, 8 * sizeof(qmi_block_iq4_nl))
DEFINE_SUM_ROWS(iq4_xs, head_of_super, 8, sizeof(qmi_block_iq4_xs))
DEFINE_SUM_ROWS(q4_k, head_of_super, 4, sizeof(qmi_block_q4_k))
DEFINE_SUM_ROWS(q5_k, head_of_super, 5, sizeof(qmi_block_q5_k))

INLINE void sum_rows_q6_k(const q8_few *few, int64_t at, const uint8_t *ahead, const q8_input *x, const int tokens, q8_piece *to)
{
    ints values[TOKENS_FEW][4], w[4];
    load_values(x, tokens, values);
    for (int r = 0; r < ROWS; r++, ahead += sizeof(qmi_block_q6_k)) {
        const qmi_block_q6_k *block = (const qmi_block_q6_k *)(few->rows[r] + at);
        fetch(ahead, sizeof *block);
        put_head(head_of_super((const uint8_t *)block->scales), r, to);
        memcpy(&to->d[r], block->d, sizeof block->d);
        row_q6_k((const uint8_t *)block, w);
        UNROLL
        for (int t = 0; t < tokens; t++)
            i_store(to->numbers[t][r], sum_q6_k(w, values[t]));
    }
}

INLINE void sum_rows_q8_0(const q8_few *few, int64_t at, const uint8_t *ahead, const q8_input *x, const int tokens, q8_piece *to)
{
    const int32_t piece_bytes = 8 * sizeof(qmi_block_q8_0);
    __m256i values[TOKENS_FEW][8], w[8];
    UNROLL
    for (int t = 0; t < tokens; t++)
        UNROLL
        for (int b = 0; b < 8; b++)
            values[t][b] = load_half_vector(x[t].values + 32 * b);
    for (int r = 0; r < ROWS; r++, ahead += piece_bytes) {
        const qmi_block_q8_0 *block = (const qmi_block_q8_0 *)(few->rows[r] + at);
        fetch(ahead, piece_bytes);
        put_head(halves_of(block->d, sizeof *block), r, to);
        UNROLL
        for (int b = 0; b < 8; b++)
            w[b] = _mm256_xor_si256(load_half_vector(block[b].q), _mm256_set1_epi8(-128));
        UNROLL
        for (int t = 0; t < tokens; t++)
            _mm256_store_si256((__m256i *)(void *)(&to->numbers[t][0][0] + 8 * slot_of(r)), sum_q8_0(w, values[t]));
    }
}

/* ---- ROWS rows turned ---- */

/* Lane i of 16 bytes of four vectors to vector i. */
INLINE void turn_sixteens(ints v[4])
{
    ints a = _mm512_shuffle_i64x2(v[0], v[1], 0x44), b = _mm512_shuffle_i64x2(v[0], v[1], 0xEE);
    ints c = _mm512_shuffle_i64x2(v[2], v[3], 0x44), d = _mm512_shuffle_i64x2(v[2], v[3], 0xEE);
    v[0] = _mm512_shuffle_i64x2(a, c, 0x88);
    v[1] = _mm512_shuffle_i64x2(a, c, 0xDD);
    v[2] = _mm512_shuffle_i64x2(b, d, 0x88);
    v[3] = _mm512_shuffle_i64x2(b, d, 0xDD);
}

/* Word i of each 16 bytes of four vectors to vector i. */
INLINE void turn_words(ints v[4])
{
    ints a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    ints c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

INLINE void turn_heads(const q8_piece *piece, ints words[4])
{
    for (int i = 0; i < 4; i++)
        words[i] = i_load(piece->heads[4 * i]);
    turn_words(words);
}

/* The 16 bytes i of a sum_split's pairs have the sub-blocks first_step * i and, `second` behind, the other one. */
INLINE void turn_pairs(const int32_t (*numbers)[16], const int first_step, const int second, ints products[16])
{
    ints a[4], b[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        a[i] = i_load(numbers[i]);
        b[i] = i_load(numbers[4 + i]);
    }
    turn_sixteens(a);
    turn_sixteens(b);
    UNROLL
    for (int i = 0; i < 4; i++) {
        __m512 x = _mm512_castsi512_ps(a[i]), y = _mm512_castsi512_ps(b[i]);
        products[first_step * i] = _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88));
        products[first_step * i + second] = _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD));
    }
}

INLINE void turn_q8_0(const int32_t (*numbers)[16], ints products[16])
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        ints a = i_load(numbers[2 * i]), b = i_load(numbers[2 * i + 1]);
        products[i] = _mm512_shuffle_i64x2(a, b, 0x88);
        products[4 + i] = _mm512_shuffle_i64x2(a, b, 0xDD);
    }
    turn_words(products);
    turn_words(products + 4);
}

INLINE void turn_q6_k(const int32_t (*numbers)[16], ints products[16])
{
    ints lane[4][4]; /* [of a row's vector][row / 4 .. of the same row % 4] */
    UNROLL
    for (int i = 0; i < 4; i++) {
        ints v[4];
        UNROLL
        for (int j = 0; j < 4; j++)
            v[j] = i_load(numbers[i + 4 * j]);
        turn_sixteens(v);
        UNROLL
        for (int j = 0; j < 4; j++)
            lane[j][i] = v[j];
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        turn_words(lane[j]);
        UNROLL
        for (int i = 0; i < 4; i++)
            products[4 * i + j] = lane[j][i];
    }
}

/* ---- from there on as multiply_few ---- */

typedef void scales_of(const q8_piece *piece, q8_weights *to);

INLINE void scales_of_blocks(const q8_piece *piece, q8_weights *to)
{
    ints halves[4];
    turn_heads(piece, halves);
    UNROLL
    for (int i = 0; i < 4; i++) {
        f_store(to->scales[2 * i], f_low_halves(halves[i]));
        f_store(to->scales[2 * i + 1], f_low_halves(i_right32(halves[i], 16)));
    }
}

INLINE void scales_of_iq4_xs(const q8_piece *piece, q8_weights *to)
{
    ints head[4];
    turn_heads(piece, head);
    put_scales_iq4_xs(head, to);
}

INLINE void scales_of_super(const q8_piece *piece, q8_weights *to)
{
    ints head[4];
    turn_heads(piece, head);
    put_scales_super(head, to);
}

INLINE void scales_of_q6_k(const q8_piece *piece, q8_weights *to)
{
    ints scales[4];
    turn_heads(piece, scales);
    put_scales_q6_k(f_halves(piece->d), scales, to);
}

typedef void turn_of(const int32_t (*numbers)[16], ints products[16]);

INLINE void turn_blocks(const int32_t (*numbers)[16], ints products[16])
{
    turn_pairs(numbers, 1, 4, products);
}

INLINE void turn_super(const int32_t (*numbers)[16], ints products[16])
{
    turn_pairs(numbers, 2, 1, products);
}

INLINE void scale_piece(turn_of *turn, const bool of_16, const bool minima, const q8_weights *w, const int32_t (*numbers)[16],
                        const q8_input *x, const int32_t sub_blocks, floats *sum, floats *less)
{
    const int most = of_16 ? 16 : 8;
    ints products[16];
    turn(numbers, products);
    UNROLL
    for (int s = 0; s < most; s++) {
        if (s >= sub_blocks)
            break;
        ints whole = minima ? products[s] : i_add32(products[s], i_all32(x->start[s]));
        *sum = f_fma(f_from(whole), f_mul(f_load(w->scales[s]), f_all(x->scales[s * (of_16 ? 16 : 32) / 32])), *sum);
    }
    UNROLL
    for (int s = 0; s < 8; s++) {
        if (!minima || s >= sub_blocks)
            break;
        *less = f_fma(f_load(w->minima[s]), f_all(x->sums[s]), *less);
    }
}

INLINE void multiply_rows(rows_of *sum_rows, scales_of *scales, turn_of *turn, const bool of_16, const bool minima,
                          const int32_t piece_bytes, const q8_few *few, const int tokens, q8_sums *to)
{
    q8_piece piece;
    q8_weights weights;
    floats sum[TOKENS_FEW], less[TOKENS_FEW];
    const q8_input *x = few->inputs;
    for (int t = 0; t < tokens; t++) {
        sum[t] = f_load(to[t].sum);
        less[t] = f_load(to[t].less);
    }
    for (int32_t p = 0; p < few->pieces; p++, x += tokens) {
        sum_rows(few, p * piece_bytes, few->ahead + p * ROWS * piece_bytes, x, tokens, &piece);
        scales(&piece, &weights);
        for (int t = 0; t < tokens; t++)
            scale_piece(turn, of_16, minima, &weights, piece.numbers[t], &x[t], few->blocks * (of_16 ? 2 : 1), &sum[t], &less[t]);
    }
    for (int t = 0; t < tokens; t++) {
        f_store(to[t].sum, sum[t]);
        f_store(to[t].less, less[t]);
    }
}

#define DEFINE_MULTIPLY_ROWS(stem, scales, turn, of_16, minima, piece_bytes) \
    static void multiply_rows_##stem(const q8_few *few, int32_t tokens, q8_sums *sums) \
    { \
        if (tokens == 1) \
            multiply_rows(sum_rows_##stem, scales, turn, of_16, minima, piece_bytes, few, 1, sums); \
        else \
            multiply_rows(sum_rows_##stem, scales, turn, of_16, minima, piece_bytes, few, 2, sums); \
    }
DEFINE_MULTIPLY_ROWS(q8_0, scales_of_blocks, turn_q8_0, false, false, 8 * sizeof(qmi_block_q8_0))
DEFINE_MULTIPLY_ROWS(q4_0, scales_of_blocks, turn_blocks, false, false, 8 * sizeof(qmi_block_q4_0))
DEFINE_MULTIPLY_ROWS(q5_0, scales_of_blocks, turn_blocks, false, false, 8 * sizeof(qmi_block_q5_0))
DEFINE_MULTIPLY_ROWS(iq4_nl, scales_of_blocks, turn_blocks, false, false, 8 * sizeof(qmi_block_iq4_nl))
DEFINE_MULTIPLY_ROWS(iq4_xs, scales_of_iq4_xs, turn_blocks, false, false, sizeof(qmi_block_iq4_xs))
DEFINE_MULTIPLY_ROWS(q4_k, scales_of_super, turn_super, false, true, sizeof(qmi_block_q4_k))
DEFINE_MULTIPLY_ROWS(q5_k, scales_of_super, turn_super, false, true, sizeof(qmi_block_q5_k))
DEFINE_MULTIPLY_ROWS(q6_k, scales_of_q6_k, turn_q6_k, true, false, sizeof(qmi_block_q6_k))
