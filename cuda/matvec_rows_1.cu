/* The decode kernels of PROJECT and its kind for one row. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_1(bool pair)
{
    return pair ? matvec_rows_kernel<1, true> : matvec_rows_kernel<1, false>;
}
