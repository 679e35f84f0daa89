/* HTTP: connections, whole requests within limits, who may ask, and replies, also those that come piece by piece.
 *
 * Each connection has a thread, so that a handler may wait. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <jansson.h>
#include <microhttpd.h>

#include "server.h"
#include "text_buffer.h"

typedef struct request {
    server *server;
    struct MHD_Connection *connection;
    const char *method, *path;
    text_buffer body;
    int too_large;
    int status; /* of the reply, once there is one */
} request;

typedef enum MHD_Result (*handler)(request *request);

/* How errors look: OpenAI's shape, or Anthropic's. */
typedef enum error_shape { ERROR_OPENAI, ERROR_ANTHROPIC } error_shape;

typedef struct http_settings {
    const char *host; /* address to listen at */
    uint16_t port;    /* 0: any free one */
    unsigned connections;
    size_t header_limit;
} http_settings;

typedef struct http_server http_server;
/* 0, or -1 after a message. */
int http_start(server *server, const http_settings *settings, http_server **out);
uint16_t http_port(const http_server *http);
void http_quiet(http_server *http); /* accepts no more connections */
/* Lets replies under way be sent for so long, then closes all connections and waits for their threads. */
void http_stop(http_server **http, int64_t limit_ms);

/* ---- replies; each returns what the handler returns ---- */
enum MHD_Result reply_json(request *request, int status, json_t *body); /* takes over the reference */
enum MHD_Result reply_text(request *request, int status, const char *type, const char *text, size_t length);
enum MHD_Result reply_error(request *request, int status, const char *code, const char *message);
/* Full queue, or stopping: with Retry-After. */
enum MHD_Result reply_refused(request *request, submit_result result);
json_t *error_body(error_shape shape, int status, const char *code, const char *message);
error_shape request_error_shape(const request *request);

/* Server-sent events: `next` appends to `out`, waiting at most some seconds, and returns 0 when that was the last; it is called
 * with an empty buffer. `end` frees the state, whether or not the client has heard it all. */
typedef int (*stream_next)(void *state, text_buffer *out);
enum MHD_Result reply_stream(request *request, stream_next next, void (*end)(void *state), void *state);

/* While a handler waits, the connection is not idle. */
void request_waits(request *request, int waits);
int request_socket(const request *request);

#endif
