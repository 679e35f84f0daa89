/* The plan of a group as a table for people: see group_plan.h. */
#include "exchange/group_plan.h"

#include <stdio.h>
#include "base/print.h"

static double mib(int64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void put_layers(const qmi_member_plan *member, char out[40])
{
    int n = 0;
    if (member->count > 0 && member->part < 1)
        n = snprintf(out, 40, "%.0f%% of %d-%d", member->part * 100, member->first, member->first + member->count - 1);
    else if (member->count > 0)
        n = snprintf(out, 40, "%d-%d", member->first, member->first + member->count - 1);
    if (member->expert_layers > 0)
        snprintf(out + n, 40 - (size_t)n, "%sexperts of %d", n ? ", " : "", member->expert_layers);
    else if (n == 0)
        snprintf(out, 40, "none");
}

static void put_member(qmi_print *w, const qmi_member_plan *member, const char *name)
{
    char layers[40], has[24] = "?";
    put_layers(member, layers);
    if (member->available >= 0)
        snprintf(has, sizeof has, "%.1f", mib(member->available));
    qmi_put(w, "  %-12s %-18s %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %9s %9.1f %5d %6d\n", name, layers, mib(member->weights),
            mib(member->kv), mib(member->state), mib(member->checkpoints),
            mib(member->workspace + member->scratch + member->fixed + member->lent + member->cache), mib(member->total), has,
            (double)member->token_bytes / 1e6, member->runs, member->exchanges);
}

int64_t qmi_group_plan_table(const qmi_group_plan *plan, const qmi_sharing *sharing, const qmi_plan_device *devices, char *text,
                             int64_t size)
{
    qmi_print w = { text, size, 0 };
    bool tensor = false;
    for (int32_t i = 0; i < sharing->stage_count; i++)
        tensor = tensor || sharing->stages[i].members > 1;
    qmi_put(&w, "\n%d devices, split by %s: ", plan->count, tensor ? "parts of layers (tensor)" : "layers");
    if (!plan->fits) {
        qmi_put(&w, "does not fit: %s\n", plan->reason);
        return w.length;
    }
    qmi_put(&w, "fits, chunk %d, %d checkpoints (MiB; MB of weights, programs and exchanges a token)\n", plan->chunk,
            plan->checkpoints);
    qmi_put(&w, "  %-12s %-18s %9s %9s %9s %9s %9s %9s %9s %9s %5s %6s\n", "device", "layers", "weights", "kv", "state",
            "checkp.", "batch", "sum", "has", "MB/token", "runs", "exch.");
    for (int32_t i = 0; i < plan->count; i++)
        put_member(&w, &plan->members[i], devices[i].name);
    if (plan->decode_ns > 0)
        qmi_put(&w, "  predicted: %.3f ms a token, %.1f tokens/s\n", plan->decode_ns * 1e-6, 1e9 / plan->decode_ns);
    return w.length;
}
