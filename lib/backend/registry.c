/* Finds the devices that a name means, and the backend in a shared object: see registry.h. */
#include "backend/registry.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/number.h"
#include "base/os.h"

#define CUDA_FILE "libqwenmoe-cuda.so"

static const qmi_backend_host host = { qmi_fail, qmi_error_text };

static void add(qmi_choices *choices, const qmi_backend *backend, int32_t index)
{
    if (choices->count < QMI_CHOICES_MAX)
        choices->list[choices->count++] = (qmi_choice){ backend, index };
}

/* ---- the CUDA backend's file ---- */

/* Never closed: its CUDA runtime keeps threads and exit handlers whose code must stay. Opening it again gives the same object. */
static int32_t open_backend(const char *path, const qmi_backend **out)
{
    void *library;
    int32_t code = qmi_os_library_open(path, &library);
    if (code < 0)
        return qmi_fail(QM_ERROR_DEVICE, "%s", qmi_error_text());
    /* an object pointer read as a function's, which POSIX allows and ISO C does not */
    qmi_backend_entry_function entry;
    void *symbol = qmi_os_library_symbol(library, "qmi_backend_entry");
    memcpy(&entry, &symbol, sizeof entry);
    *out = entry ? entry(QMI_BACKEND_ABI, &host) : NULL;
    if (!*out || (*out)->abi != QMI_BACKEND_ABI)
        return qmi_fail(QM_ERROR_DEVICE, "%s is %s; install both from one build", path,
                        entry ? "of another version than this library" : "no backend of this library");
    return QM_OK;
}

/* Beside this library, else where the system looks for libraries. */
static int32_t find_backend(const char *given, const qmi_backend **out)
{
    char path[4096 + sizeof CUDA_FILE];
    if (*given)
        return open_backend(given, out);
    if (qmi_os_library_folder(path, sizeof path - sizeof CUDA_FILE)) {
        strcat(path, CUDA_FILE);
        if (qmi_os_file_exists(path))
            return open_backend(path, out);
    }
    return open_backend(CUDA_FILE, out);
}

/* ---- names ---- */

static int32_t find_auto(const char *cuda_library, const qmi_log *log, qmi_choices *out)
{
    const qmi_backend *cuda;
    if (find_backend(cuda_library, &cuda) < 0) {
        qmi_log_line(log, *cuda_library ? QM_LOG_WARNING : QM_LOG_DEBUG, "no card is used: %s", qmi_error_text());
    } else {
        int32_t count = cuda->device_count();
        if (count == 0)
            qmi_log_line(log, QM_LOG_INFO, "no card is used: %s", qmi_error_text());
        for (int32_t i = 0; i < count && i < QMI_CHOICES_MAX - 1; i++)
            add(out, cuda, i);
    }
    add(out, &qmi_cpu_backend, 0);
    return QM_OK;
}

/* Splits "cuda:1"; false when it is no name with an index of its own. */
static bool read_name(const char *device, char name[8], int32_t *index)
{
    size_t length = strcspn(device, ":");
    int64_t number = 0;
    if (length >= 8)
        return false;
    memcpy(name, device, length);
    name[length] = 0;
    const char *digits = device + length + 1;
    if (device[length] && (qmi_number_read_int(digits, strlen(digits), &number) != QMI_NUMBER_OK || number < 0 ||
                           number > INT32_MAX))
        return false;
    *index = (int32_t)number;
    return true;
}

int32_t qmi_registry_find(const char *device, const char *cuda_library, const qmi_log *log, qmi_choices *out)
{
    char name[8] = "", shown[QMI_SHOWN_SIZE];
    int32_t index = 0;
    *out = (qmi_choices){ 0 };
    if (strcmp(device, "auto") == 0)
        return find_auto(cuda_library, log, out);
    bool known = read_name(device, name, &index);
    if (known && strcmp(name, "cpu") == 0) {
        add(out, &qmi_cpu_backend, index);
        return QM_OK;
    }
    if (!known || strcmp(name, "cuda") != 0)
        return qmi_fail(QM_ERROR_OPTION, "device: \"%s\" is unknown; \"auto\", \"cpu\", \"cuda\" and \"cuda:1\" (the second "
                        "card) are there", qmi_option_shown(device, shown));
    const qmi_backend *cuda;
    int32_t code = find_backend(cuda_library, &cuda);
    if (code >= 0)
        add(out, cuda, index);
    return code < 0 ? qmi_fail_within(code, "device cuda") : QM_OK;
}

qmi_device_settings qmi_registry_device(const qmi_settings *settings, int32_t index)
{
    return (qmi_device_settings){
        .index = index,
        .threads = (int32_t)qmi_settings_int(settings, QMI_OPT_THREADS),
        .pin = qmi_settings_bool(settings, QMI_OPT_PIN),
        .isa = qmi_settings_text(settings, QMI_OPT_ISA),
        .memory_limit = qmi_settings_int(settings, QMI_OPT_MEMORY_LIMIT),
        .profile = qmi_settings_bool(settings, QMI_OPT_PROFILE),
        .alloc = settings->alloc,
        .log = settings->log,
    };
}
