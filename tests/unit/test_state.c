/* States: where the parts of a block lie, counting, and what happens when the device has no more. */
#include "pool_device.h"

#include "memory/state.h"

static void lays_out_a_block(void **state)
{
    (void)state;
    qmi_state_layout layout;
    const qmi_hparams h = { .delta_layers = 2, .layers = 3, .hidden = 48, .vocabulary = 100, .key_heads = 2, .value_heads = 4,
                            .key_size = 16, .value_size = 8, .taps = 4 };
    qmi_kv_layout kv = { 0 };
    qmi_state_layout_make(&h, &kv, true, &layout);
    assert_int_equal(layout.recurrent_bytes, 2 * (3 * (2 * 2 * 16 + 4 * 8) + 4 * 16 * 8) * 4);
    assert_int_equal(layout.hidden_bytes, 192);
    assert_int_equal(layout.logits_bytes, 400);
    assert_int_equal(layout.bytes, layout.recurrent_bytes + 192 + 448);
    qmi_state_layout_make(&h, &kv, false, &layout);
    assert_int_equal(layout.hidden_bytes, 0);
    assert_int_equal(layout.bytes, layout.recurrent_bytes + 448);
    qmi_hparams attention = { .attention_layers = 3, .layers = 3, .hidden = 48, .vocabulary = 100 };
    kv.window_bytes = 640;
    qmi_state_layout_make(&attention, &kv, false, &layout);
    assert_int_equal(layout.recurrent_bytes, 1920); /* of a model that has none itself */
}

static void counts(void **state)
{
    (void)state;
    const qmi_state_layout layout = { .recurrent_bytes = 128, .hidden_bytes = 64, .logits_bytes = 64, .bytes = 256 };
    pool_device d;
    qmi_state_pool pool;
    qmi_state *states[8], *same;
    pool_device_start(&d, 0);
    assert_int_equal(qmi_state_pool_open(&pool, &layout, &qmi_cpu_backend, d.device, &d.alloc), QM_OK);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(qmi_state_take(&pool, &states[i]), QM_OK);
        assert_int_equal(states[i]->hidden, states[i]->recurrent + 128);
        assert_int_equal(states[i]->logits, states[i]->recurrent + 192);
        memset((void *)(uintptr_t)states[i]->recurrent, i, 256);
    }
    assert_int_equal(pool.count, 8);
    same = qmi_state_retain(states[3]);
    qmi_state_release(&pool, &states[3]);
    assert_null(states[3]);
    assert_int_equal(pool.free_count, 0);
    assert_int_equal(*(char *)(uintptr_t)(same->logits + 63), 3);
    qmi_state_release(&pool, &same);
    assert_int_equal(pool.free_count, 1);
    for (int i = 0; i < 8; i++)
        qmi_state_release(&pool, &states[i]);
    assert_int_equal(pool.free_count, pool.count);
    assert_true(pool.count < 8); /* what is not needed goes back to the device */
    qmi_state_pool_close(&pool);
    pool_device_end(&d);
}

static void says_when_there_is_no_more(void **state)
{
    (void)state;
    const qmi_state_layout layout = { .logits_bytes = 4096, .bytes = 4096 };
    pool_device d;
    qmi_state_pool pool;
    qmi_state *states[4];
    pool_device_start(&d, 10000);
    assert_int_equal(qmi_state_pool_open(&pool, &layout, &qmi_cpu_backend, d.device, &d.alloc), QM_OK);
    assert_int_equal(qmi_state_take(&pool, &states[0]), QM_OK);
    assert_int_equal(states[0]->recurrent, 0);
    assert_int_equal(states[0]->hidden, 0);
    assert_int_equal(qmi_state_take(&pool, &states[1]), QM_OK);
    assert_int_equal(qmi_state_take(&pool, &states[2]), QM_ERROR_MEMORY);
    assert_non_null(strstr(qmi_error_text(), "4096 bytes, and 2 such"));
    qmi_state_release(&pool, &states[1]);
    assert_int_equal(qmi_state_take(&pool, &states[2]), QM_OK);
    qmi_state_release(&pool, &states[0]);
    qmi_state_release(&pool, &states[2]);
    qmi_state_pool_close(&pool);
    pool_device_end(&d);
    pool_device_start(&d, 5000); /* not enough for one session */
    assert_int_equal(qmi_state_pool_open(&pool, &layout, &qmi_cpu_backend, d.device, &d.alloc), QM_ERROR_MEMORY);
    qmi_state_pool_close(&pool);
    pool_device_end(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(lays_out_a_block), cmocka_unit_test(counts),
                                        cmocka_unit_test(says_when_there_is_no_more) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
