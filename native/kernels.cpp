// The kernels of one instruction set, in one table.
#include "kernels.hpp"

#include "attention.hpp"
#include "compress.hpp"
#include "cross_entropy.hpp"
#include "hyper.hpp"
#include "hyper_rows.hpp"
#include "index_search.hpp"
#include "product_packed.hpp"
#include "rms_norm.hpp"
#include "rows.hpp"
#include "sinkhorn.hpp"
#include "summary.hpp"
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
    LANES,
    attention_is_block,
    attention_open,
    attention_scores,
    attention_weights,
    attention_sums,
    attention_gradient,
    attention_add,
    product_rounded,
    product_exact,
    round_row,
    norm_row,
    rotate_row,
    angles_row,
    hadamard_row,
    encode_row,
    decode_row,
    index_queries,
    index_memory,
    index_search,
    compress_window,
    hyper_mixes,
    hyper_finish,
    hyper_head_row,
    weighted_sum,
    summarize,
};

}  // namespace narrows::NARROWS_ISA
