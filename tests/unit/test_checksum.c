/* Checksums against published values, whole and in pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/checksum.h"

/* RFC 3720, appendix B.4; the check value of the catalogue of CRC algorithms (CRC-32/ISCSI). */
static void crc(void **state)
{
    (void)state;
    qmi_crc crc;
    uint8_t bytes[32];
    qmi_crc_start(&crc);
    assert_int_equal(qmi_crc_add(&crc, 0, "123456789", 9), 0xE3069283u);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(qmi_crc_add(&crc, 0, bytes, 32), 0x8A9136AAu);
    memset(bytes, 0xFF, sizeof bytes);
    assert_int_equal(qmi_crc_add(&crc, 0, bytes, 32), 0x62A8AB43u);
    for (uint8_t i = 0; i < 32; i++)
        bytes[i] = i;
    assert_int_equal(qmi_crc_add(&crc, 0, bytes, 32), 0x46DD794Eu);
    for (size_t cut = 0; cut <= 32; cut++)
        assert_int_equal(qmi_crc_add(&crc, qmi_crc_add(&crc, 0, bytes, cut), bytes + cut, 32 - cut), 0x46DD794Eu);
    assert_int_equal(qmi_crc_add(&crc, 7, bytes, 0), 7);
}

/* The authors' test vectors of FNV-1a, 64 bits. */
static void fnv(void **state)
{
    (void)state;
    assert_true(qmi_fnv_add(QMI_FNV_START, "", 0) == 0xCBF29CE484222325u);
    assert_true(qmi_fnv_add(QMI_FNV_START, "a", 1) == 0xAF63DC4C8601EC8Cu);
    assert_true(qmi_fnv_add(QMI_FNV_START, "foobar", 6) == 0x85944171F73967E8u);
    assert_true(qmi_fnv_add(qmi_fnv_add(QMI_FNV_START, "foo", 3), "bar", 3) == 0x85944171F73967E8u);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(crc), cmocka_unit_test(fnv) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
