/* A device that fails in the middle: prompts are computed apart, so their session stays as it was; a token decoded in place
 * breaks its session for good, and no other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "qwenmoe.h"
#include "run/engine.h"

static int32_t runs_left; /* until the device fails; negative: never */

static int32_t failing_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch)
{
    int32_t code = qmi_cpu_backend.run(device, program, workspace, batch);
    if (runs_left < 0 || runs_left-- > 0)
        return code;
    runs_left = -1;
    return qmi_fail(QM_ERROR_DEVICE, "the device fell silent");
}

static qmi_backend failing;

static int start(void **state)
{
    char path[512];
    qm_model *model;
    snprintf(path, sizeof path, "%s/oracle/qwen35moe.gguf", getenv("TEST_DATA"));
    assert_int_equal(qm_model_load(path, NULL, &model), QM_OK);
    failing = qmi_cpu_backend;
    failing.run = failing_run;
    model->backend = &failing; /* before the first job, so that the engine's thread sees it */
    runs_left = -1;
    *state = model;
    return 0;
}

static int end(void **state)
{
    qm_model *model = *state;
    qm_model_free(&model);
    return 0;
}

static const int32_t prompt[] = { 5, 17, 90, 33, 8, 121, 60 };
#define PROMPT_COUNT ((int64_t)(sizeof prompt / sizeof *prompt))

static float *copy_logits(const qm_model *model, const qm_session *session)
{
    size_t size = (size_t)model->plan.hparams.vocabulary * sizeof(float);
    float *copy = malloc(size);
    memcpy(copy, qm_logits(session), size);
    return copy;
}

static void assert_logits(const qm_model *model, const qm_session *session, const float *wanted)
{
    assert_memory_equal(qm_logits(session), wanted, (size_t)model->plan.hparams.vocabulary * sizeof(float));
}

static void a_failed_prompt_changes_nothing(void **state)
{
    qm_model *model = *state;
    qm_session *session;
    assert_int_equal(qm_session_new(model, NULL, &session), QM_OK);
    assert_int_equal(qm_prefill(session, prompt, 3), QM_OK);
    float *before = copy_logits(model, session);
    runs_left = 0;
    assert_int_equal(qm_prefill(session, prompt + 3, PROMPT_COUNT - 3), QM_ERROR_DEVICE);
    assert_string_equal(qm_error_message(), "the device fell silent");
    assert_int_equal(qm_session_length(session), 3);
    assert_logits(model, session, before);
    assert_int_equal(qm_prefill(session, prompt + 3, PROMPT_COUNT - 3), QM_OK);

    qm_session *straight;
    assert_int_equal(qm_session_new(model, NULL, &straight), QM_OK);
    assert_int_equal(qm_prefill(straight, prompt, PROMPT_COUNT), QM_OK);
    float *wanted = copy_logits(model, straight);
    assert_logits(model, session, wanted);
    free(before);
    free(wanted);
    qm_session_free(&session);
    qm_session_free(&straight);
}

static void a_failed_decode_breaks_its_session_only(void **state)
{
    qm_model *model = *state;
    qm_session *broken, *whole;
    int32_t token;
    assert_int_equal(qm_session_new(model, NULL, &broken), QM_OK);
    assert_int_equal(qm_session_new(model, NULL, &whole), QM_OK);
    assert_int_equal(qm_prefill(broken, prompt, PROMPT_COUNT), QM_OK);
    assert_int_equal(qm_prefill(whole, prompt, PROMPT_COUNT), QM_OK);
    float *before = copy_logits(model, whole);
    runs_left = 0;
    assert_int_equal(qm_decode(&broken, prompt, 1), QM_ERROR_DEVICE);
    assert_int_equal(qm_prefill(broken, prompt, 1), QM_ERROR_DEVICE);
    assert_non_null(strstr(qm_error_message(), "the device fell silent"));
    assert_int_equal(qm_sample(broken, &token), QM_ERROR_DEVICE);
    assert_int_equal(qm_session_rewind(broken, 1), QM_ERROR_DEVICE);

    assert_logits(model, whole, before);
    assert_int_equal(qm_decode(&whole, prompt, 1), QM_OK);
    free(before);
    qm_session_free(&broken);
    qm_session_free(&whole);
}

static void a_failed_answer_ends_with_its_code(void **state)
{
    qm_model *model = *state;
    qm_session *session;
    qm_job *job;
    char text[64];
    assert_int_equal(qm_session_new(model, NULL, &session), QM_OK);
    assert_int_equal(qm_session_set(session, "ignore-end", "1"), QM_OK);
    runs_left = 4; /* the prompt, then some tokens */
    assert_int_equal(qm_submit_generate(session, prompt, PROMPT_COUNT, &job), QM_OK);
    int32_t code;
    do {
        code = qm_job_wait(job, -1);
        while (qm_job_read(job, text, sizeof text, &(int32_t){ 0 }) > 0)
            continue;
    } while (code == QM_JOB_RUNNING);
    assert_int_equal(code, QM_ERROR_DEVICE);
    assert_string_equal(qm_job_finish(job), "error");
    qm_job_free(&job);
    qm_session_free(&session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_failed_prompt_changes_nothing, start, end),
        cmocka_unit_test_setup_teardown(a_failed_decode_breaks_its_session_only, start, end),
        cmocka_unit_test_setup_teardown(a_failed_answer_ends_with_its_code, start, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
