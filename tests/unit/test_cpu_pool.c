/* The CPU's threads: every item once, barriers that order memory, waking from sleep, and failures on the way up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "base/os.h"
#include "cpu/cpu_pool.h"
#include "failing_alloc.h"

enum { ITEMS = 1000, FEW = 2, PHASES = 50 };

typedef struct job {
    qmi_cpu_pool *pool;
    int32_t threads;
    int32_t taken[ITEMS];       /* how often, by whoever took it */
    int64_t sums[PHASES][8];    /* each worker's sum of the former phase's sums */
    int32_t present[8];
} job;

static const qmi_alloc plain_alloc;

static void take_all(void *argument, int32_t worker)
{
    job *j = argument;
    j->present[worker]++;
    for (int phase = 0; phase < 3; phase++) {
        int64_t count = phase == 0 ? ITEMS : phase == 1 ? FEW : 0; /* also fewer than workers */
        for (int64_t item; (item = qmi_cpu_pool_next(j->pool, worker, count)) < count;)
            j->taken[item]++; /* no other worker has this item, so this needs no lock */
        qmi_cpu_pool_barrier(j->pool);
    }
}

static void test_each_item_once(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 5; threads++) {
        job j = { .threads = threads };
        assert_int_equal(qmi_cpu_pool_new(&plain_alloc, threads, true, &j.pool), QM_OK);
        for (int run = 1; run <= 20; run++) {
            qmi_cpu_pool_run(j.pool, take_all, &j);
            for (int i = 0; i < ITEMS; i++)
                assert_int_equal(j.taken[i], i < FEW ? 2 * run : run);
            for (int32_t w = 0; w < threads; w++)
                assert_int_equal(j.present[w], run);
        }
        qmi_cpu_pool_free(&plain_alloc, &j.pool);
        assert_null(j.pool);
    }
}

/* What all wrote before a barrier, all read after it: each phase's sums are made of all of the last one's. */
static void add_up(void *argument, int32_t worker)
{
    job *j = argument;
    for (int phase = 0; phase < PHASES; phase++) {
        int64_t sum = worker + 1;
        for (int32_t w = 0; phase > 0 && w < j->threads; w++)
            sum += j->sums[phase - 1][w] % 1000;
        j->sums[phase][worker] = sum;
        qmi_cpu_pool_barrier(j->pool);
    }
}

static void test_barrier_orders(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 4; threads++) {
        job j = { .threads = threads };
        assert_int_equal(qmi_cpu_pool_new(&plain_alloc, threads, false, &j.pool), QM_OK);
        qmi_cpu_pool_run(j.pool, add_up, &j);
        int64_t expected[8] = { 0 }, last = 0;
        for (int phase = 0; phase < PHASES; phase++) {
            int64_t next = 0;
            for (int32_t w = 0; w < threads; w++) {
                expected[w] = w + 1 + last;
                next += expected[w] % 1000;
                assert_int_equal(j.sums[phase][w], expected[w]);
            }
            last = next;
        }
        qmi_cpu_pool_free(&plain_alloc, &j.pool);
    }
}

/* Workers that have gone to sleep, at the start and at a barrier, come back. */
static void wait_long(void *argument, int32_t worker)
{
    job *j = argument;
    int64_t until = qmi_os_time_ns() + 2000000;
    while (worker == 0 && qmi_os_time_ns() < until)
        qmi_os_yield();
    qmi_cpu_pool_barrier(j->pool);
    j->present[worker]++;
}

static void test_wakes_sleepers(void **state)
{
    (void)state;
    job j = { .threads = 3 };
    assert_int_equal(qmi_cpu_pool_new(&plain_alloc, 3, true, &j.pool), QM_OK);
    for (int run = 1; run <= 5; run++) {
        int64_t until = qmi_os_time_ns() + 2000000; /* longer than workers spin */
        while (qmi_os_time_ns() < until)
            qmi_os_yield();
        qmi_cpu_pool_run(j.pool, wait_long, &j);
        for (int w = 0; w < 3; w++)
            assert_int_equal(j.present[w], run);
    }
    qmi_cpu_pool_free(&plain_alloc, &j.pool);
}

static void test_failures(void **state)
{
    (void)state;
    failing_alloc f = { .until_failure = 0 };
    qmi_alloc alloc = failing_hook(&f);
    qmi_cpu_pool *pool = (qmi_cpu_pool *)&f;
    assert_int_equal(qmi_cpu_pool_new(&alloc, 2, true, &pool), QM_ERROR_MEMORY);
    assert_null(pool);
    assert_int_equal(qmi_cpu_pool_new(&plain_alloc, 0, true, &pool), QM_ERROR_OPTION);
    assert_int_equal(qmi_cpu_pool_new(&plain_alloc, QMI_CPU_THREADS_MAX + 1, true, &pool), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "1025"));
    qmi_cpu_pool_free(&plain_alloc, &pool);
    f.until_failure = -1;
    assert_int_equal(qmi_cpu_pool_new(&alloc, 2, true, &pool), QM_OK);
    qmi_cpu_pool_free(&alloc, &pool);
    assert_int_equal(f.live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_item_once),
        cmocka_unit_test(test_barrier_orders),
        cmocka_unit_test(test_wakes_sleepers),
        cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
