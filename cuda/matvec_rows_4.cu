/* The decode kernels of PROJECT and its kind for up to 4 rows. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_4(bool pair)
{
    return pair ? matvec_rows_kernel<4, true> : matvec_rows_kernel<4, false>;
}
