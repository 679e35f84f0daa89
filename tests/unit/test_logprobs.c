/* Log probabilities against the C library's exp and log. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "run/logprobs.h"

enum { VOCABULARY = 5000 };

static void are_those_of_a_softmax(void **state)
{
    (void)state;
    static float logits[VOCABULARY];
    qmi_logprobs kept = { 0 };
    double sum = 0;
    for (int i = 0; i < VOCABULARY; i++) {
        logits[i] = (float)((i * 7919) % VOCABULARY) / 400; /* each value once: 7919 has no factor in common with 5000 */
        sum += exp((double)logits[i]);
    }
    logits[100] = logits[200] = 20; /* equals: the lower id first */
    sum += 2 * exp(20.0) - exp((100 * 7919 % VOCABULARY) / 400.0) - exp((200 * 7919 % VOCABULARY) / 400.0);
    qmi_logprobs_start(&kept, 3, VOCABULARY);
    assert_int_equal(qmi_logprobs_add(&kept, logits, VOCABULARY, 200, &(qmi_alloc){ 0 }), QM_OK);
    assert_int_equal(qmi_logprobs_add(&kept, logits, VOCABULARY, 0, &(qmi_alloc){ 0 }), QM_OK);
    float own[2], values[6];
    int32_t ids[6];
    assert_int_equal(qmi_logprobs_copy(&kept, 0, &(qmi_logprobs_out){ own, ids, values }, 2), 2);
    assert_true(fabs(own[0] - (20 - log(sum))) < 1e-5);
    assert_true(fabs(own[1] - (0 - log(sum))) < 1e-5);
    assert_true(ids[0] == 100 && ids[1] == 200 && values[0] == own[0] && values[1] == own[0]);
    assert_true(ids[2] >= 0 && fabs(values[2] - (logits[ids[2]] - log(sum))) < 1e-5);
    assert_true(logits[ids[2]] == (VOCABULARY - 1) / 400.0f);
    /* From the second on; less room than there is; nothing wanted; behind the end. */
    int32_t later[3] = { 0 };
    assert_int_equal(qmi_logprobs_copy(&kept, 1, &(qmi_logprobs_out){ .top_tokens = later }, 1), 1);
    assert_memory_equal(later, ids + 3, sizeof later);
    own[1] = 7;
    assert_int_equal(qmi_logprobs_copy(&kept, 0, &(qmi_logprobs_out){ .own = own }, 1), 2);
    assert_true(own[1] == 7);
    assert_int_equal(qmi_logprobs_copy(&kept, 5, &(qmi_logprobs_out){ own, ids, values }, 2), 0);
    qmi_logprobs_free(&kept, &(qmi_alloc){ 0 });
}

static void odd_logits(void **state)
{
    (void)state;
    const float logits[] = { NAN, 1, -INFINITY, 1 }, none[] = { NAN, -INFINITY };
    qmi_logprobs kept = { 0 };
    float own[3], values[12];
    int32_t ids[12];
    qmi_logprobs_start(&kept, 64, 4); /* no more than there are */
    assert_int_equal(qmi_logprobs_add(&kept, logits, 4, 1, &(qmi_alloc){ 0 }), QM_OK);
    assert_int_equal(qmi_logprobs_add(&kept, logits, 4, 0, &(qmi_alloc){ 0 }), QM_OK);
    assert_int_equal(qmi_logprobs_add(&kept, none, 2, 0, &(qmi_alloc){ 0 }), QM_OK);
    assert_int_equal(qmi_logprobs_copy(&kept, 0, &(qmi_logprobs_out){ own, ids, values }, 3), 3);
    assert_true(fabs(own[0] - log(0.5)) < 1e-6 && own[1] == -INFINITY && own[2] == -INFINITY);
    assert_true(ids[0] == 1 && ids[1] == 3 && ids[2] == -1 && ids[3] == -1 && ids[8] == -1);
    assert_true(values[2] == -INFINITY);
    qmi_logprobs_free(&kept, &(qmi_alloc){ 0 });
}

static void kept_only_where_asked_for(void **state)
{
    (void)state;
    qmi_logprobs kept = { 0 };
    float own[1];
    qmi_logprobs_start(&kept, -1, 10);
    assert_int_equal(qmi_logprobs_copy(&kept, 0, &(qmi_logprobs_out){ .own = own }, 1), QM_ERROR_STATE);
}

static void failing_memory(void **state)
{
    (void)state;
    const float logits[] = { 1, 2, 3 };
    int64_t failures = 0;
    for (int64_t fail_at = 0;; fail_at++) {
        failing_alloc counter = { .until_failure = fail_at };
        qmi_alloc alloc = failing_hook(&counter);
        qmi_logprobs kept = { 0 };
        qmi_logprobs_start(&kept, 2, 3);
        int32_t code = qmi_logprobs_add(&kept, logits, 3, 0, &alloc);
        bool done = !counter.failed;
        assert_int_equal(code, done ? QM_OK : QM_ERROR_MEMORY);
        assert_int_equal(kept.count, done ? 1 : 0);
        qmi_logprobs_free(&kept, &alloc);
        assert_int_equal(counter.live, 0);
        if (done)
            break;
        failures++;
    }
    assert_int_equal(failures, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(are_those_of_a_softmax),
        cmocka_unit_test(odd_logits),
        cmocka_unit_test(kept_only_where_asked_for),
        cmocka_unit_test(failing_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
