/* Numbers in text without the locale: see number.h. */
#include "base/number.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool read_sign(const char **at, const char *end)
{
    bool negative = *at < end && **at == '-';
    if (*at < end && (**at == '-' || **at == '+'))
        (*at)++;
    return negative;
}

qmi_number_result qmi_number_read_int(const char *text, size_t length, int64_t *out)
{
    const char *at = text, *end = text + length;
    bool negative = read_sign(&at, end), too_large = false;
    uint64_t value = 0;
    if (at == end)
        return QMI_NUMBER_NOT_ONE;
    for (; at < end; at++) {
        if (!is_digit(*at))
            return QMI_NUMBER_NOT_ONE;
        too_large = too_large || value > (uint64_t)INT64_MAX / 10 || value * 10 > (uint64_t)INT64_MAX - (uint64_t)(*at - '0');
        if (!too_large)
            value = value * 10 + (uint64_t)(*at - '0');
    }
    if (too_large)
        return QMI_NUMBER_TOO_LARGE;
    *out = negative ? -(int64_t)value : (int64_t)value;
    return QMI_NUMBER_OK;
}

/* mantissa * 10^exponent. A double holds integers to 2^53 and powers of ten to 10^22 exactly, so that one operation on two of
 * them is rounded once, correctly (Clinger, "How to read floating point numbers accurately", 1990); the rest goes through
 * long double. */
static double scale(uint64_t mantissa, int64_t exponent)
{
    if (mantissa == 0)
        return 0;
    if (mantissa <= (uint64_t)1 << 53 && exponent >= -22 && exponent <= 22) {
        double power = 1;
        for (int64_t i = exponent < 0 ? -exponent : exponent; i > 0; i--)
            power *= 10;
        return exponent < 0 ? (double)mantissa / power : (double)mantissa * power;
    }
    if (exponent > 400)
        return HUGE_VAL;
    if (exponent < -400)
        return 0;
    long double value = (long double)mantissa, power = 1, square = 10;
    for (int64_t i = exponent < 0 ? -exponent : exponent; i > 0; i >>= 1, square *= square) {
        if (i & 1)
            power *= square;
    }
    return (double)(exponent < 0 ? value / power : value * power);
}

typedef struct decimal {
    uint64_t mantissa;
    int64_t exponent;
    bool any; /* a digit was seen */
} decimal;

/* Digits beyond what 64 bits hold only move the exponent. */
static void read_digits(const char **at, const char *end, bool fraction, decimal *number)
{
    for (; *at < end && is_digit(**at); (*at)++) {
        number->any = true;
        if (number->mantissa < UINT64_MAX / 10 - 1) {
            number->mantissa = number->mantissa * 10 + (uint64_t)(**at - '0');
            number->exponent -= fraction;
        } else {
            number->exponent += !fraction;
        }
    }
}

qmi_number_result qmi_number_read_float(const char *text, size_t length, double *out)
{
    const char *at = text, *end = text + length;
    decimal number = { 0, 0, false };
    bool negative = read_sign(&at, end);
    read_digits(&at, end, false, &number);
    if (at < end && *at == '.') {
        at++;
        read_digits(&at, end, true, &number);
    }
    if (!number.any)
        return QMI_NUMBER_NOT_ONE;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        bool down = read_sign(&at, end);
        int64_t exponent = 0;
        if (at == end)
            return QMI_NUMBER_NOT_ONE;
        for (; at < end && is_digit(*at); at++) {
            if (exponent < (int64_t)1 << 50)
                exponent = exponent * 10 + (*at - '0');
        }
        number.exponent += down ? -exponent : exponent;
    }
    if (at < end)
        return QMI_NUMBER_NOT_ONE;
    double value = scale(number.mantissa, number.exponent);
    if (!isfinite(value))
        return QMI_NUMBER_TOO_LARGE;
    *out = negative && value != 0 ? -value : value; /* no negative zero */
    return QMI_NUMBER_OK;
}

/* printf writes the decimal point of the locale, which may be several bytes: all that is no digit, sign or exponent. */
static int with_point(const char *from, char out[QMI_NUMBER_SIZE])
{
    int length = 0;
    bool point = false;
    for (; *from && length < QMI_NUMBER_SIZE - 1; from++) {
        if (is_digit(*from) || *from == '-' || *from == '+' || *from == 'e') {
            out[length++] = *from;
        } else if (!point) {
            out[length++] = '.';
            point = true;
        }
    }
    out[length] = 0;
    return length;
}

int qmi_number_write_float(double value, char out[QMI_NUMBER_SIZE])
{
    int length = 0;
    if (value == floor(value) && fabs(value) < 1e15) /* %g would write 1e+01 */
        return snprintf(out, QMI_NUMBER_SIZE, "%.0f", value);
    for (int precision = 1; precision <= 17; precision++) { /* 17 digits tell all doubles apart */
        char text[64];
        double again = 0;
        snprintf(text, sizeof text, "%.*g", precision, value);
        length = with_point(text, out);
        if (qmi_number_read_float(out, (size_t)length, &again) == QMI_NUMBER_OK && again == value)
            break;
    }
    return length;
}
