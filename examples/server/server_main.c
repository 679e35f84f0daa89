/* qwenmoe-server: answers OpenAI's, Anthropic's and editors' requests over HTTP. Reads the command line, loads the model, serves
 * until it is told to stop. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "http.h"

static const flag flags[] = {
    { "host", 0, "ADDRESS", "address to listen at (default 127.0.0.1: only this machine; 0.0.0.0 and :: are all its addresses)" },
    { "port", 'p', "N", "port to listen at (default 8080; 0 takes a free one, which is printed)" },
    { "api-key", 0, "TEXT",
      "clients must send this key; other users of this machine can see it here, so better use --api-key-file" },
    { "api-key-file", 0, "FILE", "... the first line of this file" },
    { "allow-origin", 0, "ORIGIN", "web pages of this origin may call, besides the server's own page; * are all" },
    { "alias", 0, "NAME", "name of the model in replies (default: the file's)" },
    { "parallel", 0, "N", "answers computed at a time (default 8)" },
    { "queue", 0, "N", "requests that wait for their turn; more are refused with status 429 (default 64)" },
    { "queue-time", 0, "SECONDS", "... for so long at most, then they get status 503 (default 60)" },
    { "time-limit", 0, "SECONDS", "an answer is ended after so long (default 600)" },
    { "stop-time", 0, "SECONDS", "answers under way may take so long to end when the server is told to stop (default 10)" },
    { "idle-time", 0, "SECONDS", "connections on which nothing moves for so long are closed (default 60)" },
    { "connections", 0, "N", "connections at a time (default 256)" },
    { "body-limit", 0, "BYTES", "largest body of a request (default 16777216)" },
    { "header-limit", 0, "BYTES", "memory for the headers of a request (default 65536)" },
    { "version", 0, NULL, "print the version" },
    { NULL, 0, NULL, NULL },
};

static const verb program = {
    .name = "",
    .words = "",
    .summary = "",
    .detail = "Serves a model over HTTP: /v1/chat/completions, /v1/completions, /v1/responses,\n"
              "/v1/models (OpenAI), /v1/messages (Anthropic), /infill and /completion (as\n"
              "llama.vim and llama.vscode ask), /tokenize, /detokenize, /apply-template,\n"
              "/health, /metrics (Prometheus), and at / a page to chat on. Options of sampling\n"
              "are what holds where a request says nothing.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = NULL,
};

typedef struct wishes { /* what the command line says, as numbers */
    int64_t port, parallel, queue, queue_time, time_limit, stop_time, idle_time, connections, body_limit, header_limit;
} wishes;

static int read_wishes(const arguments *arguments, wishes *out)
{
    const struct {
        const char *name;
        int64_t lowest, highest, fallback;
        int64_t *to;
    } numbers[] = {
        { "port", 0, 65535, 8080, &out->port },
        { "parallel", 1, 256, 8, &out->parallel },
        { "queue", 0, 100000, 64, &out->queue },
        { "queue-time", 1, 86400, 60, &out->queue_time },
        { "time-limit", 1, 604800, 600, &out->time_limit },
        { "stop-time", 0, 3600, 10, &out->stop_time },
        { "idle-time", 1, 86400, 60, &out->idle_time },
        { "connections", 1, 10000, 256, &out->connections },
        { "body-limit", 1024, 1 << 30, 1 << 24, &out->body_limit },
        { "header-limit", 4096, 1 << 24, 1 << 16, &out->header_limit },
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int code = arguments_number(arguments, numbers[i].name, numbers[i].lowest, numbers[i].highest, numbers[i].fallback,
                                    numbers[i].to);
        if (code != EXIT_OK)
            return code;
    }
    return EXIT_OK;
}

/* The key of --api-key or --api-key-file, in *out for free, NULL if none is set. */
static int read_key(const arguments *arguments, char **out)
{
    const char *key = arguments_flag(arguments, "api-key"), *path = arguments_flag(arguments, "api-key-file");
    int64_t length = 0;
    *out = NULL;
    if (key && path)
        return arguments_usage(arguments, "--api-key and --api-key-file are two ways to say the same; give one");
    if (key)
        *out = server_copy(key, strlen(key));
    else if (path && read_file(path, out, &length) != EXIT_OK)
        return EXIT_FAILED;
    if (*out)
        (*out)[strcspn(*out, "\r\n")] = 0;
    return !*out || **out ? EXIT_OK : arguments_usage(arguments, "the API key is empty");
}

static int is_loopback(const char *host)
{
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

/* The file's name without folder and ending. */
static char *name_of_model(const qm_model *model)
{
    char path[4096];
    model_text(model, "file", path, sizeof path);
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t length = strlen(name);
    if (length > 5 && strcmp(name + length - 5, ".gguf") == 0)
        length -= 5;
    return server_copy(name, length);
}

/* Options that every session starts from, and the context they give. */
static int prepare_sessions(arguments *arguments, server *server)
{
    qm_session *session = NULL;
    if (qm_options_copy(arguments->options, &server->defaults) < 0 ||
        qm_session_new(server->model, server->defaults, &session) < 0)
        return complain_library();
    server->context = qm_session_context(session);
    qm_session_free(&session);
    return EXIT_OK;
}

static int serve(server *server, const arguments *arguments, const wishes *wishes, const sigset_t *signals)
{
    const char *host = arguments_flag(arguments, "host");
    const scheduler_limits limits = { (int32_t)wishes->parallel, (int32_t)wishes->queue, wishes->queue_time * 1000,
                                      wishes->time_limit * 1000 };
    host = host ? host : "127.0.0.1";
    const http_settings settings = { host, (uint16_t)wishes->port, (unsigned)wishes->connections, (size_t)wishes->header_limit };
    http_server *http = NULL;
    int got;
    server->any_host = !is_loopback(host) || server->api_key;
    if (scheduler_start(server->model, &limits, &server->scheduler) < 0)
        return complain("cannot start a thread");
    if (http_start(server, &settings, &http) < 0) {
        scheduler_stop(server->scheduler, 0);
        return EXIT_FAILED;
    }
    if (!arguments_quiet(arguments)) {
        fprintf(stderr, strchr(host, ':') ? "%s: %s at http://[%s]:%u\n" : "%s: %s at http://%s:%u\n", program_name,
                server->model_id, host, http_port(http));
        if (!is_loopback(host) && !server->api_key)
            fprintf(stderr, "%s: warning: whoever reaches this address may use the model; --api-key-file asks for a key\n",
                    program_name);
    }
    while (sigwait(signals, &got) != 0)
        continue;
    http_quiet(http);
    scheduler_stop(server->scheduler, wishes->stop_time * 1000);
    http_stop(&http, wishes->stop_time * 1000);
    return EXIT_OK;
}

static int run(arguments *arguments)
{
    server server = { .created = (int64_t)time(NULL) };
    wishes wishes;
    sigset_t signals;
    char *key = NULL, sequences[24];
    const char *alias = arguments_flag(arguments, "alias");
    if (arguments_flag(arguments, "version")) {
        printf("%s %s\n", program_name, qm_version());
        return EXIT_OK;
    }
    if (arguments->word_count)
        return arguments_usage(arguments, "'%s' is no option", arguments->words[0]);
    /* All threads leave these signals to the main one, which waits for them. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    int code = read_wishes(arguments, &wishes);
    if (code == EXIT_OK)
        code = read_key(arguments, &key);
    if (code == EXIT_OK)
        code = arguments_default(arguments, "answer-tokens", "0");
    snprintf(sequences, sizeof sequences, "%lld", (long long)wishes.parallel);
    if (code == EXIT_OK)
        code = arguments_default(arguments, "sequences", sequences);
    if (code == EXIT_OK)
        code = load_model(arguments, &server.model);
    if (code == EXIT_OK)
        code = prepare_sessions(arguments, &server);
    if (code == EXIT_OK) {
        server.api_key = key;
        server.allow_origin = arguments_flag(arguments, "allow-origin");
        server.body_limit = (size_t)wishes.body_limit;
        server.idle_seconds = (unsigned)wishes.idle_time;
        server.model_id = alias ? server_copy(alias, strlen(alias)) : name_of_model(server.model);
        code = serve(&server, arguments, &wishes, &signals);
    }
    scheduler_free(&server.scheduler);
    qm_options_free(&server.defaults);
    qm_model_free(&server.model);
    free(server.model_id);
    free(key);
    return code;
}

int main(int count, char **values)
{
    arguments arguments;
    program_name = "qwenmoe-server";
    int code = arguments_parse(&program, count - 1, values + 1, &arguments);
    if (code == EXIT_OK)
        code = run(&arguments);
    arguments_end(&arguments);
    return code == EXIT_DONE ? EXIT_OK : code;
}
