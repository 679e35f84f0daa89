/* Gates: silu(gate) * x and sigmoid(gate) * x. */
#include <math.h>

#include "cpu/scalar/scalar.h"

float qmi_scalar_sigmoid(float x)
{
    float e = expf(-fabsf(x));
    return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

void qmi_scalar_silu_mul(const float *gate, const float *x, float *out, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = gate[i] * qmi_scalar_sigmoid(gate[i]) * x[i];
}

void qmi_scalar_sigmoid_mul(const float *gate, float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] *= qmi_scalar_sigmoid(gate[i]);
}
