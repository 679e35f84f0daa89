/* How ranks come together, and what they compare: see ranks.h. */
#include "exchange/ranks.h"

#include <stdio.h>
#include <string.h>
#include "backend/program.h"
#include "base/number.h"
#include "exchange/follow.h"
#include "exchange/remote.h"
#include "exchange/remote_message.h"

#define SECOND INT64_C(1000000000)
#define CARD_NS (5 * SECOND)          /* within which a caller says who he is */
#define LOOK_NS INT64_C(50000000)     /* how often who waits looks whether it shall */

struct qmi_ranks {
    qmi_alloc alloc;
    qmi_log log;
    int32_t count;                    /* with rank 0 */
    qmi_link *links[QMI_RANKS_MAX];   /* [0]: NULL; NULL: not here yet */
    char hosts[QMI_RANKS_MAX][32];
    qmi_os_mutex *mutex;              /* guards what follows */
    int32_t code;                     /* of the first failure */
    char text[QMI_ERROR_SIZE];
};

/* ---- ids and cards ---- */

int32_t qmi_rank_id_read(const char *text, qmi_rank_id *out)
{
    char shown[QMI_SHOWN_SIZE];
    const char *slash = strchr(text, '/');
    size_t length = slash ? (size_t)(slash - text) : 0, colon = length;
    int64_t port;
    while (colon > 0 && text[colon - 1] != ':')
        colon--;
    size_t host = colon > 0 ? colon - 1 : 0, skip = host > 1 && text[0] == '[' && text[host - 1] == ']';
    if (!slash || host == 0 || host - 2 * skip >= sizeof out->host || strlen(slash + 1) >= sizeof out->key || !slash[1] ||
        qmi_number_read_int(text + colon, length - colon, &port) != QMI_NUMBER_OK || port < 1 || port > 65535)
        return qmi_fail(QM_ERROR_OPTION, "rank-id: \"%s\" is not HOST:PORT/KEY, where rank 0 listens and a word that all ranks "
                        "of the run share", qmi_option_shown(text, shown));
    *out = (qmi_rank_id){ .port = (int32_t)port };
    memcpy(out->host, text + skip, host - 2 * skip);
    strcpy(out->key, slash + 1);
    return QM_OK;
}

/* What each rank may have its own way: its machine's affairs. All other options of models have to be alike. */
static bool is_own(int32_t id)
{
    static const qmi_option_id own[] = {
        QMI_OPT_DEVICE, QMI_OPT_CUDA_LIBRARY, QMI_OPT_THREADS, QMI_OPT_PIN, QMI_OPT_ISA, QMI_OPT_READ_AHEAD, QMI_OPT_LOCK,
        QMI_OPT_MEMORY_LIMIT, QMI_OPT_PROFILE, QMI_OPT_PLAN_DEVICES, QMI_OPT_PREFIX_CACHE, QMI_OPT_PREFIX_CACHE_SIZE,
        QMI_OPT_RANK, QMI_OPT_RANK_ID,
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (own[i] == (qmi_option_id)id)
            return true;
    return qmi_option_at(id)->scope != QMI_SCOPE_MODEL;
}

static int32_t write_options(const qmi_settings *settings, char out[QMI_RANK_OPTIONS_SIZE])
{
    int64_t length = 0;
    out[0] = 0;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        char value[256];
        if (is_own(id) || qmi_settings_get(settings, id, value, sizeof value) < 0)
            continue;
        length += snprintf(out + length, (size_t)(QMI_RANK_OPTIONS_SIZE - length), "%s=%s\n", qmi_option_at(id)->name, value);
        if (length >= QMI_RANK_OPTIONS_SIZE)
            return qmi_fail(QM_ERROR_OPTION, "the options of the model are too long to be compared between ranks");
    }
    return QM_OK;
}

int32_t qmi_rank_card_make(const qmi_settings *settings, const qmi_parts *parts, qmi_rank_card *out)
{
    qmi_rank_id id;
    *out = (qmi_rank_card){ .rank = (int32_t)qmi_settings_int(settings, QMI_OPT_RANK),
                            .ranks = (int32_t)qmi_settings_int(settings, QMI_OPT_RANKS), .file_bytes = parts->bytes };
    if (out->rank >= out->ranks)
        return qmi_fail(QM_ERROR_OPTION, "rank is %d, but ranks is %d: ranks are counted from 0", out->rank, out->ranks);
    int32_t code = qmi_rank_id_read(qmi_settings_text(settings, QMI_OPT_RANK_ID), &id);
    if (code < 0)
        return code;
    const char *path = parts->paths[0], *name = strrchr(path, '/');
    snprintf(out->version, sizeof out->version, "%d.%d.%d", QM_VERSION_MAJOR, QM_VERSION_MINOR, QM_VERSION_PATCH);
    out->layout = sizeof(qmi_op) + (sizeof(qmi_workspace) << 16) + ((uint64_t)sizeof(qmi_device_info) << 32) +
                  ((uint64_t)QMI_BACKEND_ABI << 48);
    memcpy(out->key, id.key, sizeof out->key);
    snprintf(out->file, sizeof out->file, "%.127s", name ? name + 1 : path);
    qmi_os_host_name(out->host, sizeof out->host);
    code = qmi_parts_identify(parts, &out->file_sum);
    return code < 0 ? code : write_options(settings, out->options);
}

/* Of a card that has arrived. */
static void end_texts(qmi_rank_card *card)
{
    card->version[sizeof card->version - 1] = card->key[sizeof card->key - 1] = card->file[sizeof card->file - 1] = 0;
    card->host[sizeof card->host - 1] = card->options[sizeof card->options - 1] = 0;
}

/* The first line in which two texts of options differ. */
static int32_t compare_options(const char *name, const char *theirs, const char *ours)
{
    while (*ours || *theirs) {
        size_t a = strcspn(theirs, "\n"), b = strcspn(ours, "\n");
        if (a != b || memcmp(theirs, ours, a) != 0)
            return qmi_fail(QM_ERROR_OPTION, "%s: has option %.*s, and rank 0 %.*s; start all ranks with the same options", name,
                            (int)(a < 100 ? a : 100), theirs, (int)(b < 100 ? b : 100), ours);
        theirs += a + (theirs[a] == '\n');
        ours += b + (ours[b] == '\n');
    }
    return QM_OK;
}

static int32_t compare_cards(const char *name, const qmi_rank_card *theirs, const qmi_rank_card *ours)
{
    if (strcmp(theirs->version, ours->version) != 0)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "%s: has version %s of libqwenmoe, and rank 0 has %s; install the same on all "
                        "machines", name, theirs->version, ours->version);
    if (theirs->layout != ours->layout)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "%s: has another build of libqwenmoe %s than rank 0; install the same on all "
                        "machines", name, ours->version);
    if (theirs->file_bytes != ours->file_bytes || theirs->file_sum != ours->file_sum)
        return qmi_fail(QM_ERROR_FILE, "%s: has another file (%s, %lld bytes) than rank 0 (%s, %lld bytes); give all ranks the "
                        "same", name, theirs->file, (long long)theirs->file_bytes, ours->file, (long long)ours->file_bytes);
    return compare_options(name, theirs->options, ours->options);
}

static int64_t patience_of(const qmi_settings *settings)
{
    return qmi_settings_int(settings, QMI_OPT_RANK_TIMEOUT) * SECOND;
}

static bool is_set(const int32_t *cancel)
{
    return cancel && __atomic_load_n(cancel, __ATOMIC_ACQUIRE);
}

/* ---- rank 0: the end of one is the end of all ---- */

/* The first failure counts; all others hear of it. */
static void end_all(qmi_ranks *ranks, int32_t code, const char *text, const qmi_link *but)
{
    qmi_os_mutex_lock(ranks->mutex);
    bool first = ranks->code == 0;
    if (first) {
        ranks->code = code;
        snprintf(ranks->text, sizeof ranks->text, "%s", text);
    }
    qmi_os_mutex_unlock(ranks->mutex);
    for (int32_t i = 1; i < ranks->count && first; i++)
        if (ranks->links[i] && ranks->links[i] != but)
            qmi_link_end(ranks->links[i], code, text);
}

static void link_ended(qmi_link *link, void *user)
{
    char text[QMI_ERROR_SIZE];
    int32_t code = qmi_link_ending(link, text);
    if (code == QM_OK) /* in peace, and nevertheless without it there is no going on */
        snprintf(text, sizeof text, "%s: has left", link->name);
    end_all(user, QM_ERROR_DEVICE, text, link);
}

int32_t qmi_ranks_check(qmi_ranks *ranks)
{
    char text[QMI_ERROR_SIZE];
    qmi_os_mutex_lock(ranks->mutex);
    int32_t code = ranks->code;
    memcpy(text, ranks->text, sizeof text);
    qmi_os_mutex_unlock(ranks->mutex);
    return code < 0 ? qmi_fail(code, "%s", text) : QM_OK;
}

void qmi_ranks_fail(qmi_ranks *ranks, int32_t code)
{
    char text[QMI_ERROR_SIZE], reason[QMI_ERROR_SIZE], host[QMI_OS_HOST_SIZE];
    qmi_error_copy(reason);
    qmi_os_host_name(host, sizeof host);
    snprintf(text, sizeof text, "rank 0 (%.40s): %.440s", host, reason);
    end_all(ranks, code, text, NULL);
    qmi_error_restore(reason);
}

void qmi_ranks_close(qmi_ranks **ranks)
{
    qmi_ranks *r = *ranks;
    if (!r)
        return;
    for (int32_t i = 1; i < r->count; i++) /* first all of them, as the end of one looks at the others */
        if (r->links[i])
            qmi_link_stop(r->links[i]);
    for (int32_t i = 1; i < r->count; i++)
        qmi_link_close(&r->links[i]);
    qmi_os_mutex_free(&r->mutex);
    qmi_alloc alloc = r->alloc;
    qmi_delete(&alloc, r);
    *ranks = NULL;
}

/* ---- rank 0: gathering ---- */

typedef struct gathering {
    qmi_ranks *ranks;
    const qmi_rank_card *own;
    int32_t listener, missing;
    int64_t patience_ns;
    int32_t code;                  /* of the first who does not fit; the others are waited for, to tell them */
    char text[QMI_ERROR_SIZE];
} gathering;

static void note_failure(gathering *g, int32_t code)
{
    if (g->code == 0) {
        g->code = code;
        qmi_error_copy(g->text);
    }
}

/* The card of who has called: 1, or 0 with the message set. */
static int32_t receive_card(qmi_link *link, qmi_rank_card *out)
{
    qmi_message *message;
    int32_t code = qmi_link_receive(link, CARD_NS, &message);
    if (code <= 0)
        return code < 0 ? 0 : (qmi_fail(QM_ERROR_DEVICE, "%s: does not say who it is", link->name), 0);
    bool is_card = message->kind == QMI_REMOTE_CARD && message->bytes == (int64_t)sizeof *out;
    if (is_card)
        memcpy(out, message->data, sizeof *out);
    qmi_link_give_back(link, message);
    end_texts(out);
    if (is_card)
        return 1;
    qmi_fail(QM_ERROR_UNSUPPORTED, "%s: has another version of libqwenmoe than rank 0; install the same on all machines",
             link->name);
    return 0;
}

/* Is who has called one of ours, with a place of its own? Else with the message set. */
static bool may_enter(gathering *g, const char *peer, const qmi_rank_card *card)
{
    const qmi_ranks *ranks = g->ranks;
    if (strcmp(card->key, g->own->key) != 0) {
        qmi_fail(QM_ERROR_OPTION, "%s: calls with another rank-id; it belongs to another run", peer);
        return false;
    }
    if (card->ranks != ranks->count || card->rank < 1 || card->rank >= ranks->count)
        note_failure(g, qmi_fail(QM_ERROR_OPTION, "rank %d (%s): has options rank %d and ranks %d, and rank 0 has ranks %d; each "
                                 "of them needs a number of its own", card->rank, card->host, card->rank, card->ranks,
                                 ranks->count));
    else if (ranks->links[card->rank])
        note_failure(g, qmi_fail(QM_ERROR_OPTION, "rank %d (%s): there is one already; give each process an own rank", card->rank,
                                 card->host));
    else
        return true;
    return false;
}

static void send_away(gathering *g, qmi_link **link)
{
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    qmi_log_line(&g->ranks->log, QM_LOG_WARNING, "a process that wanted to join was sent away: %s", text);
    qmi_link_end(*link, QM_ERROR_OPTION, text);
    qmi_link_close(link);
}

/* Someone has called. A stranger is sent away; a rank that does not fit is noted. */
static void admit(gathering *g, int32_t socket, const char *peer)
{
    qmi_rank_card card = { 0 };
    qmi_link *link;
    char name[64];
    if (qmi_link_open(socket, peer, g->patience_ns, &g->ranks->alloc, &link) < 0)
        return;
    if (receive_card(link, &card) == 0 || !may_enter(g, peer, &card)) {
        send_away(g, &link);
        return;
    }
    snprintf(name, sizeof name, "rank %d (%.40s)", card.rank, card.host);
    qmi_link_name(link, name);
    __atomic_store_n(&link->limit, QMI_MESSAGE_MAX, __ATOMIC_RELEASE);
    g->ranks->links[card.rank] = link;
    snprintf(g->ranks->hosts[card.rank], sizeof g->ranks->hosts[0], "%.31s", card.host);
    g->missing--;
    int32_t code = compare_cards(name, &card, g->own);
    if (code < 0)
        note_failure(g, code);
}

static int32_t fail_missing(const gathering *g)
{
    char list[128] = "";
    size_t length = 0;
    for (int32_t i = 1; i < g->ranks->count && length < sizeof list - 8; i++)
        if (!g->ranks->links[i])
            length += (size_t)snprintf(list + length, sizeof list - length, "%s%d", length ? ", " : "", i);
    return qmi_fail(QM_ERROR_DEVICE, "rank %s did not come within %.0f s; see what it says itself, and start it with the same "
                    "rank-id (option rank-timeout)", list, (double)g->patience_ns * 1e-9);
}

/* Until all are here, or the time is over. */
static int32_t wait_for_all(gathering *g, const int32_t *cancel)
{
    int64_t end = qmi_os_time_ns() + g->patience_ns;
    while (g->missing > 0) {
        int32_t socket;
        char peer[QMI_OS_HOST_SIZE];
        int32_t code = qmi_os_socket_accept(g->listener, LOOK_NS, &socket, peer);
        if (code > 0)
            admit(g, socket, peer);
        if (code < 0)
            return code;
        if (is_set(cancel))
            return qmi_fail(QM_ERROR_CANCELLED, "waiting for the other ranks was cancelled");
        if (g->missing > 0 && qmi_os_time_ns() > end)
            return g->code < 0 ? qmi_fail(g->code, "%s", g->text) : fail_missing(g);
    }
    return g->code < 0 ? qmi_fail(g->code, "%s", g->text) : QM_OK;
}

static int32_t welcome_all(qmi_ranks *ranks)
{
    int32_t code = QM_OK;
    for (int32_t i = 1; i < ranks->count; i++)
        qmi_link_watch(ranks->links[i], link_ended, NULL, ranks);
    for (int32_t i = 1; i < ranks->count && code >= 0; i++)
        code = qmi_link_send(ranks->links[i], QMI_REMOTE_WELCOME, 0, NULL, 0);
    return code;
}

static int32_t new_ranks(const qmi_rank_card *card, const qmi_settings *settings, qmi_ranks **out)
{
    *out = qmi_new(&settings->alloc, 1, sizeof **out, "the list of ranks");
    if (!*out)
        return QM_ERROR_MEMORY;
    (*out)->alloc = settings->alloc;
    (*out)->log = settings->log;
    (*out)->count = card->ranks;
    return qmi_os_mutex_new(&(*out)->mutex);
}

int32_t qmi_ranks_gather(const qmi_rank_card *card, const qmi_settings *settings, const int32_t *cancel, qmi_ranks **out)
{
    gathering g = { .own = card, .listener = -1, .missing = card->ranks - 1, .patience_ns = patience_of(settings) };
    qmi_rank_id id;
    int32_t port, code = qmi_rank_id_read(qmi_settings_text(settings, QMI_OPT_RANK_ID), &id);
    *out = NULL;
    if (code >= 0)
        code = new_ranks(card, settings, &g.ranks);
    if (code >= 0) {
        code = qmi_os_socket_listen("", id.port, &g.listener, &port);
        if (code < 0)
            qmi_fail(code, "rank-id: port %d: %s; choose another", id.port, qmi_error_text());
    }
    if (code >= 0)
        code = wait_for_all(&g, cancel);
    if (code >= 0)
        code = welcome_all(g.ranks);
    qmi_os_socket_close(&g.listener);
    if (code < 0 && g.ranks) {
        char text[QMI_ERROR_SIZE];
        qmi_error_copy(text);
        end_all(g.ranks, code, text, NULL);
        qmi_ranks_close(&g.ranks);
        qmi_error_restore(text);
    }
    *out = g.ranks;
    return code;
}

int32_t qmi_ranks_open(qmi_ranks *ranks, int32_t rank, const qmi_settings *settings, qmi_exchange_member *out)
{
    *out = (qmi_exchange_member){ 0 };
    memcpy(out->name, ranks->hosts[rank], sizeof out->name);
    return qmi_remote_open(ranks->links[rank], qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY), &ranks->alloc, &ranks->log,
                           &out->backend, &out->device);
}

/* ---- the others ---- */

static int32_t wait_for_welcome(qmi_link *link, const int32_t *cancel)
{
    qmi_message *message;
    int32_t code = 0;
    while (code == 0 && !is_set(cancel))
        code = qmi_link_receive(link, LOOK_NS, &message);
    if (code == 0)
        return qmi_fail(QM_ERROR_CANCELLED, "joining the other ranks was cancelled");
    if (code < 0)
        return code;
    int32_t kind = message->kind;
    qmi_link_give_back(link, message);
    if (kind != QMI_REMOTE_WELCOME)
        return qmi_fail(QM_ERROR_FORMAT, "%s: sent message %d before a welcome", link->name, kind);
    return QM_OK;
}

/* The others hear from this rank itself why it leaves. */
static void say_why(qmi_link *link, const qmi_rank_card *card, int32_t code)
{
    char text[QMI_ERROR_SIZE], reason[QMI_ERROR_SIZE];
    qmi_error_copy(reason);
    snprintf(text, sizeof text, "rank %d (%.40s): %.440s", card->rank, card->host, reason);
    qmi_link_end(link, code, text);
    qmi_error_restore(reason);
}

int32_t qmi_ranks_join(const qmi_rank_card *card, const qmi_settings *settings, const int32_t *cancel, qmi_link **link)
{
    qmi_rank_id id;
    char name[64];
    const qmi_os_part part = { card, sizeof *card };
    int32_t socket = -1, code = qmi_rank_id_read(qmi_settings_text(settings, QMI_OPT_RANK_ID), &id);
    int64_t patience_ns = patience_of(settings), end = qmi_os_time_ns() + patience_ns;
    *link = NULL;
    if (code < 0)
        return code;
    do
        code = qmi_os_socket_connect(id.host, id.port, LOOK_NS, &socket);
    while (code < 0 && !is_set(cancel) && qmi_os_time_ns() < end);
    snprintf(name, sizeof name, "rank 0 (%.40s)", id.host);
    if (code < 0)
        return is_set(cancel) ? qmi_fail(QM_ERROR_CANCELLED, "joining the other ranks was cancelled")
                              : qmi_fail(code, "%s, port %d: %s, within %.0f s", name, id.port, qmi_error_text(),
                                         (double)patience_ns * 1e-9);
    code = qmi_link_open(socket, name, patience_ns, &settings->alloc, link);
    if (code < 0)
        return code;
    __atomic_store_n(&(*link)->limit, QMI_MESSAGE_MAX, __ATOMIC_RELEASE);
    code = qmi_link_send(*link, QMI_REMOTE_CARD, 0, &part, 1);
    if (code >= 0)
        code = wait_for_welcome(*link, cancel);
    if (code < 0) {
        char text[QMI_ERROR_SIZE];
        qmi_error_copy(text);
        say_why(*link, card, code);
        qmi_link_close(link);
        qmi_error_restore(text);
    }
    return code;
}

int32_t qmi_ranks_follow(const char *path, const qmi_settings *settings, const int32_t *cancel)
{
    qmi_rank_card card;
    qmi_parts parts;
    qmi_link *link = NULL;
    int32_t code = qmi_parts_open(path, &settings->alloc, &parts);
    if (code < 0)
        return code;
    code = qmi_rank_card_make(settings, &parts, &card);
    if (code >= 0 && card.rank == 0)
        code = qmi_fail(QM_ERROR_OPTION, "rank is 0, which drives the others; ranks 1 to %d follow", card.ranks - 1);
    if (code >= 0)
        code = qmi_ranks_join(&card, settings, cancel, &link);
    if (code >= 0)
        code = qmi_follow(link, &parts, settings, cancel);
    if (code < 0 && link)
        say_why(link, &card, code);
    qmi_link_close(&link);
    qmi_parts_close(&parts, &settings->alloc);
    return code;
}
