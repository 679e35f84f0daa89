/* Folders of files: listing them, marking one as used, removing one. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/error.h"
#include "base/os.h"

int32_t qmi_os_folder_make(const char *path)
{
    struct stat facts;
    if (mkdir(path, S_IRWXU) == 0 || (errno == EEXIST && stat(path, &facts) == 0 && S_ISDIR(facts.st_mode)))
        return QM_OK;
    return qmi_fail(QM_ERROR_FILE, "cannot make the folder %s: %s", path, strerror(errno));
}

int32_t qmi_os_folder_list(const char *path, qmi_os_folder_entry entry, void *user)
{
    DIR *folder = opendir(path);
    if (!folder)
        return qmi_fail(QM_ERROR_FILE, "cannot read the folder %s: %s", path, strerror(errno));
    for (const struct dirent *found; (found = readdir(folder)) != NULL;) {
        struct stat facts;
        if (fstatat(dirfd(folder), found->d_name, &facts, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(facts.st_mode))
            entry(found->d_name, facts.st_size, facts.st_mtim.tv_sec * INT64_C(1000000000) + facts.st_mtim.tv_nsec, user);
    }
    closedir(folder);
    return QM_OK;
}

void qmi_os_file_use(const char *path)
{
    (void)utimensat(AT_FDCWD, path, NULL, 0);
}

void qmi_os_file_remove(const char *path)
{
    (void)unlink(path);
}

int64_t qmi_os_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}
