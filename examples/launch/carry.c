/* The id on its way from rank 0 to the others, over a socket: see carry.h. */
#include "carry.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "say.h"

#define GREETING "qwenmoe-launch " /* then the rank and a newline: what a caller says */
#define GREETING_MS 5000           /* within which he says it */
#define RETRY_NS 50000000

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct addrinfo *addresses_of(const char *host, int port, int passive)
{
    char service[16];
    struct addrinfo *list = NULL;
    const struct addrinfo wanted = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : 0 };
    snprintf(service, sizeof service, "%d", port);
    return getaddrinfo(host, service, &wanted, &list) == 0 ? list : NULL;
}

/* On all addresses of this machine; -1 after a message. */
static int open_listener(int port)
{
    const int on = 1, off = 0;
    int listener = -1, error = 0;
    struct addrinfo *list = addresses_of(NULL, port, 1);
    for (int pass = 0; pass < 2 && listener < 0; pass++) /* of version 6, which takes both, where there is one */
        for (struct addrinfo *a = list; a && listener < 0; a = a->ai_next) {
            if ((a->ai_family == AF_INET6) != (pass == 0) || (listener = socket(a->ai_family, SOCK_STREAM, 0)) < 0)
                continue;
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            if (a->ai_family == AF_INET6)
                setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
            if (bind(listener, a->ai_addr, a->ai_addrlen) < 0 || listen(listener, 64) < 0) {
                error = errno;
                close(listener);
                listener = -1;
            }
        }
    if (list)
        freeaddrinfo(list);
    if (listener < 0)
        say("cannot listen at port %d: %s; choose another with --port", port, strerror(error));
    return listener;
}

static int wait_readable(int descriptor, double seconds)
{
    struct pollfd watched = { .fd = descriptor, .events = POLLIN };
    return poll(&watched, 1, seconds > 0 ? (int)(seconds * 1000) + 1 : 0) > 0;
}

/* Up to the newline, which is left out. 0; or -1: it did not come in time, or is too long. */
static int read_line(int descriptor, double seconds, char line[LINE_SIZE])
{
    double end = now() + seconds;
    for (int length = 0; length < LINE_SIZE; length++) {
        if (!wait_readable(descriptor, end - now()) || read(descriptor, line + length, 1) != 1)
            return -1;
        if (line[length] == '\n') {
            line[length] = 0;
            return 0;
        }
    }
    return -1;
}

static int write_line(int descriptor, const char *line)
{
    char text[LINE_SIZE + 2];
    int length = snprintf(text, sizeof text, "%s\n", line);
    return send(descriptor, text, (size_t)length, MSG_NOSIGNAL) == length ? 0 : -1;
}

/* The rank of who has called; -1: a stranger. */
static int greet(int caller, int ranks)
{
    char line[LINE_SIZE], *end;
    if (read_line(caller, GREETING_MS / 1000.0, line) < 0 || strncmp(line, GREETING, strlen(GREETING)) != 0)
        return -1;
    long rank = strtol(line + strlen(GREETING), &end, 10);
    return *end || rank < 1 || rank >= ranks ? -1 : (int)rank;
}

/* Rank 0: all have to be there before any is told, as they then call the port for another purpose. */
static int hand_out(const place *place, int seconds, const char *line)
{
    double end = now() + seconds;
    int missing = place->ranks - 1, code = -1, listener = open_listener(place->port);
    int *callers = malloc((size_t)place->ranks * sizeof *callers);
    if (listener < 0 || !callers) {
        free(callers);
        return -1;
    }
    for (int i = 0; i < place->ranks; i++)
        callers[i] = -1;
    while (missing > 0 && wait_readable(listener, end - now())) {
        int caller = accept(listener, NULL, NULL), rank = caller < 0 ? -1 : greet(caller, place->ranks);
        if (rank < 0 || callers[rank] >= 0) {
            if (caller >= 0)
                close(caller);
            continue;
        }
        callers[rank] = caller;
        missing--;
    }
    close(listener);
    for (int i = 1; i < place->ranks && missing > 0; i++)
        if (callers[i] < 0)
            say("rank %d did not call %s, port %d, within %d s", i, place->host, place->port, seconds);
    if (missing == 0)
        code = 0;
    for (int i = 1; i < place->ranks; i++)
        if (callers[i] >= 0) {
            if (missing == 0 && write_line(callers[i], line) < 0) {
                say("rank %d is gone", i);
                code = -1;
            }
            close(callers[i]);
        }
    free(callers);
    return code;
}

/* A connection to rank 0; -1: nobody there. */
static int call_once(const place *place)
{
    int caller = -1;
    struct addrinfo *list = addresses_of(place->host, place->port, 0);
    for (struct addrinfo *a = list; a && caller < 0; a = a->ai_next) {
        const struct timeval patience = { .tv_sec = 2 }; /* with a machine that does not answer at all */
        caller = socket(a->ai_family, SOCK_STREAM, 0);
        if (caller >= 0)
            setsockopt(caller, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (caller >= 0 && connect(caller, a->ai_addr, a->ai_addrlen) < 0) {
            close(caller);
            caller = -1;
        }
    }
    if (list)
        freeaddrinfo(list);
    return caller;
}

static int fetch(const place *place, int seconds, char line[LINE_SIZE])
{
    char greeting[64];
    double end = now() + seconds;
    int caller = call_once(place);
    while (caller < 0 && now() < end) {
        nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
        caller = call_once(place);
    }
    if (caller < 0)
        return say("rank 0 does not answer at %s, port %d, within %d s", place->host, place->port, seconds), -1;
    snprintf(greeting, sizeof greeting, GREETING "%d", place->rank);
    int code = write_line(caller, greeting);
    if (code == 0)
        code = read_line(caller, seconds, line);
    close(caller);
    if (code < 0)
        say("rank 0 at %s, port %d, ended before all had come", place->host, place->port);
    return code;
}

int carry_by_socket(const place *place, int seconds, char line[LINE_SIZE])
{
    return place->rank == 0 ? hand_out(place, seconds, line) : fetch(place, seconds, line);
}
