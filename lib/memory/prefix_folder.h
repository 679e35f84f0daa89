/* A folder of prefixes: snapshots of sessions (snapshot.h) that all programs with the same model may share, now and later. Files
 * are found by what they hold:
 *
 *   MODEL-START-ALL.prefix     three times 16 hexadecimal digits: the model with the layout of what it keeps; FNV-1a of the first
 *                              QMI_PREFIX_LEAST tokens, which is all that has to be equal to look closer; and of all
 *
 * Several processes may use a folder at once: files appear whole, by renaming, and one that is removed can still be read by who
 * has it open. What is damaged is removed; files of other names are left alone. */
#ifndef QMI_MEMORY_PREFIX_FOLDER_H
#define QMI_MEMORY_PREFIX_FOLDER_H

#include "memory/snapshot.h"

#define QMI_PREFIX_LEAST 256 /* tokens: fewer are not worth a file */

typedef struct qmi_prefix_folder {
    const char *path;    /* "": there is none */
    int64_t limit;       /* bytes of all files */
} qmi_prefix_folder;

/* The file that saves most of computing tokens[0, count), if it holds at least `least` of them; true: its path is in `path`. */
bool qmi_prefix_folder_find(const qmi_prefix_folder *folder, const qmi_snapshot_place *place, const int32_t *tokens,
                            int64_t count, int64_t least, char path[QMI_OS_PATH_SIZE], int64_t *length);
/* Writes a snapshot of at least QMI_PREFIX_LEAST tokens and removes what has not been used for longest until the limit is kept.
 * The same tokens again only count as use. Failing harms nothing: nothing is left then. */
int32_t qmi_prefix_folder_keep(const qmi_prefix_folder *folder, const qmi_snapshot_place *place, const qmi_snapshot *snapshot);

#endif
