/* Everything the library asks of the operating system, connections apart (os_socket.h). os.c is, beside os_socket.c, the only
 * file with system calls; a port is a second one of each. os_limits.c reads the limits of control groups, through os.c.
 *
 * Calls that can fail return a code of qwenmoe.h with the message set. */
#ifndef QMI_BASE_OS_H
#define QMI_BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include "qwenmoe.h"

/* ---- files ---- */
/* A file mapped read-only. Whoever shortens the file while it is mapped takes the pages away, and reading them would be a
 * bus error, which only a signal handler could catch; the library installs none. So the descriptor stays open, and
 * qmi_os_map_check tells before a piece of work whether the file is still whole. What remains is the moment in between:
 * files should be replaced by renaming, never rewritten in place, while a model of them is loaded. */
typedef struct qmi_os_map {
    const uint8_t *data; /* NULL when size is 0 */
    int64_t size;
    int64_t locked;      /* bytes held in RAM by qmi_os_map_lock */
    int32_t descriptor;  /* of the open file plus 1, so that 0 is none */
} qmi_os_map;

int32_t qmi_os_map_open(const char *path, qmi_os_map *out); /* *out is all zero on failure */
void qmi_os_map_close(qmi_os_map *map);                      /* accepts an all-zero map; leaves it so */
int32_t qmi_os_map_check(const qmi_os_map *map);             /* QM_ERROR_FILE when the file has become shorter; a microsecond */
void qmi_os_map_will_need(const qmi_os_map *map, int64_t offset, int64_t size); /* starts reading ahead; never fails */
/* Blocks until the bytes are in memory. QM_ERROR_FILE when the file has become shorter or its disk fails (where the system can
 * tell: Linux 5.14 and later). */
int32_t qmi_os_map_touch(const qmi_os_map *map, int64_t offset, int64_t size);
/* Copies bytes of the file through its descriptor, which builds no page tables and cannot be a bus error: QM_ERROR_FILE when the
 * file has become shorter or its disk fails. From any thread. */
int32_t qmi_os_map_read(const qmi_os_map *map, int64_t offset, void *to, int64_t size);
int32_t qmi_os_map_lock(qmi_os_map *map);                    /* keeps it in RAM; QM_ERROR_MEMORY names the limit to raise */
bool qmi_os_file_exists(const char *path);

/* A file that takes the place of another, or of none, when it is whole: written under a name of its own beside it, and renamed
 * once it is on the disk. So whatever happens, the old one stays or the new one is there. For the owner's eyes only. */
#define QMI_OS_PATH_SIZE 4096
typedef struct qmi_os_writer {
    char path[QMI_OS_PATH_SIZE], part[QMI_OS_PATH_SIZE]; /* as it shall be called, and as it is called until then; "": neither */
    int32_t descriptor;  /* of the open file plus 1, so that 0 is none */
} qmi_os_writer;

int32_t qmi_os_writer_open(const char *path, qmi_os_writer *out); /* *out is all zero on failure */
int32_t qmi_os_writer_put(qmi_os_writer *writer, const void *data, int64_t size); /* QM_ERROR_FILE: the disk is full, perhaps */
int32_t qmi_os_writer_finish(qmi_os_writer *writer); /* puts it in its place; also closes, whatever it returns */
void qmi_os_writer_abandon(qmi_os_writer *writer);   /* removes what was written; accepts an all-zero one */
bool qmi_os_read_text(const char *path, char *text, size_t size); /* a small file, cut at size - 1; false if there is none */

/* ---- folders ---- */
typedef void (*qmi_os_folder_entry)(const char *name, int64_t bytes, int64_t changed_ns, void *user);

int32_t qmi_os_folder_make(const char *path); /* for the owner's eyes only; fine if it is there */
int32_t qmi_os_folder_list(const char *path, qmi_os_folder_entry entry, void *user); /* its regular files, in any order */
void qmi_os_file_use(const char *path);       /* it was changed now; never fails */
void qmi_os_file_remove(const char *path);    /* if it is there; never fails */
int64_t qmi_os_clock_ns(void);                /* what changed_ns is counted by */

/* ---- memory ---- */
void *qmi_os_pages_new(size_t size);  /* zero pages, committed when touched; NULL when there are none */
void qmi_os_pages_free(void *pages, size_t size);
void *qmi_os_block_new(size_t size);  /* from the process's heap, aligned to 64 bytes, not cleared; size a multiple of 64 */
void qmi_os_block_free(void *block);
int64_t qmi_os_machine_memory(void);  /* bytes of RAM that are built in; 0 if unknown */
int64_t qmi_os_memory_total(void);    /* bytes of RAM this process may use (the control group's limit if there is one) */
int64_t qmi_os_memory_available(void);
int64_t qmi_os_last_cache(void);      /* bytes of a processor's last, largest cache; 0 if unknown */

/* ---- time, random ---- */
int64_t qmi_os_time_ns(void);         /* monotonic */
uint64_t qmi_os_random(void);         /* for seeds */

/* ---- threads ---- */
typedef struct qmi_os_thread qmi_os_thread;
typedef struct qmi_os_mutex qmi_os_mutex;
typedef struct qmi_os_condition qmi_os_condition;

int32_t qmi_os_thread_start(qmi_os_thread **out, void (*body)(void *), void *argument, const char *name);
void qmi_os_thread_join(qmi_os_thread **thread); /* waits for its end, frees, sets NULL; accepts NULL */
int32_t qmi_os_mutex_new(qmi_os_mutex **out);
void qmi_os_mutex_free(qmi_os_mutex **mutex);
void qmi_os_mutex_lock(qmi_os_mutex *mutex);
void qmi_os_mutex_unlock(qmi_os_mutex *mutex);
int32_t qmi_os_condition_new(qmi_os_condition **out);
void qmi_os_condition_free(qmi_os_condition **condition);
void qmi_os_condition_signal_all(qmi_os_condition *condition);
/* timeout_ns < 0: for ever. Returns false when the time ran out. */
bool qmi_os_condition_wait(qmi_os_condition *condition, qmi_os_mutex *mutex, int64_t timeout_ns);
int32_t qmi_os_processor_set(void);                   /* processors the caller may run on */
int32_t qmi_os_processor_count(void);                 /* the same, or fewer if its time is limited */
/* Binds the calling thread to the index-th of the processors it may run on; false if refused. A thread inherits the set of its
 * creator, so do this once a thread and never to the creator before. */
bool qmi_os_pin_self(int32_t index);
/* Lets the process use the tile registers of AMX, which is for good; false where there are none or the system refuses. Asking again
 * is harmless. */
bool qmi_os_allow_tiles(void);
void qmi_os_spin_pause(void);                         /* inside a spinning loop */
void qmi_os_yield(void);
/* Sleeps while *word == expected (wake-ups may be spurious); the waker changes the word first, then calls wake_all. */
void qmi_os_wait_word(const int32_t *word, int32_t expected);
void qmi_os_wake_all(const int32_t *word);

/* ---- a descriptor that others can poll ---- */
typedef struct qmi_os_event {
    int32_t read_end, write_end; /* -1: none */
} qmi_os_event;
int32_t qmi_os_event_new(qmi_os_event *out);
void qmi_os_event_free(qmi_os_event *event);
void qmi_os_event_set(const qmi_os_event *event);   /* read_end becomes readable */
void qmi_os_event_clear(const qmi_os_event *event); /* ... and is no longer */

/* ---- shared objects (backends) ---- */
bool qmi_os_library_folder(char *path, size_t size); /* where the shared object (or program) with this function lies, with a '/' */
int32_t qmi_os_library_open(const char *path, void **out);
void *qmi_os_library_symbol(void *library, const char *name); /* NULL if absent */
void qmi_os_library_close(void *library);

#endif
