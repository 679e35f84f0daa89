/* The records of stored keys and values: bytes written down by hand from the layout in quant/kv_type.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "quant/kv_type.h"
#include "quant/quant.h"

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t of256, of128, of34;
    } rows[] = { { "f32", 1024, 512, 136 }, { "f16", 512, 256, 68 }, { "bf16", 512, 256, 68 }, { "q8_0", 272, 136, 68 },
                 { "q6", 208, 104, 52 }, { "q5", 176, 88, 44 }, { "q4_0", 144, 72, 36 }, { "q2", 80, 40, 20 } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        qmi_kv_type type = (qmi_kv_type)qmi_kv_type_find(rows[i].name);
        assert_true(type < QMI_KV_TYPES);
        assert_int_equal(qmi_kv_head_bytes(type, 256), rows[i].of256);
        assert_int_equal(qmi_kv_head_bytes(type, 128), rows[i].of128);
        assert_int_equal(qmi_kv_head_bytes(type, 34), rows[i].of34);
    }
    assert_int_equal(qmi_kv_type_find("q4"), QMI_KV_TYPES);
}

static void packs_to(qmi_kv_type type, const float x[32], const uint8_t *bytes, int64_t size)
{
    uint8_t record[64];
    float back[32];
    memset(record, 0xee, sizeof record);
    qmi_kv_pack(type, x, record, 32);
    assert_memory_equal(record, bytes, (size_t)size);
    assert_int_equal(record[size], 0xee);
    qmi_kv_unpack(type, record, back, 32);
    assert_memory_equal(back, x, sizeof back);
}

/* Numbers that are multiples of a scale, which the block's extreme gives: nothing is lost. */
static void layouts(void **state)
{
    (void)state;
    float x[32];
    uint8_t bytes[64] = { 0 };
    for (int i = 0; i < 32; i++)
        x[i] = 0.5f * (float)(i % 16 - 8);
    for (int i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(17 * i); /* numbers i and i + 16 have the code i */
    memcpy(bytes + 16, "\x00\x38", 2); /* 0.5 */
    packs_to(QMI_KV_Q4_0, x, bytes, 18);

    for (int i = 0; i < 32; i++)
        x[i] = (float)(i - 16); /* code i */
    memcpy(bytes + 16, "\x00\x00\xff\xff\x00\x3c", 6);
    packs_to(QMI_KV_Q5, x, bytes, 22);

    for (int i = 0; i < 32; i++)
        x[i] = (float)(2 * i - 32); /* code 2 i */
    for (int i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(17 * (2 * i % 16));
    memset(bytes + 16, 0xe4, 8); /* i < 8: 0, i + 8: 1, i + 16: 2, i + 24: 3 */
    memcpy(bytes + 24, "\x00\x3c", 2);
    packs_to(QMI_KV_Q6, x, bytes, 26);

    for (int i = 0; i < 32; i++) {
        x[i] = (float)(8 * i - 127) * 2;
        bytes[i] = (uint8_t)(8 * i - 127);
    }
    memcpy(bytes + 32, "\x00\x40", 2);
    packs_to(QMI_KV_Q8_0, x, bytes, 34);

    for (int i = 0; i < 32; i++)
        x[i] = 0.25f * ((float)(i / 8) - 1.5f); /* code i / 8 */
    memset(bytes, 0xe4, 8);
    memcpy(bytes + 8, "\x00\x34", 2);
    packs_to(QMI_KV_Q2, x, bytes, 10);

    const float plain[2] = { 1, -2.5f };
    qmi_kv_pack(QMI_KV_F16, plain, bytes, 2);
    assert_memory_equal(bytes, "\x00\x3c\x00\xc1", 4);
    qmi_kv_pack(QMI_KV_BF16, plain, bytes, 2);
    assert_memory_equal(bytes, "\x80\x3f\x20\xc0", 4);
}

/* Half a step rounds to even; what is farther than the highest code from zero takes that. */
static void rounds(void **state)
{
    (void)state;
    float x[32] = { -8, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 7.4f, 7.9f }, back[32];
    static const float want[32] = { -8, 0, 2, 2, 0, -2, 7, 7 };
    uint8_t record[18];
    qmi_kv_pack(QMI_KV_Q4_0, x, record, 32);
    qmi_kv_unpack(QMI_KV_Q4_0, record, back, 32);
    for (int i = 0; i < 32; i++)
        assert_true(back[i] == want[i]);
    x[0] = 8; /* then the scale is negative, and 7.9 within reach of nothing but 7 */
    qmi_kv_pack(QMI_KV_Q4_0, x, record, 32);
    qmi_kv_unpack(QMI_KV_Q4_0, record, back, 32);
    assert_true(back[0] == 8 && back[7] == 8 && back[6] == 7);
}

/* A number that is not finite spoils its block alone; numbers beyond a half float's scale do, too. */
static void not_finite(void **state)
{
    (void)state;
    static const float bad[] = { INFINITY, -INFINITY, NAN, 3e38f };
    for (int type = QMI_KV_Q8_0; type < QMI_KV_TYPES; type++)
        for (int k = 0; k < 4; k++) {
            float x[70], back[70];
            uint8_t record[128];
            for (int i = 0; i < 70; i++)
                x[i] = i == 40 ? bad[k] : 1;
            qmi_kv_pack((qmi_kv_type)type, x, record, 70);
            qmi_kv_unpack((qmi_kv_type)type, record, back, 70);
            for (int i = 0; i < 70; i++)
                assert_true(i / 32 == 1 ? isnan(back[i]) : fabsf(back[i] - 1) < 1e-3f);
        }
    float zeros[40] = { 0 }, back[40];
    uint8_t record[40 * sizeof(float)];
    for (int type = 0; type < QMI_KV_TYPES; type++) {
        qmi_kv_pack((qmi_kv_type)type, zeros, record, 40);
        qmi_kv_unpack((qmi_kv_type)type, record, back, 40);
        for (int i = 0; i < 40; i++)
            assert_true(back[i] == 0);
    }
}

/* Keys of two bits: 34 channels, of which channel c has the codes (token + c) % 4, 0.5 (c + 1) apart, about c. */
static void groups(void **state)
{
    (void)state;
    enum { COUNT = 34, CHANNELS = 64 };
    static float x[QMI_KV_GROUP * COUNT], back[QMI_KV_GROUP * COUNT];
    static uint8_t bytes[CHANNELS * 20 + 1], want[16];
    for (int t = 0; t < QMI_KV_GROUP; t++)
        for (int c = 0; c < COUNT; c++)
            x[t * COUNT + c] = (float)c + 0.5f * (float)(c + 1) * ((float)((t + c) % 4) - 1.5f);
    assert_int_equal(qmi_kv_group_bytes(COUNT), CHANNELS * 20);
    assert_int_equal(qmi_kv_group_bytes(COUNT), QMI_KV_GROUP * qmi_kv_head_bytes(QMI_KV_Q2, COUNT));
    memset(bytes, 0xee, sizeof bytes);
    qmi_kv_pack_group(x, bytes, COUNT);
    assert_int_equal(bytes[sizeof bytes - 1], 0xee);
    for (int c = 0; c < COUNT; c++) {
        for (int i = 0; i < 16; i++) /* tokens i, i + 16, ... have the same code */
            want[i] = (uint8_t)((i + c) % 4 * 0x55);
        assert_memory_equal(bytes + 16 * c, want, 16);
        uint16_t scale, centre;
        memcpy(&scale, bytes + 16 * CHANNELS + 2 * c, 2);
        memcpy(&centre, bytes + 18 * CHANNELS + 2 * c, 2);
        assert_true(qmi_half_to_float(scale) == 0.5f * (float)(c + 1));
        assert_true(qmi_half_to_float(centre) == (float)c);
    }
    qmi_kv_unpack_group(bytes, back, COUNT);
    for (int i = 0; i < QMI_KV_GROUP * COUNT; i++)
        assert_true(back[i] == x[i]);
    /* What is not finite, or too large, spoils its channel alone. */
    x[5 * COUNT + 1] = NAN;
    x[5 * COUNT + 2] = 1e30f;
    qmi_kv_pack_group(x, bytes, COUNT);
    qmi_kv_unpack_group(bytes, back, COUNT);
    for (int t = 0; t < QMI_KV_GROUP; t++) {
        assert_true(isnan(back[t * COUNT + 1]) && isnan(back[t * COUNT + 2]));
        assert_true(back[t * COUNT + 3] == x[t * COUNT + 3]);
    }
}

/* Which tokens are packed. */
static void packed(void **state)
{
    (void)state;
    static const int64_t rows[][3] = { { 128, 0, 0 }, { 128, 128, 0 }, { 128, 191, 0 }, { 128, 192, 64 }, { 128, 255, 64 },
                                       { 128, 256, 128 }, { 1, 64, 0 }, { 1, 65, 64 }, { 20, 90, 64 } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(qmi_kv_packed((int32_t)rows[i][0], rows[i][1]), rows[i][2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(layouts),
        cmocka_unit_test(rounds),
        cmocka_unit_test(not_finite),
        cmocka_unit_test(groups),
        cmocka_unit_test(packed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
