/* Which handler answers which path. */
#ifndef SERVER_ROUTES_H
#define SERVER_ROUTES_H

#include "http.h"

#define ROUTE_GET 1
#define ROUTE_POST 2

/* NULL: there is none; *methods then tells which methods the path takes (0: there is no such path). *open: without a key. */
handler route_find(const char *method, const char *path, int *methods, int *open);
int route_count(void);
const char *route_path(int index);

/* Each in the file of its name. */
enum MHD_Result handle_chat_completions(request *request);
enum MHD_Result handle_completions(request *request);
enum MHD_Result handle_responses(request *request);
enum MHD_Result handle_messages(request *request);
enum MHD_Result handle_count_tokens(request *request);
enum MHD_Result handle_models(request *request);
enum MHD_Result handle_completion(request *request);
enum MHD_Result handle_infill(request *request);
enum MHD_Result handle_tokenize(request *request);
enum MHD_Result handle_detokenize(request *request);
enum MHD_Result handle_apply_template(request *request);
enum MHD_Result handle_health(request *request);
enum MHD_Result handle_metrics(request *request);
enum MHD_Result handle_page(request *request);
enum MHD_Result handle_openapi(request *request);

#endif
