// A row of logits to its loss, and in place to the loss's gradient.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector.hpp"

namespace narrows::NARROWS_ISA {

inline void cross_entropy(std::int64_t begin, std::int64_t end, std::int64_t vocab, float* logits,
                          const std::int64_t* targets, float* losses) {
    for (std::int64_t n = begin; n < end; ++n) {
        float* row = logits + n * vocab;
        if (targets[n] < 0) {
            std::memset(row, 0, sizeof(float) * vocab);
            losses[n] = 0;
            continue;
        }
        const float wanted = row[targets[n]];
        Vec tops = all(row[0]);
        std::int64_t i = 0;
        for (; i + WIDTH <= vocab; i += WIDTH) tops = most(tops, load(row + i));
        float largest = tops[0];
        for (int lane = 1; lane < WIDTH; ++lane) largest = std::fmax(largest, tops[lane]);
        for (; i < vocab; ++i) largest = std::fmax(largest, row[i]);
        Vec sums{};
        for (i = 0; i + WIDTH <= vocab; i += WIDTH) {
            const Vec size = exponential(load(row + i) - largest);
            sums += size;
            store(row + i, size);
        }
        float rest = 0;
        for (; i < vocab; ++i) rest += row[i] = std::exp(row[i] - largest);
        const float total = sum(sums) + rest;
        losses[n] = std::log(total) - (wanted - largest);
        const float factor = 1.0f / total;
        for (i = 0; i + WIDTH <= vocab; i += WIDTH) store(row + i, load(row + i) * factor);
        for (; i < vocab; ++i) row[i] *= factor;
        row[targets[n]] -= 1.0f;
    }
}

}  // namespace narrows::NARROWS_ISA
