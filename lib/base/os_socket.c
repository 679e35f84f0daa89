/* TCP: see os_socket.h. Sockets do not block; poll waits, so every wait has its end. */
#include "base/os_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/os.h"

#define MILLISECOND INT64_C(1000000)
#define RETRY_NS (50 * MILLISECOND) /* between two attempts to connect */

static int32_t fail(const char *what)
{
    return qmi_fail(QM_ERROR_DEVICE, "%s: %s", what, strerror(errno));
}

/* 1: ready, or failed, which the next call on it says; 0: not in time. */
static int32_t wait_for(int32_t socket, short events, int64_t timeout_ns)
{
    int64_t end = qmi_os_time_ns() + timeout_ns;
    struct pollfd watched = { .fd = socket, .events = events };
    for (;;) {
        int64_t left = end - qmi_os_time_ns();
        int64_t rounded = left > 0 ? (left + MILLISECOND - 1) / MILLISECOND : 0;
        int ready = poll(&watched, 1, rounded > 60000 ? 60000 : (int)rounded);
        if (ready > 0)
            return 1;
        if (ready < 0 && errno != EINTR)
            return fail("poll");
        if (left <= 0)
            return 0;
    }
}

static int32_t set_up(int32_t descriptor)
{
    const int on = 1;
    int flags = fcntl(descriptor, F_GETFL);
    if (flags < 0 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(descriptor, F_SETFD, FD_CLOEXEC) < 0)
        return fail("cannot set up a socket");
    /* small messages must not wait for more of them */
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return QM_OK;
}

static int32_t find_addresses(const char *host, int32_t port, bool to_listen, struct addrinfo **out)
{
    char service[16];
    const struct addrinfo wanted = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = to_listen ? AI_PASSIVE : 0 };
    snprintf(service, sizeof service, "%d", port);
    int error = getaddrinfo(*host ? host : NULL, service, &wanted, out);
    if (error == 0)
        return QM_OK;
    return qmi_fail(QM_ERROR_DEVICE, "cannot find the address of host \"%s\": %s", host,
                    error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
}

/* ---- who calls whom ---- */

static int32_t port_of(int32_t descriptor)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(descriptor, (struct sockaddr *)&address, &size) < 0)
        return fail("cannot ask for a socket's port");
    in_port_t port = address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&address)->sin6_port
                                                   : ((struct sockaddr_in *)(void *)&address)->sin_port;
    return ntohs(port);
}

static int32_t listen_at(const struct addrinfo *address, int32_t *out)
{
    const int on = 1, off = 0;
    int descriptor = socket(address->ai_family, SOCK_STREAM, 0);
    if (descriptor < 0)
        return fail("cannot make a socket");
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); /* of a process that has just ended */
    if (address->ai_family == AF_INET6)
        setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    int32_t code = QM_OK;
    if (bind(descriptor, address->ai_addr, address->ai_addrlen) < 0 || listen(descriptor, 64) < 0)
        code = fail("cannot listen");
    if (code >= 0)
        code = set_up(descriptor);
    if (code < 0) {
        close(descriptor);
        return code;
    }
    *out = descriptor;
    return QM_OK;
}

int32_t qmi_os_socket_listen(const char *host, int32_t port, int32_t *out, int32_t *taken)
{
    struct addrinfo *addresses;
    *out = -1;
    int32_t code = find_addresses(host, port, true, &addresses);
    if (code < 0)
        return code;
    code = QM_ERROR_DEVICE;
    /* of every address the one of version 6 takes both versions, where the machine has it */
    for (int pass = 0; pass < 2 && code < 0; pass++)
        for (const struct addrinfo *a = addresses; a && code < 0; a = a->ai_next)
            if ((a->ai_family == AF_INET6) == (pass == 0))
                code = listen_at(a, out);
    freeaddrinfo(addresses);
    if (code >= 0)
        code = *taken = port_of(*out);
    if (code < 0)
        qmi_os_socket_close(out);
    return code < 0 ? code : QM_OK;
}

int32_t qmi_os_socket_accept(int32_t listener, int64_t timeout_ns, int32_t *out, char peer[QMI_OS_HOST_SIZE])
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    *out = -1;
    int32_t code = wait_for(listener, POLLIN, timeout_ns);
    if (code <= 0)
        return code;
    int descriptor = accept(listener, (struct sockaddr *)&address, &size);
    if (descriptor < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ECONNABORTED))
        return 0; /* it has gone again */
    if (descriptor < 0)
        return fail("cannot accept a connection");
    code = set_up(descriptor);
    if (code < 0) {
        close(descriptor);
        return code;
    }
    if (getnameinfo((struct sockaddr *)&address, size, peer, QMI_OS_HOST_SIZE, NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(peer, QMI_OS_HOST_SIZE, "?");
    *out = descriptor;
    return 1;
}

static int32_t connect_to(const struct addrinfo *address, int64_t timeout_ns, int32_t *out)
{
    int error = 0;
    socklen_t size = sizeof error;
    int descriptor = socket(address->ai_family, SOCK_STREAM, 0);
    if (descriptor < 0)
        return fail("cannot make a socket");
    int32_t code = set_up(descriptor);
    if (code >= 0 && connect(descriptor, address->ai_addr, address->ai_addrlen) < 0) {
        if (errno != EINPROGRESS) {
            code = fail("cannot connect");
        } else if (wait_for(descriptor, POLLOUT, timeout_ns) <= 0) {
            code = qmi_fail(QM_ERROR_DEVICE, "cannot connect: no answer");
        } else if (getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) {
            errno = error ? error : errno;
            code = fail("cannot connect");
        }
    }
    if (code < 0) {
        close(descriptor);
        return code;
    }
    *out = descriptor;
    return QM_OK;
}

int32_t qmi_os_socket_connect(const char *host, int32_t port, int64_t timeout_ns, int32_t *out)
{
    int64_t end = qmi_os_time_ns() + timeout_ns;
    *out = -1;
    for (;;) {
        struct addrinfo *addresses;
        int32_t code = find_addresses(host, port, false, &addresses);
        if (code >= 0) {
            code = QM_ERROR_DEVICE;
            for (const struct addrinfo *a = addresses; a && code < 0; a = a->ai_next) {
                int64_t left = end - qmi_os_time_ns();
                code = connect_to(a, left > 0 ? left : 0, out);
            }
            freeaddrinfo(addresses);
        }
        if (code >= 0 || qmi_os_time_ns() >= end)
            return code;
        poll(NULL, 0, (int)(RETRY_NS / MILLISECOND));
    }
}

void qmi_os_socket_close(int32_t *socket)
{
    if (*socket >= 0)
        close(*socket);
    *socket = -1;
}

void qmi_os_socket_shut(int32_t socket)
{
    shutdown(socket, SHUT_RDWR);
}

/* ---- bytes ---- */

int32_t qmi_os_socket_wait(int32_t socket, int64_t timeout_ns)
{
    return wait_for(socket, POLLIN, timeout_ns);
}

static int32_t fail_silent(int64_t patience_ns)
{
    return qmi_fail(QM_ERROR_DEVICE, "nothing passed for %.1f s", (double)patience_ns * 1e-9);
}

int32_t qmi_os_socket_send(int32_t socket, const qmi_os_part *parts, int32_t count, int64_t patience_ns)
{
    struct iovec vectors[QMI_OS_PARTS_MAX];
    int32_t first = 0;
    for (int32_t i = 0; i < count; i++)
        vectors[i] = (struct iovec){ (void *)(uintptr_t)parts[i].data, (size_t)parts[i].bytes };
    for (;;) {
        while (first < count && vectors[first].iov_len == 0)
            first++;
        if (first == count)
            return QM_OK;
        const struct msghdr message = { .msg_iov = vectors + first, .msg_iovlen = (size_t)(count - first) };
        ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int32_t code = wait_for(socket, POLLOUT, patience_ns);
            if (code <= 0)
                return code < 0 ? code : fail_silent(patience_ns);
            continue;
        }
        if (sent < 0 && errno != EINTR)
            return fail("the connection is lost");
        for (int32_t i = first; sent > 0; i++) {
            size_t taken = (size_t)sent < vectors[i].iov_len ? (size_t)sent : vectors[i].iov_len;
            vectors[i].iov_base = (char *)vectors[i].iov_base + taken;
            vectors[i].iov_len -= taken;
            sent -= (ssize_t)taken;
        }
    }
}

int32_t qmi_os_socket_receive(int32_t socket, void *to, int64_t bytes, int64_t patience_ns)
{
    for (int64_t done = 0; done < bytes;) {
        ssize_t got = recv(socket, (char *)to + done, (size_t)(bytes - done), 0);
        if (got > 0) {
            done += got;
        } else if (got == 0) {
            return qmi_fail(QM_ERROR_DEVICE, "the connection was closed");
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            int32_t code = wait_for(socket, POLLIN, patience_ns);
            if (code <= 0)
                return code < 0 ? code : fail_silent(patience_ns);
        } else if (errno != EINTR) {
            return fail("the connection is lost");
        }
    }
    return QM_OK;
}

void qmi_os_host_name(char *out, int32_t size)
{
    if (gethostname(out, (size_t)size) < 0)
        snprintf(out, (size_t)size, "?");
    out[size - 1] = 0;
}
