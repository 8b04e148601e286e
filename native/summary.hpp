// What sampling asks of a row of logits, in one pass over them and another over their exponentials.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// The largest of `count` logits, of equals the first, and log Σ e^x. Not finite where one of them is not.
inline LogitsSummary summarize(const float* logits, std::int64_t count) {
    constexpr std::int64_t RUN = 64 * WIDTH;  // exponentials summed as floats before they are added up as doubles
    LogitsSummary found{true, 0, 0.0};
    Vec largest = all(-std::numeric_limits<float>::infinity()), spread{};
    std::int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        const Vec x = load(logits + i);
        largest = most(x, largest);
        spread += x - x;  // 0, unless one is not finite
    }
    float top = -std::numeric_limits<float>::infinity(), rest = sum(spread);
    for (int lane = 0; lane < WIDTH; ++lane) top = std::max(top, largest[lane]);
    for (; i < count; ++i) {
        top = std::max(top, logits[i]);
        rest += logits[i] - logits[i];
    }
    if (!(rest == 0.0f)) {
        found.finite = false;
        return found;
    }
    found.largest = std::find(logits, logits + count, top) - logits;
    double total = 0;
    for (i = 0; i < count; i += RUN) {
        Vec part{};
        const std::int64_t end = std::min(i + RUN, count);
        std::int64_t j = i;
        for (; j + WIDTH <= end; j += WIDTH) part += exponential(load(logits + j) - top);
        for (; j < end; ++j) total += std::exp(static_cast<double>(logits[j]) - top);
        total += sum(part);
    }
    found.log_sum = top + std::log(total);
    return found;
}

}  // namespace narrows::NARROWS_ISA
