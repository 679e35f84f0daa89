/* cuda/cuda_backend.cu, cuda_run.cu, embed.cu on the emulator: memory and its limits, uploads, batches of every shape with and
 * without graphs, and failures at each call of the CUDA runtime, after which nothing is left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
#include "cuda_backend.h"
}

#include "cuda_device.h"

enum { VOCABULARY = 50, WIDTH = 256, ROWS = 600, LAYERS = 6, TABLE_BYTES = VOCABULARY * WIDTH * 4 };

static const qmi_alloc plain = {};

/* ---- a program that only looks up rows: into slot 0, again for each layer ---- */

typedef struct scene {
    qmi_device *device;
    qmi_program program;
    qmi_op ops[LAYERS];
    qmi_workspace workspace;
    uint8_t data[TABLE_BYTES];       /* the table as in a file */
    float expected[VOCABULARY][WIDTH];
    int32_t tokens[ROWS];
    float rows[ROWS][WIDTH];
} scene;

static scene s;
static uint32_t random_state = 1;

static uint32_t random_bits(void) /* xorshift32 (Marsaglia 2003) */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void quiet_line(int32_t level, const char *line, void *user)
{
    (void)level, (void)line, (void)user;
}

static qmi_device_settings settings_of(int64_t memory_limit)
{
    qmi_device_settings settings = {};
    settings.alloc = plain;
    settings.memory_limit = memory_limit;
    settings.log.callback = quiet_line;
    return settings;
}

/* Random bytes of that format, whose numbers are all finite. */
static void fill_table(uint32_t type)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    const int64_t blocks = WIDTH / format->block * VOCABULARY;
    for (int64_t i = 0; i < blocks; i++)
        for (;;) {
            float values[256];
            bool fine = true;
            uint8_t *block = s.data + i * format->bytes;
            for (int j = 0; j < format->bytes; j++)
                block[j] = (uint8_t)(random_bits() >> 8);
            format->unpack(block, values, 1);
            for (int j = 0; j < format->block; j++)
                fine = fine && isfinite(values[j]);
            if (fine)
                break;
        }
    format->unpack(s.data, &s.expected[0][0], blocks);
}

static int32_t upload_table(uint32_t type, qmi_matrix *table)
{
    const qmi_matrix in_file = { type, WIDTH, VOCABULARY, 1, 0 };
    uint32_t kept = type;
    *table = in_file;
    int32_t code = qmi_cuda_upload_start(s.device, qmi_cuda_matrix_bytes(&kept, WIDTH, VOCABULARY), NULL, 0);
    if (code >= 0)
        code = qmi_cuda_upload(s.device, s.data, table);
    return code < 0 ? code : qmi_cuda_upload_finish(s.device, NULL, NULL, NULL);
}

/* Device, table, slots; all or a failure, which close_scene ends too. */
static int32_t open_scene(uint32_t type, const qmi_device_settings *settings)
{
    qmi_op embed = {};
    s.program.ops = s.ops;
    s.program.count = LAYERS;
    s.program.slot_count = 1;
    s.program.slots[0].name = "x";
    s.program.slots[0].width = WIDTH;
    s.workspace.rows = ROWS;
    s.workspace.outputs = 1;
    int32_t code = qmi_cuda_open(settings, &s.device);
    if (code >= 0)
        code = upload_table(type, &embed.embed.table);
    for (int i = 0; i < LAYERS; i++) {
        s.ops[i] = embed;
        s.ops[i].kind = QMI_OP_EMBED;
        s.ops[i].layer = i;
    }
    if (code >= 0)
        code = qmi_cuda_allocate(s.device, ROWS * WIDTH * 4, "x", &s.workspace.slots[0]);
    return code < 0 ? code : qmi_cuda_prepare(s.device, &s.program, ROWS);
}

static void close_scene(void)
{
    qmi_cuda_close(&s.device);
    assert_null(s.device);
    assert_int_equal(emulator_allocated(), 0);
}

/* A batch of `sequences` sequences of `each` rows, and its result in s.rows. */
static int32_t run(int32_t sequences, int32_t each, const int32_t *cancel)
{
    qmi_sequence list[ROWS] = {};
    qmi_batch batch = {};
    batch.count = sequences * each;
    batch.tokens = s.tokens;
    batch.sequence_count = sequences;
    batch.sequences = list;
    batch.cancel = cancel;
    for (int32_t i = 0; i < sequences; i++) {
        list[i].first = i * each;
        list[i].count = each;
        list[i].start = 3 * i;
    }
    for (int32_t i = 0; i < batch.count; i++)
        s.tokens[i] = (int32_t)(random_bits() % VOCABULARY);
    int32_t code = qmi_cuda_run(s.device, &s.program, &s.workspace, &batch);
    return code < 0 ? code : qmi_cuda_read(s.device, s.rows, s.workspace.slots[0], (int64_t)batch.count * WIDTH * 4);
}

static void run_and_check(int32_t sequences, int32_t each)
{
    assert_int_equal(run(sequences, each, NULL), QM_OK);
    for (int32_t i = 0; i < sequences * each; i++)
        for (int32_t j = 0; j < WIDTH; j++) {
            const float want = s.expected[s.tokens[i]][j];
            assert_true(fabsf(s.rows[i][j] - want) <= 1e-6f * fabsf(want));
        }
}

static void every_format_and_shape(void **state)
{
    (void)state;
    const uint32_t types[] = { QMI_TYPE_F32, QMI_TYPE_F16, QMI_TYPE_BF16, QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_Q5_0,
                               QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, QMI_TYPE_Q6_K, QMI_TYPE_IQ4_XS, QMI_TYPE_IQ4_NL, QMI_TYPE_Q2_K,
                               QMI_TYPE_MXFP4 };
    const qmi_device_settings settings = settings_of(0);
    for (uint32_t type : types) {
        fill_table(type);
        assert_int_equal(open_scene(type, &settings), QM_OK);
        for (int i = 0; i < 4; i++) /* launched, recorded, replayed */
            run_and_check(1, 1);
        run_and_check(7, 1);
        run_and_check(2, 3);
        close_scene();
    }
}

/* More shapes than graphs are kept, each often enough; and batches that need a larger room for their numbers. */
static void many_shapes(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    fill_table(QMI_TYPE_F16);
    assert_int_equal(open_scene(QMI_TYPE_F16, &settings), QM_OK);
    for (int again = 0; again < 3; again++) {
        for (int rows = 1; rows <= CUDA_GRAPHS + 4; rows++) {
            run_and_check(rows, 1);
            run_and_check(rows, 1);
        }
        run_and_check(1, ROWS);
        run_and_check(3, ROWS / 3);
        run_and_check(ROWS, 1);
    }
    close_scene();
}

static void join_normalises_both_halves(void **state)
{
    (void)state;
    static float hidden[3][WIDTH], weights[2][WIDTH], out[3][2 * WIDTH];
    const qmi_device_settings settings = settings_of(0);
    qmi_address norms = 0;
    fill_table(QMI_TYPE_Q4_K);
    assert_int_equal(open_scene(QMI_TYPE_Q4_K, &settings), QM_OK);
    for (int i = 0; i < WIDTH; i++) {
        for (int row = 0; row < 3; row++)
            hidden[row][i] = (float)(random_bits() % 1000) / 100 - 5;
        weights[0][i] = 1 + (float)i / 100;
        weights[1][i] = 2 - (float)i / 100;
    }
    qmi_op_join join = {};
    join.table = s.ops[0].embed.table;
    join.hidden = 1;
    join.out = 2;
    s.program.slot_count = 3;
    s.program.count = 1;
    s.program.slots[1].width = WIDTH;
    s.program.slots[2].width = 2 * WIDTH;
    s.ops[0].kind = QMI_OP_JOIN;
    s.ops[0].join = join;
    assert_int_equal(qmi_cuda_allocate(s.device, sizeof weights, "norms", &norms), QM_OK);
    assert_int_equal(qmi_cuda_write(s.device, norms, weights, sizeof weights), QM_OK);
    assert_int_equal(qmi_cuda_allocate(s.device, sizeof hidden, "hidden", &s.workspace.slots[1]), QM_OK);
    assert_int_equal(qmi_cuda_allocate(s.device, sizeof out, "out", &s.workspace.slots[2]), QM_OK);
    assert_int_equal(qmi_cuda_write(s.device, s.workspace.slots[1], hidden, sizeof hidden), QM_OK);
    for (int normed = 0; normed < 2; normed++) {
        qmi_op_join *op = &s.ops[0].join;
        if (normed) {
            const qmi_norm norm = { { WIDTH, norms }, 1e-6f }, hidden_norm = { { WIDTH, norms + sizeof *weights }, 1e-5f };
            op->norm = norm;
            op->hidden_norm = hidden_norm;
        }
        assert_int_equal(qmi_cuda_prepare(s.device, &s.program, ROWS), QM_OK);
        assert_int_equal(run(1, 3, NULL), QM_OK);
        assert_int_equal(qmi_cuda_read(s.device, out, s.workspace.slots[2], sizeof out), QM_OK);
        for (int row = 0; row < 3; row++)
            for (int half = 0; half < 2; half++) {
                const float *x = half ? hidden[row] : s.expected[s.tokens[row]];
                double sum = 0;
                for (int i = 0; i < WIDTH; i++)
                    sum += (double)x[i] * x[i];
                const double factor = 1 / sqrt(sum / WIDTH + (half ? 1e-5 : 1e-6));
                for (int i = 0; i < WIDTH; i++) {
                    const double want = normed ? x[i] * factor * weights[half][i] : x[i];
                    assert_true(fabs(out[row][half * WIDTH + i] - want) <= 2e-6 * fabs(want));
                }
            }
    }
    close_scene();
}

static void cancels(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    const int32_t now = 1, never = 0;
    fill_table(QMI_TYPE_F32);
    assert_int_equal(open_scene(QMI_TYPE_F32, &settings), QM_OK);
    assert_int_equal(run(1, ROWS, &never), QM_OK);
    assert_int_equal(run(1, ROWS, &now), QM_ERROR_CANCELLED);
    assert_int_equal(run(1, 1, &now), QM_ERROR_CANCELLED);
    run_and_check(1, ROWS);
    close_scene();
}

static void refuses_what_was_not_prepared(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    fill_table(QMI_TYPE_F32);
    assert_int_equal(open_scene(QMI_TYPE_F32, &settings), QM_OK);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, 4), QM_OK);
    run_and_check(1, 4);
    assert_int_equal(run(1, 5, NULL), QM_ERROR_STATE);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, 0), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, INT32_MAX), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, ROWS), QM_OK);
    s.workspace.rows = 4;
    assert_int_equal(run(1, 5, NULL), QM_ERROR_STATE);
    close_scene();
}

/* Corrections of keys of q2 are fitted elsewhere; with a window an op needs more scratch. */
static void refuses_fitting(void **state)
{
    (void)state;
    qmi_op op = {};
    op.kind = QMI_OP_ATTEND;
    op.attend.heads = op.attend.kv_heads = 1;
    op.attend.head_size = 64;
    qmi_program program = {};
    program.ops = &op;
    program.count = 1;
    const int64_t plain = qmi_cuda_scratch_bytes(&program, 4, 1);
    assert_true(plain >= 0);
    op.attend.window = 128;
    op.attend.key_type = op.attend.value_type = QMI_KV_Q2;
    assert_true(qmi_cuda_scratch_bytes(&program, 4, 1) > plain);
    op.attend.moments = 256;
    assert_int_equal(qmi_cuda_scratch_bytes(&program, 4, 1), QM_ERROR_UNSUPPORTED);
}

/* ---- memory ---- */

static void memory_is_clear_and_counted(void **state)
{
    (void)state;
    enum { BYTES = 3000001 };
    static uint8_t out[BYTES], in[BYTES];
    const qmi_device_settings unlimited = settings_of(0), limited = settings_of(8000000);
    qmi_address a, b;
    qmi_device_info before, after;
    assert_int_equal(qmi_cuda_open(&unlimited, &s.device), QM_OK);
    qmi_cuda_info(s.device, &before);
    assert_false(before.shares_host);
    assert_true(before.memory_free > 0 && before.memory_free <= before.memory_total);
    assert_int_equal(qmi_cuda_allocate(s.device, BYTES, "a", &a), QM_OK);
    assert_int_equal(qmi_cuda_allocate(s.device, BYTES, "b", &b), QM_OK);
    assert_int_equal(qmi_cuda_read(s.device, out, a, BYTES), QM_OK);
    for (int i = 0; i < BYTES; i++) {
        assert_int_equal(out[i], 0);
        in[i] = (uint8_t)(i % 251);
    }
    assert_int_equal(qmi_cuda_write(s.device, a, in, BYTES), QM_OK);
    assert_int_equal(qmi_cuda_copy(s.device, b, a, BYTES), QM_OK);
    assert_int_equal(qmi_cuda_clear(s.device, b + 10, 20), QM_OK);
    assert_int_equal(qmi_cuda_read(s.device, out, b, BYTES), QM_OK);
    memset(in + 10, 0, 20);
    assert_memory_equal(out, in, BYTES);
    qmi_cuda_release(s.device, a);
    qmi_cuda_release(s.device, 0);
    close_scene();

    assert_int_equal(qmi_cuda_open(&limited, &s.device), QM_OK);
    qmi_cuda_info(s.device, &before);
    assert_int_equal(before.memory_total, 8000000);
    assert_int_equal(qmi_cuda_allocate(s.device, BYTES, "a", &a), QM_OK);
    qmi_cuda_info(s.device, &after);
    assert_int_equal(after.memory_free, before.memory_free - BYTES);
    assert_int_equal(qmi_cuda_allocate(s.device, 2 * BYTES, "the second block", &b), QM_ERROR_MEMORY);
    assert_non_null(strstr(qmi_error_text(), "the second block"));
    assert_int_equal(b, 0);
    qmi_cuda_release(s.device, a);
    assert_int_equal(qmi_cuda_allocate(s.device, 2 * BYTES, "the second block", &b), QM_OK);
    assert_int_equal(qmi_cuda_allocate(s.device, -1, "nothing", &b), QM_ERROR_ARGUMENT);
    close_scene();
}

static void uploads_keep_to_what_was_said(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    qmi_matrix matrix = { QMI_TYPE_F32, WIDTH, VOCABULARY, 1, 0 };
    fill_table(QMI_TYPE_F32);
    assert_int_equal(qmi_cuda_open(&settings, &s.device), QM_OK);
    assert_int_equal(qmi_cuda_upload(s.device, s.data, &matrix), QM_ERROR_STATE);
    assert_int_equal(qmi_cuda_upload_start(s.device, TABLE_BYTES, NULL, 0), QM_OK);
    assert_int_equal(qmi_cuda_upload(s.device, s.data, &matrix), QM_OK);
    assert_int_equal(qmi_cuda_upload(s.device, s.data, &matrix), QM_ERROR_STATE);
    close_scene(); /* with the upload under way */
    uint32_t type = QMI_TYPE_Q4_1;
    assert_int_equal(qmi_cuda_matrix_bytes(&type, 64, 10), 64 * 10 * 4);
    assert_int_equal(type, QMI_TYPE_F32);
}

/* ---- cards and failures ---- */

static void wrong_cards(void **state)
{
    (void)state;
    qmi_device_settings settings = settings_of(0);
    for (settings.index = -1; settings.index < 100; settings.index += 100) {
        assert_int_equal(qmi_cuda_open(&settings, &s.device), QM_ERROR_DEVICE);
        assert_null(s.device);
        assert_non_null(strstr(qmi_error_text(), settings.index < 0 ? "no card -1" : "no card 99"));
    }
    assert_int_equal(emulator_allocated(), 0);
}

/* Everything from opening to a result, with one failure: an error, and nothing left. */
static int32_t work(const qmi_device_settings *settings)
{
    int32_t code = open_scene(QMI_TYPE_Q4_K, settings);
    for (int i = 0; i < 3 && code >= 0; i++)
        code = run(2, 1, NULL);
    if (code >= 0)
        code = run(1, 20, NULL);
    return code;
}

static void fails_at_each_call(bool allocation, int32_t expected)
{
    const qmi_device_settings settings = settings_of(0);
    int32_t code = expected;
    int64_t n = 1;
    fill_table(QMI_TYPE_Q4_K);
    for (; code < 0 && n < 10000; n++) {
        emulator_fail(allocation ? n : 0, allocation ? 0 : n);
        code = work(&settings);
        emulator_fail(0, 0);
        if (code < 0) {
            assert_int_equal(code, expected);
            assert_true(strlen(qmi_error_text()) > 0);
        }
        close_scene();
    }
    assert_int_equal(code, QM_OK);
    assert_true(n > 3);
}

static void fails_at_each_allocation(void **state)
{
    (void)state;
    fails_at_each_call(true, QM_ERROR_MEMORY);
}

/* A failure whose effect is only that work goes on without graphs is none. */
static void survives_each_failure(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    int64_t failed = 0;
    fill_table(QMI_TYPE_Q4_K);
    for (int64_t n = 1; n < 400; n++) {
        emulator_fail(0, n);
        int32_t code = work(&settings);
        emulator_fail(0, 0);
        failed += code < 0;
        assert_true(code == QM_OK || code == QM_ERROR_DEVICE);
        close_scene();
    }
    assert_true(failed > 20);
    assert_int_equal(work(&settings), QM_OK);
    close_scene();
}

/* Every call says that the card is lost, also when it would work again; closing frees everything. */
static void stays_lost(void **state)
{
    (void)state;
    const qmi_device_settings settings = settings_of(0);
    qmi_address address;
    qmi_device_info info;
    fill_table(QMI_TYPE_F32);
    assert_int_equal(open_scene(QMI_TYPE_F32, &settings), QM_OK);
    assert_int_equal(run(2, 1, NULL), QM_OK);
    emulator_lose(true);
    assert_int_equal(run(2, 1, NULL), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "is lost"));
    emulator_lose(false);
    assert_int_equal(run(2, 1, NULL), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "is lost"));
    assert_int_equal(qmi_cuda_allocate(s.device, 1, "a byte", &address), QM_ERROR_DEVICE);
    assert_int_equal(qmi_cuda_clear(s.device, s.workspace.slots[0], 1), QM_ERROR_DEVICE);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, 1), QM_ERROR_DEVICE);
    qmi_cuda_info(s.device, &info);
    assert_int_equal(info.memory_free, 0);
    close_scene();
    assert_int_equal(open_scene(QMI_TYPE_F32, &settings), QM_OK);
    emulator_lose(true);
    qmi_cuda_close(&s.device);
    emulator_lose(false);
    assert_int_equal(emulator_allocated(), 0);
}

/* ---- times ---- */

static int lines;

static void count_line(int32_t level, const char *line, void *user)
{
    (void)level, (void)user;
    lines += strncmp(line, "profile: ", 9) == 0;
}

static void profiles(void **state)
{
    (void)state;
    qmi_device_settings settings = settings_of(0);
    settings.profile = true;
    settings.log.callback = count_line;
    fill_table(QMI_TYPE_F16);
    assert_int_equal(open_scene(QMI_TYPE_F16, &settings), QM_OK);
    for (int i = 0; i < 3; i++)
        run_and_check(1, 1);
    run_and_check(1, ROWS);
    close_scene();
    assert_int_equal(lines, 4); /* few and many rows: a head and the one kind of op */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_and_shape), cmocka_unit_test(many_shapes), cmocka_unit_test(join_normalises_both_halves),
        cmocka_unit_test(cancels), cmocka_unit_test(refuses_what_was_not_prepared),
        cmocka_unit_test(refuses_fitting), cmocka_unit_test(memory_is_clear_and_counted),
        cmocka_unit_test(uploads_keep_to_what_was_said), cmocka_unit_test(wrong_cards),
        cmocka_unit_test(fails_at_each_allocation),
        cmocka_unit_test(survives_each_failure), cmocka_unit_test(stays_lost), cmocka_unit_test(profiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
