/* The table of paths; see routes.h. */
#include "routes.h"

#include <string.h>

static const struct {
    const char *path;
    int method;
    int open; /* needs no key: the page, which asks for it, and what tells that the server lives */
    handler handler;
} routes[] = {
    { "/", ROUTE_GET, 1, handle_page },
    { "/health", ROUTE_GET, 1, handle_health },
    { "/openapi.json", ROUTE_GET, 1, handle_openapi },
    { "/metrics", ROUTE_GET, 0, handle_metrics },
    { "/v1/models", ROUTE_GET, 0, handle_models },
    { "/v1/chat/completions", ROUTE_POST, 0, handle_chat_completions },
    { "/v1/completions", ROUTE_POST, 0, handle_completions },
    { "/v1/responses", ROUTE_POST, 0, handle_responses },
    { "/v1/messages", ROUTE_POST, 0, handle_messages },
    { "/v1/messages/count_tokens", ROUTE_POST, 0, handle_count_tokens },
    { "/completion", ROUTE_POST, 0, handle_completion },
    { "/infill", ROUTE_POST, 0, handle_infill },
    { "/tokenize", ROUTE_POST, 0, handle_tokenize },
    { "/detokenize", ROUTE_POST, 0, handle_detokenize },
    { "/apply-template", ROUTE_POST, 0, handle_apply_template },
};
#define ROUTE_COUNT ((int)(sizeof routes / sizeof *routes))

handler route_find(const char *method, const char *path, int *methods, int *open)
{
    int wanted = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0 ? ROUTE_GET
                 : strcmp(method, "POST") == 0                             ? ROUTE_POST
                                                                           : 0;
    *methods = *open = 0;
    for (int i = 0; i < ROUTE_COUNT; i++) {
        if (strcmp(routes[i].path, path) != 0)
            continue;
        *methods |= routes[i].method;
        *open = routes[i].open;
        if (routes[i].method == wanted)
            return routes[i].handler;
    }
    return NULL;
}

int route_count(void)
{
    return ROUTE_COUNT;
}

const char *route_path(int index)
{
    return routes[index].path;
}
