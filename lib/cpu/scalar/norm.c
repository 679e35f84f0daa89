/* Norms: root mean square with weights, and unit length. */
#include <math.h>

#include "cpu/scalar/scalar.h"

static double sum_of_squares(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

void qmi_scalar_rms(const float *x, const float *weight, float epsilon, float *out, int64_t count)
{
    float factor = (float)(1 / sqrt(sum_of_squares(x, count) / (double)count + epsilon));
    for (int64_t i = 0; i < count; i++)
        out[i] = x[i] * factor * weight[i];
}

void qmi_scalar_unit(float *x, float epsilon, float scale, int64_t count)
{
    float factor = (float)(scale / sqrt(sum_of_squares(x, count) + epsilon));
    for (int64_t i = 0; i < count; i++)
        x[i] *= factor;
}
