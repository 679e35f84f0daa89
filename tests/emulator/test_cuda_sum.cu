/* cuda/exchange_sum.cu on the emulator: two to four cards, or one card as several, each with a host's thread of its own, get the
 * same sums, of few values and of many, one after the other; who gives up, or does not come, leaves nobody waiting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include "cuda_device.h"
#include "cuda_exchange.h"

extern "C" {
#include "cuda_backend.h"
}

#define RANKS_MOST 4
#define SECOND INT64_C(1000000000)

typedef struct scene {
    const qmi_joint *joint;
    int32_t ranks;
    uint8_t id[QMI_JOINT_ID];
    int64_t timeout_ns;
    int32_t cancel;
    int sums;                    /* how many of `counts` */
} scene;

typedef struct rank {
    scene *of;
    int32_t index, absent_from; /* absent_from: the sum that it does not come to */
    qmi_device *device;
    qmi_address from, to;        /* taken before: freeing memory waits for the card, and so may wait for another rank's sums */
    qmi_joint_end *end;
    qmi_os_thread *thread;
    int32_t code;
    bool right, zeros;
    char text[QMI_ERROR_SIZE];
} rank;

#define LARGEST (33 * 4096 + 1) /* a block deals with two pieces */
static const int64_t counts[] = { 1, 513, 7, 32769, 1024, LARGEST };
#define SUMS ((int)(sizeof counts / sizeof *counts))

/* Sums of these are rounded, so that another order of adding would show. */
EMULATOR_UNSEEN static float value_at(int32_t rank, int64_t i)
{
    return (float)((i * 37 + rank * 101) % 1009) * (rank % 2 ? 1e-3f : 1e4f);
}

EMULATOR_UNSEEN static int32_t sum_once(rank *r, qmi_joint_end *end, int64_t count, bool in_place)
{
    const size_t bytes = (size_t)count * sizeof(float);
    float *host = (float *)malloc(bytes);
    const qmi_address from = r->from, to = r->to;
    for (int64_t i = 0; i < count; i++)
        host[i] = value_at(r->index, i);
    int32_t code = qmi_cuda_write(r->device, from, host, (int64_t)bytes);
    if (code >= 0)
        code = end->joint->sum(end, from, in_place ? from : to, count);
    if (code >= 0)
        code = qmi_cuda_read(r->device, host, in_place ? from : to, (int64_t)bytes);
    for (int64_t i = 0; i < count && code >= 0; i++) {
        float expected = value_at(0, i);
        for (int32_t k = 1; k < r->of->ranks; k++)
            expected += value_at(k, i);
        r->right = r->right && host[i] == expected;
    }
    if (code >= 0 && !in_place)
        code = qmi_cuda_read(r->device, host, from, (int64_t)bytes);
    for (int64_t i = 0; i < count && code >= 0 && !in_place; i++)
        r->zeros = r->zeros && host[i] == 0;
    if (code >= 0)
        code = cuda_sum_check(end);
    free(host);
    return code;
}

EMULATOR_UNSEEN static void body(void *argument)
{
    rank *r = (rank *)argument;
    scene *s = r->of;
    const qmi_joint_terms terms = { r->index, s->ranks, s->timeout_ns, &s->cancel };
    r->right = r->zeros = true;
    r->code = s->joint->join(r->device, s->id, &terms, &r->end);
    for (int i = 0; i < s->sums && r->code >= 0 && i != r->absent_from; i++)
        r->code = sum_once(r, r->end, counts[i], i % 2);
    qmi_error_copy(r->text);
    if (r->code < 0 && r->end)
        s->joint->abort(r->end);
}

static void open_device(int32_t index, qmi_device **out)
{
    qmi_device_settings settings = {};
    settings.index = index;
    assert_int_equal(qmi_cuda_open(&settings, out), QM_OK);
}

static void start(scene *s, rank *ranks, const qmi_joint *joint, int32_t count, bool one_card)
{
    *s = scene{};
    s->joint = joint;
    s->ranks = count;
    s->timeout_ns = 60 * SECOND;
    s->sums = count == 2 ? SUMS : 4;
    for (int32_t i = 0; i < count; i++) {
        ranks[i] = rank{};
        ranks[i].of = s;
        ranks[i].index = i;
        ranks[i].absent_from = -1;
        open_device(one_card ? 0 : i, &ranks[i].device);
        assert_int_equal(qmi_cuda_allocate(ranks[i].device, LARGEST * sizeof(float), "values", &ranks[i].from), QM_OK);
        assert_int_equal(qmi_cuda_allocate(ranks[i].device, LARGEST * sizeof(float), "sums", &ranks[i].to), QM_OK);
    }
    assert_int_equal(joint->make_id(ranks[0].device, s->id), QM_OK);
}

static void run(rank *ranks, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        assert_int_equal(qmi_os_thread_start(&ranks[i].thread, body, &ranks[i], "rank"), QM_OK);
    for (int32_t i = 0; i < count; i++)
        qmi_os_thread_join(&ranks[i].thread);
    for (int32_t i = 0; i < count; i++)
        ranks[i].of->joint->leave(&ranks[i].end);
}

static void end(rank *ranks, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        qmi_cuda_close(&ranks[i].device);
    assert_int_equal(emulator_allocated(), 0);
}

static void check_sums(const qmi_joint *joint, int32_t count, bool one_card)
{
    scene s;
    rank ranks[RANKS_MOST];
    start(&s, ranks, joint, count, one_card);
    run(ranks, count);
    for (int32_t i = 0; i < count; i++) {
        assert_string_equal(ranks[i].code < 0 ? ranks[i].text : "", "");
        assert_true(ranks[i].right);
        assert_true(ranks[i].zeros);
    }
    end(ranks, count);
}

static void test_two_by_peer(void **) { check_sums(&qmi_cuda_peer, 2, false); }
static void test_three_by_peer(void **) { check_sums(&qmi_cuda_peer, 3, false); }
static void test_three_pinned(void **) { check_sums(&qmi_cuda_pinned, 3, false); }
static void test_four_pinned_on_one_card(void **) { check_sums(&qmi_cuda_pinned, 4, true); }

/* Rank 1 leaves after a sum, as if it had failed. */
static void test_who_does_not_come(void **)
{
    scene s;
    rank ranks[RANKS_MOST];
    start(&s, ranks, &qmi_cuda_pinned, 2, false);
    ranks[1].absent_from = 1;
    s.timeout_ns = SECOND / 4;
    run(ranks, 2);
    assert_int_equal(ranks[0].code, QM_ERROR_DEVICE);
    assert_non_null(strstr(ranks[0].text, "exchange-timeout"));
    end(ranks, 2);
}

static void test_nobody_joins(void **)
{
    scene s;
    rank ranks[RANKS_MOST];
    start(&s, ranks, &qmi_cuda_peer, 2, false);
    s.timeout_ns = SECOND / 10;
    run(ranks, 1);
    assert_int_equal(ranks[0].code, QM_ERROR_DEVICE);
    assert_non_null(strstr(ranks[0].text, "1 of 2 devices"));
    s.cancel = 1;
    assert_int_equal(s.joint->make_id(ranks[0].device, s.id), QM_OK);
    run(ranks, 1);
    assert_int_equal(ranks[0].code, QM_ERROR_CANCELLED);
    end(ranks, 2);
}

static void test_too_many(void **)
{
    qmi_joint_end *out;
    uint8_t id[QMI_JOINT_ID];
    const qmi_joint_terms terms = { 0, RANKS_MOST + 1, SECOND, NULL };
    qmi_device *device;
    open_device(0, &device);
    assert_int_equal(qmi_cuda_peer.make_id(device, id), QM_OK);
    assert_int_equal(qmi_cuda_peer.join(device, id, &terms, &out), QM_ERROR_UNSUPPORTED);
    assert_null(out);
    qmi_cuda_close(&device);
}

int main(void)
{
    setenv("QMI_EMULATOR_DEVICES", "4", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_by_peer),  cmocka_unit_test(test_three_by_peer),
        cmocka_unit_test(test_three_pinned), cmocka_unit_test(test_four_pinned_on_one_card),
        cmocka_unit_test(test_who_does_not_come), cmocka_unit_test(test_nobody_joins),
        cmocka_unit_test(test_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
