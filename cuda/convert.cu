/* Rows of floats, normalised or not, to the half floats that the product kernel reads: see convert.cuh. */
#include "convert.cuh"

static __global__ void __launch_bounds__(CONVERT_WARPS * QMI_WARP) convert_kernel(const __grid_constant__ convert_work work)
{
    chip_let_next_start();
    chip_wait_for_previous();
    convert_block(work, blockIdx.x);
}

int32_t convert_plan(convert_work *work, int32_t parts, int32_t warps)
{
    int32_t blocks = 0;
    for (int32_t p = 0; p < parts; p++) {
        const convert_part *part = &work->part[p];
        int32_t row_warps = 1;
        const int32_t items = matmul_stride(part->columns) / 16; /* two a lane, or one where rows are few */
        while (row_warps < warps && (items > row_warps * 64 || (items > row_warps * 32 && part->rows * row_warps < CONVERT_MANY)))
            row_warps *= 2;
        work->row_warps[p] = row_warps;
        work->first_block[p] = blocks;
        blocks += matmul_ceil(part->rows, warps / row_warps);
    }
    for (int32_t p = parts; p <= CONVERT_PARTS; p++)
        work->first_block[p] = blocks;
    return blocks;
}

void cuda_convert(const cuda_run *run, const convert_part *parts, int32_t count)
{
    convert_work work = {};
    for (int32_t p = 0; p < count; p++)
        work.part[p] = parts[p];
    int32_t blocks = convert_plan(&work, count, CONVERT_WARPS);
    cuda_launch(run, dim3(blocks), dim3(CONVERT_WARPS * QMI_WARP), 0, convert_kernel, work);
}
