/* Code books of the IQ formats, and the unevenly spaced levels of the 4-bit ones.
 *
 * A grid entry stands for 8 (or 4) values. Its first value's digit is in the lowest bits; a digit chooses a level. */
#ifndef QMI_QUANT_QUANT_TABLES_H
#define QMI_QUANT_QUANT_TABLES_H

#include <stdint.h>

extern const int8_t qmi_quant_levels_iq4[16];   /* IQ4_NL, IQ4_XS */
extern const int8_t qmi_quant_levels_mxfp4[16]; /* twice the E2M1 numbers of the OCP Microscaling specification 1.0, 5.3.3 */

/* 8 digits of 2 bits. */
extern const uint16_t qmi_quant_grid_iq1[2048];    /* IQ1_S, IQ1_M; digits 0, 1, 2 are the levels -1, 0, 1 */
extern const uint16_t qmi_quant_grid_iq2_xxs[256]; /* digits 0, 1, 2 are the levels of qmi_quant_levels_iq2 */
extern const uint16_t qmi_quant_grid_iq2_xs[512];
extern const uint16_t qmi_quant_grid_iq2_s[1024];
extern const uint8_t qmi_quant_levels_iq2[4];

/* 4 digits of 4 bits, each 0 to 7. */
extern const uint16_t qmi_quant_grid_iq3_xxs[256]; /* levels of qmi_quant_levels_iq3_xxs */
extern const uint16_t qmi_quant_grid_iq3_s[512];   /* level = 2 * digit + 1 */
extern const uint8_t qmi_quant_levels_iq3_xxs[8];

#endif
