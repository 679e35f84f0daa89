/* The decode kernel of PROJECT and its kind for up to 4 rows. */
#include "matvec_host.h"

matvec_rows_function matvec_rows_4(void)
{
    return matvec_rows_kernel<4>;
}
