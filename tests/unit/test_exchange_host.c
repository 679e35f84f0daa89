/* The exchange through host memory: sums and gathers of ranks in threads of their own, messages in order, and how all end when
 * one does. Expected values are formulas of rank, round and place. */
#include "pool_device.h"

#include <stdio.h>
#include "base/os.h"
#include "exchange/exchange_host.h"

#define RANKS 3
#define COUNT 50

typedef struct scene {
    pool_device devices[RANKS];
    qmi_exchange *ends[RANKS];
} scene;

static int32_t open_ends(scene *s, int64_t timeout_ns, const qmi_alloc *alloc)
{
    qmi_exchange_member members[RANKS];
    for (int32_t i = 0; i < RANKS; i++) {
        members[i] = (qmi_exchange_member){ .backend = &qmi_cpu_backend, .device = s->devices[i].device };
        snprintf(members[i].name, sizeof members[i].name, "cpu %c", 'a' + i);
    }
    return qmi_exchange_host_open(members, RANKS, timeout_ns, alloc, s->ends);
}

static void start(scene *s, int64_t timeout_ns)
{
    for (int32_t i = 0; i < RANKS; i++)
        pool_device_start(&s->devices[i], 0);
    const qmi_alloc alloc = { 0 };
    assert_int_equal(open_ends(s, timeout_ns, &alloc), QM_OK);
}

static void end(scene *s)
{
    for (int32_t i = 0; i < RANKS; i++)
        s->ends[i]->carrier->close(s->ends[i]);
    for (int32_t i = 0; i < RANKS; i++)
        pool_device_end(&s->devices[i]);
}

/* Runs body on every end, each in a thread of its own. */
typedef struct task {
    qmi_exchange *end;
    const void *argument;
    int32_t code;
    char message[QMI_ERROR_SIZE];
    int32_t (*body)(qmi_exchange *end, const void *argument);
    qmi_os_thread *thread;
} task;

static void run_task(void *argument)
{
    task *t = argument;
    t->code = t->body(t->end, t->argument);
    qmi_error_copy(t->message);
}

static void run_all(scene *s, int32_t (*body)(qmi_exchange *end, const void *argument), const void *argument, task tasks[RANKS])
{
    for (int32_t i = 0; i < RANKS; i++) {
        tasks[i] = (task){ .end = s->ends[i], .argument = argument, .body = body };
        assert_int_equal(qmi_os_thread_start(&tasks[i].thread, run_task, &tasks[i], "rank"), QM_OK);
    }
    for (int32_t i = 0; i < RANKS; i++)
        qmi_os_thread_join(&tasks[i].thread);
}

static qmi_address address(const void *values)
{
    return (qmi_address)(uintptr_t)values;
}

static int32_t sums(qmi_exchange *x, const void *argument)
{
    float values[COUNT], all[COUNT];
    int32_t code = x->carrier->start(x, argument);
    for (int32_t round = 0; round < 20 && code == 0; round++) {
        int64_t count = COUNT - round; /* neighbours in time need not be alike */
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)((x->rank + 1) * (i + round));
        bool in_place = round % 2 == 0;
        code = x->carrier->sum(x, address(values), address(in_place ? values : all), count);
        for (int64_t i = 0; i < count && code == 0; i++)
            if ((in_place ? values : all)[i] != (float)(6 * (i + round))) /* 1 + 2 + 3 */
                return qmi_fail(QM_ERROR_STATE, "round %d, place %d", round, (int)i);
    }
    return code;
}

static int32_t sum_of_large(qmi_exchange *x, const void *argument)
{
    /* in float32 (2^24 + 1) - 2^24 is 0 by rank, and 1 in any order that takes rank 1 last */
    const float parts[RANKS] = { 16777216, 1, -16777216 };
    float value = parts[x->rank];
    (void)argument;
    int32_t code = x->carrier->start(x, NULL);
    if (code == 0)
        code = x->carrier->sum(x, address(&value), address(&value), 1);
    return code == 0 && value != 0 ? qmi_fail(QM_ERROR_STATE, "%g", (double)value) : code;
}

static void adds_in_order_of_rank(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    start(&s, INT64_C(20000000000));
    for (int32_t step = 0; step < 3; step++) {
        run_all(&s, sums, NULL, tasks);
        for (int32_t i = 0; i < RANKS; i++)
            assert_int_equal(tasks[i].code, QM_OK);
    }
    run_all(&s, sum_of_large, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    end(&s);
}

static int32_t gather(qmi_exchange *x, const void *argument)
{
    const int64_t counts[RANKS] = { 2, 0, 3 };
    float own[3] = { (float)(10 * x->rank), (float)(10 * x->rank + 1), (float)(10 * x->rank + 2) }, all[5] = { 0 };
    const float expected[5] = { 0, 1, 20, 21, 22 };
    (void)argument;
    int32_t code = x->carrier->start(x, NULL);
    if (code == 0)
        code = x->carrier->gather(x, address(own), address(all), counts);
    return code == 0 && memcmp(all, expected, sizeof all) != 0 ? qmi_fail(QM_ERROR_STATE, "wrong values") : code;
}

static void gathers_unequal_parts(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    start(&s, -1);
    run_all(&s, gather, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    end(&s);
}

/* A chain: every rank takes what comes, adds one, and hands it on. */
static int32_t chain(qmi_exchange *x, const void *argument)
{
    float value[2];
    (void)argument;
    int32_t code = x->carrier->start(x, NULL);
    for (int32_t i = 0; i < 10 && code == 0; i++) {
        value[0] = value[1] = (float)i;
        if (x->rank > 0)
            code = x->carrier->receive(x, x->rank - 1, address(value), 2);
        if (code == 0 && (value[0] != (float)(i + x->rank) || value[1] != value[0]))
            code = qmi_fail(QM_ERROR_STATE, "message %d", i);
        value[0] += 1, value[1] += 1;
        if (code == 0 && x->rank < RANKS - 1)
            code = x->carrier->send(x, x->rank + 1, address(value), 2);
    }
    return code;
}

static int32_t wrong_count(qmi_exchange *x, const void *argument)
{
    float value[2] = { 0 };
    (void)argument;
    int32_t code = x->carrier->start(x, NULL);
    if (code == 0 && x->rank == 0)
        code = x->carrier->send(x, 1, address(value), 2);
    return code == 0 ? x->carrier->receive(x, x->rank == 1 ? 0 : 1, address(value), 1) : code;
}

static void carries_messages_in_order(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    start(&s, INT64_C(20000000000));
    run_all(&s, chain, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    run_all(&s, wrong_count, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++) {
        assert_int_equal(tasks[i].code, QM_ERROR_STATE);
        assert_non_null(strstr(tasks[i].message, "2 values came from rank 0 where 1 were expected"));
    }
    run_all(&s, chain, NULL, tasks); /* nothing is left of the step that failed */
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    end(&s);
}

static int32_t fail_in_one(qmi_exchange *x, const void *argument)
{
    float value = 1;
    int32_t code = x->carrier->start(x, NULL);
    if (code == 0 && x->rank == 1) {
        x->carrier->give_up(x, *(const int32_t *)argument, "the fan has stopped");
        return QM_OK;
    }
    return code == 0 ? x->carrier->sum(x, address(&value), address(&value), 1) : code;
}

static void all_end_when_one_fails(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    int32_t code = QM_ERROR_MEMORY;
    start(&s, -1);
    run_all(&s, fail_in_one, &code, tasks);
    for (int32_t i = 0; i < RANKS; i += 2) {
        assert_int_equal(tasks[i].code, QM_ERROR_MEMORY);
        assert_string_equal(tasks[i].message, "rank 1 (cpu b): the fan has stopped");
    }
    run_all(&s, sums, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    code = QM_ERROR_DEVICE;
    run_all(&s, fail_in_one, &code, tasks);
    run_all(&s, sums, NULL, tasks); /* a lost device is lost for good */
    for (int32_t i = 0; i < RANKS; i++) {
        assert_int_equal(tasks[i].code, QM_ERROR_DEVICE);
        assert_string_equal(tasks[i].message, "rank 1 (cpu b): the fan has stopped");
    }
    end(&s);
}

static int32_t stay_away(qmi_exchange *x, const void *argument)
{
    float value = 1;
    int32_t code = x->carrier->start(x, argument);
    if (x->rank == 2 || code < 0)
        return code;
    return x->rank == 0 ? x->carrier->sum(x, address(&value), address(&value), 1)
                        : x->carrier->receive(x, 2, address(&value), 1);
}

static void nobody_waits_for_ever(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    start(&s, 30000000);
    run_all(&s, stay_away, NULL, tasks);
    for (int32_t i = 0; i < 2; i++) {
        assert_int_equal(tasks[i].code, QM_ERROR_DEVICE);
        assert_non_null(strstr(tasks[i].message, "did not answer rank"));
    }
    assert_string_equal(tasks[0].message, tasks[1].message);
    end(&s);
}

static void cancelling_ends_one_step(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    const int32_t cancel = 1;
    start(&s, -1);
    run_all(&s, stay_away, &cancel, tasks);
    for (int32_t i = 0; i < 2; i++)
        assert_int_equal(tasks[i].code, QM_ERROR_CANCELLED);
    run_all(&s, sums, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    end(&s);
}

static void opens_all_or_none(void **state)
{
    (void)state;
    scene s;
    for (int32_t i = 0; i < RANKS; i++)
        pool_device_start(&s.devices[i], 0);
    int32_t code = QM_ERROR_MEMORY;
    for (int64_t n = 0; code < 0; n++) {
        failing_alloc counter = { .until_failure = n };
        const qmi_alloc alloc = failing_hook(&counter);
        code = open_ends(&s, -1, &alloc);
        for (int32_t i = 0; i < RANKS && code == 0; i++)
            s.ends[i]->carrier->close(s.ends[i]);
        assert_int_equal(counter.live, 0);
        assert_true(n < 10);
    }
    for (int32_t i = 0; i < RANKS; i++)
        pool_device_end(&s.devices[i]);
}

static int32_t no_memory; /* atomic */

static void *allocate(int64_t size, int64_t alignment, void *user)
{
    (void)user;
    int64_t whole = (size + alignment - 1) / alignment * alignment;
    return __atomic_load_n(&no_memory, __ATOMIC_RELAXED) ? NULL : aligned_alloc((size_t)alignment, (size_t)whole);
}

static void release(void *pointer, void *user)
{
    (void)user;
    free(pointer);
}

/* Where memory is wanting on one rank all end with that, and the next step goes well. */
static void survives_want_of_memory(void **state)
{
    (void)state;
    scene s;
    task tasks[RANKS];
    float value = 1;
    const qmi_alloc alloc = { allocate, release, NULL };
    for (int32_t i = 0; i < RANKS; i++)
        pool_device_start(&s.devices[i], 0);
    assert_int_equal(open_ends(&s, INT64_C(20000000000), &alloc), QM_OK);
    qmi_exchange *x = s.ends[0];
    assert_int_equal(x->carrier->start(x, NULL), QM_OK);
    __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    assert_int_equal(x->carrier->send(x, 1, address(&value), 1), QM_ERROR_MEMORY);
    for (int32_t i = 1; i < RANKS; i++) {
        assert_int_equal(s.ends[i]->carrier->start(s.ends[i], NULL), QM_ERROR_MEMORY);
        assert_non_null(strstr(qmi_error_text(), "rank 0 (cpu a): "));
    }
    __atomic_store_n(&no_memory, 0, __ATOMIC_RELAXED);
    run_all(&s, chain, NULL, tasks);
    for (int32_t i = 0; i < RANKS; i++)
        assert_int_equal(tasks[i].code, QM_OK);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adds_in_order_of_rank),
        cmocka_unit_test(gathers_unequal_parts),
        cmocka_unit_test(carries_messages_in_order),
        cmocka_unit_test(all_end_when_one_fails),
        cmocka_unit_test(nobody_waits_for_ever),
        cmocka_unit_test(cancelling_ends_one_step),
        cmocka_unit_test(opens_all_or_none),
        cmocka_unit_test(survives_want_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
