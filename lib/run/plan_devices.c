/* Devices of a split: see plan_devices.h. */
#include "run/plan_devices.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "base/number.h"

qmi_plan_device qmi_plan_devices_of(const qmi_backend *backend, const qmi_device_info *info)
{
    return (qmi_plan_device){
        .name = backend->name,
        .memory = info->memory_free > 0 ? info->memory_free : -1,
        .fixed = info->memory_fixed,
        .mapped = info->mapped,
        .lends = backend->lend != NULL,
        .threads = info->threads,
        .chunk_low = info->chunk_low,
        .chunk_high = info->chunk_high,
        .matrix_bytes = backend->matrix_bytes,
        .scratch_bytes = backend->scratch_bytes,
    };
}

static void add(qmi_plan_devices *devices, qmi_plan_device device, int32_t index)
{
    char *name = devices->names[devices->count];
    if (device.mapped)
        snprintf(name, sizeof devices->names[0], "%s", device.name);
    else
        snprintf(name, sizeof devices->names[0], "%s:%d", device.name, index);
    device.name = name;
    devices->list[devices->count++] = device;
}

static void add_choice(const qm_model *model, const qmi_choice *choice, qmi_plan_devices *devices)
{
    const qmi_settings *settings = &model->settings;
    const qmi_device_settings wanted = { .index = choice->index, .threads = 1, .isa = "auto", .alloc = settings->alloc,
                                         .log = settings->log };
    qmi_device_info info;
    qmi_device *device;
    if (choice->backend == model->backend && (model->info.mapped || choice->index == model->device_index)) {
        choice->backend->info(model->device, &info);
        add(devices, qmi_plan_devices_of(choice->backend, &info), choice->index);
    } else if (choice->backend->open(&wanted, &device) >= 0) {
        choice->backend->info(device, &info);
        add(devices, qmi_plan_devices_of(choice->backend, &info), choice->index);
        choice->backend->close(&device);
    }
}

/* Behind a size or "cpu": ":360", the GB a second that the device reads. */
static bool read_rate(const char *text, size_t *length, double *rate)
{
    int64_t number;
    size_t colon = 0;
    while (colon < *length && text[colon] != ':')
        colon++;
    *rate = 0;
    if (colon == *length)
        return true;
    if (qmi_number_read_int(text + colon + 1, *length - colon - 1, &number) != QMI_NUMBER_OK || number < 1 || number > 100000)
        return false;
    *rate = (double)number * 1e9;
    *length = colon;
    return true;
}

/* "12G,24G": cards of so many GiB, or bytes without the letter; with rates "12G:360,cpu:40". What they do with matrices the CUDA
 * backend says, where it is installed; else they are taken to have them as the file does. */
static int32_t read_cards(const char *text, const qmi_backend *cuda, qmi_plan_devices *devices, double *host_rate)
{
    for (const char *at = text; *at;) {
        size_t whole = strcspn(at, ","), length = whole;
        double rate;
        bool good = read_rate(at, &length, &rate);
        size_t digits = length;
        int64_t bytes, unit = 1;
        if (good && length == 3 && strncmp(at, "cpu", 3) == 0) {
            *host_rate = rate;
            at += whole + (at[whole] == ',');
            continue;
        }
        if (length > 0 && at[length - 1] == 'G') {
            digits--;
            unit = INT64_C(1) << 30;
        }
        if (!good || qmi_number_read_int(at, digits, &bytes) != QMI_NUMBER_OK || bytes < 1 || bytes > (INT64_C(1) << 50) / unit ||
            devices->count == QMI_SPLIT_DEVICES - 1)
            return qmi_fail(QM_ERROR_OPTION, "plan-devices: \"%s\" is no list of at most %d sizes as in 12G,24G, with rates "
                            "as in 12G:360,cpu:40", text, QMI_SPLIT_DEVICES - 1);
        add(devices, (qmi_plan_device){ .name = "card", .memory = bytes * unit, .chunk_low = 1024, .chunk_high = 4096,
                                        .matrix_bytes = cuda ? cuda->matrix_bytes : NULL,
                                        .scratch_bytes = cuda ? cuda->scratch_bytes : NULL }, devices->count);
        devices->rates[devices->count - 1] = rate;
        at += whole + (at[whole] == ',');
    }
    return QM_OK;
}

int32_t qmi_plan_devices_find(const qm_model *model, qmi_plan_devices *out)
{
    const qmi_settings *settings = &model->settings;
    const char *cards = qmi_settings_text(settings, QMI_OPT_PLAN_DEVICES);
    const char *library = qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY);
    const qmi_choice cpu = { &qmi_cpu_backend, 0 };
    qmi_choices choices;
    *out = (qmi_plan_devices){ 0 };
    if (*cards) {
        bool installed = qmi_registry_find("cuda", library, &settings->log, &choices) >= 0;
        double host_rate = 0;
        int32_t code = read_cards(cards, installed ? choices.list[0].backend : NULL, out, &host_rate);
        if (code >= 0)
            add_choice(model, &cpu, out);
        if (code >= 0)
            out->rates[out->count - 1] = host_rate;
        return code;
    }
    int32_t code = qmi_registry_find(qmi_settings_text(settings, QMI_OPT_DEVICE), library, &settings->log, &choices);
    for (int32_t i = 0; i < choices.count && code >= 0; i++)
        add_choice(model, &choices.list[i], out);
    return code;
}
