/* What the process may use of the machine: its memory and processors, less what its control group (cgroups(7)) withholds.
 * The files are read through os.c. */
#include "base/os.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A directory of control files of this process's group, version 1 or 2 of Linux's control groups (cgroups(7)). */
typedef struct group {
    char path[512];
    size_t root_length; /* of the mount point */
    bool unified;       /* version 2 */
} group;

/* Finds the group that limits `controller`: /proc/self/cgroup has lines "number:controllers:path", where version 2 is the one
 * with number 0 and no controllers. */
static bool group_find(const char *controller, group *out)
{
    char text[4096], list[256], wanted[32];
    bool found = false;
    snprintf(wanted, sizeof wanted, ",%s,", controller);
    if (!qmi_os_read_text("/proc/self/cgroup", text, sizeof text))
        return false;
    for (char *line = text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        snprintf(list, sizeof list, ",%s,", controllers + 1);
        bool unified = strcmp(list, ",,") == 0;
        if (!unified && !strstr(list, wanted))
            continue;
        if (unified && found) /* on a machine with both versions, the one that names the controller has it */
            continue;
        out->unified = unified;
        out->root_length = (size_t)snprintf(out->path, sizeof out->path, "/sys/fs/cgroup%s%s", unified ? "" : "/",
                                            unified ? "" : controller);
        int length = snprintf(out->path + out->root_length, sizeof out->path - out->root_length, "%s", path);
        if (length < 0 || (size_t)length >= sizeof out->path - out->root_length)
            out->path[out->root_length] = 0;
        found = true;
        if (!unified)
            break;
    }
    return found;
}

/* To the enclosing group; false at the root. In a container the path may not exist below its mount, but the root does. */
static bool group_parent(group *g)
{
    size_t length = strlen(g->path);
    if (length <= g->root_length)
        return false;
    while (length > g->root_length && g->path[length - 1] != '/')
        length--;
    if (length > g->root_length)
        length--;
    g->path[length] = 0;
    return true;
}

static bool group_read(const group *g, const char *file, char *text, size_t size)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", g->path, file);
    return qmi_os_read_text(path, text, size);
}

/* A control file of one number; -1 when it is absent or says "max". */
static int64_t group_number(const group *g, const char *file)
{
    char text[64], *end;
    if (!group_read(g, file, text, sizeof text))
        return -1;
    long long number = strtoll(text, &end, 10);
    return end == text || number < 0 ? -1 : number;
}

/* The number after `name` in text of lines "name number"; 0 if absent. */
static int64_t named_number(const char *text, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && (line[length] == ' ' || line[length] == ':'))
            return strtoll(line + length + 1, NULL, 10);
    }
    return 0;
}

int64_t qmi_os_memory_total(void)
{
    int64_t total = qmi_os_machine_memory();
    group g;
    for (bool more = group_find("memory", &g); more; more = group_parent(&g)) {
        int64_t limit = group_number(&g, g.unified ? "memory.max" : "memory.limit_in_bytes");
        if (limit >= 0 && limit < total)
            total = limit;
    }
    return total;
}

int64_t qmi_os_memory_available(void)
{
    char text[8192];
    int64_t available = qmi_os_machine_memory();
    group g;
    if (qmi_os_read_text("/proc/meminfo", text, sizeof text) && named_number(text, "MemAvailable") > 0)
        available = named_number(text, "MemAvailable") * 1024;
    for (bool more = group_find("memory", &g); more; more = group_parent(&g)) {
        int64_t limit = group_number(&g, g.unified ? "memory.max" : "memory.limit_in_bytes");
        int64_t used = group_number(&g, g.unified ? "memory.current" : "memory.usage_in_bytes");
        if (limit < 0 || used < 0)
            continue;
        /* Pages of files count as used, but make room when asked. */
        if (group_read(&g, "memory.stat", text, sizeof text)) {
            used -= named_number(text, g.unified ? "inactive_file" : "total_inactive_file");
            used -= named_number(text, g.unified ? "active_file" : "total_active_file");
        }
        int64_t left = used < 0 ? limit : limit > used ? limit - used : 0;
        if (left < available)
            available = left;
    }
    return available;
}

/* Processors' worth of time that the control group grants, rounded up; INT32_MAX without a limit. */
static int32_t granted_processors(void)
{
    char text[64];
    int64_t granted = INT32_MAX;
    group g;
    for (bool more = group_find("cpu", &g); more; more = group_parent(&g)) {
        int64_t quota = -1, period = -1;
        if (!g.unified) {
            quota = group_number(&g, "cpu.cfs_quota_us");
            period = group_number(&g, "cpu.cfs_period_us");
        } else if (group_read(&g, "cpu.max", text, sizeof text) && text[0] != 'm') { /* "quota period" or "max period" */
            char *rest;
            quota = strtoll(text, &rest, 10);
            period = strtoll(rest, NULL, 10);
        }
        if (quota > 0 && period > 0 && (quota - 1) / period + 1 < granted)
            granted = (quota - 1) / period + 1;
    }
    return (int32_t)granted;
}

int32_t qmi_os_processor_count(void)
{
    int32_t present = qmi_os_processor_set(), granted = granted_processors();
    return granted < present ? granted : present;
}
