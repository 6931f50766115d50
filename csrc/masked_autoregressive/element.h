// The element transforms on the samples of a tile, from parameters that the tile has just computed.
#pragma once

#include "../common/vec.h"
#include "cpu.h"

FLOWKERN_BEGIN

// For `vectors` vectors of samples: out and logabsdet (added to what is there) of x by params, whose
// rows are as long as x.
void masked_element(const MaskedProblem<float>&, const float* x, const float* params, int vectors,
                    float* out, float* logabsdet);
void masked_element(const MaskedProblem<double>&, const double* x, const double* params, int vectors,
                    double* out, double* logabsdet);

// Cotangents of x and of the parameters, from those of out and logabsdet. g_x may be g_out.
void masked_element_vjp(const MaskedProblem<float>&, const float* x, const float* params, int vectors,
                        const float* g_out, const float* g_logabsdet, float* g_x, float* g_params);
void masked_element_vjp(const MaskedProblem<double>&, const double* x, const double* params, int vectors,
                        const double* g_out, const double* g_logabsdet, double* g_x, double* g_params);

FLOWKERN_END
