/* The decode kernels of PROJECT and its kind for up to 8 rows. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_8(bool pair)
{
    return pair ? matvec_rows_kernel<8, true> : matvec_rows_kernel<8, false>;
}
