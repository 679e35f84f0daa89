/* Several devices as one: a backend whose device is a group of members, each an open device of some backend, that share a model
 * as a sharing says. The engine, its sessions, pages and states see one device; addresses are of a space of the group's own,
 * laid out as on one device, of which each member has its pieces (piece_map.h). So a session that was saved on one device goes on
 * with several, and the other way round.
 *
 * Each member but the first computes in a thread of its own, which sleeps when there is nothing to do. A batch of many rows goes
 * through the stages in several pieces, one behind the other, so that all stages work at once.
 *
 * A group is opened by qmi_group_open, not by its table's `open`. Matrices are not uploaded one by one: their addresses are those
 * of the mapped file until qmi_group_place has cut the programs. */
#ifndef QMI_EXCHANGE_GROUP_H
#define QMI_EXCHANGE_GROUP_H

#include "exchange/cut.h"

extern const qmi_backend qmi_group_backend;

typedef struct qmi_group_settings {
    const qmi_exchange_member *members; /* [sharing.members], open; the group's to close once it is opened */
    qmi_sharing sharing;
    qmi_cut_sizes sizes;
    int64_t timeout_ns;                 /* of exchanges; < 0: none */
    int64_t cache_bytes[QMI_RANKS_MAX]; /* by member: for experts of the host that are chosen often */
    const char *way;                    /* a way of the members' own to sum (backend/joint.h); "host": through its memory */
    bool way_needed;                    /* else the host's memory does where it can't be had */
    qmi_alloc alloc;
    qmi_log log;
} qmi_group_settings;

int32_t qmi_group_open(const qmi_group_settings *settings, qmi_device **out);

typedef struct qmi_group_source {       /* of the weights: qmi_weights_source */
    const qmi_os_map *files;
    int32_t file_count;
    qm_progress_callback progress;
    void *user;
    const int32_t *cancel;
} qmi_group_source;

#define QMI_GROUP_PROGRAMS 2
/* Cuts the programs that will be run, and brings each member its slices of their weights. Once, before anything is allocated but
 * the vectors. */
int32_t qmi_group_place(qmi_device *device, const qmi_program *const *programs, int32_t count, const qmi_group_source *source);

#endif
