/* Connections: bytes arrive whole and in order, whoever is silent or gone is an error, and no wait is without an end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "base/os_socket.h"

#define SECOND INT64_C(1000000000)
#define LARGE 5000000 /* more than a socket's buffers hold */

typedef struct pair {
    int32_t listener, a, b;
} pair;

static pair connect_pair(void)
{
    pair p;
    int32_t port;
    char peer[QMI_OS_HOST_SIZE];
    assert_int_equal(qmi_os_socket_listen("127.0.0.1", 0, &p.listener, &port), QM_OK);
    assert_in_range(port, 1, 65535);
    assert_int_equal(qmi_os_socket_connect("127.0.0.1", port, SECOND, &p.a), QM_OK);
    assert_int_equal(qmi_os_socket_accept(p.listener, SECOND, &p.b, peer), 1);
    assert_string_equal(peer, "127.0.0.1");
    return p;
}

static void close_pair(pair *p)
{
    qmi_os_socket_close(&p->a);
    qmi_os_socket_close(&p->b);
    qmi_os_socket_close(&p->listener);
    assert_int_equal(p->listener, -1);
}

static void test_parts_arrive_as_one(void **state)
{
    (void)state;
    pair p = connect_pair();
    char got[16];
    const qmi_os_part parts[] = { { "abc", 3 }, { NULL, 0 }, { "defgh", 5 } };
    assert_int_equal(qmi_os_socket_wait(p.b, 0), 0);
    assert_int_equal(qmi_os_socket_send(p.a, parts, 3, SECOND), QM_OK);
    assert_int_equal(qmi_os_socket_wait(p.b, SECOND), 1);
    assert_int_equal(qmi_os_socket_receive(p.b, got, 8, SECOND), QM_OK);
    assert_memory_equal(got, "abcdefgh", 8);
    close_pair(&p);
}

typedef struct sender {
    int32_t socket, code;
    unsigned char *bytes;
} sender;

static void send_large(void *argument)
{
    sender *s = argument;
    const qmi_os_part parts[] = { { s->bytes, LARGE / 2 }, { s->bytes + LARGE / 2, LARGE - LARGE / 2 } };
    s->code = qmi_os_socket_send(s->socket, parts, 2, 10 * SECOND);
}

static void test_more_than_the_buffers_hold(void **state)
{
    (void)state;
    pair p = connect_pair();
    qmi_os_thread *thread;
    unsigned char *bytes = malloc(LARGE), *got = malloc(LARGE);
    assert_true(bytes && got);
    for (int i = 0; i < LARGE; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    sender s = { .socket = p.a, .bytes = bytes, .code = 1 };
    assert_int_equal(qmi_os_thread_start(&thread, send_large, &s, "sender"), QM_OK);
    assert_int_equal(qmi_os_socket_receive(p.b, got, LARGE, 10 * SECOND), QM_OK);
    qmi_os_thread_join(&thread);
    assert_int_equal(s.code, QM_OK);
    assert_memory_equal(bytes, got, LARGE);
    free(bytes);
    free(got);
    close_pair(&p);
}

static void test_who_does_not_read_is_an_error_in_time(void **state)
{
    (void)state;
    pair p = connect_pair();
    unsigned char *bytes = calloc(1, LARGE);
    assert_non_null(bytes);
    int32_t code = QM_OK;
    for (int i = 0; i < 20 && code >= 0; i++) { /* until the buffers are full, whatever their size */
        const qmi_os_part part = { bytes, LARGE };
        code = qmi_os_socket_send(p.a, &part, 1, SECOND / 20);
    }
    assert_int_equal(code, QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "nothing passed"));
    free(bytes);
    close_pair(&p);
}

static void test_who_is_silent_is_an_error_in_time(void **state)
{
    (void)state;
    pair p = connect_pair();
    char got[8];
    const qmi_os_part part = { "abc", 3 };
    assert_int_equal(qmi_os_socket_send(p.a, &part, 1, SECOND), QM_OK);
    assert_int_equal(qmi_os_socket_receive(p.b, got, 4, SECOND / 50), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "nothing passed"));
    close_pair(&p);
}

static void test_the_other_side_is_gone(void **state)
{
    (void)state;
    pair p = connect_pair();
    char got[8];
    const qmi_os_part part = { "abc", 3 };
    qmi_os_socket_close(&p.a);
    assert_int_equal(qmi_os_socket_wait(p.b, SECOND), 1);
    assert_int_equal(qmi_os_socket_receive(p.b, got, 1, SECOND), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "closed"));
    int32_t code = QM_OK;
    for (int i = 0; i < 10 && code >= 0; i++) /* the first may still go out; without SIGPIPE */
        code = qmi_os_socket_send(p.b, &part, 1, SECOND);
    assert_int_equal(code, QM_ERROR_DEVICE);
    close_pair(&p);
}

static void shut_soon(void *argument)
{
    qmi_os_socket_shut(*(int32_t *)argument);
}

static void test_shutting_wakes_who_waits(void **state)
{
    (void)state;
    pair p = connect_pair();
    qmi_os_thread *thread;
    char got[1];
    assert_int_equal(qmi_os_thread_start(&thread, shut_soon, &p.b, "shut"), QM_OK);
    assert_int_equal(qmi_os_socket_receive(p.b, got, 1, 100 * SECOND), QM_ERROR_DEVICE);
    qmi_os_thread_join(&thread);
    close_pair(&p);
}

static void test_nobody_there(void **state)
{
    (void)state;
    int32_t listener, port, socket;
    char peer[QMI_OS_HOST_SIZE];
    assert_int_equal(qmi_os_socket_listen("127.0.0.1", 0, &listener, &port), QM_OK);
    assert_int_equal(qmi_os_socket_accept(listener, SECOND / 100, &socket, peer), 0);
    assert_int_equal(socket, -1);
    int32_t other, same;
    assert_int_equal(qmi_os_socket_listen("127.0.0.1", port, &other, &same), QM_ERROR_DEVICE); /* taken */
    qmi_os_socket_close(&listener);
    assert_int_equal(qmi_os_socket_connect("127.0.0.1", port, SECOND / 100, &socket), QM_ERROR_DEVICE);
    assert_int_equal(socket, -1);
    assert_int_equal(qmi_os_socket_connect("no such host", port, 0, &socket), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "no such host"));
}

static void test_on_every_address(void **state)
{
    (void)state;
    int32_t listener, port, socket;
    char name[QMI_OS_HOST_SIZE];
    assert_int_equal(qmi_os_socket_listen("", 0, &listener, &port), QM_OK);
    assert_int_equal(qmi_os_socket_connect("127.0.0.1", port, SECOND, &socket), QM_OK);
    qmi_os_socket_close(&socket);
    qmi_os_socket_close(&listener);
    qmi_os_host_name(name, sizeof name);
    assert_true(strlen(name) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_arrive_as_one),
        cmocka_unit_test(test_more_than_the_buffers_hold),
        cmocka_unit_test(test_who_does_not_read_is_an_error_in_time),
        cmocka_unit_test(test_who_is_silent_is_an_error_in_time),
        cmocka_unit_test(test_the_other_side_is_gone),
        cmocka_unit_test(test_shutting_wakes_who_waits),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_on_every_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
