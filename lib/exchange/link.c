/* A connection between two ranks: see link.h. */
#include "exchange/link.h"

#include <stdio.h>
#include <string.h>

#define MAGIC 0x514D5852u /* "QMXR" */
#define FORM 1
#define QUEUE_MAX (4 * QMI_MESSAGE_MAX) /* bytes that wait to be received; then the sender waits */
#define SIGNS 4                         /* of life within the patience */
#define FAREWELL_NS INT64_C(200000000)  /* the longest that leaving waits for someone who does not read */
#define LOOK_NS INT64_C(1000000)        /* how often it looks whether he does */

typedef struct header {
    uint32_t magic;
    uint16_t form, kind;
    int32_t code;
    uint32_t zero;
    int64_t bytes;
} header;

/* ---- the end ---- */

/* The first end counts. True: this was it. */
static bool set_over(qmi_link *link, int32_t code, const char *text)
{
    qmi_os_mutex_lock(link->mutex);
    bool first = !link->over;
    if (first) {
        link->over = true;
        link->code = code;
        snprintf(link->text, sizeof link->text, "%s", text);
    }
    __atomic_store_n(&link->cancelled, 1, __ATOMIC_RELEASE);
    qmi_os_condition_signal_all(link->changed);
    qmi_os_mutex_unlock(link->mutex);
    return first;
}

/* As this thread's message: what ended it. */
static int32_t report(qmi_link *link)
{
    char text[QMI_ERROR_SIZE];
    qmi_os_mutex_lock(link->mutex);
    int32_t code = link->code ? link->code : QM_ERROR_STATE;
    memcpy(text, link->text, sizeof text);
    qmi_os_mutex_unlock(link->mutex);
    return qmi_fail(code, "%s", text);
}

int32_t qmi_link_ending(qmi_link *link, char text[QMI_ERROR_SIZE])
{
    qmi_os_mutex_lock(link->mutex);
    int32_t code = link->over ? link->code : QM_OK;
    memcpy(text, link->text, QMI_ERROR_SIZE);
    qmi_os_mutex_unlock(link->mutex);
    return code;
}

static bool is_over(qmi_link *link)
{
    qmi_os_mutex_lock(link->mutex);
    bool over = link->over;
    qmi_os_mutex_unlock(link->mutex);
    return over;
}

/* The connection failed, as this thread's message says: the text of the end names the other side. */
static bool lose(qmi_link *link, int32_t code)
{
    char name[sizeof link->name];
    qmi_os_mutex_lock(link->mutex);
    memcpy(name, link->name, sizeof name);
    qmi_os_mutex_unlock(link->mutex);
    qmi_fail_within(code, name);
    return set_over(link, code, qmi_error_text());
}

static void tell_watcher(qmi_link *link)
{
    qmi_os_mutex_lock(link->watch_mutex);
    if (link->ended)
        link->ended(link, link->user);
    qmi_os_mutex_unlock(link->watch_mutex);
}

/* ---- sending ---- */

static int32_t put(qmi_link *link, int32_t kind, int32_t code, const qmi_os_part *parts, int32_t count, int64_t patience_ns)
{
    qmi_os_part all[QMI_OS_PARTS_MAX];
    header h = { .magic = MAGIC, .form = FORM, .kind = (uint16_t)kind, .code = code };
    for (int32_t i = 0; i < count; i++) {
        all[i + 1] = parts[i];
        h.bytes += parts[i].bytes;
    }
    all[0] = (qmi_os_part){ &h, sizeof h };
    qmi_os_mutex_lock(link->send_mutex);
    __atomic_store_n(&link->sending, 1, __ATOMIC_RELEASE);
    int32_t result = qmi_os_socket_send(link->socket, all, count + 1, patience_ns);
    __atomic_store_n(&link->sending, 0, __ATOMIC_RELEASE);
    qmi_os_mutex_unlock(link->send_mutex);
    return result;
}

int32_t qmi_link_send(qmi_link *link, int32_t kind, int32_t code, const qmi_os_part *parts, int32_t count)
{
    if (is_over(link))
        return report(link);
    int32_t result = put(link, kind, code, parts, count, link->patience_ns);
    if (result >= 0)
        return QM_OK;
    if (lose(link, result))
        tell_watcher(link);
    qmi_os_socket_shut(link->socket);
    return report(link);
}

void qmi_link_end(qmi_link *link, int32_t code, const char *text)
{
    const qmi_os_part part = { text, (int64_t)strlen(text) };
    if (!set_over(link, code, text))
        return;
    int64_t end = qmi_os_time_ns() + FAREWELL_NS;
    qmi_os_mutex_lock(link->mutex);
    while (__atomic_load_n(&link->sending, __ATOMIC_ACQUIRE) && qmi_os_time_ns() < end) /* a message on its way out, or stuck */
        qmi_os_condition_wait(link->changed, link->mutex, LOOK_NS);
    qmi_os_mutex_unlock(link->mutex);
    if (!__atomic_load_n(&link->sending, __ATOMIC_ACQUIRE))
        put(link, QMI_MESSAGE_END, code, &part, 1, FAREWELL_NS);
    qmi_os_socket_shut(link->socket);
}

/* ---- the reading thread ---- */

static int32_t show_life(qmi_link *link)
{
    if (__atomic_load_n(&link->sending, __ATOMIC_ACQUIRE))
        return QM_OK;
    return put(link, QMI_MESSAGE_ALIVE, 0, NULL, 0, link->patience_ns);
}

static void take_urgent(qmi_link *link)
{
    qmi_os_mutex_lock(link->watch_mutex);
    if (link->urgent)
        link->urgent(link->user);
    qmi_os_mutex_unlock(link->watch_mutex);
}

/* The other side leaves. */
static void take_end(qmi_link *link, const qmi_message *message)
{
    char text[QMI_ERROR_SIZE];
    int32_t length = message->bytes < (int64_t)sizeof text ? (int32_t)message->bytes : (int32_t)sizeof text - 1;
    snprintf(text, sizeof text, "%.*s", length, (const char *)message->data);
    if (set_over(link, message->code < 0 ? message->code : QM_OK, text))
        tell_watcher(link);
}

static void keep(qmi_link *link, qmi_message *message)
{
    qmi_os_mutex_lock(link->mutex);
    *link->last = message;
    link->last = &message->next;
    link->waiting += message->bytes;
    qmi_os_condition_signal_all(link->changed);
    while (link->waiting > QUEUE_MAX && !link->over)
        if (!qmi_os_condition_wait(link->changed, link->mutex, link->patience_ns / SIGNS)) {
            qmi_os_mutex_unlock(link->mutex);
            show_life(link);
            qmi_os_mutex_lock(link->mutex);
        }
    qmi_os_mutex_unlock(link->mutex);
}

static int32_t check_header(qmi_link *link, const header *h)
{
    if (h->magic != MAGIC)
        return qmi_fail(QM_ERROR_FORMAT, "sent something else than this library's messages, or is a machine of another order of "
                        "bytes");
    if (h->form != FORM)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "sends messages of form %d, and this library those of form %d; install the same "
                        "version on all machines", h->form, FORM);
    int64_t limit = __atomic_load_n(&link->limit, __ATOMIC_ACQUIRE);
    if (h->bytes < 0 || h->bytes > limit || h->zero)
        return qmi_fail(QM_ERROR_FORMAT, "sent a message of %lld bytes, and at most %lld are taken", (long long)h->bytes,
                        (long long)limit);
    return QM_OK;
}

static int32_t read_message(qmi_link *link)
{
    header h;
    int32_t code = qmi_os_socket_receive(link->socket, &h, sizeof h, link->patience_ns);
    if (code >= 0)
        code = check_header(link, &h);
    if (code < 0)
        return code;
    qmi_message *message = qmi_new(&link->alloc, 1, sizeof *message + (size_t)h.bytes, "a message of another rank");
    if (!message)
        return QM_ERROR_MEMORY;
    message->kind = h.kind;
    message->code = h.code;
    message->bytes = h.bytes;
    code = qmi_os_socket_receive(link->socket, message->data, h.bytes, link->patience_ns);
    if (code >= 0 && message->kind >= QMI_MESSAGE_FIRST) {
        keep(link, message);
        return QM_OK;
    }
    qmi_os_mutex_lock(link->mutex);
    if (code >= 0 && message->kind == QMI_MESSAGE_CANCEL && message->code == link->doing)
        __atomic_store_n(&link->cancelled, 1, __ATOMIC_RELEASE);
    qmi_os_mutex_unlock(link->mutex);
    if (code >= 0 && message->kind == QMI_MESSAGE_END)
        take_end(link, message);
    if (code >= 0 && message->kind == QMI_MESSAGE_URGENT)
        take_urgent(link);
    qmi_delete(&link->alloc, message);
    return code;
}

static void read_all(void *argument)
{
    qmi_link *link = argument;
    int64_t period = link->patience_ns / SIGNS, heard = qmi_os_time_ns();
    int64_t told = heard;
    while (!is_over(link)) {
        int64_t now = qmi_os_time_ns();
        int32_t code = qmi_os_socket_wait(link->socket, told + period > now ? told + period - now : 0);
        now = qmi_os_time_ns();
        if (code > 0) {
            code = read_message(link);
            heard = qmi_os_time_ns();
        } else if (code == 0 && now - heard > link->patience_ns) {
            code = qmi_fail(QM_ERROR_DEVICE, "has been silent for %.1f s: it was stopped, or its machine or network is down "
                            "(option rank-timeout)", (double)(now - heard) * 1e-9);
        }
        if (code >= 0 && now - told >= period) {
            told = now;
            code = show_life(link);
        }
        if (code < 0 && lose(link, code))
            tell_watcher(link);
    }
}

/* ---- the owner's ---- */

int32_t qmi_link_open(int32_t socket, const char *name, int64_t patience_ns, const qmi_alloc *alloc, qmi_link **out)
{
    *out = NULL;
    qmi_link *link = qmi_new(alloc, 1, sizeof *link, "a connection");
    if (!link) {
        qmi_os_socket_close(&socket);
        return QM_ERROR_MEMORY;
    }
    *link = (qmi_link){ .socket = socket, .patience_ns = patience_ns, .alloc = *alloc, .limit = QMI_MESSAGE_STRANGER };
    link->last = &link->first;
    snprintf(link->name, sizeof link->name, "%s", name);
    int32_t code = qmi_os_mutex_new(&link->mutex);
    if (code >= 0)
        code = qmi_os_mutex_new(&link->send_mutex);
    if (code >= 0)
        code = qmi_os_mutex_new(&link->watch_mutex);
    if (code >= 0)
        code = qmi_os_condition_new(&link->changed);
    if (code >= 0)
        code = qmi_os_thread_start(&link->thread, read_all, link, "qm-link");
    if (code < 0)
        qmi_link_close(&link);
    *out = link;
    return code;
}

void qmi_link_name(qmi_link *link, const char *name)
{
    qmi_os_mutex_lock(link->mutex);
    snprintf(link->name, sizeof link->name, "%s", name);
    qmi_os_mutex_unlock(link->mutex);
}

void qmi_link_watch(qmi_link *link, void (*ended)(qmi_link *link, void *user), void (*urgent)(void *user), void *user)
{
    qmi_os_mutex_lock(link->watch_mutex);
    link->ended = ended;
    link->urgent = urgent;
    link->user = user;
    qmi_os_mutex_unlock(link->watch_mutex);
}

void qmi_link_begin(qmi_link *link, int32_t number)
{
    qmi_os_mutex_lock(link->mutex);
    link->doing = number;
    __atomic_store_n(&link->cancelled, link->over, __ATOMIC_RELEASE);
    qmi_os_mutex_unlock(link->mutex);
}

int32_t qmi_link_receive(qmi_link *link, int64_t timeout_ns, qmi_message **out)
{
    *out = NULL;
    qmi_os_mutex_lock(link->mutex);
    int64_t end = timeout_ns < 0 ? INT64_MAX : qmi_os_time_ns() + timeout_ns, left = timeout_ns;
    while (!link->first && !link->over && (timeout_ns < 0 || left > 0)) {
        qmi_os_condition_wait(link->changed, link->mutex, timeout_ns < 0 ? -1 : left);
        left = timeout_ns < 0 ? -1 : end - qmi_os_time_ns();
    }
    qmi_message *message = link->first;
    bool over = link->over;
    if (message) {
        link->first = message->next;
        if (!link->first)
            link->last = &link->first;
        link->waiting -= message->bytes;
        qmi_os_condition_signal_all(link->changed); /* the reading thread may wait for room */
    }
    qmi_os_mutex_unlock(link->mutex);
    *out = message;
    if (message)
        return 1;
    return over ? report(link) : 0;
}

void qmi_link_give_back(qmi_link *link, qmi_message *message)
{
    qmi_delete(&link->alloc, message);
}

void qmi_link_stop(qmi_link *link)
{
    if (!link->thread)
        return;
    qmi_link_end(link, QM_OK, "the other side has ended");
    qmi_os_socket_shut(link->socket);
    qmi_os_thread_join(&link->thread);
}

void qmi_link_close(qmi_link **link)
{
    qmi_link *l = *link;
    if (!l)
        return;
    qmi_link_stop(l);
    while (l->first) {
        qmi_message *message = l->first;
        l->first = message->next;
        qmi_delete(&l->alloc, message);
    }
    qmi_os_condition_free(&l->changed);
    qmi_os_mutex_free(&l->mutex);
    qmi_os_mutex_free(&l->send_mutex);
    qmi_os_mutex_free(&l->watch_mutex);
    qmi_os_socket_close(&l->socket);
    qmi_alloc alloc = l->alloc;
    qmi_delete(&alloc, l);
    *link = NULL;
}
