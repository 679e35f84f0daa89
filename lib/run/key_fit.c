/* Corrections of keys: see key_fit.h. */
#include "run/key_fit.h"

#include "memory/key_correction.h"

static int32_t head_of(const qm_model *model, qmi_key_head *out)
{
    uint64_t number;
    int32_t code = qmi_parts_identify(&model->parts, &number);
    if (code >= 0)
        *out = qmi_key_head_of(&model->plan.hparams, number);
    return code;
}

static int32_t load(qm_model *model, const char *path)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    qmi_key_head head;
    float *floats = NULL;
    int32_t code = head_of(model, &head);
    if (code >= 0)
        code = qmi_key_correction_read(path, &head, alloc, &floats);
    if (code < 0)
        return code;
    const qmi_content content = { .kind = QMI_CONTENT_VECTORS };
    int64_t bytes = qmi_key_floats(&head) * (int64_t)sizeof *floats;
    qmi_kv_layout *kv = &model->plan.kv;
    code = qmi_backend_allocate(model->backend, model->device, &content, bytes, "the correction of keys", &kv->correction);
    if (code >= 0)
        code = model->backend->write(model->device, kv->correction, floats, bytes);
    qmi_delete(alloc, floats);
    return code;
}

static int64_t moment_bytes(const qm_model *model)
{
    return model->plan.hparams.attention_layers * model->plan.kv.correction_floats * (int64_t)sizeof(double);
}

int32_t qmi_key_fit_open(qm_model *model)
{
    const char *path = qmi_settings_text(&model->settings, QMI_OPT_KV_CORRECTION);
    int32_t code = *path ? load(model, path) : QM_OK;
    if (code >= 0 && qmi_settings_bool(&model->settings, QMI_OPT_KV_FIT))
        code = model->backend->allocate(model->device, moment_bytes(model), "what a correction is fitted from",
                                        &model->plan.kv.moments);
    return code;
}

void qmi_key_fit_close(qm_model *model)
{
    qmi_kv_layout *kv = &model->plan.kv;
    model->backend->release(model->device, kv->correction);
    model->backend->release(model->device, kv->moments);
    kv->correction = kv->moments = 0;
}

typedef struct fetched {
    qm_model *model;
    double *moments;
} fetched;

static int32_t fetch(void *argument)
{
    const fetched *f = argument;
    return f->model->backend->read(f->model->device, f->moments, f->model->plan.kv.moments, moment_bytes(f->model));
}

int32_t qmi_key_fit_save(qm_model *model, const char *path)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    qmi_key_head head;
    if (!model->computes || !model->plan.kv.moments)
        return qmi_fail(QM_ERROR_STATE, "the model was not loaded to fit a correction of keys: set option kv-fit to 1, and key-type "
                        "to q2");
    int32_t code = head_of(model, &head);
    double *moments = code < 0 ? NULL : qmi_new(alloc, (size_t)moment_bytes(model), 1, "what a correction is fitted from");
    if (code >= 0)
        code = moments ? qmi_engine_call(model, fetch, &(fetched){ model, moments }) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = qmi_key_correction_write(path, &head, moments, alloc);
    qmi_delete(alloc, moments);
    return code;
}
