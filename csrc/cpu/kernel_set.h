// All kernels of one instruction set. A file in isa/ defines QF_ISA (namespace), one QF_ISA_* switch of simd.h and
// QF_LEVEL (the table's name), then includes this. Adding a family: one include and one line of the table here, one
// struct in kernels.h.
#pragma once

#include "kernels.h"
#include "simd.h"

#include "attention_kernels.h"
#include "elementwise_kernels.h"
#include "image_kernels.h"
#include "linear_kernels.h"
#include "norm_kernels.h"
#include "quant_kernels.h"
#include "rope_kernels.h"
#include "softmax_kernels.h"

namespace qformer::cpu::QF_ISA {

inline constexpr CpuKernels kKernels = {
    QF_LEVEL,        kLanes,       kLinearKernels,    kQuantKernels,       kNormKernels,
    kSoftmaxKernels, kRopeKernels, kAttentionKernels, kElementwiseKernels, kImageKernels,
};

}  // namespace qformer::cpu::QF_ISA
