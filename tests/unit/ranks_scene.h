/* For tests of ranks: processes played by threads of one process, connected by real sockets of this machine. */
#ifndef RANKS_SCENE_H
#define RANKS_SCENE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "exchange/follow.h"
#include "exchange/ranks.h"

#define SECOND INT64_C(1000000000)

static const qmi_alloc plain_alloc;

typedef struct rank_thread {
    qmi_os_thread *thread;
    qmi_settings settings;
    char path[512];
    void (*change)(qmi_rank_card *card); /* before it joins; NULL: joins as it is */
    int32_t cancel, code;
    char text[QMI_ERROR_SIZE];
} rank_thread;

static inline void path_of_model(const char *name, char out[512])
{
    snprintf(out, 512, "%s/%s", getenv("TEST_DATA"), name);
}

static inline void set_option(qmi_settings *settings, const char *name, const char *value)
{
    assert_int_equal(qmi_settings_set(settings, qmi_option_find(name), value), QM_OK);
}

static inline int32_t free_port(void)
{
    int32_t listener, port;
    assert_int_equal(qmi_os_socket_listen("", 0, &listener, &port), QM_OK);
    qmi_os_socket_close(&listener);
    return port;
}

static inline void start_settings(qmi_settings *settings, int32_t rank, int32_t ranks, int32_t port, const char *timeout)
{
    char text[64];
    qmi_settings_start(settings, NULL);
    snprintf(text, sizeof text, "%d", ranks);
    set_option(settings, "ranks", text);
    snprintf(text, sizeof text, "%d", rank);
    set_option(settings, "rank", text);
    snprintf(text, sizeof text, "127.0.0.1:%d/key", port);
    set_option(settings, "rank-id", text);
    set_option(settings, "rank-timeout", timeout);
    set_option(settings, "threads", "1");
    set_option(settings, "pin", "0");
    set_option(settings, "device", "cpu");
}

/* As qmi_ranks_follow, with a card that the test may change. */
static inline void rank_body(void *argument)
{
    rank_thread *r = argument;
    qmi_rank_card card;
    qmi_parts parts;
    qmi_link *link = NULL;
    if (!r->change) {
        r->code = qmi_ranks_follow(r->path, &r->settings, &r->cancel);
        qmi_error_copy(r->text);
        return;
    }
    r->code = qmi_parts_open(r->path, &plain_alloc, &parts);
    if (r->code >= 0)
        r->code = qmi_rank_card_make(&r->settings, &parts, &card);
    r->change(&card);
    if (r->code >= 0)
        r->code = qmi_ranks_join(&card, &r->settings, &r->cancel, &link);
    qmi_error_copy(r->text);
    qmi_link_close(&link);
    qmi_parts_close(&parts, &plain_alloc);
}

static inline void start_rank(rank_thread *r, int32_t rank, int32_t ranks, int32_t port, const char *timeout, const char *model)
{
    *r = (rank_thread){ .change = r->change };
    start_settings(&r->settings, rank, ranks, port, timeout);
    path_of_model(model, r->path);
    assert_int_equal(qmi_os_thread_start(&r->thread, rank_body, r, "rank"), QM_OK);
}

static inline void join_rank(rank_thread *r)
{
    qmi_os_thread_join(&r->thread);
    qmi_settings_end(&r->settings);
}

/* Rank 0 of a run. */
typedef struct driver {
    qmi_settings settings;
    qmi_parts parts;
    qmi_rank_card card;
    qmi_ranks *ranks;
} driver;

static inline int32_t start_driver(driver *d, int32_t ranks, int32_t port, const char *timeout, const char *model)
{
    char path[512];
    *d = (driver){ .ranks = NULL };
    start_settings(&d->settings, 0, ranks, port, timeout);
    path_of_model(model, path);
    assert_int_equal(qmi_parts_open(path, &plain_alloc, &d->parts), QM_OK);
    assert_int_equal(qmi_rank_card_make(&d->settings, &d->parts, &d->card), QM_OK);
    return qmi_ranks_gather(&d->card, &d->settings, NULL, &d->ranks);
}

static inline void end_driver(driver *d)
{
    qmi_ranks_close(&d->ranks);
    qmi_parts_close(&d->parts, &plain_alloc);
    qmi_settings_end(&d->settings);
}

#endif
