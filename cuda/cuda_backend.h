/* The functions of the CUDA backend's table (backend/backend.h), for the C file that holds the table. */
#ifndef QMI_CUDA_BACKEND_H
#define QMI_CUDA_BACKEND_H

#include "backend/backend.h"

int32_t qmi_cuda_device_count(void);
int32_t qmi_cuda_open(const qmi_device_settings *settings, qmi_device **out);
void qmi_cuda_close(qmi_device **device);
void qmi_cuda_info(qmi_device *device, qmi_device_info *out);
int32_t qmi_cuda_allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out);
void qmi_cuda_release(qmi_device *device, qmi_address address);
int64_t qmi_cuda_matrix_bytes(uint32_t *type, int64_t columns, int64_t rows);
int32_t qmi_cuda_upload_start(qmi_device *device, int64_t bytes, const qmi_os_map *files, int32_t file_count);
int32_t qmi_cuda_upload(qmi_device *device, const void *data, qmi_matrix *matrix);
int32_t qmi_cuda_upload_rows(qmi_device *device, const qmi_row_source *source, qmi_matrix *matrix);
int32_t qmi_cuda_lend(qmi_device *device, const void *data, qmi_matrix *matrix);
void qmi_cuda_set_helper(qmi_device *device, const qmi_helper *helper);
int32_t qmi_cuda_upload_finish(qmi_device *device, qm_progress_callback progress, void *user, const int32_t *cancel);
int32_t qmi_cuda_write(qmi_device *device, qmi_address to, const void *from, int64_t bytes);
int32_t qmi_cuda_read(qmi_device *device, void *to, qmi_address from, int64_t bytes);
int32_t qmi_cuda_copy(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes);
int32_t qmi_cuda_clear(qmi_device *device, qmi_address at, int64_t bytes);
int64_t qmi_cuda_scratch_bytes(const qmi_program *program, int32_t rows, int32_t threads);
int32_t qmi_cuda_prepare(qmi_device *device, const qmi_program *program, int32_t rows);
int32_t qmi_cuda_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch);

#endif
