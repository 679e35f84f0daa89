/* cuda/cuda_lend.cu and cuda_help.cu on the emulator: experts that stay in the host's memory give the bits of experts on the
 * card, whatever the batch, after a cancelled run and after failures, of which none leaves anything behind; and about the same
 * numbers where the host computes them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
#include "cuda_backend.h"
}

#include <vector>
#include "cuda_device.h"

enum { WIDTH = 64, INNER = 32, EXPERTS = 6, TOP = 2, ROWS = 12, LAYERS = 3, SHARED = 3 };
enum { HIDDEN, ROUTE, OUT };

typedef std::vector<uint8_t> bytes;

typedef struct scene {
    bytes gate[LAYERS], up[LAYERS], down[LAYERS]; /* as in a file */
    bytes shared[LAYERS][SHARED];
    bool has_shared;
    const qmi_helper *helper;                     /* or NULL */
    std::vector<float> hidden, route;
    qmi_device *device;
    qmi_op ops[LAYERS];
    qmi_program program;
    qmi_workspace workspace;
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

static float random_float(void)
{
    return (float)(random_bits() % 2001) / 1000 - 1;
}

/* Q8_0 [count][rows][columns] of small numbers. */
static bytes random_matrix(int columns, int rows, int count)
{
    bytes out((size_t)(count * rows * columns / 32 * 34));
    for (size_t i = 0; i < out.size(); i++)
        out[i] = i % 34 == 0 ? 0 : i % 34 == 1 ? 0x20 : (uint8_t)(random_bits() >> 8); /* the scale is 2^-7 */
    return out;
}

static int set_up(void **)
{
    for (int layer = 0; layer < LAYERS; layer++) {
        s.gate[layer] = random_matrix(WIDTH, INNER, EXPERTS);
        s.up[layer] = random_matrix(WIDTH, INNER, EXPERTS);
        s.down[layer] = random_matrix(INNER, WIDTH, EXPERTS);
        s.shared[layer][0] = random_matrix(WIDTH, INNER, 1);
        s.shared[layer][1] = random_matrix(WIDTH, INNER, 1);
        s.shared[layer][2] = random_matrix(INNER, WIDTH, 1);
    }
    s.hidden.resize(ROWS * WIDTH);
    s.route.resize(ROWS * (2 * TOP + 1));
    for (float &x : s.hidden)
        x = random_float();
    for (int row = 0; row < ROWS; row++) {
        float *route = &s.route[(size_t)row * (2 * TOP + 1)];
        route[0] = (float)(random_bits() % EXPERTS);
        route[1] = (float)(((int)route[0] + 1 + (int)(random_bits() % (EXPERTS - 1))) % EXPERTS);
        route[2] = 0.75f;
        route[3] = 0.25f;
        route[4] = 0.5f;
    }
    return 0;
}

static int32_t give(const bytes &data, int columns, int rows, int count, bool lent, qmi_matrix *out)
{
    const qmi_matrix in_file = { QMI_TYPE_Q8_0, columns, rows, count, 0 };
    *out = in_file;
    return (lent ? qmi_cuda_lend : qmi_cuda_upload)(s.device, data.data(), out);
}

/* The layers from `lent_from` on are lent. */
static int32_t open_scene(int lent_from)
{
    qmi_device_settings settings = {};
    const int64_t widths[] = { WIDTH, 2 * TOP + 1, WIDTH };
    uint32_t type = QMI_TYPE_Q8_0;
    int32_t code = qmi_cuda_open(&settings, &s.device);
    const int64_t layer = 2 * qmi_cuda_matrix_bytes(&type, WIDTH, EXPERTS * INNER) +
                          qmi_cuda_matrix_bytes(&type, INNER, EXPERTS * WIDTH);
    const int64_t shared = 2 * qmi_cuda_matrix_bytes(&type, WIDTH, INNER) + qmi_cuda_matrix_bytes(&type, INNER, WIDTH);
    if (code >= 0)
        code = qmi_cuda_upload_start(s.device, lent_from * layer + (s.has_shared ? LAYERS * shared : 0), NULL, 0);
    if (code >= 0 && s.helper)
        qmi_cuda_set_helper(s.device, s.helper);
    s.program.ops = s.ops;
    s.program.count = LAYERS;
    s.program.slot_count = 3;
    s.workspace.rows = ROWS;
    for (int i = 0; i < LAYERS && code >= 0; i++) {
        qmi_op op = {};
        op.kind = QMI_OP_EXPERTS;
        op.layer = i;
        op.experts.hidden = HIDDEN;
        op.experts.route = ROUTE;
        op.experts.out = OUT;
        op.experts.top = TOP;
        code = give(s.gate[i], WIDTH, INNER, EXPERTS, i >= lent_from, &op.experts.gate);
        if (code >= 0)
            code = give(s.up[i], WIDTH, INNER, EXPERTS, i >= lent_from, &op.experts.up);
        if (code >= 0)
            code = give(s.down[i], INNER, WIDTH, EXPERTS, i >= lent_from, &op.experts.down);
        if (code >= 0 && s.has_shared)
            code = give(s.shared[i][0], WIDTH, INNER, 1, false, &op.experts.shared_gate);
        if (code >= 0 && s.has_shared)
            code = give(s.shared[i][1], WIDTH, INNER, 1, false, &op.experts.shared_up);
        if (code >= 0 && s.has_shared)
            code = give(s.shared[i][2], INNER, WIDTH, 1, false, &op.experts.shared_down);
        s.ops[i] = op;
    }
    if (code >= 0)
        code = qmi_cuda_upload_finish(s.device, NULL, NULL, NULL);
    for (int i = 0; i < 3 && code >= 0; i++) {
        s.program.slots[i].width = widths[i];
        code = qmi_cuda_allocate(s.device, ROWS * widths[i] * 4, "a slot", &s.workspace.slots[i]);
    }
    return code < 0 ? code : qmi_cuda_prepare(s.device, &s.program, ROWS);
}

static void close_scene(void)
{
    qmi_cuda_close(&s.device);
    assert_int_equal(emulator_allocated(), 0);
}

static int32_t run(int32_t rows, bool single, const int32_t *cancel, std::vector<float> *out)
{
    qmi_sequence list[ROWS] = {};
    int32_t tokens[ROWS] = {};
    qmi_batch batch = {};
    const std::vector<float> zeros((size_t)(rows * WIDTH));
    batch.count = rows;
    batch.tokens = tokens;
    batch.sequences = list;
    batch.sequence_count = single ? rows : 1;
    batch.cancel = cancel;
    for (int32_t i = 0; i < batch.sequence_count; i++) {
        list[i].first = i;
        list[i].count = single ? 1 : rows;
    }
    int32_t code = qmi_cuda_write(s.device, s.workspace.slots[HIDDEN], s.hidden.data(), rows * WIDTH * 4);
    if (code >= 0)
        code = qmi_cuda_write(s.device, s.workspace.slots[ROUTE], s.route.data(), rows * (2 * TOP + 1) * 4);
    if (code >= 0)
        code = qmi_cuda_write(s.device, s.workspace.slots[OUT], zeros.data(), rows * WIDTH * 4);
    if (code >= 0)
        code = qmi_cuda_run(s.device, &s.program, &s.workspace, &batch);
    out->resize((size_t)(rows * WIDTH));
    return code < 0 ? code : qmi_cuda_read(s.device, out->data(), s.workspace.slots[OUT], rows * WIDTH * 4);
}

static const int32_t shapes[] = { 1, 8, ROWS };

static void same_bits(void **)
{
    std::vector<float> expected[2][3], got;
    assert_int_equal(open_scene(LAYERS), QM_OK);
    for (int single = 0; single < 2; single++)
        for (int i = 0; i < 3; i++)
            assert_int_equal(run(shapes[i], single, NULL, &expected[single][i]), QM_OK);
    close_scene();
    double sum = 0;
    for (float x : expected[0][2])
        sum += fabs(x);
    assert_true(sum > 1);
    for (int from : { 0, LAYERS - 1 }) {
        assert_int_equal(open_scene(from), QM_OK);
        for (int again = 0; again < 2; again++)
            for (int single = 0; single < 2; single++)
                for (int i = 0; i < 3; i++) {
                    assert_int_equal(run(shapes[i], single, NULL, &got), QM_OK);
                    assert_memory_equal(got.data(), expected[single][i].data(), got.size() * sizeof(float));
                }
        close_scene();
    }
}

static void goes_on_after_a_cancelled_run(void **)
{
    const int32_t now = 1;
    std::vector<float> expected, got;
    assert_int_equal(open_scene(0), QM_OK);
    assert_int_equal(run(ROWS, false, NULL, &expected), QM_OK);
    assert_int_equal(run(ROWS, false, &now, &got), QM_ERROR_CANCELLED);
    assert_int_equal(run(ROWS, false, NULL, &got), QM_OK);
    assert_memory_equal(got.data(), expected.data(), got.size() * sizeof(float));
    close_scene();
}

/* Each call of the runtime fails once, whichever thread makes it: an error or none, and the next run is right unless the card is
 * lost. */
static void survives_each_failure(void **)
{
    std::vector<float> expected, got;
    int failed = 0, recovered = 0;
    assert_int_equal(open_scene(1), QM_OK);
    assert_int_equal(run(9, false, NULL, &expected), QM_OK);
    for (int allocation = 0; allocation < 2; allocation++)
        for (int64_t n = 1; n < (allocation ? 4 : 60); n += allocation ? 1 : 4) {
            emulator_fail(allocation ? n : 0, allocation ? 0 : n);
            const int32_t code = run(9, false, NULL, &got);
            emulator_fail(0, 0);
            assert_true(code == QM_OK || code == QM_ERROR_DEVICE || code == QM_ERROR_MEMORY);
            failed += code < 0;
            if (code >= 0)
                assert_memory_equal(got.data(), expected.data(), got.size() * sizeof(float));
            const int32_t again = run(9, false, NULL, &got);
            recovered += code < 0 && again >= 0;
            if (again >= 0) {
                assert_memory_equal(got.data(), expected.data(), got.size() * sizeof(float));
            } else {
                close_scene();
                assert_int_equal(open_scene(1), QM_OK);
            }
        }
    assert_true(failed > 8 && recovered > 4);
    close_scene();
}

static void memory_is_counted(void **)
{
    qmi_device_info before, after;
    uint32_t type = QMI_TYPE_Q8_0;
    const int64_t layer = 2 * qmi_cuda_matrix_bytes(&type, WIDTH, EXPERTS * INNER) +
                          qmi_cuda_matrix_bytes(&type, INNER, EXPERTS * WIDTH);
    assert_int_equal(open_scene(LAYERS), QM_OK);
    const int64_t whole = s.device->memory_used;
    close_scene();
    assert_int_equal(open_scene(0), QM_OK);
    qmi_cuda_info(s.device, &before);
    assert_int_equal(s.device->memory_used, whole - LAYERS * layer + CUDA_LEND_ROOMS * layer);
    assert_int_equal(qmi_cuda_prepare(s.device, &s.program, ROWS), QM_OK);
    qmi_cuda_info(s.device, &after);
    assert_int_equal(before.memory_free, after.memory_free);
    close_scene();
}

/* ---- the host computes ---- */

#define PATIENCE_NS INT64_C(60000000000)

typedef struct host {
    int computed;              /* experts */
    int questions, fail_at;    /* number of the question that fails, from 1 on; 0: none */
    int32_t code;              /* with which */
} host;

static float weight_of(const bytes &matrix, int64_t row, int columns, int column)
{
    const uint8_t *block = &matrix[(size_t)((row * columns + column) / 32 * 34)];
    return (float)(int8_t)block[2 + column % 32] / 128;
}

static float dot_of(const bytes &matrix, int64_t row, const float *x, int columns)
{
    double sum = 0;
    for (int c = 0; c < columns; c++)
        sum += weight_of(matrix, row, columns, c) * (double)x[c];
    return (float)sum;
}

static int32_t compute(void *user, const qmi_program *program, size_t op, const qmi_help *help)
{
    host *h = (host *)user;
    assert_ptr_equal(program, &s.program);
    if (++h->questions == h->fail_at)
        return h->code == QM_ERROR_CANCELLED ? h->code : qmi_fail(h->code, "the host is unwell");
    for (int row = 0; row < help->rows; row++) {
        const float *hidden = help->hidden + row * WIDTH, *route = help->route + row * (2 * TOP + 1);
        float act[INNER], *out = help->out + row * WIDTH;
        memset(out, 0, WIDTH * sizeof *out);
        for (int k = 0; k < TOP; k++) {
            const int64_t expert = (int64_t)route[k];
            if (route[k] < 0)
                continue;
            h->computed++;
            for (int i = 0; i < INNER; i++) {
                const float gate = dot_of(s.gate[op], expert * INNER + i, hidden, WIDTH);
                act[i] = gate / (1 + expf(-gate)) * dot_of(s.up[op], expert * INNER + i, hidden, WIDTH);
            }
            for (int i = 0; i < WIDTH; i++)
                out[i] += route[TOP + k] * dot_of(s.down[op], expert * WIDTH + i, act, INNER);
        }
    }
    return QM_OK;
}

static void assert_near(const std::vector<float> &got, const std::vector<float> &expected)
{
    double error = 0, size = 0;
    assert_int_equal(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); i++) {
        error += pow(got[i] - expected[i], 2);
        size += pow(expected[i], 2);
    }
    assert_true(size > 1 && error < 1e-3 * size);
}

/* One row, some, and more than the kernels for few take; one row a sequence is recorded when it comes for the second time. The
 * largest batch is none of the host's. */
static void host_computes(void **)
{
    std::vector<float> expected[2][3], got;
    host h = {};
    const qmi_helper helper = { compute, &h, ROWS - 1, 0, PATIENCE_NS };
    for (int shared = 0; shared < 2; shared++) {
        const int32_t own_shapes[] = { 1, ROWS - 1, ROWS };
        s.has_shared = shared;
        assert_int_equal(open_scene(LAYERS), QM_OK);
        for (int i = 0; i < 3; i++)
            assert_int_equal(run(own_shapes[i], i == 0, NULL, &expected[shared][i]), QM_OK);
        close_scene();
        s.helper = &helper;
        assert_int_equal(open_scene(1), QM_OK);
        for (int i : { 0, 0, 0, 1, 2, 0 }) {
            h.questions = 0;
            assert_int_equal(run(own_shapes[i], i == 0, NULL, &got), QM_OK);
            assert_int_equal(h.questions, own_shapes[i] == ROWS ? 0 : LAYERS - 1);
            assert_near(got, expected[shared][i]);
        }
        close_scene();
        s.helper = NULL;
    }
    s.has_shared = false;
    assert_true(expected[0][0] != expected[1][0]);
}

/* Be it in a run that is launched or in a recorded one: its code comes out, and the next run is right. */
static void host_fails(void **)
{
    std::vector<float> expected, got;
    host h = {};
    const qmi_helper helper = { compute, &h, ROWS, 0, PATIENCE_NS };
    s.helper = &helper;
    assert_int_equal(open_scene(0), QM_OK);
    for (int again = 0; again < 3; again++)
        for (int32_t code : { QM_ERROR_MEMORY, QM_ERROR_CANCELLED }) {
            h.questions = 0;
            h.fail_at = 2;
            h.code = code;
            assert_int_equal(run(1, true, NULL, &got), code);
            assert_string_equal(qmi_error_text(), code == QM_ERROR_CANCELLED ? "cancelled" : "the host is unwell");
            h.fail_at = 0;
            assert_int_equal(run(1, true, NULL, &got), QM_OK);
            if (expected.empty())
                expected = got;
            assert_memory_equal(got.data(), expected.data(), got.size() * sizeof(float));
        }
    close_scene();
    s.helper = NULL;
}

/* Each call of the runtime fails once in a recorded run: an error or none, and no one waits for ever. */
static void host_is_not_left_waiting(void **)
{
    std::vector<float> expected, got;
    host h = {};
    const qmi_helper helper = { compute, &h, ROWS, 0, PATIENCE_NS };
    int failed = 0;
    s.helper = &helper;
    assert_int_equal(open_scene(0), QM_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(run(1, true, NULL, &expected), QM_OK);
    for (int64_t n = 1; n < 12; n++) {
        emulator_fail(0, n);
        const int32_t code = run(1, true, NULL, &got);
        emulator_fail(0, 0);
        assert_true(code == QM_OK || code == QM_ERROR_DEVICE);
        failed += code < 0;
        if (run(1, true, NULL, &got) < 0) {
            close_scene();
            assert_int_equal(open_scene(0), QM_OK);
            assert_int_equal(run(1, true, NULL, &got), QM_OK);
        }
        assert_memory_equal(got.data(), expected.data(), got.size() * sizeof(float));
    }
    assert_true(failed > 1);
    close_scene();
    s.helper = NULL;
}

/* Two of six experts have room on the card. What is chosen again and again comes there, later in place of others, and whoever
 * computes it, the results are about the same. */
static void hot_experts_come(void **)
{
    std::vector<float> expected[2], got;
    const std::vector<float> route = s.route;
    host h = {};
    uint32_t type = QMI_TYPE_Q8_0;
    const int64_t slots = 3, layer = 2 * qmi_cuda_matrix_bytes(&type, WIDTH, slots * INNER) +
                                     qmi_cuda_matrix_bytes(&type, INNER, slots * WIDTH);
    const qmi_helper helper = { compute, &h, ROWS, LAYERS * (layer + EXPERTS * (int64_t)sizeof(int32_t)), PATIENCE_NS };
    s.has_shared = true;
    for (int phase = 0; phase < 2; phase++) { /* first 0 and 1 are chosen, then 4 and 5 */
        s.route[0] = phase ? 5 : 0;
        s.route[1] = phase ? 4 : 1;
        assert_int_equal(open_scene(LAYERS), QM_OK);
        assert_int_equal(run(1, true, NULL, &expected[phase]), QM_OK);
        close_scene();
    }
    s.helper = &helper;
    assert_int_equal(open_scene(0), QM_OK);
    assert_int_equal(s.device->prepared[0].lent.cache.slots, slots - 1);
    for (int phase = 0; phase < 2; phase++) {
        s.route[0] = phase ? 5 : 0;
        s.route[1] = phase ? 4 : 1;
        for (int i = 0; i == 0 || h.computed > (phase ? LAYERS * TOP - 1 : 0); i++) {
            h.computed = 0;
            assert_true(i < 100);
            assert_int_equal(run(1, true, NULL, &got), QM_OK);
            assert_near(got, expected[phase]);
            while (s.device->lender.filler && !cuda_uploader_has_read(s.device->lender.filler))
                qmi_os_yield();
        }
        assert_int_equal(run(ROWS, false, NULL, &got), QM_OK); /* some are there */
        got.resize(WIDTH);
        assert_near(got, expected[phase]);
    }
    close_scene();
    s.helper = NULL;
    s.has_shared = false;
    s.route = route;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits),
        cmocka_unit_test(goes_on_after_a_cancelled_run),
        cmocka_unit_test(survives_each_failure),
        cmocka_unit_test(memory_is_counted),
        cmocka_unit_test(host_computes),
        cmocka_unit_test(host_fails),
        cmocka_unit_test(host_is_not_left_waiting),
        cmocka_unit_test(hot_experts_come),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
