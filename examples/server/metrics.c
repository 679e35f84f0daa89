/* GET /metrics: what Prometheus collects (its text format 0.0.4). */
#include "metrics.h"

#include <stdatomic.h>
#include <string.h>

#include "routes.h"

#define PATHS_MOST 32

/* By path (the last: any other) and class of the status, 0 for broken connections. */
static atomic_llong requests[PATHS_MOST + 1][6];

void metrics_count_request(const char *path, int status)
{
    int place = PATHS_MOST;
    for (int i = 0; i < route_count() && i < PATHS_MOST; i++)
        if (strcmp(route_path(i), path) == 0)
            place = i;
    atomic_fetch_add(&requests[place][status / 100 < 6 ? status / 100 : 5], 1);
}

static void add_metric(text_buffer *out, const char *name, const char *type, const char *help, double value)
{
    buffer_print(out, "# HELP qwenmoe_%s %s\n# TYPE qwenmoe_%s %s\nqwenmoe_%s %.17g\n", name, help, name, type, name, value);
}

static void add_fact(text_buffer *out, const qm_model *model, const char *fact, const char *help)
{
    int64_t value = 0;
    if (qm_model_number(model, fact, &value) >= 0)
        add_metric(out, fact, "gauge", help, (double)value);
}

enum MHD_Result handle_metrics(request *request)
{
    text_buffer out = { 0 };
    scheduler_counts c;
    scheduler_count(request->server->scheduler, &c);
    buffer_add_text(&out, "# HELP qwenmoe_http_requests_total requests by path and class of status\n"
                          "# TYPE qwenmoe_http_requests_total counter\n");
    for (int i = 0; i <= PATHS_MOST; i++)
        for (int class = 0; class < 6; class ++) {
            long long count = atomic_load(&requests[i][class]);
            if (count)
                buffer_print(&out, "qwenmoe_http_requests_total{path=\"%s\",status=\"%s\"} %lld\n",
                             i < route_count() ? route_path(i) : "other",
                             (const char *const[]){ "broken", "1xx", "2xx", "3xx", "4xx", "5xx" }[class], count);
        }
    add_metric(&out, "tasks_waiting", "gauge", "prompts that wait for their turn", (double)c.waiting);
    add_metric(&out, "answers_computing", "gauge", "answers under way", (double)c.computing);
    add_metric(&out, "tasks_total", "counter", "prompts submitted", (double)c.tasks);
    add_metric(&out, "tasks_refused_total", "counter", "... refused: the queue was full, or the server stopping",
               (double)c.refused);
    add_metric(&out, "tasks_gone_total", "counter", "... whose client went away", (double)c.gone);
    add_metric(&out, "answers_timed_out_total", "counter", "answers ended by a limit of time", (double)c.timed_out);
    add_metric(&out, "answers_failed_total", "counter", "answers that failed", (double)c.failed);
    add_metric(&out, "prompt_tokens_total", "counter", "tokens of prompts", (double)c.prompt_tokens);
    add_metric(&out, "prompt_tokens_reused_total", "counter", "... that did not have to be computed", (double)c.reused_tokens);
    add_metric(&out, "answer_tokens_total", "counter", "tokens generated", (double)c.answer_tokens);
    add_metric(&out, "prompt_seconds_total", "counter", "time spent on prompts", c.prompt_seconds);
    add_metric(&out, "answer_seconds_total", "counter", "time spent on answers, each on its own", c.answer_seconds);
    add_metric(&out, "queue_seconds_total", "counter", "time spent waiting for a turn", c.queue_seconds);
    add_fact(&out, request->server->model, "kv_tokens", "tokens that there is memory for keys and values of");
    add_fact(&out, request->server->model, "kv_tokens_free", "... that nothing holds");
    add_fact(&out, request->server->model, "checkpoints", "states kept to go back to");
    enum MHD_Result result = reply_text(request, 200, "text/plain; version=0.0.4", buffer_text(&out), out.length);
    buffer_free(&out);
    return result;
}
