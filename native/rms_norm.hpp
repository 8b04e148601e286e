// RMS norm.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector.hpp"

namespace narrows::NARROWS_ISA {

inline void rms_norm(std::int64_t begin, std::int64_t end, std::int64_t d, const float* x, const float* weight,
                     float eps, float* result, float* inverse) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float* from = x + n * d;
        float* to = result + n * d;
        const float factor = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + eps);
        inverse[n] = factor;
        std::int64_t i = 0;
        for (; i + WIDTH <= d; i += WIDTH) {
            const Vec scaled = load(from + i) * factor;
            store(to + i, weight ? scaled * load(weight + i) : scaled);
        }
        for (; i < d; ++i) to[i] = from[i] * factor * (weight ? weight[i] : 1.0f);
    }
}

inline void rms_norm_gradient(std::int64_t begin, std::int64_t end, std::int64_t d, const float* x,
                              const float* weight, const float* inverse, const float* by_result, float* by_x,
                              float* by_weight) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float *from = x + n * d, *upper = by_result + n * d;
        float* to = by_x + n * d;
        const float factor = inverse[n];
        Vec sums{};
        std::int64_t i = 0;
        for (; i + WIDTH <= d; i += WIDTH) {
            const Vec product = load(from + i) * load(upper + i);
            sums += weight ? product * load(weight + i) : product;
            if (by_weight) store(by_weight + i, load(by_weight + i) + product * factor);
        }
        float rest = 0;
        for (; i < d; ++i) {
            const float product = from[i] * upper[i];
            rest += weight ? product * weight[i] : product;
            if (by_weight) by_weight[i] += product * factor;
        }
        const float along = -(sum(sums) + rest) * factor * factor * factor / static_cast<float>(d);
        for (i = 0; i + WIDTH <= d; i += WIDTH) {
            const Vec scaled = load(upper + i) * factor;
            store(to + i, load(from + i) * along + (weight ? scaled * load(weight + i) : scaled));
        }
        for (; i < d; ++i) to[i] = from[i] * along + upper[i] * factor * (weight ? weight[i] : 1.0f);
    }
}

}  // namespace narrows::NARROWS_ISA
