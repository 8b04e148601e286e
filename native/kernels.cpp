// The kernels of one instruction set, in one table.
#include "kernels.hpp"

#include "attention.hpp"
#include "cross_entropy.hpp"
#include "hyper.hpp"
#include "rms_norm.hpp"
#include "sinkhorn.hpp"
#include "swiglu.hpp"

namespace narrows::NARROWS_ISA {

extern const Kernels kernels = {
    hyper_read,
    hyper_read_gradient,
    hyper_strengths,
    hyper_post,
    hyper_post_gradient,
    sinkhorn,
    sinkhorn_gradient,
    rms_norm,
    rms_norm_gradient,
    swiglu,
    swiglu_gradient,
    cross_entropy,
    attention_memory,
    attention,
    attention_gradient,
    attention_add,
};

}  // namespace narrows::NARROWS_ISA
