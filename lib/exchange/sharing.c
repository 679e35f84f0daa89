/* Parts by share: see sharing.h. */
#include "exchange/sharing.h"

void qmi_sharing_cut(const qmi_sharing *sharing, const qmi_stage *stage, int64_t count, int64_t unit,
                     int64_t bounds[QMI_RANKS_MAX + 1])
{
    int64_t units = (count + unit - 1) / unit, total = 0, before = 0;
    const int32_t *shares = sharing->shares + stage->member;
    for (int32_t i = 0; i < stage->members; i++)
        total += shares[i];
    bounds[0] = 0;
    for (int32_t i = 0; i < stage->members; i++) {
        before += shares[i];
        int64_t end = (units * before + total / 2) / total * unit;
        bounds[i + 1] = end < count ? end : count;
    }
}

bool qmi_sharing_widen(const qmi_sharing *sharing, const bool lends[QMI_RANKS_MAX], qmi_sharing *wide)
{
    bool possible = sharing->expert_member >= 0;
    *wide = *sharing;
    wide->expert_member = -1;
    for (int32_t i = 0; i < sharing->stage_count; i++) {
        const qmi_stage *stage = &sharing->stages[i];
        possible = possible && stage->members == 1 && (lends[stage->member] || stage->member == sharing->expert_member);
    }
    return possible;
}

void qmi_sharing_add(qmi_sharing *sharing, int32_t first, int32_t count, int32_t member)
{
    if (count > 0)
        sharing->stages[sharing->stage_count++] = (qmi_stage){ first, count, member, 1 };
}
