/* qm_options, and the table of options. */
#include "api/handles.h"

static const qmi_alloc process_memory; /* the handle itself is made before a host can set its allocator */

int32_t qm_options_new(qm_options **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = qmi_new(&process_memory, 1, sizeof **out, "options");
    if (!*out)
        return QM_ERROR_MEMORY;
    qmi_settings_start(&(*out)->settings, &process_memory);
    return QM_OK;
}

int32_t qm_options_copy(const qm_options *options, qm_options **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!options)
        return qmi_handles_null("options");
    qm_options *copy = qmi_new(&process_memory, 1, sizeof *copy, "options");
    if (!copy)
        return QM_ERROR_MEMORY;
    int32_t code = qmi_settings_copy(&options->settings, &copy->settings);
    if (code < 0) {
        qmi_delete(&process_memory, copy);
        return code;
    }
    *out = copy;
    return QM_OK;
}

void qm_options_free(qm_options **options)
{
    if (!options || !*options)
        return;
    qmi_settings_end(&(*options)->settings);
    qmi_delete(&process_memory, *options);
    *options = NULL;
}

int32_t qm_options_set(qm_options *options, const char *name, const char *value)
{
    if (!options)
        return qmi_handles_null("options");
    if (!name)
        return qmi_handles_null("name");
    int32_t id = qmi_option_find(name);
    return id < 0 ? id : qmi_settings_set(&options->settings, id, value);
}

int64_t qm_options_get(const qm_options *options, const char *name, char *text, int64_t size)
{
    if (!options)
        return qmi_handles_null("options");
    if (!name)
        return qmi_handles_null("name");
    int32_t code = qmi_handles_buffer(text, size, "text");
    if (code < 0)
        return code;
    int32_t id = qmi_option_find(name);
    return id < 0 ? id : qmi_settings_get(&options->settings, id, text, size);
}

int32_t qm_options_set_allocator(qm_options *options, qm_allocate_callback allocate, qm_release_callback release, void *user)
{
    qmi_settings moved;
    if (!options)
        return qmi_handles_null("options");
    if (!allocate != !release)
        return qmi_fail(QM_ERROR_ARGUMENT, "%s is null; set both callbacks, or neither", allocate ? "release" : "allocate");
    /* Texts that are set already move to the new allocator. */
    qmi_settings view = options->settings;
    view.alloc = (qmi_alloc){ allocate, release, user };
    int32_t code = qmi_settings_copy(&view, &moved);
    if (code < 0)
        return code;
    qmi_settings_end(&options->settings);
    options->settings = moved;
    return QM_OK;
}

int32_t qm_options_set_log(qm_options *options, qm_log_callback log, void *user)
{
    if (!options)
        return qmi_handles_null("options");
    options->settings.log = (qmi_log){ log, user };
    return QM_OK;
}

int32_t qm_options_set_progress(qm_options *options, qm_progress_callback progress, void *user)
{
    if (!options)
        return qmi_handles_null("options");
    options->settings.progress = progress;
    options->settings.progress_user = user;
    return QM_OK;
}

int32_t qm_option_count(void)
{
    return QMI_OPT_COUNT;
}

const char *qm_option_name(int32_t index)
{
    const qmi_option *option = qmi_option_at(index);
    return option ? option->name : NULL;
}

const char *qm_option_type(int32_t index)
{
    const qmi_option *option = qmi_option_at(index);
    return option ? qmi_option_type_name(option->type) : NULL;
}

const char *qm_option_range(int32_t index)
{
    return qmi_option_at(index) ? qmi_option_range_text(index) : NULL;
}

const char *qm_option_default(int32_t index)
{
    const qmi_option *option = qmi_option_at(index);
    return option ? option->fallback : NULL;
}

const char *qm_option_scope(int32_t index)
{
    const qmi_option *option = qmi_option_at(index);
    return option ? qmi_option_scope_name(option->scope) : NULL;
}

const char *qm_option_help(int32_t index)
{
    const qmi_option *option = qmi_option_at(index);
    return option ? option->help : NULL;
}
