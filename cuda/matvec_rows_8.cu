/* The decode kernel of PROJECT and its kind for up to 8 rows. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_8(void)
{
    return matvec_rows_kernel<8>;
}
