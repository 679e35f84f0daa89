/* Maps of shared memory, parts by share, and the cut of a small program: what each member has, worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "exchange/cut.h"
#include "exchange/slices.h"
#include "quant/quant.h"

static const qmi_alloc heap;

/* Records of 100 bytes: [10, 30) and [60, 70) are the first member's, [30, 60) the second's, and [60, 70) the second's too. */
static void maps_pieces(void **state)
{
    (void)state;
    qmi_piece_map map = { .period = 100 };
    qmi_piece_run run;
    assert_int_equal(qmi_piece_map_add(&map, &heap, 0, 10, 20), QM_OK);
    assert_int_equal(qmi_piece_map_add(&map, &heap, 0, 60, 10), QM_OK);
    assert_int_equal(qmi_piece_map_add(&map, &heap, 1, 30, 30), QM_OK);
    assert_int_equal(qmi_piece_map_add(&map, &heap, 1, 60, 10), QM_OK);
    assert_int_equal(map.members[1].count, 1); /* neighbours are one */
    static const int64_t below[][3] = { { 0, 0, 0 }, { 10, 0, 0 }, { 15, 5, 0 }, { 30, 20, 0 }, { 45, 20, 15 }, { 65, 25, 35 },
                                        { 99, 30, 40 }, { 100, 30, 40 }, { 265, 60 + 25, 80 + 35 } };
    for (size_t i = 0; i < sizeof below / sizeof *below; i++)
        for (int32_t m = 0; m < 2; m++)
            assert_int_equal(qmi_piece_map_below(&map, m, below[i][0]), below[i][1 + m]);
    assert_true(qmi_piece_map_find(&map, 0, 15, 200, &run));
    assert_int_equal(run.offset, 15);
    assert_int_equal(run.bytes, 15);
    assert_int_equal(run.member_at, 5);
    assert_true(qmi_piece_map_find(&map, 0, 75, 45, &run)); /* of the next record, and its beginning only */
    assert_int_equal(run.offset, 110);
    assert_int_equal(run.bytes, 10);
    assert_int_equal(run.member_at, 30);
    assert_false(qmi_piece_map_find(&map, 0, 75, 35, &run));
    assert_false(qmi_piece_map_find(&map, 2, 0, 100, &run));
    qmi_piece_map_free(&map, &heap);
}

static void cuts_by_share(void **state)
{
    (void)state;
    const qmi_sharing sharing = { .members = 4, .shares = { 7, 1, 2, 1 } };
    const qmi_stage stage = { .member = 1, .members = 3 };
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_sharing_cut(&sharing, &stage, 100, 10, bounds); /* 2.5 of 10, 7.5 of 10, rounded up from a half */
    assert_int_equal(bounds[0], 0);
    assert_int_equal(bounds[1], 30);
    assert_int_equal(bounds[2], 80);
    assert_int_equal(bounds[3], 100);
    qmi_sharing_cut(&sharing, &stage, 7, 4, bounds); /* two units, of which the last is not whole */
    assert_int_equal(bounds[1], 4);
    assert_int_equal(bounds[2], 7);
    assert_int_equal(bounds[3], 7);
}

static void gathers_slices(void **state)
{
    (void)state;

    float part[4];
    const float vector[6] = { 0, 1, 2, 3, 4, 5 };
    qmi_slice slice = { .whole = { QMI_TYPE_Q8_0, 64, 3, 2, 0 }, .rows = { 2, { { 0, 1 }, { 2, 1 } } },
                        .columns = { 1, { { 32, 32 } } } };
    uint8_t all[2 * 3 * 2 * 34], got[2 * 2 * 34];
    int64_t offset;

    for (size_t i = 0; i < sizeof all; i++)
        all[i] = (uint8_t)(i / 34); /* each block is its number */
    assert_int_equal(qmi_slice_bytes(&slice), sizeof got);
    assert_false(qmi_slice_is_run(&slice, &offset));
    qmi_slice_gather(&slice, all, got);
    static const uint8_t blocks[4] = { 1, 5, 7, 11 };
    for (size_t i = 0; i < sizeof got; i++)
        assert_int_equal(got[i], blocks[i / 34]);
    memset(got, 0, sizeof got);
    assert_int_equal(qmi_slice_gather_rows(&slice, all, NULL, 1, 2, got), QM_OK); /* over the end of the first matrix */
    for (size_t i = 0; i < sizeof got; i++)
        assert_int_equal(got[i], i < 34 ? 5 : i < 68 ? 7 : 0);
    slice.columns = (qmi_ranges){ 1, { { 0, 64 } } };
    uint8_t whole_rows[3 * 68];
    assert_int_equal(qmi_slice_gather_rows(&slice, all, NULL, 1, 3, whole_rows), QM_OK);
    static const uint8_t run[6] = { 4, 5, 6, 7, 10, 11 };
    for (size_t i = 0; i < sizeof whole_rows; i++)
        assert_int_equal(whole_rows[i], run[i / 34]);
    const qmi_slice rows = { .whole = { QMI_TYPE_Q8_0, 64, 3, 1, 0 }, .rows = { 1, { { 1, 2 } } },
                             .columns = { 1, { { 0, 64 } } } };
    assert_true(qmi_slice_is_run(&rows, &offset));
    assert_int_equal(offset, 68);
    const qmi_slice floats = { .whole = { .columns = 2, .rows = 3, .count = 1 }, .vector = true,
                               .rows = { 2, { { 0, 1 }, { 2, 1 } } }, .columns = { 1, { { 0, 2 } } } };
    qmi_slice_gather(&floats, vector, part);
    static const float expected[4] = { 0, 1, 4, 5 };
    assert_memory_equal(part, expected, sizeof expected);
}

/* A delta layer of 4 key heads and 8 value heads, which go with key heads 0 1 2 3 0 1 2 3, of size 2 each; and a dense half of
 * 512 rows whose second matrix has blocks of 256. Two members, the second with three quarters. */
enum { D = 8, CHANNELS = 2 * 4 * 2 + 8 * 2 };

static void build(qmi_program *p)
{
    qmi_slot x = qmi_program_slot(p, "residual", D, false), qkv = qmi_program_slot(p, "qkv", CHANNELS, false);
    qmi_slot z = qmi_program_slot(p, "z", 16, false), beta = qmi_program_slot(p, "beta", 8, false);
    qmi_slot alpha = qmi_program_slot(p, "alpha", 8, false), mixed = qmi_program_slot(p, "recalled", 16, false);
    qmi_slot inner = qmi_program_slot(p, "inner", 512, false), hidden = qmi_program_slot(p, "hidden", D, false);
    qmi_slot logits = qmi_program_slot(p, "logits", 64, true);
    const qmi_op ops[] = {
        { .kind = QMI_OP_EMBED, .layer = -1, .embed = { { QMI_TYPE_F32, D, 64, 1, 1000 }, x } },
        { .kind = QMI_OP_PROJECT, .project = { .in = x, .count = 4, .out = { qkv, z, beta, alpha }, .matrix = {
            { QMI_TYPE_F32, D, CHANNELS, 1, 2000 }, { QMI_TYPE_F32, D, 16, 1, 3000 }, { QMI_TYPE_F32, D, 8, 1, 4000 },
            { QMI_TYPE_F32, D, 8, 1, 5000 } } } },
        { .kind = QMI_OP_DELTA, .delta = { .qkv = qkv, .z = z, .beta = beta, .alpha = alpha, .out = mixed, .key_heads = 4,
            .value_heads = 8, .key_size = 2, .value_size = 2, .taps = 3, .convolution = { CHANNELS * 3, 6000 },
            .time_bias = { 8, 7000 }, .decay = { 8, 8000 } } },
        { .kind = QMI_OP_PROJECT_ADD, .project_add = { { QMI_TYPE_F32, 16, D, 1, 9000 }, mixed, x, true } },
        { .kind = QMI_OP_GLU, .glu = { .in = x, .gate = { QMI_TYPE_F32, D, 512, 1, 10000 },
            .up = { QMI_TYPE_F32, D, 512, 1, 11000 }, .out = inner } },
        { .kind = QMI_OP_PROJECT_ADD, .project_add = { { QMI_TYPE_Q4_K, 512, D, 1, 12000 }, inner, x, true } },
        { .kind = QMI_OP_LOGITS, .layer = -1, .logits = { .in = x, .output = { QMI_TYPE_F32, D, 64, 1, 1000 }, .hidden = hidden,
            .logits = logits } },
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        assert_int_equal(qmi_program_append(p, &heap, &ops[i]), QM_OK);
}

static void assert_rows(const qmi_cut *cut, int32_t member, qmi_address matrix, const qmi_range *wanted, int32_t count)
{
    const qmi_part_of *part = &cut->parts[member];
    for (size_t i = 0; i < part->slice_count; i++)
        if (part->slices[i].whole.data == matrix) {
            assert_int_equal(part->slices[i].rows.count, count);
            assert_memory_equal(part->slices[i].rows.list, wanted, (size_t)count * sizeof *wanted);
            return;
        }
    fail_msg("member %d has nothing of %d", member, (int)matrix);
}

static void cuts_a_program(void **state)
{
    (void)state;
    qmi_program program = { 0 };
    const qmi_program *const programs[] = { &program };
    qmi_cut_maps maps;
    qmi_cut cut;
    const qmi_sharing sharing = { .members = 2, .shares = { 1, 3 }, .stage_count = 1, .stages = { { 0, 1, 0, 2 } },
                                  .expert_member = -1, .alike = true };
    const qmi_cut_sizes sizes = { .recurrent_bytes = (2 * CHANNELS + 8 * 2 * 2) * 4, .logits_bytes = 64 * 4 };
    build(&program);
    assert_int_equal(qmi_cut_map(programs, 1, &sharing, &sizes, &heap, &maps), QM_OK);
    assert_int_equal(qmi_cut_make(&program, &sharing, &maps, &heap, &cut), QM_OK);
    /* key head 0, with value heads 0 and 4; key heads 1 to 3, with 1 to 3 and 5 to 7 */
    assert_rows(&cut, 0, 2000, (qmi_range[]){ { 0, 2 }, { 8, 2 }, { 16, 2 }, { 24, 2 } }, 4);
    assert_rows(&cut, 1, 2000, (qmi_range[]){ { 2, 6 }, { 10, 6 }, { 18, 6 }, { 26, 6 } }, 4);
    assert_rows(&cut, 0, 3000, (qmi_range[]){ { 0, 2 }, { 8, 2 } }, 2);
    assert_rows(&cut, 1, 5000, (qmi_range[]){ { 1, 3 }, { 5, 3 } }, 2);
    assert_rows(&cut, 1, 10000, (qmi_range[]){ { 256, 256 } }, 1); /* a quarter of two blocks is rounded up */
    assert_rows(&cut, 0, 10000, (qmi_range[]){ { 0, 256 } }, 1);
    assert_int_equal(cut.parts[0].slots[1].width, 8);
    assert_int_equal(cut.parts[1].slots[1].width, 24);
    /* Steps: embed, sum; to the first sum of the layer, sum; dense half, sum; logits */
    static const qmi_step_kind first[] = { QMI_STEP_RUN, QMI_STEP_SUM, QMI_STEP_RUN, QMI_STEP_SUM, QMI_STEP_RUN, QMI_STEP_SUM,
                                           QMI_STEP_RUN };
    assert_int_equal(cut.parts[0].step_count, 7);
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(cut.parts[0].steps[i].kind, first[i]);
    assert_int_equal(cut.parts[1].steps[0].kind, QMI_STEP_CLEAR);
    assert_true(cut.parts[0].programs[1].ops[2].project_add.add);
    assert_false(cut.parts[1].programs[0].ops[2].project_add.add);
    /* The state: of two taps' columns 8 and 24 of 32, then 2 and 6 of 8 heads of 2 x 2, then the logits at a multiple of 64 */
    assert_int_equal(qmi_piece_map_below(&maps.state, 0, sizes.recurrent_bytes), (2 * 8 + 2 * 4) * 4 + 32);
    assert_int_equal(qmi_piece_map_below(&maps.state, 1, sizes.recurrent_bytes), (2 * 24 + 6 * 4) * 4 + 32);
    qmi_cut_free(&cut, &heap);
    qmi_cut_maps_free(&maps, &heap);
    qmi_program_free(&program, &heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_pieces),
        cmocka_unit_test(cuts_by_share),
        cmocka_unit_test(gathers_slices),
        cmocka_unit_test(cuts_a_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
