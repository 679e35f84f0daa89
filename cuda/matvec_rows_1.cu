/* The decode kernel of PROJECT and its kind for up to 1 rows. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_1(void)
{
    return matvec_rows_kernel<1>;
}
