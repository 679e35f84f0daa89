/* Splits on paper: see plan_splits.h. */
#include "run/plan_splits.h"

#include <stdio.h>
#include "exchange/probe.h"

/* Two cards without access to each other's memory. A sum of 8 KB by kernels through the host's memory took 5.6 us between two
 * H200 on PCIe 5.0, and a message 22; on PCIe 4.0 and slower hosts they are taken to need twice as much, and a byte more that of a
 * bus of 12 GB/s. */
#define EXCHANGE_NS 11000
#define MESSAGE_NS 44000
#define BYTE_NS (1 / 12.0)

typedef struct printer {
    const qm_model *model;
    const qmi_plan_devices *devices;
    char *text;
    int64_t size, length;
} printer;

static qmi_group_rates rates_of(const qmi_plan_devices *devices)
{
    qmi_group_rates rates = { .exchange_ns = EXCHANGE_NS, .message_ns = MESSAGE_NS, .byte_ns = BYTE_NS };
    for (int32_t i = 0; i < devices->count; i++) {
        rates.read[i] = devices->rates[i];
        qmi_probe_known(devices->list[i].mapped, &rates, i);
    }
    return rates;
}

static int32_t put_sharing(printer *p, const qmi_sharing *sharing)
{
    const qmi_group_rates rates = rates_of(p->devices);
    const qmi_alloc *alloc = &p->model->settings.alloc;
    const qmi_group_question question = { &p->model->parts.gguf, &p->model->settings, &p->model->plan, sharing, p->devices->list,
                                          &rates };
    qmi_group_plan plan;
    int32_t code = qmi_group_plan_make(&question, alloc, &plan);
    int64_t room = p->size > p->length ? p->size - p->length : 0;
    if (code >= 0)
        p->length += qmi_group_plan_table(&plan, sharing, p->devices->list, room ? p->text + p->length : NULL, room);
    return code;
}

int64_t qmi_plan_splits_table(const qm_model *model, const qmi_plan_devices *devices, const qmi_split *split, char *text,
                              int64_t size)
{
    printer p = { model, devices, text, size, 0 };
    int32_t cards = 0, known = 0, layers = model->plan.hparams.layers;
    for (int32_t i = 0; i < devices->count; i++) {
        cards += !devices->list[i].mapped;
        known += !devices->list[i].mapped && devices->rates[i] > 0;
    }
    if (known == 0 || known < cards || devices->count > QMI_RANKS_MAX)
        return 0;
    qmi_sharing sharing;
    qmi_group_plan_by_memory(split, devices->list, layers, &sharing);
    int32_t code = split->fits ? put_sharing(&p, &sharing) : QM_OK;
    if (code >= 0 && cards > 1) {
        sharing = (qmi_sharing){ .members = cards, .stage_count = 1, .stages = { { 0, layers, 0, cards } }, .expert_member = -1,
                                 .inside = true, .alike = true };
        for (int32_t i = 0; i < cards; i++)
            sharing.shares[i] = 1;
        code = put_sharing(&p, &sharing);
    }
    return code < 0 ? code : p.length;
}
