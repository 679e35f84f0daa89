/* Everything the library asks of the operating system: see os.h. Linux, and what POSIX gives elsewhere. */
#include "base/os.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#endif

#include "base/error.h"

/* Linux 5.14's MADV_POPULATE_READ, for older headers: it reads pages in, and reports EFAULT where touching them would be a
 * bus error. */
#define POPULATE_READ 22

#define NANOSECONDS INT64_C(1000000000)

/* ---- files ---- */

int32_t qmi_os_map_open(const char *path, qmi_os_map *out)
{
    struct stat facts;
    void *data = NULL;
    *out = (qmi_os_map){ 0 };
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* without the last flag a pipe's name would block */
    if (file < 0)
        return qmi_fail(QM_ERROR_FILE, "cannot open %s: %s", path, strerror(errno));
    if (fstat(file, &facts) < 0) {
        qmi_fail(QM_ERROR_FILE, "cannot ask for the size of %s: %s", path, strerror(errno));
        goto failed;
    }
    if (!S_ISREG(facts.st_mode)) {
        qmi_fail(QM_ERROR_FILE, "%s is %s; a regular file is needed", path,
                 S_ISDIR(facts.st_mode) ? "a directory" : "a pipe or a device");
        goto failed;
    }
    if (facts.st_size > 0) {
        if ((uint64_t)facts.st_size > SIZE_MAX) {
            qmi_fail(QM_ERROR_FILE, "%s has %lld bytes, more than this machine can address", path, (long long)facts.st_size);
            goto failed;
        }
        data = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (data == MAP_FAILED) {
            qmi_fail(QM_ERROR_FILE, "cannot map %s (%lld bytes): %s", path, (long long)facts.st_size, strerror(errno));
            goto failed;
        }
    }
    *out = (qmi_os_map){ .data = data, .size = facts.st_size, .descriptor = file + 1 };
    return QM_OK;
failed:
    close(file);
    return QM_ERROR_FILE;
}

void qmi_os_map_close(qmi_os_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    if (map->descriptor)
        close(map->descriptor - 1);
    *map = (qmi_os_map){ 0 };
}

int32_t qmi_os_map_check(const qmi_os_map *map)
{
    struct stat facts;
    if (!map->descriptor || fstat(map->descriptor - 1, &facts) < 0 || facts.st_size >= map->size)
        return QM_OK;
    return qmi_fail(QM_ERROR_FILE, "the file was cut from %lld to %lld bytes while it was in use; restore it and load it again",
                    (long long)map->size, (long long)facts.st_size);
}

/* The whole pages that hold bytes [offset, offset + size) of a map, clipped to it; false when there are none. */
static bool page_range(const qmi_os_map *map, int64_t offset, int64_t size, char **start, size_t *length)
{
    if (offset < 0 || size <= 0 || offset >= map->size)
        return false;
    int64_t page = sysconf(_SC_PAGESIZE);
    int64_t end = size > map->size - offset ? map->size : offset + size;
    int64_t first = offset / page * page;
    *start = (char *)(uintptr_t)map->data + first;
    *length = (size_t)(end - first);
    return true;
}

void qmi_os_map_will_need(const qmi_os_map *map, int64_t offset, int64_t size)
{
    char *start;
    size_t length;
    if (page_range(map, offset, size, &start, &length))
        madvise(start, length, MADV_WILLNEED);
}

int32_t qmi_os_map_touch(const qmi_os_map *map, int64_t offset, int64_t size)
{
    char *start;
    size_t length;
    int32_t status = qmi_os_map_check(map);
    if (status < 0 || !page_range(map, offset, size, &start, &length))
        return status;
#ifdef __linux__
    if (madvise(start, length, POPULATE_READ) == 0)
        return QM_OK;
    if (errno == EFAULT || errno == EHWPOISON || errno == EIO)
        return qmi_fail(QM_ERROR_FILE, "cannot read bytes %lld to %lld of the file: it was cut while in use, or its disk failed",
                        (long long)offset, (long long)(offset + size));
#endif
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < length; i += page)
        (void)*(volatile char *)(start + i);
    return QM_OK;
}

int32_t qmi_os_map_read(const qmi_os_map *map, int64_t offset, void *to, int64_t size)
{
    int64_t done = 0;
    while (done < size) {
        ssize_t got = pread(map->descriptor - 1, (char *)to + done, (size_t)(size - done), (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return qmi_fail(QM_ERROR_FILE, "cannot read bytes %lld to %lld of the file: %s", (long long)offset,
                            (long long)(offset + size), strerror(errno));
        if (got == 0)
            return qmi_fail(QM_ERROR_FILE, "the file was cut to %lld bytes while it was in use; restore it and load it again",
                            (long long)(offset + done));
        done += got;
    }
    return QM_OK;
}

int32_t qmi_os_map_lock(qmi_os_map *map)
{
    struct rlimit limit;
    if (map->size == 0 || mlock(map->data, (size_t)map->size) == 0) {
        map->locked = map->size;
        return QM_OK;
    }
    int error = errno;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < (rlim_t)map->size)
        return qmi_fail(QM_ERROR_MEMORY, "cannot lock %lld bytes in RAM: this process may lock %llu (RLIMIT_MEMLOCK; "
                        "raise it with \"ulimit -l\" or in /etc/security/limits.conf, or load without locking)",
                        (long long)map->size, (unsigned long long)limit.rlim_cur);
    return qmi_fail(QM_ERROR_MEMORY, "cannot lock %lld bytes in RAM: %s (is RAM large enough? see also \"ulimit -l\")",
                    (long long)map->size, strerror(error));
}

/* ---- a file that takes another's place ---- */

int32_t qmi_os_writer_open(const char *path, qmi_os_writer *out)
{
    *out = (qmi_os_writer){ 0 };
    int length = snprintf(out->part, sizeof out->part, "%s.%016llx.part", path, (unsigned long long)qmi_os_random());
    if (length < 0 || (size_t)length >= sizeof out->part) {
        out->part[0] = 0;
        return qmi_fail(QM_ERROR_FILE, "the name of a file to write has %zu bytes, and at most %d are possible", strlen(path),
                        QMI_OS_PATH_SIZE - 32);
    }
    strcpy(out->path, path);
    int file = open(out->part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (file < 0) {
        qmi_fail(QM_ERROR_FILE, "cannot write %s: %s", out->part, strerror(errno));
        *out = (qmi_os_writer){ 0 };
        return QM_ERROR_FILE;
    }
    out->descriptor = file + 1;
    return QM_OK;
}

int32_t qmi_os_writer_put(qmi_os_writer *writer, const void *data, int64_t size)
{
    for (int64_t done = 0; done < size;) {
        ssize_t put = write(writer->descriptor - 1, (const char *)data + done, (size_t)(size - done));
        if (put < 0 && errno != EINTR)
            return qmi_fail(QM_ERROR_FILE, "cannot write %s: %s", writer->part, strerror(errno));
        done += put > 0 ? put : 0;
    }
    return QM_OK;
}

/* The new name is on the disk only when its folder is. */
static bool sync_folder(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash)
        slash[1] = 0;
    int file = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0)
        return false;
    bool synced = fsync(file) == 0 || errno == EINVAL; /* some file systems have no such thing */
    close(file);
    return synced;
}

int32_t qmi_os_writer_finish(qmi_os_writer *writer)
{
    bool done = fsync(writer->descriptor - 1) == 0;
    int error = errno;
    if (close(writer->descriptor - 1) < 0 && done) {
        done = false;
        error = errno;
    }
    writer->descriptor = 0;
    if (done && rename(writer->part, writer->path) < 0) {
        done = false;
        error = errno;
    }
    if (!done) {
        qmi_os_writer_abandon(writer);
        return qmi_fail(QM_ERROR_FILE, "cannot write %s: %s", writer->path, strerror(error));
    }
    done = sync_folder(writer->part); /* which is in the same one */
    error = errno;
    writer->part[0] = 0;
    return done ? QM_OK
                : qmi_fail(QM_ERROR_FILE, "%s is written, but its folder could not be: %s", writer->path, strerror(error));
}

void qmi_os_writer_abandon(qmi_os_writer *writer)
{
    if (writer->descriptor)
        close(writer->descriptor - 1);
    if (writer->part[0])
        unlink(writer->part);
    writer->descriptor = 0;
    writer->part[0] = 0;
}

bool qmi_os_file_exists(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0;
}

bool qmi_os_read_text(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC); /* stdio would allocate */
    size_t length = 0;
    if (file < 0)
        return false;
    while (length < size - 1) {
        ssize_t got = read(file, text + length, size - 1 - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    close(file);
    text[length] = 0;
    return length > 0;
}

/* ---- memory ---- */

void *qmi_os_pages_new(size_t size)
{
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void qmi_os_pages_free(void *pages, size_t size)
{
    if (pages)
        munmap(pages, size);
}

void *qmi_os_block_new(size_t size)
{
    return aligned_alloc(64, size);
}

void qmi_os_block_free(void *block)
{
    free(block);
}

int64_t qmi_os_machine_memory(void)
{
    int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 ? pages * page : 0;
}

/* ---- time, random ---- */

int64_t qmi_os_time_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NANOSECONDS + now.tv_nsec;
}

uint64_t qmi_os_random(void)
{
    uint64_t number;
    if (getentropy(&number, sizeof number) == 0)
        return number;
    /* Only in a sandbox without that call: different from run to run is all that seeds need. */
    number = (uint64_t)qmi_os_time_ns() ^ (uint64_t)getpid() << 40;
    number = (number ^ number >> 30) * UINT64_C(0xBF58476D1CE4E5B9); /* splitmix64's mixing (Steele, Lea, Flood 2014) */
    number = (number ^ number >> 27) * UINT64_C(0x94D049BB133111EB);
    return number ^ number >> 31;
}

/* ---- threads ---- */

struct qmi_os_thread {
    pthread_t handle;
    void (*body)(void *);
    void *argument;
    char name[16]; /* Linux's limit */
};

struct qmi_os_mutex {
    pthread_mutex_t handle;
};

struct qmi_os_condition {
    pthread_cond_t handle;
};

/* Room for a handle: these few are not the model's memory, so the host's allocator is not asked. */
static void *handle_new(size_t size, const char *what)
{
    void *handle = qmi_os_block_new((size + 63) / 64 * 64);
    if (!handle)
        qmi_fail(QM_ERROR_MEMORY, "out of memory: %zu bytes for a %s", size, what);
    return handle;
}

static void *thread_main(void *pointer)
{
    qmi_os_thread *thread = pointer;
#if defined(__APPLE__)
    pthread_setname_np(thread->name);
#elif defined(__linux__)
    pthread_setname_np(pthread_self(), thread->name);
#endif
    thread->body(thread->argument);
    return NULL;
}

int32_t qmi_os_thread_start(qmi_os_thread **out, void (*body)(void *), void *argument, const char *name)
{
    sigset_t all, before;
    *out = NULL;
    qmi_os_thread *thread = handle_new(sizeof *thread, "thread");
    if (!thread)
        return QM_ERROR_MEMORY;
    *thread = (qmi_os_thread){ .body = body, .argument = argument };
    snprintf(thread->name, sizeof thread->name, "%s", name);
    /* The host's signals are for the host's threads; a thread inherits the mask of its creator. */
    const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGPROF }; /* faults and profilers mean this thread */
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread->handle, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        qmi_os_block_free(thread);
        return qmi_fail(QM_ERROR_MEMORY, "cannot start thread %s: %s (limits: \"ulimit -u\", or the control group's pids.max)",
                        name, strerror(error));
    }
    *out = thread;
    return QM_OK;
}

void qmi_os_thread_join(qmi_os_thread **thread)
{
    if (!*thread)
        return;
    pthread_join((*thread)->handle, NULL);
    qmi_os_block_free(*thread);
    *thread = NULL;
}

int32_t qmi_os_mutex_new(qmi_os_mutex **out)
{
    *out = handle_new(sizeof **out, "mutex");
    if (!*out)
        return QM_ERROR_MEMORY;
    pthread_mutex_init(&(*out)->handle, NULL);
    return QM_OK;
}

void qmi_os_mutex_free(qmi_os_mutex **mutex)
{
    if (!*mutex)
        return;
    pthread_mutex_destroy(&(*mutex)->handle);
    qmi_os_block_free(*mutex);
    *mutex = NULL;
}

void qmi_os_mutex_lock(qmi_os_mutex *mutex)
{
    pthread_mutex_lock(&mutex->handle);
}

void qmi_os_mutex_unlock(qmi_os_mutex *mutex)
{
    pthread_mutex_unlock(&mutex->handle);
}

int32_t qmi_os_condition_new(qmi_os_condition **out)
{
    pthread_condattr_t attributes;
    *out = handle_new(sizeof **out, "condition");
    if (!*out)
        return QM_ERROR_MEMORY;
    pthread_condattr_init(&attributes);
#ifndef __APPLE__ /* which has relative waits instead */
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(&(*out)->handle, &attributes);
    pthread_condattr_destroy(&attributes);
    return QM_OK;
}

void qmi_os_condition_free(qmi_os_condition **condition)
{
    if (!*condition)
        return;
    pthread_cond_destroy(&(*condition)->handle);
    qmi_os_block_free(*condition);
    *condition = NULL;
}

void qmi_os_condition_signal_all(qmi_os_condition *condition)
{
    pthread_cond_broadcast(&condition->handle);
}

bool qmi_os_condition_wait(qmi_os_condition *condition, qmi_os_mutex *mutex, int64_t timeout_ns)
{
    struct timespec until;
    if (timeout_ns < 0) {
        pthread_cond_wait(&condition->handle, &mutex->handle);
        return true;
    }
#ifdef __APPLE__
    until = (struct timespec){ timeout_ns / NANOSECONDS, timeout_ns % NANOSECONDS };
    return pthread_cond_timedwait_relative_np(&condition->handle, &mutex->handle, &until) != ETIMEDOUT;
#else
    int64_t now = qmi_os_time_ns();
    int64_t end = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    until = (struct timespec){ .tv_sec = end / NANOSECONDS, .tv_nsec = end % NANOSECONDS };
    return pthread_cond_timedwait(&condition->handle, &mutex->handle, &until) != ETIMEDOUT;
#endif
}

#ifdef __linux__
#define PROCESSOR_SETS 8 /* of 1024 processors each: twice the most that Linux is built for */

static bool own_processors(cpu_set_t sets[PROCESSOR_SETS])
{
    return sched_getaffinity(0, PROCESSOR_SETS * sizeof(cpu_set_t), sets) == 0;
}
#endif

int32_t qmi_os_processor_set(void)
{
    int64_t count = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t sets[PROCESSOR_SETS];
    if (own_processors(sets))
        count = CPU_COUNT_S(sizeof sets, sets);
#endif
    return count < 1 ? 1 : (int32_t)count;
}

bool qmi_os_pin_self(int32_t index)
{
#ifdef __linux__
    cpu_set_t sets[PROCESSOR_SETS];
    if (!own_processors(sets))
        return false;
    for (int processor = 0; processor < PROCESSOR_SETS * CPU_SETSIZE; processor++) {
        if (!CPU_ISSET_S(processor, sizeof sets, sets) || index-- != 0)
            continue;
        CPU_ZERO_S(sizeof sets, sets);
        CPU_SET_S(processor, sizeof sets, sets);
        return sched_setaffinity(0, sizeof sets, sets) == 0;
    }
#endif
    (void)index;
    return false;
}

int64_t qmi_os_last_cache(void)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? bytes : 0;
#else
    return 0;
#endif
}

/* Linux saves tiles of a process only when it asks for that: ARCH_REQ_XCOMP_PERM with the number of the tiles' state, 18
 * (Documentation/arch/x86/xstate.rst). */
bool qmi_os_allow_tiles(void)
{
#if defined(__linux__) && defined(__x86_64__)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

void qmi_os_spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void qmi_os_yield(void)
{
    sched_yield();
}

void qmi_os_wait_word(const int32_t *word, int32_t expected)
{
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
#else
    const struct timespec pause = { 0, 50000 }; /* 50 us: below what a token takes, and idle enough */
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == expected)
        nanosleep(&pause, NULL);
#endif
}

void qmi_os_wake_all(const int32_t *word)
{
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
    (void)word; /* sleepers look again by themselves */
#endif
}

/* ---- a descriptor that others can poll ---- */

int32_t qmi_os_event_new(qmi_os_event *out)
{
    int ends[2];
    *out = (qmi_os_event){ -1, -1 };
#ifdef __linux__
    ends[0] = ends[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ends[0] < 0)
        return qmi_fail(QM_ERROR_MEMORY, "cannot make an event descriptor: %s (limit of open files: \"ulimit -n\")",
                        strerror(errno));
#else
    if (pipe(ends) < 0)
        return qmi_fail(QM_ERROR_MEMORY, "cannot make a pipe: %s (limit of open files: \"ulimit -n\")", strerror(errno));
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
#endif
    *out = (qmi_os_event){ ends[0], ends[1] };
    return QM_OK;
}

void qmi_os_event_free(qmi_os_event *event)
{
    if (event->write_end >= 0 && event->write_end != event->read_end)
        close(event->write_end);
    if (event->read_end >= 0)
        close(event->read_end);
    *event = (qmi_os_event){ -1, -1 };
}

void qmi_os_event_set(const qmi_os_event *event)
{
    const uint64_t one = 1; /* an eventfd takes 8 bytes; a full pipe or counter is set already */
    ssize_t written;
    do
        written = write(event->write_end, &one, sizeof one);
    while (written < 0 && errno == EINTR);
}

void qmi_os_event_clear(const qmi_os_event *event)
{
    uint64_t bytes;
    ssize_t got;
    do
        got = read(event->read_end, &bytes, sizeof bytes);
    while (got > 0 || (got < 0 && errno == EINTR));
}

/* ---- shared objects ---- */

bool qmi_os_library_folder(char *path, size_t size)
{
    static const char here;
    Dl_info facts;
    if (!dladdr(&here, &facts) || !facts.dli_fname)
        return false;
    const char *slash = strrchr(facts.dli_fname, '/');
    size_t length = slash ? (size_t)(slash - facts.dli_fname) + 1 : 0;
    if (length == 0 || length >= size)
        return false;
    memcpy(path, facts.dli_fname, length);
    path[length] = 0;
    return true;
}

int32_t qmi_os_library_open(const char *path, void **out)
{
    *out = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (*out)
        return QM_OK;
    const char *reason = dlerror(); /* names the path itself */
    return qmi_fail(QM_ERROR_FILE, "cannot load shared object: %s", reason ? reason : path);
}

void *qmi_os_library_symbol(void *library, const char *name)
{
    return dlsym(library, name);
}

void qmi_os_library_close(void *library)
{
    if (library)
        dlclose(library);
}
