/* Connections between processes and machines: TCP, as a part of what os.h is for. os_socket.c is, beside os.c, the only file with
 * system calls of this kind.
 *
 * A socket is a descriptor, -1: none. Calls that can fail return QM_ERROR_DEVICE with the message set, which does not name the
 * other side: the caller knows who it is. One thread may send while another receives. No call raises SIGPIPE. */
#ifndef QMI_BASE_OS_SOCKET_H
#define QMI_BASE_OS_SOCKET_H

#include <stdbool.h>
#include <stdint.h>

#define QMI_OS_HOST_SIZE 256

typedef struct qmi_os_part { /* of what is sent at once */
    const void *data;
    int64_t bytes;
} qmi_os_part;
#define QMI_OS_PARTS_MAX 8

/* host "": on every address of this machine. port 0: a free one. *taken: the port. */
int32_t qmi_os_socket_listen(const char *host, int32_t port, int32_t *out, int32_t *taken);
/* 1: *out is the next caller, peer the address it calls from; 0: nobody called in time. */
int32_t qmi_os_socket_accept(int32_t listener, int64_t timeout_ns, int32_t *out, char peer[QMI_OS_HOST_SIZE]);
/* Tries again until it is answered or the time is over, as the other side may start later. */
int32_t qmi_os_socket_connect(const char *host, int32_t port, int64_t timeout_ns, int32_t *out);
void qmi_os_socket_close(int32_t *socket);    /* accepts -1; leaves it so */
void qmi_os_socket_shut(int32_t socket);      /* both directions: whoever waits in another thread returns */

/* patience_ns: the longest time in which not one byte passes. */
int32_t qmi_os_socket_send(int32_t socket, const qmi_os_part *parts, int32_t count, int64_t patience_ns);
int32_t qmi_os_socket_receive(int32_t socket, void *to, int64_t bytes, int64_t patience_ns);
/* 1: there is something to read, or the end of it; 0: not in time. */
int32_t qmi_os_socket_wait(int32_t socket, int64_t timeout_ns);
void qmi_os_host_name(char *out, int32_t size); /* of this machine; "?" if it has none */

#endif
