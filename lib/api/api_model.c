/* Loading models, planning, and asking them. */
#include "api/handles.h"
#include "exchange/ranks.h"
#include "run/facts.h"
#include "run/key_fit.h"
#include "run/load.h"

int32_t qm_model_load(const char *path, const qm_options *options, qm_model **out)
{
    qmi_settings defaults;
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!path)
        return qmi_handles_null("path");
    qmi_settings_start(&defaults, &(qmi_alloc){ 0 });
    const qmi_settings *settings = options ? &options->settings : &defaults;
    const qmi_load_watch watch = { .progress = settings->progress, .user = settings->progress_user };
    int32_t code = qmi_load_model(path, settings, &watch, out);
    qmi_settings_end(&defaults);
    return code;
}

int32_t qm_follow(const char *path, const qm_options *options)
{
    qmi_settings defaults;
    if (!path)
        return qmi_handles_null("path");
    qmi_settings_start(&defaults, &(qmi_alloc){ 0 });
    int32_t code = qmi_ranks_follow(path, options ? &options->settings : &defaults, NULL);
    qmi_settings_end(&defaults);
    return code;
}

void qm_model_free(qm_model **model)
{
    if (!model || !*model)
        return;
    qmi_load_release(*model);
    *model = NULL;
}

int64_t qm_plan(const char *path, const qm_options *options, const char *format, char *text, int64_t size)
{
    qmi_settings defaults;
    if (!path)
        return qmi_handles_null("path");
    if (!format)
        return qmi_handles_null("format");
    int64_t code = qmi_handles_buffer(text, size, "text");
    if (code < 0)
        return code;
    bool json = strcmp(format, "json") == 0;
    if (!json && strcmp(format, "table") != 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "format is \"%s\"; \"table\" and \"json\" are there", format);
    qmi_settings_start(&defaults, &(qmi_alloc){ 0 });
    code = qmi_load_plan(path, options ? &options->settings : &defaults, json, text, size);
    qmi_settings_end(&defaults);
    return code;
}

int32_t qm_model_number(const qm_model *model, const char *name, int64_t *value)
{
    if (!model)
        return qmi_handles_null("model");
    if (!name)
        return qmi_handles_null("name");
    if (!value)
        return qmi_handles_null("value");
    return qmi_facts_number(model, name, value);
}

int64_t qm_model_text(const qm_model *model, const char *name, char *text, int64_t size)
{
    if (!model)
        return qmi_handles_null("model");
    if (!name)
        return qmi_handles_null("name");
    int32_t code = qmi_handles_buffer(text, size, "text");
    return code < 0 ? code : qmi_facts_text(model, name, text, size);
}

int32_t qm_model_save_correction(qm_model *model, const char *path)
{
    if (!model)
        return qmi_handles_null("model");
    return path ? qmi_key_fit_save(model, path) : qmi_handles_null("path");
}
