/* A link: one connection between two ranks, messages over it, and the certainty that both are alive.
 *
 * A message is a header and bytes:
 *   u32 magic, u16 version of this form, u16 kind, i32 code, u32 0, i64 bytes, then the bytes
 * in the order of bytes of the machines, which has to be the same one (another gives another magic, and is refused). Nothing that
 * comes is believed: sizes are checked before anything is allocated, and whatever is none of this ends the link.
 *
 * Each link has a thread that reads. It keeps what arrives for `receive`, answers for this side while that computes (a sign of
 * life several times within the patience), and ends the link when the other side was silent for longer than that, or is gone. A
 * link that has ended says why at each later call. */
#ifndef QMI_EXCHANGE_LINK_H
#define QMI_EXCHANGE_LINK_H

#include "base/alloc.h"
#include "base/error.h"
#include "base/os.h"
#include "base/os_socket.h"

typedef enum qmi_message_kind {
    QMI_MESSAGE_ALIVE,  /* the link's own: nothing but a sign of life */
    QMI_MESSAGE_END,    /* the link's own: the sender leaves, with a code (0: all is well) and a text */
    QMI_MESSAGE_CANCEL, /* the link's own: sets `cancelled` if its code is the number of what is being done */
    QMI_MESSAGE_URGENT, /* is not kept, but given at once to who watches */
    QMI_MESSAGE_FIRST   /* kinds of the users of links begin here */
} qmi_message_kind;

#define QMI_MESSAGE_MAX (INT64_C(16) << 20)     /* bytes; more goes in several */
#define QMI_MESSAGE_STRANGER INT64_C(65536)     /* from someone who has not said who he is */

typedef struct qmi_message { /* one that has arrived */
    struct qmi_message *next;
    int32_t kind, code;
    int64_t bytes;
    uint8_t data[];
} qmi_message;

typedef struct qmi_link {
    int32_t socket;
    qmi_alloc alloc;
    int64_t patience_ns;
    int64_t limit;              /* largest message that is taken; atomic */
    int32_t cancelled;          /* atomic: the other side asks this one to stop what it does; also set when the link ends */
    int32_t sending;            /* atomic: bytes go out, which is a sign of life too */
    qmi_os_thread *thread;
    qmi_os_mutex *send_mutex;   /* a message goes out whole */
    qmi_os_mutex *watch_mutex;  /* held while who watches is told; guards the next three */
    /* Told once, by whichever thread sees it, unless this side ended it; NULL: nobody. */
    void (*ended)(struct qmi_link *link, void *user);
    void (*urgent)(void *user); /* a message of that kind has come; NULL: nobody is told */
    void *user;
    qmi_os_condition *changed;
    qmi_os_mutex *mutex;        /* guards what follows */
    char name[64];              /* of the other side, for messages: "rank 1 (node2)" */
    qmi_message *first, **last; /* that have arrived */
    int64_t waiting;            /* their bytes */
    int32_t doing;              /* the number of qmi_link_begin */
    bool over;                  /* ended; `code` and `text` say how. code 0: the other side has left, and all is well */
    int32_t code;
    char text[QMI_ERROR_SIZE];
} qmi_link;

/* Takes over the socket, also on failure. */
int32_t qmi_link_open(int32_t socket, const char *name, int64_t patience_ns, const qmi_alloc *alloc, qmi_link **out);
void qmi_link_name(qmi_link *link, const char *name);
/* Once it returns nobody who watched before is told any more. */
void qmi_link_watch(qmi_link *link, void (*ended)(qmi_link *link, void *user), void (*urgent)(void *user), void *user);

/* From any thread. count: at most QMI_OS_PARTS_MAX - 1 parts. */
int32_t qmi_link_send(qmi_link *link, int32_t kind, int32_t code, const qmi_os_part *parts, int32_t count);
/* 1: *out is the next message, to be given back; 0: none came in time (timeout_ns < 0: for ever). Negative: the link has ended,
 * with QM_ERROR_STATE if the other side left in peace. One thread at a time. */
int32_t qmi_link_receive(qmi_link *link, int64_t timeout_ns, qmi_message **out);
void qmi_link_give_back(qmi_link *link, qmi_message *message); /* NULL is fine */

/* What is done now has that number, and is not cancelled: a message to cancel something that is over already must not count. */
void qmi_link_begin(qmi_link *link, int32_t number);

/* How it has ended; QM_OK: it has not, or in peace. */
int32_t qmi_link_ending(qmi_link *link, char text[QMI_ERROR_SIZE]);

/* Ends it with that code and text on both sides, from any thread; the first end counts. */
void qmi_link_end(qmi_link *link, int32_t code, const char *text);
/* Ends it in peace if it has not ended, and waits until its thread has, after which nobody is told of its end. */
void qmi_link_stop(qmi_link *link);
void qmi_link_close(qmi_link **link); /* the same, and frees it; accepts a pointer to NULL */

#endif
