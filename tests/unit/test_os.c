/* The operating system's services: maps, limits, threads, waiting on a word, events, shared objects. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/error.h"
#include "base/os.h"

static char folder[] = "/tmp/qwenmoe-test-os-XXXXXX";

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (size_t i = 0; i < size; i++)
        fputc((int)(i * 31 & 255), file);
    assert_int_equal(fclose(file), 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    const char *names[] = { "some", "empty", "pipe" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    return rmdir(folder);
}

/* ---- files ---- */

static void test_map_reads_a_file(void **state)
{
    (void)state;
    qmi_os_map map;
    write_file(path_of("some"), 100000);
    assert_true(qmi_os_file_exists(path_of("some")));
    assert_int_equal(qmi_os_map_open(path_of("some"), &map), QM_OK);
    assert_int_equal(map.size, 100000);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(map.data[i], i * 31 & 255);
    qmi_os_map_will_need(&map, 0, 100000);
    qmi_os_map_will_need(&map, 99999, INT64_MAX);
    qmi_os_map_will_need(&map, -5, 10);
    qmi_os_map_will_need(&map, 200000, 10);
    assert_int_equal(qmi_os_map_touch(&map, 0, 100000), QM_OK);
    assert_int_equal(qmi_os_map_touch(&map, 5000, INT64_MAX), QM_OK);
    assert_int_equal(qmi_os_map_touch(&map, 100000, 1), QM_OK);
    assert_int_equal(qmi_os_map_check(&map), QM_OK);
    qmi_os_map_close(&map);
    assert_null(map.data);
    qmi_os_map_close(&map);
}

static void test_map_of_what_is_no_file(void **state)
{
    (void)state;
    qmi_os_map map;
    memset(&map, 0x55, sizeof map);
    assert_int_equal(qmi_os_map_open(path_of("absent"), &map), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), path_of("absent")));
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    assert_int_equal(map.descriptor, 0);
    assert_int_equal(qmi_os_map_open(folder, &map), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), "directory"));
    assert_int_equal(mkfifo(path_of("pipe"), 0600), 0);
    assert_int_equal(qmi_os_map_open(path_of("pipe"), &map), QM_ERROR_FILE); /* and does not wait for a writer */
    assert_int_equal(qmi_os_map_open("/dev/zero", &map), QM_ERROR_FILE);
    assert_false(qmi_os_file_exists(path_of("absent")));
}

static void test_map_of_an_empty_file(void **state)
{
    (void)state;
    qmi_os_map map;
    write_file(path_of("empty"), 0);
    assert_int_equal(qmi_os_map_open(path_of("empty"), &map), QM_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    assert_int_equal(qmi_os_map_touch(&map, 0, 10), QM_OK);
    assert_int_equal(qmi_os_map_lock(&map), QM_OK);
    qmi_os_map_close(&map);
}

static void test_map_sees_that_its_file_was_cut(void **state)
{
    (void)state;
    qmi_os_map map;
    write_file(path_of("some"), 100000);
    assert_int_equal(qmi_os_map_open(path_of("some"), &map), QM_OK);
    assert_int_equal(truncate(path_of("some"), 50000), 0);
    assert_int_equal(qmi_os_map_check(&map), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), "50000"));
    assert_int_equal(qmi_os_map_touch(&map, 0, 100000), QM_ERROR_FILE); /* and not a bus error */
    assert_int_equal(truncate(path_of("some"), 200000), 0);
    assert_int_equal(qmi_os_map_check(&map), QM_OK);
    qmi_os_map_close(&map);
}

static void test_map_reads_through_the_descriptor(void **state)
{
    (void)state;
    qmi_os_map map;
    uint8_t bytes[1000];
    write_file(path_of("some"), 100000);
    assert_int_equal(qmi_os_map_open(path_of("some"), &map), QM_OK);
    assert_int_equal(qmi_os_map_read(&map, 70001, bytes, 1000), QM_OK);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(bytes[i], (70001 + i) * 31 & 255);
    assert_int_equal(qmi_os_map_read(&map, 99000, bytes, 1000), QM_OK);
    assert_int_equal(qmi_os_map_read(&map, 100000, bytes, 0), QM_OK);
    assert_int_equal(truncate(path_of("some"), 50000), 0);
    assert_int_equal(qmi_os_map_read(&map, 49000, bytes, 1000), QM_OK);
    assert_int_equal(qmi_os_map_read(&map, 49500, bytes, 1000), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), "50000"));
    qmi_os_map_close(&map);
    map.descriptor = 1 << 20; /* open as nothing */
    assert_int_equal(qmi_os_map_read(&map, 0, bytes, 1000), QM_ERROR_FILE);
}

static void test_map_of_a_replaced_file_stays_whole(void **state)
{
    (void)state;
    qmi_os_map map;
    write_file(path_of("some"), 10000);
    assert_int_equal(qmi_os_map_open(path_of("some"), &map), QM_OK);
    assert_int_equal(unlink(path_of("some")), 0);
    write_file(path_of("some"), 10);
    assert_int_equal(qmi_os_map_check(&map), QM_OK);
    assert_int_equal(map.data[9999], 9999 * 31 & 255);
    qmi_os_map_close(&map);
}

static void test_lock_names_the_limit(void **state)
{
    (void)state;
    qmi_os_map map;
    struct rlimit before, none;
    write_file(path_of("some"), 100000);
    assert_int_equal(qmi_os_map_open(path_of("some"), &map), QM_OK);
    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &none), 0);
    const int32_t status = qmi_os_map_lock(&map); /* a privileged process is above the limit */
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &before), 0);
    if (status == QM_OK) {
        assert_int_equal(map.locked, 100000);
    } else {
        assert_int_equal(status, QM_ERROR_MEMORY);
        assert_non_null(strstr(qmi_error_text(), "RLIMIT_MEMLOCK"));
        assert_int_equal(map.locked, 0);
    }
    qmi_os_map_close(&map);
}

static void test_read_text(void **state)
{
    (void)state;
    char text[64];
    FILE *file = fopen(path_of("some"), "w");
    fputs("abcdef", file);
    fclose(file);
    assert_true(qmi_os_read_text(path_of("some"), text, sizeof text));
    assert_string_equal(text, "abcdef");
    assert_true(qmi_os_read_text(path_of("some"), text, 4));
    assert_string_equal(text, "abc");
    assert_false(qmi_os_read_text(path_of("absent"), text, sizeof text));
}

/* ---- memory, time, random ---- */

static void test_memory(void **state)
{
    (void)state;
    uint8_t *pages = qmi_os_pages_new(3 << 20);
    assert_non_null(pages);
    for (size_t i = 0; i < 3 << 20; i += 4095)
        assert_int_equal(pages[i], 0);
    pages[(3 << 20) - 1] = 1;
    qmi_os_pages_free(pages, 3 << 20);
    assert_null(qmi_os_pages_new(SIZE_MAX / 2));
    void *block = qmi_os_block_new(192);
    assert_non_null(block);
    assert_int_equal((uintptr_t)block % 64, 0);
    qmi_os_block_free(block);
}

static void test_limits_are_sane(void **state)
{
    (void)state;
    const int64_t machine = qmi_os_machine_memory(), total = qmi_os_memory_total(), available = qmi_os_memory_available();
    assert_true(machine >= INT64_C(64) << 20);
    assert_true(total > 0 && total <= machine);
    assert_true(available > 0 && available <= machine);
    const int32_t count = qmi_os_processor_count(), set = qmi_os_processor_set();
    assert_true(count >= 1 && count <= set);
    assert_true(set <= sysconf(_SC_NPROCESSORS_CONF));
}

static void test_time_and_random(void **state)
{
    (void)state;
    const int64_t first = qmi_os_time_ns();
    usleep(2000);
    assert_true(qmi_os_time_ns() - first >= 2000000);
    assert_true(qmi_os_random() != qmi_os_random());
}

/* ---- threads ---- */

typedef struct shared {
    qmi_os_mutex *mutex;
    qmi_os_condition *condition;
    int64_t sum;
    int32_t done;
    _Atomic int32_t word;
    int32_t processors_after_pin;
    bool blocks_signals, takes_faults;
} shared;

static void add_many(void *argument)
{
    shared *s = argument;
    for (int i = 0; i < 10000; i++) {
        qmi_os_mutex_lock(s->mutex);
        s->sum++;
        qmi_os_mutex_unlock(s->mutex);
    }
    qmi_os_mutex_lock(s->mutex);
    s->done++;
    qmi_os_condition_signal_all(s->condition);
    qmi_os_mutex_unlock(s->mutex);
}

static void test_mutex_and_condition(void **state)
{
    (void)state;
    shared s = { 0 };
    qmi_os_thread *threads[4];
    assert_int_equal(qmi_os_mutex_new(&s.mutex), QM_OK);
    assert_int_equal(qmi_os_condition_new(&s.condition), QM_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(qmi_os_thread_start(&threads[i], add_many, &s, "a-rather-long-thread-name"), QM_OK);
    qmi_os_mutex_lock(s.mutex);
    while (s.done < 4)
        qmi_os_condition_wait(s.condition, s.mutex, -1);
    qmi_os_mutex_unlock(s.mutex);
    for (int i = 0; i < 4; i++) {
        qmi_os_thread_join(&threads[i]);
        assert_null(threads[i]);
        qmi_os_thread_join(&threads[i]);
    }
    assert_int_equal(s.sum, 40000);
    qmi_os_condition_free(&s.condition);
    qmi_os_mutex_free(&s.mutex);
    assert_null(s.mutex);
    qmi_os_mutex_free(&s.mutex);
    qmi_os_condition_free(&s.condition);
}

static void test_condition_times_out(void **state)
{
    (void)state;
    qmi_os_mutex *mutex;
    qmi_os_condition *condition;
    assert_int_equal(qmi_os_mutex_new(&mutex), QM_OK);
    assert_int_equal(qmi_os_condition_new(&condition), QM_OK);
    const int64_t start = qmi_os_time_ns();
    qmi_os_mutex_lock(mutex);
    while (qmi_os_condition_wait(condition, mutex, 3000000)) /* spurious wake-ups are allowed */
        assert_true(qmi_os_time_ns() - start < INT64_C(60000000000));
    qmi_os_mutex_unlock(mutex);
    assert_true(qmi_os_time_ns() - start >= 3000000);
    qmi_os_condition_free(&condition);
    qmi_os_mutex_free(&mutex);
}

/* Two threads hand a number back and forth, each sleeping until the word is its own. */
static void answer(void *argument)
{
    shared *s = argument;
    for (int32_t turn = 1; turn < 2000; turn += 2) {
        for (int32_t now; (now = atomic_load(&s->word)) != turn;)
            qmi_os_wait_word((const int32_t *)&s->word, now);
        atomic_store(&s->word, turn + 1);
        qmi_os_wake_all((const int32_t *)&s->word);
    }
}

static void test_wait_and_wake(void **state)
{
    (void)state;
    shared s = { 0 };
    qmi_os_thread *thread;
    assert_int_equal(qmi_os_thread_start(&thread, answer, &s, "answer"), QM_OK);
    for (int32_t turn = 0; turn < 2000; turn += 2) {
        for (int32_t now; (now = atomic_load(&s.word)) != turn;)
            qmi_os_wait_word((const int32_t *)&s.word, now);
        atomic_store(&s.word, turn + 1);
        qmi_os_wake_all((const int32_t *)&s.word);
    }
    qmi_os_thread_join(&thread);
    assert_int_equal(atomic_load(&s.word), 2000);
    qmi_os_wait_word((const int32_t *)&s.word, 5); /* another value: returns at once */
    qmi_os_spin_pause();
    qmi_os_yield();
}

static void pin(void *argument)
{
    shared *s = argument;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    s->blocks_signals = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGUSR1) == 1;
    s->takes_faults = sigismember(&mask, SIGSEGV) == 0;
    if (qmi_os_pin_self(qmi_os_processor_set() - 1))
        s->processors_after_pin = qmi_os_processor_set();
    else
        s->processors_after_pin = -1;
    s->done = qmi_os_pin_self(1); /* only one is left */
}

static void test_pin_and_signals(void **state)
{
    (void)state;
    shared s = { 0 };
    qmi_os_thread *thread;
    sigset_t before, after;
    const int32_t processors = qmi_os_processor_set();
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(qmi_os_thread_start(&thread, pin, &s, "pin"), QM_OK);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    qmi_os_thread_join(&thread);
    assert_int_equal(s.processors_after_pin, 1);
    assert_false(s.done);
    assert_int_equal(qmi_os_processor_set(), processors); /* of this thread: as it was */
    assert_true(s.blocks_signals && s.takes_faults);
    assert_int_equal(sigismember(&before, SIGINT), sigismember(&after, SIGINT));
}

/* ---- events, shared objects ---- */

static bool readable(const qmi_os_event *event)
{
    struct pollfd watched = { event->read_end, POLLIN, 0 };
    return poll(&watched, 1, 0) == 1;
}

static void test_event(void **state)
{
    (void)state;
    qmi_os_event event;
    assert_int_equal(qmi_os_event_new(&event), QM_OK);
    assert_false(readable(&event));
    for (int round = 0; round < 3; round++) {
        qmi_os_event_set(&event);
        qmi_os_event_set(&event);
        assert_true(readable(&event));
        qmi_os_event_clear(&event);
        assert_false(readable(&event));
        qmi_os_event_clear(&event); /* of one that is not set: does not block */
    }
    qmi_os_event_free(&event);
    assert_int_equal(event.read_end, -1);
    qmi_os_event_free(&event);
}

static void test_event_without_descriptors(void **state)
{
    (void)state;
    qmi_os_event event;
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    const int32_t status = qmi_os_event_new(&event);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(status, QM_ERROR_MEMORY);
    assert_int_equal(event.read_end, -1);
    qmi_os_event_free(&event);
}

static void test_library(void **state)
{
    (void)state;
    void *library = &library;
    assert_int_equal(qmi_os_library_open("/nowhere/libabsent.so", &library), QM_ERROR_FILE);
    assert_null(library);
    assert_non_null(strstr(qmi_error_text(), "/nowhere/libabsent.so"));
    qmi_os_library_close(library);
    if (qmi_os_library_open("libm.so.6", &library) == QM_OK) { /* where the C library is glibc */
        assert_non_null(qmi_os_library_symbol(library, "cos"));
        assert_null(qmi_os_library_symbol(library, "qmi_no_such_symbol"));
        qmi_os_library_close(library);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map_reads_a_file),
        cmocka_unit_test(test_map_of_what_is_no_file),
        cmocka_unit_test(test_map_of_an_empty_file),
        cmocka_unit_test(test_map_sees_that_its_file_was_cut),
        cmocka_unit_test(test_map_reads_through_the_descriptor),
        cmocka_unit_test(test_map_of_a_replaced_file_stays_whole),
        cmocka_unit_test(test_lock_names_the_limit),
        cmocka_unit_test(test_read_text),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_limits_are_sane),
        cmocka_unit_test(test_time_and_random),
        cmocka_unit_test(test_mutex_and_condition),
        cmocka_unit_test(test_condition_times_out),
        cmocka_unit_test(test_wait_and_wake),
        cmocka_unit_test(test_pin_and_signals),
        cmocka_unit_test(test_event),
        cmocka_unit_test(test_event_without_descriptors),
        cmocka_unit_test(test_library),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
