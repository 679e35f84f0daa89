/* Merging against the plainest implementation there is, on random merges and pieces; and cases reasoned by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "text/bpe.h"

static const qmi_alloc alloc = { 0 };

static void start(qmi_bpe *bpe, size_t merge_count)
{
    assert_int_equal(qmi_bpe_init(bpe, merge_count, &alloc), QM_OK);
    for (uint32_t byte = 0; byte < 256; byte++)
        bpe->byte_tokens[byte] = byte;
}

static void assert_tokens(const qmi_bpe *bpe, const char *piece, const int32_t *expected, size_t count)
{
    qmi_bpe_work work = { 0 };
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_bpe_encode(bpe, &work, piece, (int64_t)strlen(piece), &alloc, &ids), QM_OK);
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.data, expected, count * sizeof *expected);
    qmi_delete(&alloc, ids.data);
    qmi_bpe_work_clear(&work, &alloc);
}
#define ASSERT_TOKENS(bpe, piece, ...) \
    assert_tokens(bpe, piece, (const int32_t[]){ __VA_ARGS__ }, sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t))

static void test_lowest_index_first_then_leftmost(void **state)
{
    (void)state;
    qmi_bpe bpe = { 0 };
    start(&bpe, 4);
    qmi_bpe_add(&bpe, (qmi_merge){ 'b', 'c', 0, 300 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 'b', 1, 301 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 'a', 2, 302 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 300, 3, 303 });
    ASSERT_TOKENS(&bpe, "abc", 303);
    ASSERT_TOKENS(&bpe, "abd", 301, 'd');
    ASSERT_TOKENS(&bpe, "aaa", 302, 'a');
    ASSERT_TOKENS(&bpe, "aab", 'a', 301);
    ASSERT_TOKENS(&bpe, "aaabc", 302, 303);
    ASSERT_TOKENS(&bpe, "x", 'x');
    qmi_bpe_clear(&bpe, &alloc);
}

/* An operand may have a higher id than the result: only the index counts. And a later merge that makes an earlier pair possible
 * must still let that pair go first. */
static void test_order_is_by_index_not_by_id(void **state)
{
    (void)state;
    qmi_bpe bpe = { 0 };
    start(&bpe, 3);
    qmi_bpe_add(&bpe, (qmi_merge){ 900, 'c', 0, 301 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'c', 'd', 1, 300 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 'b', 2, 900 });
    ASSERT_TOKENS(&bpe, "abc", 301);
    ASSERT_TOKENS(&bpe, "abcd", 900, 300);
    ASSERT_TOKENS(&bpe, "abcabcd", 301, 900, 300);
    qmi_bpe_clear(&bpe, &alloc);
}

static void test_later_merge_of_a_pair_replaces(void **state)
{
    (void)state;
    qmi_bpe bpe = { 0 };
    start(&bpe, 3);
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 'b', 0, 300 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'b', 'c', 1, 301 });
    qmi_bpe_add(&bpe, (qmi_merge){ 'a', 'b', 2, 302 });
    ASSERT_TOKENS(&bpe, "abc", 'a', 301);
    ASSERT_TOKENS(&bpe, "ab", 302);
    qmi_bpe_clear(&bpe, &alloc);
}

static void test_byte_without_token(void **state)
{
    (void)state;
    qmi_bpe bpe = { 0 };
    start(&bpe, 0);
    bpe.byte_tokens['z'] = QMI_NO_TOKEN;
    char piece[100];
    memset(piece, 'y', sizeof piece);
    for (int64_t length = 1; length <= 100; length += 33) {
        piece[length - 1] = 'z';
        qmi_bpe_work work = { 0 };
        qmi_ids ids = { 0 };
        assert_int_equal(qmi_bpe_encode(&bpe, &work, piece, length, &alloc, &ids), QM_ERROR_TEXT);
        assert_non_null(strstr(qmi_error_text(), "0x7a"));
        assert_int_equal(ids.count, 0);
        piece[length - 1] = 'y';
        qmi_delete(&alloc, ids.data);
        qmi_bpe_work_clear(&work, &alloc);
    }
    qmi_bpe_clear(&bpe, &alloc);
}

/* ---- random merges ---- */

#define RANDOM_MERGES 60
#define PIECE_MAX 120

typedef struct random_case {
    qmi_bpe bpe;
    qmi_merge merges[RANDOM_MERGES];
    size_t count;
} random_case;

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* Tokens 'a' .. 'd' and 300 + i; ranks in random order, so that results may come before their operands. */
static void make_random(random_case *c, uint64_t *seed)
{
    memset(c, 0, sizeof *c);
    start(&c->bpe, RANDOM_MERGES);
    uint32_t known[4 + RANDOM_MERGES] = { 'a', 'b', 'c', 'd' }, known_count = 4, rank = 0;
    for (uint32_t i = 0; i < RANDOM_MERGES; i++) {
        qmi_merge merge = { known[next_random(seed) % known_count], known[next_random(seed) % known_count], rank, 300 + i };
        bool twice = false;
        for (size_t j = 0; j < c->count; j++)
            twice |= c->merges[j].left == merge.left && c->merges[j].right == merge.right;
        if (twice)
            continue;
        rank = (rank + 37) % 61; /* 61 is prime: each rank once */
        c->merges[c->count++] = merge;
        qmi_bpe_add(&c->bpe, merge);
        known[known_count++] = merge.result;
    }
}

static size_t merge_plainly(const random_case *c, const char *piece, size_t length, int32_t *tokens)
{
    for (size_t i = 0; i < length; i++)
        tokens[i] = (uint8_t)piece[i];
    for (;;) {
        const qmi_merge *best = NULL;
        size_t place = 0;
        for (size_t i = 0; i + 1 < length; i++) {
            for (size_t j = 0; j < c->count; j++) {
                const qmi_merge *m = &c->merges[j];
                if (m->left == (uint32_t)tokens[i] && m->right == (uint32_t)tokens[i + 1] && (!best || m->rank < best->rank)) {
                    best = m;
                    place = i;
                }
            }
        }
        if (!best)
            return length;
        tokens[place] = (int32_t)best->result;
        memmove(tokens + place + 1, tokens + place + 2, (length - place - 2) * sizeof *tokens);
        length--;
    }
}

/* Short and long pieces, with the cache and without. */
static void test_equals_the_plain_way(void **state)
{
    (void)state;
    uint64_t seed = 5;
    size_t merged = 0;
    for (int32_t round = 0; round < 40; round++) {
        random_case c;
        make_random(&c, &seed);
        qmi_bpe_work plain = { 0 }, cached = { 0 };
        assert_int_equal(qmi_bpe_work_init(&cached, 4096, &alloc), QM_OK);
        assert_true(cached.cache_size > 0);
        qmi_ids ids = { 0 };
        for (int32_t i = 0; i < 600; i++) {
            char piece[PIECE_MAX];
            int32_t expected[PIECE_MAX];
            size_t length = 1 + next_random(&seed) % (i % 3 == 0 ? PIECE_MAX : i % 3 == 1 ? 34 : 6);
            for (size_t j = 0; j < length; j++)
                piece[j] = (char)('a' + next_random(&seed) % 4);
            size_t count = merge_plainly(&c, piece, length, expected);
            merged += length - count;
            for (int32_t way = 0; way < 2; way++) {
                ids.count = 0;
                assert_int_equal(qmi_bpe_encode(&c.bpe, way ? &cached : &plain, piece, (int64_t)length, &alloc, &ids), QM_OK);
                assert_int_equal(ids.count, count);
                assert_memory_equal(ids.data, expected, count * sizeof *expected);
            }
        }
        qmi_delete(&alloc, ids.data);
        qmi_bpe_work_clear(&plain, &alloc);
        qmi_bpe_work_clear(&cached, &alloc);
        qmi_bpe_clear(&c.bpe, &alloc);
    }
    assert_true(merged > 100000); /* the test tested something */
}

/* Pieces that share their ends, their starts or both must not be taken for one another by the cache. */
static void test_cache_tells_pieces_apart(void **state)
{
    (void)state;
    qmi_bpe bpe = { 0 };
    start(&bpe, 0);
    qmi_bpe_work work = { 0 };
    assert_int_equal(qmi_bpe_work_init(&work, 4096, &alloc), QM_OK);
    for (int32_t length = 2; length <= 7; length++) { /* longer ones have more tokens than a slot: never cached here */
        for (int32_t place = 0; place < length; place++) {
            for (int32_t byte = 'a'; byte <= 'z'; byte++) {
                char piece[8] = "mmmmmmm";
                piece[place] = (char)byte;
                qmi_ids ids = { 0 };
                for (int32_t twice = 0; twice < 2; twice++) {
                    ids.count = 0;
                    assert_int_equal(qmi_bpe_encode(&bpe, &work, piece, length, &alloc, &ids), QM_OK);
                    assert_int_equal(ids.count, length);
                    for (int32_t i = 0; i < length; i++)
                        assert_int_equal(ids.data[i], piece[i]);
                }
                qmi_delete(&alloc, ids.data);
            }
        }
    }
    qmi_bpe_work_clear(&work, &alloc);
    qmi_bpe_clear(&bpe, &alloc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lowest_index_first_then_leftmost),
        cmocka_unit_test(test_order_is_by_index_not_by_id),
        cmocka_unit_test(test_later_merge_of_a_pair_replaces),
        cmocka_unit_test(test_byte_without_token),
        cmocka_unit_test(test_equals_the_plain_way),
        cmocka_unit_test(test_cache_tells_pieces_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
