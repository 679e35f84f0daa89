/* Kernels on vectors of 16 floats. */
#include "cpu/x86/x86.h"

#include "cpu/x86/vector_avx512.h"
#include "cpu/x86/kv_avx512.h"

#include "cpu/x86/float_tmpl.h"
#include "cpu/x86/attend_tmpl.h"
#include "cpu/x86/delta_tmpl.h"
#include "cpu/x86/dot_float_tmpl.h"
