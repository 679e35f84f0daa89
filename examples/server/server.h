/* What all parts of the server share: the model, the queue, and settings that hold for every request. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stddef.h>

#include <qwenmoe.h>

#include "scheduler.h"

typedef struct server {
    qm_model *model;
    qm_options *defaults; /* options of a session where a request says nothing */
    scheduler *scheduler;
    char *model_id;
    int64_t created;          /* seconds since 1970 */
    int64_t context;          /* tokens of a session */
    const char *api_key;      /* NULL: none is asked for */
    const char *allow_origin; /* pages of this origin may call; NULL: only the server's own; "*": all */
    int any_host;             /* requests may name the server as they like */
    size_t body_limit;
    unsigned idle_seconds; /* after which a connection on which nothing moves is closed */
} server;

#endif
