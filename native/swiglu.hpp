// silu(min(gate, limit)) · clamp(up, ±limit), over rows that lie apart: gate and up may be halves of one tensor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// What is not a number stays so.
inline Vec clamp(Vec x, float limit) { return most(all(-limit), least(all(limit), x)); }

inline void swiglu(std::int64_t begin, std::int64_t end, std::int64_t width, const float* gate, const float* up,
                   std::int64_t stride, float limit, float* result) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float *gates = gate + n * stride, *ups = up + n * stride;
        float* to = result + n * width;
        for (std::int64_t i = 0; i < width; i += WIDTH) {
            const std::int64_t count = std::min<std::int64_t>(WIDTH, width - i);
            const bool whole = count == WIDTH;
            const Vec g = least(all(limit), whole ? load(gates + i) : load_part(gates + i, count));
            const Vec u = clamp(whole ? load(ups + i) : load_part(ups + i, count), limit);
            const Vec value = g / (1.0f + exponential(-g)) * u;
            whole ? store(to + i, value) : store_part(to + i, value, count);
        }
    }
}

inline void swiglu_gradient(std::int64_t begin, std::int64_t end, std::int64_t width, const float* gate,
                            const float* up, std::int64_t stride, float limit, const float* by_result,
                            float* by_gate, float* by_up, std::int64_t by_stride, float* result) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float *gates = gate + n * stride, *ups = up + n * stride, *uppers = by_result + n * width;
        float *by_gates = by_gate + n * by_stride, *by_ups = by_up + n * by_stride;
        for (std::int64_t i = 0; i < width; i += WIDTH) {
            const std::int64_t count = std::min<std::int64_t>(WIDTH, width - i);
            const bool whole = count == WIDTH;
            const Vec raw_gate = whole ? load(gates + i) : load_part(gates + i, count);
            const Vec raw_up = whole ? load(ups + i) : load_part(ups + i, count);
            const Vec by = whole ? load(uppers + i) : load_part(uppers + i, count);
            const Vec g = least(all(limit), raw_gate), u = clamp(raw_up, limit);
            const Vec sigmoid = 1.0f / (1.0f + exponential(-g));
            const Vec silu = g * sigmoid;
            // silu' = sigmoid · (1 + gate · (1 - sigmoid)) = sigmoid + silu - silu · sigmoid
            const Vec slope = sigmoid + silu - silu * sigmoid;
            // Beyond the limits 0, by a product: what is not a number stays so.
            const Vec to_gate = by * u * slope * (raw_gate > limit ? Vec{} : all(1.0f));
            const Vec to_up = by * silu * (raw_up != u ? Vec{} : all(1.0f));
            const Vec value = silu * u;
            whole ? store(by_gates + i, to_gate) : store_part(by_gates + i, to_gate, count);
            whole ? store(by_ups + i, to_up) : store_part(by_ups + i, to_up, count);
            if (result) whole ? store(result + n * width + i, value) : store_part(result + n * width + i, value, count);
        }
    }
}

}  // namespace narrows::NARROWS_ISA
