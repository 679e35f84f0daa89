/* The split: see split.h. */
#include "memory/split.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"

#define CHUNK_LEAST 32
#define CHUNK_BESIDE 512   /* smaller chunks cost a prompt more than what goes to the host for them */
#define CHECKPOINTS_BESIDE 8 /* likewise: without states to go back to each turn computes its whole prompt again */
#define STEPS 4096         /* shares are even to this part of a device's memory */
#define UNKNOWN ((int64_t)1 << 60)

/* What one device needs for each thing that it may get. */
typedef struct costs {
    qmi_weights weights;       /* of a survey; owned */
    qmi_program middle, last;  /* all layers, without and with the output; owned */
    qmi_program mtp;
    int64_t workspace[2], scratch[2]; /* of a chunk: [without | with the output] */
} costs;

typedef struct maker {
    const qmi_plan *plan;
    const qmi_plan_device *devices;
    int32_t count, cards;      /* devices, and how many of them are before the host */
    const qmi_alloc *alloc;
    costs costs[QMI_SPLIT_DEVICES];
    int64_t pages;             /* of keys and values */
    int32_t checkpoints;
    bool checkpoints_given;
    int32_t host_layers, expert_layers; /* on the host: the first layers, the experts of the last ones */
    qmi_split *out;
} maker;

/* ---- what things cost ---- */

static int32_t survey(maker *m, const qmi_gguf *gguf, int32_t device)
{
    const qmi_plan *plan = m->plan;
    const qmi_hparams *h = &plan->hparams;
    costs *c = &m->costs[device];
    const qmi_forward_part middle = { .count = h->layers, .input = true };
    qmi_weight_sums sums;
    int32_t code = qmi_weights_survey(gguf, h, plan->mtp, m->devices[device].matrix_bytes, m->alloc, &c->weights, &sums);
    if (code >= 0)
        code = qmi_forward_build(h, &c->weights, &plan->kv, m->alloc, &c->last);
    if (code >= 0)
        code = qmi_forward_build_part(h, &c->weights, &plan->kv, &middle, m->alloc, &c->middle);
    if (code >= 0 && plan->mtp)
        code = qmi_forward_build_mtp(h, &c->weights, &plan->kv, m->alloc, &c->mtp);
    return code;
}

/* Of one program beside others: slots add up, scratch is shared. */
static int32_t add_program(const maker *m, const qmi_plan_device *device, const qmi_program *program, int64_t *workspace,
                           int64_t *scratch)
{
    int64_t bytes = device->scratch_bytes ? device->scratch_bytes(program, m->out->rows, device->threads) : 0;
    *workspace += qmi_workspace_bytes(program, m->out->rows, m->plan->outputs);
    *scratch = bytes > *scratch ? bytes : *scratch;
    return bytes < 0 ? (int32_t)bytes : QM_OK;
}

static int32_t set_chunk(maker *m, int32_t chunk)
{
    const qmi_plan *plan = m->plan;
    int32_t code = QM_OK;
    m->out->chunk = chunk > plan->context ? (int32_t)plan->context : chunk;
    m->out->rows = m->out->chunk > plan->sequences ? m->out->chunk : plan->sequences;
    m->out->rows = m->out->rows < 2 ? 2 : m->out->rows;
    for (int32_t i = 0; i < m->count && code >= 0; i++) {
        costs *c = &m->costs[i];
        c->workspace[0] = c->workspace[1] = c->scratch[0] = c->scratch[1] = 0;
        code = add_program(m, &m->devices[i], &c->middle, &c->workspace[0], &c->scratch[0]);
        if (code >= 0)
            code = add_program(m, &m->devices[i], &c->last, &c->workspace[1], &c->scratch[1]);
        if (code >= 0 && plan->mtp)
            code = add_program(m, &m->devices[i], &c->mtp, &c->workspace[1], &c->scratch[1]);
    }
    return code;
}

static int64_t layer_state_bytes(const qmi_hparams *h)
{
    return h->delta_layers ? qmi_hparams_state_bytes(h) / h->delta_layers : 0;
}

static void add_layer(const maker *m, int32_t device, int32_t layer, qmi_split_share *share)
{
    const qmi_plan *plan = m->plan;
    const qmi_hparams *h = &plan->hparams;
    const qmi_layer *weights = &m->costs[device].weights.layers[layer];
    bool on_card = device < m->cards, delta = layer < h->layers && h->delta[layer];
    bool without_experts = on_card && layer < h->layers && layer >= h->layers - m->expert_layers;
    share->weights += weights->bytes - (without_experts ? weights->expert_bytes : 0);
    share->vectors += qmi_weights_layer_vectors(h, delta);
    if (delta) {
        share->delta_layers++;
        share->state += 2 * layer_state_bytes(h); /* and the copy that a prompt is computed into */
        share->checkpoints += m->checkpoints * layer_state_bytes(h);
    } else {
        share->attention_layers++;
        share->kv += m->pages * plan->kv.layer_bytes;
        share->state += 2 * plan->kv.window_bytes;
        share->vectors += plan->correction / h->attention_layers;
        share->checkpoints += m->checkpoints * (plan->kv.layer_bytes + plan->kv.window_bytes); /* a page, which whoever goes on copies */
    }
}

/* The bytes of layers [first, first + count) on a device. */
static qmi_split_share share_of(const maker *m, int32_t device, int32_t first, int32_t count)
{
    const qmi_plan *plan = m->plan;
    const qmi_hparams *h = &plan->hparams;
    const costs *c = &m->costs[device];
    qmi_split_share share = { .available = m->devices[device].memory };
    share.part = (qmi_forward_part){ first, count, count > 0 && first == 0, count > 0 && first + count == h->layers };
    for (int32_t i = first; i < first + count; i++)
        add_layer(m, device, i, &share);
    bool tied = c->weights.output_bytes == 0, output = share.part.output;
    if (share.part.input || (output && tied))
        share.weights += c->weights.embedding_bytes;
    if (output) {
        int64_t logits = plan->state.bytes - plan->state.recurrent_bytes;
        share.weights += c->weights.output_bytes;
        share.logits = 2 * logits;
        share.checkpoints += m->checkpoints * logits;
        if (plan->mtp)
            add_layer(m, device, h->layers, &share);
        if (plan->mtp && !share.part.input && !tied) /* the block looks up tokens too */
            share.weights += c->weights.embedding_bytes;
    }
    if (count > 0) {
        share.vectors += qmi_weights_other_vectors(h);
        share.workspace = c->workspace[output];
        share.scratch = c->scratch[output];
        share.fixed = m->devices[device].fixed;
    }
    share.total = share.vectors + share.kv + share.state + share.logits + share.checkpoints + share.workspace + share.scratch +
                  share.fixed + (m->devices[device].mapped ? 0 : share.weights);
    return share;
}

/* ---- who gets what ---- */

static int64_t memory_of(const maker *m, int32_t device)
{
    return m->devices[device].memory < 0 ? UNKNOWN : m->devices[device].memory;
}

/* Fills the cards in order, each with as many layers as go into `step` parts of STEPS of its memory, which leaves as many for
 * those behind it as any way could. False: layers are left over. */
static bool fill_cards(maker *m, int32_t step)
{
    int32_t layers = m->plan->hparams.layers, next = m->host_layers;
    for (int32_t i = 0; i < m->cards; i++) {
        int64_t room = step == STEPS ? memory_of(m, i) : memory_of(m, i) / STEPS * step;
        int32_t count = 0;
        while (next + count < layers && share_of(m, i, next, count + 1).total <= room)
            count++;
        m->out->shares[i] = share_of(m, i, next, count);
        next += count;
    }
    return next == layers;
}

static void fill_host(maker *m)
{
    qmi_split_share *share = &m->out->shares[m->cards];
    if (m->cards == m->count)
        return;
    *share = share_of(m, m->cards, 0, m->host_layers);
    share->expert_layers = m->expert_layers;
    for (int32_t i = 0; i < m->expert_layers; i++)
        share->weights += m->costs[m->cards].weights.layers[m->plan->hparams.layers - 1 - i].expert_bytes;
    if (m->expert_layers && !m->host_layers) { /* activations for them, as for layers */
        share->workspace = m->costs[m->cards].workspace[0];
        share->scratch = m->costs[m->cards].scratch[0];
        share->fixed = m->devices[m->cards].fixed;
        share->total += share->workspace + share->scratch + share->fixed;
    }
}

/* Everything has its place; then the least filling that still has one, so that no card is full while another is empty. */
static bool try_fill(maker *m)
{
    int32_t low = 0, high = STEPS;
    if (!fill_cards(m, STEPS))
        return false;
    fill_host(m);
    if (m->cards < m->count && m->out->shares[m->cards].total > memory_of(m, m->cards))
        return false;
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (fill_cards(m, middle))
            high = middle;
        else
            low = middle;
    }
    fill_cards(m, high);
    return true;
}

/* Is the batch at most a quarter of what is left on each device? */
static bool is_roomy(const maker *m)
{
    for (int32_t i = 0; i < m->count; i++) {
        const qmi_split_share *share = &m->out->shares[i];
        int64_t batch = share->workspace + share->scratch;
        if (share->available >= 0 && batch > (share->available - (share->total - batch)) / 4)
            return false;
    }
    return true;
}

/* The largest chunk, from the devices' own on by halves, with which everything has a place, and leaves room where it is larger
 * than they need. 1: done; 0: there is none; or a code. */
static int32_t try_chunks(maker *m, int32_t given, int32_t least)
{
    int32_t high = given, low = given;
    for (int32_t i = 0; i < m->count && !given; i++) {
        high = m->devices[i].chunk_high > high ? m->devices[i].chunk_high : high;
        low = m->devices[i].chunk_low > low ? m->devices[i].chunk_low : low;
    }
    for (int32_t chunk = high; chunk >= least || chunk == high; chunk /= 2) {
        int32_t code = set_chunk(m, chunk);
        if (code < 0)
            return code;
        if (try_fill(m) && (chunk / 2 < low || given || is_roomy(m)))
            return 1;
        if (given)
            break;
    }
    return 0;
}

/* As little on the host as will do: experts of 0, 1, ... layers, then 1, 2, ... layers. */
static int32_t try_host(maker *m, int32_t chunk, int32_t least)
{
    const qmi_hparams *h = &m->plan->hparams;
    int32_t most = m->cards > 0 && h->experts ? h->layers : 0, code = 0;
    m->host_layers = 0;
    for (int32_t i = 1; i <= most && code == 0; i++) {
        m->expert_layers = i;
        code = try_chunks(m, chunk, least);
    }
    for (int32_t i = m->cards > 0 ? 1 : h->layers; i <= h->layers && code == 0; i++) {
        m->host_layers = i;
        m->expert_layers = most < h->layers - i ? most : h->layers - i;
        code = try_chunks(m, chunk, least);
    }
    return code;
}

/* All on the cards, if it fits; else some on the host. */
static int32_t try_all(maker *m, int32_t chunk)
{
    int32_t code, given = m->checkpoints;
    bool host = m->cards < m->count;
    m->expert_layers = m->host_layers = 0;
    code = try_chunks(m, chunk, host && m->cards > 0 ? CHUNK_BESIDE : CHUNK_LEAST);
    if (code != 0 || !host)
        return code;
    if (!m->checkpoints_given && m->cards > 0)
        m->checkpoints = CHECKPOINTS_BESIDE;
    code = try_host(m, chunk, CHUNK_BESIDE);
    if (code == 0) {
        m->checkpoints = given;
        code = try_host(m, chunk, CHUNK_LEAST);
    }
    return code;
}

/* ---- the rest ---- */

/* Unless option checkpoint-memory says how many: at most a quarter of what is left on each device, but those that were part of
 * what had to have a place in any case. */
static void choose_checkpoints(maker *m)
{
    int64_t count = qmi_plan_checkpoints(m->plan), least = m->checkpoints;
    if (m->checkpoints_given || m->plan->state.recurrent_bytes == 0)
        return;
    m->checkpoints = 1;
    for (int32_t i = 0; i < m->count; i++) {
        const qmi_split_share *share = &m->out->shares[i];
        int64_t each = share_of(m, i, share->part.first, share->part.count).checkpoints;
        int64_t left = share->available < 0 ? INT64_MAX : (share->available - (share->total - share->checkpoints)) / 4;
        if (each > 0 && left / each < count)
            count = left > 0 ? left / each : 0;
    }
    m->checkpoints = (int32_t)(count > least ? count : least);
    for (int32_t i = 0; i < m->count; i++) {
        qmi_split_share *share = &m->out->shares[i];
        share->total -= share->checkpoints;
        share->checkpoints = share_of(m, i, share->part.first, share->part.count).checkpoints;
        share->total += share->checkpoints;
    }
}

static void explain(maker *m)
{
    const qmi_plan *plan = m->plan;
    int64_t tokens = 0, high = m->pages - 1, whole = m->pages;
    for (int64_t low = 0; low <= high;) { /* the longest context that has a place */
        m->pages = low + (high - low) / 2;
        if (m->pages > 0 && try_all(m, CHUNK_LEAST) > 0) {
            tokens = m->pages * plan->kv.page_tokens;
            low = m->pages + 1;
        } else {
            high = m->pages - 1;
        }
    }
    m->pages = whole;
    if (tokens)
        snprintf(m->out->reason, sizeof m->out->reason, "keys and values of %" PRId64 " tokens have no place beside the weights; "
                 "context %" PRId64 " would fit, or a smaller kv-type", plan->context, tokens);
    else
        snprintf(m->out->reason, sizeof m->out->reason, "weights of %" PRId64 " bytes and a batch have no place on these devices",
                 plan->weights);
}

int32_t qmi_split_make(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan *plan, const qmi_plan_device *devices,
                       int32_t count, const qmi_alloc *alloc, qmi_split *out)
{
    *out = (qmi_split){ .count = count };
    maker *m = qmi_new(alloc, 1, sizeof *m, "a split");
    if (!m)
        return QM_ERROR_MEMORY;
    *m = (maker){ .plan = plan, .devices = devices, .count = count, .alloc = alloc, .out = out };
    m->pages = plan->kv.page_bytes ? plan->kv_pool / plan->kv.page_bytes : 0;
    m->checkpoints_given = qmi_settings_int(settings, QMI_OPT_CHECKPOINT_MEMORY) >= 0;
    m->checkpoints = m->checkpoints_given ? plan->checkpoints : 0;
    m->cards = count > 0 && devices[count - 1].mapped ? count - 1 : count;
    int32_t code = QM_OK, chunk = (int32_t)qmi_settings_int(settings, QMI_OPT_CHUNK);
    for (int32_t i = 0; i < count && code >= 0; i++)
        code = survey(m, gguf, i);
    if (code >= 0)
        code = try_all(m, chunk);
    out->fits = code > 0;
    if (code > 0)
        choose_checkpoints(m);
    else if (code == 0)
        explain(m);
    out->checkpoints = m->checkpoints;
    for (int32_t i = 0; i < count; i++) {
        qmi_program_free(&m->costs[i].middle, alloc);
        qmi_program_free(&m->costs[i].last, alloc);
        qmi_program_free(&m->costs[i].mtp, alloc);
        qmi_weights_free(&m->costs[i].weights, NULL, NULL, alloc);
    }
    qmi_delete(alloc, m);
    return code < 0 ? code : QM_OK;
}
