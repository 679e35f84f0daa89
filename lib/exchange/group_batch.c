/* A batch for each member of a group: addresses of its own, and in pieces where the stages are to work at once. */
#include "exchange/group_inside.h"

#define PARTS 4        /* of a full batch: enough that stages seldom wait, few enough that each is still large */
#define ROWS_LEAST 8

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* How many rows a piece has. */
static int32_t piece_rows(const qmi_group *group, const qmi_workspace *workspace, const qmi_batch *batch)
{
    int32_t rows = workspace->rows / PARTS;
    if (group->sharing.stage_count == 1)
        return batch->count;
    if (rows < ROWS_LEAST)
        rows = ROWS_LEAST;
    return batch->count < 2 * rows ? batch->count : rows;
}

/* The pieces' rows and outputs, the same for all members. */
static int32_t cut_rows(qmi_group *group, const qmi_workspace *workspace, const qmi_batch *batch)
{
    int32_t rows = piece_rows(group, workspace, batch), output = 0;
    group_piece *pieces = group->members[0].pieces;
    int32_t code = qmi_reserve(&group->alloc, (void **)&group->outputs, &group->output_capacity, (size_t)batch->output_count,
                               sizeof *group->outputs, "outputs of a batch");
    group->piece_count = 0;
    for (int32_t first = 0; first < batch->count && code >= 0; group->piece_count++) {
        bool last = group->piece_count == GROUP_PIECES - 1 || batch->count - first < 2 * rows;
        group_piece *piece = &pieces[group->piece_count];
        *piece = (group_piece){ .first_row = first, .first_output = output };
        piece->batch = *batch;
        piece->batch.count = last ? batch->count - first : rows;
        piece->batch.tokens = batch->tokens + first;
        piece->batch.outputs = group->outputs + output;
        while (output < batch->output_count && batch->outputs[output] < first + piece->batch.count) {
            group->outputs[output] = batch->outputs[output] - first;
            output++;
        }
        piece->batch.output_count = output - piece->first_output;
        first += piece->batch.count;
    }
    return code;
}

/* ---- one member's ---- */

static int32_t page_tokens(const qmi_group *group)
{
    for (size_t i = 0; i < group->program->whole->count; i++)
        if (group->program->whole->ops[i].kind == QMI_OP_ATTEND)
            return group->program->whole->ops[i].attend.page_tokens;
    return 0;
}

static int64_t pages_of(const qmi_sequence *sequence, int32_t tokens)
{
    return tokens ? (sequence->start + sequence->count + tokens - 1) / tokens : 0;
}

/* The member's addresses of the pages of all sequences, one list behind the other. Pages of a table are neighbours mostly, so the
 * block that held the last one is looked at first. */
static int32_t translate_pages(qmi_group *group, int32_t index, const qmi_batch *batch, int32_t tokens)
{
    group_member *member = &group->members[index];
    const group_block *block = NULL;
    int64_t count = 0, own = group->maps.pages.members[index].period;
    for (int32_t s = 0; s < batch->sequence_count; s++)
        count += pages_of(&batch->sequences[s], tokens);
    int32_t code = qmi_reserve(&group->alloc, (void **)&member->pages, &member->page_capacity, (size_t)count,
                               sizeof *member->pages, "a page table");
    qmi_address *to = member->pages;
    for (int32_t s = 0; s < batch->sequence_count && code >= 0 && own > 0; s++)
        for (int64_t i = 0; i < pages_of(&batch->sequences[s], tokens); i++) {
            qmi_address page = batch->sequences[s].pages[i];
            if (!block || page < block->base || page - block->base >= (qmi_address)block->bytes)
                block = qmi_group_find_block(group, page);
            *to++ = block->members[index] + (page - block->base) / (qmi_address)group->maps.pages.period * (qmi_address)own;
        }
    return code;
}

/* The sequences of each piece: those of the batch, cut where a piece ends. Behind the first cut a sequence's state is already the
 * next one. */
static int32_t cut_sequences(qmi_group *group, int32_t index, const qmi_batch *batch, int32_t tokens)
{
    group_member *member = &group->members[index];
    int32_t code = qmi_reserve(&group->alloc, (void **)&member->sequences, &member->sequence_capacity,
                               (size_t)(batch->sequence_count + group->piece_count), sizeof *member->sequences,
                               "sequences of a batch");
    int32_t used = 0, s = 0, skipped = 0; /* rows of sequence s that earlier pieces have */
    const qmi_address *pages = member->pages;
    for (int32_t p = 0; p < group->piece_count && code >= 0; p++) {
        group_piece *piece = &member->pieces[p];
        piece->first_sequence = used;
        for (int32_t row = 0; row < piece->batch.count;) {
            const qmi_sequence *whole = &batch->sequences[s];
            qmi_address next = qmi_group_member_address(group, index, whole->next_state);
            qmi_address state = skipped ? next : qmi_group_member_address(group, index, whole->state);
            int32_t count = least(whole->count - skipped, piece->batch.count - row);
            member->sequences[used++] = (qmi_sequence){ .first = row, .count = count, .start = whole->start + skipped,
                                                        .pages = pages, .state = state, .next_state = next };
            row += count;
            skipped += count;
            if (skipped == whole->count) {
                pages += pages_of(whole, tokens);
                s++;
                skipped = 0;
            }
        }
        piece->batch.sequence_count = used - piece->first_sequence;
        piece->batch.sequences = member->sequences + piece->first_sequence;
    }
    return code;
}

static bool has_logits(const qmi_group *group, int32_t index)
{
    const qmi_program *whole = group->program->whole;
    return group->cut->parts[index].slots[whole->ops[whole->count - 1].logits.logits].width > 0;
}

static int32_t hold_picks(qmi_group *group, int32_t index, const qmi_batch *batch)
{
    group_member *member = &group->members[index];
    size_t count = (size_t)batch->output_count * QMI_PICKS_MAX;
    bool wanted = batch->picks && has_logits(group, index);
    int32_t code = !wanted ? QM_OK : qmi_reserve(&group->alloc, (void **)&member->picks, &member->pick_capacity, count,
                                                 sizeof *member->picks, "highest logits");
    for (int32_t p = 0; p < group->piece_count; p++)
        member->pieces[p].batch.picks =
            wanted && code >= 0 ? member->picks + member->pieces[p].first_output * QMI_PICKS_MAX : NULL;
    return code;
}

static void translate_workspace(qmi_group *group, int32_t index, const qmi_workspace *workspace)
{
    qmi_workspace *own = &group->members[index].workspace;
    *own = (qmi_workspace){ .rows = workspace->rows, .outputs = workspace->outputs };
    for (int32_t i = 0; i < group->cut->slot_count; i++)
        own->slots[i] = qmi_group_member_address(group, index, workspace->slots[i]);
    for (int32_t i = group->cut->slot_count; i < group->cut->slot_count + group->cut->own_slots; i++)
        own->slots[i] = group->program->own[index][i];
}

int32_t qmi_group_cut_batch(qmi_group *group, const qmi_workspace *workspace, const qmi_batch *batch)
{
    int32_t tokens = page_tokens(group), code = cut_rows(group, workspace, batch);
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        for (int32_t p = 0; p < group->piece_count; p++)
            group->members[i].pieces[p] = group->members[0].pieces[p];
        code = translate_pages(group, i, batch, tokens);
        if (code >= 0)
            code = cut_sequences(group, i, batch, tokens);
        if (code >= 0)
            code = hold_picks(group, i, batch);
        translate_workspace(group, i, workspace);
    }
    return code;
}

/* ---- picks ---- */

/* Of equal ones the lower id; members have their parts of the vocabulary in order, so that the earlier one's goes first. */
void qmi_group_join_picks(const qmi_group *group, const qmi_batch *batch)
{
    const qmi_program *whole = group->program->whole;
    const qmi_piece_map *map = &group->cut->slots[whole->ops[whole->count - 1].logits.logits];
    for (int32_t o = 0; o < batch->output_count; o++) {
        int32_t used[QMI_RANKS_MAX] = { 0 };
        for (int32_t k = 0; k < QMI_PICKS_MAX; k++) {
            int32_t best = -1;
            const qmi_pick *chosen = NULL;
            for (int32_t i = 0; i < group->count; i++) {
                const qmi_pick *pick = has_logits(group, i) && used[i] < QMI_PICKS_MAX
                                           ? &group->members[i].picks[o * QMI_PICKS_MAX + used[i]] : NULL;
                if (pick && (!chosen || pick->logit > chosen->logit)) {
                    best = i;
                    chosen = pick;
                }
            }
            int32_t first = (int32_t)(map->members[best].list[0].at / (int64_t)sizeof(float));
            batch->picks[o * QMI_PICKS_MAX + k] = (qmi_pick){ chosen->logit, chosen->id + first };
            used[best]++;
        }
    }
}
