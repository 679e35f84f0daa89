/* Sums by the devices' own way, here played by a circle of threads: they are the sums; who gives up ends those who wait, and the
 * next step has a circle again; and devices that lack the way, or can't use it now, are told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "exchange/exchange_joint.h"

#define RANKS 3
#define COUNT 5

static const qmi_alloc plain_alloc;

/* ---- a way to sum: threads that meet ---- */

typedef struct circle {
    int32_t ranks, joined, left;
    bool aborted;
    int64_t round, given;              /* sums that are over; and how many have given their part of the next */
    const float *parts[RANKS];
    float result[COUNT];
} circle;

struct qmi_joint_end {
    circle *circle;
    int32_t rank;
};

static qmi_os_mutex *mutex;            /* guards all that follows */
static qmi_os_condition *changed;
static circle circles[64];
static int32_t made, sums, missing_on; /* missing_on: index of the device that lacks what it takes; -1: none does */
static qmi_joint_end ends[64];
static int32_t end_count;

struct qmi_device {
    int32_t index;
};

static int32_t fake_make_id(qmi_device *device, uint8_t id[QMI_JOINT_ID])
{
    memset(id, 0, QMI_JOINT_ID);
    if (device->index == missing_on)
        return qmi_fail(QM_ERROR_DEVICE, "libfake is not installed");
    qmi_os_mutex_lock(mutex);
    id[0] = (uint8_t)made++;
    qmi_os_mutex_unlock(mutex);
    return QM_OK;
}

static int32_t fake_join(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out)
{
    (void)device;
    circle *c = &circles[id[0]];
    qmi_os_mutex_lock(mutex);
    c->ranks = terms->ranks;
    c->joined++;
    *out = &ends[end_count++];
    **out = (qmi_joint_end){ c, terms->rank };
    qmi_os_condition_signal_all(changed);
    while (c->joined < c->ranks)
        qmi_os_condition_wait(changed, mutex, -1);
    qmi_os_mutex_unlock(mutex);
    return QM_OK;
}

static int32_t fake_sum(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count)
{
    circle *c = end->circle;
    qmi_os_mutex_lock(mutex);
    int64_t round = c->round;
    sums++;
    c->parts[end->rank] = (const float *)(uintptr_t)from;
    if (++c->given == c->ranks) {
        for (int64_t i = 0; i < count; i++) {
            c->result[i] = 0;
            for (int32_t r = 0; r < c->ranks; r++)
                c->result[i] += c->parts[r][i];
        }
        c->given = 0;
        c->round++;
        qmi_os_condition_signal_all(changed);
    }
    while (c->round == round && !c->aborted)
        qmi_os_condition_wait(changed, mutex, -1);
    memcpy((void *)(uintptr_t)to, c->result, (size_t)count * sizeof(float));
    qmi_os_mutex_unlock(mutex);
    return QM_OK; /* as a card: whether it came to something the others know */
}

static void fake_abort(qmi_joint_end *end)
{
    qmi_os_mutex_lock(mutex);
    end->circle->aborted = true;
    qmi_os_condition_signal_all(changed);
    qmi_os_mutex_unlock(mutex);
}

static void fake_leave(qmi_joint_end **end)
{
    qmi_os_mutex_lock(mutex);
    (*end)->circle->left++;
    qmi_os_mutex_unlock(mutex);
    *end = NULL;
}

static const qmi_joint joint = { .name = "fake", .make_id = fake_make_id, .join = fake_join, .sum = fake_sum, .abort = fake_abort,
                                 .leave = fake_leave };
static const qmi_joint *const joints[] = { &joint, NULL };
static qmi_backend with_joint, without;
static qmi_device devices[RANKS];
static qmi_exchange_member members[RANKS];
static qmi_exchange *opened[RANKS];

static int start(void **state)
{
    (void)state;
    memset(circles, 0, sizeof circles);
    made = sums = end_count = 0;
    missing_on = -1;
    with_joint = without = qmi_cpu_backend;
    with_joint.info = without.info = NULL; /* which would take these for the CPU */
    with_joint.joints = joints;
    for (int32_t i = 0; i < RANKS; i++) {
        devices[i].index = i;
        members[i] = (qmi_exchange_member){ &with_joint, &devices[i], "" };
        snprintf(members[i].name, sizeof members[i].name, "fake:%d", i);
    }
    return qmi_os_mutex_new(&mutex) + qmi_os_condition_new(&changed);
}

static int end(void **state)
{
    (void)state;
    qmi_os_condition_free(&changed);
    qmi_os_mutex_free(&mutex);
    return 0;
}

static void open_all(void)
{
    assert_int_equal(qmi_exchange_joint_open("fake", members, RANKS, INT64_C(10000000000), &plain_alloc, opened), QM_OK);
}

static void close_all(void)
{
    for (int32_t i = 0; i < RANKS; i++)
        opened[i]->carrier->close(opened[i]);
    for (int32_t i = 0; i < made; i++)
        assert_int_equal(circles[i].left, circles[i].joined);
}

/* ---- steps ---- */

typedef struct part { /* one rank's of a step */
    qmi_os_thread *thread;
    int32_t rank, failing;  /* failing: the rank that gives up before its second sum; -1: none does */
    int32_t give_up_code, code;
    const int32_t *cancel;
    float own[COUNT], sum[COUNT];
    char text[QMI_ERROR_SIZE];
} part;

static void take_part(void *argument)
{
    part *p = argument;
    qmi_exchange *e = opened[p->rank];
    p->code = e->carrier->start(e, p->cancel);
    for (int32_t i = 0; i < 2 && p->code >= 0; i++) {
        if (i == 1 && p->rank == p->failing)
            p->code = qmi_fail(p->give_up_code, "it broke");
        else
            p->code = e->carrier->sum(e, (qmi_address)(uintptr_t)p->own, (qmi_address)(uintptr_t)p->sum, COUNT);
        memcpy(p->own, p->sum, sizeof p->own);
    }
    qmi_error_copy(p->text);
    if (p->code < 0)
        e->carrier->give_up(e, p->code, p->text);
}

static void step(part parts[RANKS], int32_t failing, int32_t code, const int32_t *cancel)
{
    for (int32_t r = 0; r < RANKS; r++) {
        parts[r] = (part){ .rank = r, .failing = failing, .give_up_code = code, .cancel = cancel };
        for (int32_t i = 0; i < COUNT; i++)
            parts[r].own[i] = (float)(100 * r + i);
        assert_int_equal(qmi_os_thread_start(&parts[r].thread, take_part, &parts[r], "rank"), QM_OK);
    }
    for (int32_t r = 0; r < RANKS; r++)
        qmi_os_thread_join(&parts[r].thread);
}

static void expect_sums(const part parts[RANKS])
{
    for (int32_t r = 0; r < RANKS; r++) {
        assert_int_equal(parts[r].code, QM_OK);
        for (int32_t i = 0; i < COUNT; i++) /* twice: 3 (0 + 100 + 200 + 3 i) */
            assert_true(parts[r].sum[i] == (float)(RANKS * (300 + RANKS * i)));
    }
}

static void test_sums_go_their_own_way(void **state)
{
    (void)state;
    part parts[RANKS];
    open_all();
    for (int32_t i = 0; i < 3; i++) {
        step(parts, -1, 0, NULL);
        expect_sums(parts);
    }
    assert_int_equal(sums, 3 * 2 * RANKS);
    assert_int_equal(circles[made - 1].joined, RANKS); /* one circle for all of it */
    close_all();
}

static void test_who_gives_up_ends_those_who_wait(void **state)
{
    (void)state;
    part parts[RANKS];
    open_all();
    int32_t before = made;
    step(parts, 1, QM_ERROR_MEMORY, NULL);
    assert_int_equal(parts[1].code, QM_ERROR_MEMORY);
    assert_true(circles[before - 1].aborted);
    step(parts, -1, 0, NULL); /* and the next begins afresh, with another circle */
    expect_sums(parts);
    assert_int_equal(made, before + 1);
    close_all();
}

static void test_a_lost_device_is_for_good(void **state)
{
    (void)state;
    part parts[RANKS];
    open_all();
    step(parts, 2, QM_ERROR_DEVICE, NULL);
    assert_int_equal(parts[2].code, QM_ERROR_DEVICE);
    for (int32_t i = 0; i < 2; i++) {
        step(parts, -1, 0, NULL);
        for (int32_t r = 0; r < RANKS; r++) {
            assert_int_equal(parts[r].code, QM_ERROR_DEVICE);
            assert_non_null(strstr(parts[r].text, "it broke"));
        }
    }
    close_all();
}

static void test_a_step_is_cancelled(void **state)
{
    (void)state;
    static const int32_t yes = 1;
    part parts[RANKS];
    open_all();
    step(parts, -1, 0, &yes);
    for (int32_t r = 0; r < RANKS; r++)
        assert_int_equal(parts[r].code, QM_ERROR_CANCELLED);
    step(parts, -1, 0, NULL);
    expect_sums(parts);
    close_all();
}

static void test_who_can_not(void **state)
{
    (void)state;
    members[1].backend = &without;
    assert_int_equal(qmi_exchange_joint_open("fake", members, RANKS, -1, &plain_alloc, opened), QM_ERROR_UNSUPPORTED);
    assert_non_null(strstr(qmi_error_text(), "fake:1"));
    members[1].backend = &with_joint;
    for (missing_on = 0; missing_on < RANKS; missing_on++) { /* none of the others is left waiting */
        assert_int_equal(qmi_exchange_joint_open("fake", members, RANKS, -1, &plain_alloc, opened), QM_ERROR_DEVICE);
        assert_non_null(strstr(qmi_error_text(), "libfake is not installed"));
    }
    members[2].backend = &without;
    assert_int_equal(qmi_exchange_joint_open("fake", members, RANKS, -1, &plain_alloc, opened), QM_ERROR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sums_go_their_own_way, start, end),
        cmocka_unit_test_setup_teardown(test_who_gives_up_ends_those_who_wait, start, end),
        cmocka_unit_test_setup_teardown(test_a_lost_device_is_for_good, start, end),
        cmocka_unit_test_setup_teardown(test_a_step_is_cancelled, start, end),
        cmocka_unit_test_setup_teardown(test_who_can_not, start, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
