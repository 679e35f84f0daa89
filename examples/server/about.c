/* What the server tells of itself: its health, its model, its description, and the page to chat on. */
#include "routes.h"

#include <string.h>

/* Made from page.html and openapi.json by embed.py while building. */
extern const char page_html[], openapi_json[];
extern const size_t page_html_length, openapi_json_length;

enum MHD_Result handle_health(request *request)
{
    scheduler_counts counts;
    scheduler_count(request->server->scheduler, &counts);
    return reply_json(request, 200,
                      json_pack("{s:s, s:I, s:I}", "status", "ok", "waiting", (json_int_t)counts.waiting, "computing",
                                (json_int_t)counts.computing));
}

static json_int_t number_of(const qm_model *model, const char *name)
{
    int64_t value = 0;
    return qm_model_number(model, name, &value) < 0 ? 0 : value;
}

enum MHD_Result handle_models(request *request)
{
    const server *s = request->server;
    json_t *meta =
        json_pack("{s:I, s:I, s:I, s:I}", "n_vocab", number_of(s->model, "vocabulary"), "n_ctx", (json_int_t)s->context,
                  "n_ctx_train", number_of(s->model, "context"), "n_params", number_of(s->model, "parameters"));
    json_t *model = json_pack("{s:s, s:s, s:I, s:s, s:o}", "id", s->model_id, "object", "model", "created",
                              (json_int_t)s->created, "owned_by", "qwenmoe", "meta", meta);
    return reply_json(request, 200, json_pack("{s:s, s:[o]}", "object", "list", "data", model));
}

enum MHD_Result handle_page(request *request)
{
    return reply_text(request, 200, "text/html; charset=utf-8", page_html, page_html_length);
}

enum MHD_Result handle_openapi(request *request)
{
    return reply_text(request, 200, "application/json", openapi_json, openapi_json_length);
}
