// Products of rows with packed weights: y[n] = W · x[n].
//
// The sum of an output goes over the columns in order, a chunk at a time: the chunk's products are added up from 0,
// then times their scale onto the total. Neither the other rows, nor how the work is cut, change a bit of it.
#pragma once

#include <cstdint>

#include "packed.hpp"
#include "product_bf16.hpp"
#include "product_wide.hpp"

namespace narrows::NARROWS_ISA {

// x[r] BF16 [padded columns], zeros behind the last -> y[r][16 block ..]: what `blocks` (at most PANEL) give.
inline void product_rounded(const Packed& w, std::int64_t block, std::int64_t blocks, const std::uint16_t* const* x,
                            float* const* y, std::int64_t count) {
#ifdef NARROWS_BF16_PRODUCTS
    switch (w.format) {
        case Format::BF16: product_panel<BF16Weights>(w, block, blocks, x, y, count); break;
        case Format::FP8: product_panel<FP8Weights>(w, block, blocks, x, y, count); break;
        default: product_panel<MXFP4Weights>(w, block, blocks, x, y, count);
    }
#else
    switch (w.format) {
        case Format::BF16: product_wide<Format::BF16>(w, block, blocks, x, y, count); break;
        case Format::FP8: product_wide<Format::FP8>(w, block, blocks, x, y, count); break;
        default: product_wide<Format::MXFP4>(w, block, blocks, x, y, count);
    }
#endif
}

// The same of BF16 weights with float inputs [columns], which are taken as they are.
inline void product_exact(const Packed& w, std::int64_t block, std::int64_t blocks, const float* const* x,
                          float* const* y, std::int64_t count) {
    product_wide<Format::BF16>(w, block, blocks, x, y, count);
}

}  // namespace narrows::NARROWS_ISA
