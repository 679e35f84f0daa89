/* Connections, requests and replies; see http.h. */
#include "http.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "metrics.h"
#include "routes.h"

#define JSON_TYPE "application/json"

struct http_server {
    server *server;
    struct MHD_Daemon *daemon;
    atomic_int requests; /* whose replies are not sent to their end */
    int listener;
};

/* ---- replies ---- */

static void add_common_headers(const request *request, struct MHD_Response *response)
{
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    const char *origin = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Origin");
    const char *allowed = request->server->allow_origin;
    if (origin && allowed && (strcmp(allowed, "*") == 0 || strcmp(allowed, origin) == 0)) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", allowed);
        MHD_add_response_header(response, "Access-Control-Allow-Headers",
                                "Authorization, Content-Type, X-Api-Key, Anthropic-Version");
        MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        MHD_add_response_header(response, "Vary", "Origin");
    }
}

static enum MHD_Result queue_response(request *request, int status, struct MHD_Response *response)
{
    if (!response)
        return MHD_NO;
    add_common_headers(request, response);
    request->status = status;
    enum MHD_Result result = MHD_queue_response(request->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result reply_text(request *request, int status, const char *type, const char *text, size_t length)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(length, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (response)
        MHD_add_response_header(response, "Content-Type", type);
    return queue_response(request, status, response);
}

static struct MHD_Response *json_response(json_t *body)
{
    text_buffer text = { 0 };
    buffer_add_json(&text, body);
    buffer_add_text(&text, "\n");
    json_decref(body);
    struct MHD_Response *response = MHD_create_response_from_buffer(text.length, text.data, MHD_RESPMEM_MUST_FREE);
    if (!response)
        buffer_free(&text);
    else
        MHD_add_response_header(response, "Content-Type", JSON_TYPE);
    return response;
}

enum MHD_Result reply_json(request *request, int status, json_t *body)
{
    return queue_response(request, status, json_response(body));
}

error_shape request_error_shape(const request *request)
{
    return strncmp(request->path, "/v1/messages", 12) == 0 ? ERROR_ANTHROPIC : ERROR_OPENAI;
}

static const char *error_type(error_shape shape, int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return shape == ERROR_ANTHROPIC ? "not_found_error" : "invalid_request_error";
    case 413: return shape == ERROR_ANTHROPIC ? "request_too_large" : "invalid_request_error";
    case 429: return "rate_limit_error";
    case 503: return shape == ERROR_ANTHROPIC ? "overloaded_error" : "server_error";
    default: return status < 500 ? "invalid_request_error" : shape == ERROR_ANTHROPIC ? "api_error" : "server_error";
    }
}

json_t *error_body(error_shape shape, int status, const char *code, const char *message)
{
    json_t *text = json_text(message, strlen(message));
    if (shape == ERROR_ANTHROPIC)
        return json_pack("{s:s, s:{s:s, s:o}}", "type", "error", "error", "type", error_type(shape, status), "message", text);
    return json_pack("{s:{s:o, s:s, s:n, s:s?}}", "error", "message", text, "type", error_type(shape, status), "param", "code",
                     code);
}

static enum MHD_Result reply_error_with(request *request, int status, const char *code, const char *message, const char *header,
                                        const char *value)
{
    struct MHD_Response *response = json_response(error_body(request_error_shape(request), status, code, message));
    if (response && header)
        MHD_add_response_header(response, header, value);
    return queue_response(request, status, response);
}

enum MHD_Result reply_error(request *request, int status, const char *code, const char *message)
{
    return reply_error_with(request, status, code, message, NULL, NULL);
}

enum MHD_Result reply_refused(request *request, submit_result result)
{
    char seconds[24];
    snprintf(seconds, sizeof seconds, "%lld", (long long)scheduler_retry_seconds(request->server->scheduler));
    if (result == SUBMIT_FULL)
        return reply_error_with(request, 429, "queue_full", "all places are taken and the queue is full; try again later",
                                "Retry-After", seconds);
    return reply_error_with(request, 503, "stopping", "the server is stopping", "Retry-After", seconds);
}

/* ---- streams ---- */

typedef struct stream {
    stream_next next;
    void (*end)(void *state);
    void *state;
    text_buffer pending;
    size_t sent;
    int over;
} stream;

static ssize_t read_stream(void *user, uint64_t position, char *out, size_t size)
{
    stream *s = user;
    (void)position;
    while (s->sent == s->pending.length && !s->over) {
        s->sent = s->pending.length = 0;
        s->over = !s->next(s->state, &s->pending);
    }
    size_t left = s->pending.length - s->sent;
    if (left == 0)
        return MHD_CONTENT_READER_END_OF_STREAM;
    size_t count = left < size ? left : size;
    memcpy(out, s->pending.data + s->sent, count);
    s->sent += count;
    return (ssize_t)count;
}

static void free_stream(void *user)
{
    stream *s = user;
    s->end(s->state);
    buffer_free(&s->pending);
    free(s);
}

enum MHD_Result reply_stream(request *request, stream_next next, void (*end)(void *state), void *state)
{
    stream *s = server_allocate(1, sizeof *s);
    *s = (stream){ .next = next, .end = end, .state = state };
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, s, free_stream);
    if (!response) {
        free_stream(s);
        return MHD_NO;
    }
    MHD_add_response_header(response, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    return queue_response(request, 200, response);
}

void request_waits(request *request, int waits)
{
    /* Setting it from 0 also starts its time anew. */
    MHD_set_connection_option(request->connection, MHD_CONNECTION_OPTION_TIMEOUT, waits ? 0U : request->server->idle_seconds);
}

int request_socket(const request *request)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? (int)info->connect_fd : -1;
}

/* ---- who may ask ---- */

/* In a time that does not tell how much of it is right. */
static int same_secret(const char *given, const char *secret)
{
    size_t given_length = strlen(given), length = strlen(secret);
    unsigned char different = given_length != length;
    for (size_t i = 0; i < given_length; i++)
        different |= (unsigned char)(given[i] ^ secret[i < length ? i : length]);
    return !different;
}

static int has_key(const request *request)
{
    const char *secret = request->server->api_key;
    if (!secret)
        return 1;
    const char *bearer = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Authorization");
    const char *key = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "X-Api-Key");
    if (bearer && strncasecmp(bearer, "Bearer ", 7) == 0 && same_secret(bearer + 7, secret))
        return 1;
    return key && same_secret(key, secret);
}

/* Length of the name or address in "name:port" or "[address]:port". */
static size_t host_length(const char *host)
{
    const char *end = *host == '[' ? strchr(host, ']') : NULL;
    return end ? (size_t)(end - host) + 1 : strcspn(host, ":");
}

/* A page of another site may send requests here through its visitor's browser, and may name this machine as it likes: so a
 * request from a page has to come from the server's own page, and the name it calls the server by has to be the machine's own. */
static const char *refuse_foreign(const request *request)
{
    static const char *const own[] = { "localhost", "127.0.0.1", "[::1]" };
    const char *host = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Host");
    const char *origin = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Origin");
    const char *allowed = request->server->allow_origin;
    if (host && !request->server->any_host) {
        size_t length = host_length(host);
        int known = 0;
        for (size_t i = 0; i < sizeof own / sizeof *own; i++)
            known = known || (strlen(own[i]) == length && strncasecmp(host, own[i], length) == 0);
        if (!known)
            return "the server was called by a name that is not this machine's own; set --host or --api-key to serve others";
    }
    if (!origin || (allowed && (strcmp(allowed, "*") == 0 || strcmp(allowed, origin) == 0)))
        return NULL;
    const char *name = strstr(origin, "://");
    if (host && name && strcasecmp(name + 3, host) == 0)
        return NULL;
    return "pages of other sites may not call this server; --allow-origin lets one";
}

/* ---- requests ---- */

static enum MHD_Result answer_request(request *request)
{
    const char *refused = refuse_foreign(request);
    if (refused)
        return reply_error(request, 403, "forbidden", refused);
    if (strcmp(request->method, "OPTIONS") == 0)
        return reply_text(request, 204, "text/plain", "", 0);
    int allowed_methods = 0, open = 0;
    handler found = route_find(request->method, request->path, &allowed_methods, &open);
    if (!found && allowed_methods)
        return reply_error_with(request, 405, "method_not_allowed", "this path takes another method", "Allow",
                                allowed_methods == ROUTE_GET ? "GET, HEAD" : "POST");
    if (!found)
        return reply_error(request, 404, "not_found", "there is nothing at this path");
    if (!open && !has_key(request))
        return reply_error_with(request, 401, "invalid_api_key", "the API key is missing or wrong", "WWW-Authenticate", "Bearer");
    if (request->too_large)
        return reply_error(request, 413, "too_large", "the body is larger than this server takes");
    return found(request);
}

static request *new_request(server *server, struct MHD_Connection *connection, const char *url, const char *method)
{
    request *fresh = server_allocate(1, sizeof *fresh);
    *fresh = (request){ .server = server, .connection = connection, .path = url, .method = method };
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");
    fresh->too_large = length && strtoull(length, NULL, 10) > server->body_limit;
    return fresh;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **context)
{
    http_server *http = user;
    request *request = *context;
    (void)version;
    if (!request) {
        *context = new_request(http->server, connection, url, method);
        atomic_fetch_add(&http->requests, 1);
        request = *context;
        return request->too_large ? answer_request(request) : MHD_YES; /* before it is sent: the connection is closed then */
    }
    if (*size) {
        if (request->body.length + *size > http->server->body_limit) {
            if (request->too_large) /* sent piece by piece, and no end to it */
                return MHD_NO;
            request->too_large = 1;
            buffer_free(&request->body);
        } else if (!request->too_large) {
            buffer_add(&request->body, data, *size);
        }
        *size = 0;
        return MHD_YES;
    }
    return answer_request(request);
}

static void on_completed(void *user, struct MHD_Connection *connection, void **context, enum MHD_RequestTerminationCode code)
{
    request *request = *context;
    http_server *http = user;
    (void)connection, (void)code;
    if (!request)
        return;
    atomic_fetch_sub(&http->requests, 1);
    metrics_count_request(request->path, request->status);
    buffer_free(&request->body);
    free(request);
    *context = NULL;
}

/* ---- listening ---- */

/* What the system keeps for a client that reads slowly; more waits in the task. */
#define SEND_BUFFER (256 << 10)

static int open_listener(const http_settings *settings)
{
    char port[8];
    struct addrinfo *found = NULL, hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV };
    snprintf(port, sizeof port, "%u", settings->port);
    int code = getaddrinfo(settings->host, port, &hints, &found);
    if (code != 0) {
        fprintf(stderr, "qwenmoe-server: --host %s: %s\n", settings->host, gai_strerror(code));
        return -1;
    }
    int one = 1, buffer = SEND_BUFFER, fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) < 0 || bind(fd, found->ai_addr, found->ai_addrlen) < 0 ||
        listen(fd, 128) < 0) {
        fprintf(stderr, "qwenmoe-server: cannot listen at %s port %u: %m\n", settings->host, settings->port);
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

/* Of each connection's thread. JSON may be nested 2048 deep, and what walks it calls itself at each level. */
#define THREAD_STACK ((size_t)4 << 20)

int http_start(server *server, const http_settings *settings, http_server **out)
{
    http_server *http = server_allocate(1, sizeof *http);
    http->server = server;
    http->listener = open_listener(settings);
    if (http->listener >= 0)
        http->daemon =
            MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC, 0,
                             NULL, NULL, on_request, http, MHD_OPTION_LISTEN_SOCKET, http->listener, MHD_OPTION_NOTIFY_COMPLETED,
                             on_completed, http, MHD_OPTION_CONNECTION_LIMIT, settings->connections,
                             MHD_OPTION_CONNECTION_TIMEOUT, server->idle_seconds, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                             settings->header_limit, MHD_OPTION_THREAD_STACK_SIZE, THREAD_STACK, MHD_OPTION_STRICT_FOR_CLIENT, 1,
                             MHD_OPTION_END);
    if (!http->daemon) {
        if (http->listener >= 0) {
            fprintf(stderr, "qwenmoe-server: the HTTP server cannot be started\n");
            close(http->listener);
        }
        free(http);
        return -1;
    }
    *out = http;
    return 0;
}

uint16_t http_port(const http_server *http)
{
    struct sockaddr_storage address = { 0 };
    socklen_t length = sizeof address;
    if (getsockname(http->listener, (struct sockaddr *)&address, &length) < 0)
        return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

void http_quiet(http_server *http)
{
    MHD_socket listener = MHD_quiesce_daemon(http->daemon);
    if (listener != MHD_INVALID_SOCKET)
        close(listener);
}

void http_stop(http_server **http, int64_t limit_ms)
{
    const struct timespec moment = { .tv_nsec = 5000000 };
    for (int64_t waited = 0; atomic_load(&(*http)->requests) > 0 && waited < limit_ms; waited += 5)
        nanosleep(&moment, NULL);
    MHD_stop_daemon((*http)->daemon);
    free(*http);
    *http = NULL;
}
