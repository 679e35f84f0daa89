/* The table of options and values read from text. */
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/error.h"
#include "base/number.h"
#include "base/options.h"
#include "failing_alloc.h"

static int32_t find(const char *name)
{
    int32_t id = qmi_option_find(name);
    if (id < 0)
        fail_msg("%s", qmi_error_text());
    return id;
}

static qmi_settings fresh(void)
{
    qmi_settings settings;
    qmi_settings_start(&settings, NULL);
    return settings;
}

static void holds(const qmi_settings *settings, const char *name, const char *expected)
{
    char text[256];
    int64_t length = qmi_settings_get(settings, find(name), text, sizeof text);
    assert_int_equal(length, (int64_t)strlen(expected));
    assert_string_equal(text, expected);
}

static void set_good(qmi_settings *settings, const char *name, const char *value)
{
    if (qmi_settings_set(settings, find(name), value) != QM_OK)
        fail_msg("%s = %s: %s", name, value ? value : "(default)", qmi_error_text());
}

/* The value is refused with a message that has all of these parts, and nothing changes. */
static void set_bad(qmi_settings *settings, const char *name, const char *value, const char *part)
{
    char before[64], after[64];
    qmi_settings_get(settings, find(name), before, sizeof before);
    if (qmi_settings_set(settings, find(name), value) != QM_ERROR_OPTION)
        fail_msg("%s = '%s' was taken", name, value);
    const char *message = qmi_error_text();
    if (!strstr(message, name) || !strstr(message, part) || !strstr(message, qmi_option_range_text(find(name))))
        fail_msg("%s = '%s': message '%s' lacks '%s'", name, value, message, part);
    qmi_settings_get(settings, find(name), after, sizeof after);
    assert_string_equal(before, after);
}

static void table_is_sound(void **state)
{
    (void)state;
    qmi_settings settings = fresh();
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        const qmi_option *option = qmi_option_at(id);
        char text[64];
        assert_int_equal(qmi_option_find(option->name), id); /* names are unique */
        assert_true(strlen(option->name) <= 32 && strlen(option->help) > 0);
        if (qmi_settings_set(&settings, id, option->fallback) != QM_OK)
            fail_msg("default of %s: %s", option->name, qmi_error_text());
        qmi_settings_end(&settings);
        settings = fresh();
        assert_int_equal(qmi_settings_get(&settings, id, text, sizeof text), (int64_t)strlen(option->fallback));
        assert_string_equal(text, option->fallback);
    }
    assert_null(qmi_option_at(-1));
    assert_null(qmi_option_at(QMI_OPT_COUNT));
    assert_null(qmi_option_range_text(QMI_OPT_COUNT));
    assert_string_equal(qmi_option_range_text(QMI_OPT_THREADS), "0..1024");
    assert_string_equal(qmi_option_range_text(QMI_OPT_PRIORITY), "-100..100");
    assert_string_equal(qmi_option_range_text(QMI_OPT_REPETITION_PENALTY), "0.01..100");
    assert_string_equal(qmi_option_range_text(QMI_OPT_KV_TYPE), "f32|f16|bf16|q8_0|q6|q5|q4_0|q2|auto");
    assert_string_equal(qmi_option_range_text(QMI_OPT_PIN), "");
    assert_string_equal(qmi_option_range_text(QMI_OPT_STOP), "");
    assert_string_equal(qmi_option_type_name(qmi_option_at(QMI_OPT_TOP_P)->type), "float");
    assert_string_equal(qmi_option_scope_name(qmi_option_at(QMI_OPT_TOP_P)->scope), "sampling");
}

static void integers(void **state)
{
    (void)state;
    qmi_settings settings = fresh();
    static const char *const not_numbers[] = { "", " 1", "1 ", "1x", "x", "0x10", "1.0", "1e3", "-", "+", "--1", "1_000",
        "\xff" };
    static const char *const outside[] = { "-1", "1025", "9223372036854775807", "9223372036854775808", "18446744073709551617",
                                           "99999999999999999999999999999999999999" };
    set_good(&settings, "threads", "1024");
    holds(&settings, "threads", "1024");
    set_good(&settings, "threads", "+007");
    holds(&settings, "threads", "7");
    set_good(&settings, "priority", "-100");
    assert_int_equal(qmi_settings_int(&settings, QMI_OPT_PRIORITY), -100);
    set_good(&settings, "seed", "9007199254740991");
    assert_int_equal(qmi_settings_int(&settings, QMI_OPT_SEED), 9007199254740991);
    set_good(&settings, "memory-limit", "1000000000000000");
    for (size_t i = 0; i < sizeof not_numbers / sizeof *not_numbers; i++)
        set_bad(&settings, "threads", not_numbers[i], "is not a whole number");
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        set_bad(&settings, "threads", outside[i], "range");
    set_bad(&settings, "memory-limit", "1000000000000001", "range");
    set_good(&settings, "threads", NULL);
    holds(&settings, "threads", "0");
}

static void floats(void **state)
{
    (void)state;
    qmi_settings settings = fresh();
    static const char *const not_numbers[] = { "", ".", "-", "e5", "1e", "1e+", "1,5", "0x1p3", "nan", "inf", "-inf", "1.5.",
        "1 ", "1f" };
    static const char *const outside[] = { "-0.1", "100.00001", "1e400", "1e999999999999999999999" };
    static const char *const pairs[][2] = { { "0.7", "0.7" },   { "1.", "1" },        { ".25", "0.25" },   { "1e-3", "0.001" },
                                            { "1E+1", "10" },   { "-0", "0" },        { "0e999", "0" },    { "1e-999", "0" },
                                            { "0.1000", "0.1" }, { "99.99999", "99.99999" } };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        set_good(&settings, "temperature", pairs[i][0]);
        holds(&settings, "temperature", pairs[i][1]);
        assert_true(qmi_settings_float(&settings, QMI_OPT_TEMPERATURE) == strtod(pairs[i][0], NULL));
    }
    for (size_t i = 0; i < sizeof not_numbers / sizeof *not_numbers; i++)
        set_bad(&settings, "temperature", not_numbers[i], "is not a number");
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        set_bad(&settings, "temperature", outside[i], "range");
}

/* The C library reads them correctly rounded in the C locale. */
static void floats_like_the_c_library(void **state)
{
    (void)state;
    static const char *const exact[] = { "0", "1", "0.1", "0.3", "123456.789", "9007199254740993e0", "1e22", "1e-22", "5e-5",
                                         "-2.5", "000123.4500", "1000000000000000000000000000000e-30",
                                         "0.000000000000000000000000000001e30" };
    static const char *const close[] = { "3.14159265358979323846", "1.7976931348623157e308", "2.2250738585072014e-308",
                                         "1e100", "7e-300", "123456789012345678901234567890" };
    double value;
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        assert_int_equal(qmi_number_read_float(exact[i], strlen(exact[i]), &value), QMI_NUMBER_OK);
        if (value != strtod(exact[i], NULL))
            fail_msg("%s is read as %.17g", exact[i], value);
    }
    for (size_t i = 0; i < sizeof close / sizeof *close; i++) {
        double right = strtod(close[i], NULL);
        assert_int_equal(qmi_number_read_float(close[i], strlen(close[i]), &value), QMI_NUMBER_OK);
        if (fabs(value - right) > right * 0x1p-51)
            fail_msg("%s is read as %.17g", close[i], value);
    }
    for (int i = 0; i < 1000; i++) { /* what is written is read again */
        char text[QMI_NUMBER_SIZE];
        double wanted = (i * 7919 % 100003) / 1000.0 * (i % 3 ? 1 : -1e-7);
        int length = qmi_number_write_float(wanted, text);
        assert_int_equal(length, (int)strlen(text));
        assert_true(strtod(text, NULL) == wanted);
        assert_int_equal(qmi_number_read_float(text, (size_t)length, &value), QMI_NUMBER_OK);
        assert_true(value == wanted);
    }
}

static void locale_does_not_matter(void **state)
{
    (void)state;
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8", "ru_RU.UTF-8",
        "nl_NL.UTF-8", "de_DE" };
    qmi_settings settings = fresh();
    const char *found = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++)
        found = setlocale(LC_ALL, names[i]);
    if (!found) {
        print_message("no locale with a decimal comma is installed: only the C locale was tried\n");
        skip();
    }
    char probe[16];
    snprintf(probe, sizeof probe, "%.1f", 0.5);
    assert_string_equal(probe, "0,5");
    set_good(&settings, "temperature", "0.25");
    assert_true(qmi_settings_float(&settings, QMI_OPT_TEMPERATURE) == 0.25);
    holds(&settings, "temperature", "0.25");
    set_bad(&settings, "temperature", "0,25", "is not a number");
    setlocale(LC_ALL, "C");
}

static void bools_and_choices(void **state)
{
    (void)state;
    qmi_settings settings = fresh();
    static const char *const yes[] = { "1", "true", "yes", "on" }, *const no[] = { "0", "false", "no", "off" };
    static const char *const wrong[] = { "", "2", "True", "y", "on ", "truefalse" };
    for (int i = 0; i < 4; i++) {
        set_good(&settings, "lock", yes[i]);
        assert_true(qmi_settings_bool(&settings, QMI_OPT_LOCK));
        holds(&settings, "lock", "1");
        set_good(&settings, "lock", no[i]);
        assert_false(qmi_settings_bool(&settings, QMI_OPT_LOCK));
        holds(&settings, "lock", "0");
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        set_bad(&settings, "lock", wrong[i], "true|false");
    set_good(&settings, "isa", "avx512");
    assert_int_equal(qmi_settings_int(&settings, QMI_OPT_ISA), 3);
    assert_string_equal(qmi_settings_text(&settings, QMI_OPT_ISA), "avx512");
    holds(&settings, "isa", "avx512");
    static const char *const not_there[] = { "", "avx", "avx51", "avx5122", "auto|scalar", "|", "AVX2" };
    for (size_t i = 0; i < sizeof not_there / sizeof *not_there; i++)
        set_bad(&settings, "isa", not_there[i], "one of");
    set_good(&settings, "chat-format", "qwen3.5");
    assert_int_equal(qmi_settings_int(&settings, QMI_OPT_CHAT_FORMAT), 3);
}

static void presets(void **state)
{
    (void)state;
    static const char *const rows[][3] = { { "coding", "32768", "8192" }, { "chat", "8192", "2048" },
                                           { "quick", "2048", "512" } };
    for (int i = 0; i < 3; i++) {
        qmi_settings settings = fresh();
        holds(&settings, "preset", "none");
        set_good(&settings, "temperature", "0.3");
        set_good(&settings, "preset", rows[i][0]);
        holds(&settings, "preset", rows[i][0]);
        holds(&settings, "context", rows[i][1]);
        holds(&settings, "answer-tokens", rows[i][2]);
        holds(&settings, "temperature", "0.3");
        set_good(&settings, "context", "4096"); /* what comes later wins */
        set_good(&settings, "preset", "none");
        holds(&settings, "context", "4096");
        holds(&settings, "answer-tokens", rows[i][2]);
        set_bad(&settings, "preset", "code", "one of");
        holds(&settings, "preset", "none");
    }
}

static void unknown_names(void **state)
{
    (void)state;
    static const char *const pairs[][2] = { { "tempreture", "'temperature'" }, { "top_k", "'top-k'" }, { "topp", "'top-p'" },
                                            { "temp", "'temperature'" }, { "kvtype", "'kv-type'" }, { "CONTEXT ", "'" },
                                            { "contxt", "'context'" }, { "thread", "'threads'" } };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        assert_int_equal(qmi_option_find(pairs[i][0]), QM_ERROR_OPTION);
        if (!strstr(qmi_error_text(), pairs[i][0]) || !strstr(qmi_error_text(), pairs[i][1]))
            fail_msg("'%s': %s", pairs[i][0], qmi_error_text());
    }
    char large[100000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = 0;
    assert_int_equal(qmi_option_find(large), QM_ERROR_OPTION);
    assert_int_equal(qmi_option_find(""), QM_ERROR_OPTION);
    assert_int_equal(qmi_option_find("\xff\x80\n"), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "'?\?\?'"));
    qmi_settings settings = fresh();
    assert_int_equal(qmi_settings_set(&settings, QMI_OPT_COUNT, "1"), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_settings_get(&settings, -1, NULL, 0), QM_ERROR_ARGUMENT);
}

static void foreign_text_in_messages(void **state)
{
    (void)state;
    char out[QMI_SHOWN_SIZE];
    assert_string_equal(qmi_option_shown("Größe € 😀", out), "Größe € 😀");
    assert_string_equal(qmi_option_shown("a\tb\x7f", out), "a?b?");
    assert_string_equal(qmi_option_shown("\xC0\xAF|\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82", out), "?\?|?\?\?|?\?\?\?|?\?");
    char many[400] = "";
    for (int i = 0; i < 60; i++)
        strcat(many, "€");
    qmi_option_shown(many, out);
    assert_true(strlen(out) < QMI_SHOWN_SIZE && strlen(out) % 3 == 0); /* whole code points and three dots */
    assert_string_equal(out + strlen(out) - 3, "...");
}

static void text_and_its_size(void **state)
{
    (void)state;
    qmi_settings settings = fresh();
    char text[8];
    set_good(&settings, "stop", "0123456789");
    assert_int_equal(qmi_settings_get(&settings, QMI_OPT_STOP, NULL, 0), 10);
    assert_int_equal(qmi_settings_get(&settings, QMI_OPT_STOP, text, sizeof text), 10);
    assert_string_equal(text, "0123456");
    assert_int_equal(qmi_settings_get(&settings, QMI_OPT_STOP, text, 1), 10);
    assert_string_equal(text, "");
    assert_int_equal(qmi_settings_get(&settings, QMI_OPT_STOP, text, -1), QM_ERROR_ARGUMENT);
    assert_int_equal(qmi_settings_get(&settings, QMI_OPT_STOP, NULL, 4), QM_ERROR_ARGUMENT);
    set_good(&settings, "device", "");
    holds(&settings, "device", "");
    set_good(&settings, "device", NULL);
    holds(&settings, "device", "auto");
    qmi_settings_end(&settings);
}

/* ---- memory ---- */

static void copies_and_failing_memory(void **state)
{
    (void)state;
    for (int nth = 0; nth < 3; nth++) {
        failing_alloc counter = { .until_failure = -1 };
        qmi_alloc alloc = failing_hook(&counter);
        qmi_settings settings, copy;
        qmi_settings_start(&settings, &alloc);
        set_good(&settings, "stop", "first");
        set_good(&settings, "logit-bias", "1:2");
        set_good(&settings, "threads", "3");
        counter.until_failure = nth;
        int32_t status = qmi_settings_copy(&settings, &copy);
        assert_int_equal(status, nth < 2 ? QM_ERROR_MEMORY : QM_OK);
        assert_int_equal(counter.live, nth < 2 ? 2 : 4);
        if (status == QM_OK) {
            holds(&copy, "stop", "first");
            holds(&copy, "threads", "3");
            counter.until_failure = -1;
            set_good(&copy, "stop", "second");
            holds(&settings, "stop", "first");
            qmi_settings_end(&copy);
        }
        counter.until_failure = 0;
        assert_int_equal(qmi_settings_set(&settings, QMI_OPT_STOP, "other"), QM_ERROR_MEMORY);
        holds(&settings, "stop", "first");
        qmi_settings_end(&settings);
        assert_int_equal(counter.live, 0);
    }
}

static void another_allocator(void **state)
{
    (void)state;
    for (int nth = 0; nth < 3; nth++) {
        failing_alloc counter = { .until_failure = nth < 2 ? nth : -1 };
        qmi_alloc alloc = failing_hook(&counter);
        qmi_settings settings = fresh();
        set_good(&settings, "stop", "first");
        set_good(&settings, "device", "cpu");
        int32_t status = qmi_settings_use_alloc(&settings, &alloc);
        assert_int_equal(status, nth < 2 ? QM_ERROR_MEMORY : QM_OK);
        assert_int_equal(counter.live, nth < 2 ? 0 : 2);
        holds(&settings, "stop", "first");
        holds(&settings, "device", "cpu");
        qmi_settings_end(&settings);
        assert_int_equal(counter.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(integers),
        cmocka_unit_test(floats),
        cmocka_unit_test(floats_like_the_c_library),
        cmocka_unit_test(locale_does_not_matter),
        cmocka_unit_test(bools_and_choices),
        cmocka_unit_test(presets),
        cmocka_unit_test(unknown_names),
        cmocka_unit_test(foreign_text_in_messages),
        cmocka_unit_test(text_and_its_size),
        cmocka_unit_test(copies_and_failing_memory),
        cmocka_unit_test(another_allocator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
